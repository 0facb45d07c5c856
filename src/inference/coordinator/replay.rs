//! Handing rows on again, no faster than they are computed.
//!
//! Acknowledgements say that rows have arrived, not that anybody has computed them: a stage that comes in anew would be
//! given thousands of rows at once. So each hop is allowed as many rows ahead of what the next stage has computed as a
//! prompt may have under way, and more as that gets on.

use std::{collections::HashMap, time::Duration};

use libp2p::PeerId;
use quelea_engine::PREFILL_CHUNK;
use quelea_shard::frame::{Frame, MAX_BATCH_ROWS, Resume, State, StreamKind};
use quelea_wire::ErrorCode;
use tokio::time::{Instant, sleep_until};

use super::{
    CHUNKS, ChainSession, How,
    recover::{RECOVERY, Stand},
    wait::{PROBE_TIMEOUT, Trouble},
};
use crate::inference::{links::FromStage, types::InferError};

/// Rows that a stage may have been given and not computed: as many as of a prompt, so that its deadlines suffice and its
/// queue has room for others.
const WINDOW_ROWS: u32 = CHUNKS * PREFILL_CHUNK as u32;

/// Rows that a stage may be ahead of the next one, which is to get them from what it keeps: twice as many, so that both
/// compute at once, and far less than the smallest share of memory.
const LEAD_ROWS: u32 = 2 * WINDOW_ROWS;

/// Between two times that stages are asked how far they are: less than they take for a window.
const LOOK: Duration = Duration::from_millis(20);

/// How often all stages are told where they stand although nothing has changed, so that those who have nothing to do
/// meanwhile do not take the session for idle: well below the shortest idle time.
const RENEW: Duration = Duration::from_secs(10);

/// How far the stages are, in the order of the layers.
#[derive(Debug, PartialEq, Eq)]
struct Progress {
    /// Where the rows end that each has computed.
    computed: Vec<u32>,
    /// Where the rows end that have arrived at each.
    received: Vec<u32>,
    /// Where the rows end that each may have been given; [`u32::MAX`] when nothing holds it back any more.
    allowed: Vec<u32>,
}

impl Progress {
    fn of(stands: &[Stand]) -> Self {
        let at: Vec<u32> = stands.iter().map(|stand| stand.pos).collect();
        Self { computed: at.clone(), received: at, allowed: vec![0; stands.len()] }
    }

    /// Where the rows end that the stage at `i` may be given now, of `sent` that there are.
    fn allow(&self, i: usize, sent: u32) -> u32 {
        let own = self.computed.get(i).copied().unwrap_or_default();
        let next = self.computed.get(i + 1).map_or(u32::MAX, |rows| rows.saturating_add(LEAD_ROWS));
        // Not before what it has: that is where handing on begins.
        let until = own.saturating_add(WINDOW_ROWS).min(next).max(own);
        if until >= sent { u32::MAX } else { until }
    }

    fn over(&self) -> bool {
        self.allowed.iter().all(|until| *until == u32::MAX)
    }

    /// Whether all rows before `sent` have arrived everywhere. Until then a token must not follow: it goes on another
    /// stream, and may overtake them where the stages behind have long had them and its turn comes at once.
    fn arrived(&self, sent: u32) -> bool {
        self.received.iter().all(|rows| *rows >= sent)
    }
}

impl ChainSession {
    /// Has every stage handed what it lacks, a window at a time; puts `deadline` off as long as there is progress.
    pub(super) async fn replay(&mut self, stands: &[Stand], deadline: &mut Instant) -> Result<(), Trouble> {
        let mut progress = Progress::of(stands);
        let mut given = stands.first().map_or(0, |first| first.pos);
        // What comes back begins with what is waited for.
        let wanted = self.wanted_from();
        if let Some(last) = self.stages.len().checked_sub(1) {
            self.hand_on(last, wanted, u32::MAX)?;
        }
        let mut renewed = Instant::now();
        loop {
            let renew = renewed.elapsed() >= RENEW;
            if renew {
                renewed = Instant::now();
                self.hand_on(self.stages.len().saturating_sub(1), self.sent, u32::MAX)?;
            }
            for i in (1..self.stages.len()).rev() {
                let until = progress.allow(i, self.sent);
                let (Some(allowed), Some(stand)) = (progress.allowed.get_mut(i), stands.get(i)) else { continue };
                if until > *allowed || renew {
                    let from = if *allowed == 0 { stand.pos } else { (*allowed).min(self.sent) };
                    *allowed = until.max(*allowed);
                    let until = *allowed;
                    self.hand_on(i - 1, from, until)?;
                }
            }
            let until = progress.allow(0, self.sent);
            if let Some(allowed) = progress.allowed.first_mut() {
                *allowed = until.max(*allowed);
                given = self.give_again(given, *allowed)?;
            }
            if progress.over() && progress.arrived(self.sent) {
                return Ok(());
            }
            self.look(&mut progress, deadline).await?;
        }
    }

    /// Has the stage at `i` hand on rows from `from`, and go on up to `until`.
    fn hand_on(&self, i: usize, from: u32, until: u32) -> Result<(), Trouble> {
        let Some(stage) = self.stages.get(i) else { return Ok(()) };
        let (session, epoch, roots_from) = (self.id, self.epoch, self.kept_rows);
        let resume = Resume { session, epoch, from, until, roots_from };
        stage.control.sender.send(resume).map_err(|e| self.lost(stage.hop.peer, ErrorCode::HopLost, &e.to_string()))
    }

    /// Gives the first stage rows from `from` as far as it may have them; where they end.
    fn give_again(&mut self, mut from: u32, allowed: u32) -> Result<u32, Trouble> {
        let deadline = Instant::now() + self.spec.step_timeout.saturating_mul(CHUNKS + 1);
        let end = self.sent.min(allowed);
        while from < end {
            let until = end.min(from.saturating_add(u32::from(MAX_BATCH_ROWS)));
            self.give(from, until, How { kind: StreamKind::Bulk, last_row_only: false, rewind: false, deadline })?;
            from = until;
        }
        Ok(from)
    }

    /// Waits until a stage has got on, for a step of all chunks under way at most.
    async fn look(&mut self, progress: &mut Progress, deadline: &mut Instant) -> Result<(), Trouble> {
        let limit = self.spec.step_timeout.saturating_mul(CHUNKS + 1);
        let give_up = Instant::now() + limit;
        loop {
            let asked = Instant::now();
            let states = self.states(asked + PROBE_TIMEOUT).await?;
            let mut moved = false;
            let Progress { computed, received, .. } = progress;
            for ((stage, computed), received) in self.stages.iter().zip(computed.iter_mut()).zip(received.iter_mut()) {
                let Some(state) = states.get(&stage.hop.peer) else { continue };
                for (now, before) in [(computed_by(state), computed), (state.pos, received)] {
                    moved |= now > *before;
                    *before = now.max(*before);
                }
            }
            if moved {
                *deadline = Instant::now() + RECOVERY;
                return Ok(());
            }
            if Instant::now() >= give_up {
                return Err(self.blame(&states, limit));
            }
            self.listen_until(asked + LOOK).await?;
        }
    }

    /// Asks all stages how they stand. Who does not say so by then is lost.
    async fn states(&mut self, by: Instant) -> Result<HashMap<PeerId, State>, Trouble> {
        let mut states = HashMap::new();
        self.probe();
        loop {
            let silent = self.stages.iter().map(|stage| stage.hop.peer).find(|peer| !states.contains_key(peer));
            let Some(silent) = silent else { return Ok(states) };
            match self.heard(by).await? {
                Some((peer, Frame::State(state))) if state.epoch == self.epoch => drop(states.insert(peer, state)),
                Some((peer, frame)) => self.event(peer, FromStage::Frame(Box::new(frame)))?,
                None => return Err(self.lost(silent, ErrorCode::HopSilent, "does not answer")),
            }
        }
    }

    async fn listen_until(&mut self, until: Instant) -> Result<(), Trouble> {
        while let Some((peer, frame)) = self.heard(until).await? {
            self.event(peer, FromStage::Frame(Box::new(frame)))?;
        }
        Ok(())
    }

    /// The next thing that a stage says; nothing until then. Results that come meanwhile are kept.
    pub(super) async fn heard(&mut self, until: Instant) -> Result<Option<(PeerId, Frame)>, Trouble> {
        loop {
            tokio::select! {
                batch = self.results.batches.recv() => self.take(batch)?,
                event = self.events.recv() => match event {
                    Some((peer, FromStage::Frame(frame))) => return Ok(Some((peer, *frame))),
                    Some((peer, lost)) => self.event(peer, lost)?,
                    None => return Err(InferError::new(ErrorCode::Internal, "the session's events have ended").into()),
                },
                end = self.decode.ended() => return Err(self.link_ended(&end)),
                end = self.bulk.ended() => return Err(self.link_ended(&end)),
                () = sleep_until(until) => return Ok(None),
            }
        }
    }
}

/// Where the rows end that a stage has computed.
pub(super) fn computed_by(state: &State) -> u32 {
    let computing = state.totals.rows_in.saturating_sub(state.totals.rows_out);
    state.pos.saturating_sub(u32::try_from(computing).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use quelea_shard::frame::{Phase, SessionId, Totals};

    use super::*;

    fn stands(at: &[u32]) -> Vec<Stand> {
        at.iter().map(|pos| Stand { pos: *pos, log_from: 0 }).collect()
    }

    /// Lets every stage compute all that it may have, until nothing is held back; the most that any was ahead.
    fn run(at: &[u32], sent: u32) -> (u32, u32) {
        let mut progress = Progress::of(&stands(at));
        let (mut unread, mut ahead) = (0, 0);
        for _ in 0..10_000 {
            for i in 0..at.len() {
                let until = progress.allow(i, sent);
                assert!(until >= progress.computed[i], "{progress:?}");
                progress.allowed[i] = progress.allowed[i].max(until);
                // From the one before it gets what that has computed.
                let there = i.checked_sub(1).map_or(sent, |before| progress.computed[before]);
                let end = progress.allowed[i].min(there).max(progress.computed[i]);
                unread = unread.max(end - progress.computed[i]);
                // The one after may not have begun: what this one comes to keep for it, beside what it had before.
                let next = progress.computed.get(i + 1).copied().unwrap_or(end);
                if end > progress.computed[i] {
                    ahead = ahead.max(end.saturating_sub(next));
                }
                progress.computed[i] = end.min(progress.computed[i] + u32::from(MAX_BATCH_ROWS));
            }
            if progress.over() {
                return (unread, ahead);
            }
        }
        panic!("never over: {progress:?}");
    }

    #[test]
    fn nobody_is_given_more_than_a_window() {
        for at in [&[0, 9_000, 9_000][..], &[9_000, 0, 9_000], &[9_000, 9_000, 0], &[9_000, 0, 0], &[0, 0, 0]] {
            let (unread, ahead) = run(at, 9_000);
            assert!(unread <= WINDOW_ROWS + u32::from(MAX_BATCH_ROWS), "{at:?}: {unread}");
            assert!(ahead <= LEAD_ROWS + WINDOW_ROWS, "{at:?}: {ahead}");
        }
        // What is within a window is let go at once.
        let progress = Progress::of(&stands(&[100, 0, 100]));
        assert!((0..3).all(|i| progress.allow(i, 100) == u32::MAX));
    }

    #[test]
    fn it_ends_when_all_rows_have_arrived() {
        let mut progress = Progress::of(&stands(&[0, 300, 300]));
        assert!(!progress.arrived(300), "the first one has none of them yet");
        progress.received[0] = 300;
        assert!(progress.arrived(300) && !progress.arrived(301));
    }

    #[test]
    fn rows_that_are_being_computed_are_not_computed() {
        let totals = Totals { rows_in: 700, rows_out: 600, ..Totals::default() };
        let state = State { session: SessionId([0; 16]), epoch: 2, phase: Phase::Live, pos: 300, totals };
        assert_eq!(computed_by(&state), 200);
    }
}
