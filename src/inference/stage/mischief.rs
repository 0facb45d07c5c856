//! Stages that do wrong, for tests. No other build has this.

use std::sync::{Arc, Mutex, PoisonError};

use quelea_engine::runner::Output;
use quelea_shard::{
    commitment::{Commitment, Digest, digests},
    frame::{Commit, SessionId},
};

/// What a stage does wrong, in all of its sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mischief {
    /// Gives this row on other than it computed and signs for it.
    Gives(u32),
    /// Signs for another row in the place of this.
    Signs(u32),
    /// Computes this row wrongly, gives it on and signs for it.
    Computes(u32),
    /// Signs with something else than its key.
    Forges,
    /// Signs for a session of another name.
    OtherSession,
    /// Signs for the epoch before.
    OldEpoch,
    /// Signs nothing.
    Silent,
}

/// What the stages of a node do wrong at present.
#[derive(Debug, Clone, Default)]
pub(in crate::inference) struct Mood(Arc<Mutex<Option<Mischief>>>);

impl Mood {
    pub(in crate::inference) fn set(&self, mischief: Mischief) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(mischief);
    }

    pub(super) fn get(&self) -> Option<Mischief> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rows that were computed from `pos` on, and what is signed of them.
    pub(super) fn spoil(&self, pos: u32, given: &mut [Digest], output: &mut Output) {
        let index = |row: u32| row.checked_sub(pos).and_then(|row| usize::try_from(row).ok());
        let width = output.rows.len() / given.len().max(1);
        match self.get() {
            Some(Mischief::Gives(row)) => {
                let value = index(row).and_then(|row| output.rows.get_mut(row * width));
                value.into_iter().for_each(|value| *value += 1.0);
            }
            Some(Mischief::Computes(row)) => {
                let Some(at) = index(row).filter(|at| *at < given.len()) else { return };
                output.rows[at * width] += 1.0;
                given[at] = digests(&output.rows[at * width..(at + 1) * width], width)[0];
            }
            Some(Mischief::Signs(row)) => {
                let digest = index(row).and_then(|row| given.get_mut(row));
                digest.into_iter().for_each(|digest| *digest = [0; 32]);
            }
            _ => {}
        }
    }

    /// What is sent in a commitment's place.
    pub(super) fn forge(&self, mut commit: Commit) -> Commit {
        if self.get() == Some(Mischief::Forges)
            && let Some(byte) = commit.envelope.last_mut()
        {
            *byte ^= 1;
        }
        commit
    }

    /// What is signed instead, and the epoch that is said with it; nothing where nothing is.
    pub(super) fn twist(&self, of: Commitment, epoch: u32) -> Option<(Commitment, u32)> {
        match self.get() {
            Some(Mischief::OtherSession) => Some((Commitment { session: SessionId([7; 16]), ..of }, epoch)),
            Some(Mischief::OldEpoch) => Some((Commitment { epoch: epoch - 1, ..of }, epoch - 1)),
            Some(Mischief::Silent) => None,
            _ => Some((of, epoch)),
        }
    }
}
