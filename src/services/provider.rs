//! Calls of others: one task a stream. What is asked is checked here; the work is [`super::run`]'s.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{AsyncReadExt as _, AsyncWrite, future::Either};
use libp2p::PeerId;
use quelea_behaviours::conduct::Deed;
use quelea_ledger::{
    Hash, HoldId,
    book::{HoldState, Side},
};
use quelea_service::{Answer, Ask, Call, Fault, FrameError, FrameReader, FrameWriter, ServiceStream, job_hash};
use quelea_wire::{Credits, ErrorCode, time::unix_ms};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};

use super::{
    Services,
    calls::{End, Kept, Key, Known},
    registry::Offered,
    run::Run,
    service::{Progress, fault},
};
use crate::{
    inference::InferError,
    ledger::LedgerError,
    telemetry::metrics::{Direction, RpcResult},
};

/// How long the first frame may take: 1 MiB of input at 512 kbit/s is 17 s.
const FIRST: Duration = Duration::from_secs(30);

/// How long a frame of ours may wait for a caller that does not read.
const WRITE: Duration = Duration::from_secs(30);

/// How long the hold of a call is waited for: it comes beside the call, on another stream.
const HOLD: Duration = Duration::from_secs(5);

/// What a caller is told to wait when the ledger remembers as many of its holds as it does: they are forgotten one by one.
const HOLDS_FULL_MS: u32 = 30_000;

/// Pieces of progress that may wait for a slow caller; then the service waits.
const PROGRESS: usize = 16;

/// A call that is taken.
pub(super) struct Taken {
    pub(super) version: u16,
    price: u64,
    told: watch::Receiver<Option<End>>,
    pub(super) progress: mpsc::Receiver<Vec<u8>>,
}

/// What becomes of a call.
pub(super) enum Outcome {
    Taken(Taken),
    /// It was done before; so much is still to be paid.
    Kept {
        version: u16,
        price: u64,
        kept: Arc<Kept>,
        amount: u64,
    },
}

/// How many calls are being answered.
#[derive(Debug, Default)]
pub(super) struct Answering(AtomicUsize);

/// One of them, until it is dropped.
pub(super) struct OneAnswer<'a>(&'a AtomicUsize);

impl Answering {
    fn begin(&self) -> OneAnswer<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        OneAnswer(&self.0)
    }

    pub(super) fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for OneAnswer<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Services {
    /// Serves one stream to its end.
    pub(super) async fn serve(self: Arc<Self>, stream: ServiceStream) {
        let peer = stream.peer();
        let (read, write) = stream.split();
        let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
        let asked = match timeout(FIRST, reader.ask()).await {
            Ok(asked) => asked,
            Err(_late) => return tracing::debug!(%peer, "a stream for services, and no question on it"),
        };
        // Until the last byte is written: a node that ends has answered what it did.
        let _answering = matches!(asked, Ok(Some(Ask::Call(_)))).then(|| self.answering.begin());
        let result = match asked {
            Ok(Some(Ask::List(name))) => {
                let listed = Answer::Listed(self.registry.listed(name.as_ref()));
                said(&mut writer, &listed).await.map(|()| RpcResult::Ok)
            }
            Ok(Some(Ask::Call(call))) => {
                let answering = std::pin::pin!(self.answer(peer, *call, &mut writer));
                // Cancel, the end of the stream, or something that does not belong there: the answer is not wanted any more.
                let hearing = std::pin::pin!(reader.ask());
                match futures::future::select(answering, hearing).await {
                    Either::Left((answered, _)) => answered,
                    Either::Right((Ok(Some(Ask::Cancel) | None), _)) => Ok(RpcResult::Refused),
                    Either::Right((Ok(Some(_)), _)) => Err(FrameError::Malformed("a second question on one stream")),
                    Either::Right((Err(error), _)) => Err(error),
                }
            }
            Ok(Some(Ask::Cancel) | None) => Ok(RpcResult::Refused),
            Err(error) => Err(error),
        };
        let result = result.unwrap_or_else(|error| {
            tracing::debug!(%peer, %error, "a stream for services broke");
            if error.code().is_some() {
                self.handle.deed(peer, Deed::Invalid);
            }
            RpcResult::Error
        });
        self.telemetry.metrics.rpc("service", Direction::Inbound, result);
        // Whether the peer hears it changes nothing here.
        let _ = timeout(Duration::from_secs(1), writer.close()).await;
    }

    /// Answers one call. Dropped, the call is given up, unless somebody else waits for it.
    async fn answer(
        self: &Arc<Self>,
        peer: PeerId,
        call: Call,
        writer: &mut FrameWriter<impl AsyncWrite + Unpin>,
    ) -> Result<RpcResult, FrameError> {
        match self.take(peer, call).await {
            Err(fault) => {
                tracing::debug!(%peer, code = %fault.code, why = fault.message, "a call is refused");
                said(writer, &Answer::Error(fault)).await?;
                Ok(RpcResult::Refused)
            }
            Ok(Outcome::Kept { version, price, kept, amount }) => {
                said(writer, &Answer::Accepted { version, price }).await?;
                said(writer, &Answer::Result { amount, output: kept.output.clone() }).await?;
                Ok(RpcResult::Ok)
            }
            Ok(Outcome::Taken(mut taken)) => {
                said(writer, &Answer::Accepted { version: taken.version, price: taken.price }).await?;
                while let Some(piece) = taken.progress.recv().await {
                    said(writer, &Answer::Progress(piece)).await?;
                }
                match taken.end().await {
                    Ok(kept) => {
                        said(writer, &Answer::Result { amount: kept.amount, output: kept.output.clone() }).await?;
                        Ok(RpcResult::Ok)
                    }
                    Err(fault) => {
                        said(writer, &Answer::Error(fault)).await?;
                        Ok(RpcResult::Error)
                    }
                }
            }
        }
    }

    /// Takes a call, or says why not. This node does not pay itself.
    pub(super) async fn take(self: &Arc<Self>, peer: PeerId, call: Call) -> Result<Outcome, Fault> {
        let unknown = || fault(ErrorCode::ServiceUnknown, format!("{} is not offered here", call.name));
        let job = job_hash(&call.id, &call.name, &call.input);
        let key: Key = (peer, call.id);
        let hold = call.hold.map(HoldId);
        // What was done is answered also when it is not offered any more.
        let offered = self.registry.get(&call.name).ok_or_else(unknown)?;
        let price = if peer == self.local() { 0 } else { offered.price() };
        let version = offered.about.version;
        match self.calls.look(&key, &job, std::time::Instant::now()) {
            Some(Known::Conflict) => return Err(conflict()),
            Some(Known::Done(kept)) => {
                let amount = self.still_owed(peer, hold, &job, &kept).await?;
                return Ok(Outcome::Kept { version, price, kept, amount });
            }
            Some(Known::Running(told)) => return Ok(Outcome::Taken(Taken::beside(version, price, told))),
            Some(Known::New(..)) | None => {}
        }
        if !offered.enabled() {
            return Err(unknown());
        }
        if self.telemetry.health.report().draining {
            return Err(fault(ErrorCode::ShuttingDown, ErrorCode::ShuttingDown.meaning()));
        }
        self.fits(peer, &offered, &call, price)?;
        if let (0, Some(hold)) = (price, hold) {
            // Told of an earlier price, it has reserved what is not asked for. It takes it back, too, should ours be too early.
            let _ = self.ledger.void(peer, Side::Theirs, hold).await;
        }
        let hold = if price == 0 { None } else { Some(self.reserved(peer, hold, &job, price).await?) };
        match self.calls.begin(key, job, std::time::Instant::now()) {
            // Another stream was faster.
            Known::Running(told) => Ok(Outcome::Taken(Taken::beside(version, price, told))),
            Known::Done(kept) => {
                let amount = self.still_owed(peer, hold, &job, &kept).await?;
                Ok(Outcome::Kept { version, price, kept, amount })
            }
            Known::Conflict => Err(conflict()),
            Known::New(ends, told) => {
                let (say, progress) = mpsc::channel(PROGRESS);
                let run = Run::new(self.clone(), key, job, offered, ends, hold, price);
                tokio::spawn(run.work(call.input, call.remaining_ms, Progress(say)));
                Ok(Outcome::Taken(Taken { version, price, told, progress }))
            }
        }
    }

    /// What can be said of a call without the ledger.
    fn fits(&self, peer: PeerId, offered: &Offered, call: &Call, price: u64) -> Result<(), Fault> {
        let about = &offered.about;
        if call.version != 0 && call.version != about.version {
            let message = format!("{} is of version {} here, not {}", call.name, about.version, call.version);
            return Err(fault(ErrorCode::ServiceUnknown, message));
        }
        if call.input.len() > usize::try_from(about.input_max).unwrap_or(usize::MAX) {
            let message = format!("{} takes at most {} bytes, not {}", call.name, about.input_max, call.input.len());
            return Err(fault(ErrorCode::ServiceInput, message));
        }
        if call.remaining_ms == 0 {
            return Err(fault(ErrorCode::DeadlineExceeded, "the call's time was over when it came"));
        }
        if price > call.price {
            let message = format!("{} costs {} credits by now", call.name, Credits(price));
            return Err(fault(ErrorCode::PaymentRequired, message));
        }
        if price > 0
            && let Some(why) = self.payers.refuses(&peer, std::time::Instant::now())
        {
            return Err(fault(ErrorCode::NoCredit, why));
        }
        Ok(())
    }

    /// Waits until the hold that a call names has come, and is for this call.
    async fn reserved(&self, peer: PeerId, hold: Option<HoldId>, job: &[u8; 32], price: u64) -> Result<HoldId, Fault> {
        let required = |why: String| fault(ErrorCode::PaymentRequired, why);
        let Some(hold) = hold else {
            return Err(required(format!("the price is {} credits, and no hold pays it", Credits(price))));
        };
        let held = self.ledger.opened(peer, hold, Instant::now() + HOLD).await.map_err(|error| {
            if error == LedgerError::NoCredit("count") {
                let full = fault(ErrorCode::Overloaded, "as many holds are remembered between us as may be");
                return Fault { retry_ms: HOLDS_FULL_MS, ..full };
            }
            let code = InferError::from(error.clone()).error_code();
            // Whatever else is wrong with it, it is no hold.
            let code = if code == ErrorCode::Usage { ErrorCode::PaymentRequired } else { code };
            fault(code, error.to_string())
        })?;
        if held.job_hash != Hash(*job) {
            Err(required("the hold is for something else".into()))
        } else if held.max < price {
            Err(required(format!("the hold reserves {} credits of {}", Credits(held.max), Credits(price))))
        } else if held.expires_at <= unix_ms() {
            Err(required("the hold has expired".into()))
        } else {
            Ok(hold)
        }
    }

    /// What is to be paid for a call that was done before: nothing where its hold is settled.
    async fn still_owed(&self, peer: PeerId, hold: Option<HoldId>, job: &[u8; 32], kept: &Kept) -> Result<u64, Fault> {
        if kept.amount == 0 {
            return Ok(0);
        }
        let Some(named) = hold else { return self.reserved(peer, None, job, kept.amount).await.map(|_| kept.amount) };
        match self.ledger.hold_state(peer, Side::Theirs, named).await {
            Ok(Some(HoldState::Settled)) => Ok(0),
            Ok(_) => self.reserved(peer, hold, job, kept.amount).await.map(|_| kept.amount),
            Err(error) => Err(fault(InferError::from(error.clone()).error_code(), error.to_string())),
        }
    }
}

impl Taken {
    /// Waits for a call that another stream began.
    fn beside(version: u16, price: u64, told: watch::Receiver<Option<End>>) -> Self {
        let (_nobody, progress) = mpsc::channel(1);
        Self { version, price, told, progress }
    }

    /// Waits for what came out.
    pub(super) async fn end(&mut self) -> End {
        let end = match self.told.wait_for(Option::is_some).await {
            Ok(end) => end.clone(),
            // Whoever worked on it is gone without a word.
            Err(_gone) => None,
        };
        end.unwrap_or_else(|| Err(fault(ErrorCode::ServiceFailed, "the service stopped without a result")))
    }
}

fn conflict() -> Fault {
    fault(ErrorCode::CallConflict, "this id was used for a call of something else; draw another")
}

/// Says something, to somebody who reads.
async fn said(writer: &mut FrameWriter<impl AsyncWrite + Unpin>, answer: &Answer) -> Result<(), FrameError> {
    match timeout(WRITE, writer.answer(answer)).await {
        Ok(said) => said,
        Err(_late) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the caller does not read").into()),
    }
}
