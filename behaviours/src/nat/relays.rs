//! At which relays this node keeps a place: a pure machine, driven by the event loop.
//!
//! ```text
//! (free) --asked--> Asked --accepted--> Reserved --lost--> (free, pause grows)
//!                     \------lost / too long------------/
//! ```
//!
//! libp2p renews a reservation by itself while the connection to the relay stands, and closes its listener when it cannot.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, core::transport::ListenerId};

use crate::identify::ip_of;

/// Reservations kept: when one relay goes away, the other still leads here while a third is asked.
pub const WANTED: usize = 2;

/// How long a relay may take to answer, dialling it included, before another one is asked beside it.
pub const ANSWER_DUE: Duration = Duration::from_secs(12);

/// The pause after a relay refused or was lost; doubles with each further time, up to [`PAUSE_MAX`].
pub const PAUSE: Duration = Duration::from_secs(5);
/// The longest pause. libp2p's relays grant one reservation per peer each two minutes once a first burst is spent.
pub const PAUSE_MAX: Duration = Duration::from_secs(300);

/// Relays whose failures are remembered. Only those we asked enter, two at a time.
const REMEMBERED: usize = 64;

/// A peer that offers to relay, as seen now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub peer: PeerId,
    /// Where we are connected to it directly.
    pub addr: Multiaddr,
    /// Its last round trip.
    pub rtt: Option<Duration>,
}

#[derive(Debug, Clone)]
struct Hold {
    listener: ListenerId,
    addr: Multiaddr,
    reserved: bool,
    since: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    until: Instant,
}

/// The reservations that this node holds or has asked for.
#[derive(Debug, Default)]
pub struct Relays {
    held: HashMap<PeerId, Hold>,
    failures: HashMap<PeerId, Failures>,
}

impl Relays {
    /// Which relay to ask next, if one more is wanted: not one that we hold or that failed a moment ago; rather in an
    /// address group that none of ours is in, as one customer's machines tend to fail together; then the nearest.
    #[must_use]
    pub fn next(&self, candidates: &[Candidate], now: Instant) -> Option<Candidate> {
        let counted = |hold: &&Hold| hold.reserved || now.saturating_duration_since(hold.since) < ANSWER_DUE;
        if self.held.values().filter(counted).count() >= WANTED {
            return None;
        }
        let groups: Vec<Group> = self.held.values().filter_map(|hold| group(&hold.addr)).collect();
        let usable = candidates.iter().filter(|c| !self.held.contains_key(&c.peer) && !self.is_paused(&c.peer, now));
        usable
            .min_by_key(|c| {
                let shared = group(&c.addr).is_some_and(|group| groups.contains(&group));
                (shared, c.rtt.unwrap_or(Duration::MAX), c.peer.to_bytes())
            })
            .cloned()
    }

    /// `peer` has been asked; its answer comes on `listener`.
    pub fn asked(&mut self, peer: PeerId, addr: Multiaddr, listener: ListenerId, now: Instant) {
        self.held.insert(peer, Hold { listener, addr, reserved: false, since: now });
    }

    /// `peer` keeps a place for us.
    pub fn accepted(&mut self, peer: &PeerId) {
        if let Some(hold) = self.held.get_mut(peer) {
            hold.reserved = true;
            self.failures.remove(peer);
        }
    }

    /// A listener closed. Whose it was, when it was a relay's.
    pub fn lost(&mut self, listener: ListenerId, now: Instant) -> Option<PeerId> {
        let peer = *self.held.iter().find(|(_, hold)| hold.listener == listener)?.0;
        self.held.remove(&peer);
        self.failed(peer, now);
        Some(peer)
    }

    /// `peer` could not be asked.
    pub fn failed(&mut self, peer: PeerId, now: Instant) {
        if self.failures.len() >= REMEMBERED && !self.failures.contains_key(&peer) {
            let oldest = self.failures.iter().min_by_key(|(_, f)| f.until).map(|(peer, _)| *peer);
            oldest.and_then(|peer| self.failures.remove(&peer));
        }
        let failures = self.failures.entry(peer).or_insert(Failures { count: 0, until: now });
        let doublings = failures.count.min(6);
        let pause = PAUSE.checked_mul(1 << doublings).unwrap_or(PAUSE_MAX).min(PAUSE_MAX);
        failures.count = failures.count.saturating_add(1);
        failures.until = now.checked_add(pause).unwrap_or(now);
    }

    /// Relays that keep a place for us now.
    pub fn reserved(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.held.iter().filter(|(_, hold)| hold.reserved).map(|(peer, _)| *peer)
    }

    /// Whether `peer` is one that we hold or have asked.
    #[must_use]
    pub fn uses(&self, peer: &PeerId) -> bool {
        self.held.contains_key(peer)
    }

    fn is_paused(&self, peer: &PeerId, now: Instant) -> bool {
        self.failures.get(peer).is_some_and(|f| now < f.until)
    }
}

/// What one customer of a provider can rent: an IPv4 /24 or an IPv6 /48.
type Group = [u8; 6];

fn group(addr: &Multiaddr) -> Option<Group> {
    Some(match ip_of(addr)? {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            [0, 0, 0, a, b, c]
        }
        IpAddr::V6(ip) => {
            let [a, b, c, d, e, f, ..] = ip.octets();
            [a, b, c, d, e, f]
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(ip: &str, ms: u64) -> Candidate {
        Candidate {
            peer: PeerId::random(),
            addr: format!("/ip4/{ip}/tcp/1").parse().unwrap(),
            rtt: Some(Duration::from_millis(ms)),
        }
    }

    fn ask(relays: &mut Relays, candidates: &[Candidate], now: Instant) -> (PeerId, ListenerId) {
        let next = relays.next(candidates, now).unwrap();
        let listener = ListenerId::next();
        relays.asked(next.peer, next.addr, listener, now);
        (next.peer, listener)
    }

    #[test]
    fn two_are_kept_near_ones_and_in_different_groups() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        let all =
            [candidate("5.9.1.1", 10), candidate("5.9.1.2", 12), candidate("8.8.1.1", 50), candidate("9.9.1.1", 90)];
        let (first, _) = ask(&mut relays, &all, now);
        let (second, _) = ask(&mut relays, &all, now);
        assert_eq!((first, second), (all[0].peer, all[2].peer), "the second nearest shares the first one's group");
        assert_eq!(relays.next(&all, now), None);
        relays.accepted(&first);
        relays.accepted(&second);
        assert_eq!(relays.reserved().count(), WANTED);
        assert_eq!(relays.next(&all, now + ANSWER_DUE), None);
    }

    #[test]
    fn one_that_shares_a_group_is_better_than_none() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        let all = [candidate("5.9.1.1", 10), candidate("5.9.1.2", 12)];
        ask(&mut relays, &all, now);
        ask(&mut relays, &all, now);
        assert!(relays.uses(&all[0].peer) && relays.uses(&all[1].peer));
    }

    #[test]
    fn a_lost_one_is_replaced_and_asked_again_later_and_later() {
        let (mut relays, mut now) = (Relays::default(), Instant::now());
        let all = [candidate("5.9.1.1", 10), candidate("8.8.1.1", 50), candidate("9.9.1.1", 90)];
        let (near, listener) = ask(&mut relays, &all, now);
        ask(&mut relays, &all, now);
        relays.accepted(&near);
        assert_eq!(relays.lost(listener, now), Some(near));
        assert_eq!(ask(&mut relays, &all, now).0, all[2].peer, "the lost one rests");
        assert_eq!(relays.lost(ListenerId::next(), now), None);

        let mut pauses = Vec::new();
        let mut alone = Relays::default();
        for _ in 0..9 {
            let (_, listener) = ask(&mut alone, &all[..1], now);
            alone.lost(listener, now);
            let start = now;
            while alone.next(&all[..1], now).is_none() {
                now += Duration::from_secs(1);
            }
            pauses.push((now - start).as_secs());
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn a_silent_one_does_not_keep_others_from_being_asked() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        let all = [candidate("5.9.1.1", 10), candidate("8.8.1.1", 50), candidate("9.9.1.1", 90)];
        ask(&mut relays, &all, now);
        ask(&mut relays, &all, now);
        assert_eq!(relays.next(&all, now + ANSWER_DUE).map(|c| c.peer), Some(all[2].peer));
    }

    #[test]
    fn failures_are_remembered_within_bounds() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        for _ in 0..1000 {
            relays.failed(PeerId::random(), now);
        }
        assert!(relays.failures.len() <= REMEMBERED);
    }
}
