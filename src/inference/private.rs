//! Keeping the first and the last layers here, so that peers see neither what is next to the tokens of the prompt nor what is
//! next to those of the answer.

use std::{ops::Range, time::Duration};

use quelea_engine::{
    PREFILL_CHUNK, Runner,
    runner::{Input, Phase, SessionSpec, Want},
};
use quelea_wire::{ErrorCode, SpanRange};

use super::{
    coordinator::ChainSession,
    models::Ends,
    pipeline::{OWN_GROUP, Work},
    types::InferError,
};

/// The layers of a model of `layers` layers that peers run when the first and the last `n` stay here.
///
/// # Errors
/// When that leaves none.
pub(crate) fn between(n: u16, layers: u16) -> Result<SpanRange, InferError> {
    SpanRange::new(n, layers.saturating_sub(n)).map_err(|_| {
        let message = format!("with the first and the last {n} of {layers} layers here none are left for peers");
        InferError::new(ErrorCode::Usage, message).hint("keep fewer, or run all of them here: --route local")
    })
}

/// The first and the last layers of a model, for one request.
pub(crate) struct Private {
    front: Work,
    back: Work,
    /// Where the rows end that the last layers have.
    done: usize,
    width: usize,
}

impl Private {
    /// Sessions of at most `max_rows` rows in `front`, which has the embedding and the first `n` layers at least, and `back`,
    /// which has the last `n` and the head; rounded to bf16, if it says so.
    pub(crate) fn open(
        model: &Ends,
        (front, back): &(Runner, Runner),
        n: u16,
        bf16: bool,
        max_rows: u32,
        step_timeout: Duration,
    ) -> Result<Self, InferError> {
        let open = |runner: &Runner, layers: Range<usize>| {
            let first = runner.stage().span().layers.start;
            let layers = layers.start.saturating_sub(first)..layers.end.saturating_sub(first);
            let spec = SessionSpec { group: OWN_GROUP, layers, max_rows, bf16, ..SessionSpec::default() };
            Work::open(runner, spec, step_timeout).map(|(work, _)| work)
        };
        let (n, all) = (usize::from(n), model.hparams.n_layers);
        let (front, back) = (open(front, 0..n)?, open(back, all.saturating_sub(n)..all)?);
        Ok(Self { front, back, done: 0, width: model.hparams.hidden })
    }

    /// Runs the prompt through all layers; the logits after it.
    pub(super) async fn prefill(&mut self, chain: &mut ChainSession, prompt: &[u32]) -> Result<Vec<f32>, InferError> {
        let mut pos = 0;
        for chunk in prompt.chunks(PREFILL_CHUNK) {
            let rows = self.front(chunk, pos, Phase::Prefill).await?;
            // Before the next chunk is given, so that its own rows are never among them.
            let back = chain.results();
            self.back(back, Want::Rows).await?;
            chain.feed(pos, &rows);
            chain.push_chunk(chunk, pos).await?;
            pos = pos.saturating_add(u32::try_from(chunk.len()).unwrap_or(u32::MAX));
        }
        let rest = chain.end_of_prefill().await?;
        self.back(rest, Want::Logits).await
    }

    /// Runs more tokens through all layers, the first at `pos`; the logits after each.
    pub(super) async fn decode(
        &mut self,
        chain: &mut ChainSession,
        ids: &[u32],
        pos: u32,
    ) -> Result<Vec<f32>, InferError> {
        let rows = self.front(ids, pos, Phase::Decode).await?;
        chain.feed(pos, &rows);
        let rows = chain.decode(ids, pos).await?;
        self.back.run(Input::Rows(rows), pos, Want::AllLogits, Phase::Decode).await
    }

    async fn front(&self, ids: &[u32], pos: u32, phase: Phase) -> Result<Vec<f32>, InferError> {
        self.front.run(Input::Tokens(ids.to_vec()), pos, Want::Rows, phase).await
    }

    /// Gives rows of the prompt to the last layers; what the last chunk of them gives.
    async fn back(&mut self, rows: Vec<f32>, want: Want) -> Result<Vec<f32>, InferError> {
        let mut out = Vec::new();
        for chunk in rows.chunks(PREFILL_CHUNK.saturating_mul(self.width).max(1)) {
            let pos = u32::try_from(self.done).unwrap_or(u32::MAX);
            out = self.back.run(Input::Rows(chunk.to_vec()), pos, want, Phase::Prefill).await?;
            self.done = self.done.saturating_add(chunk.len() / self.width.max(1));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_peers_run_lies_between() {
        assert_eq!(between(0, 6).unwrap().to_string(), "0..6");
        assert_eq!(between(2, 6).unwrap().to_string(), "2..4");
        for n in [3, 4, u16::MAX] {
            assert!(between(n, 6).unwrap_err().message.contains("none are left"), "{n}");
        }
    }
}
