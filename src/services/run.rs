//! One call: it waits for its turn, the service works, what came out is kept and asked for, and whoever called is given time to
//! pay.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quelea_ledger::{Hash, HoldId, book::Side};
use quelea_service::{Fault, MAX_OUTPUT};
use quelea_wire::{ErrorCode, time::unix_ms};
use tokio::time::timeout;

use super::{
    Services,
    calls::{Ends, KEEP, Kept, Key},
    payers::PATIENCE,
    registry::Offered,
    service::{Done, Job, Progress, fault},
};
use crate::storage::ResultRow;

/// A call that is worked on. However it ends, those who wait are told, and what is known of it fits.
pub(super) struct Run {
    services: Arc<Services>,
    key: Key,
    job: [u8; 32],
    offered: Arc<Offered>,
    ends: Ends,
    hold: Option<HoldId>,
    price: u64,
    kept: bool,
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.kept {
            self.services.calls.forget(&self.key);
        }
    }
}

impl Run {
    pub(super) fn new(
        services: Arc<Services>,
        key: Key,
        job: [u8; 32],
        offered: Arc<Offered>,
        ends: Ends,
        hold: Option<HoldId>,
        price: u64,
    ) -> Self {
        Self { services, key, job, offered, ends, hold, price, kept: false }
    }

    /// Works, until it is done, its time is over, or nobody waits any more.
    pub(super) async fn work(mut self, input: Vec<u8>, remaining_ms: u32, progress: Progress) {
        let began = Instant::now();
        let time = Duration::from_millis(remaining_ms.into()).min(self.offered.about.deadline);
        let done = tokio::select! {
            done = timeout(time, self.done(input, time, &progress)) => done.unwrap_or_else(|_late| {
                Err(fault(ErrorCode::DeadlineExceeded, format!("it took longer than {} ms", time.as_millis())))
            }),
            () = self.ends.closed() => Err(fault(ErrorCode::Cancelled, "nobody waits for it any more")),
        };
        let end = match done {
            Ok(done) => self.keep(done).await,
            Err(fault) => Err(fault),
        };
        match &end {
            Ok(kept) => self.offered.answered(began.elapsed(), kept.amount),
            Err(fault) => {
                self.offered.failed();
                tracing::debug!(service = %self.offered.name, code = %fault.code, why = fault.message, "a call failed");
                self.give_back().await;
            }
        }
        let outcome = end.as_ref().map_or_else(|fault| fault.code.label(), |_| "ok");
        self.services.telemetry.metrics.service_called(
            super::builtin::label(&self.offered.name),
            outcome,
            began.elapsed(),
        );
        let paid_for = end.as_ref().ok().is_some_and(|kept| kept.amount > 0);
        if paid_for {
            self.services.payers.owes(self.key.0);
        }
        self.ends.send_replace(Some(end));
        // What was said of it is read until the channel ends.
        drop(progress);
        if paid_for {
            self.await_note().await;
        }
    }

    async fn done(&self, input: Vec<u8>, time: Duration, progress: &Progress) -> Result<Done, Fault> {
        let began = Instant::now();
        let full = || Fault {
            retry_ms: self.offered.retry_ms(),
            ..fault(ErrorCode::Overloaded, format!("{} has as many calls as it takes", self.offered.name))
        };
        let waiting = self.offered.wait().ok_or_else(full)?;
        let _place = self.offered.places.acquire().await.map_err(|_closed| full())?;
        let _running = self.offered.begin();
        drop(waiting);
        let remaining = time.saturating_sub(began.elapsed());
        let job = Job { input, most: self.price, remaining };
        self.offered.service.call(job, progress).await
    }

    /// Keeps what came out and says what it costs: durable before anybody sees it.
    async fn keep(&mut self, done: Done) -> Result<Arc<Kept>, Fault> {
        let most = usize::try_from(self.offered.about.output_max).unwrap_or(usize::MAX).min(MAX_OUTPUT);
        if done.output.len() > most {
            let message = format!("what came out has {} bytes, more than {most}", done.output.len());
            return Err(fault(ErrorCode::ServiceFailed, message));
        }
        let amount = done.cost.unwrap_or(self.price).min(self.price);
        let kept = Arc::new(Kept { amount, output: done.output });
        match self.hold {
            Some(hold) if amount > 0 => {
                self.store(&kept).await?;
                let result = Hash(*blake3::hash(&kept.output).as_bytes());
                let signed = self.services.ledger.finish(self.key.0, hold, amount, result).await;
                signed.map_err(|error| {
                    let code = crate::inference::InferError::from(error.clone()).error_code();
                    fault(code, format!("the result cannot be signed for: {error}"))
                })?;
            }
            _ => self.give_back().await,
        }
        self.services.calls.done(self.key, self.job, kept.clone(), Instant::now());
        self.kept = true;
        Ok(kept)
    }

    /// On disk, where there is one: a provider that is killed answers it when it is back.
    async fn store(&self, kept: &Kept) -> Result<(), Fault> {
        let Some(db) = &self.services.db else { return Ok(()) };
        let (now, (peer, call)) = (unix_ms(), self.key);
        let row = ResultRow {
            peer,
            call: call.0,
            expires_ms: now.saturating_add(u64::try_from(KEEP.as_millis()).unwrap_or(u64::MAX)),
            amount: kept.amount,
            job: self.job,
            output: kept.output.clone(),
        };
        let stored = db.put_service_result(row, now).await;
        stored.map_err(|error| fault(ErrorCode::StorageFailed, format!("the result cannot be kept: {error}")))
    }

    /// Nothing is asked for it.
    async fn give_back(&self) {
        if let Some(hold) = self.hold {
            // Where the caller has taken it back already, nothing is left to be done.
            let _ = self.services.ledger.void(self.key.0, Side::Theirs, hold).await;
        }
    }

    /// The caller has the result, and is given time to pay.
    async fn await_note(&self) {
        let (Some(hold), peer) = (self.hold, self.key.0) else { return };
        let paid = self.services.ledger.settled(peer, hold, tokio::time::Instant::now() + PATIENCE).await;
        let paid = paid.is_ok();
        self.services.payers.settled(&peer, paid, Instant::now());
        if !paid {
            tracing::info!(%peer, "a call was answered and is not paid");
            self.services.ledger.failed(peer, self.price, false).await;
        }
    }
}
