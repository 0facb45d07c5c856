//! Which values have changed since whoever keeps them on disk last asked.

use std::collections::HashSet;

use libp2p::kad::RecordKey;

/// Keys that may have changed, at most as many as there may be values, twice over.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Nobody asks: nothing is noted.
    cap: usize,
    keys: HashSet<RecordKey>,
    /// More keys than are noted have come and gone.
    lost: bool,
}

impl Changes {
    /// Notes at most `cap` keys from now on.
    pub(super) fn track(&mut self, cap: usize) {
        self.cap = cap;
    }

    pub(super) fn note(&mut self, key: &RecordKey) {
        if self.keys.len() < self.cap || self.keys.contains(key) {
            self.keys.insert(key.clone());
        } else {
            self.lose();
        }
    }

    /// The notes are incomplete.
    pub(super) fn lose(&mut self) {
        self.lost = self.cap > 0;
    }

    /// Whether the notes are incomplete; says so once.
    pub(super) fn take_lost(&mut self) -> bool {
        let lost = std::mem::take(&mut self.lost);
        if lost {
            self.keys.clear();
        }
        lost
    }

    pub(super) fn take(&mut self, limit: usize) -> Vec<RecordKey> {
        let some: Vec<RecordKey> = self.keys.iter().take(limit).cloned().collect();
        for key in &some {
            self.keys.remove(key);
        }
        some
    }
}
