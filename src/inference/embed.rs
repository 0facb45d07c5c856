//! What a model makes of a text, as a vector: the mean of its last hidden states, of length one.
//!
//! All layers run the text once, as a prompt, at the same stages and for the same pay as an answer; all rows come back, and the
//! model's last norm, which is part of the head, and the mean are computed here.

use std::time::Instant;

use quelea_engine::{MAX_ROWS, Runner, Stage};
use quelea_wire::{ErrorCode, ModelId};
use tracing::Instrument as _;

use super::{
    Asker,
    generate::{self, engine},
    pipeline::Pipeline,
    types::{FinishReason, HopReport, InferError, InferRequest, RouteHop, Summary},
};
use crate::{
    telemetry::{metrics::Operation, say_what_came, traces::Span},
    weights::fetch::blocking,
};

/// A text's vector, and what it took.
pub(crate) struct Embedded {
    pub(crate) vector: Vec<f32>,
    pub(crate) summary: Summary,
    /// Who computed it; empty when everything ran here.
    pub(crate) route: Vec<RouteHop>,
}

impl Asker {
    /// The vector of the request's prompt. What it says of drawing tokens means nothing.
    pub(crate) async fn embed(&self, request: &InferRequest) -> Result<Embedded, InferError> {
        let span = self.plane.telemetry.embedding_span(request);
        let log = span.for_log();
        self.embed_in(span, request).instrument(log).await
    }

    async fn embed_in(&self, mut span: Span, request: &InferRequest) -> Result<Embedded, InferError> {
        let started = Instant::now();
        let telemetry = &self.plane.telemetry;
        let _active = self.plane.begin_request();
        let mut model = None;
        let embedded = self.embedded(request, started, &mut model, &mut span).await;
        match &embedded {
            Ok(embedded) => {
                if let Some(model) = &model {
                    telemetry.embedding_done(model, &embedded.summary);
                }
                say_what_came(&mut span, &embedded.summary);
            }
            Err(error) => {
                tracing::info!(%error, "embedding failed");
                telemetry.embedding_failed(model.as_ref(), error, started.elapsed());
                span.fail(error.code.clone(), error.error_code().meaning());
            }
        }
        embedded
    }

    async fn embedded(
        &self,
        request: &InferRequest,
        started: Instant,
        model: &mut Option<ModelId>,
        span: &mut Span,
    ) -> Result<Embedded, InferError> {
        let ends = self.models.ends(&request.model).await?;
        *model = Some(ends.file.id);
        span.of_model(Operation::Embeddings.as_str(), &ends.file.name, &ends.file.id.to_string());
        let trace = span.within();
        let prompt = generate::prompt_ids(&ends, request)?;
        let rows = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let (mut pipeline, _) = self.open_for_rows(&ends, request, &prompt, rows.saturating_add(1), &trace).await?;
        let route = match &pipeline {
            Pipeline::Chain(remote) => remote.chain.route(),
            Pipeline::Local(_) => Vec::new(),
        };
        let running = trace.start("pipeline.prefill");
        let run = run(&mut pipeline, &prompt).await;
        running.ended(&run);
        let drawn = pipeline.take_drawn();
        let charged = |error: InferError| {
            self.note_failure(&error);
            InferError { charged: pipeline.is_paid(), ..error }
        };
        let (vector, hops) = run.map_err(charged)?;
        self.learn(&ends, pipeline.took(), &hops).await;
        let total_s = started.elapsed().as_secs_f64();
        let summary = Summary {
            model: ends.file.id.to_string(),
            profile: pipeline.profile().to_string(),
            thin: false,
            text: String::new(),
            prompt_ids: prompt,
            cached_tokens: 0,
            ids: Vec::new(),
            resumed_tokens: 0,
            finish_reason: FinishReason::Stop,
            stop_string: None,
            logprobs: None,
            speculation: None,
            predicted: None,
            hops,
            bytes_sent: pipeline.bytes().0,
            bytes_received: pipeline.bytes().1,
            saw: pipeline.saw(),
            cost: pipeline.cost(),
            receipt: pipeline.receipt(),
            private: Vec::new(),
            recoveries: pipeline.recoveries(),
            ttft_s: total_s,
            total_s,
            tokens_per_s: None,
            prompt_tokens_per_s: f64::from(rows) / total_s.max(1e-9),
        };
        if let Some(drawn) = drawn {
            self.auditor.audit(&ends, &summary, drawn);
        }
        Ok(Embedded { vector, summary, route })
    }
}

/// The mean of a text's rows, and who did what.
async fn run(pipeline: &mut Pipeline, prompt: &[u32]) -> Result<(Vec<f32>, Vec<HopReport>), InferError> {
    let missing = || InferError::new(ErrorCode::ModelFileNeeded, "the model's last norm is not on this machine");
    let head = pipeline.head().ok_or_else(missing)?;
    let mut mean = Mean { sums: vec![0.0; head.stage().hidden()] };
    let mut at = 0;
    while let Some(rows) = pipeline.more_rows(prompt, &mut at).await? {
        if !rows.is_empty() {
            mean = mean.with(&head, rows).await?;
        }
    }
    let vector = mean.unit()?;
    Ok((vector, pipeline.finish().await?))
}

/// A sum of rows that is to have length one. Their number does not matter then.
struct Mean {
    sums: Vec<f64>,
}

impl Mean {
    /// With these rows, after the model's last norm.
    async fn with(mut self, head: &Runner, rows: Vec<f32>) -> Result<Self, InferError> {
        let head = head.clone();
        blocking(move || {
            self.add(head.stage(), &rows)?;
            Ok(self)
        })
        .await?
    }

    fn add(&mut self, stage: &Stage, rows: &[f32]) -> Result<(), InferError> {
        let width = self.sums.len().max(1);
        for rows in rows.chunks(width.saturating_mul(MAX_ROWS)) {
            let rows = stage.normed(rows).map_err(|e| engine(&e))?;
            for row in rows.chunks_exact(width) {
                self.sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            }
        }
        Ok(())
    }

    #[expect(clippy::cast_possible_truncation, reason = "vectors are of f32")]
    fn unit(&self) -> Result<Vec<f32>, InferError> {
        let length = self.sums.iter().map(|sum| sum * sum).sum::<f64>().sqrt();
        if !length.is_normal() {
            return Err(InferError::new(ErrorCode::EngineFailed, "the model gives this text no direction"));
        }
        Ok(self.sums.iter().map(|sum| (sum / length) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_have_length_one() {
        let mean = Mean { sums: vec![3.0, 0.0, -4.0] };
        assert_eq!(mean.unit().unwrap(), [0.6, 0.0, -0.8]);
        assert!(Mean { sums: vec![0.0; 3] }.unit().is_err());
        assert!(Mean { sums: vec![f64::NAN; 3] }.unit().is_err());
    }
}
