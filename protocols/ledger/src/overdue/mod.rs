//! What of a peer's promises is due, and what follows when it is not paid.
//!
//! Pure, as [`crate::book`] is: the time is an argument, and what has to be kept is a [`Debt`], in the same transaction as the
//! note that changed it.
//!
//! [`Dues`] is the rule: how much is overdue at a time. [`Debt`] is what a creditor does about it:
//!
//! ```text
//!           overdue              taken by the peer        grace is over
//! nothing ──────────► ask it ──────────────────► wait ──────────────────► default ──► ask it daily
//!    ▲                  │                          │                         │
//!    └──────────────────┴── paid, or set off ──────┴─────────────────────────┘ all that was due then, and is now
//! ```
//!
//! An account on which nothing is signed any more cannot ask: there it is 30 days since then.

mod debt;

pub use self::debt::{Asked, Debt, Seen, Step};
use crate::fields::record;

/// Promises with different due dates that are kept apart. Beyond, the two that lie nearest to each other are one, which is due
/// with the later: see [`Dues`].
pub const MAX_PARTS: usize = 64;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// The longest that any promise may run, in milliseconds: a year. One that says more is due then.
pub const LONGEST_MS: u64 = 365 * DAY_MS;

/// The longest that a promise for work may run, in days: a hold that wants more is not taken.
pub const LONGEST_FOR_WORK_DAYS: u16 = 90;

/// By how much two honest clocks differ at most.
const SKEW_MS: u64 = crate::book::GRACE_MS;

record! {
    /// Promises that are due within a time.
    #[derive(Copy)]
    pub(crate) struct Part {
        /// The earliest date of them.
        pub(crate) from: u64,
        /// The latest: until then none of it counts.
        pub(crate) due: u64,
        /// Their sum, in micro-credits.
        pub(crate) amount: u64,
    }
}

/// A note that is still there, for [`Dues::of_kept`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Its number.
    pub seq: u64,
    /// All that was promised with it.
    pub issued: u64,
    /// What of that it added.
    pub delta: u64,
    /// When that is due.
    pub due_at: u64,
}

/// When the promises of one peer are due.
///
/// What was paid discharges what is due first. Then
///
/// ```text
/// overdue(t) = max(0, Σ amounts due at t or before − redeemed − what this node owes the peer)
/// ```
///
/// # It never says too much
///
/// An honest peer is never accused, whatever was lost: where it is not known when something is due, it is due later.
///
/// - There is room for [`MAX_PARTS`] dates. When they do not fit, two dates that follow each other become the later one. The two
///   that span the least are taken, so that nothing is found later than by a 32nd of the time between the first and the last
///   date that are open: a day where these are a month apart. Were it the oldest two, a peer that promises something every
///   minute would never owe anything.
/// - The amount of a note that is not there (it was lost on its way, or is older than the notes that are kept) is due
///   [`LONGEST_MS`] after the note that shows that there was one: it was signed before that one, and nothing runs longer.
/// - A date further away than that counts as that: who promises for the year 3000 has promised nothing.
/// - What was discharged stays discharged, also where this node has lost the redeem that says so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dues {
    /// What was due first and is discharged; not in `parts` any more.
    gone: u64,
    /// In the order of their dates, which do not overlap.
    parts: Vec<Part>,
}

/// When a note's amount is due: as it says, but no later than it may. `arrived` is when it came, by this node's clock, and
/// `days` what the hold that it settles was taken out for.
#[must_use]
pub fn due_date(due_at: u64, arrived: u64, days: Option<u16>) -> u64 {
    let longest = days.map_or(LONGEST_MS, |days| u64::from(days).saturating_mul(DAY_MS));
    due_at.min(arrived.saturating_add(SKEW_MS).saturating_add(longest))
}

impl Dues {
    /// What can be said from the notes that are kept, in any order, of `total` that was promised and `redeemed` that is
    /// discharged.
    #[must_use]
    pub fn of_kept(mut notes: Vec<Kept>, total: u64, redeemed: u64) -> Self {
        notes.sort_unstable_by_key(|note| note.seq);
        let (mut dues, mut before) = (Self::default(), 0_u64);
        for note in notes {
            let unseen = note.issued.saturating_sub(before).saturating_sub(note.delta);
            let rise = note.issued.saturating_sub(before).saturating_sub(unseen);
            let latest = note.seq.saturating_add(LONGEST_MS);
            dues.promised(unseen, latest);
            dues.promised(rise, note.due_at.min(latest));
            before = before.max(note.issued);
        }
        // Notes that were written and are gone: nothing says when they were signed.
        dues.promised(total.saturating_sub(before), u64::MAX);
        dues.redeemed(redeemed);
        dues
    }

    /// The peer has promised so much more; see [`due_date`].
    pub fn promised(&mut self, amount: u64, due: u64) {
        if amount == 0 {
            return;
        }
        let at = self.parts.partition_point(|part| part.due < due);
        match self.parts.get_mut(at).filter(|part| part.from <= due) {
            Some(part) => part.amount = part.amount.saturating_add(amount),
            None => self.parts.insert(at, Part { from: due, due, amount }),
        }
        if self.parts.len() > MAX_PARTS {
            self.merge();
        }
    }

    /// Two dates become one.
    fn merge(&mut self) {
        let pairs = self.parts.iter().zip(self.parts.iter().skip(1)).enumerate();
        let nearest = pairs.min_by_key(|(_, (earlier, later))| later.due.saturating_sub(earlier.from));
        let Some(at) = nearest.map(|(at, _)| at) else { return };
        let earlier = self.parts.remove(at);
        if let Some(later) = self.parts.get_mut(at) {
            later.from = earlier.from;
            later.amount = later.amount.saturating_add(earlier.amount);
        }
    }

    /// So much in all is discharged by now: what it covers is forgotten.
    pub fn redeemed(&mut self, redeemed: u64) {
        let mut gone = self.gone;
        let covered = self.parts.iter().take_while(|part| {
            let sum = gone.saturating_add(part.amount);
            let fits = sum <= redeemed;
            gone = if fits { sum } else { gone };
            fits
        });
        let covered = covered.count();
        self.parts.drain(..covered.min(self.parts.len()));
        self.gone = gone;
    }

    /// All that was promised.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.parts.iter().fold(self.gone, |sum, part| sum.saturating_add(part.amount))
    }

    /// All that was promised for this time or before.
    #[must_use]
    pub fn due(&self, now: u64) -> u64 {
        let due = self.parts.iter().take_while(|part| part.due <= now);
        due.fold(self.gone, |sum, part| sum.saturating_add(part.amount))
    }

    /// What should have been paid by now and is not, of which `paid` is discharged or set off: micro-credits.
    #[must_use]
    pub fn overdue(&self, now: u64, paid: u64) -> u64 {
        self.due(now).saturating_sub(paid.max(self.gone))
    }

    /// When more will be overdue than now, if nothing is paid.
    #[must_use]
    pub fn next(&self, now: u64, paid: u64) -> Option<u64> {
        let mut sum = self.gone;
        let unpaid = self.parts.iter().find(|part| {
            sum = sum.saturating_add(part.amount);
            part.due > now && sum > paid
        });
        unpaid.map(|part| part.due)
    }
}

#[cfg(test)]
mod tests;
