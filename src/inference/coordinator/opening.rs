//! Opening a session at every stage, and finding where it begins: behind the rows that all of them have from before.

use std::collections::{HashMap, HashSet};

use libp2p::{Multiaddr, PeerId};
use quelea_shard::{
    frame::{Accept, BLOCK_ROWS, Ends, Frame, Open, Prefix, Trim},
    protocol,
};
use quelea_wire::{ErrorCode, SpanRange, TraceParent};
use tokio::time::{Instant, timeout_at};

use super::{
    CHUNKS, ChainSession, Stage, lost_hop,
    wait::{PROBE_EVERY, PROBE_TIMEOUT},
};
use crate::inference::{generate::SLOW_CALLER, links::FromStage, types::InferError};

/// Who has said anything since all were asked. A stage may take its time to reach the next one; but one that says nothing at
/// all is not waited for.
struct Roll {
    asked: bool,
    due: Instant,
    heard: HashSet<PeerId>,
}

impl Roll {
    fn begin() -> Self {
        Self { asked: false, due: Instant::now() + PROBE_EVERY, heard: HashSet::new() }
    }
}

impl Stage {
    /// What it is told of the request's trace: nothing where it would not understand, or the trace stays here.
    fn trace(&self) -> Option<TraceParent> {
        self.span.parent().filter(|_| self.control.sender.features() & protocol::TRACE != 0)
    }
}

impl ChainSession {
    pub(super) fn send_opens(&self, local: PeerId) -> Result<(), InferError> {
        for (i, stage) in self.stages.iter().enumerate() {
            let open = self.open_for(i, stage.hop.span, local);
            stage.control.sender.send(open).map_err(|e| lost_hop(&stage.hop, &e.to_string()))?;
        }
        Ok(())
    }

    /// What opens the session at the stage at `i`, in the current epoch.
    pub(super) fn open_for(&self, i: usize, span: SpanRange, local: PeerId) -> Open {
        let millis = |d: std::time::Duration| u32::try_from(d.as_millis()).unwrap_or(u32::MAX);
        let (prev, next, next_addrs) = self.neighbours(i, local);
        Open {
            session: self.id,
            epoch: self.epoch,
            model: self.spec.model,
            profile: self.spec.profile,
            span,
            width: self.spec.width,
            max_rows: self.spec.max_rows,
            // A chunk may wait for all others in the window before its own turn comes.
            step_deadline_ms: millis(self.spec.step_timeout.saturating_mul(CHUNKS + 1)),
            idle_ms: millis(self.spec.step_timeout.saturating_mul(2).saturating_add(SLOW_CALLER)),
            prev,
            next,
            next_addrs,
            prefix: self.spec.prefix.clone(),
            ends: self.ends_at(i),
            pay: self.stages.get(i).and_then(|stage| self.paying.by(&stage.hop.peer)),
            trace: self.stages.get(i).and_then(Stage::trace),
        }
    }

    /// What of the model's ends the stage at `i` computes.
    fn ends_at(&self, i: usize) -> Ends {
        let (first, last) = (i == 0, i + 1 == self.stages.len());
        let Ends { takes_tokens, gives_logits } = self.spec.ends;
        Ends { takes_tokens: takes_tokens && first, gives_logits: if last { gives_logits } else { 0 } }
    }

    /// Who comes before and after the stage at `i`, and where the latter can be dialled.
    pub(super) fn neighbours(&self, i: usize, local: PeerId) -> (PeerId, PeerId, Vec<Multiaddr>) {
        let prev = i.checked_sub(1).and_then(|i| self.stages.get(i)).map_or(local, |prev| prev.hop.peer);
        match self.stages.get(i + 1) {
            Some(next) => (prev, next.hop.peer, next.hop.addrs.clone()),
            None => (prev, local, Vec::new()),
        }
    }

    /// Waits until every stage has accepted, and has as many rows from before as all others: that many.
    pub(super) async fn accepted(&mut self, deadline: Instant) -> Result<u32, InferError> {
        let (mut kept, mut roll) = (HashMap::new(), Roll::begin());
        while let Some(silent) = self.waits_for(|peer| kept.contains_key(&peer)) {
            match self.next_frame(&mut roll, silent, deadline, "does not accept the session").await? {
                (peer, Frame::Accept(accept)) => drop(kept.insert(peer, self.plausible(peer, &accept)?)),
                (peer, frame) => self.event(peer, FromStage::Frame(Box::new(frame)))?,
            }
        }
        let start = kept.values().copied().min().unwrap_or(0);
        self.trim_to(start, kept, deadline, roll).await?;
        Ok(start)
    }

    /// Trims the stages that have more than `start` rows. Their answers are waited for: rows come on other streams, and
    /// must not come before.
    async fn trim_to(
        &mut self,
        start: u32,
        mut kept: HashMap<PeerId, u32>,
        deadline: Instant,
        mut roll: Roll,
    ) -> Result<(), InferError> {
        for stage in self.stages.iter().filter(|stage| kept.get(&stage.hop.peer).is_some_and(|rows| *rows > start)) {
            let trim = Trim { session: self.id, epoch: self.epoch, keep_rows: start };
            stage.control.sender.send(trim).map_err(|e| lost_hop(&stage.hop, &e.to_string()))?;
        }
        while let Some(silent) = self.waits_for(|peer| kept.get(&peer).is_none_or(|rows| *rows <= start)) {
            let what = "does not go back to the rows that all stages have";
            match self.next_frame(&mut roll, silent, deadline, what).await? {
                (peer, Frame::State(state)) if state.pos == start => drop(kept.insert(peer, start)),
                (peer, frame) => self.event(peer, FromStage::Frame(Box::new(frame)))?,
            }
        }
        Ok(())
    }

    /// The first stage that is not done yet.
    fn waits_for(&self, done: impl Fn(PeerId) -> bool) -> Option<PeerId> {
        self.stages.iter().map(|stage| stage.hop.peer).find(|peer| !done(*peer))
    }

    /// The next frame of any stage; whoever is waited for is named when none comes in time, and whoever does not answer
    /// when it is asked how it stands.
    async fn next_frame(
        &mut self,
        roll: &mut Roll,
        awaited: PeerId,
        deadline: Instant,
        what: &str,
    ) -> Result<(PeerId, Frame), InferError> {
        loop {
            match timeout_at(deadline.min(roll.due), self.events.recv()).await {
                Ok(Some((peer, FromStage::Frame(frame)))) => {
                    roll.heard.insert(peer);
                    return Ok((peer, *frame));
                }
                Ok(Some((peer, lost))) => self.event(peer, lost)?,
                Ok(None) => return Err(InferError::new(ErrorCode::Internal, "the session's events have ended")),
                Err(_) if Instant::now() >= deadline => return Err(self.about(awaited, ErrorCode::HopSilent, what)),
                Err(_) if roll.asked => match self.waits_for(|peer| roll.heard.contains(&peer)) {
                    Some(silent) => return Err(self.about(silent, ErrorCode::HopSilent, "does not answer")),
                    None => *roll = Roll::begin(),
                },
                Err(_) => {
                    self.probe();
                    *roll = Roll { asked: true, due: Instant::now() + PROBE_TIMEOUT, heard: HashSet::new() };
                }
            }
        }
    }

    /// The rows that a stage says it has: whole blocks, and no more than it was offered.
    fn plausible(&self, peer: PeerId, accept: &Accept) -> Result<u32, InferError> {
        let rows = accept.kept_rows;
        if can_be_kept(rows, &self.spec.prefix) {
            return Ok(rows);
        }
        let what = format!("says that it has {rows} rows from before, which cannot be");
        Err(self.about(peer, ErrorCode::BadPosition, &what))
    }
}

/// Whether all stages of a chain have a feature, by the bits that each shares with us. Where one has to compute all rows,
/// all others have to; and where one cannot go back, none may.
pub(super) fn all_have(bit: u64, features: impl IntoIterator<Item = u64>) -> bool {
    features.into_iter().all(|features| features & bit != 0)
}

fn can_be_kept(rows: u32, offered: &Prefix) -> bool {
    rows <= offered.reuse_rows() && rows.is_multiple_of(BLOCK_ROWS)
}

#[cfg(test)]
mod tests {
    use quelea_shard::frame::BlockKey;

    use super::*;

    #[test]
    fn one_stage_of_before_is_enough_to_compute_everything() {
        assert!(all_have(protocol::PREFIX, [protocol::PREFIX, u64::MAX]));
        assert!(!all_have(protocol::PREFIX, [protocol::PREFIX, 0]));
        assert!(!all_have(protocol::PREFIX, [!protocol::PREFIX]));
    }

    #[test]
    fn stages_have_whole_blocks_of_those_that_were_offered() {
        let offered = Prefix { keys: vec![BlockKey([1; 16]); 3], reuse: 2 };
        assert!([0, 32, 64].into_iter().all(|rows| can_be_kept(rows, &offered)));
        assert!([1, 33, 96, u32::MAX].into_iter().all(|rows| !can_be_kept(rows, &offered)));
        assert!(can_be_kept(0, &Prefix::default()) && !can_be_kept(32, &Prefix::default()));
    }
}
