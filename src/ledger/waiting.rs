//! Who waits for what a peer does. Waits are bounded by their callers: one whose caller has gone is forgotten.

use std::collections::HashMap;

use libp2p::PeerId;
use quelea_ledger::HoldId;

use super::{
    LedgerError,
    command::{OpenHold, Reply},
};

/// Settled holds whose amounts are remembered for whoever asks after the note has come.
const SETTLED: usize = 1024;

/// Refused holds that are remembered likewise; searched through, and needed for the time between two messages.
const REFUSED: usize = 256;

/// Callers that may wait at once. Each is a session that opens or closes, of which a node has a few hundred.
const WAITS: usize = 8192;

/// See the module.
#[derive(Default)]
pub(super) struct Waiting {
    live: Vec<(PeerId, Reply<()>)>,
    opened: Vec<((PeerId, HoldId), Reply<OpenHold>)>,
    settled: Vec<((PeerId, HoldId), Reply<u64>)>,
    /// What was paid for the holds that were settled last, and in which order.
    amounts: HashMap<(PeerId, HoldId), u64>,
    order: std::collections::VecDeque<(PeerId, HoldId)>,
    /// The holds that were refused last, and why: whoever waits for one may begin to after that.
    refused: std::collections::VecDeque<((PeerId, HoldId), &'static str)>,
}

/// Answers those who wait for `key`.
fn answer<K: PartialEq, T: Clone>(waits: &mut Vec<(K, Reply<T>)>, key: &K, result: &Result<T, LedgerError>) {
    for (_, reply) in waits.extract_if(.., |(of, _)| of == key) {
        let _ = reply.send(result.clone()); // whoever asked may have gone
    }
}

fn add<K, T>(waits: &mut Vec<(K, Reply<T>)>, key: K, reply: Reply<T>) {
    if waits.len() >= WAITS {
        waits.retain(|(_, reply)| !reply.is_closed());
    }
    if waits.len() < WAITS {
        waits.push((key, reply));
    }
}

impl Waiting {
    pub(super) fn for_live(&mut self, peer: PeerId, reply: Reply<()>) {
        add(&mut self.live, peer, reply);
    }

    pub(super) fn for_hold(&mut self, peer: PeerId, hold: HoldId, reply: Reply<OpenHold>) {
        match self.refused.iter().rev().find(|(of, _)| *of == (peer, hold)) {
            Some((_, why)) => drop(reply.send(Err(LedgerError::NoCredit(why)))),
            None => add(&mut self.opened, (peer, hold), reply),
        }
    }

    /// Answers at once where the note has come already.
    pub(super) fn for_note(&mut self, peer: PeerId, hold: HoldId, reply: Reply<u64>) {
        match self.amounts.get(&(peer, hold)) {
            Some(amount) => drop(reply.send(Ok(*amount))),
            None => add(&mut self.settled, (peer, hold), reply),
        }
    }

    pub(super) fn is_live(&mut self, peer: PeerId) {
        answer(&mut self.live, &peer, &Ok(()));
    }

    pub(super) fn is_open(&mut self, peer: PeerId, hold: HoldId, open: OpenHold) {
        answer(&mut self.opened, &(peer, hold), &Ok(open));
    }

    pub(super) fn is_refused(&mut self, peer: PeerId, hold: HoldId, why: &'static str) {
        if self.refused.len() >= REFUSED {
            self.refused.pop_front();
        }
        self.refused.push_back(((peer, hold), why));
        answer(&mut self.opened, &(peer, hold), &Err(LedgerError::NoCredit(why)));
    }

    pub(super) fn is_settled(&mut self, peer: PeerId, hold: HoldId, amount: u64) {
        let key = (peer, hold);
        if self.amounts.insert(key, amount).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > SETTLED
            && let Some(oldest) = self.order.pop_front()
        {
            self.amounts.remove(&oldest);
        }
        answer(&mut self.settled, &key, &Ok(amount));
    }

    /// Forgets callers that have gone.
    pub(super) fn sweep(&mut self) {
        self.live.retain(|(_, reply)| !reply.is_closed());
        self.opened.retain(|(_, reply)| !reply.is_closed());
        self.settled.retain(|(_, reply)| !reply.is_closed());
    }
}
