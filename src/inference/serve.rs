//! Layers that this node serves: choosing which, loading them, and telling the swarm.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::identity::Keypair;
use quelea_announce::{Announcement, Offer, SignedAnnouncement, State, bucket_key, buckets, model_key, next_seq};
use quelea_engine::{
    KV_PAGE_ROWS, Manifest, Span, Stage,
    runner::{Runner, RunnerConfig},
};
use quelea_wire::{ErrorCode, Profile, SpanRange, time::unix_ms};

use super::{
    discover,
    models::{ModelFile, unusable},
    plane::Plane,
    types::InferError,
};
use crate::storage::Db;

/// Between two announcements of an unchanged node: a third of their lifetime, so that two may be lost.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(180);

/// The part of `--memory` that is kept for keys and values when layers are chosen.
const KV_SHARE: u64 = 4;

/// Sessions that one stage holds at once.
const RUNNER_SESSIONS: usize = 256;

/// Jobs that may wait for a stage: a few chunks for each of many sessions.
const RUNNER_QUEUE: usize = 256;

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

/// Layers in memory, ready to run.
pub(crate) struct Served {
    pub(crate) file: ModelFile,
    pub(crate) span: SpanRange,
    pub(crate) profile: Profile,
    /// Values per row.
    pub(crate) width: u32,
    pub(crate) runner: Runner,
}

impl Served {
    /// A part of the span, counted from the stage's first layer, as the engine counts.
    pub(crate) fn local_layers(&self, span: &SpanRange) -> Range<usize> {
        let first = usize::from(self.span.start());
        usize::from(span.start()).saturating_sub(first)..usize::from(span.end()).saturating_sub(first)
    }
}

/// The wire's name of a stage's arithmetic.
pub(crate) fn profile_of(stage: &Stage) -> Profile {
    match stage.profile() {
        "candle-cpu-f32" => Profile::CandleCpu,
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
) -> Result<Arc<Served>, InferError> {
    let layers = file.layers();
    let budget = memory.unwrap_or_else(half_of_free_memory);
    let span = match choice {
        LayerChoice::Exactly(span) if span.end() <= layers => span,
        LayerChoice::Exactly(span) => {
            let message = format!("layers {span} were asked for, but the model has only 0..{layers}");
            return Err(InferError::new(ErrorCode::Usage, message));
        }
        LayerChoice::All => range(0, layers)?,
        LayerChoice::Auto => {
            let others = discover::spans_served(&plane.handle, file.id).await;
            thinnest(&file.manifest, &others, budget)?
        }
    };
    let started = Instant::now();
    let gguf = file.gguf.clone();
    let stage = tokio::task::spawn_blocking(move || Stage::load(&gguf, Span::layers(span.as_usize())))
        .await
        .map_err(|e| InferError::new(ErrorCode::Internal, e.to_string()))?
        .map_err(|e| unusable(&file.name, &format!("layers {span}: {e}")))?;
    let page_bytes = stage.kv_bytes_per_row().saturating_mul(KV_PAGE_ROWS as u64).max(1);
    let kv_pages = (budget.saturating_sub(stage.weight_bytes()) / page_bytes).min(MAX_KV_PAGES);
    if kv_pages == 0 {
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
        model = %file.id.short(), %span, weights_mib = stage.weight_bytes() >> 20, kv_pages, elapsed = ?started.elapsed(),
        "layers loaded"
    );
    let config = RunnerConfig {
        kv_pages: u32::try_from(kv_pages).unwrap_or(u32::MAX),
        max_sessions: RUNNER_SESSIONS,
        queue: RUNNER_QUEUE,
    };
    let runner = Runner::spawn(stage, config).map_err(|e| InferError::new(ErrorCode::Internal, e.to_string()))?;
    Ok(Arc::new(Served { file, span, profile, width, runner }))
}

fn range(start: u16, end: u16) -> Result<SpanRange, InferError> {
    SpanRange::new(start, end).map_err(|e| InferError::new(ErrorCode::ModelFile, e.to_string()))
}

/// The span of the most layers that fit `budget`, placed where the fewest others serve: first where nobody does.
fn thinnest(manifest: &Manifest, others: &[SpanRange], budget: u64) -> Result<SpanRange, InferError> {
    let layers = u16::try_from(manifest.n_layers).unwrap_or(u16::MAX);
    let for_weights = budget - budget / KV_SHARE;
    let bytes = |span: Range<u16>| -> u64 {
        span.filter_map(|layer| manifest.layers.get(usize::from(layer))).map(|part| part.bytes).sum()
    };
    let holders = |layer: u16| others.iter().filter(|span| span.contains(layer)).count();
    let mut best: Option<((u16, Vec<usize>), SpanRange)> = None;
    for start in 0..layers {
        let end = (start + 1..=layers).take_while(|end| bytes(start..*end) <= for_weights).last();
        let Some(span) = end.and_then(|end| SpanRange::new(start, end).ok()) else { continue };
        // Among spans: as many unserved layers as possible, then the thinnest company for the rest.
        let mut company: Vec<usize> = (span.start()..span.end()).map(holders).collect();
        company.sort_unstable();
        let unserved = u16::try_from(company.iter().filter(|n| **n == 0).count()).unwrap_or(u16::MAX);
        let rank = (u16::MAX - unserved, company);
        if best.as_ref().is_none_or(|(known, _)| rank < *known) {
            best = Some((rank, span));
        }
    }
    best.map(|(_, span)| span).ok_or_else(|| {
        let largest = manifest.layers.iter().map(|part| part.bytes).max().unwrap_or(0);
        let message = format!(
            "not one layer fits: a layer takes {} MiB, and {} MiB are allowed",
            largest >> 20,
            for_weights >> 20
        );
        InferError::new(ErrorCode::NoKvPages, message).hint("give more --memory")
    })
}

/// Half of what the system says is available, at least 256 MiB.
fn half_of_free_memory() -> u64 {
    const FLOOR: u64 = 256 << 20;
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map_or(FLOOR, |kib| (kib << 10) / 2).max(FLOOR)
}

/// Tells the swarm what this node serves, again and again, and takes it back at the end.
pub(crate) struct Publisher {
    pub(crate) plane: Arc<Plane>,
    pub(crate) keypair: Keypair,
    pub(crate) db: Option<Db>,
    /// The current announcement, for this node's own chains.
    pub(crate) current: Arc<std::sync::RwLock<Option<SignedAnnouncement>>>,
}

impl Publisher {
    /// The highest sequence number this node has used, as far as its disk remembers.
    async fn last_seq(&self) -> u64 {
        match &self.db {
            Some(db) => db.own_announcement().await.ok().flatten().map_or(0, |(seq, _)| seq),
            None => 0,
        }
    }

    /// Publishes until `stop` resolves, then leaves a tombstone.
    pub(crate) async fn run(self, mut stop: tokio::sync::watch::Receiver<bool>) {
        let mut seq = self.last_seq().await;
        let mut provided = Vec::new();
        for served in self.plane.served() {
            let model = self.plane.telemetry.stats.model(&served.file.id.short());
            model.layers_hosted.set(u64::from(served.span.count()));
            model.kv_pages_capacity.set(u64::from(served.runner.load().kv_pages_total));
            provided.push(model_key(&served.file.id));
            provided.extend(buckets(&served.span).map(|bucket| bucket_key(&served.file.id, bucket)));
        }
        for key in &provided {
            self.plane.handle.provide(key.clone()).await;
        }
        loop {
            seq = next_seq(seq, unix_ms());
            self.publish(seq, false).await;
            tokio::select! {
                () = tokio::time::sleep(ANNOUNCE_EVERY) => {}
                _ = stop.wait_for(|stopping| *stopping) => break,
            }
        }
        for key in provided {
            self.plane.handle.stop_providing(key).await;
        }
        self.publish(next_seq(seq, unix_ms()), true).await;
    }

    /// Writes the announcement down, then sends it: a number must never be used twice.
    async fn publish(&self, seq: u64, tombstone: bool) {
        let peer = self.plane.handle.local();
        let announcement = if tombstone {
            Announcement::tombstone(peer, seq, unix_ms())
        } else {
            let mut announcement = Announcement::new(peer, seq, unix_ms());
            let snapshot = self.plane.handle.snapshot().await;
            announcement.addrs = snapshot.map(|s| [s.external, s.listeners].concat()).unwrap_or_default();
            announcement.addrs.truncate(quelea_announce::MAX_ADDRS);
            announcement.offers = self.plane.served().iter().map(|served| offer(served)).collect();
            announcement.shrink_to(quelea_announce::MAX_BYTES);
            announcement
        };
        let signed = match SignedAnnouncement::sign(&self.keypair, &self.plane.network, announcement) {
            Ok(signed) => signed,
            Err(error) => {
                tracing::error!(%error, "our announcement cannot be signed");
                return;
            }
        };
        if let Some(db) = &self.db
            && let Err(error) = db.put_own_announcement(seq, signed.raw().to_vec()).await
        {
            tracing::error!(%error, "our announcement cannot be written down, so it is not sent");
            return;
        }
        let current = (!tombstone).then(|| signed.clone());
        *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = current;
        self.plane.handle.announce(signed).await;
    }
}

fn offer(served: &Served) -> Offer {
    let load = served.runner.load();
    Offer {
        model: served.file.id,
        profile: served.profile,
        span: served.span,
        layers_total: served.file.layers(),
        state: State::Ready,
        // Not measured yet: 0 says so, and choosers then go by round trips alone.
        decode_rows_per_s: 0,
        prefill_rows_per_s: 0,
        queue: u16::try_from(load.queued).unwrap_or(u16::MAX),
        kv_pages_free: load.kv_pages_free,
        price_decode: 0,
        price_prefill: 0,
    }
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
        let choose = |others: &[&str]| thinnest(&file.manifest, &spans(others), two).unwrap().to_string();
        assert_eq!(choose(&[]), "0..2");
        assert_eq!(choose(&["0..2"]), "2..4");
        assert_eq!(choose(&["0..2", "2..4"]), "4..6");
        assert_eq!(choose(&["0..2", "2..4", "4..6", "0..2", "4..6"]), "2..4");
    }

    #[test]
    fn too_little_memory_is_said_in_numbers() {
        let error = thinnest(&demo().manifest, &[], 1024).unwrap_err();
        assert!(error.message.contains("not one layer fits"), "{error}");
    }

    #[test]
    fn everything_is_taken_when_it_fits() {
        let file = demo();
        assert_eq!(thinnest(&file.manifest, &[], 1 << 30).unwrap().as_usize(), 0..file.manifest.n_layers);
    }
}
