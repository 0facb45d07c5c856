//! Batches on their way through the engine: in with the rows of the peer before, out to the peer after.

use std::{sync::Arc, time::Duration};

use libp2p::PeerId;
use quelea_engine::runner::{Input, Job, Output, Phase as JobPhase, Want};
use quelea_shard::{
    frame::{SessionId, StreamKind},
    link::Batch,
    session::Event,
};
use quelea_wire::ErrorCode;
use tokio::time::Instant;

use super::{Entry, Plane};

/// Rows of a batch that still count as tokens of an answer, of which a token of somebody else may have to wait for one
/// batch of every other coordinator. Speculation sends a few; what is longer waits its turn with the prompts.
const MAX_DECODE_ROWS: u16 = 8;

/// What is needed of a batch after its rows went to the engine.
pub(super) struct BatchMeta {
    pub(super) epoch: u32,
    seq: u32,
    pos: u32,
    rows: u16,
    last_row_only: bool,
    rewind: bool,
    deadline: Instant,
}

pub(super) fn compute(plane: &Arc<Plane>, key: (PeerId, SessionId), entry: &Entry, kind: StreamKind, batch: Batch) {
    let Some(held) = &entry.held else { return };
    let Batch { epoch, seq, pos, rows, last_row_only, rewind, deadline, data, .. } = batch;
    let meta = BatchMeta { epoch, seq, pos, rows, last_row_only, rewind, deadline };
    let is_decode = kind == StreamKind::Decode && rows <= MAX_DECODE_ROWS;
    let phase = if is_decode { JobPhase::Decode } else { JobPhase::Prefill };
    let reply_to = plane.clone();
    let reply = Box::new(move |result| {
        if let Ok(output) = &result {
            reply_to.telemetry.stage_computed(phase, output);
        }
        reply_to.stages.computed(key, kind, meta, result);
    });
    let (input, want) = (Input::Rows(data), Want::Rows);
    let job = Job { session: held.cache, pos, input, want, phase, deadline: deadline.into_std(), reply };
    if let Err(error) = held.served.runner.submit(job) {
        plane.telemetry.metrics.channel_full("stage");
        // Not on this thread: the table is locked here.
        let plane = plane.clone();
        tokio::spawn(async move {
            plane.stages.fail(key, epoch, ErrorCode::Overloaded, None, error.to_string());
        });
    }
}

/// Puts a computed batch into the next link's queue; what the machine is told about it.
pub(super) fn hand_on(entry: &mut Entry, kind: StreamKind, meta: &BatchMeta, output: Output) -> Event {
    let Entry { machine, held, .. } = entry;
    let open = machine.open();
    let gone = |detail: String, code| Event::Failed { code, about: Some(open.next), detail };
    let Some(held) = held else {
        return gone("the session is being closed".into(), ErrorCode::Internal);
    };
    let link = if kind == StreamKind::Decode { &held.decode } else { &held.bulk };
    let width = usize::try_from(open.width).unwrap_or(usize::MAX);
    // Not told by who comes next: the coordinator may hold layers in the middle of its own chain.
    let is_last_stage = open.span.end() == held.served.file.layers();
    let (pos, rows, data) = if meta.last_row_only && is_last_stage {
        let keep = output.rows.len().saturating_sub(width);
        let pos = meta.pos.saturating_add(u32::from(meta.rows)).saturating_sub(1);
        (pos, 1, output.rows.get(keep..).unwrap_or_default().to_vec())
    } else {
        (meta.pos, meta.rows, output.rows)
    };
    let BatchMeta { epoch, seq, last_row_only, rewind, deadline, .. } = *meta;
    // Numbered by the hop that they leave on: rows that are sent again have no other numbers than new ones.
    let number = held.next_seq;
    held.next_seq = number.saturating_add(1);
    let batch = Batch { session: open.session, epoch, seq: number, pos, rows, last_row_only, rewind, deadline, data };
    match link.send(batch) {
        Ok(()) => Event::Computed {
            epoch,
            seq,
            compute_us: micros(output.compute),
            queue_us: micros(output.queued),
            hop_us: link.rtt().map_or(0, |rtt| micros(rtt.mean / 2)),
        },
        Err(error) => {
            let why = link.end().map_or_else(|| error.to_string(), |end| end.to_string());
            gone(why, ErrorCode::NextSilent)
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
