//! The end: what each stage gets, its note, and the receipt.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use libp2p::PeerId;
use quelea_ledger::{
    Hash, HoldId, Raw,
    book::Side,
    receipt::{Entry, Lost, Part, Receipt, Work},
};
use quelea_wire::Credits;
use tokio::time::timeout;
use tracing::Instrument as _;

use super::{About, Payee, Paying, Shared};
use crate::inference::types::{Cost, InferError, StageCost};

/// How long the end of an answer waits for notes. They are paid all the same.
const NOTES: Duration = Duration::from_secs(5);

/// The same for the note of a stage that was lost: where it is back, and only its session was over, this is enough for the disk.
const NOTE_OF_LOST: Duration = Duration::from_millis(250);

/// What is to be paid for one hold.
struct Due {
    peer: PeerId,
    /// Whether it is in the chain at the end.
    here: bool,
    hold: HoldId,
    amount: u64,
    /// Of that, what vouchers are signed for.
    vouched: u64,
    result: Hash,
    /// When the hold ends, in Unix milliseconds.
    expires_at: u64,
}

/// Notes that are signed when it is known whether who gets them has computed what the model does. Dropped, all are signed:
/// so they are, whatever becomes of who wants to know. They are put down in the ledger, in case this process ends first.
pub(crate) struct Held {
    shared: Arc<Shared>,
    due: Vec<Due>,
}

impl Held {
    /// When the first of the holds ends, in Unix milliseconds.
    pub(crate) fn expires_at(&self) -> u64 {
        self.due.iter().map(|due| due.expires_at).min().unwrap_or(u64::MAX)
    }

    /// Signs them, but for those of `liars`. What becomes of their holds is the ledger's affair, which knows them by then.
    /// `suspects` get what vouchers are signed for.
    pub(crate) fn pay_but(mut self, liars: &[PeerId], suspects: &[PeerId]) {
        self.due.retain(|due| !liars.contains(&due.peer));
        let less = self.due.iter_mut().filter(|due| suspects.contains(&due.peer));
        less.for_each(|due| due.amount = due.amount.min(due.vouched));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for due in self.due.drain(..) {
            let shared = self.shared.clone();
            tokio::spawn(async move { pay(&shared, due).await }.in_current_span());
        }
    }
}

impl Payee {
    /// What it gets after an orderly end: what it says, unless that is more than it was given; never less than was signed for.
    fn claimed(&self) -> u64 {
        let own = self.amount(self.sent);
        self.part.as_ref().map_or(own, |(part, _)| part.work.amount.min(own)).max(self.owed)
    }

    /// What it gets otherwise.
    fn delivered(&self) -> u64 {
        self.amount(self.back).max(self.owed)
    }

    fn settle(&mut self, amount: u64) -> Option<Due> {
        let hold = self.hold.filter(|_| !self.settled)?;
        self.settled = true;
        // From now on this is what it gets.
        let vouched = std::mem::replace(&mut self.owed, amount);
        let result = self.part.as_ref().map_or(Hash::ZERO, |(_, raw)| Part::hash(raw));
        Some(Due { peer: self.peer, here: self.here, hold, amount, vouched, result, expires_at: self.expires_at })
    }

    fn rows(&self) -> (u64, u64) {
        match &self.part {
            Some((part, _)) => (part.work.prefill, part.work.decode),
            None => (self.back.prefill, self.back.decode),
        }
    }
}

/// Pays one hold, or takes it back where nothing is owed. Waits until the peer is there again, if it is not.
async fn pay(shared: &Shared, due: Due) -> Option<Hash> {
    let Due { peer, hold, amount, result, .. } = due;
    let ledger = shared.plane.ledger();
    #[cfg(test)]
    if shared.plane.stint.load(std::sync::atomic::Ordering::Relaxed) == super::Stint::Notes as u8 {
        return None;
    }
    let paid = if amount == 0 {
        ledger.void(peer, Side::Mine, hold).await.map(|()| Hash::ZERO)
    } else {
        ledger.pay(peer, hold, amount, result).await
    };
    match paid {
        Ok(note) => Some(note),
        // It was never taken out, or the peer has ended it.
        Err(error) if amount == 0 => {
            tracing::debug!(%peer, %error, "a hold is not taken back");
            None
        }
        Err(error) => {
            tracing::warn!(%peer, amount = %Credits(amount), %error, "a hold is not settled");
            None
        }
    }
}

/// Settles what is still open, beside everything else.
pub(super) fn in_passing(shared: &Arc<Shared>) {
    let mut state = shared.lock();
    state.over = true;
    let due: Vec<Due> = state
        .payees
        .iter_mut()
        .filter_map(|payee| {
            let amount = payee.delivered();
            payee.settle(amount)
        })
        .collect();
    drop(state);
    shared.wake.notify_one();
    for due in due {
        let shared = shared.clone();
        tokio::spawn(async move { pay(&shared, due).await }.in_current_span());
    }
}

impl Paying {
    /// The session has ended in order: pays every stage, once. The notes of those that are `tried` wait, and are put down.
    pub(in super::super) async fn settle(&self, tried: &[PeerId]) -> (Cost, Option<Held>) {
        let mut due: Vec<Due> = {
            let mut state = self.shared.lock();
            state.over = true;
            let of = |payee: &mut Payee| {
                let amount = if payee.here { payee.claimed() } else { payee.delivered() };
                payee.settle(amount)
            };
            state.payees.iter_mut().filter_map(of).collect()
        };
        self.shared.wake.notify_one();
        let (mut held, ledger) = (Vec::new(), self.shared.plane.ledger());
        for due in due.extract_if(.., |due| due.amount > 0 && tried.contains(&due.peer)).collect::<Vec<_>>() {
            match ledger.intend(due.peer, due.hold, due.amount).await {
                Ok(()) => held.push(due),
                // It would be forgotten if this process ended now.
                Err(error) => {
                    tracing::warn!(peer = %due.peer, %error, "a note cannot wait for an audit");
                    let shared = self.shared.clone();
                    tokio::spawn(async move { pay(&shared, due).await }.in_current_span());
                }
            }
        }
        let held = (!held.is_empty()).then(|| Held { shared: self.shared.clone(), due: held });
        let notes = due.into_iter().map(|due| {
            let (hold, shared) = (due.hold, self.shared.clone());
            let most = if due.here { NOTES } else { NOTE_OF_LOST };
            let paid = tokio::spawn(async move { pay(&shared, due).await }.in_current_span());
            async move {
                // Whoever is not there now is paid later.
                let note = timeout(most, paid).await.ok().and_then(Result::ok).flatten();
                (hold, note.unwrap_or(Hash::ZERO))
            }
        });
        let notes = join_all(notes).await;
        let mut state = self.shared.lock();
        for (hold, note) in notes {
            state.payees.iter_mut().filter(|payee| payee.hold == Some(hold)).for_each(|payee| payee.note = note);
        }
        let paid: Vec<&Payee> = state.payees.iter().filter(|payee| payee.hold.is_some()).collect();
        let micro_credits = paid.iter().fold(0_u64, |sum, payee| sum.saturating_add(payee.owed));
        let stages = paid.iter().map(|payee| {
            let (prefill_rows, decode_rows) = payee.rows();
            StageCost {
                peer: payee.peer.to_string(),
                layers: payee.span.to_string(),
                prefill_rows,
                decode_rows,
                credits: Credits(payee.owed).to_string(),
                note: (payee.note != Hash::ZERO).then(|| hex::encode(payee.note.0)),
            }
        });
        let cost = Cost { micro_credits, credits: Credits(micro_credits).to_string(), stages: stages.collect() };
        (cost, held)
    }

    /// The receipt, signed: the file's bytes. `commitment` is what a stage has last committed to.
    pub(in super::super) fn sealed(
        &self,
        about: About,
        commitment: impl Fn(&PeerId) -> Option<Vec<u8>>,
    ) -> Result<Vec<u8>, InferError> {
        let plane = &self.shared.plane;
        let state = self.shared.lock();
        let (mut entries, mut lost) = (Vec::new(), Vec::new());
        for payee in &state.payees {
            match payee.part.as_ref().filter(|(part, _)| part.work.amount == payee.owed || payee.hold.is_none()) {
                Some((part, raw)) => {
                    let commitment = commitment(&payee.peer).filter(|_| part.rows > 0).unwrap_or_default();
                    entries.push(Entry { part: Raw(raw.clone()), commitment: Raw(commitment), note: payee.note });
                }
                // By our own word, as it has said nothing, or something else than what it was paid for.
                None => {
                    // Those rows that what it gets is for.
                    let counts = [payee.back, payee.sent, payee.vouched];
                    let paid = counts.into_iter().find(|rows| payee.amount(*rows) == payee.owed);
                    let rows = paid.unwrap_or(payee.back);
                    let Some(work) = Work::of(payee.span.count(), rows, payee.price) else { continue };
                    let (stage, span, hold) = (payee.peer, payee.span, payee.hold.unwrap_or(HoldId::NONE));
                    lost.push(Lost { stage, span, work, hold, note: payee.note });
                }
            }
        }
        Receipt::seal(&plane.keypair, &plane.network, about, entries, lost)
            .map_err(|error| InferError::new(quelea_wire::ErrorCode::ReceiptWrong, error.to_string()))
    }
}
