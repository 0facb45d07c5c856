//! The layers, wherever they run: through a chain of peers, or in one stage here.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use quelea_engine::{
    PREFILL_CHUNK, Runner,
    runner::{Input, Job, JobError, Phase, SessionId, SessionSpec, SubmitError, Want},
};
use quelea_shard::frame::TopLogits;
use quelea_wire::{ErrorCode, Profile};
use tokio::sync::oneshot;

use super::{
    auditor::Drawn,
    coordinator::ChainSession,
    models::Ends,
    plane::engine_code,
    planner::{nanos, observed::Took},
    prefix,
    private::Private,
    sampling::Logits,
    serve::profile_named,
    types::{Cost, HopReport, InferError, Recovery, Saw},
};

/// Whose work this is to a runner of this node: that of the node's own user.
pub(super) const OWN_GROUP: u64 = 0;

/// All layers of a model, ready for one request: tokens in, logits out.
pub(crate) enum Pipeline {
    /// By peers.
    Chain(Box<RemoteLayers>),
    /// Here, unsplit.
    Local(Box<LocalLayers>),
}

impl Pipeline {
    /// Runs the prompt; the logits after it.
    pub(crate) async fn prefill(&mut self, prompt: &[u32]) -> Result<Logits, InferError> {
        match self {
            Self::Chain(remote) => remote.prefill(prompt).await,
            Self::Local(local) => Ok(Logits::all(local.prefill(prompt).await?, local.vocab())),
        }
    }

    /// A stage with the model's last norm, if one is here.
    pub(crate) fn head(&self) -> Option<Runner> {
        match self {
            Self::Chain(remote) => remote.head.as_ref().map(|head| head.runner.clone()),
            Self::Local(local) => Some(local.work.runner.clone()),
        }
    }

    /// Runs more of a prompt, from `at` on; the rows that are ready. Nothing when all are out.
    pub(crate) async fn more_rows(&mut self, prompt: &[u32], at: &mut usize) -> Result<Option<Vec<f32>>, InferError> {
        let pos = u32::try_from(*at).unwrap_or(u32::MAX);
        let rest = prompt.get(*at..).unwrap_or_default();
        let chunk = rest.get(..PREFILL_CHUNK).unwrap_or(rest);
        *at += chunk.len();
        let started = Instant::now();
        let (rows, took) = match self {
            Self::Chain(remote) => {
                let rows = match chunk {
                    [] => remote.chain.end_of_prefill().await?,
                    chunk => {
                        remote.chain.push_chunk(chunk, pos).await?;
                        remote.chain.results()
                    }
                };
                // The last call, if not the one before, finds nothing.
                if chunk.is_empty() && rows.is_empty() {
                    return Ok(None);
                }
                (rows, &mut remote.took)
            }
            Self::Local(_) if chunk.is_empty() => return Ok(None),
            Self::Local(local) => {
                let input = Input::Tokens(chunk.to_vec());
                (local.work.run(input, pos, Want::Rows, Phase::Prefill).await?, &mut local.took)
            }
        };
        took.prompt_rows = took.prompt_rows.saturating_add(count(chunk.len()));
        took.prompt_ns = took.prompt_ns.saturating_add(nanos(started.elapsed()));
        Ok(Some(rows))
    }

    /// Whether tokens that were run may be taken back with the next ones, and run with others to the same bits as alone.
    pub(crate) fn rewinds(&self) -> bool {
        match self {
            Self::Chain(remote) => remote.chain.rewinds() && remote.model.is_exact(),
            Self::Local(local) => local.work.runner.stage().is_exact(),
        }
    }

    /// Runs more tokens, the first at `pos`; the logits after each, `[n, vocab]`. Where the pipeline
    /// [goes back](Self::rewinds), `pos` may lie before the end of what it has run: the rest is forgotten first.
    pub(crate) async fn decode(&mut self, ids: &[u32], pos: u32) -> Result<Logits, InferError> {
        match self {
            Self::Chain(remote) => remote.decode(ids, pos).await,
            Self::Local(local) => Ok(Logits::all(local.decode(ids, pos).await?, local.vocab())),
        }
    }

    /// Rows of the prompt that were there from before, and are not computed.
    pub(crate) fn kept_rows(&self) -> usize {
        match self {
            Self::Chain(remote) => usize::try_from(remote.chain.kept_rows()).unwrap_or(0),
            Self::Local(local) => local.kept_rows,
        }
    }

    /// Names the rows of `ids`, all of which were computed, for requests that begin alike.
    pub(crate) fn keep(&self, ends: &Ends, ids: &[u32]) {
        match self {
            // The layers that are here have kept nothing, and the others are given all rows.
            Self::Chain(remote) if remote.private.is_some() => {}
            Self::Chain(remote) => {
                let keys = ends.prefix_keys(remote.name, ids);
                remote.chain.keep(&prefix::to_wire(&keys).keys);
            }
            Self::Local(local) => {
                let keys = ends.prefix_keys(local.name, ids);
                let new = keys.keys().get(local.named..).unwrap_or_default();
                local.work.runner.keep(local.work.session, local.named, new.to_vec());
            }
        }
    }

    /// What it has taken so far, the ends of a split model aside.
    pub(crate) fn took(&self) -> Took {
        match self {
            Self::Chain(remote) => remote.took,
            Self::Local(local) => local.took,
        }
    }

    /// Which peers were given what.
    pub(crate) fn saw(&self) -> Vec<Saw> {
        match self {
            Self::Chain(remote) => remote.chain.saw(),
            Self::Local(_) => Vec::new(),
        }
    }

    /// Bytes of rows that left for the first stage, and that came back from the last.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        match self {
            Self::Chain(remote) => remote.chain.bytes(),
            Self::Local(_) => (0, 0),
        }
    }

    /// Layers that are kept here by the request's wish.
    pub(crate) fn private(&self) -> Vec<String> {
        match self {
            Self::Chain(remote) if remote.private.is_some() => remote.chain.around(),
            _ => Vec::new(),
        }
    }

    /// Whether the chain's ends compute those of the model.
    pub(crate) fn is_thin(&self) -> bool {
        match self {
            Self::Chain(remote) => remote.chain.ends().takes_tokens,
            Self::Local(_) => false,
        }
    }

    /// The numeric profile of all stages.
    pub(crate) fn profile(&self) -> Profile {
        match self {
            Self::Chain(remote) => remote.chain.profile(),
            Self::Local(local) => profile_named(local.name),
        }
    }

    /// Stages that were lost, and who took over.
    pub(crate) fn recoveries(&self) -> Vec<Recovery> {
        match self {
            Self::Chain(remote) => remote.chain.recoveries(),
            Self::Local(_) => Vec::new(),
        }
    }

    /// Whether any stage asks a price.
    pub(crate) fn is_paid(&self) -> bool {
        match self {
            Self::Chain(remote) => remote.chain.is_paid(),
            Self::Local(_) => false,
        }
    }

    /// What the stages got, once it is finished.
    pub(crate) fn cost(&self) -> Option<Cost> {
        match self {
            Self::Chain(remote) => remote.chain.cost(),
            Self::Local(_) => None,
        }
    }

    /// That the answer was drawn to be audited, once it is finished.
    pub(crate) fn take_drawn(&mut self) -> Option<Drawn> {
        match self {
            Self::Chain(remote) => remote.chain.take_drawn(),
            Self::Local(_) => None,
        }
    }

    /// The receipt in hex, once it is finished, where one was asked for.
    pub(crate) fn receipt(&self) -> Option<String> {
        match self {
            Self::Chain(remote) => remote.chain.receipt().map(hex::encode),
            Self::Local(_) => None,
        }
    }

    /// Closes the session; who did what.
    ///
    /// # Errors
    /// When what the stages have signed for does not fit together.
    pub(crate) async fn finish(&mut self) -> Result<Vec<HopReport>, InferError> {
        match self {
            Self::Chain(remote) => remote.chain.finish().await,
            Self::Local(_) => Ok(Vec::new()),
        }
    }
}

/// The layers at peers, embedding and head here or there.
pub(crate) struct RemoteLayers {
    pub(crate) chain: ChainSession,
    model: Arc<Ends>,
    /// The profile, in the engine's words.
    name: &'static str,
    /// The head; nothing where the last stage has it.
    head: Option<Work>,
    /// Layers around those of the chain, embedding and head with them.
    private: Option<Private>,
    took: Took,
}

impl RemoteLayers {
    /// `runner` has embedding and head; all requests share it. Without one the chain computes them.
    pub(crate) fn new(
        chain: ChainSession,
        model: &Arc<Ends>,
        name: &'static str,
        runner: Option<&Runner>,
        step_timeout: Duration,
    ) -> Result<Self, InferError> {
        let open = |runner| {
            let spec = SessionSpec { group: OWN_GROUP, layers: 0..0, max_rows: 1, ..SessionSpec::default() };
            Work::open(runner, spec, step_timeout).map(|(work, _)| work)
        };
        let head = runner.map(open).transpose()?;
        Ok(Self { chain, model: model.clone(), name, head, private: None, took: Took::default() })
    }

    /// With the layers around the chain's here.
    pub(crate) fn within(chain: ChainSession, model: &Arc<Ends>, private: Private) -> Self {
        // Nothing is named of what is kept here.
        Self { chain, model: model.clone(), name: "", head: None, private: Some(private), took: Took::default() }
    }

    async fn prefill(&mut self, prompt: &[u32]) -> Result<Logits, InferError> {
        let started = Instant::now();
        let mut pos = usize::try_from(self.chain.kept_rows()).unwrap_or(0);
        self.took.prompt_rows = count(prompt.len().saturating_sub(pos));
        if let Some(private) = &mut self.private {
            let logits = private.prefill(&mut self.chain, prompt).await?;
            self.took.prompt_ns = nanos(started.elapsed());
            return Ok(Logits::all(logits, self.model.hparams.vocab));
        }
        for chunk in prompt.get(pos..).unwrap_or_default().chunks(PREFILL_CHUNK) {
            self.chain.push_chunk(chunk, u32::try_from(pos).unwrap_or(u32::MAX)).await?;
            pos += chunk.len();
        }
        let last = self.chain.end_of_prefill().await?;
        self.took.prompt_ns = nanos(started.elapsed());
        self.head(last).await
    }

    async fn decode(&mut self, ids: &[u32], pos: u32) -> Result<Logits, InferError> {
        let started = Instant::now();
        if let Some(private) = &mut self.private {
            let logits = private.decode(&mut self.chain, ids, pos).await?;
            self.took.pass(count(ids.len()), started.elapsed());
            return Ok(Logits::all(logits, self.model.hparams.vocab));
        }
        let rows = self.chain.decode(ids, pos).await?;
        self.took.pass(count(ids.len()), started.elapsed());
        self.head(rows).await
    }

    /// The head's product is shared with other requests.
    async fn head(&self, rows: Vec<f32>) -> Result<Logits, InferError> {
        let vocab = self.model.hparams.vocab;
        if let Some(head) = &self.head {
            return Ok(Logits::all(head.run(Input::Rows(rows), 0, Want::AllLogits, Phase::Decode).await?, vocab));
        }
        let width = self.chain.ends().logits_width().and_then(|width| usize::try_from(width).ok()).unwrap_or(1);
        let top = rows.chunks(width).map(|row| TopLogits::take(row, vocab)).collect::<Result<Vec<_>, _>>();
        top.map(|rows| Logits::likeliest(rows, vocab)).map_err(|code| self.chain.last_lies(code))
    }
}

/// A whole model in one stage of this process, for one request; all requests share the stage.
pub(crate) struct LocalLayers {
    work: Work,
    /// The profile, in the engine's words.
    name: &'static str,
    /// Rows of the prompt that are there from before.
    kept_rows: usize,
    /// Blocks of it that have names.
    named: usize,
    took: Took,
}

impl LocalLayers {
    fn vocab(&self) -> usize {
        self.work.runner.stage().vocab()
    }

    /// `runner` has all of the model; `name` is the profile's.
    pub(crate) fn new(
        ends: &Ends,
        runner: &Runner,
        name: &'static str,
        prompt: &[u32],
        max_rows: u32,
        step_timeout: Duration,
    ) -> Result<Self, InferError> {
        let layers: Range<usize> = 0..ends.hparams.n_layers;
        let prefix = ends.prefix_keys(name, prompt);
        let bf16 = profile_named(name) == Profile::ExactBf16;
        let named = prefix.keys().len();
        let spec = SessionSpec { group: OWN_GROUP, layers, max_rows, bf16, prefix, on_event: None };
        let (work, kept_rows) = Work::open(runner, spec, step_timeout)?;
        Ok(Self { work, name, kept_rows, named, took: Took::default() })
    }

    async fn prefill(&mut self, prompt: &[u32]) -> Result<Vec<f32>, InferError> {
        let started = Instant::now();
        let mut pos = self.kept_rows;
        self.took.prompt_rows = count(prompt.len().saturating_sub(pos));
        let mut logits = Vec::new();
        let rest = prompt.get(pos..).unwrap_or_default();
        for chunk in rest.chunks(PREFILL_CHUNK) {
            let at = u32::try_from(pos).unwrap_or(u32::MAX);
            pos += chunk.len();
            let want = if pos == prompt.len() { Want::Logits } else { Want::Rows };
            logits = self.work.run(Input::Tokens(chunk.to_vec()), at, want, Phase::Prefill).await?;
        }
        self.took.prompt_ns = nanos(started.elapsed());
        Ok(logits)
    }

    async fn decode(&mut self, ids: &[u32], pos: u32) -> Result<Vec<f32>, InferError> {
        let started = Instant::now();
        let logits = self.work.run(Input::Tokens(ids.to_vec()), pos, Want::AllLogits, Phase::Decode).await?;
        self.took.pass(count(ids.len()), started.elapsed());
        Ok(logits)
    }
}

/// A request's session in a stage of this process.
pub(super) struct Work {
    runner: Runner,
    session: SessionId,
    step_timeout: Duration,
    evicted: Arc<AtomicBool>,
}

impl Work {
    /// Opens a session; it, and the rows that it holds already.
    pub(super) fn open(
        runner: &Runner,
        mut spec: SessionSpec,
        step_timeout: Duration,
    ) -> Result<(Self, usize), InferError> {
        let evicted = Arc::new(AtomicBool::new(false));
        let heard = evicted.clone();
        spec.on_event = Some(Box::new(move |_| heard.store(true, Ordering::Relaxed)));
        let opened = runner.open_with(spec).map_err(|e| InferError::new(ErrorCode::NoKvPages, e.to_string()))?;
        let work = Self { runner: runner.clone(), session: opened.session, step_timeout, evicted };
        Ok((work, usize::try_from(opened.reused_rows).unwrap_or(0)))
    }

    pub(super) async fn run(&self, input: Input, pos: u32, want: Want, phase: Phase) -> Result<Vec<f32>, InferError> {
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + self.step_timeout;
        let reply = Box::new(move |result| drop(reply.send(result)));
        let job = Job { session: self.session, pos, input, want, phase, deadline, reply };
        self.runner.submit(job).map_err(|e| match e {
            SubmitError::UnknownSession { .. } if self.is_evicted() => gone(),
            e => InferError::new(ErrorCode::Overloaded, e.to_string()),
        })?;
        let answer = tokio::time::timeout(self.step_timeout, answer).await;
        let answer = answer.map_err(|_| {
            let waited = self.step_timeout.as_secs_f64();
            let message = format!("the layers here have not computed their rows within {waited:.1} s");
            InferError::new(ErrorCode::DeadlineExceeded, message)
        })?;
        match answer {
            Ok(Ok(output)) => Ok(output.rows),
            Ok(Err(JobError::Closed)) if self.is_evicted() => Err(gone()),
            Ok(Err(e)) => Err(InferError::new(engine_code(&e), e.to_string())),
            Err(_) => Err(InferError::new(ErrorCode::Internal, "the local stage has stopped")),
        }
    }

    fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Relaxed)
    }
}

fn gone() -> InferError {
    let message = "the answer was not read for so long that its place was given to another request";
    InferError::new(ErrorCode::Evicted, message).hint("ask again, and read the answer as it comes")
}

impl Drop for Work {
    fn drop(&mut self) {
        self.runner.close(self.session);
    }
}

fn count(rows: usize) -> u64 {
    u64::try_from(rows).unwrap_or(u64::MAX)
}
