//! Whether a debtor may take out a hold. Limits are checked here and never when a note comes: value is never refused.

use libp2p::PeerId;

use super::{Book, GRACE_MS, MAX_CLOSED_HOLDS, MAX_CLOSED_OF_STRANGERS, MAX_HOLD_MS, MAX_OPEN_HOLDS};
use crate::{fields::Unit, message::Hold, overdue::LONGEST_FOR_WORK_DAYS};

/// Why a hold is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotTaken {
    /// Nothing is owed to this node by a peer that it has no terms with, or that is frozen.
    Frozen,
    /// It ends in the past, or later than any hold may; or its note would be due later than any for work.
    Times,
    /// Too many are open or remembered.
    Count,
    /// There are as many accounts as there may be.
    Accounts,
    /// The debtor's own limit.
    Limit,
    /// The limit of all unproven debtors together.
    Pool,
    /// That of its address group.
    Group,
}

impl NotTaken {
    /// In a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Frozen => "frozen",
            Self::Times => "times",
            Self::Count => "count",
            Self::Accounts => "accounts",
            Self::Limit => "limit",
            Self::Pool => "pool",
            Self::Group => "group",
        }
    }
}

impl Book {
    pub(super) fn admit(&self, key: (PeerId, Unit), hold: &Hold, now: u64) -> Result<(), NotTaken> {
        let pair = self.pairs.get(&key).ok_or(NotTaken::Frozen)?;
        if pair.row.frozen != 0 {
            return Err(NotTaken::Frozen);
        }
        let latest = now.saturating_add(MAX_HOLD_MS).saturating_add(GRACE_MS);
        if hold.expires_at <= now || hold.expires_at > latest || hold.due_days > LONGEST_FOR_WORK_DAYS {
            return Err(NotTaken::Times);
        }
        if self.is_full_for(key) {
            return Err(NotTaken::Accounts);
        }
        let open = pair.incoming.count_open();
        let remembered = if pair.terms.known { MAX_CLOSED_HOLDS } else { MAX_CLOSED_OF_STRANGERS };
        if open >= MAX_OPEN_HOLDS || pair.incoming.count() >= remembered.saturating_add(MAX_OPEN_HOLDS) {
            return Err(NotTaken::Count);
        }
        let fits = |used: u64, limit: u64| used.checked_add(hold.max).is_some_and(|sum| sum <= limit);
        let terms = pair.terms;
        // A debtor that has credit with us may use what we owe it on top of its limit.
        let wanted = pair.owed().saturating_add(i128::from(pair.held())).saturating_add(i128::from(hold.max));
        if wanted > i128::from(terms.limit) {
            return Err(NotTaken::Limit);
        }
        let ours = u64::try_from(pair.owed().min(0).unsigned_abs()).unwrap_or(u64::MAX);
        let share = terms.limit.saturating_add(ours) / 100;
        if !fits(pair.held(), share.saturating_mul(self.rules.hold_share)) {
            return Err(NotTaken::Limit);
        }
        // What others may lose by it: nothing as far as it only takes back what we owe.
        let counted = pair.owed().min(i128::from(terms.counted));
        let after = counted.saturating_add(i128::from(pair.held())).saturating_add(i128::from(hold.max));
        let after = u64::try_from(after.max(0)).unwrap_or(u64::MAX);
        let more = after.saturating_sub(pair.exposure());
        let fits = |used: u64, limit: u64| used.checked_add(more).is_some_and(|sum| sum <= limit);
        if !terms.proven && !fits(self.pool.saturating_add(self.written_off), self.rules.pool) {
            return Err(NotTaken::Pool);
        }
        if let Some(group) = terms.group {
            let used = self.groups.get(&group).copied().unwrap_or_default();
            if !fits(used.all, self.rules.group) || !terms.proven && !fits(used.unproven, self.rules.group_unproven) {
                return Err(NotTaken::Group);
            }
        }
        Ok(())
    }
}
