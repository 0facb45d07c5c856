//! Layers that this node serves: choosing which, and loading them.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use quelea_announce::Ends;
use quelea_engine::{
    KV_PAGE_ROWS, MAX_ROWS, Manifest, Span, Stage, StageOptions,
    runner::{Runner, RunnerConfig},
};
use quelea_wire::{ErrorCode, ModelId, Profile, SpanRange};

use super::{
    discover,
    memory::{self, Needed},
    meter::Meter,
    models::{ModelFile, unusable},
    plane::Plane,
    planner::placement::{self, Holding},
    stage::MAX_SESSIONS,
    types::InferError,
};

/// The part of `--memory` that is kept for keys and values when layers are chosen.
const KV_SHARE: u64 = 4;

/// Sessions that one stage holds at once.
const RUNNER_SESSIONS: usize = MAX_SESSIONS;

/// Jobs that may wait for a stage: a few chunks for each of many sessions.
const RUNNER_QUEUE: usize = 256;

/// Bytes of rows that may wait for a stage, where [`RUNNER_QUEUE`] full chunks of a wide model would be more; but never
/// fewer jobs than [`RUNNER_QUEUE_MIN`], most of which are single rows.
const RUNNER_QUEUE_BYTES: usize = 128 << 20;
const RUNNER_QUEUE_MIN: usize = 64;

/// How long a session is idle before it may have to give way: longer than a reader takes over a pause in an answer.
const GRACE: Duration = Duration::from_secs(30);

/// The most KV pages a stage offers: 256 sessions of 4,096 rows.
const MAX_KV_PAGES: u64 = 256 * 4096 / KV_PAGE_ROWS as u64;

/// Which layers to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerChoice {
    /// The thinnest span that fits the memory.
    Auto,
    /// All of them.
    All,
    /// These.
    Exactly(SpanRange),
}

/// Whether a node computes the model's ends for those who have nothing of the model: the embedding with the first layers,
/// the head with the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ServeEnds {
    /// Where they fit beside the layers, and are here.
    #[default]
    Auto,
    /// Always: layers next to them are not served without.
    Always,
    /// Never: this node sees no token ids.
    Never,
}

impl ServeEnds {
    /// The ends that belong to these layers, and that this node is to have if it can.
    pub(crate) fn beside(self, span: SpanRange, n_layers: usize) -> Ends {
        let Range { start, end } = span.as_usize();
        let wanted = self != Self::Never;
        Ends { embedding: wanted && start == 0, head: wanted && end == n_layers }
    }
}

/// Layers in memory, ready to run.
pub(crate) struct Served {
    pub(crate) file: ModelFile,
    pub(crate) span: SpanRange,
    pub(crate) profile: Profile,
    /// Values per row.
    pub(crate) width: u32,
    /// Jobs that may wait for the runner.
    pub(crate) queue: usize,
    pub(crate) runner: Runner,
    /// What it computes besides, for those who have nothing of the model.
    pub(crate) ends: Ends,
    /// How fast it turns out to be.
    pub(crate) meter: Meter,
    /// Whether it takes no more sessions.
    leaves: AtomicBool,
}

impl Served {
    /// Whether it is the whole model, embedding and head included.
    pub(crate) fn is_whole(&self) -> bool {
        let span = self.runner.stage().span();
        span.embedding && span.head && self.span.as_usize() == (0..self.file.manifest.n_layers)
    }

    /// From now on no session is taken here.
    pub(crate) fn leave(&self) {
        self.leaves.store(true, Ordering::Relaxed);
    }

    pub(crate) fn leaves(&self) -> bool {
        self.leaves.load(Ordering::Relaxed)
    }

    /// Bytes of one KV page.
    pub(crate) fn page_bytes(&self) -> u64 {
        self.runner.stage().kv_bytes_per_row().saturating_mul(KV_PAGE_ROWS as u64)
    }

    /// A part of the span, counted from the stage's first layer, as the engine counts.
    pub(crate) fn local_layers(&self, span: &SpanRange) -> Range<usize> {
        let first = usize::from(self.span.start());
        usize::from(span.start()).saturating_sub(first)..usize::from(span.end()).saturating_sub(first)
    }
}

/// The wire's name of a stage's arithmetic.
pub(crate) fn profile_of(stage: &Stage) -> Profile {
    profile_named(stage.profile())
}

/// The wire's name of the arithmetic that the engine calls so.
pub(crate) fn profile_named(name: &str) -> Profile {
    match name {
        "exact" => Profile::Exact,
        "exact-bf16" => Profile::ExactBf16,
        "exact-kv-f16" => Profile::ExactKvF16,
        "exact-kv-q8" => Profile::ExactKvQ8,
        "candle-cpu-f32" => Profile::CandleCpu,
        "candle-cuda-f32" => Profile::CandleCuda,
        "candle-metal-f32" => Profile::CandleMetal,
        // A backend without a number of its own talks to nobody but itself.
        _ => Profile::Other(0),
    }
}

/// Picks the span, loads it and starts its stage. Reads only the span's tensors.
pub(crate) async fn load(
    plane: &Arc<Plane>,
    file: ModelFile,
    choice: LayerChoice,
    memory: Option<u64>,
    ends: ServeEnds,
    compute: &StageOptions,
) -> Result<Arc<Served>, InferError> {
    let span = choose(plane, &file.manifest, file.id, choice, memory).await?;
    let started = Instant::now();
    let (gguf, compute) = (file.gguf.clone(), *compute);
    let willing = affordable_ends(&file, span, ends, memory.unwrap_or_else(half_of_free_memory))?;
    // A node with all layers answers its own requests with them: it needs embedding and head as well.
    let all = span.as_usize() == (0..file.manifest.n_layers);
    let loaded = Span { layers: span.as_usize(), embedding: all || willing.embedding, head: all || willing.head };
    let needed = Needed::of(&file.gguf, &file.manifest.hparams, &loaded, memory::ROWS.into());
    memory::check(&format!("layers {span} of {}", file.name), needed)?;
    // Layers that fit have room for a session, too, where nobody says how much they may take.
    let budget = memory.unwrap_or_else(|| half_of_free_memory().max(needed.total()));
    let stage = tokio::task::spawn_blocking(move || Stage::load_with(&gguf, loaded, &compute))
        .await
        .map_err(|e| InferError::new(ErrorCode::Internal, e.to_string()))?
        .map_err(|e| unusable(&file.name, &format!("layers {span}: {e}")))?;
    let config = config(&stage, budget);
    if config.kv_pages == 0 {
        let message = format!(
            "layers {span} take {} MiB, which leaves no room for keys and values within {} MiB",
            stage.weight_bytes() >> 20,
            budget >> 20
        );
        return Err(InferError::new(ErrorCode::NoKvPages, message).hint("give more --memory, or fewer --layers"));
    }
    let width = u32::try_from(stage.hidden()).unwrap_or(u32::MAX);
    let profile = profile_of(&stage);
    tracing::info!(
        model = %file.id.short(), %span, weights_mib = stage.weight_bytes() >> 20, kv_pages = config.kv_pages, elapsed = ?started.elapsed(),
        "layers loaded"
    );
    let queue = config.queue;
    let runner = Runner::spawn(stage, config).map_err(|e| InferError::new(ErrorCode::Internal, e.to_string()))?;
    Ok(Arc::new(Served {
        file,
        span,
        profile,
        width,
        queue,
        runner,
        ends: willing,
        meter: Meter::default(),
        leaves: AtomicBool::new(false),
    }))
}

/// The ends that are loaded beside a span: those that belong to it, where they leave keys and values their share.
fn affordable_ends(file: &ModelFile, span: SpanRange, ends: ServeEnds, budget: u64) -> Result<Ends, InferError> {
    let n_layers = file.manifest.n_layers;
    let wanted = ends.beside(span, n_layers);
    // What is loaded for this node's own requests costs nothing more.
    if wanted == Ends::default() || span.as_usize() == (0..n_layers) {
        return Ok(wanted);
    }
    let with = Span { layers: span.as_usize(), embedding: wanted.embedding, head: wanted.head };
    let needed = Needed::of(&file.gguf, &file.manifest.hparams, &with, memory::ROWS.into());
    let weights = needed.weights;
    // Layers that fit by themselves are served, whatever would have to stay away.
    if weights <= for_weights(budget) && (ends == ServeEnds::Always || memory::check("", needed).is_ok()) {
        return Ok(wanted);
    }
    if ends == ServeEnds::Always {
        let message = format!(
            "layers {span} with the model's ends next to them take {} MiB, and of {} MiB weights may take {}",
            weights >> 20,
            budget >> 20,
            for_weights(budget) >> 20
        );
        return Err(
            InferError::new(ErrorCode::NoMemory, message).hint("give more --memory, fewer --layers, or --ends auto")
        );
    }
    tracing::info!(%span, "the model's ends next to these layers do not fit beside them; they are not served");
    Ok(Ends::default())
}

/// The span that a node is to serve of a model.
pub(crate) async fn choose(
    plane: &Arc<Plane>,
    manifest: &Manifest,
    model: ModelId,
    choice: LayerChoice,
    memory: Option<u64>,
) -> Result<SpanRange, InferError> {
    let layers = u16::try_from(manifest.n_layers).unwrap_or(u16::MAX);
    let budget = memory.unwrap_or_else(half_of_free_memory);
    match choice {
        LayerChoice::Exactly(span) if span.end() <= layers => Ok(span),
        LayerChoice::Exactly(span) => {
            let message = format!("layers {span} were asked for, but the model has only 0..{layers}");
            Err(InferError::new(ErrorCode::Usage, message))
        }
        LayerChoice::All => range(0, layers),
        LayerChoice::Auto => {
            let others = discover::spans_served(&plane.handle, &plane.experience, model).await;
            thinnest(manifest, &others, budget, own_pick(plane))
        }
    }
}

/// The bounds of a stage loop within `budget` bytes for weights, keys and values.
pub(crate) fn config(stage: &Stage, budget: u64) -> RunnerConfig {
    let page_bytes = stage.kv_bytes_per_row().saturating_mul(KV_PAGE_ROWS as u64).max(1);
    let kv_pages = (budget.saturating_sub(stage.weight_bytes()) / page_bytes).min(MAX_KV_PAGES);
    let kv_pages = u32::try_from(kv_pages).unwrap_or(u32::MAX);
    let chunk = MAX_ROWS * stage.hidden() * size_of::<f32>();
    let queue = (RUNNER_QUEUE_BYTES / chunk.max(1)).clamp(RUNNER_QUEUE_MIN, RUNNER_QUEUE);
    RunnerConfig { kv_pages, max_sessions: RUNNER_SESSIONS, queue, grace: GRACE }
}

fn range(start: u16, end: u16) -> Result<SpanRange, InferError> {
    SpanRange::new(start, end).map_err(|e| InferError::new(ErrorCode::ModelFile, e.to_string()))
}

/// The span of the most layers that fit `budget`, placed where the fewest others serve: first where nobody does.
fn thinnest(manifest: &Manifest, others: &[SpanRange], budget: u64, pick: u64) -> Result<SpanRange, InferError> {
    let for_weights = for_weights(budget);
    let bytes: Vec<u64> = manifest.layers.iter().map(|part| part.bytes).collect();
    let holdings: Vec<Holding> = others.iter().map(|span| Holding { span: *span, weight: 1 }).collect();
    placement::thinnest(&bytes, &holdings, for_weights, pick).ok_or_else(|| {
        let largest = bytes.iter().max().copied().unwrap_or(0);
        let message = format!(
            "not one layer fits: a layer takes {} MiB, and {} MiB are allowed",
            largest >> 20,
            for_weights >> 20
        );
        InferError::new(ErrorCode::NoKvPages, message).hint("give more --memory")
    })
}

/// The part of a budget that weights may take, where a node chooses its layers.
pub(super) fn for_weights(budget: u64) -> u64 {
    budget - budget / KV_SHARE
}

/// A number of a node's own, for choices among equals.
fn own_pick(plane: &Plane) -> u64 {
    let hash = blake3::hash(&plane.handle.local().to_bytes());
    hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// What layers, keys and values may take where nobody says how much.
pub(crate) fn half_of_free_memory() -> u64 {
    half_of(memory::available())
}

/// Half of what this process may still take; 256 MiB where that is more, and no more than three quarters of it all.
fn half_of(free: Option<u64>) -> u64 {
    const FLOOR: u64 = 256 << 20;
    free.map_or(FLOOR, |free| (free / 2).max(FLOOR.min(free - free / 4)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::models::DEMO;

    fn demo() -> ModelFile {
        ModelFile::open(DEMO).unwrap()
    }

    fn spans(texts: &[&str]) -> Vec<SpanRange> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_thinnest_span_is_where_nobody_is() {
        let file = demo();
        let layer = file.manifest.layers[0].bytes;
        let two = layer * 2 * KV_SHARE / (KV_SHARE - 1) + 8;
        let choose = |others: &[&str]| thinnest(&file.manifest, &spans(others), two, 0).unwrap().to_string();
        assert_eq!(choose(&[]), "0..2");
        assert_eq!(choose(&["0..2"]), "2..4");
        assert_eq!(choose(&["0..2", "2..4"]), "4..6");
        assert_eq!(choose(&["0..2", "2..4", "4..6", "0..2", "4..6"]), "2..4");
    }

    #[test]
    fn a_small_machine_is_not_promised_more_than_it_has() {
        let half = |mib: u64| half_of(Some(mib << 20)) >> 20;
        assert_eq!([4096, 512, 400, 256, 100, 0].map(half), [2048, 256, 256, 192, 75, 0]);
        assert_eq!(half_of(None) >> 20, 256);
    }

    #[test]
    fn ends_are_served_where_they_fit() {
        let file = demo();
        let at = |span: &str, ends, budget| affordable_ends(&file, span.parse().unwrap(), ends, budget);
        let layer = file.manifest.layers[0].bytes;
        let (plenty, tight) = (1 << 30, layer * KV_SHARE / (KV_SHARE - 1) + 8);
        let both = |embedding, head| Ends { embedding, head };
        assert_eq!(at("0..1", ServeEnds::Auto, plenty).unwrap(), both(true, false));
        assert_eq!(at("5..6", ServeEnds::Auto, plenty).unwrap(), both(false, true));
        assert_eq!(at("1..5", ServeEnds::Always, tight).unwrap(), both(false, false));
        assert_eq!(at("0..6", ServeEnds::Auto, plenty).unwrap(), both(true, true));
        assert_eq!(at("0..6", ServeEnds::Never, plenty).unwrap(), both(false, false));
        assert_eq!(at("0..1", ServeEnds::Auto, tight).unwrap(), both(false, false));
        let error = at("0..1", ServeEnds::Always, tight).unwrap_err();
        assert_eq!(error.code, ErrorCode::NoMemory.to_string());
    }

    #[test]
    fn too_little_memory_is_said_in_numbers() {
        let error = thinnest(&demo().manifest, &[], 1024, 0).unwrap_err();
        assert!(error.message.contains("not one layer fits"), "{error}");
    }

    #[test]
    fn everything_is_taken_when_it_fits() {
        let file = demo();
        assert_eq!(thinnest(&file.manifest, &[], 1 << 30, 0).unwrap().as_usize(), 0..file.manifest.n_layers);
    }
}
