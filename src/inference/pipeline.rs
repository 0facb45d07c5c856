//! The layers, wherever they run: through a chain of peers, or in one stage here.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use quelea_engine::{
    Span, Stage,
    runner::{self, Input, Job, Phase, Runner, RunnerConfig, SessionId, Want},
};
use quelea_wire::{ErrorCode, Profile};
use tokio::sync::oneshot;

use super::{
    coordinator::ChainSession,
    models::{Ends, unusable},
    plane::engine_code,
    serve::{GRACE, Served, profile_of},
    types::{HopReport, InferError},
};

/// All layers of a model, ready for one request.
pub(crate) enum Pipeline {
    /// By peers.
    Chain(Box<ChainSession>),
    /// Here, unsplit.
    Local(Box<LocalLayers>),
}

impl Pipeline {
    /// Gives a chunk of the prompt to the layers. Chunks may overlap on their way through a chain.
    pub(crate) async fn push_chunk(&mut self, rows: Vec<f32>, pos: u32) -> Result<(), InferError> {
        match self {
            Self::Chain(chain) => chain.push_chunk(rows, pos).await,
            Self::Local(local) => local.run(rows, pos).await,
        }
    }

    /// Waits for all chunks; the prompt's last row.
    pub(crate) async fn end_of_prefill(&mut self) -> Result<Vec<f32>, InferError> {
        match self {
            Self::Chain(chain) => chain.end_of_prefill().await,
            Self::Local(local) => Ok(std::mem::take(&mut local.last)),
        }
    }

    /// Runs one token's row, `[hidden]` to `[hidden]`.
    pub(crate) async fn decode(&mut self, row: Vec<f32>, pos: u32) -> Result<Vec<f32>, InferError> {
        match self {
            Self::Chain(chain) => chain.decode(row, pos).await,
            Self::Local(local) => {
                local.run(row, pos).await?;
                Ok(std::mem::take(&mut local.last))
            }
        }
    }

    /// The numeric profile of all stages.
    pub(crate) fn profile(&self) -> Profile {
        match self {
            Self::Chain(chain) => chain.profile(),
            Self::Local(local) => local.profile,
        }
    }

    /// Closes the session; who did what.
    pub(crate) async fn finish(&mut self) -> Vec<HopReport> {
        match self {
            Self::Chain(chain) => chain.finish().await,
            Self::Local(_) => Vec::new(),
        }
    }
}

/// All layers in one stage of this process, for one request.
pub(crate) struct LocalLayers {
    runner: Runner,
    session: SessionId,
    profile: Profile,
    width: usize,
    step_timeout: Duration,
    last: Vec<f32>,
}

impl LocalLayers {
    /// Loads every layer of the model for this request alone. Blocking.
    pub(crate) fn load(ends: &Ends, max_rows: u32, step_timeout: Duration) -> Result<Self, InferError> {
        let n_layers = ends.file.manifest.n_layers;
        let stage = Stage::load_with(&ends.file.gguf, Span::layers(0..n_layers), &ends.compute)
            .map_err(|e| unusable(&ends.file.name, &e))?;
        let profile = profile_of(&stage);
        let config = RunnerConfig { kv_pages: runner::pages_for(max_rows), max_sessions: 1, queue: 1, grace: GRACE };
        let runner = Runner::spawn(stage, config).map_err(|e| InferError::new(ErrorCode::Internal, e.to_string()))?;
        Self::on(runner, 0..n_layers, ends, profile, max_rows, step_timeout)
    }

    /// Uses a stage of this node that holds every layer.
    pub(crate) fn served(
        served: &Served,
        ends: &Ends,
        max_rows: u32,
        step_timeout: Duration,
    ) -> Result<Self, InferError> {
        let layers = served.local_layers(&served.span);
        Self::on(served.runner.clone(), layers, ends, served.profile, max_rows, step_timeout)
    }

    fn on(
        runner: Runner,
        layers: Range<usize>,
        ends: &Ends,
        profile: Profile,
        max_rows: u32,
        step_timeout: Duration,
    ) -> Result<Self, InferError> {
        let session =
            runner.open_layers(layers, max_rows).map_err(|e| InferError::new(ErrorCode::NoKvPages, e.to_string()))?;
        Ok(Self { runner, session, profile, width: ends.stage.hidden(), step_timeout, last: Vec::new() })
    }

    async fn run(&mut self, rows: Vec<f32>, pos: u32) -> Result<(), InferError> {
        let (reply, answer) = oneshot::channel();
        let phase = if rows.len() > self.width { Phase::Prefill } else { Phase::Decode };
        let job = Job {
            session: self.session,
            pos,
            input: Input::Rows(rows),
            want: Want::Rows,
            phase,
            deadline: Instant::now() + self.step_timeout,
            reply: Box::new(move |result| drop(reply.send(result))),
        };
        self.runner.submit(job).map_err(|e| InferError::new(ErrorCode::Overloaded, e.to_string()))?;
        let output = tokio::time::timeout(self.step_timeout, answer)
            .await
            .map_err(|_| {
                let waited = self.step_timeout.as_secs_f64();
                let message = format!("the layers here have not computed their rows within {waited:.1} s");
                InferError::new(ErrorCode::DeadlineExceeded, message)
            })?
            .map_err(|_| InferError::new(ErrorCode::Internal, "the local stage has stopped"))?
            .map_err(|e| InferError::new(engine_code(&e), e.to_string()))?;
        let mut rows = output.rows;
        self.last = rows.split_off(rows.len().saturating_sub(self.width));
        Ok(())
    }
}

impl Drop for LocalLayers {
    fn drop(&mut self) {
        self.runner.close(self.session);
    }
}
