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
    pub(super) seq: u32,
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
    let (reply_to, served) = (plane.clone(), held.served.clone());
    let runtime = tokio::runtime::Handle::current();
    let layers = usize::from(entry.machine.open().span.count());
    let reply = Box::new(move |result| {
        if let Ok(output) = &result {
            reply_to.telemetry.stage_computed(phase, output);
            served.meter.computed(phase, usize::from(rows), layers, output.compute);
        }
        reply_to.stages.computed(&reply_to, &runtime, key, kind, &meta, result);
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

/// Puts a computed batch into the next link's queue, or keeps it for whoever is next; what the machine is told about it.
pub(super) fn hand_on(entry: &mut Entry, kind: StreamKind, meta: &BatchMeta, output: Output) -> [Option<Event>; 2] {
    let Entry { machine, held, .. } = entry;
    let open = machine.open();
    let Some(held) = held else {
        let detail = "the session is being closed".into();
        return [Some(Event::Failed { code: ErrorCode::Internal, about: None, detail }), None];
    };
    if machine.survives() {
        held.log.append(meta.pos, &output.rows);
    }
    if meta.rewind {
        held.out.cut(meta.pos);
    }
    let link = if kind == StreamKind::Decode { &held.decode } else { &held.bulk };
    let computed = Event::Computed {
        epoch: meta.epoch,
        seq: meta.seq,
        compute_us: micros(output.compute),
        queue_us: micros(output.queued),
        hop_us: link.rtt().map_or(0, |rtt| micros(rtt.mean / 2)),
    };
    let end = meta.pos.saturating_add(u32::from(meta.rows));
    let Some(begin) = held.out.begins(meta.pos).filter(|begin| *begin < end) else { return [Some(computed), None] };
    // Not told by who comes next: the coordinator may hold layers in the middle of its own chain.
    let is_last_stage = open.span.end() == held.served.file.layers();
    let pos = if meta.last_row_only && is_last_stage { end.saturating_sub(1) } else { begin };
    let width = usize::try_from(open.width).unwrap_or(usize::MAX);
    let skip = usize::try_from(pos.saturating_sub(meta.pos)).unwrap_or(usize::MAX).saturating_mul(width);
    let data = if skip == 0 { output.rows } else { output.rows.get(skip..).unwrap_or_default().to_vec() };
    let rows = u16::try_from(end.saturating_sub(pos)).unwrap_or(u16::MAX);
    // Numbered by the hop that they leave on: rows that are sent again have no other numbers than new ones.
    let (epoch, seq) = (open.epoch, held.next_seq);
    let BatchMeta { last_row_only, rewind, deadline, .. } = *meta;
    match link.send(Batch { session: open.session, epoch, seq, pos, rows, last_row_only, rewind, deadline, data }) {
        Ok(()) => {
            held.next_seq = seq.saturating_add(1);
            held.out.advanced(end);
            [Some(computed), None]
        }
        Err(error) => {
            let detail = link.end().map_or_else(|| error.to_string(), |end| end.to_string());
            let lost = Event::NextLost { epoch, code: ErrorCode::NextSilent, detail };
            if machine.survives() {
                held.out.hold();
                [Some(computed), Some(lost)]
            } else {
                [Some(lost), None]
            }
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
