//! Sessions that outlive a neighbour: given others, and handing on again what they have kept.

use std::sync::Arc;

use libp2p::PeerId;
use quelea_shard::{
    frame::{MAX_BATCH_BYTES, MAX_BATCH_ROWS, Reroute, Resume, SessionId},
    link::{Batch, DataSender},
    session::{Act, Event},
};
use quelea_wire::ErrorCode;
use tokio::{runtime::Handle, time::Instant};

use super::{
    Entry, Held, Plane,
    admission::{REACH_NEXT, reach, watch_next},
    compute::form,
    log::{Kept, Log},
    spill::Away,
};

/// How far a session has handed rows on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Out {
    state: Handing,
    /// The next peer has what was computed before here, or needs none of it.
    next_pos: u32,
    /// Nothing from here on is handed on yet.
    until: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handing {
    /// Every batch as it is computed.
    Live,
    /// Nothing, until the coordinator says from where on.
    Held,
    /// Nothing for now: all up to `until` is handed on, or not computed yet.
    Paused,
    /// What is kept, by a task of its own, which goes on with what comes in meanwhile.
    Replaying,
}

impl Out {
    /// As a session begins: in its first epoch everybody has nothing.
    pub(super) fn opened(epoch: u32) -> Self {
        let state = if epoch <= 1 { Handing::Live } else { Handing::Held };
        Self { state, next_pos: 0, until: u32::MAX }
    }

    /// Where handing on a batch from `pos` begins; `None` when it is not handed on now.
    pub(super) fn begins(&self, pos: u32) -> Option<u32> {
        (self.state == Handing::Live).then_some(self.next_pos.max(pos))
    }

    /// The next peer has what is before `end`.
    pub(super) fn advanced(&mut self, end: u32) {
        self.next_pos = end;
    }

    /// Rows from `keep` on are void; so is what the next peer has of them.
    pub(super) fn cut(&mut self, keep: u32) {
        self.next_pos = self.next_pos.min(keep);
    }

    /// Nothing is handed on, until the coordinator says from where on.
    pub(super) fn hold(&mut self) {
        self.state = Handing::Held;
    }

    /// Whether a task has to be started, now that rows up to `end` are kept: it hands on as many of them as may be.
    pub(super) fn goes_on(&mut self, end: u32) -> bool {
        let starts = self.state == Handing::Paused && self.next_pos < self.until.min(end);
        if starts {
            self.state = Handing::Replaying;
        }
        starts
    }

    fn resume(&mut self, from: u32, until: u32) -> bool {
        match self.state {
            Handing::Live => return false,
            Handing::Held => (self.next_pos, self.until) = (from, until),
            Handing::Paused | Handing::Replaying => self.until = self.until.max(until),
        }
        let starts = self.state != Handing::Replaying;
        self.state = Handing::Replaying;
        starts
    }
}

/// The coordinator gives a session other neighbours.
pub(super) fn rerouted(plane: &Arc<Plane>, coordinator: PeerId, f: Reroute) {
    let key = (coordinator, f.session);
    let mut tables = plane.stages.lock();
    let Some(entry) = tables.entries.get(&key) else { return };
    let (prev, old_prev) = (f.prev, entry.machine.open().prev);
    let local = plane.handle.local();
    let through_us_twice = coordinator != local && (f.prev == local || f.next == local);
    let refused = if through_us_twice || (f.prev == f.next && f.next != coordinator) {
        Some((ErrorCode::Usage, "a chain passes a peer once"))
    } else if prev != old_prev && tables.routes.contains_key(&(prev, f.session)) {
        Some((ErrorCode::DuplicateSession, "the peer before has a session of this name here"))
    } else {
        None
    };
    let event = match refused {
        Some((code, detail)) => Event::Failed { code, about: None, detail: detail.into() },
        None => Event::Reroute(Box::new(f)),
    };
    let Some(entry) = tables.entries.get_mut(&key) else { return };
    let step = entry.machine.on(Instant::now(), event);
    if step.act == Act::Reroute {
        if let Some(held) = &mut entry.held {
            held.out.hold();
            held.roots.rerouted();
            held.next_seq = 0;
            if let Some(watch) = held.watch.take() {
                watch.abort();
            }
        }
        let open = entry.machine.open().clone();
        tables.routes.remove(&(old_prev, key.1));
        tables.routes.insert((prev, key.1), coordinator);
        tokio::spawn(relink(plane.clone(), key, open));
    }
    tables.done(key, step);
}

/// Reaches the new next peer.
async fn relink(plane: Arc<Plane>, key: (PeerId, SessionId), open: quelea_shard::frame::Open) {
    let links = match tokio::time::timeout(REACH_NEXT, reach(&plane, key.0, &open)).await {
        Ok(Ok(links)) => Some(links),
        Ok(Err(error)) => {
            tracing::debug!(next = %open.next, %error, "the next peer is not reached");
            None
        }
        Err(_) => None,
    };
    let epoch = open.epoch;
    let mut tables = plane.stages.lock();
    let Some(entry) = tables.entries.get_mut(&key).filter(|e| e.machine.open().epoch == epoch) else { return };
    let event = match (links, &mut entry.held) {
        (Some((decode, bulk)), Some(held)) => {
            (held.decode, held.bulk) = (decode, bulk);
            held.watch = Some(watch_next(&plane, key, &open, held));
            Event::Linked { epoch }
        }
        _ => Event::NextLost { epoch, code: ErrorCode::NextUnreachable, detail: String::new() },
    };
    let step = entry.machine.on(Instant::now(), event);
    tables.done(key, step);
}

/// The coordinator has rows handed on.
pub(super) fn resumed(plane: &Arc<Plane>, coordinator: PeerId, f: Resume) {
    let key = (coordinator, f.session);
    let mut tables = plane.stages.lock();
    let signer = tables.signer.clone();
    let Some(entry) = tables.entries.get_mut(&key) else { return };
    let step = entry.machine.on(Instant::now(), Event::Resume(f));
    let Entry { machine, held, control, .. } = &mut *entry;
    let open = machine.open();
    if let (Act::Resume { from, until, roots_from }, Some(held)) = (step.act, held) {
        let points = held.roots.resumed(roots_from, held.is_last_stage(open).then_some(from));
        if open.ends.gives_logits == 0 {
            signer.commit(control, open, points);
        }
        if held.out.resume(from, until) {
            replay(plane, &Handle::current(), key, open.epoch);
        }
    }
    tables.done(key, step);
}

/// Starts handing on what is kept, and what comes in meanwhile.
pub(super) fn replay(plane: &Arc<Plane>, runtime: &Handle, key: (PeerId, SessionId), epoch: u32) {
    let plane = plane.clone();
    runtime.spawn(async move {
        while let Some(next) = next_kept(&plane, key, epoch) {
            let (link, batch) = match next {
                Next::Batch(link, batch) => (link, batch),
                Next::OnDisk(block) => {
                    fetch(&plane, key, block).await;
                    continue;
                }
            };
            let rows = u64::from(batch.rows);
            if link.send_in_turn(batch).await.is_err() {
                let why = link.end().map_or_else(String::new, |end| end.to_string());
                return plane.stages.next_lost(key, epoch, ErrorCode::HopLost, why);
            }
            plane.telemetry.metrics.replayed(rows);
        }
    });
}

/// What a replay does next.
enum Next {
    Batch(DataSender, Batch),
    /// The rows have to be fetched first.
    OnDisk(Away),
}

/// Fetches a block of rows for a session, if there still is one.
async fn fetch(plane: &Plane, key: (PeerId, SessionId), block: Away) {
    let which = block.clone();
    // What panics has fetched nothing.
    let values = tokio::task::spawn_blocking(move || which.fetch()).await.ok().flatten();
    if let Some(held) = plane.stages.lock().entries.get_mut(&key).and_then(|entry| entry.held.as_mut()) {
        held.log.fetched(block, values);
    }
}

/// The next rows to be handed on of what is kept; `None` when there are none now, and the session is live or waits.
fn next_kept(plane: &Plane, key: (PeerId, SessionId), epoch: u32) -> Option<Next> {
    let mut tables = plane.stages.lock();
    let entry = tables.entries.get_mut(&key).filter(|e| e.machine.open().epoch == epoch)?;
    let Entry { machine, held: Some(held), .. } = entry else { return None };
    let Held { log, out, bulk, next_seq, .. } = held;
    if out.state != Handing::Replaying {
        return None;
    }
    if out.next_pos < log.from() && out.next_pos < out.until {
        let detail = format!("rows from {} are not kept any more", out.next_pos);
        let step = machine.on(Instant::now(), Event::Failed { code: ErrorCode::BadPosition, about: None, detail });
        tables.done(key, step);
        return None;
    }
    let data = match log.read(out.next_pos, out.until, batch_rows(log)) {
        Kept::Rows(data) => data,
        Kept::OnDisk(block) => return Some(Next::OnDisk(block)),
    };
    let rows = u16::try_from(data.len() / log.width()).unwrap_or(u16::MAX);
    if rows == 0 {
        out.state = if out.until == u32::MAX { Handing::Live } else { Handing::Paused };
        return None;
    }
    let (session, deadline) = (key.1, Instant::now() + machine.open().step_deadline());
    let batch = Batch {
        session,
        epoch,
        seq: *next_seq,
        pos: out.next_pos,
        rows,
        last_row_only: false,
        rewind: false,
        deadline,
        form: form(machine.open()),
        data,
    };
    *next_seq = next_seq.saturating_add(1);
    out.next_pos = out.next_pos.saturating_add(u32::from(rows));
    Some(Next::Batch(bulk.clone(), batch))
}

/// Rows of a batch of a replay.
fn batch_rows(log: &Log) -> usize {
    let by_bytes = usize::try_from(MAX_BATCH_BYTES).unwrap_or(usize::MAX) / size_of::<f32>() / log.width();
    by_bytes.clamp(1, usize::from(MAX_BATCH_ROWS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_computed_after_a_pause_is_handed_on() {
        let mut out = Out::opened(2);
        assert_eq!(out.begins(0), None, "nothing before it is told");
        assert!(out.resume(0, 256));
        // Nothing is kept yet: the task ends.
        out.state = Handing::Paused;
        assert!(out.goes_on(128), "there is something now");
        assert!(!out.goes_on(256) && !out.resume(256, 512), "that task is at it");
        out.next_pos = 256;
        out.state = Handing::Paused;
        assert!(!out.goes_on(256), "all that there is was handed on");
        assert!(out.resume(512, u32::MAX) && out.state == Handing::Replaying && out.next_pos == 256);
    }
}
