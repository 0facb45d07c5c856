//! Waiting for results, and finding out who is to blame when none come.

use std::{collections::HashMap, time::Duration};

use libp2p::PeerId;
use quelea_shard::{
    frame::{Frame, Probe, State},
    link::{Batch, LinkEnd},
};
use quelea_wire::ErrorCode;
use tokio::time::{Instant, sleep_until};

use super::{ChainSession, Expected, lost_hop};
use crate::inference::{links::FromStage, types::InferError};

/// The part of a step's time before its end at which the stages are asked how they stand: a quarter, at most a second.
const PROBE_SHARE: u32 = 4;
const PROBE_MAX: Duration = Duration::from_secs(1);

impl ChainSession {
    /// Waits for the next result, and keeps its rows.
    pub(super) async fn result(&mut self) -> Result<(), InferError> {
        let limit = self.spec.step_timeout;
        let give_up = Instant::now() + limit;
        let probe_at = give_up - (limit / PROBE_SHARE).min(PROBE_MAX);
        let mut states = HashMap::new();
        let mut asked = false;
        loop {
            tokio::select! {
                biased;
                batch = self.results.batches.recv() => return self.take(batch),
                Some((peer, event)) = self.events.recv() => match event {
                    FromStage::Frame(frame) if matches!(*frame, Frame::State(_)) => {
                        if let Frame::State(state) = *frame {
                            states.insert(peer, state);
                        }
                    }
                    event => self.event(peer, event)?,
                },
                end = self.decode.ended() => return Err(self.link_ended(&end)),
                end = self.bulk.ended() => return Err(self.link_ended(&end)),
                () = sleep_until(probe_at), if !asked => {
                    asked = true;
                    for stage in &self.stages {
                        // A queue that is full or closed shows as silence.
                        let _ = stage.control.sender.send(Probe { session: self.id, epoch: self.epoch });
                    }
                }
                () = sleep_until(give_up) => return Err(self.blame(&states, limit)),
            }
        }
    }

    /// Checks that a result is the one that comes next.
    fn take(&mut self, batch: Option<Result<Batch, ErrorCode>>) -> Result<(), InferError> {
        let batch = batch.ok_or_else(|| InferError::new(ErrorCode::Internal, "the session's results have ended"))?;
        let last = self.results.from;
        let batch = batch
            .map_err(|code| self.about(last, code, &format!("sends rows that cannot be used: {}", code.meaning())))?;
        let came = Expected { pos: batch.pos, rows: batch.rows };
        if self.expected.pop_front() != Some(came) {
            let what = format!("sends a result that was not asked for ({} rows at {})", batch.rows, batch.pos);
            return Err(self.about(last, ErrorCode::BadPosition, &what));
        }
        self.last = batch.data;
        Ok(())
    }

    /// Something a stage said while rows were expected.
    pub(super) fn event(&mut self, peer: PeerId, event: FromStage) -> Result<(), InferError> {
        let frame = match event {
            FromStage::Frame(frame) => *frame,
            FromStage::Lost(end) => return Err(self.about(peer, ErrorCode::HopLost, &format!("is gone: {end}"))),
        };
        match frame {
            Frame::Fault(fault) => {
                let code = believed(fault.code);
                let detail = with_detail(code, &fault.detail);
                match fault.about {
                    Some(about) if about != peer => {
                        let from = self.name(peer);
                        Err(self.about(about, code, &format!("is lost to {from}: {detail}")))
                    }
                    _ => Err(self.about(peer, code, &format!("reports: {detail}"))),
                }
            }
            Frame::Refuse(refuse) => {
                let code = believed(refuse.code);
                let detail = with_detail(code, &refuse.detail);
                Err(self.about(peer, code, &format!("refuses the session: {detail}")))
            }
            Frame::Closed(closed) => {
                if let Some(stage) = self.stages.iter_mut().find(|stage| stage.hop.peer == peer) {
                    stage.totals = Some(closed.totals);
                }
                if self.closed {
                    Ok(())
                } else {
                    Err(self.about(peer, ErrorCode::HopLost, "closed the session unasked"))
                }
            }
            _ => Ok(()),
        }
    }

    /// No result came in time. Whom to name: the first stage that does not answer; else the first that holds rows back;
    /// else the first that rows did not reach.
    fn blame(&self, states: &HashMap<PeerId, State>, limit: Duration) -> InferError {
        let waited = format!("within {:.1} s", limit.as_secs_f64());
        let mut given = self.rows_sent;
        let mut held_back = None;
        for stage in &self.stages {
            let peer = stage.hop.peer;
            let Some(state) = states.get(&peer) else {
                return self.about(peer, ErrorCode::HopSilent, &format!("does not answer {waited}"));
            };
            if held_back.is_none() && state.totals.rows_in > state.totals.rows_out {
                held_back = Some((peer, format!("has not computed its rows {waited}")));
            } else if held_back.is_none() && state.totals.rows_in < given {
                held_back = Some((peer, format!("has not received its rows {waited}")));
            }
            given = state.totals.rows_out;
        }
        let none = || (self.results.from, format!("gave no result back {waited}"));
        let (peer, what) = held_back.unwrap_or_else(none);
        self.about(peer, ErrorCode::DeadlineExceeded, &what)
    }

    fn link_ended(&self, end: &LinkEnd) -> InferError {
        self.first_hop_lost(end.code().unwrap_or(ErrorCode::HopLost), &end.to_string())
    }

    /// The coordinator's own link to the first stage is gone.
    pub(super) fn first_hop_lost(&self, code: ErrorCode, why: &str) -> InferError {
        let lost = self.stages.first().map(|stage| lost_hop(&stage.hop, why));
        let mut error = lost.unwrap_or_else(|| InferError::new(code, why));
        error.code = code.to_string();
        error
    }

    /// An error about `peer`, naming the layers it has in this chain.
    pub(super) fn about(&self, peer: PeerId, code: ErrorCode, what: &str) -> InferError {
        InferError::new(code, format!("{} {what}", self.name(peer)))
    }

    fn name(&self, peer: PeerId) -> String {
        match self.stages.iter().find(|stage| stage.hop.peer == peer) {
            Some(stage) => format!("peer {peer} (layers {})", stage.hop.span),
            None => format!("peer {peer}"),
        }
    }
}

/// A stage may only speak of routing, the protocol, the model and its own load. Anything else (that the caller cancelled,
/// say, or may not ask) is not its to decide.
fn believed(code: ErrorCode) -> ErrorCode {
    match code {
        ErrorCode::Overloaded | ErrorCode::ShuttingDown => code,
        code if (2000..5000).contains(&code.to_u16()) => code,
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
