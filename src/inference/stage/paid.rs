//! Being paid as a stage: rows are counted as they come, and computed as far as vouchers cover them.
//!
//! What is computed and not covered is at most the session's exposure. A batch beyond that waits for a voucher, so that a
//! coordinator whose disk is slow is slow and no more; one that sends none for [`PATIENCE`] is stopped.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use libp2p::PeerId;
use quelea_engine::PREFILL_CHUNK;
use quelea_ledger::{
    HoldId,
    book::Side,
    receipt::{Part, Work, job_hash},
};
use quelea_shard::{
    commitment::{self, Digest, Point},
    frame::{Open, SessionId, StreamKind, Voucher},
    link::Batch,
};
use quelea_wire::{Credits, ErrorCode, Price, WorkedRows, time::unix_ms};
use tokio::{sync::mpsc, time::Instant};

use super::{Plane, compute::compute};

/// How long a batch waits for a voucher. Half of what a step may take unless said otherwise, so that it is this that ends the
/// session, and its coordinator learns why.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the note is waited for after a session's end: longer than it may wait for an audit.
const SETTLING: Duration = Duration::from_secs(15 * 60);

/// Holds whose sessions have had rows, which are remembered: a second session is not worked for by the same one. As many as
/// end within an hour, after which a hold has expired, where one ends each second.
const SPENT: usize = 3600;

/// Vouchers of one coordinator that may wait to be checked. Then its control stream is read no further.
pub(super) const VOUCHERS: usize = 64;

/// A batch that waits for a voucher.
pub(super) struct Waiting {
    pub(super) kind: StreamKind,
    pub(super) batch: Batch,
    pub(super) input: Vec<Digest>,
}

/// What a session has cost so far.
pub(super) struct Account {
    price: Price,
    layers: u16,
    /// Nothing where it is free.
    hold: Option<HoldId>,
    /// Micro-credits that may be uncovered.
    exposure: u64,
    rows: WorkedRows,
    vouched: u64,
    waiting: VecDeque<Waiting>,
    since: Option<Instant>,
}

impl Account {
    /// Of a session as it is opened.
    pub(super) fn new(plane: &Plane, coordinator: PeerId, open: &Open) -> Self {
        let free = coordinator == plane.handle.local();
        let price = if free { Price::FREE } else { plane.price };
        let hold = open.pay.filter(|_| !price.is_free()).map(|pay| HoldId(pay.hold));
        Self::at(price, open.span.count(), hold, plane.exposure)
    }

    fn at(price: Price, layers: u16, hold: Option<HoldId>, exposure: Option<u64>) -> Self {
        let amount = |prefill: usize, decode: u32| {
            let prefill = u64::try_from(prefill).unwrap_or(u64::MAX);
            price.amount(layers, WorkedRows { prefill, decode: u64::from(decode) }).unwrap_or(u64::MAX)
        };
        // Two intervals, as the voucher for one may be on its way while the next begins, and a chunk of the prompt.
        let usual = amount(PREFILL_CHUNK, 2 * commitment::EVERY);
        // With less than an interval and the guesses behind it nobody could ever be in time.
        let least = amount(0, commitment::EVERY + commitment::SETTLED);
        let exposure = exposure.map_or(usual, |most| most.max(least));
        let (rows, waiting) = (WorkedRows::default(), VecDeque::new());
        Self { price, layers, hold, exposure, rows, vouched: 0, waiting, since: None }
    }

    /// Micro-credits for the rows so far.
    fn owed(&self) -> u64 {
        self.price.amount(self.layers, self.rows).unwrap_or(u64::MAX)
    }

    /// Counts a batch if it is covered.
    fn covers(&mut self, kind: StreamKind, rows: u16) -> bool {
        let mut after = self.rows;
        let of_kind = if kind == StreamKind::Decode { &mut after.decode } else { &mut after.prefill };
        *of_kind = of_kind.saturating_add(u64::from(rows));
        let owed = self.price.amount(self.layers, after).unwrap_or(u64::MAX);
        let covered = owed.saturating_sub(self.vouched) <= self.exposure || self.price.is_free();
        if covered {
            self.rows = after;
        }
        covered
    }

    /// A batch came: it is given back if it may be computed now.
    pub(super) fn take(&mut self, now: Instant, batch: Waiting) -> Option<Waiting> {
        if self.waiting.is_empty() && self.covers(batch.kind, batch.batch.rows) {
            return Some(batch);
        }
        // As many as the session may have in flight, which its machine bounds.
        self.since.get_or_insert(now);
        self.waiting.push_back(batch);
        None
    }

    /// The next batch that waits and is covered now.
    fn next(&mut self, now: Instant) -> Option<Waiting> {
        let (kind, rows) = self.waiting.front().map(|next| (next.kind, next.batch.rows))?;
        if !self.covers(kind, rows) {
            return None;
        }
        let next = self.waiting.pop_front();
        self.since = (!self.waiting.is_empty()).then_some(now);
        next
    }

    /// Why the session is stopped, if vouchers are overdue.
    pub(super) fn overdue(&self, now: Instant) -> Option<String> {
        self.since.filter(|since| now.duration_since(*since) >= PATIENCE)?;
        let (owed, vouched, most) = (Credits(self.owed()), Credits(self.vouched), Credits(self.exposure));
        Some(format!("{owed} credits are owed and vouchers cover {vouched}; at most {most} are worked for in advance"))
    }

    /// What the stage signs for at the end.
    pub(super) fn part(&self, coordinator: PeerId, open: &Open, point: Option<Point>) -> Part {
        let none = Point { first: 0, rows: 0, in_root: [0; 32], out_root: [0; 32] };
        let Point { first, rows, in_root, out_root } = point.unwrap_or(none);
        let work = Work::of(self.layers, self.rows, self.price).unwrap_or(Work {
            prefill: self.rows.prefill,
            decode: self.rows.decode,
            price_decode: self.price.decode,
            price_prefill: self.price.prefill,
            amount: u64::MAX,
        });
        Part {
            session: open.session.0,
            coordinator,
            model: open.model,
            profile: open.profile,
            span: open.span,
            epoch: open.epoch,
            work,
            hold: self.hold.unwrap_or(HoldId::NONE),
            first,
            rows,
            in_root,
            out_root,
            at: unix_ms(),
        }
    }

    /// The session is over: whoever owes for it is given time to pay, and is remembered if it does not.
    pub(super) fn over(&self, ledger: &crate::ledger::Ledger, coordinator: PeerId, spent: &mut Spent) {
        let Some(hold) = self.hold else { return };
        let (owed, vouched, ledger) = (self.owed(), self.vouched, ledger.clone());
        if owed > 0 {
            spent.add(hold);
        }
        tokio::spawn(async move {
            if owed == 0 {
                // Where the coordinator has taken it back already, nothing is left to be done.
                let _ = ledger.void(coordinator, Side::Theirs, hold).await;
                return;
            }
            let paid = ledger.settled(coordinator, hold, Instant::now() + SETTLING).await.unwrap_or(0);
            // What vouchers cover the ledger itself looks after.
            let short = owed.saturating_sub(paid.max(vouched));
            if short > 0 {
                ledger.failed(coordinator, short, false).await;
            }
        });
    }
}

/// Holds that have been worked for.
#[derive(Default)]
pub(super) struct Spent {
    holds: HashSet<HoldId>,
    order: VecDeque<HoldId>,
}

impl Spent {
    fn add(&mut self, hold: HoldId) {
        if self.holds.insert(hold) {
            self.order.push_back(hold);
        }
        if self.order.len() > SPENT
            && let Some(oldest) = self.order.pop_front()
        {
            self.holds.remove(&oldest);
        }
    }

    pub(super) fn has(&self, hold: &[u8; 16]) -> bool {
        self.holds.contains(&HoldId(*hold))
    }
}

/// Whether an Open offers what this node asks, as far as can be told without the ledger.
pub(super) fn offers(plane: &Plane, coordinator: PeerId, open: &Open) -> Result<(), (ErrorCode, String)> {
    let Price { decode, prefill } = plane.price;
    if plane.price.is_free() || coordinator == plane.handle.local() {
        return Ok(());
    }
    let price = format!("{decode} micro-credits per 1000 layer-rows, {prefill} of prompts");
    match open.pay {
        None => Err((ErrorCode::PaymentRequired, format!("the price here is {price}"))),
        Some(pay) if (pay.price_decode, pay.price_prefill) != (decode, prefill) => {
            Err((ErrorCode::PaymentRequired, format!("the price here is {price} by now")))
        }
        Some(_) => Ok(()),
    }
}

/// Waits until the hold that an Open names has come, and is for this session.
pub(super) async fn reserved(
    plane: &Plane,
    coordinator: PeerId,
    open: &Open,
    deadline: Instant,
) -> Result<(), (ErrorCode, String)> {
    if plane.price.is_free() || coordinator == plane.handle.local() {
        return Ok(());
    }
    let Some(pay) = open.pay else { return Err((ErrorCode::PaymentRequired, String::new())) };
    let held = plane.ledger().opened(coordinator, HoldId(pay.hold), deadline).await;
    let held = held.map_err(|error| {
        let code = crate::inference::InferError::from(error.clone()).error_code();
        // Whatever else is wrong with it, it is no hold.
        let code = if code == ErrorCode::Usage { ErrorCode::PaymentRequired } else { code };
        (code, error.to_string())
    })?;
    let refused = |why: &str| Err((ErrorCode::PaymentRequired, why.into()));
    if held.job_hash != job_hash(&open.session.0, &open.model, &open.span) {
        refused("the hold is for something else")
    } else if held.vouched > 0 {
        // Before this process began.
        refused("the hold was worked for before")
    } else if held.expires_at <= unix_ms() {
        refused("the hold has expired")
    } else {
        Ok(())
    }
}

/// Has a coordinator's vouchers kept, in order, until its control stream ends.
pub(super) async fn keep_vouchers(plane: Arc<Plane>, coordinator: PeerId, mut vouchers: mpsc::Receiver<Voucher>) {
    while let Some(Voucher { session, envelope, .. }) = vouchers.recv().await {
        match plane.ledger().vouched(coordinator, envelope).await {
            Ok((hold, amount)) => vouched(&plane, (coordinator, session), hold, amount),
            // Rows that it does not cover end the session.
            Err(error) => tracing::debug!(%coordinator, %error, "a voucher is not taken"),
        }
    }
}

/// So much is covered by now: batches that waited for that are computed.
fn vouched(plane: &Arc<Plane>, key: (PeerId, SessionId), hold: HoldId, amount: u64) {
    let now = Instant::now();
    let mut tables = plane.stages.lock();
    let Some(entry) = tables.entries.get_mut(&key).filter(|entry| entry.account.hold == Some(hold)) else { return };
    entry.account.vouched = entry.account.vouched.max(amount);
    while let Some(Waiting { kind, batch, input }) = entry.account.next(now) {
        compute(plane, key, entry, kind, batch, input);
    }
}

#[cfg(test)]
mod tests {
    use quelea_shard::frame::Form;

    use super::*;

    const PRICE: Price = Price { decode: 1000, prefill: 100 };

    fn batch(kind: StreamKind, rows: u16) -> Waiting {
        let batch = Batch {
            session: SessionId([1; 16]),
            epoch: 1,
            seq: 0,
            pos: 0,
            rows,
            last_row_only: false,
            rewind: false,
            deadline: Instant::now(),
            form: Form::Rows,
            data: Vec::new(),
        };
        Waiting { kind, batch, input: Vec::new() }
    }

    #[test]
    fn what_is_not_covered_waits_in_order_and_is_overdue_after_a_while() {
        // Two intervals of 16 rows at 2 each, and 64 rows of a prompt at 0.2: 76.8, rounded up.
        let mut account = Account::at(PRICE, 2, Some(HoldId([1; 16])), None);
        assert_eq!(account.exposure, 77);
        let now = Instant::now();
        assert!(account.take(now, batch(StreamKind::Bulk, 64)).is_some());
        for _ in 0..4 {
            assert!(account.take(now, batch(StreamKind::Decode, 8)).is_some());
        }
        assert!(account.take(now, batch(StreamKind::Decode, 2)).is_none());
        // One that would be covered does not overtake it.
        assert!(account.take(now, batch(StreamKind::Bulk, 1)).is_none());
        account.vouched = 3;
        assert!(account.overdue(now).is_none() && account.next(now).is_none());
        let later = now + PATIENCE;
        let why = account.overdue(later).expect("it waits too long");
        assert!(why.starts_with("0.000077") && why.contains("0.000003"), "{why}");
        account.vouched = 4;
        assert_eq!(account.next(later).map(|next| next.batch.rows), Some(2));
        assert!(account.overdue(later).is_none());
        assert_eq!(account.next(later).map(|next| next.batch.rows), Some(1));
        assert!(account.next(later).is_none() && account.overdue(later + PATIENCE).is_none());
        assert_eq!(account.rows, WorkedRows { prefill: 65, decode: 34 });
    }

    #[test]
    fn what_is_free_never_waits() {
        let mut account = Account::at(Price::FREE, 2, None, Some(0));
        for _ in 0..100 {
            assert!(account.take(Instant::now(), batch(StreamKind::Bulk, 128)).is_some());
        }
        assert_eq!((account.owed(), account.rows.prefill), (0, 12_800));
    }

    #[test]
    fn an_exposure_of_nothing_is_one_interval() {
        assert_eq!(Account::at(PRICE, 1, None, Some(0)).exposure, 24);
        assert_eq!(Account::at(PRICE, 1, None, Some(1_000_000)).exposure, 1_000_000);
    }

    #[test]
    fn holds_that_were_worked_for_are_remembered_for_as_long_as_they_could_be_used() {
        let mut spent = Spent::default();
        for n in 0..=u32::try_from(SPENT).unwrap() {
            let mut hold = [0; 16];
            hold[..4].copy_from_slice(&n.to_le_bytes());
            spent.add(HoldId(hold));
        }
        assert!(!spent.has(&[0; 16]) && spent.holds.len() == SPENT && spent.order.len() == SPENT);
    }
}
