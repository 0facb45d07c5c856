//! Which point to ask for what, and when. A pure machine; clock and chance are arguments.
//!
//! ```text
//! due ─▶ dialled, unless connected ─▶ register, when half its time is over ─▶ discover ─▶ again, while pages are full ─▶ rest
//!          │                            │ refused: again later                  │ cookie refused: from the beginning
//!          └─ fails ─┬──────────────────┴──────────── fails ────────────────────┘
//!                    └▶ rest, longer each time
//! ```

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use libp2p::{Multiaddr, PeerId};

use crate::{
    message::{MAX_LISTED, Status},
    record::Form,
    registry::MAX_TTL,
};

/// Points that a node goes to.
pub const MAX_POINTS: usize = 8;
/// Between two visits, a quarter more or less by chance.
pub const ROUND: Duration = Duration::from_secs(60);
/// Between two visits to a point that stays silent, at most.
pub const SILENCE_MAX: Duration = Duration::from_secs(30 * 60);
/// Answers taken in one visit: as many peers as the node remembers by the word of one teller.
pub const MAX_PAGES: u32 = 4;
/// After a first failure; doubles each time.
const RETRY: Duration = Duration::from_secs(5);
/// How soon a registration is renewed at the earliest, whatever the point says of its time.
const MIN_TTL: Duration = Duration::from_secs(120);
/// After a change of our addresses, how long others are waited for.
const SETTLE: Duration = Duration::from_secs(10);
/// After somebody else of us began to dial the point.
const ELSEWHERE: Duration = Duration::from_secs(2);

/// A point to go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Who it is.
    pub peer: PeerId,
    /// Where.
    pub addr: Multiaddr,
}

/// What to ask a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// To keep our record, signed in this form.
    Register(Form),
    /// For others, after those that the cookie stands for.
    Discover(Option<Vec<u8>>),
}

#[derive(Debug)]
struct State {
    point: Point,
    /// Something is under way: its end says how to go on.
    busy: bool,
    next_at: Duration,
    register_at: Duration,
    /// Visits that failed since one did not.
    failures: u32,
    /// Registrations refused since one was not.
    refusals: u32,
    pages: u32,
    cookie: Option<Vec<u8>>,
    form: Form,
}

/// The points, and what has become of each.
#[derive(Debug)]
pub struct Points {
    states: Vec<State>,
    seed: u64,
    drawn: u64,
}

impl Points {
    /// At most [`MAX_POINTS`], each once.
    #[must_use]
    pub fn new(points: impl IntoIterator<Item = Point>, seed: u64) -> Self {
        let mut states: Vec<State> = Vec::new();
        for point in points {
            if states.len() < MAX_POINTS && states.iter().all(|state| state.point.peer != point.peer) {
                states.push(State {
                    point,
                    busy: false,
                    next_at: Duration::ZERO,
                    register_at: Duration::ZERO,
                    failures: 0,
                    refusals: 0,
                    pages: 0,
                    cookie: None,
                    form: Form::default(),
                });
            }
        }
        Self { states, seed, drawn: 0 }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Whether `peer` is one.
    #[must_use]
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.states.iter().any(|state| state.point.peer == *peer)
    }

    /// The points to visit now.
    #[must_use]
    pub fn due(&self, now: Duration) -> Vec<Point> {
        let due = self.states.iter().filter(|state| !state.busy && state.next_at <= now);
        due.map(|state| state.point.clone()).collect()
    }

    /// When the next one is due, unless something else happens first.
    #[must_use]
    pub fn next_at(&self) -> Option<Duration> {
        self.states.iter().filter(|state| !state.busy).map(|state| state.next_at).min()
    }

    /// The point is being dialled: [`Points::connected`] or [`Points::failed`] follows.
    pub fn dialling(&mut self, peer: &PeerId) {
        self.change(peer, |state| state.busy = true);
    }

    /// A connection to the point stands.
    pub fn connected(&mut self, peer: &PeerId, now: Duration) {
        self.change(peer, |state| {
            if state.busy {
                (state.busy, state.next_at) = (false, now);
            }
        });
    }

    /// Somebody else of us dials the point, or is connected already.
    pub fn elsewhere(&mut self, peer: &PeerId, now: Duration) {
        self.change(peer, |state| (state.busy, state.next_at) = (false, now.saturating_add(ELSEWHERE)));
    }

    /// What to ask the connected point; the answer is told. `has_record` when there is something to register.
    pub fn begin(&mut self, peer: &PeerId, has_record: impl FnOnce(Form) -> bool, now: Duration) -> Option<Ask> {
        let state = self.states.iter_mut().find(|state| state.point.peer == *peer)?;
        state.busy = true;
        if state.register_at <= now && has_record(state.form) {
            return Some(Ask::Register(state.form));
        }
        Some(Ask::Discover(state.cookie.clone()))
    }

    /// The point keeps our record for so many seconds, by its word.
    pub fn registered(&mut self, peer: &PeerId, ttl: u64, now: Duration) {
        let half = Duration::from_secs(ttl).clamp(MIN_TTL, MAX_TTL).checked_div(2).unwrap_or(MIN_TTL);
        let again = now.saturating_add(self.about(half));
        self.change(peer, |state| {
            (state.busy, state.next_at, state.register_at, state.refusals) = (false, now, again, 0);
        });
    }

    /// The point does not keep our record. It may tell of others all the same.
    pub fn not_registered(&mut self, peer: &PeerId, status: Status, now: Duration) {
        let refusals = self.states.iter().find(|state| state.point.peer == *peer).map_or(0, |state| state.refusals);
        // Points want one form or the other.
        let other = status == Status::InvalidRecord && refusals == 0;
        let pause = if other { Duration::ZERO } else { self.about(backoff(ROUND, refusals)) };
        self.change(peer, |state| {
            if other {
                state.form = if state.form == Form::Rust { Form::Standard } else { Form::Rust };
            }
            state.refusals = state.refusals.saturating_add(1);
            (state.busy, state.next_at, state.register_at) = (false, now, now.saturating_add(pause));
        });
    }

    /// The point told of `told` peers.
    pub fn discovered(&mut self, peer: &PeerId, cookie: Vec<u8>, told: usize, now: Duration) {
        let rest = now.saturating_add(self.about(ROUND));
        self.change(peer, |state| {
            state.pages = state.pages.saturating_add(1);
            let more = told >= MAX_LISTED && state.pages < MAX_PAGES;
            (state.busy, state.failures, state.cookie) = (false, 0, Some(cookie));
            state.pages = if more { state.pages } else { 0 };
            state.next_at = if more { now } else { rest };
        });
    }

    /// The point tells of nobody.
    pub fn not_discovered(&mut self, peer: &PeerId, status: Status, now: Duration) {
        let state = self.states.iter_mut().find(|state| state.point.peer == *peer);
        if let Some(state) = state.filter(|state| status == Status::InvalidCookie && state.cookie.is_some()) {
            // It has started anew, or forgotten.
            (state.busy, state.cookie, state.next_at) = (false, None, now);
        } else {
            self.failed(peer, now);
        }
    }

    /// The point could not be reached, or stayed silent.
    pub fn failed(&mut self, peer: &PeerId, now: Duration) {
        let failures = self.states.iter().find(|state| state.point.peer == *peer).map_or(0, |state| state.failures);
        let rest = now.saturating_add(self.about(backoff(RETRY, failures)));
        self.change(peer, |state| {
            (state.busy, state.pages, state.next_at) = (false, 0, rest);
            state.failures = state.failures.saturating_add(1);
        });
    }

    /// Our addresses are others now: points that answer hear of it soon.
    pub fn moved(&mut self, now: Duration) {
        let soon = now.saturating_add(SETTLE);
        for state in &mut self.states {
            state.register_at = Duration::ZERO;
            if state.failures == 0 {
                state.next_at = state.next_at.min(soon);
            }
        }
    }

    fn change(&mut self, peer: &PeerId, f: impl FnOnce(&mut State)) {
        if let Some(state) = self.states.iter_mut().find(|state| state.point.peer == *peer) {
            f(state);
        }
    }

    /// `time`, a quarter more or less, so that those who began together do not go on together.
    fn about(&mut self, time: Duration) -> Duration {
        self.drawn = self.drawn.wrapping_add(1);
        let mut hasher = DefaultHasher::new();
        (self.seed, self.drawn).hash(&mut hasher);
        let quarter = time.checked_div(4).unwrap_or_default();
        let span = u64::try_from(quarter.as_millis()).unwrap_or(u64::MAX).saturating_mul(2).max(1);
        let drawn = Duration::from_millis(hasher.finish().checked_rem(span).unwrap_or_default());
        time.saturating_sub(quarter).saturating_add(drawn)
    }
}

fn backoff(first: Duration, failures: u32) -> Duration {
    first.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(SILENCE_MAX)
}

#[cfg(test)]
mod tests;
