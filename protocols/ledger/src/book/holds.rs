//! The holds of one account and one direction: a few that are open, and those that ended and are remembered, so that none is
//! paid or worked for twice. Kept apart, so that no step takes longer for what is remembered.

use std::collections::BTreeMap;

use super::row::HoldRow;
use crate::fields::HoldId;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Holds {
    open: BTreeMap<HoldId, HoldRow>,
    ended: BTreeMap<HoldId, HoldRow>,
}

impl Holds {
    pub(super) fn get(&self, hold: &HoldId) -> Option<&HoldRow> {
        self.open.get(hold).or_else(|| self.ended.get(hold))
    }

    pub(super) fn contains(&self, hold: &HoldId) -> bool {
        self.get(hold).is_some()
    }

    /// Takes a hold in, in place of what it was before.
    pub(super) fn insert(&mut self, row: HoldRow) {
        self.remove(&row.hold);
        let holds = if row.is_open() { &mut self.open } else { &mut self.ended };
        holds.insert(row.hold, row);
    }

    pub(super) fn remove(&mut self, hold: &HoldId) {
        self.open.remove(hold);
        self.ended.remove(hold);
    }

    /// Those that are open.
    pub(super) fn open(&self) -> impl Iterator<Item = &HoldRow> {
        self.open.values()
    }

    pub(super) fn count_open(&self) -> usize {
        self.open.len()
    }

    /// All of them.
    pub(super) fn count(&self) -> usize {
        self.open.len().saturating_add(self.ended.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count() == 0
    }
}
