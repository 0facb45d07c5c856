//! Calls of this node: a hold at the provider, the call, and one note for its result.

use std::{sync::Arc, time::Duration};

use futures::AsyncReadExt as _;
use libp2p::PeerId;
use quelea_behaviours::conduct::Deed;
use quelea_ledger::{
    Hash, HoldId,
    book::{HoldState, HoldTerms, Refusal, Side},
};
use quelea_service::{
    Answer, Ask, Call, CallId, Fault, FrameError, FrameReader, FrameWriter, Listed, MAX_INPUT, Name, job_hash,
};
use quelea_wire::{Credits, ErrorCode, time::unix_ms};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

use super::Services;
use crate::{
    inference::InferError,
    ledger::LedgerError,
    swarm::{ConnectError, OpenStreamError},
    telemetry::metrics::{Direction, RpcResult},
};

/// How much longer than the call a hold may be paid, so that the end of the one is not that of the other.
const AFTER: Duration = Duration::from_secs(60);

/// The longest that a call may take: its hold ends within the hour that holds may last.
const LONGEST: Duration = Duration::from_secs(50 * 60);

/// How long a peer may take to sync ledgers.
const SYNC: Duration = Duration::from_secs(10);

/// How long a peer may take to say what it offers.
const LIST: Duration = Duration::from_secs(5);

/// How long the note is waited for before the result is handed on. It is made all the same.
const NOTE: Duration = Duration::from_secs(5);

/// How long a peer that was lost is given to come back, for the same call to be asked again.
const BACK: Duration = Duration::from_secs(3);

/// Holds that are tried for one call at one peer: earlier ones were taken back.
const HOLDS: u8 = 8;

/// Bytes of progress that a call may bring in all.
const PROGRESS_MAX: usize = 8 << 20;

/// A call to be made.
#[derive(Debug, Clone)]
pub(crate) struct CallRequest {
    pub(crate) name: Name,
    pub(crate) input: Vec<u8>,
    /// At whom.
    pub(crate) peer: PeerId,
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

/// What a call came to.
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

/// Why a try brought nothing.
enum Failed {
    /// The line broke: the same call may be asked again.
    Lost(InferError),
    /// The provider, or this node, says no.
    Refused(InferError),
}

/// A hold that is taken back unless it is paid.
struct Reserved {
    services: Arc<Services>,
    peer: PeerId,
    hold: Option<HoldId>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let Some(hold) = self.hold.take() else { return };
        let (ledger, peer) = (self.services.ledger.clone(), self.peer);
        tokio::spawn(async move {
            // One that was paid before stays so.
            if let Err(error) = ledger.void(peer, Side::Mine, hold).await {
                tracing::debug!(%peer, %error, "a hold is not taken back");
            }
        });
    }
}

impl Services {
    /// Asks a peer what it offers: all, or one service.
    ///
    /// # Errors
    /// When it is not reached, or does not answer.
    pub(crate) async fn list(&self, peer: PeerId, name: Option<Name>) -> Result<Vec<Listed>, InferError> {
        let listed = async {
            self.reach(peer).await?;
            let (mut reader, mut writer) = self.open(peer).await.map_err(|(error, _)| error)?;
            writer.ask(&Ask::List(name)).await.map_err(|error| lost(peer, &error))?;
            match reader.answer().await {
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
        let began = Instant::now();
        let called = self.attempt(request, began, events).await;
        let result = match &called {
            Ok(_) => RpcResult::Ok,
            Err(error) if error.error_code() == ErrorCode::DeadlineExceeded => RpcResult::Timeout,
            Err(_) => RpcResult::Error,
        };
        self.telemetry.metrics.rpc("service", Direction::Outbound, result);
        called
    }

    async fn attempt(
        self: &Arc<Self>,
        request: &CallRequest,
        began: Instant,
        events: &mpsc::Sender<CallEvent>,
    ) -> Result<CallDone, InferError> {
        let CallRequest { name, peer, .. } = request;
        let peer = *peer;
        if request.input.len() > MAX_INPUT {
            let message = format!("{} bytes go in, more than {MAX_INPUT}", request.input.len());
            return Err(InferError::new(ErrorCode::ServiceInput, message));
        }
        if peer == self.local() {
            let message = format!("{peer} is this node: it calls its own services without the swarm");
            return Err(InferError::new(ErrorCode::Usage, message).hint("name another peer"));
        }
        let deadline = began + request.timeout.min(LONGEST);
        let listed = self.list(peer, Some(name.clone())).await?;
        let Some(listed) = listed.into_iter().find(|listed| listed.name == *name) else {
            let message = format!("peer {peer} offers no service {name}");
            return Err(InferError::new(ErrorCode::ServiceUnknown, message)
                .hint(format!("'quelea service list --peer {peer}' shows what it offers"))
                .about(peer));
        };
        if let Some(most) = request.max_price.filter(|most| listed.price > *most) {
            let (asked, most) = (Credits(listed.price), Credits(most));
            let message = format!("peer {peer} asks {asked} credits for {name}, and at most {most} are given");
            return Err(InferError::new(ErrorCode::PriceTooHigh, message).about(peer));
        }
        let reserved = self.reserve(request, listed.price, deadline).await?;
        let mut again = true;
        loop {
            let tried = timeout_at(deadline, self.ask(request, &listed, &reserved, deadline, events)).await;
            match tried {
                Ok(Ok((version, amount, output))) => return Ok(self.pay(reserved, version, amount, output).await),
                Ok(Err(Failed::Lost(error))) if again => {
                    again = false;
                    tracing::debug!(%peer, %error, "a call was lost; it is asked again");
                    if !matches!(timeout(BACK, self.reach(peer)).await, Ok(Ok(()))) {
                        return Err(error);
                    }
                }
                Ok(Err(Failed::Lost(error) | Failed::Refused(error))) => return Err(error),
                Err(_late) => {
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

    /// A stream to a peer; whether it is there at all is the second of an error.
    async fn open(
        &self,
        peer: PeerId,
    ) -> Result<
        (FrameReader<impl futures::AsyncRead + Unpin + use<>>, FrameWriter<impl futures::AsyncWrite + Unpin + use<>>),
        (InferError, bool),
    > {
        let stream = self.handle.open_service(peer).await.map_err(|error| {
            let there = matches!(error, OpenStreamError::Refused { .. });
            (InferError::new(ErrorCode::HopLost, error.to_string()).about(peer), there)
        })?;
        let (read, write) = stream.split();
        Ok((FrameReader::new(read), FrameWriter::new(write)))
    }

    /// Reserves the price of a call at its provider.
    async fn reserve(
        self: &Arc<Self>,
        request: &CallRequest,
        price: u64,
        deadline: Instant,
    ) -> Result<Reserved, InferError> {
        let peer = request.peer;
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

    /// Asks once: version, what is asked for it, and what came out.
    async fn ask(
        self: &Arc<Self>,
        request: &CallRequest,
        listed: &Listed,
        reserved: &Reserved,
        deadline: Instant,
        events: &mpsc::Sender<CallEvent>,
    ) -> Result<(u16, u64, Vec<u8>), Failed> {
        let peer = request.peer;
        let (mut reader, mut writer) =
            self.open(peer).await.map_err(|(e, there)| if there { Failed::Refused(e) } else { Failed::Lost(e) })?;
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
        writer.ask(&Ask::Call(Box::new(call))).await.map_err(gone)?;
        let (mut accepted, mut progress) = (None, 0_usize);
        loop {
            let answer = match reader.answer().await {
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

    /// A fault is only paid where the call used up what it may use.
    async fn fault(&self, reserved: &Reserved, listed: &Listed, fault: Fault) -> InferError {
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
    async fn pay(self: &Arc<Self>, mut reserved: Reserved, version: u16, amount: u64, output: Vec<u8>) -> CallDone {
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
