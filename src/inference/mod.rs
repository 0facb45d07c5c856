//! Inference across peers: finding a chain, running a session over it as coordinator, and serving layers as a stage.
//!
//! | file | holds |
//! |---|---|
//! | `types` | requests, events and errors, as people and programs see them |
//! | `models` | model files that this node can ask about |
//! | `ask`, `discover`, `planner` | who holds what, and which of them to use |
//! | `planning` | from a request to a chain, and what is learnt from it |
//! | `experience`, `meter` | what was measured of peers, and of this node |
//! | `generate`, `sampling`, `pipeline` | prompt to text, wherever the layers run |
//! | `follow` | answers that have to be JSON, or follow a schema or a grammar |
//! | `embed` | texts as vectors |
//! | `thin` | asking without embedding and head |
//! | `private` | keeping the outer layers here |
//! | `speculate` | guessing tokens and verifying several in one pass |
//! | `resume`, `session_log` | going on with an answer that was cut off, and what is kept for that |
//! | `prefix` | names of prompts' beginnings |
//! | `coordinator` | one session over a chain, from the side that asks |
//! | `plane`, `links`, `stage` | everything on shard streams: tasks, outgoing links, sessions served |
//! | `fair` | who gives way when a stage is full |
//! | `audit`, `auditor`, `claims` | computing answers again: what is found, when, and what is kept of that |
//! | `coverage` | who holds which layers of a model |
//! | `rebalance` | moving to layers that are thinner |
//! | `serve`, `publish`, `figures` | layers this node serves, their announcement, and when it is made anew |

mod ask;
pub(crate) mod audit;
pub(crate) mod auditor;
pub(crate) mod claims;
mod coordinator;
mod coverage;
pub(crate) mod discover;
mod embed;
mod experience;
mod fair;
mod figures;
mod follow;
mod generate;
mod links;
pub(crate) mod memory;
mod meter;
pub(crate) mod models;
mod pipeline;
pub(crate) mod plane;
pub(crate) mod planner;
mod planning;
pub(crate) mod prefix;
mod private;
pub(crate) mod publish;
pub(crate) mod rebalance;
mod resume;
mod sampling;
pub(crate) mod serve;
pub(crate) mod session_log;
mod speculate;
mod stage;
mod thin;
mod types;

use std::{
    sync::{Arc, RwLock},
    time::Instant,
};

use quelea_announce::SignedAnnouncement;
use quelea_wire::{ErrorCode, ModelId};
use tokio::sync::mpsc;
use tracing::Instrument as _;

use crate::telemetry::{
    operation, say_what_came,
    traces::{Span, Within},
};

use self::{
    auditor::{Auditor, Drawn},
    follow::Follow,
    models::{Ends, Models},
    pipeline::{LocalLayers, Pipeline},
    plane::Plane,
    planner::beside::Sample,
    resume::Begun,
    session_log::SessionLogs,
    speculate::{Draft, Speculator, same_vocabulary},
};
pub use self::{
    coverage::{CoverageHolder, CoverageReport},
    planner::{
        Objective, Source,
        report::{PlanHop, PlanLeftOut, PlanMissing, PlanReport, PlanView},
    },
    types::{
        CommittedRows, Cost, CutOff, FinishReason, Format, HopReport, InferError, InferEvent, InferRequest,
        LikelyToken, PlanRequest, Prediction, PromptForm, Recovery, RequestProfile, Route, RouteHop, Saw, Speculate,
        Speculation, StageCost, Summary, TokenLogprobs,
    },
};

pub(crate) use self::stage::{Disk, LogBudget};
#[cfg(test)]
pub(crate) use self::{coordinator::paying::Stint, stage::mischief::Mischief};

/// Events of one request that may be unread.
pub(crate) const EVENT_QUEUE: usize = 64;

/// A request that is being answered.
pub(crate) struct Asked<'a> {
    request: &'a InferRequest,
    /// What its answer has to be.
    follow: Option<Follow>,
    events: &'a mpsc::Sender<InferEvent>,
    started: Instant,
    /// Where its trace goes on.
    trace: Within,
}

/// Answers requests of this node's user.
pub(crate) struct Asker {
    pub(crate) models: Models,
    pub(crate) plane: Arc<Plane>,
    /// What this node announces itself, if it serves anything.
    pub(crate) own: Arc<RwLock<Option<SignedAnnouncement>>>,
    /// Where answers are kept while they are given, if they are.
    pub(crate) logs: Option<SessionLogs>,
    /// Has some answers computed again.
    pub(crate) auditor: Auditor,
}

impl Asker {
    /// Answers `request`. Everything that happens goes to `events`, the end included: exactly one `Done` or `Error`,
    /// unless the receiver has gone, which cancels the request at every stage.
    pub(crate) async fn infer(&self, request: InferRequest, events: mpsc::Sender<InferEvent>) {
        let span = self.plane.telemetry.request_span(&request);
        let log = span.for_log();
        self.infer_in(span, request, events).instrument(log).await;
    }

    async fn infer_in(&self, mut span: Span, request: InferRequest, events: mpsc::Sender<InferEvent>) {
        let started = Instant::now();
        let telemetry = &self.plane.telemetry;
        let _active = self.plane.begin_request();
        let mut model = None;
        let running = tokio::select! {
            result = self.answer(&request, &events, started, &mut model, &mut span) => result,
            () = events.closed() => Err(InferError::new(ErrorCode::Cancelled, "the caller has gone away")),
        };
        let end = match running {
            Ok(summary) => {
                if let Some(model) = &model {
                    telemetry.request_done(&request, model, &summary);
                }
                say_what_came(&mut span, &summary);
                tracing::debug!(tokens = summary.ids.len(), took_s = summary.total_s, "request answered");
                InferEvent::Done { summary: Box::new(summary) }
            }
            Err(error) => {
                tracing::info!(%error, "request failed");
                telemetry.request_failed(&request, model.as_ref(), &error, started.elapsed());
                span.fail(error.code.clone(), error.error_code().meaning());
                InferEvent::Error { error }
            }
        };
        // Before its caller knows: who then looks finds it.
        drop(span);
        let _ = events.send(end).await;
    }

    async fn answer(
        &self,
        request: &InferRequest,
        events: &mpsc::Sender<InferEvent>,
        started: Instant,
        model: &mut Option<ModelId>,
        span: &mut Span,
    ) -> Result<Summary, InferError> {
        let earlier = self.earlier(request).await?;
        let asked = earlier.as_ref().map(|earlier| earlier.asked(request));
        let request = asked.as_ref().unwrap_or(request);
        let ends = self.models.ends_for(&request.model, request.route == Route::Local).await?;
        *model = Some(ends.file.id);
        span.of_model(operation(request).as_str(), &ends.file.name, &ends.file.id.to_string());
        generate::check(&ends, request)?;
        let mut begun = match earlier {
            Some(earlier) => Begun::again(earlier, &ends.file.id)?,
            None => Begun::new(generate::prompt_ids(&ends, request)?),
        };
        let follow = Follow::of(&ends, request, &begun.said).await?;
        let mut drawn = None;
        let asked = Asked { request, follow, events, started, trace: span.within() };
        let answered = self.answer_from(&ends, asked, &mut begun, &mut drawn).await;
        let summary = begun.end(&ends, request, answered).await?;
        if let Some(drawn) = drawn {
            self.auditor.audit(&ends, &summary, drawn);
        }
        Ok(summary)
    }

    async fn answer_from(
        &self,
        ends: &Arc<Ends>,
        asked: Asked<'_>,
        begun: &mut Begun,
        drawn: &mut Option<Drawn>,
    ) -> Result<Summary, InferError> {
        let (request, events) = (asked.request, asked.events);
        let (rows, max_rows) = (begun.whole(), generate::max_rows(ends, request, begun.prompt.len()));
        let (mut pipeline, predicted) = match request.route {
            Route::Auto | Route::Swarm => self.open_again(ends, &asked, begun, max_rows).await?,
            Route::Local => {
                let runner = ends.whole().await?;
                let name = ends.profile(request.profile)?;
                let local = LocalLayers::new(ends, runner, name, &rows, max_rows, request.step_timeout())?;
                (Pipeline::Local(Box::new(local)), None)
            }
        };
        let hops = match &pipeline {
            Pipeline::Chain(remote) => remote.chain.route(),
            Pipeline::Local(_) => Vec::new(),
        };
        let warning = self.keep(ends, request, &pipeline.profile().to_string(), begun).await?;
        let route = InferEvent::Route { model: ends.file.id.to_string(), hops, resume: begun.id() };
        for event in [Some(route), warning].into_iter().flatten() {
            events.send(event).await.map_err(|_| InferError::new(ErrorCode::Cancelled, "the caller has gone away"))?;
        }
        let draft = self.draft(ends, request, max_rows).await?;
        let speculator = Speculator::new(request.speculate, draft, &begun.prompt);
        let answered = generate::generate(ends, &mut pipeline, asked, begun, speculator).await;
        *drawn = pipeline.take_drawn();
        let mut summary = answered.map_err(|error| {
            self.note_failure(&error);
            InferError { charged: pipeline.is_paid(), ..error }
        })?;
        self.learn(ends, pipeline.took(), &summary.hops).await;
        let guesses = request.speculate != Speculate::Off;
        let mut beside = self.plane.experience.beside();
        summary.predicted = predicted.map(|chain| beside.with(ends.file.id, guesses, chain));
        beside.learn(ends.file.id, Sample::of(&summary, pipeline.took()));
        drop(beside);
        Ok(summary)
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
}
