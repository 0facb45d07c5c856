//! What becomes durable together, and what follows then.

use libp2p::PeerId;
use quelea_ledger::{
    HoldId,
    book::{Compare, Key, Send, Write},
};
use tokio::sync::oneshot;

use super::{LedgerError, command::OpenHold, store::Durable};
use crate::storage::{LedgerBatch, WriteError};

/// What callers that wait are told once it is durable.
pub(super) enum Told {
    Live(PeerId),
    Open(PeerId, HoldId, OpenHold),
    Refused(PeerId, HoldId, &'static str),
    Settled(PeerId, HoldId, u64),
}

/// Answers one caller.
pub(super) type Then = Box<dyn FnOnce(Result<(), LedgerError>) + std::marker::Send>;

/// One unit: see the module.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) batch: LedgerBatch,
    pub(super) sends: Vec<Send>,
    pub(super) compares: Vec<Compare>,
    pub(super) told: Vec<Told>,
    pub(super) then: Vec<Then>,
}

impl Turn {
    pub(super) fn is_empty(&self) -> bool {
        self.writes_nothing()
            && self.sends.is_empty()
            && self.compares.is_empty()
            && self.told.is_empty()
            && self.then.is_empty()
    }

    pub(super) fn writes_nothing(&self) -> bool {
        self.batch.rows() == 0
    }
}

/// What of a turn is done when its batch is on disk.
pub(super) struct Commit {
    /// Nothing where nothing is written, or it is written already.
    durable: Durable,
    pub(super) sends: Vec<Send>,
    pub(super) compares: Vec<Compare>,
    pub(super) told: Vec<Told>,
    pub(super) then: Vec<Then>,
    /// What was written and may have to be sent: most of it is.
    pub(super) written: Vec<(Key, Vec<u8>)>,
}

impl Commit {
    /// Takes the batch out of a turn, and what of it is to be sent.
    pub(super) fn split(turn: Turn) -> (LedgerBatch, Self) {
        let Turn { batch, sends, compares, told, then } = turn;
        let is_envelope = |key: &Key| !matches!(key, Key::Pair(..) | Key::Hold(..));
        let written = batch.writes.iter().filter_map(|write| match write {
            Write::Put(key, value) if is_envelope(key) => Some((*key, value.clone())),
            _ => None,
        });
        let written = if sends.is_empty() { Vec::new() } else { written.collect() };
        (batch, Self { durable: None, sends, compares, told, then, written })
    }

    pub(super) fn when(mut self, durable: Durable) -> Self {
        self.durable = durable;
        self
    }

    /// Waits until it is durable. Cancelling it loses nothing.
    pub(super) async fn durable(&mut self) -> Result<(), LedgerError> {
        let Some(durable) = &mut self.durable else { return Ok(()) };
        let done: Result<Result<(), WriteError>, oneshot::error::RecvError> = durable.await;
        match done {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(LedgerError::Storage(error.to_string())),
            Err(_) => Err(LedgerError::Storage("the database is closed".into())),
        }
    }

    /// Nothing of it is done.
    pub(super) fn fail(self, error: &LedgerError) {
        self.then.into_iter().for_each(|then| then(Err(error.clone())));
    }
}
