//! The exchange between nodes: its own machine on both sides, and what liars make of it.

use std::time::Duration;

use quelea_behaviours::{
    conduct::Deed,
    peers::{Source, Told},
    scope,
};
use quelea_exchange::{Entry, Filter, MAX_KEYS, MAX_RECORDS, MAX_TTL, Request, SignedRecord, TIMEOUT};

use crate::{
    net::{Event, Net},
    node::Kind,
};

/// Bytes of an answer before its records, and around each of them: see the layout in `quelea_exchange`'s `message`.
const ANSWER: usize = 2;
const AROUND_RECORD: usize = 3;

pub enum Talk {
    /// It is time to look whom to ask.
    Wake {
        at: usize,
        start: u32,
        due: u64,
    },
    Question {
        to: usize,
        from: usize,
        number: u64,
        want: u8,
        filter: Box<Filter>,
        own: SignedRecord,
    },
    Answer {
        to: usize,
        from: usize,
        number: u64,
        entries: Vec<Entry>,
    },
    Overdue {
        at: usize,
        from: usize,
        number: u64,
    },
}

impl Talk {
    pub fn mark(&self) -> [u64; 3] {
        match self {
            Self::Wake { at, .. } => [20, *at as u64, 0],
            Self::Question { to, from, .. } => [21, *to as u64, *from as u64],
            Self::Answer { to, from, entries, .. } => [22 + 256 * entries.len() as u64, *to as u64, *from as u64],
            Self::Overdue { at, from, .. } => [23, *at as u64, *from as u64],
        }
    }
}

impl Net {
    /// Plans when the exchanger of a node looks next, if that is before what is planned.
    pub fn wake(&mut self, n: usize) {
        let now = self.common.now(self.queue.now);
        let node = &mut self.nodes[n];
        let Some(due) = node.exchanger.next_at(now).map(|at| (at.as_micros() as u64).max(self.queue.now)) else {
            return;
        };
        if due < node.wake || node.wake < self.queue.now {
            node.wake = due;
            let start = node.start;
            self.queue.plan(due - self.queue.now, Event::Exchange(Talk::Wake { at: n, start, due }));
        }
    }

    pub fn on_exchange(&mut self, talk: Talk) {
        match talk {
            Talk::Wake { at, start, due } => {
                if self.is_current(at, start) && self.nodes[at].wake == due {
                    self.ask(at);
                }
            }
            Talk::Question { to, from, number, want, filter, own } => {
                self.answer(to, from, number, want, &filter, &own);
            }
            Talk::Answer { to, from, number, entries } => {
                if self.nodes[to].up && self.nodes[to].asked.get(&from) == Some(&number) {
                    self.nodes[to].asked.remove(&from);
                    self.answered(to, from, entries);
                }
            }
            Talk::Overdue { at, from, number } => {
                if self.nodes[at].up && self.nodes[at].asked.get(&from) == Some(&number) {
                    let (peer, now) = (self.nodes[from].peer, self.common.now(self.queue.now));
                    self.nodes[at].asked.remove(&from);
                    self.nodes[at].exchanger.silent(peer, now);
                    self.wake(at);
                }
            }
        }
    }

    fn ask(&mut self, n: usize) {
        let now = self.common.now(self.queue.now);
        self.nodes[n].wake = u64::MAX;
        let asks = self.nodes[n].exchanger.poll(now);
        for mut ask in asks {
            let Some(to) = self.by_peer.get(&ask.peer).copied().filter(|to| self.nodes[n].links.contains_key(to))
            else {
                self.nodes[n].exchanger.disconnected(&ask.peer);
                continue;
            };
            if self.nodes[n].kind == Kind::Inventor {
                ask.filter = Filter::new(1, self.rng.next());
                self.invented.iter().for_each(|record| ask.filter.insert(&record.peer()));
            }
            let own = self.nodes[n].record(&self.common.network, now.unix_ms);
            let request = Request { want: ask.want, own: Some(own.raw().to_vec()), filter: ask.filter };
            self.questions += 1;
            let number = self.questions;
            let node = &mut self.nodes[n];
            node.sent.messages += 1;
            node.sent.bytes += request.encode().len() as u64;
            node.asked.insert(to, number);
            let (want, filter) = (request.want, Box::new(request.filter));
            self.queue.plan(micros(TIMEOUT), Event::Exchange(Talk::Overdue { at: n, from: to, number }));
            if !self.rng.chance(self.setting.loss) {
                self.send(n, to, || Event::Exchange(Talk::Question { to, from: n, number, want, filter, own }));
            }
        }
        self.wake(n);
    }

    fn answer(&mut self, n: usize, asker: usize, number: u64, want: u8, filter: &Filter, own: &SignedRecord) {
        if !self.nodes[n].links.contains_key(&asker) || !self.nodes[n].up {
            return;
        }
        let now = self.common.now(self.queue.now);
        if self.nodes[n].exchanger.met(own.clone()) {
            self.told(n, asker, own);
        }
        let (peer, at) = (self.nodes[asker].peer, self.nodes[asker].addr.clone());
        let entries = match self.nodes[n].kind {
            Kind::Silent | Kind::Liar => return,
            Kind::Inventor => {
                let count = usize::from(want.min(MAX_RECORDS));
                let told = self.rng.pick(&(0..self.invented.len()).collect::<Vec<_>>(), count);
                told.into_iter().map(|i| Entry { ttl: MAX_TTL, record: self.invented[i].clone() }).collect()
            }
            Kind::Honest => {
                let own = Some(self.nodes[n].record(&self.common.network, now.unix_ms));
                let told = |record: &SignedRecord| record.record().addrs.iter().all(|addr| scope::may_tell(&at, addr));
                self.nodes[n].exchanger.answer(&peer, filter, want, own, now, told)
            }
        };
        let bytes = entries.iter().map(|entry| AROUND_RECORD + entry.record.raw().len()).sum::<usize>();
        self.nodes[n].sent.messages += 1;
        self.nodes[n].sent.bytes += (ANSWER + bytes) as u64;
        if !self.rng.chance(self.setting.loss) {
            self.send(n, asker, || Event::Exchange(Talk::Answer { to: asker, from: n, number, entries }));
        }
    }

    fn answered(&mut self, n: usize, from: usize, mut entries: Vec<Entry>) {
        let (peer, at) = (self.nodes[from].peer, self.nodes[from].addr.clone());
        // As the decoder does: what is too old is left out, and one peer told of twice is a lie.
        let mut peers: Vec<_> = entries.iter().map(|entry| entry.record.peer()).collect();
        peers.sort_unstable();
        peers.dedup();
        if peers.len() < entries.len() {
            self.nodes[n].exchanger.silent(peer, self.common.now(self.queue.now));
            self.judge(n, from, Deed::Invalid);
            return;
        }
        let named = |entry: &Entry| entry.record.record().addrs.iter().all(|addr| scope::may_record(&at, addr));
        entries.retain(named);
        let learnt = self.nodes[n].exchanger.answered(peer, entries);
        for record in &learnt {
            self.told(n, from, record);
        }
        if !learnt.is_empty() {
            self.judge(n, from, Deed::Valid);
            self.look(n);
        }
        self.wake(n);
    }

    /// What becomes of a record that tells something new.
    fn told(&mut self, n: usize, teller: usize, record: &SignedRecord) {
        let (said, teller, now) = (record.record(), self.nodes[teller].peer, self.common.now(self.queue.now));
        let told = if said.peer == teller {
            Told::from(Source::Inbound)
        } else {
            Told { source: Source::Exchange, teller: Some(teller) }
        };
        let node = &mut self.nodes[n];
        node.policy.learn(said.peer, &said.addrs, told, now);
        let conduct = node.policy.book().get(&said.peer).map_or(0, |known| known.conduct);
        node.exchanger.set_trust(&said.peer, u32::from(conduct));
    }

    /// Another node did something; all who go by its score hear of it. Bans are counted, and nothing else follows from them.
    pub fn judge(&mut self, n: usize, of: usize, deed: Deed) {
        let (peer, now) = (self.nodes[of].peer, self.common.instant(self.queue.now));
        let node = &mut self.nodes[n];
        if node.conduct.note(peer, deed, now) {
            *node.banned.entry(of).or_default() += 1;
        }
        let good = u16::try_from(node.conduct.score(&peer, now).max(0)).unwrap_or(u16::MAX);
        node.policy.book_mut().set_conduct(&peer, good);
        node.exchanger.set_trust(&peer, u32::from(good));
    }

    /// Records of peers that do not exist, held by a node to pass on, and peers in its book.
    pub fn inventions_at(&self, n: usize) -> (usize, usize) {
        let node = &self.nodes[n];
        let is_invented = |peer: &libp2p::PeerId| !self.by_peer.contains_key(peer);
        let held = node.exchanger.records().filter(|held| is_invented(&held.record.peer())).count();
        (held, node.policy.book().iter().filter(|(peer, _)| is_invented(peer)).count())
    }

    /// How many of `others` a node has in its book.
    pub fn knows(&self, n: usize, others: &[usize]) -> usize {
        let book = self.nodes[n].policy.book();
        others.iter().filter(|m| book.get(&self.nodes[**m].peer).is_some()).count()
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

/// A filter takes in more peers than inventors make up: theirs is full for whoever reads it.
const _: () = assert!(MAX_KEYS > 1000);
