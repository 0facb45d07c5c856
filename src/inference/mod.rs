//! Inference across peers: finding a chain, running a session over it as coordinator, and serving layers as a stage.
//!
//! | file | holds |
//! |---|---|
//! | `types` | requests, events and errors, as people and programs see them |
//! | `models` | model files that this node can ask about |
//! | `discover`, `chain` | who holds what, and which of them to use |
//! | `generate`, `sampling`, `pipeline` | prompt to text, wherever the layers run |
//! | `speculate` | guessing tokens and verifying several in one pass |
//! | `prefix` | names of prompts' beginnings |
//! | `coordinator` | one session over a chain, from the side that asks |
//! | `plane`, `links`, `stage` | everything on shard streams: tasks, outgoing links, sessions served |
//! | `fair` | who gives way when a stage is full |
//! | `serve`, `publish` | layers this node serves, and their announcement |

mod chain;
mod coordinator;
mod discover;
mod fair;
mod generate;
mod links;
mod memory;
pub(crate) mod models;
mod pipeline;
pub(crate) mod plane;
pub(crate) mod prefix;
pub(crate) mod publish;
mod sampling;
pub(crate) mod serve;
mod speculate;
mod stage;
mod types;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use quelea_announce::SignedAnnouncement;
use quelea_engine::runner::PrefixKeys;
use quelea_wire::{ErrorCode, ModelId};
use tokio::sync::mpsc;

pub use self::types::{
    FinishReason, HopReport, InferError, InferEvent, InferRequest, LikelyToken, PromptForm, Recovery, Route, RouteHop,
    Speculate, Speculation, Summary, TokenLogprobs,
};
use self::{
    coordinator::{ChainSession, SessionSpec},
    models::{Ends, Models},
    pipeline::{LocalLayers, Pipeline, RemoteLayers},
    plane::Plane,
    serve::{Served, profile_of},
    speculate::{Draft, Speculator, same_vocabulary},
};

/// Events of one request that may be unread.
pub(crate) const EVENT_QUEUE: usize = 64;

/// Answers requests of this node's user.
pub(crate) struct Asker {
    pub(crate) models: Models,
    pub(crate) plane: Arc<Plane>,
    /// What this node announces itself, if it serves anything.
    pub(crate) own: Arc<RwLock<Option<SignedAnnouncement>>>,
}

impl Asker {
    /// Answers `request`. Everything that happens goes to `events`, the end included: exactly one `Done` or `Error`,
    /// unless the receiver has gone, which cancels the request at every stage.
    pub(crate) async fn infer(&self, request: InferRequest, events: mpsc::Sender<InferEvent>) {
        let started = Instant::now();
        let telemetry = &self.plane.telemetry;
        let _active = self.plane.begin_request();
        let mut model = None;
        let running = tokio::select! {
            result = self.answer(&request, &events, started, &mut model) => result,
            () = events.closed() => Err(InferError::new(ErrorCode::Cancelled, "the caller has gone away")),
        };
        let end = match running {
            Ok(summary) => {
                if let Some(model) = &model {
                    telemetry.request_done(&request, model, &summary);
                }
                InferEvent::Done { summary: Box::new(summary) }
            }
            Err(error) => {
                tracing::info!(%error, "request failed");
                telemetry.request_failed(&request, model.as_ref(), &error, started.elapsed());
                InferEvent::Error { error }
            }
        };
        let _ = events.send(end).await;
    }

    async fn answer(
        &self,
        request: &InferRequest,
        events: &mpsc::Sender<InferEvent>,
        started: Instant,
        model: &mut Option<ModelId>,
    ) -> Result<Summary, InferError> {
        let ends = self.models.ends(&request.model).await?;
        *model = Some(ends.file.id);
        generate::check(&ends, request)?;
        let prompt = generate::prompt_ids(&ends, request)?;
        let max_rows = generate::max_rows(&ends, request, prompt.len());
        let mut pipeline = match request.route {
            Route::Auto => self.open_chain(&ends, request, &prompt, max_rows).await?,
            Route::Local => {
                let runner = ends.whole().await?;
                let local = LocalLayers::new(&ends, runner, &prompt, max_rows, request.step_timeout())?;
                Pipeline::Local(Box::new(local))
            }
        };
        let hops = match &pipeline {
            Pipeline::Chain(remote) => remote.chain.route(),
            Pipeline::Local(_) => Vec::new(),
        };
        let route = InferEvent::Route { model: ends.file.id.to_string(), hops };
        events.send(route).await.map_err(|_| InferError::new(ErrorCode::Cancelled, "the caller has gone away"))?;
        let draft = self.draft(&ends, request, max_rows).await?;
        let speculator = Speculator::new(request.speculate, draft, &prompt);
        generate::generate(&ends, &mut pipeline, request, &prompt, events, started, speculator).await
    }

    /// The model that guesses for this one, if the request names one.
    async fn draft(&self, ends: &Ends, request: &InferRequest, max_rows: u32) -> Result<Option<Draft>, InferError> {
        let Some(name) = request.draft.as_ref().filter(|_| request.speculate != Speculate::Off) else {
            return Ok(None);
        };
        let draft = self.models.ends(name).await?;
        same_vocabulary(ends, &draft)?;
        Draft::open(draft.whole().await?, max_rows, request.step_timeout()).map(Some)
    }

    /// Finds a chain and opens a session over it.
    async fn open_chain(
        &self,
        ends: &Arc<Ends>,
        request: &InferRequest,
        prompt: &[u32],
        max_rows: u32,
    ) -> Result<Pipeline, InferError> {
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner).clone();
        let runner = ends.ends().await?;
        let (model, profile) = (ends.file.id, profile_of(runner.stage()));
        let (layers, patience) = (ends.file.layers(), request.step_timeout());
        let local = own.as_ref();
        let wanted = discover::Wanted { model, layers, profile, patience, local, within: None, without: &[] };
        let hops = discover::find_chain(&self.plane.handle, wanted).await.map_err(|missing| {
            let hint = match missing.missing.first() {
                Some(span) => {
                    format!("start a worker for them: quelea daemon --model FILE --layers {span} --bootstrap …")
                }
                None => "start a worker with a wider span".into(),
            };
            InferError::new(ErrorCode::NoRoute, format!("model {}: {missing}", model.short())).hint(hint)
        })?;
        let local = self.plane.handle.local();
        let here = |served: &Arc<Served>| served.is_whole() && served.file.id == model && served.profile == profile;
        if let [only] = hops.as_slice()
            && only.peer == local
            && let Some(served) = self.plane.served().into_iter().find(here)
        {
            let local = LocalLayers::new(ends, &served.runner, prompt, max_rows, request.step_timeout())?;
            return Ok(Pipeline::Local(Box::new(local)));
        }
        // Rows that others computed are as good as new ones only where they depend on nothing else.
        let stage = runner.stage();
        let keys = if stage.is_exact() { ends.prefix_keys(stage.profile(), prompt) } else { PrefixKeys::default() };
        let prefix = prefix::to_wire(&keys);
        let spec = SessionSpec {
            model,
            profile,
            width: u32::try_from(ends.hparams.hidden).unwrap_or(u32::MAX),
            max_rows,
            step_timeout: request.step_timeout(),
            prefix,
            layers,
            ends: runner.clone(),
            prompt: prompt.to_vec(),
            own: own.clone(),
        };
        let chain = ChainSession::open(self.plane.clone(), hops, spec).await?;
        Ok(Pipeline::Chain(Box::new(RemoteLayers::new(chain, runner, request.step_timeout())?)))
    }
}
