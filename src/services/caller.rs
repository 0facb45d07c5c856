//! Calls of this node: a hold at the provider, the call, and one note for its result.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::{
    AsyncReadExt as _,
    io::{ReadHalf, WriteHalf},
};
use libp2p::PeerId;
use quelea_behaviours::conduct::Deed;
use quelea_ledger::Hash;
use quelea_service::{
    Answer, Ask, Call, CallId, Fault, FrameError, FrameReader, FrameWriter, Listed, MAX_INPUT, Name, ServiceStream,
};
use quelea_wire::{Credits, ErrorCode};
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, timeout, timeout_at},
};

mod here;
mod paying;

use self::paying::Reserved;
use super::Services;
use crate::{
    inference::InferError,
    swarm::{ConnectError, OpenStreamError},
    telemetry::metrics::{Direction, RpcResult},
};

/// The longest that a call may take: its hold ends within the hour that holds may last.
const LONGEST: Duration = Duration::from_secs(50 * 60);

/// How long a peer may take to say what it offers.
const LIST: Duration = Duration::from_secs(5);

/// How long a peer that was lost is given to come back, for the same call to be asked again.
const BACK: Duration = Duration::from_secs(3);

/// Providers that are tried for one call.
const TRIES: usize = 3;

/// Bytes of progress that a call may bring in all.
const PROGRESS_MAX: usize = 8 << 20;

/// A call to be made.
#[derive(Debug, Clone)]
pub(crate) struct CallRequest {
    pub(crate) name: Name,
    pub(crate) input: Vec<u8>,
    /// At whom; at the best that is found, without.
    pub(crate) peer: Option<PeerId>,
    /// The most that it may cost, in micro-credits.
    pub(crate) max_price: Option<u64>,
    /// How long it may take.
    pub(crate) timeout: Duration,
    /// Its id; the same for a call that is repeated.
    pub(crate) id: CallId,
}

/// What happens to a call.
#[derive(Debug)]
pub(crate) enum CallEvent {
    Accepted { peer: PeerId, version: u16, price: u64 },
    Progress(Vec<u8>),
}

/// What a call of this node came to.
#[derive(Debug, Clone)]
pub(crate) struct CallDone {
    pub(crate) peer: PeerId,
    pub(crate) version: u16,
    pub(crate) output: Vec<u8>,
    /// What it cost, in micro-credits: 0 where it was paid before.
    pub(crate) paid: u64,
    /// The note that pays it; nothing where it is yet to be signed.
    pub(crate) note: Option<Hash>,
}

impl CallDone {
    /// As commands and the API show it.
    pub(crate) fn document(&self, request: &CallRequest) -> Value {
        let mut result = json!({
            "schema": "quelea.service_call/v1",
            "call_id": request.id.to_string(),
            "name": request.name.as_str(),
            "version": self.version,
            "peer_id": self.peer.to_string(),
            "paid": self.paid,
            "credits": Credits(self.paid).to_string(),
            "note": self.note.map(|note| hex::encode(note.0)),
        });
        match std::str::from_utf8(&self.output) {
            Ok(text) => result["output"] = text.into(),
            Err(_) => result["output_hex"] = hex::encode(&self.output).into(),
        }
        result
    }
}

/// A stream of a call of ours. Dropped before its last word, it ends the call.
struct Line {
    reader: FrameReader<ReadHalf<ServiceStream>>,
    writer: FrameWriter<WriteHalf<ServiceStream>>,
    _place: OwnedSemaphorePermit,
}

/// Why a try brought nothing.
enum Failed {
    /// The line broke: the same call may be asked again.
    Lost(InferError),
    /// The provider, or this node, says no.
    Refused(InferError),
}

impl Services {
    /// Asks a peer what it offers: all, or one service.
    ///
    /// # Errors
    /// When it is not reached, or does not answer.
    pub(crate) async fn list(&self, peer: PeerId, name: Option<Name>) -> Result<Vec<Listed>, InferError> {
        let listed = async {
            self.reach(peer).await?;
            let mut line = self.open(peer).await.map_err(|(error, _)| error)?;
            line.writer.ask(&Ask::List(name)).await.map_err(|error| lost(peer, &error))?;
            match line.reader.answer().await {
                Ok(Some(Answer::Listed(listed))) => Ok(listed),
                Ok(Some(Answer::Error(fault))) => Err(refused(peer, &fault)),
                Ok(other) => Err(self.rubbish(peer, &format!("{} to a question for a list", kind(other.as_ref())))),
                Err(error) => Err(self.broken(peer, &error)),
            }
        };
        let listed = timeout(LIST, listed).await.unwrap_or_else(|_| {
            let message = format!("peer {peer} did not say what it offers within {} s", LIST.as_secs());
            Err(InferError::new(ErrorCode::HopSilent, message).about(peer))
        });
        let result = if listed.is_ok() { RpcResult::Ok } else { RpcResult::Error };
        self.telemetry.metrics.rpc("service", Direction::Outbound, result);
        listed
    }

    /// Calls a service, and pays for it. What happens meanwhile goes to `events`. Dropped, the call is given up.
    ///
    /// # Errors
    /// When it brings no result. What is paid all the same is in the message.
    pub(crate) async fn call(
        self: &Arc<Self>,
        request: &CallRequest,
        events: &mpsc::Sender<CallEvent>,
    ) -> Result<CallDone, InferError> {
        let called = self.at_best(request, events).await;
        let result = match &called {
            Ok(_) => RpcResult::Ok,
            Err(error) if error.error_code() == ErrorCode::DeadlineExceeded => RpcResult::Timeout,
            Err(_) => RpcResult::Error,
        };
        self.telemetry.metrics.rpc("service", Direction::Outbound, result);
        called
    }

    /// Calls the provider that is named, or those that are found, the best first, until one answers; this node, where
    /// nobody else offers it.
    async fn at_best(
        self: &Arc<Self>,
        request: &CallRequest,
        events: &mpsc::Sender<CallEvent>,
    ) -> Result<CallDone, InferError> {
        if request.input.len() > MAX_INPUT {
            let message = format!("{} bytes go in, more than {MAX_INPUT}", request.input.len());
            return Err(InferError::new(ErrorCode::ServiceInput, message));
        }
        let deadline = Instant::now() + request.timeout.min(LONGEST);
        if request.peer == Some(self.local()) {
            return self.call_here(request, deadline, events).await;
        }
        let offers = match request.peer {
            Some(peer) => vec![(peer, self.offered_by(peer, request).await?)],
            None => {
                let within = deadline.saturating_duration_since(Instant::now());
                let offers = match self.choose(&request.name, request.max_price, within).await {
                    Err(_nobody) if self.has(&request.name) => return self.call_here(request, deadline, events).await,
                    offers => offers?,
                };
                offers.into_iter().map(|offer| (offer.peer, offer.listed)).collect()
            }
        };
        let mut failed = None;
        let mut anew = request.peer.is_some();
        let mut offers: VecDeque<_> = offers.into_iter().take(TRIES).collect();
        while let Some((peer, listed)) = offers.pop_front() {
            let began = std::time::Instant::now();
            match self.attempt(request, peer, &listed, deadline, events).await {
                Ok(done) => {
                    self.experience.note(peer, &request.name, Some(began.elapsed()), std::time::Instant::now());
                    return Ok(done);
                }
                Err(error) => {
                    self.failed_at(peer, &request.name, &error);
                    // What it said a moment ago is not so any more: it is asked again, once.
                    if error.error_code() == ErrorCode::PaymentRequired && std::mem::take(&mut anew) {
                        offers.push_back((peer, self.offered_by(peer, request).await?));
                        continue;
                    }
                    let elsewhere = error.retryable && Instant::now() < deadline;
                    if request.peer.is_some() || !elsewhere {
                        return Err(error);
                    }
                    tracing::debug!(%peer, %error, "a call failed; the next provider is called");
                    failed = Some(error);
                }
            }
        }
        Err(failed.unwrap_or_else(|| InferError::new(ErrorCode::NotFound, "nobody is left to be called")))
    }

    /// What becomes of a failure: some are the provider's.
    fn failed_at(&self, peer: PeerId, name: &Name, error: &InferError) {
        let now = std::time::Instant::now();
        match error.error_code() {
            ErrorCode::PaymentRequired | ErrorCode::ServiceUnknown => self.experience.forget(&peer, name),
            ErrorCode::HopLost
            | ErrorCode::HopSilent
            | ErrorCode::DialFailed
            | ErrorCode::DeadlineExceeded
            | ErrorCode::Overloaded
            | ErrorCode::ServiceFailed
            | ErrorCode::UpstreamFailed
            | ErrorCode::ServiceAnswer => self.experience.note(peer, name, None, now),
            _ => {}
        }
    }

    /// What the provider that is named asks, as it said a moment ago, or says now.
    async fn offered_by(&self, peer: PeerId, request: &CallRequest) -> Result<Listed, InferError> {
        let name = &request.name;
        let now = std::time::Instant::now();
        let listed = match self.experience.listed(&peer, name, now) {
            Some(listed) => listed,
            None => {
                let listed = self.list(peer, Some(name.clone())).await?;
                let Some(listed) = listed.into_iter().find(|listed| listed.name == *name) else {
                    let message = format!("peer {peer} offers no service {name}");
                    return Err(InferError::new(ErrorCode::ServiceUnknown, message)
                        .hint(format!("'quelea service list --peer {peer}' shows what it offers"))
                        .about(peer));
                };
                self.experience.note_list(peer, &listed, now);
                listed
            }
        };
        if let Some(most) = request.max_price.filter(|most| listed.price > *most) {
            let (asked, most) = (Credits(listed.price), Credits(most));
            let message = format!("peer {peer} asks {asked} credits for {name}, and at most {most} are given");
            return Err(InferError::new(ErrorCode::PriceTooHigh, message).about(peer));
        }
        Ok(listed)
    }

    async fn attempt(
        self: &Arc<Self>,
        request: &CallRequest,
        peer: PeerId,
        listed: &Listed,
        deadline: Instant,
        events: &mpsc::Sender<CallEvent>,
    ) -> Result<CallDone, InferError> {
        self.reach(peer).await?;
        let reserved = self.reserve(request, peer, listed.price, deadline).await?;
        let mut lost = None;
        loop {
            let tried = timeout_at(deadline, self.ask(request, listed, &reserved, deadline, events)).await;
            match tried {
                Ok(Ok((version, amount, output))) => return Ok(self.pay(reserved, version, amount, output).await),
                Ok(Err(Failed::Lost(error))) if lost.is_none() => {
                    tracing::debug!(%peer, %error, "a call was lost; it is asked again");
                    if !matches!(timeout(BACK, self.reach(peer)).await, Ok(Ok(()))) {
                        return Err(error);
                    }
                    lost = Some(error);
                }
                Ok(Err(Failed::Lost(error) | Failed::Refused(error))) => {
                    // That it is not there any more was said better before.
                    return Err(lost.filter(|_| error.error_code() == ErrorCode::HopLost).unwrap_or(error));
                }
                Err(_late) => {
                    let name = &request.name;
                    let message = format!("peer {peer} did not finish {name} in time; nothing is paid");
                    return Err(InferError::new(ErrorCode::DeadlineExceeded, message).about(peer));
                }
            }
        }
    }

    /// A connection to a peer.
    async fn reach(&self, peer: PeerId) -> Result<(), InferError> {
        self.handle.connect(peer, Vec::new()).await.map_err(|error| {
            let code = match error {
                ConnectError::NoAddresses { .. } => ErrorCode::PeerUnknown,
                _ => ErrorCode::DialFailed,
            };
            InferError::new(code, error.to_string()).about(peer)
        })
    }

    /// A stream to a peer, when it is our turn; whether the peer is there at all is the second of an error.
    async fn open(&self, peer: PeerId) -> Result<Line, (InferError, bool)> {
        let place = self.lanes.turn(peer).await;
        let stream = self.handle.open_service(peer).await.map_err(|error| {
            let there = matches!(error, OpenStreamError::Refused { .. });
            (InferError::new(ErrorCode::HopLost, error.to_string()).about(peer), there)
        })?;
        let (read, write) = stream.split();
        Ok(Line { reader: FrameReader::new(read), writer: FrameWriter::new(write), _place: place })
    }

    /// Asks once: version, what is asked for it, and what came out.
    async fn ask(
        self: &Arc<Self>,
        request: &CallRequest,
        listed: &Listed,
        reserved: &Reserved,
        deadline: Instant,
        events: &mpsc::Sender<CallEvent>,
    ) -> Result<(u16, u64, Vec<u8>), Failed> {
        let peer = reserved.peer;
        let opened = self.open(peer).await;
        let mut line = opened.map_err(|(e, there)| if there { Failed::Refused(e) } else { Failed::Lost(e) })?;
        let remaining = deadline.saturating_duration_since(Instant::now()).as_millis();
        let call = Call {
            id: request.id,
            hold: reserved.hold.map(|hold| hold.0),
            price: listed.price,
            remaining_ms: u32::try_from(remaining).unwrap_or(u32::MAX),
            version: listed.version,
            name: request.name.clone(),
            input: request.input.clone(),
        };
        let gone = |error: FrameError| Failed::Lost(lost(peer, &error));
        line.writer.ask(&Ask::Call(Box::new(call))).await.map_err(gone)?;
        let (mut accepted, mut progress) = (None, 0_usize);
        loop {
            let answer = match line.reader.answer().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(gone(FrameError::Cut)),
                Err(error) if error.code().is_none() => return Err(gone(error)),
                Err(error) => return Err(Failed::Refused(self.broken(peer, &error))),
            };
            match (answer, accepted) {
                (Answer::Accepted { version, price }, None) if price <= listed.price => {
                    accepted = Some(version);
                    let _ = events.send(CallEvent::Accepted { peer, version, price }).await;
                }
                (Answer::Progress(bytes), Some(_)) if progress.saturating_add(bytes.len()) <= PROGRESS_MAX => {
                    progress = progress.saturating_add(bytes.len());
                    let _ = events.send(CallEvent::Progress(bytes)).await;
                }
                (Answer::Result { amount, output }, Some(version)) if amount <= listed.price => {
                    return Ok((version, amount, output));
                }
                (Answer::Error(fault), _) => return Err(Failed::Refused(self.fault(reserved, listed, fault).await)),
                (other, _) => {
                    let what = format!("{} out of turn, or beyond what was agreed", kind(Some(&other)));
                    return Err(Failed::Refused(self.rubbish(peer, &what)));
                }
            }
        }
    }

    /// What a peer sent is no answer.
    fn rubbish(&self, peer: PeerId, what: &str) -> InferError {
        self.handle.deed(peer, Deed::Violation);
        let message = format!("peer {peer} answered {what}; nothing is paid");
        InferError::new(ErrorCode::ServiceAnswer, message).about(peer)
    }

    /// A stream broke, or what came on it cannot be read.
    fn broken(&self, peer: PeerId, error: &FrameError) -> InferError {
        if error.code().is_none() {
            return lost(peer, error);
        }
        self.handle.deed(peer, Deed::Invalid);
        let message = format!("peer {peer} sent {error}; nothing is paid");
        InferError::new(ErrorCode::ServiceAnswer, message).about(peer)
    }
}

fn lost(peer: PeerId, error: &FrameError) -> InferError {
    InferError::new(ErrorCode::HopLost, format!("peer {peer} was lost during a call: {error}"))
        .hint("a repeated call with the same --call-id is paid once")
        .about(peer)
}

/// What a peer said, in our words and its.
fn refused(peer: PeerId, fault: &Fault) -> InferError {
    let Fault { code, message, retry_ms, .. } = fault;
    let said = if message.is_empty() { code.meaning() } else { message };
    let mut error = InferError::new(*code, format!("peer {peer}: {said}")).about(peer);
    if *retry_ms > 0 {
        error = error.retry_after(*retry_ms).hint(format!("call again in {:.1} s", f64::from(*retry_ms) / 1e3));
    }
    error
}

fn kind(answer: Option<&Answer>) -> &'static str {
    match answer {
        None => "nothing",
        Some(Answer::Accepted { .. }) => "'accepted'",
        Some(Answer::Progress(_)) => "progress",
        Some(Answer::Result { .. }) => "a result",
        Some(Answer::Error(_)) => "an error",
        Some(Answer::Listed(_)) => "a list",
    }
}
