//! Connections: dialled, accepted, made room for, and ended.

use std::time::Duration;

use libp2p::{PeerId, swarm::ConnectionId};
use quelea_behaviours::{
    config::{DIAL_TIMEOUT, ESTABLISHED_INBOUND, IDLE_CONNECTION_TIMEOUT},
    eviction::{self, Candidate},
    inbound::GRACE,
    peers::{
        Source,
        policy::{Dial, Opened},
    },
};
use quelea_wire::prefix::{OPERATOR, Prefix, ip_of};

use super::{Event, Net};
use crate::{engine::Rng, node::Link};

impl Net {
    /// Dials whom the policy names.
    pub fn look(&mut self, n: usize) {
        let now = self.common.now(self.queue.now);
        let (mut dials, mut last) = (Vec::new(), self.connections);
        // Connections that were not chosen from the start end after a minute here, and may be taken over before.
        self.nodes[n].policy.dial(now, |dial| {
            last += 1;
            dials.push((dial, last));
            ConnectionId::new_unchecked(last)
        });
        self.connections = last;
        let start = self.nodes[n].start;
        for (Dial { peer, addrs }, connection) in dials {
            self.dials += 1;
            let there = self.by_peer.get(&peer).copied().filter(|to| addrs.contains(&self.nodes[*to].addr));
            match there.filter(|to| self.can_reach(n, *to)) {
                Some(to) => {
                    let trips = 3 * self.latency(n, to);
                    self.queue.plan(trips, Event::Arrive { from: n, to, connection, start });
                }
                None => {
                    let patience = DIAL_TIMEOUT.as_micros() as u64;
                    self.queue.plan(patience, Event::Fail { from: n, peer, connection, start });
                }
            }
        }
    }

    pub(super) fn dial_failed(&mut self, n: usize, peer: PeerId, connection: usize, refused: bool) {
        let now = self.common.now(self.queue.now);
        if self.nodes[n].policy.dial_failed(peer, ConnectionId::new_unchecked(connection), refused, now) {
            self.look(n);
        }
    }

    pub(super) fn arrive(&mut self, from: usize, to: usize, connection: usize) {
        if !self.can_reach(from, to) || self.nodes[from].links.contains_key(&to) {
            // Both dialled each other: one connection is enough.
            let refused = self.nodes[from].links.contains_key(&to);
            return self.dial_failed(from, self.nodes[to].peer, connection, refused);
        }
        if self.nodes[to].links.contains_key(&from) {
            // It has come back before its end was noticed.
            self.drop_link(to, from);
        }
        let now = self.common.now(self.queue.now);
        let since = self.queue.now;
        for (n, m, outbound) in [(from, to, true), (to, from, false)] {
            let (peer, addr) = (self.nodes[m].peer, self.nodes[m].addr.clone());
            self.nodes[n].links.insert(m, Link { connection, outbound, since });
            let id = ConnectionId::new_unchecked(connection);
            let opened = Opened {
                peer,
                connection: id,
                addr: &addr,
                outbound,
                relayed: false,
                via: None,
                source: Source::Other,
            };
            let kept = self.nodes[n].policy.opened(&opened, now);
            self.nodes[n].exchanger.connected(peer);
            if outbound && !kept {
                let idle = IDLE_CONNECTION_TIMEOUT.as_micros() as u64;
                self.queue.plan(idle, Event::Idle { at: n, other: m, connection });
            }
            let latency = self.latency(n, m);
            self.queue.plan(latency, Event::Identify { to: m, from: n, connection });
        }
        self.make_room(to, from);
        for n in [from, to] {
            self.look(n);
            self.wake(n);
        }
    }

    /// The rule of the node for inbound connections past their places.
    fn make_room(&mut self, n: usize, newcomer: usize) {
        let inbound = |(_, link): &(&usize, &Link)| !link.outbound;
        if self.nodes[n].links.iter().filter(inbound).count() <= ESTABLISHED_INBOUND as usize {
            return;
        }
        let now = self.common.instant(self.queue.now);
        let settled = |link: &Link| self.queue.now - link.since >= GRACE.as_micros() as u64;
        let before = self.nodes[n].links.iter().filter(inbound).filter(|(m, link)| **m != newcomer && settled(link));
        let candidates = before.map(|(m, link)| {
            let group = ip_of(&self.nodes[*m].addr).map(|ip| Prefix::around(ip, OPERATOR));
            let place = group.map_or(0, |group| u64::from(u32::from_be_bytes(octets(group))));
            Candidate {
                key: *m,
                group,
                order: Rng::new(n as u64 ^ place).next(),
                ping: Some(Duration::from_micros(2 * self.world.distance(n, *m))),
                worked: None,
                conduct: self.nodes[n].conduct.score(&self.nodes[*m].peer, now),
                since: self.common.instant(link.since),
                kept: false,
            }
        });
        let worst = eviction::select(candidates.collect()).unwrap_or(newcomer);
        self.evicted += 1;
        self.close(n, worst);
    }

    /// One end closes.
    pub(super) fn close(&mut self, n: usize, m: usize) {
        if let Some(link) = self.nodes[n].links.get(&m).copied() {
            self.send(n, m, || Event::Closed { at: m, other: n, connection: link.connection });
            self.drop_link(n, m);
        }
    }

    pub(super) fn closed(&mut self, at: usize, other: usize, connection: usize) {
        if self.nodes[at].links.get(&other).is_some_and(|link| link.connection == connection) && self.nodes[at].up {
            self.drop_link(at, other);
            self.look(at);
        }
    }

    fn drop_link(&mut self, n: usize, m: usize) {
        let (peer, now) = (self.nodes[m].peer, self.common.now(self.queue.now));
        let node = &mut self.nodes[n];
        let Some(link) = node.links.remove(&m) else { return };
        node.mesh.remove(&m);
        node.policy.closed(peer, ConnectionId::new_unchecked(link.connection), now);
        if node.asked.remove(&m).is_some() {
            node.exchanger.interrupted(&peer);
        }
        node.exchanger.disconnected(&peer);
    }

    /// `from` has said where it listens and what it serves.
    pub(super) fn identified(&mut self, to: usize, from: usize) {
        let (peer, addr) = (self.nodes[from].peer, self.nodes[from].addr.clone());
        let now = self.common.now(self.queue.now);
        let node = &mut self.nodes[to];
        node.policy.book_mut().named(&peer, "quelea/0.1.0".to_owned());
        node.policy.learn(peer, std::slice::from_ref(&addr), Source::Inbound, now);
        self.note_route(to, from);
        if !self.nodes[to].routed && self.setting.tables {
            self.nodes[to].routed = true;
            self.find_place(to);
        }
    }
}

fn octets(prefix: Prefix) -> [u8; 4] {
    match prefix.first() {
        std::net::IpAddr::V4(ip) => ip.octets(),
        std::net::IpAddr::V6(_) => [0; 4],
    }
}
