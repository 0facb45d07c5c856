//! A line in a swarm: gossipsub's mesh as a model with the product's settings, the node's own gate as it is.
//!
//! The model has what decides the way of a message: the connections that stand, a mesh by graft and prune at each heartbeat
//! with its back-off and its share of outbound connections, flood publishing, advertisements (IHAVE) of the last heartbeats
//! to some of the others, requests (IWANT), and gossipsub's memory of duplicates. It has no scores. Loss takes single pushes
//! away, as a full queue does; what was advertised is asked for again.

use std::collections::{BTreeMap, HashSet};

use libp2p::gossipsub::TopicHash;
use quelea_behaviours::{
    conduct::Deed,
    gossip::{Content, Id, Topic, Verdict, id_of, verify},
};
use quelea_broadcast::SignedLine;

use crate::{
    engine::quantile,
    net::{Event, Net},
    node::Kind,
};

pub enum Said {
    Beat(usize, u32),
    Graft { to: usize, from: usize },
    Prune { to: usize, from: usize },
    Have { to: usize, from: usize, lines: Vec<usize> },
    Want { to: usize, from: usize, lines: Vec<usize> },
    Push { to: usize, from: usize, line: usize, hops: u64 },
}

impl Said {
    pub fn mark(&self) -> [u64; 3] {
        let (what, a, b) = match self {
            Self::Beat(at, _) => (40, *at, 0),
            Self::Graft { to, from } => (41, *to, *from),
            Self::Prune { to, from } => (42, *to, *from),
            Self::Have { to, from, .. } => (43, *to, *from),
            Self::Want { to, from, .. } => (44, *to, *from),
            Self::Push { to, from, hops, .. } => (45 + 256 * hops, *to, *from),
        };
        [what, a as u64, b as u64]
    }
}

pub struct Line {
    id: Id,
    data: Vec<u8>,
    content: Content,
    said: u64,
    /// Who was up when it was said, in which start, and how it reached them.
    expected: Vec<(usize, u32)>,
    heard: BTreeMap<usize, (u64, u64)>,
    copies: u64,
}

/// What came of the lines.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    /// Share of those that were there all the time.
    pub delivered: f64,
    pub hops_99: u64,
    pub p50_ms: u64,
    pub p99_ms: u64,
    /// Copies for each delivery.
    pub redundancy: f64,
}

impl Net {
    pub fn first_beat(&mut self, n: usize) {
        let beat = self.mesh.heartbeat_interval().as_micros() as usize;
        let (phase, start) = (self.rng.below(beat) as u64, self.nodes[n].start);
        self.queue.plan(phase, Event::Gossip(Said::Beat(n, start)));
    }

    fn say_to(&mut self, from: usize, to: usize, said: Said) {
        self.send(from, to, || Event::Gossip(said));
    }

    fn push(&mut self, from: usize, to: usize, line: usize, hops: u64) {
        if !self.rng.chance(self.setting.loss) {
            self.say_to(from, to, Said::Push { to, from, line, hops });
        }
    }

    pub fn on_gossip(&mut self, said: Said) {
        match said {
            Said::Beat(n, start) => {
                if self.is_current(n, start) {
                    self.beat(n);
                }
            }
            Said::Graft { to, from } => self.grafted(to, from),
            Said::Prune { to, from } => {
                let until = self.queue.now + self.mesh.prune_backoff().as_micros() as u64;
                self.nodes[to].mesh.remove(&from);
                self.nodes[to].backoff.insert(from, until);
            }
            Said::Have { to, from, lines } => {
                let node = &self.nodes[to];
                let wanted: Vec<usize> = lines.into_iter().filter(|line| !node.seen.contains(line)).collect();
                if node.up && node.kind != Kind::Silent && !wanted.is_empty() {
                    self.say_to(to, from, Said::Want { to: from, from: to, lines: wanted });
                }
            }
            Said::Want { to, from, lines } => {
                if self.nodes[to].up && self.nodes[to].kind != Kind::Silent {
                    for line in lines {
                        let hops = self.lines[line].heard.get(&to).map_or(0, |(_, hops)| *hops);
                        self.push(to, from, line, hops + 1);
                    }
                }
            }
            Said::Push { to, from, line, hops } => self.take(to, from, line, hops),
        }
    }

    fn grafted(&mut self, n: usize, from: usize) {
        let (now, full) = (self.queue.now, self.nodes[n].mesh.len() >= self.mesh.mesh_n_high());
        let node = &mut self.nodes[n];
        let Some(link) = node.links.get(&from).filter(|_| node.up) else { return };
        let early = node.backoff.get(&from).is_some_and(|until| *until > now);
        if early || (full && !link.outbound) {
            let until = now + self.mesh.prune_backoff().as_micros() as u64;
            node.backoff.insert(from, until);
            self.say_to(n, from, Said::Prune { to: from, from: n });
        } else {
            node.mesh.insert(from);
        }
    }

    fn beat(&mut self, n: usize) {
        let (beat, now, start) =
            (self.mesh.heartbeat_interval().as_micros() as u64, self.queue.now, self.nodes[n].start);
        self.queue.plan(beat, Event::Gossip(Said::Beat(n, start)));
        let node = &mut self.nodes[n];
        node.backoff.retain(|_, until| *until > now);
        node.gate.tick(self.common.instant(now));
        node.beats += 1;
        let (beats, advertised) = (node.beats, self.mesh.history_gossip() as u64);
        node.recent.retain(|(_, since)| beats - since <= advertised);
        self.tend(n);
        let node = &self.nodes[n];
        let lines: Vec<usize> = node.recent.iter().map(|(line, _)| *line).collect();
        if node.kind == Kind::Silent || lines.is_empty() {
            return;
        }
        let others: Vec<usize> = node.links.keys().copied().filter(|m| !node.mesh.contains(m)).collect();
        let share = (self.mesh.gossip_factor() * others.len() as f64) as usize;
        for m in self.rng.pick(&others, self.mesh.gossip_lazy().max(share)) {
            self.say_to(n, m, Said::Have { to: m, from: n, lines: lines.clone() });
        }
    }

    /// Grafts where the mesh is thin, prunes where it is thick.
    fn tend(&mut self, n: usize) {
        let (d, low, high, out) =
            (self.mesh.mesh_n(), self.mesh.mesh_n_low(), self.mesh.mesh_n_high(), self.mesh.mesh_outbound_min());
        let node = &self.nodes[n];
        let size = node.mesh.len();
        let is_outbound = |m: &usize| node.links.get(m).is_some_and(|link| link.outbound);
        let free = |m: &usize| !node.mesh.contains(m) && !node.backoff.contains_key(m);
        let (mut graft, mut prune) = (Vec::new(), Vec::new());
        if size < low {
            let others: Vec<usize> = node.links.keys().copied().filter(free).collect();
            graft = self.rng.pick(&others, d - size);
        } else if size >= high {
            let mesh: Vec<usize> = node.mesh.iter().copied().collect();
            let mut outbound = mesh.iter().filter(|m| is_outbound(m)).count();
            for m in self.rng.pick(&mesh, size) {
                let spared = is_outbound(&m) && outbound <= out;
                if prune.len() < size - d && !spared {
                    outbound -= usize::from(is_outbound(&m));
                    prune.push(m);
                }
            }
        } else {
            let outbound = node.mesh.iter().filter(|m| is_outbound(m)).count();
            let others: Vec<usize> = node.links.keys().copied().filter(|m| free(m) && is_outbound(m)).collect();
            graft = self.rng.pick(&others, out.saturating_sub(outbound));
        }
        let until = self.queue.now + self.mesh.prune_backoff().as_micros() as u64;
        for m in graft {
            self.nodes[n].mesh.insert(m);
            self.say_to(n, m, Said::Graft { to: m, from: n });
        }
        for m in prune {
            self.nodes[n].mesh.remove(&m);
            self.nodes[n].backoff.insert(m, until);
            self.say_to(n, m, Said::Prune { to: m, from: n });
        }
    }

    fn topic(&self) -> TopicHash {
        Topic::Broadcast.ident(&self.common.network).hash()
    }

    /// A random honest node says a line, with an author of its own: the limits per author are not the question here.
    pub fn say(&mut self) {
        let (now, number) = (self.queue.now, self.lines.len());
        let (now_ms, network) = (self.common.now(now).unix_ms, self.common.network);
        let line = SignedLine::sign(&self.rng.key(), &network, now_ms, &format!("line {number}")).unwrap();
        let content = verify(&network, Topic::Broadcast, line.raw(), now_ms).unwrap();
        let up = self.up(Kind::Honest);
        let from = up[self.rng.below(up.len())];
        self.lines.push(Line {
            id: id_of(self.topic().as_str(), line.raw()),
            data: line.raw().to_vec(),
            content: content.clone(),
            said: now,
            expected: up.into_iter().map(|n| (n, self.nodes[n].start)).collect(),
            heard: BTreeMap::from([(from, (0, 0))]),
            copies: 0,
        });
        let node = &mut self.nodes[from];
        node.gate.published(Topic::Broadcast, line.raw(), &content, now_ms);
        node.seen.insert(number);
        node.recent.push((number, node.beats));
        let all = self.mesh.flood_publish();
        let to: Vec<usize> =
            if all { node.links.keys().copied().collect() } else { node.mesh.iter().copied().collect() };
        for to in to {
            self.push(from, to, number, 1);
        }
    }

    fn take(&mut self, to: usize, from: usize, number: usize, hops: u64) {
        let (now, topic) = (self.queue.now, self.topic());
        let (instant, now_ms) = (self.common.instant(now), self.common.now(now).unix_ms);
        let line = &mut self.lines[number];
        let node = &mut self.nodes[to];
        if !node.up || node.kind == Kind::Silent {
            return;
        }
        line.copies += 1;
        if !node.seen.insert(number) {
            return;
        }
        let verdict = match node.gate.screen(&topic, &line.id, line.data.len()) {
            Ok(topic) => node.gate.admit(topic, line.id, Ok(line.content.clone()), now_ms, instant),
            Err(verdict) => verdict,
        };
        match verdict {
            Verdict::Accept(_) => self.judge(to, from, Deed::Valid),
            Verdict::Reject(_) => return self.judge(to, from, Deed::Invalid),
            _ => return,
        }
        let (line, node) = (&mut self.lines[number], &mut self.nodes[to]);
        line.heard.insert(to, (now - line.said, hops));
        node.recent.push((number, node.beats));
        for next in node.mesh.iter().copied().filter(|next| *next != from).collect::<Vec<_>>() {
            self.push(to, next, number, hops + 1);
        }
    }

    /// Says so many lines, one a second, and follows them for ten seconds more.
    pub fn say_lines(&mut self, count: usize) -> Heard {
        let first = self.lines.len();
        for _ in 0..count {
            self.say();
            self.run_until(self.queue.now + crate::net::SECOND);
        }
        self.run_until(self.queue.now + 10 * crate::net::SECOND);
        self.heard(first)
    }

    fn heard(&self, first: usize) -> Heard {
        let (mut times, mut hops) = (Vec::new(), Vec::new());
        let (mut expected, mut copies, mut heard) = (0_usize, 0, 0);
        for line in &self.lines[first..] {
            for (n, _) in line.expected.iter().filter(|(n, start)| self.is_current(*n, *start)) {
                expected += 1;
                if let Some((time, hop)) = line.heard.get(n) {
                    times.push(*time);
                    hops.push(*hop);
                }
            }
            (copies, heard) = (copies + line.copies, heard + line.heard.len());
        }
        times.sort_unstable();
        hops.sort_unstable();
        let share =
            |q: f64| times.get(((expected as f64 * q).ceil() as usize).max(1) - 1).map_or(u64::MAX, |t| t / 1000);
        Heard {
            delivered: times.len() as f64 / expected as f64,
            hops_99: quantile(&hops, 0.99),
            p50_ms: share(0.5),
            p99_ms: share(0.99),
            redundancy: copies as f64 / heard as f64,
        }
    }

    /// Whether everybody of `who` can be reached from everybody over connections that stand.
    pub fn is_connected(&self, who: &[usize]) -> bool {
        let of: HashSet<usize> = who.iter().copied().collect();
        let (mut reached, mut next) = (HashSet::new(), who.first().copied().into_iter().collect::<Vec<_>>());
        while let Some(n) = next.pop() {
            if reached.insert(n) {
                next.extend(self.nodes[n].links.keys().copied().filter(|m| of.contains(m) && self.can_reach(n, *m)));
            }
        }
        reached.len() == of.len()
    }
}
