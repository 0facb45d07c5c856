//! Debts that are due: peers are asked to pay, and what they do not pay is remembered.

use std::collections::HashMap;

use libp2p::PeerId;
use quelea_ledger::{overdue::Step, trust::Dealing};
use quelea_wire::time::unix_ms;

use super::{
    super::{Asks, debts::Promised},
    Keeper, UNIT,
};

/// Debts that are looked at in a tick: each takes a few microseconds, and a write where something has changed.
const LOOKS: usize = 256;

/// Peers whose requests are remembered. Each is somebody whom this node owes.
const MAX_REQUESTS: usize = 4096;

/// Between two log lines about the same creditor's requests, in milliseconds.
const LOG_MS: u64 = 3600 * 1000;

impl Keeper {
    /// What time alone does to debts.
    pub(super) fn look_at_debts(&mut self) {
        for peer in self.debts.due(unix_ms(), LOOKS) {
            self.look(peer);
        }
        self.telemetry.stats.ledger.overdue.set(self.debts.overdue());
    }

    /// Looks at what a peer owes and has not paid.
    pub(super) fn look(&mut self, peer: PeerId) {
        let Some(account) = self.book.account(&peer, UNIT) else { return };
        let now = unix_ms();
        let (step, kept) = self.debts.step(now, &account);
        if let Some(debt) = kept {
            self.turn.batch.debts.insert(peer, debt);
        }
        match step {
            Some(Step::Ask(amount)) => {
                let deadline = now.saturating_add(self.debts.grace_ms());
                match self.book.request_redeem(peer, UNIT, amount, deadline, rand::random()) {
                    Ok(outcome) => {
                        tracing::info!(%peer, amount, "a peer is asked to pay what is due");
                        self.telemetry.metrics.ledger_entry("request", "made");
                        self.take(outcome);
                    }
                    Err(refusal) => tracing::debug!(%peer, %refusal, "a peer cannot be asked to pay"),
                }
            }
            Some(Step::Default(overdue)) => {
                tracing::warn!(%peer, overdue, "a peer has not paid what was due: it gets no credit");
                self.telemetry.metrics.ledger_defaulted();
                self.deal(peer, Dealing::Defaulted { overdue });
                self.grant(peer);
            }
            Some(Step::Settled) => {
                tracing::info!(%peer, "a peer's default is paid");
                self.deal(peer, Dealing::Settled);
                self.grant(peer);
            }
            None => {}
        }
    }

    /// A peer's note has come.
    pub(super) fn promised(&mut self, peer: PeerId, promised: Promised) {
        let debt = self.debts.promised(unix_ms(), peer, promised);
        self.turn.batch.debts.insert(peer, debt);
    }

    /// A peer has this node's request to pay.
    pub(super) fn request_taken(&mut self, peer: PeerId) {
        if let Some(debt) = self.debts.taken(unix_ms(), peer) {
            self.turn.batch.debts.insert(peer, debt);
        }
    }

    /// A peer asks to be paid. Nothing is paid by itself: the operator is told.
    pub(super) fn asked_to_pay(&mut self, peer: PeerId, amount: u64, deadline: u64) {
        let owing = self.book.account(&peer, UNIT).is_some_and(|account| account.owed < 0);
        let (now, known) = (unix_ms(), self.requests.get(&peer).copied());
        if !owing || known.is_none() && self.requests.len() >= MAX_REQUESTS {
            tracing::debug!(%peer, amount, "a request to pay what is not owed");
            return;
        }
        if known.is_none_or(|known| now.saturating_sub(known.at) >= LOG_MS) {
            tracing::warn!(%peer, amount, "the peer asks to be paid; see 'quelea ledger list'");
        }
        self.requests.insert(peer, Asks { amount, deadline, at: now });
        self.telemetry.metrics.ledger_entry("request", "taken");
    }

    /// A peer says that so much is paid.
    pub(super) fn request_met(&mut self, peer: PeerId, amount: u64) {
        if let Some(asks) = self.requests.get_mut(&peer) {
            asks.amount = asks.amount.saturating_sub(amount);
        }
        self.requests.retain(|_, asks| asks.amount > 0);
    }

    /// What a peer asks for and is still owed.
    pub(super) fn request_of(&self, peer: &PeerId) -> Option<Asks> {
        let owing = self.book.account(peer, UNIT).map_or(0, |account| account.owed.min(0).unsigned_abs());
        let owing = u64::try_from(owing).unwrap_or(u64::MAX);
        let asks = self.requests.get(peer)?;
        (owing > 0).then(|| Asks { amount: asks.amount.min(owing), ..*asks })
    }

    /// Forgets requests of those who are owed nothing any more.
    pub(super) fn forget_requests(&mut self) {
        let book = &self.book;
        let requests: &mut HashMap<PeerId, Asks> = &mut self.requests;
        requests.retain(|peer, _| book.account(peer, UNIT).is_some_and(|account| account.owed < 0));
    }
}
