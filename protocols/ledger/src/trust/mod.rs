//! Commerce: what a peer's dealings with this node are worth, and how much it may owe because of them.
//!
//! One number of its own for each peer, in millionths, from [`LEAST`] to [`MOST`], and a credit limit. Neither is ever told to
//! anybody, and nobody else's opinion moves them. Like the book this is pure: the time is an argument, everything is an
//! integer, and what has to be kept is a [`Row`].
//!
//! | what | commerce | rule |
//! |---|---|---|
//! | a transfer that was paid | +10,000, less the nearer to [`MOST`], and in proportion to the amount over the limit | T3, T4 |
//! | an IOU that was redeemed | +20,000, likewise | T3, T4 |
//! | a transfer that failed, provably | −50,000, more for more than the limit, twice as much each time within a day, 16 times at most | T4, T5 |
//! | one that may have failed for other reasons | −10,000 in proportion to the amount over the limit, escalating | T5, T10 |
//! | a default | nothing that was earned is left, −100,000 times overdue over the limit; no credit until it is paid **and** for 30 days, and no more than 300,000 for as long again | T6 |
//! | hard evidence | −1,000,000, for good | T7 |
//! | 30 days without dealings | half of what is above zero | T8 |
//!
//! What is below zero by a default stays until it is paid; the rest of it fades with 7 days for a half. Messages are no dealings:
//! they move conduct, which buys no credit.
//!
//! # Credit
//!
//! `base + repaid / 2`, at most `most`; it grows by a quarter a day at most, and by nothing before a peer has paid on seven
//! different days. Until then, and until it has repaid five times `base`, it is unproven, and shares one pool with all others
//! that are (see [`crate::book::Rules`]): any number of new names costs that pool and no more.

mod fixed;
mod stored;

use std::collections::VecDeque;

use self::fixed::{faded, share, steps};
use crate::fields::record;

/// Of the number. Nothing is one million.
pub const LEAST: i32 = -1_000_000;
/// See [`LEAST`].
pub const MOST: i32 = 900_000;
/// What can be reached within 30 days after a default was paid.
const MOST_AFTER_DEFAULT: i32 = 300_000;

const DAY_MS: u64 = 24 * 3600 * 1000;
/// What is above zero is halved in this time without dealings.
const GOOD_HALF_LIFE_MS: u64 = 30 * DAY_MS;
/// What is below zero and no default is halved in this time.
const BAD_HALF_LIFE_MS: u64 = 7 * DAY_MS;
/// How long a default is remembered after it was paid: without credit, and then as long with little trust.
const DEFAULT_MS: u64 = 30 * DAY_MS;
/// Failures within this time escalate.
const ESCALATION_MS: u64 = DAY_MS;
/// The most that a failure counts for having others before it.
const MOST_ESCALATED: u32 = 16;
/// Different days on which a peer has paid before its limit grows.
pub const PROBATION_DAYS: u32 = 7;
/// Times `base` that it has repaid by then.
pub const PROBATION_REPAID: u64 = 5;
/// By how many hundredths a limit grows in a day.
const GROWTH: u64 = 25;

/// How much credit there is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// What a stranger may owe, in micro-credits.
    pub base: u64,
    /// What nobody may owe more than.
    pub most: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self { base: 1_000_000, most: 1_000_000_000 }
    }
}

/// Something that this node has seen with its own eyes, and holds signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dealing {
    /// The peer did what it was paid for, or paid for what it was done.
    Transfer {
        /// Micro-credits.
        amount: u64,
    },
    /// What the peer owed is discharged, outside or by work.
    Redeemed {
        /// Micro-credits.
        amount: u64,
    },
    /// A transfer that came to nothing.
    Failed {
        /// Micro-credits.
        amount: u64,
        /// Whether the peer's own signature shows that it was to blame. A line that was cut does not.
        proven: bool,
    },
    /// What was due is not paid, long after it was asked for.
    Defaulted {
        /// Micro-credits.
        overdue: u64,
    },
    /// The default is paid.
    Settled,
    /// The peer has signed two things that contradict each other.
    Evidence,
}

record! {
    /// What is known of one peer. All of it is kept.
    #[derive(Copy, Default)]
    pub struct Row {
        /// Millionths, at `at`.
        pub commerce: i32,
        /// When that was, in Unix milliseconds.
        pub at: u64,
        /// What the peer has paid of its debts, in micro-credits.
        pub repaid: u64,
        /// Different days on which it did.
        pub days: u32,
        /// The last of them, in days since 1970.
        pub last_day: u64,
        /// The credit limit when it last grew, and on which day.
        pub limit: u64,
        /// See `limit`.
        pub limit_day: u64,
        /// Failures one after the other, and when the last was.
        pub failures: u32,
        /// See `failures`.
        pub failed_at: u64,
        /// What is overdue; 0 unless it is in default.
        pub overdue: u64,
        /// Until when a default is remembered; 0 if there was none.
        pub default_until: u64,
        /// Whether there is evidence against it.
        pub convicted: bool,
        /// What the operator lets it owe, in the place of what it has earned.
        pub granted: Option<u64>,
    }
}

impl Row {
    /// The number at this time.
    #[must_use]
    pub fn commerce(&self, now: u64) -> i32 {
        if self.convicted || self.overdue > 0 {
            return self.commerce;
        }
        let left = faded(self.commerce, steps(now.saturating_sub(self.at), self.half_life()));
        if now < self.default_until { left.min(MOST_AFTER_DEFAULT) } else { left }
    }

    fn half_life(&self) -> u64 {
        if self.commerce > 0 { GOOD_HALF_LIFE_MS } else { BAD_HALF_LIFE_MS }
    }

    /// Whether it has dealt with this node for long enough to be counted by itself.
    #[must_use]
    pub fn proven(&self, policy: &Policy) -> bool {
        self.days >= PROBATION_DAYS && self.repaid >= policy.base.saturating_mul(PROBATION_REPAID)
    }

    /// What it may owe.
    #[must_use]
    pub fn limit(&self, policy: &Policy, now: u64) -> u64 {
        if let Some(granted) = self.granted.filter(|_| !self.convicted) {
            return granted;
        }
        let shunned = self.convicted || self.overdue > 0 || self.in_disgrace(now) || self.commerce(now) < 0;
        if shunned { 0 } else { self.limit.clamp(policy.base, policy.most.max(policy.base)) }
    }

    /// Until when a default that is paid is remembered: without credit, and then with little trust; nothing where there is none.
    #[must_use]
    pub fn remembered(&self, now: u64) -> Option<(u64, u64)> {
        let until = self.default_until;
        (self.overdue == 0 && now < until).then(|| (until.saturating_sub(DEFAULT_MS), until))
    }

    /// Whether a default was paid less than 30 days ago.
    fn in_disgrace(&self, now: u64) -> bool {
        now < self.default_until.saturating_sub(DEFAULT_MS)
    }

    /// Something happened. The caller sees to it that each thing counts once: a dealing's name is the hash of what was signed.
    pub fn deal(&mut self, dealing: Dealing, policy: &Policy, now: u64) {
        let limit = self.limit.max(policy.base);
        let (before, half_life) = (self.commerce, self.half_life());
        self.commerce = self.commerce(now);
        // Of what fades below zero part of a step is not lost to dealings; above it they stop the clock. A clock that went back
        // takes nothing back.
        let step = half_life / 16;
        let whole = now.saturating_sub(self.at).checked_div(step).unwrap_or(0).saturating_mul(step);
        self.at = if before < 0 { self.at.saturating_add(whole) } else { self.at.max(now) };
        match dealing {
            Dealing::Transfer { amount } => self.gain(10_000, amount, limit),
            Dealing::Redeemed { amount } => {
                self.gain(20_000, amount, limit);
                self.repaid = self.repaid.saturating_add(amount);
                let day = now / DAY_MS;
                if day > self.last_day {
                    (self.last_day, self.days) = (day, self.days.saturating_add(1));
                }
                self.grow(policy, day);
            }
            Dealing::Failed { amount, proven } => {
                let recent = now.saturating_sub(self.failed_at) < ESCALATION_MS && self.failures > 0;
                self.failures = if recent { self.failures.saturating_add(1) } else { 1 };
                self.failed_at = now;
                let doubled = 1_u32.checked_shl(self.failures.saturating_sub(1)).unwrap_or(MOST_ESCALATED);
                let escalated = i64::from(doubled.clamp(1, MOST_ESCALATED));
                // Whoever deals in small amounts gains little by each; a line that is cut must not cost it more than that.
                let (step, amount) = if proven { (50_000, amount.max(limit)) } else { (10_000, amount.min(limit)) };
                self.lose(share(escalated.saturating_mul(step), amount, limit));
            }
            Dealing::Defaulted { overdue } => {
                self.commerce = self.commerce.min(0);
                self.lose(share(100_000, overdue.max(limit), limit));
                self.overdue = overdue.max(1);
                self.default_until = u64::MAX;
            }
            Dealing::Settled => {
                if self.overdue > 0 {
                    self.overdue = 0;
                    self.at = self.at.max(now);
                    self.default_until = now.saturating_add(DEFAULT_MS.saturating_mul(2));
                }
            }
            Dealing::Evidence => {
                self.commerce = LEAST;
                self.convicted = true;
            }
        }
    }

    /// Rises by a step, less the nearer to the end, in proportion to what was dealt over what might have been.
    fn gain(&mut self, step: i64, amount: u64, limit: u64) {
        if self.convicted || self.overdue > 0 {
            return;
        }
        let room = i64::from(MOST).saturating_sub(i64::from(self.commerce.max(0)));
        let step = share(step, u64::try_from(room).unwrap_or(0), MOST.unsigned_abs().into());
        let gained = share(step, amount.min(limit), limit);
        let after = i64::from(self.commerce).saturating_add(gained);
        self.commerce = i32::try_from(after).unwrap_or(MOST).min(MOST);
    }

    fn lose(&mut self, points: i64) {
        let after = i64::from(self.commerce).saturating_sub(points);
        self.commerce = i32::try_from(after).unwrap_or(LEAST).max(LEAST);
    }

    fn grow(&mut self, policy: &Policy, day: u64) {
        let before = self.limit.max(policy.base);
        if self.days < PROBATION_DAYS || day <= self.limit_day {
            self.limit = before;
            return;
        }
        let earned = policy.base.saturating_add(self.repaid / 2).min(policy.most);
        let allowed = before.saturating_add(share_of(before, GROWTH));
        self.limit = earned.min(allowed).max(before);
        self.limit_day = day;
    }
}

/// So many hundredths of an amount.
fn share_of(amount: u64, hundredths: u64) -> u64 {
    let product = u128::from(amount).saturating_mul(u128::from(hundredths)) / 100;
    u64::try_from(product).unwrap_or(u64::MAX)
}

/// What was lost to unproven peers in the last 30 days: it stays in their pool for so long, or new names could empty it again
/// and again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Losses {
    /// Days since 1970, and micro-credits; of 31 days at most.
    days: VecDeque<(u64, u64)>,
}

impl Losses {
    /// So much was worked for and not paid.
    pub fn add(&mut self, now: u64, amount: u64) {
        let day = now / DAY_MS;
        self.forget(day);
        match self.days.back_mut().filter(|(last, _)| *last >= day) {
            Some((_, sum)) => *sum = sum.saturating_add(amount),
            None => self.days.push_back((day, amount)),
        }
    }

    /// The sum: see [`crate::book::Book::set_written_off`].
    pub fn sum(&mut self, now: u64) -> u64 {
        self.forget(now / DAY_MS);
        self.days.iter().fold(0, |sum, (_, amount)| sum.saturating_add(*amount))
    }

    fn forget(&mut self, day: u64) {
        let first = day.saturating_sub(DEFAULT_MS / DAY_MS);
        self.days.retain(|(then, _)| *then >= first);
    }
}

#[cfg(test)]
mod attacks;
#[cfg(test)]
mod tests;
