//! Paying the stages of a session: a hold at each that asks a price, vouchers while rows go out, and one note at the end.
//!
//! Rows are counted as they leave, and vouchers are signed by a task beside the session: after each chunk of a prompt, and
//! every [`EVERY`] rows of the answer. What was vouched for is paid, and in an orderly end
//! exactly what the rows cost, as both sides count them. A session that ends otherwise pays for what came back of it, and for
//! what it had vouched for. The notes of an answer that is [audited](crate::inference::auditor) wait for what is found.

mod settling;

pub(crate) use self::settling::Held;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::try_join_all;
use libp2p::PeerId;
use quelea_ledger::{
    Hash, HoldId,
    book::HoldTerms,
    receipt::{About, Part, job_hash},
};
use quelea_shard::{
    commitment::EVERY,
    frame::{Pay, SessionId, StreamKind, Voucher},
    link::ControlSender,
    protocol,
};
use quelea_wire::{ErrorCode, ModelId, Price, SpanRange, WorkedRows, time::unix_ms};
use tokio::{sync::Notify, time::Instant};
use tracing::Instrument as _;

use super::{SessionSpec, Stage};
use crate::inference::{plane::Plane, planner::Hop, types::InferError};

/// How long a hold stands, in milliseconds: as long as one may, less a minute for clocks that differ.
const HOLD_MS: u64 = quelea_ledger::book::MAX_HOLD_MS - 60_000;

/// How long a peer whose ledger has lost its session may take to have another, while rows wait.
const AGAIN: Duration = Duration::from_secs(4);

/// What a coordinator of a test leaves out.
#[cfg(test)]
#[derive(Clone, Copy)]
pub(crate) enum Stint {
    Vouchers = 1,
    Notes = 2,
    /// Audits never end.
    Verdicts = 3,
    /// Audits come too late.
    InTime = 4,
}

/// A stage, as far as it is paid.
struct Payee {
    peer: PeerId,
    span: SpanRange,
    price: Price,
    control: ControlSender,
    /// Nothing where it is free.
    hold: Option<HoldId>,
    most: u64,
    /// When the hold ends, in Unix milliseconds.
    expires_at: u64,
    /// Rows that were given to it.
    sent: WorkedRows,
    /// Of those, such as have come back from the chain.
    back: WorkedRows,
    /// Up to where vouchers are.
    vouched: WorkedRows,
    owed: u64,
    /// Whether no voucher can be signed any more.
    stuck: bool,
    /// Whether it is in the chain.
    here: bool,
    /// Whether it has come in anew, and its first rows are yet to be counted.
    fresh: bool,
    settled: bool,
    /// What it says that it has done.
    part: Option<(Part, Vec<u8>)>,
    note: Hash,
}

impl Payee {
    fn amount(&self, rows: WorkedRows) -> u64 {
        // More than was reserved cannot be paid, and no stage works for it.
        self.price.amount(self.span.count(), rows).unwrap_or(u64::MAX).min(self.most)
    }

    /// The voucher that is due: its amount.
    fn due(&self) -> Option<u64> {
        self.hold.filter(|_| !self.stuck && !self.settled)?;
        let every = u64::from(EVERY);
        let is_due = self.sent.prefill > self.vouched.prefill || self.sent.decode >= self.vouched.decode + every;
        let amount = self.amount(self.sent);
        (is_due && amount > self.owed).then_some(amount)
    }
}

#[derive(Default)]
struct State {
    payees: Vec<Payee>,
    epoch: u32,
    over: bool,
}

struct Shared {
    plane: Arc<Plane>,
    session: SessionId,
    model: ModelId,
    /// Rows that the session may have.
    most: WorkedRows,
    state: Mutex<State>,
    wake: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's side of paying. What is owed is paid when this is dropped, if it was not before.
pub(super) struct Paying {
    shared: Arc<Shared>,
}

impl Drop for Paying {
    fn drop(&mut self) {
        settling::in_passing(&self.shared);
    }
}

impl Paying {
    /// Takes out a hold at each of `stages` that asks a price.
    pub(super) async fn begin(
        plane: Arc<Plane>,
        session: SessionId,
        spec: &SessionSpec,
        stages: &[Stage],
        deadline: Instant,
    ) -> Result<Self, InferError> {
        let shared = Arc::new(Shared {
            plane,
            session,
            model: spec.model,
            most: spec.most_rows,
            state: Mutex::default(),
            wake: Notify::new(),
        });
        let paying = Self { shared };
        // Whoever is done when another fails is in the list, and its hold is taken back.
        try_join_all(stages.iter().map(|stage| paying.add(&stage.hop, &stage.control.sender, false, deadline))).await?;
        if paying.costs() {
            tokio::spawn(vouch(paying.shared.clone()).in_current_span());
        }
        Ok(paying)
    }

    /// Takes out a hold at a stage that comes in later.
    pub(super) async fn add_later(
        &self,
        hop: &Hop,
        control: &ControlSender,
        deadline: Instant,
    ) -> Result<(), InferError> {
        let first = !self.costs();
        self.add(hop, control, true, deadline).await?;
        if first && self.costs() {
            tokio::spawn(vouch(self.shared.clone()).in_current_span());
        }
        Ok(())
    }

    async fn add(&self, hop: &Hop, control: &ControlSender, fresh: bool, deadline: Instant) -> Result<(), InferError> {
        let (peer, span, price) = (hop.peer, hop.span, hop.price);
        let failed = |code: ErrorCode, why: &str| {
            let message = format!("peer {peer} (layers {span}) cannot be paid: {why}");
            InferError::new(code, message).about(peer)
        };
        let hold = (!price.is_free()).then(|| HoldId(rand::random()));
        if hold.is_some() && control.features() & protocol::PAY == 0 {
            return Err(failed(ErrorCode::PaymentRequired, "it is of a version that cannot be"));
        }
        let most = price.amount(span.count(), self.shared.most);
        let Some(most) = most else { return Err(failed(ErrorCode::PriceTooHigh, "no counter holds its price")) };
        let expires_at = unix_ms().saturating_add(HOLD_MS);
        // In the list first: should the session be given up meanwhile, its hold is taken back.
        self.shared.lock().payees.push(Payee {
            peer,
            span,
            price,
            control: control.clone(),
            hold,
            most,
            expires_at,
            sent: WorkedRows::default(),
            back: WorkedRows::default(),
            vouched: WorkedRows::default(),
            owed: 0,
            stuck: false,
            here: true,
            fresh,
            settled: false,
            part: None,
            note: Hash::ZERO,
        });
        let Some(hold) = hold else { return Ok(()) };
        let job_hash = job_hash(&self.shared.session.0, &self.shared.model, &span);
        let ledger = self.shared.plane.ledger();
        let terms = HoldTerms { hold, max: most, job_hash, expires_at, due_days: ledger.due_days() };
        let reserved = async {
            ledger.ready(peer, deadline).await?;
            ledger.hold(peer, terms).await
        };
        reserved.await.map_err(|error| {
            self.left(&peer);
            let why = error.to_string();
            failed(InferError::from(error).error_code(), &why)
        })
    }

    /// What an Open at `peer` says of it.
    pub(super) fn by(&self, peer: &PeerId) -> Option<Pay> {
        let state = self.shared.lock();
        let payee = state.payees.iter().find(|payee| payee.here && payee.peer == *peer)?;
        let Price { decode, prefill } = payee.price;
        Some(Pay { hold: payee.hold?.0, price_decode: decode, price_prefill: prefill })
    }

    /// The session is in this epoch.
    pub(super) fn epoch(&self, epoch: u32) {
        self.shared.lock().epoch = epoch;
    }

    /// Rows go to the chain.
    pub(super) fn sent(&self, kind: StreamKind, rows: u16) {
        let mut state = self.shared.lock();
        let mut due = false;
        for payee in state.payees.iter_mut().filter(|payee| payee.here) {
            // Who is fresh is given these with the rows before them.
            if !payee.fresh {
                count(&mut payee.sent, kind, rows);
            }
            due |= payee.due().is_some();
        }
        drop(state);
        if due {
            self.shared.wake.notify_one();
        }
    }

    /// Rows have come back from the chain.
    pub(super) fn back(&self, kind: StreamKind, rows: u16) {
        for payee in self.shared.lock().payees.iter_mut().filter(|payee| payee.here) {
            let mut back = payee.back;
            count(&mut back, kind, rows);
            // Of a stage that came in later, rows that it was given as a prompt may come back as an answer's.
            payee.back = WorkedRows {
                prefill: back.prefill.min(payee.sent.prefill),
                decode: back.decode.min(payee.sent.decode),
            };
        }
    }

    /// A stage stands at `pos`, and will be given all rows up to `sent`: those that it has not been given before count.
    pub(super) fn stands(&self, peer: &PeerId, pos: u32, sent: u32) {
        let mut state = self.shared.lock();
        for payee in state.payees.iter_mut().filter(|payee| payee.here && payee.fresh && payee.peer == *peer) {
            payee.fresh = false;
            payee.sent.prefill = u64::from(sent.saturating_sub(pos));
            payee.back = payee.sent;
        }
        drop(state);
        self.shared.wake.notify_one();
    }

    /// A stage computes so many rows again.
    pub(super) fn again(&self, peer: &PeerId, rows: u32) {
        let mut state = self.shared.lock();
        for payee in state.payees.iter_mut().filter(|payee| payee.here && payee.peer == *peer) {
            payee.sent.prefill = payee.sent.prefill.saturating_add(u64::from(rows));
        }
        drop(state);
        self.shared.wake.notify_one();
    }

    /// A stage has left the chain.
    pub(super) fn left(&self, peer: &PeerId) {
        let mut state = self.shared.lock();
        state.payees.iter_mut().filter(|payee| payee.peer == *peer).for_each(|payee| payee.here = false);
    }

    /// A stage says what it has done. What it has not signed, or is about something else, is nothing.
    pub(super) fn receipt(&self, peer: PeerId, envelope: &[u8]) {
        let Ok((signer, part)) = Part::open(envelope, &self.shared.plane.network) else {
            return tracing::debug!(%peer, "not a part of a receipt");
        };
        let local = self.shared.plane.handle.local();
        let mut state = self.shared.lock();
        let of_this = |payee: &&mut Payee| {
            let ours =
                (part.session, part.coordinator, part.model) == (self.shared.session.0, local, self.shared.model);
            payee.here && payee.peer == peer && signer == peer && ours && part.span == payee.span
        };
        if let Some(payee) = state.payees.iter_mut().find(of_this) {
            payee.part = Some((part, envelope.to_vec()));
        }
    }

    /// Whether all stages that can have said what they did, but for those that are `gone`.
    pub(super) fn all_said(&self, gone: &[PeerId]) -> bool {
        let can =
            |payee: &&Payee| payee.here && payee.control.features() & protocol::PAY != 0 && !gone.contains(&payee.peer);
        self.shared.lock().payees.iter().filter(can).all(|payee| payee.part.is_some())
    }

    /// Whether anything costs anything.
    pub(super) fn costs(&self) -> bool {
        self.shared.lock().payees.iter().any(|payee| payee.hold.is_some())
    }
}

fn count(of: &mut WorkedRows, kind: StreamKind, rows: u16) {
    let of_kind = if kind == StreamKind::Decode { &mut of.decode } else { &mut of.prefill };
    *of_kind = of_kind.saturating_add(u64::from(rows));
}

/// Signs vouchers as they become due, until the session is over.
async fn vouch(shared: Arc<Shared>) {
    loop {
        let woken = shared.wake.notified();
        let due = {
            let mut state = shared.lock();
            if state.over {
                return;
            }
            let epoch = state.epoch;
            state.payees.iter_mut().find_map(|payee| {
                let (amount, hold) = (payee.due()?, payee.hold?);
                // Noted before it is signed, so that nothing is signed for and then not paid.
                (payee.vouched, payee.owed) = (payee.sent, amount);
                Some((payee.peer, payee.control.clone(), hold, amount, epoch))
            })
        };
        let Some((peer, control, hold, amount, epoch)) = due else {
            woken.await;
            continue;
        };
        #[cfg(test)]
        if shared.plane.stint.load(std::sync::atomic::Ordering::Relaxed) == Stint::Vouchers as u8 {
            shared.lock().payees.iter_mut().for_each(|payee| (payee.stuck, payee.owed) = (true, 0));
            continue;
        }
        let ledger = shared.plane.ledger();
        let mut signed = ledger.voucher(peer, hold, epoch, amount).await;
        if signed.is_err() && ledger.ready(peer, Instant::now() + AGAIN).await.is_ok() {
            signed = ledger.voucher(peer, hold, epoch, amount).await;
        }
        match signed {
            Ok(envelope) => {
                // A queue that is full or closed ends the session by itself.
                let _ = control.send(Voucher { session: shared.session, epoch, envelope });
            }
            Err(error) => {
                let over = shared.lock().over;
                if !over {
                    tracing::warn!(%peer, %error, "no voucher can be signed; the stage will stop");
                }
                let mut state = shared.lock();
                state.payees.iter_mut().filter(|payee| payee.hold == Some(hold)).for_each(|payee| payee.stuck = true);
            }
        }
    }
}
