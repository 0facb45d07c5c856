//! Batches on their way through the engine: in with the rows of the peer before, out to the peer after.

use std::{sync::Arc, time::Duration};

use libp2p::PeerId;
use quelea_engine::{
    BackendError, StageError,
    runner::{Input, Job, JobError, Output, Phase as JobPhase, Want},
    sampler::{SamplerError, top_logits, weight_sum},
};
use quelea_shard::{
    commitment::Digest,
    frame::{Form, Open, SessionId, StreamKind, TopLogits},
    link::Batch,
    session::Event,
};
use quelea_wire::ErrorCode;
use tokio::time::Instant;

use super::{Entry, Held, Plane};

/// Rows of a batch that still count as tokens of an answer, of which a token of somebody else may have to wait for one
/// batch of every other coordinator. Speculation sends a few; what is longer waits its turn with the prompts.
const MAX_DECODE_ROWS: u16 = 8;

/// What is needed of a batch after its rows went to the engine.
pub(super) struct BatchMeta {
    pub(super) epoch: u32,
    pub(super) seq: u32,
    pub(super) pos: u32,
    pub(super) rows: u16,
    pub(super) last_row_only: bool,
    rewind: bool,
    deadline: Instant,
    /// Digests of the rows that came in.
    pub(super) input: Vec<Digest>,
}

/// What a batch is to the engine.
fn input(held: &Held, open: &Open, last_row_only: bool, values: Vec<f32>) -> Result<(Input, Want), String> {
    let want = match (open.ends.gives_logits, last_row_only) {
        (0, _) => Want::Rows,
        (_, true) => Want::Logits,
        (_, false) => Want::AllLogits,
    };
    if !open.ends.takes_tokens {
        return Ok((Input::Rows(values), want));
    }
    let ids = Batch::tokens(&values);
    let vocab = held.served.runner.stage().vocab();
    match ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= vocab)) {
        Some(id) => Err(format!("token {id} is none of the model's {vocab}")),
        None => Ok((Input::Tokens(ids), want)),
    }
}

/// The likeliest logits of each row, as the coordinator is to get them.
fn likeliest(mut output: Output, vocab: usize, most: u16) -> Result<Output, JobError> {
    let unsound = |e: SamplerError| JobError::Stage(StageError::Backend(BackendError(e.to_string())));
    let mut values = Vec::new();
    for logits in output.rows.chunks_exact(vocab.max(1)) {
        let top = top_logits(logits, usize::from(most)).map_err(unsound)?;
        TopLogits { sum: weight_sum(logits).map_err(unsound)?, top }.put(&mut values);
    }
    output.rows = values;
    Ok(output)
}

pub(super) fn compute(
    plane: &Arc<Plane>,
    key: (PeerId, SessionId),
    entry: &Entry,
    kind: StreamKind,
    batch: Batch,
    digests: Vec<Digest>,
) {
    let Some(held) = &entry.held else { return };
    let Batch { epoch, seq, pos, rows, last_row_only, rewind, deadline, data, .. } = batch;
    let meta = BatchMeta { epoch, seq, pos, rows, last_row_only, rewind, deadline, input: digests };
    let is_decode = kind == StreamKind::Decode && rows <= MAX_DECODE_ROWS;
    let phase = if is_decode { JobPhase::Decode } else { JobPhase::Prefill };
    let (reply_to, served) = (plane.clone(), held.served.clone());
    let runtime = tokio::runtime::Handle::current();
    let open = entry.machine.open();
    let layers = usize::from(open.span.count());
    let (vocab, most) = (served.runner.stage().vocab(), open.ends.gives_logits);
    let (input, want) = match input(held, open, last_row_only, data) {
        Ok(asked) => asked,
        Err(detail) => {
            // As below: not on this thread.
            let plane = plane.clone();
            tokio::spawn(async move { plane.stages.fail(key, epoch, ErrorCode::BadShape, None, detail) });
            return;
        }
    };
    let reply = Box::new(move |result: Result<Output, JobError>| {
        if let Ok(output) = &result {
            reply_to.telemetry.stage_computed(phase, output);
            served.meter.computed(phase, usize::from(rows), layers, output.compute);
        }
        // On the stage's thread, as batches have to stay in order: some ten microseconds a row.
        let result = if most > 0 { result.and_then(|output| likeliest(output, vocab, most)) } else { result };
        reply_to.stages.computed(&reply_to, &runtime, key, kind, &meta, result);
    });
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
    let end = meta.pos.saturating_add(u32::from(meta.rows));
    let gives_logits = open.ends.gives_logits > 0;
    // Logits are of the rows that were wanted, rows of all.
    let from = if gives_logits && meta.last_row_only { end.saturating_sub(1) } else { meta.pos };
    if machine.survives() {
        held.log.append(from, &output.rows);
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
    let Some(begin) = held.out.begins(meta.pos).filter(|begin| *begin < end) else { return [Some(computed), None] };
    let pos = if meta.last_row_only && held.is_last_stage(open) { end.saturating_sub(1) } else { begin };
    let skip = usize::try_from(pos.saturating_sub(from)).unwrap_or(usize::MAX).saturating_mul(held.log.width());
    let data = if skip == 0 { output.rows } else { output.rows.get(skip..).unwrap_or_default().to_vec() };
    let rows = u16::try_from(end.saturating_sub(pos)).unwrap_or(u16::MAX);
    // Numbered by the hop that they leave on: rows that are sent again have no other numbers than new ones.
    let (epoch, seq) = (open.epoch, held.next_seq);
    let BatchMeta { last_row_only, rewind, deadline, .. } = *meta;
    let form = form(open);
    let session = open.session;
    match link.send(Batch { session, epoch, seq, pos, rows, last_row_only, rewind, deadline, form, data }) {
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

/// What a session hands on.
pub(super) fn form(open: &Open) -> Form {
    if open.ends.gives_logits > 0 { Form::Logits } else { open.rows() }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
