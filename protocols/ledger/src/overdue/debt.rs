//! What a creditor remembers of one peer's debt, and does about it.

use super::{DAY_MS, Dues, MAX_PARTS, Part};
use crate::fields::{DecodeError, List, decode, encode, record};

/// How long after a request that the peer has taken the next may follow.
const AGAIN_MS: u64 = DAY_MS;

/// How long after one that nobody has taken: lines break.
const UNTAKEN_MS: u64 = 60 * 1000;

/// How long an account has to be frozen before what is overdue on it is a default.
const FROZEN_MS: u64 = 30 * DAY_MS;

/// How an account stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// What of the peer's promises is discharged or set off: redeemed, and what this node owes it.
    pub paid: u64,
    /// Whether a request can be signed now.
    pub live: bool,
    /// Whether nothing is signed any more, and it is not this node that is to blame.
    pub frozen: bool,
}

/// How often the peer was asked, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// When it was asked last; 0 for never. Unix milliseconds, as all here.
    pub at: u64,
    /// Since when it knows that something is overdue; 0 if it does not.
    pub taken: u64,
    /// Since when it is in default; 0 if it is not.
    pub defaulted: u64,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The peer is to be asked to pay so much.
    Ask(u64),
    /// It has not paid so much: a default.
    Default(u64),
    /// The default is paid, or set off.
    Settled,
}

record! {
    struct Stored {
        gone: u64,
        parts: List<Part, MAX_PARTS>,
        asked: u64,
        taken: u64,
        frozen: u64,
        defaulted: u64,
        owing: u64,
    }
}

/// See the module. All of it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Debt {
    /// When what is due.
    pub dues: Dues,
    asked: Asked,
    /// Since when the account is frozen; 0 if it is not.
    frozen: u64,
    /// In default: what has to be paid in all before it is over. A clock that goes back pays nothing.
    owing: u64,
}

impl Debt {
    /// One of which only the dates are known.
    #[must_use]
    pub fn of(dues: Dues) -> Self {
        Self { dues, ..Self::default() }
    }

    /// What is overdue; in default also what was overdue when that began.
    #[must_use]
    pub fn overdue(&self, now: u64, paid: u64) -> u64 {
        self.dues.overdue(now, paid).max(self.owing.saturating_sub(paid.max(self.dues.gone)))
    }

    /// How often it was asked, and since when.
    #[must_use]
    pub fn asked(&self) -> Asked {
        self.asked
    }

    /// The peer has taken a request.
    pub fn taken(&mut self, now: u64) -> bool {
        let first = self.asked.at > 0 && self.asked.taken == 0;
        if first {
            self.asked.taken = now;
        }
        first
    }

    /// What is to be done now, `grace` milliseconds after a request. The second is whether something has changed that is to be
    /// kept.
    pub fn step(&mut self, now: u64, seen: Seen, grace: u64) -> (Option<Step>, bool) {
        let before = (self.asked, self.frozen);
        // A clock that was ahead must not silence this node for as long as that.
        self.asked.at = self.asked.at.min(now);
        self.frozen = match (seen.frozen, self.frozen) {
            (true, 0) => now,
            (true, since) => since.min(now),
            (false, _) => 0,
        };
        let step = self.next_step(now, seen, grace);
        (step, step.is_some() || before != (self.asked, self.frozen))
    }

    fn next_step(&mut self, now: u64, seen: Seen, grace: u64) -> Option<Step> {
        let overdue = self.overdue(now, seen.paid);
        if overdue == 0 {
            let settled = self.asked.defaulted > 0;
            (self.asked.taken, self.asked.defaulted, self.owing) = (0, 0, 0);
            return settled.then_some(Step::Settled);
        }
        if self.asked.defaulted == 0 && self.default_at(grace).is_some_and(|at| at <= now) {
            self.asked.defaulted = now.max(1);
            self.owing = self.dues.due(now);
            return Some(Step::Default(overdue));
        }
        if seen.live && self.ask_at() <= now {
            self.asked.at = now.max(1);
            return Some(Step::Ask(overdue));
        }
        None
    }

    /// When the peer is in default if it does not pay; nothing while it does not know.
    fn default_at(&self, grace: u64) -> Option<u64> {
        let asked = (self.asked.taken > 0).then(|| self.asked.taken.saturating_add(grace));
        let frozen = (self.frozen > 0).then(|| self.frozen.saturating_add(FROZEN_MS));
        asked.into_iter().chain(frozen).min()
    }

    fn ask_at(&self) -> u64 {
        let pause = if self.asked.taken > 0 { AGAIN_MS } else { UNTAKEN_MS };
        if self.asked.at == 0 { 0 } else { self.asked.at.saturating_add(pause) }
    }

    /// When it is to be looked at again, if nothing happens before: after `now`.
    #[must_use]
    pub fn next(&self, now: u64, seen: Seen, grace: u64) -> Option<u64> {
        let more = self.dues.next(now, seen.paid);
        let overdue = self.overdue(now, seen.paid) > 0;
        let ask = (overdue && seen.live).then(|| self.ask_at());
        let default = self.default_at(grace).filter(|_| overdue && self.asked.defaulted == 0);
        let next = more.into_iter().chain(ask).chain(default).min();
        next.map(|at| at.max(now.saturating_add(1)))
    }

    /// The bytes to keep: integers little-endian, in this order: what is gone, a u8 count of parts and each with its earliest and
    /// latest date and its amount, when it was asked, since when it knows, since when it is frozen, in default, and what ends that.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Asked { at, taken, defaulted } = self.asked;
        let parts = List(self.dues.parts.clone());
        let (gone, frozen, owing) = (self.dues.gone, self.frozen, self.owing);
        encode(&Stored { gone, parts, asked: at, taken, frozen, defaulted, owing })
    }

    /// What was kept.
    ///
    /// # Errors
    /// When these are not the bytes of a debt: another form, or dates that overlap or are out of order.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let stored: Stored = decode(bytes)?;
        let parts = stored.parts.0;
        let within = parts.iter().all(|part| part.from <= part.due && part.amount > 0);
        if !within || parts.iter().zip(parts.iter().skip(1)).any(|(earlier, later)| earlier.due >= later.from) {
            return Err(DecodeError::Field("dates"));
        }
        let asked = Asked { at: stored.asked, taken: stored.taken, defaulted: stored.defaulted };
        let dues = Dues { gone: stored.gone, parts };
        Ok(Self { dues, asked, frozen: stored.frozen, owing: stored.owing })
    }
}
