//! What a call costs: a hold at its provider before, one note after.

use std::{sync::Arc, time::Duration};

use libp2p::PeerId;
use quelea_ledger::{
    Hash, HoldId,
    book::{HoldState, HoldTerms, Refusal, Side},
};
use quelea_service::{CallId, Fault, Listed, job_hash};
use quelea_wire::{Credits, ErrorCode, time::unix_ms};
use tokio::time::{Instant, sleep, timeout};

use super::{CallDone, CallRequest, refused};
use crate::{inference::InferError, ledger::LedgerError, services::Services};

/// How much longer than the call a hold may be paid, so that the end of the one is not that of the other.
const AFTER: Duration = Duration::from_secs(60);

/// How long a peer may take to sync ledgers.
const SYNC: Duration = Duration::from_secs(10);

/// How long the note is waited for before the result is handed on. It is made all the same.
const NOTE: Duration = Duration::from_secs(5);

/// Between two looks whether a note is acknowledged.
const LOOK: Duration = Duration::from_millis(20);

/// Holds that are tried for one call at one peer: earlier ones were taken back.
const HOLDS: u8 = 8;

/// How long a peer that is gone is waited for, to be told that a hold is taken back: about as long as it would stand.
const TELL: Duration = Duration::from_secs(5 * 60);

/// A hold that is taken back unless it is paid.
pub(super) struct Reserved {
    services: Arc<Services>,
    pub(super) peer: PeerId,
    pub(super) hold: Option<HoldId>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let Some(hold) = self.hold.take() else { return };
        let (ledger, peer) = (self.services.ledger.clone(), self.peer);
        tokio::spawn(async move {
            // A peer that is gone would go on reserving it: it is told when it is back.
            let _ = ledger.ready(peer, Instant::now() + TELL).await;
            // One that was paid before stays so.
            if let Err(error) = ledger.void(peer, Side::Mine, hold).await {
                tracing::debug!(%peer, %error, "a hold is not taken back");
            }
        });
    }
}

impl Services {
    /// Waits a moment until a peer has taken our newest note: for a node that stops next.
    pub(crate) async fn note_taken(&self, peer: PeerId) {
        let taken = async {
            while !matches!(self.ledger.is_acknowledged(peer).await, Ok(true) | Err(_)) {
                sleep(LOOK).await;
            }
        };
        if timeout(NOTE, taken).await.is_err() {
            tracing::warn!(%peer, "the peer has not said that it has the note");
        }
    }

    /// Reserves the price of a call at its provider.
    pub(super) async fn reserve(
        self: &Arc<Self>,
        request: &CallRequest,
        peer: PeerId,
        price: u64,
        deadline: Instant,
    ) -> Result<Reserved, InferError> {
        let mut reserved = Reserved { services: self.clone(), peer, hold: None };
        if price == 0 {
            return Ok(reserved);
        }
        let failed = |error: LedgerError| {
            let busy = matches!(error, LedgerError::Refused(Refusal::Count));
            let message = format!("peer {peer} cannot be paid: {error}");
            let code = if busy { ErrorCode::Overloaded } else { InferError::from(error).error_code() };
            InferError::new(code, message).about(peer)
        };
        self.ledger.ready(peer, deadline.min(Instant::now() + SYNC)).await.map_err(failed)?;
        let left = deadline.saturating_duration_since(Instant::now()) + AFTER;
        let expires_at = unix_ms().saturating_add(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        let job = Hash(job_hash(&request.id, &request.name, &request.input));
        for nth in 0..HOLDS {
            let hold = hold_of(&request.id, &peer, nth);
            let terms = HoldTerms { hold, max: price, job_hash: job, expires_at, due_days: self.ledger.due_days() };
            match self.ledger.hold(peer, terms).await {
                Ok(()) => {
                    reserved.hold = Some(hold);
                    return Ok(reserved);
                }
                // The call is repeated: what pays it is there, or was taken back.
                Err(LedgerError::Refused(Refusal::Duplicate)) => {
                    let state = self.ledger.hold_state(peer, Side::Mine, hold).await.map_err(failed)?;
                    if matches!(state, Some(HoldState::Open | HoldState::Settled)) {
                        reserved.hold = Some(hold);
                        return Ok(reserved);
                    }
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Err(InferError::new(ErrorCode::CallConflict, format!("call {} was tried {HOLDS} times in vain", request.id))
            .hint("make a new call, with another id"))
    }

    /// A fault is only paid where the call used up what it may use.
    pub(super) async fn fault(&self, reserved: &Reserved, listed: &Listed, fault: Fault) -> InferError {
        let peer = reserved.peer;
        let owed = fault.code == ErrorCode::ServiceExhausted && (1..=listed.price).contains(&fault.amount);
        let mut error = refused(peer, &fault);
        if let Some(hold) = reserved.hold.filter(|_| owed) {
            let paid = timeout(NOTE, self.ledger.pay(peer, hold, fault.amount, Hash::ZERO)).await;
            if matches!(paid, Ok(Ok(_))) {
                error.message.push_str(&format!("; {} credits are paid", Credits(fault.amount)));
            }
        }
        error
    }

    /// Pays what is asked.
    pub(super) async fn pay(
        self: &Arc<Self>,
        mut reserved: Reserved,
        version: u16,
        amount: u64,
        output: Vec<u8>,
    ) -> CallDone {
        let peer = reserved.peer;
        let mut done = CallDone { peer, version, output, paid: 0, note: None };
        let Some(hold) = reserved.hold.filter(|_| amount > 0) else { return done };
        // From here on it is paid, whatever becomes of who called.
        reserved.hold = None;
        let (ledger, result) = (self.ledger.clone(), Hash(*blake3::hash(&done.output).as_bytes()));
        let paying = tokio::spawn(async move { ledger.pay(peer, hold, amount, result).await });
        done.paid = amount;
        match timeout(NOTE, paying).await {
            Ok(Ok(Ok(note))) => done.note = Some(note),
            Ok(Ok(Err(error))) => {
                done.paid = 0;
                tracing::warn!(%peer, %error, "a call is not paid");
            }
            // It waits for the peer, and is made when it is back.
            _ => tracing::info!(%peer, "the note for a call waits for the peer"),
        }
        done
    }
}

/// The hold that pays a call at a peer: the same however often the call is repeated, so that it is paid once.
fn hold_of(id: &CallId, peer: &PeerId, nth: u8) -> HoldId {
    let mut hasher = blake3::Hasher::new_derive_key("quelea service hold v1");
    hasher.update(&id.0);
    hasher.update(&[nth]);
    hasher.update(&peer.to_bytes());
    let mut hold = [0; 16];
    hasher.finalize_xof().fill(&mut hold);
    HoldId(hold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_call_has_the_same_hold_and_another_one_elsewhere() {
        let (id, peer) = (CallId([1; 16]), PeerId::random());
        let hold = hold_of(&id, &peer, 0);
        assert_eq!(hold, hold_of(&id, &peer, 0));
        let others = [hold_of(&id, &peer, 1), hold_of(&id, &PeerId::random(), 0), hold_of(&CallId([2; 16]), &peer, 0)];
        assert!(!others.contains(&hold) && hold != HoldId::NONE);
    }
}
