//! What a session leaves behind for others to compute again: its tokens, its stages, and how rows went into the first.
//!
//! A span's rows are computed anew by an ordinary session over exactly that span, whose rows all come back: nobody who has part
//! in it can tell it from another.

use std::sync::Arc;

use quelea_engine::{PREFILL_CHUNK, runner::pages_for};
use quelea_shard::frame::{Ends, Prefix};
use quelea_wire::{ErrorCode, Price, SpanRange, WorkedRows};

use super::{ChainSession, SessionSpec};
use crate::{
    inference::{
        auditor::Draws,
        plane::Plane,
        planner::{Hop, Query},
        types::{HopReport, InferError},
    },
    telemetry::traces::Within,
};

/// A session that is over.
pub(crate) struct Trail {
    /// Its stages, in the order of the layers.
    pub(crate) hops: Vec<Hop>,
    /// Token ids of all its rows.
    ids: Vec<u32>,
    /// Rows that went into the first stage, where they were fed.
    fed: Vec<f32>,
    spec: SessionSpec,
}

impl ChainSession {
    /// What is left of the session, which is over.
    pub(super) fn trail(&mut self) -> Trail {
        let rows = usize::try_from(self.sent).unwrap_or(usize::MAX);
        let spec = SessionSpec {
            prefix: Prefix::default(),
            prompt: Vec::new(),
            all_rows: true,
            receipt: false,
            replaces: false,
            draws: Draws::none(&self.spec.draws),
            trace: Within::default(),
            ..self.spec.clone()
        };
        Trail {
            hops: self.stages.iter().map(|stage| stage.hop.clone()).collect(),
            ids: self.ids.get(..rows).unwrap_or(&self.ids).to_vec(),
            fed: std::mem::take(&mut self.fed),
            spec,
        }
    }
}

impl Trail {
    /// Values of a row.
    pub(crate) fn width(&self) -> usize {
        usize::try_from(self.spec.width).unwrap_or(usize::MAX).max(1)
    }

    /// What is asked of who computes `span` anew. Where that begins with the first stage's layers, it is given what that was.
    pub(crate) fn query(&self, span: SpanRange, rows: u32) -> Query {
        let takes_tokens = self.spec.ends.takes_tokens && self.begins(span);
        let ends = quelea_announce::Ends { embedding: takes_tokens, head: false };
        let (prompt_rows, kv_pages) = (u64::from(rows), pages_for(rows));
        let here = self.spec.query.here;
        Query { span, from: here, to: here, prompt_rows, answer_rows: 0, kv_pages, ends, ..self.spec.query.clone() }
    }

    /// What `span` may cost at this price, computed anew.
    pub(crate) fn price(price: Price, span: SpanRange, rows: u32) -> Option<u64> {
        price.amount(span.count(), worked(rows))
    }

    /// The session's parameters that say who may take part.
    pub(crate) fn spec(&self) -> &SessionSpec {
        &self.spec
    }

    fn begins(&self, span: SpanRange) -> bool {
        span.start() == self.spec.query.span.start()
    }

    /// Has `hops` compute the first `rows` rows, for pay; what they have done. `told` is given what comes back, in order. The
    /// first of them is given `input`, or what the session's first stage was.
    ///
    /// # Errors
    /// When it does not come to its end: nobody takes the place of who is lost.
    pub(crate) async fn run(
        &self,
        plane: &Arc<Plane>,
        hops: Vec<Hop>,
        rows: u32,
        input: Option<&[f32]>,
        mut told: impl FnMut(Vec<f32>) + Send,
    ) -> Result<Vec<HopReport>, InferError> {
        let wrong = |what: &str| InferError::new(ErrorCode::Internal, what);
        let span =
            hops.first().zip(hops.last()).map(|(first, last)| SpanRange::new(first.span.start(), last.span.end()));
        let Some(Ok(span)) = span else { return Err(wrong("nobody is to compute anything anew")) };
        let count = usize::try_from(rows).unwrap_or(usize::MAX);
        let ids = self.ids.get(..count).ok_or_else(|| wrong("there are more rows than tokens"))?;
        let given = input.or(self.spec.fed.then_some(self.fed.as_slice()));
        let query = self.query(span, rows);
        let spec = SessionSpec {
            max_rows: rows.saturating_add(1),
            embed: self.spec.embed.clone().filter(|_| given.is_none()),
            fed: given.is_some(),
            ends: Ends { takes_tokens: query.ends.embedding && given.is_none(), gives_logits: 0 },
            prompt: ids.to_vec(),
            most_rows: worked(rows),
            query,
            ..self.spec.clone()
        };
        let width = self.width();
        let mut chain = ChainSession::open(plane.clone(), hops, spec).await?;
        let mut pos = 0_usize;
        for chunk in ids.chunks(PREFILL_CHUNK) {
            let at = u32::try_from(pos).unwrap_or(u32::MAX);
            let end = pos.saturating_add(chunk.len());
            if let Some(given) = given {
                let values = given.get(pos.saturating_mul(width)..end.saturating_mul(width));
                chain.feed(at, values.ok_or_else(|| wrong("there are fewer rows than tokens"))?);
            }
            told(chain.results());
            chain.push_chunk(chunk, at).await?;
            pos = end;
        }
        told(chain.end_of_prefill().await?);
        chain.finish().await
    }
}

/// All as a prompt's.
fn worked(rows: u32) -> WorkedRows {
    WorkedRows { prefill: u64::from(rows), decode: 0 }
}
