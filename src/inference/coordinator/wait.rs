//! Waiting for results, and finding out who is to blame when none come.

use std::{collections::HashMap, time::Duration};

use libp2p::PeerId;
use quelea_shard::{
    frame::{Form, Frame, Probe, State},
    link::{Batch, LinkEnd},
};
use quelea_wire::ErrorCode;
use tokio::time::{Instant, sleep_until};

use super::{ChainSession, Expected, FIRST_EPOCH, lost_hop};
use crate::inference::{links::FromStage, types::InferError};

/// Between two times that the stages are asked how they stand, while a result is waited for.
pub(super) const PROBE_EVERY: Duration = Duration::from_secs(1);

/// How long a stage may take to say so. With the time until it is asked, silence is noticed within 2.5 s.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Why no result comes.
#[derive(Debug)]
pub(super) enum Trouble {
    /// A peer of the chain is lost: another may take its place.
    Peer {
        /// Which.
        peer: PeerId,
        /// What is said when there is no other.
        error: Box<InferError>,
    },
    /// Nothing helps.
    Fatal(InferError),
}

impl From<InferError> for Trouble {
    fn from(error: InferError) -> Self {
        Self::Fatal(error)
    }
}

impl From<Trouble> for InferError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Peer { error, .. } => *error,
            Trouble::Fatal(error) => error,
        }
    }
}

impl ChainSession {
    /// Waits for the next result, and keeps its rows. Others take the place of who is lost meanwhile.
    pub(super) async fn result(&mut self) -> Result<(), InferError> {
        let before = self.expected.len();
        while self.expected.len() >= before.max(1) {
            if let Err(trouble) = self.wait().await {
                self.recover(trouble).await?;
            }
        }
        Ok(())
    }

    async fn wait(&mut self) -> Result<(), Trouble> {
        let limit = self.spec.step_timeout;
        let give_up = Instant::now() + limit;
        let mut probe_at = Instant::now() + PROBE_EVERY.min(limit / 2);
        let mut asked: Option<Instant> = None;
        let mut states = HashMap::new();
        loop {
            let silent_at = asked.map(|at| at + PROBE_TIMEOUT).filter(|at| *at < give_up);
            tokio::select! {
                biased;
                batch = self.results.batches.recv() => return self.take(batch),
                Some((peer, event)) = self.events.recv() => match event {
                    FromStage::Frame(frame) if matches!(*frame, Frame::State(_)) => {
                        if let Frame::State(state) = *frame {
                            states.insert(peer, state);
                        }
                        if self.stages.iter().all(|stage| states.contains_key(&stage.hop.peer)) {
                            asked = None;
                        }
                    }
                    event => self.event(peer, event)?,
                },
                end = self.decode.ended() => return Err(self.link_ended(&end)),
                end = self.bulk.ended() => return Err(self.link_ended(&end)),
                () = sleep_until(probe_at), if asked.is_none() => {
                    asked = Some(Instant::now());
                    probe_at = Instant::now() + PROBE_EVERY;
                    states.clear();
                    self.probe();
                }
                () = sleep_until(silent_at.unwrap_or(give_up)), if silent_at.is_some() => {
                    return Err(self.blame(&states, limit));
                }
                () = sleep_until(give_up) => return Err(self.blame(&states, limit)),
            }
        }
    }

    /// Asks all stages how they stand.
    pub(super) fn probe(&self) {
        for stage in &self.stages {
            // A queue that is full or closed shows as silence.
            let _ = stage.control.sender.send(Probe { session: self.id, epoch: self.epoch });
        }
    }

    /// Takes rows that came back: those that are expected among them, in order. What is replayed may bring others too.
    pub(super) fn take(&mut self, batch: Option<Result<Batch, ErrorCode>>) -> Result<(), Trouble> {
        let batch = batch.ok_or_else(|| InferError::new(ErrorCode::Internal, "the session's results have ended"))?;
        let last = self.results.from;
        let batch = batch
            .map_err(|code| self.lost(last, code, &format!("sends rows that cannot be used: {}", code.meaning())))?;
        self.bytes.1 += u64::from(batch.wire_bytes().unwrap_or(0));
        let as_asked = |e: &Expected| (e.pos, e.rows) == (batch.pos, batch.rows);
        if self.epoch == FIRST_EPOCH && !self.expected.front().is_some_and(as_asked) {
            let what = format!("sends a result that was not asked for ({} rows at {})", batch.rows, batch.pos);
            return Err(self.lost(last, ErrorCode::BadPosition, &what));
        }
        // Rows before those that are waited for count as they came first.
        let wanted = self.wanted_from();
        if let Some(trust) = self.trust.as_ref().filter(|_| batch.pos <= wanted && batch.form != Form::Logits) {
            trust.received(batch.pos, batch.rows, &batch.data);
            trust.trouble()?;
        }
        // What is replayed is cut differently, and may bring more than is asked for.
        let width = usize::try_from(self.spec.back().width).unwrap_or(usize::MAX).max(1);
        while let Some(expected) = self.expected.front_mut() {
            let have = u32::try_from(expected.data.len() / width).unwrap_or(u32::MAX);
            let Some(skip) = expected.pos.saturating_add(have).checked_sub(batch.pos) else { break };
            let skip = usize::try_from(skip).unwrap_or(usize::MAX).saturating_mul(width);
            let whole = usize::from(expected.rows).saturating_mul(width);
            let new = batch.data.get(skip..).unwrap_or_default();
            let missing = whole.saturating_sub(expected.data.len()).min(new.len());
            expected.data.extend_from_slice(new.get(..missing).unwrap_or_default());
            if expected.data.len() < whole {
                break;
            }
            let end = expected.pos.saturating_add(u32::from(expected.rows));
            if self.spec.all_rows {
                self.last.append(&mut expected.data);
            } else {
                self.last = std::mem::take(&mut expected.data);
            }
            self.paying.back(expected.kind, expected.given);
            self.expected.pop_front();
            if let Some(trust) = &self.trust {
                trust.computed(end, self.spec.step_timeout);
            }
        }
        Ok(())
    }

    /// Something a stage said while rows were expected. What somebody says who is not of the chain any more counts for
    /// nothing.
    pub(super) fn event(&mut self, peer: PeerId, event: FromStage) -> Result<(), Trouble> {
        if matches!(event, FromStage::Judged) {
            return self.trust.as_ref().map_or(Ok(()), |trust| trust.trouble());
        }
        if !self.stages.iter().any(|stage| stage.hop.peer == peer) {
            return Ok(());
        }
        let frame = match event {
            FromStage::Frame(frame) => *frame,
            FromStage::Judged => return Ok(()),
            FromStage::Lost(end) => return Err(self.lost(peer, ErrorCode::HopLost, &format!("is gone: {end}"))),
        };
        match frame {
            Frame::Fault(fault) => {
                let code = believed(fault.code);
                let detail = with_detail(code, &fault.detail);
                match fault.about {
                    Some(about) if about != peer => {
                        let from = self.name(peer);
                        Err(self.lost(about, code, &format!("is lost to {from}: {detail}")))
                    }
                    _ => Err(self.lost(peer, code, &format!("reports: {detail}"))),
                }
            }
            Frame::Stalled(stalled) if stalled.epoch == self.epoch => {
                let (code, from) = (believed(stalled.code), self.name(peer));
                Err(self.lost(stalled.about, code, &format!("is lost to {from}: {}", code.meaning())))
            }
            Frame::Receipt(receipt) => {
                self.paying.receipt(peer, &receipt.envelope);
                Ok(())
            }
            Frame::Refuse(refuse) => {
                let code = believed(refuse.code);
                let detail = with_detail(code, &refuse.detail);
                let error = self.about(peer, code, &format!("refuses the session: {detail}"));
                Err(Trouble::Peer { peer, error: Box::new(error.retry_after(refuse.retry_after_ms)) })
            }
            Frame::Closed(closed) => {
                if let Some(stage) = self.stages.iter_mut().find(|stage| stage.hop.peer == peer) {
                    stage.totals = Some(closed.totals);
                }
                if self.closed {
                    Ok(())
                } else {
                    Err(self.lost(peer, ErrorCode::HopLost, "closed the session unasked"))
                }
            }
            _ => Ok(()),
        }
    }

    /// No result came in time. Whom to name: the first stage that does not answer; else the first that holds rows back;
    /// else the first that rows did not reach.
    pub(super) fn blame(&self, states: &HashMap<PeerId, State>, limit: Duration) -> Trouble {
        let waited = format!("within {:.1} s", limit.as_secs_f64());
        let mut given = self.sent;
        let mut held_back = None;
        for stage in &self.stages {
            let peer = stage.hop.peer;
            let Some(state) = states.get(&peer) else {
                return self.lost(peer, ErrorCode::HopSilent, "does not answer");
            };
            if held_back.is_none() && state.totals.rows_in > state.totals.rows_out {
                held_back = Some((peer, format!("has not computed its rows {waited}")));
            } else if held_back.is_none() && state.pos < given {
                held_back = Some((peer, format!("has not received its rows {waited}")));
            }
            given = state.pos;
        }
        let none = || (self.results.from, format!("gave no result back {waited}"));
        let (peer, what) = held_back.unwrap_or_else(none);
        self.lost(peer, ErrorCode::DeadlineExceeded, &what)
    }

    pub(super) fn link_ended(&self, end: &LinkEnd) -> Trouble {
        self.first_hop_lost(end.code().unwrap_or(ErrorCode::HopLost), &end.to_string())
    }

    /// What the last stage gave is none of the model's logits.
    pub(crate) fn last_lies(&self, code: ErrorCode) -> InferError {
        self.about(self.results.from, code, &format!("gives logits that cannot be: {}", code.meaning()))
    }

    /// The coordinator's own link to the first stage is gone.
    pub(super) fn first_hop_lost(&self, code: ErrorCode, why: &str) -> Trouble {
        let Some(first) = self.stages.first() else { return InferError::new(code, why).into() };
        let mut error = lost_hop(&first.hop, why);
        error.code = code.to_string();
        Trouble::Peer { peer: first.hop.peer, error: Box::new(error) }
    }

    /// `peer` is lost, naming the layers it has in this chain.
    pub(super) fn lost(&self, peer: PeerId, code: ErrorCode, what: &str) -> Trouble {
        Trouble::Peer { peer, error: Box::new(self.about(peer, code, what)) }
    }

    /// An error about `peer`, naming the layers it has in this chain.
    pub(super) fn about(&self, peer: PeerId, code: ErrorCode, what: &str) -> InferError {
        InferError::new(code, format!("{} {what}", self.name(peer))).about(peer)
    }

    fn name(&self, peer: PeerId) -> String {
        match self.stages.iter().find(|stage| stage.hop.peer == peer) {
            Some(stage) => format!("peer {peer} (layers {})", stage.hop.span),
            None => format!("peer {peer}"),
        }
    }
}

/// A stage may only speak of routing, the protocol, the model, its own load and its price. Anything else (that the caller cancelled,
/// say, or may not ask) is not its to decide.
fn believed(code: ErrorCode) -> ErrorCode {
    match code {
        ErrorCode::Overloaded | ErrorCode::ShuttingDown => code,
        code if (2000..5000).contains(&code.to_u16()) => code,
        code if (7000..8000).contains(&code.to_u16()) => code,
        _ => ErrorCode::HopLost,
    }
}

fn with_detail(code: ErrorCode, detail: &str) -> String {
    // A stranger's words: nothing in them may act on a terminal.
    let detail: String = detail.chars().filter(|c| !c.is_control()).collect();
    if detail.is_empty() { code.meaning().into() } else { format!("{} ({detail})", code.meaning()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_cannot_speak_for_the_caller() {
        assert_eq!(believed(ErrorCode::Cancelled), ErrorCode::HopLost);
        assert_eq!(believed(ErrorCode::Unauthorized), ErrorCode::HopLost);
        assert_eq!(believed(ErrorCode::NoKvPages), ErrorCode::NoKvPages);
        assert_eq!(believed(ErrorCode::ShuttingDown), ErrorCode::ShuttingDown);
    }

    #[test]
    fn a_stages_words_cannot_act_on_a_terminal() {
        assert_eq!(
            with_detail(ErrorCode::EngineFailed, "\u{1b}[2Joh no"),
            format!("{} ([2Joh no)", ErrorCode::EngineFailed.meaning())
        );
    }
}
