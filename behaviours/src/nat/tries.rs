//! Which addresses of ours are tested again, and when: a pure machine, driven by [`client`](super::client).
//!
//! ```text
//! claimed -> Waiting --probe sent--> Probed --not reached--> Pausing --due--> Waiting (the next try)
//!                                      | |                                      |
//!                                      | \--no outcome for LOST_AFTER-----------/
//!                                      \--reached--> (forgotten)      the last try failed: Done
//! ```
//!
//! Addresses are what peers claim to see us at, so all of this is bounded: [`REMEMBERED`] addresses, [`TRIES`] of each, and
//! [`RETRIES_PER_HOUR`] in all.

use std::time::{Duration, Instant};

use libp2p::Multiaddr;
use quelea_wire::rate::{Cell, MAX_PERIOD, Quota};

/// Tests of one address, each by a server drawn at random: where every second server fails, seven of eight addresses pass.
pub const TRIES: u8 = 3;

/// Addresses remembered: what identify lets peers claim at once. At 128 bytes of address, some 8 KiB.
pub const REMEMBERED: usize = 32;

/// Second and third tests in an hour: all at once, or one each five minutes. Enough for TCP and QUIC on three addresses.
/// libp2p's client never forgets what it tested, and peers may claim another address each minute: so what a flood of claims
/// makes it keep grows by a fifth, not threefold, and behind a symmetric NAT, where each peer sees another port, few of the
/// 30 to 100 kB that a test takes are spent twice.
pub const RETRIES_PER_HOUR: u32 = 12;

/// How much longer than the first pause the second one is: by then other servers may be connected.
const SECOND_PAUSE: u32 = 6;

/// How long no probe at all has been sent when one without an outcome is given up. libp2p gives each ten seconds, and sends
/// those whose stream failed again by itself every few; one whose server hung up, or lied that it had dialled back, never.
pub const LOST_AFTER: Duration = Duration::from_secs(30);

/// How long all wait when the hour's tries are spent: then that goes first which most claims are for.
const SPENT_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A candidate; no probe has been sent since it became one.
    Waiting,
    /// A probe has been sent, the last one of any address at this time.
    Probed(Instant),
    /// Not reached; to be tried again at this time.
    Pausing(Instant),
    /// Not reached by the last try.
    Done,
}

#[derive(Debug)]
struct Entry {
    addr: Multiaddr,
    /// How often peers have claimed it.
    claims: u32,
    /// The try that is waiting, under way, or over: from 1.
    nth: u8,
    state: State,
}

impl Entry {
    /// When there is something to do about it.
    fn due(&self) -> Option<Instant> {
        match self.state {
            State::Probed(at) => at.checked_add(LOST_AFTER),
            State::Pausing(until) => Some(until),
            State::Waiting | State::Done => None,
        }
    }
}

/// The addresses that are being tested, or were.
#[derive(Debug)]
pub struct Tries {
    /// Oldest first.
    entries: Vec<Entry>,
    retries: Cell,
    /// Until when nothing is tried, as the hour's tries were spent.
    spent_until: Option<Instant>,
    pause: Duration,
}

impl Tries {
    /// None yet. An address is tried again `pause` after its first test failed, and six times as long after its second.
    #[must_use]
    pub fn new(pause: Duration) -> Self {
        let retries = Cell::new(Quota::new(RETRIES_PER_HOUR, MAX_PERIOD));
        Self { entries: Vec::new(), retries, spent_until: None, pause }
    }

    /// `addr` was made a candidate, for the first time or again. When too many are remembered it takes the place of one that
    /// all tries failed for, else of the oldest of those that were claimed least.
    pub fn claimed(&mut self, addr: &Multiaddr) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.addr == *addr) {
            entry.claims = entry.claims.saturating_add(1);
            return;
        }
        if self.entries.len() >= REMEMBERED {
            let worth = |entry: &Entry| (entry.state != State::Done, entry.claims);
            if let Some((least, _)) = self.entries.iter().enumerate().min_by_key(|(_, entry)| worth(entry)) {
                self.entries.remove(least);
            }
        }
        self.entries.push(Entry { addr: addr.clone(), claims: 1, nth: 1, state: State::Waiting });
    }

    /// A probe was sent. Of which address does not show; but all that wait are sent together.
    pub fn probed(&mut self, now: Instant) {
        for entry in &mut self.entries {
            if matches!(entry.state, State::Waiting | State::Probed(_)) {
                entry.state = State::Probed(now);
            }
        }
    }

    /// The `nth` try of `addr` failed.
    pub fn failed(&mut self, addr: &Multiaddr, nth: u8, now: Instant) {
        // A try that was given up may fail later: nothing new.
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.addr == *addr && entry.nth == nth) else { return };
        let pause = if nth > 1 { self.pause.saturating_mul(SECOND_PAUSE) } else { self.pause };
        entry.state = match now.checked_add(pause) {
            Some(until) if nth < TRIES => State::Pausing(until),
            _ => State::Done,
        };
    }

    /// `addr` leads here.
    pub fn confirmed(&mut self, addr: &Multiaddr) {
        self.entries.retain(|entry| entry.addr != *addr);
    }

    /// The address that is to be tried again now, and for which time (from 2): that which most claims are for.
    pub fn next(&mut self, now: Instant) -> Option<(Multiaddr, u8)> {
        let is_due = |entry: &Entry| entry.due().is_some_and(|due| due <= now);
        for entry in self.entries.iter_mut().filter(|entry| entry.nth >= TRIES && is_due(entry)) {
            entry.state = State::Done;
        }
        if self.spent_until.is_some_and(|until| now < until) {
            return None;
        }
        let entry = self.entries.iter_mut().filter(|entry| is_due(entry)).max_by_key(|entry| entry.claims)?;
        if !self.retries.admit(now) {
            self.spent_until = now.checked_add(SPENT_PAUSE);
            return None;
        }
        entry.nth = entry.nth.saturating_add(1);
        entry.state = State::Waiting;
        Some((entry.addr.clone(), entry.nth))
    }

    /// When to ask for [`next`](Self::next) again.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let due = self.entries.iter().filter_map(Entry::due).min()?;
        Some(self.spent_until.map_or(due, |until| due.max(until)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(10);
    const SECOND: Duration = Duration::from_secs(1);

    fn addr(n: u32) -> Multiaddr {
        format!("/ip4/9.9.9.9/tcp/{}", n + 1).parse().unwrap()
    }

    /// Lets the clock run until nothing is to be done any more, and every try fails. Returns what was tried when.
    fn all_fail(tries: &mut Tries, start: Instant) -> Vec<(Duration, Multiaddr, u8)> {
        let mut tried = Vec::new();
        let mut now = start;
        while let Some(at) = tries.wake_at() {
            now = now.max(at);
            while let Some((addr, nth)) = tries.next(now) {
                tries.probed(now);
                tries.failed(&addr, nth, now);
                tried.push((now - start, addr, nth));
            }
        }
        tried
    }

    #[test]
    fn an_address_that_nobody_reaches_is_tried_three_times() {
        let (mut tries, start) = (Tries::new(PAUSE), Instant::now());
        tries.claimed(&addr(0));
        assert_eq!((tries.next(start), tries.wake_at()), (None, None), "the first try is not ours");
        tries.probed(start);
        tries.failed(&addr(0), 1, start);
        assert_eq!(all_fail(&mut tries, start), [(PAUSE, addr(0), 2), (PAUSE * 7, addr(0), 3)]);
        tries.claimed(&addr(0));
        tries.probed(start + PAUSE * 100);
        assert_eq!((tries.next(start + PAUSE * 1000), tries.wake_at()), (None, None), "claims change nothing");
    }

    #[test]
    fn what_is_reached_meanwhile_is_not_tried_again() {
        let (mut tries, start) = (Tries::new(PAUSE), Instant::now());
        for n in 0..2 {
            tries.claimed(&addr(n));
            tries.probed(start);
            tries.failed(&addr(n), 1, start);
        }
        tries.confirmed(&addr(0));
        assert_eq!(tries.next(start + PAUSE), Some((addr(1), 2)));
        assert_eq!(tries.next(start + PAUSE), None);
        tries.probed(start + PAUSE);
        tries.confirmed(&addr(1));
        assert_eq!((tries.wake_at(), tries.entries.len()), (None, 0));
    }

    #[test]
    fn a_probe_without_an_outcome_is_given_up() {
        let (mut tries, start) = (Tries::new(PAUSE), Instant::now());
        tries.claimed(&addr(0));
        tries.probed(start);
        // As long as libp2p sends probes this may be one of them.
        let last = start + LOST_AFTER - SECOND;
        tries.probed(last);
        assert_eq!(tries.next(start + LOST_AFTER), None);
        assert_eq!(tries.next(last + LOST_AFTER), Some((addr(0), 2)));
        tries.probed(last + LOST_AFTER);
        tries.failed(&addr(0), 1, last + LOST_AFTER);
        assert_eq!(tries.wake_at(), Some(last + LOST_AFTER * 2), "what failed is the one that was given up");
        assert_eq!(tries.next(last + LOST_AFTER * 2), Some((addr(0), 3)));
        tries.probed(last + LOST_AFTER * 2);
        assert_eq!(tries.next(last + LOST_AFTER * 3), None);
        assert_eq!(tries.wake_at(), None, "three are enough");
    }

    #[test]
    fn a_flood_of_claims_is_bounded_in_memory_and_in_tries() {
        let (mut tries, start) = (Tries::new(PAUSE), Instant::now());
        // Two peers see us where we are; others at another place each second, for a day.
        tries.claimed(&addr(0));
        tries.claimed(&addr(0));
        tries.failed(&addr(0), 1, start);
        let (mut now, mut tried) = (start, Vec::new());
        for n in 0..86_400 {
            now += SECOND;
            let seen = addr(n % 60_000 + 1);
            tries.claimed(&seen);
            tries.probed(now);
            tries.failed(&seen, 1, now);
            while let Some((addr, nth)) = tries.next(now) {
                tries.probed(now);
                tries.failed(&addr, nth, now);
                tried.push((addr, nth));
            }
            assert!(tries.entries.len() <= REMEMBERED);
        }
        assert!(tried.len() <= RETRIES_PER_HOUR as usize * 25, "{}", tried.len());
        let first: Vec<u8> = tried.iter().filter(|(tried, _)| *tried == addr(0)).map(|(_, nth)| *nth).collect();
        assert_eq!(first, [2, 3]);
    }

    #[test]
    fn what_many_claim_outlives_a_flood_and_goes_first() {
        let (mut tries, start) = (Tries::new(PAUSE), Instant::now());
        tries.claimed(&addr(0));
        tries.claimed(&addr(0));
        for n in 1..1000 {
            tries.claimed(&addr(n));
        }
        tries.probed(start);
        for n in 0..1000 {
            tries.failed(&addr(n), 1, start);
        }
        assert_eq!(tries.next(start + PAUSE), Some((addr(0), 2)));
        let others = std::iter::from_fn(|| tries.next(start + PAUSE)).count();
        assert_eq!(others, RETRIES_PER_HOUR as usize - 1);
        assert_eq!(tries.wake_at(), Some(start + PAUSE + SPENT_PAUSE));
        // One is free again each five minutes.
        assert!((1..=4).all(|minute| tries.next(start + PAUSE + SPENT_PAUSE * minute).is_none()));
        assert!(tries.next(start + PAUSE + SPENT_PAUSE * 5).is_some());
    }
}
