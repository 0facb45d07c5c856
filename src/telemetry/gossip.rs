//! Gossip's figures, as the loop mirrors them and gauges show them.

use std::{
    array,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use opentelemetry::{KeyValue, metrics::Meter};
use quelea_behaviours::gossip::{Figures, Topic};

use super::stats::{Gauge, NodeStats};

/// What became of messages, in the order of [`VERDICTS`], by kind of topic.
type Verdicts = [Gauge; VERDICTS.len()];

/// Duplicates are ignored, too; they are counted apart, so that the sum is what came.
const VERDICTS: [&str; 4] = ["accepted", "duplicate", "ignored", "rejected"];

/// Gossip's figures.
#[derive(Debug)]
pub struct GossipStats {
    messages: [Verdicts; Topic::KINDS.len()],
    /// Peers in the mesh of any topic.
    pub neighbours: Gauge,
    /// Peers whose control traffic has cost them score.
    pub penalised: Gauge,
    /// Peers whose newest announcement is remembered.
    pub announced: Gauge,
    /// Ids that the dedup stage holds exactly.
    pub exact_ids: Gauge,
    /// Ids in its filters.
    pub bloom_ids: Gauge,
    /// Its memory.
    pub bytes: Gauge,
    /// Share of bits set, and likelihood of a false positive: f64 as bits.
    fill: AtomicU64,
    false_positives: AtomicU64,
}

impl Default for GossipStats {
    fn default() -> Self {
        Self {
            messages: array::from_fn(|_| Verdicts::default()),
            neighbours: Gauge::default(),
            penalised: Gauge::default(),
            announced: Gauge::default(),
            exact_ids: Gauge::default(),
            bloom_ids: Gauge::default(),
            bytes: Gauge::default(),
            fill: AtomicU64::default(),
            false_positives: AtomicU64::default(),
        }
    }
}

impl GossipStats {
    /// As it is now.
    pub fn set(&self, figures: &Figures, neighbours: usize, penalised: usize) {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        for (gauges, counts) in self.messages.iter().zip(&figures.messages) {
            let all =
                [counts.accepted, counts.duplicates, counts.ignored.saturating_sub(counts.duplicates), counts.rejected];
            for (gauge, n) in gauges.iter().zip(all) {
                gauge.set(n);
            }
        }
        self.neighbours.set(count(neighbours));
        self.penalised.set(count(penalised));
        self.announced.set(count(figures.announced));
        self.exact_ids.set(count(figures.dedup.exact_ids));
        self.bloom_ids.set(count(figures.dedup.bloom_ids));
        self.bytes.set(count(figures.dedup.bytes));
        self.fill.store(figures.dedup.fill.to_bits(), Ordering::Relaxed);
        self.false_positives.store(figures.dedup.false_positives.to_bits(), Ordering::Relaxed);
    }

    /// Share of the bits that are set in the fuller filter.
    pub fn fill(&self) -> f64 {
        f64::from_bits(self.fill.load(Ordering::Relaxed))
    }

    /// The likelihood that the dedup stage takes a new message for an old one.
    pub fn false_positives(&self) -> f64 {
        f64::from_bits(self.false_positives.load(Ordering::Relaxed))
    }

    /// Messages by kind of topic and verdict.
    pub fn messages(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
        Topic::KINDS.into_iter().zip(&self.messages).flat_map(|(kind, gauges)| {
            VERDICTS.into_iter().zip(gauges).map(move |(verdict, n)| (kind, verdict, n.get()))
        })
    }
}

/// Registers the gauges and counters that are read when somebody scrapes.
pub(super) fn observe(meter: &Meter, stats: &Arc<NodeStats>) {
    let messages = Arc::clone(stats);
    meter
        .u64_observable_counter("quelea_gossip_messages")
        .with_description("Gossip messages that were judged, by kind of topic and verdict")
        .with_callback(move |observer| {
            for (kind, verdict, n) in messages.gossip.messages() {
                observer.observe(n, &[KeyValue::new("topic", kind), KeyValue::new("verdict", verdict)]);
            }
        })
        .build();
    let ids = Arc::clone(stats);
    meter
        .u64_observable_gauge("quelea_gossip_dedup_ids")
        .with_description("Message ids that the dedup stage remembers, exactly and in Bloom filters")
        .with_callback(move |observer| {
            observer.observe(ids.gossip.exact_ids.get(), &[KeyValue::new("stage", "exact")]);
            observer.observe(ids.gossip.bloom_ids.get(), &[KeyValue::new("stage", "bloom")]);
        })
        .build();
    type Whole = fn(&GossipStats) -> u64;
    let whole: [(&'static str, &'static str, &'static str, Whole); 4] = [
        ("quelea_gossip_neighbours", "", "Peers in the mesh of any topic", |g| g.neighbours.get()),
        ("quelea_gossip_penalised", "", "Peers whose control traffic costs them score now", |g| g.penalised.get()),
        ("quelea_gossip_announced", "", "Peers whose newest announcement is remembered", |g| g.announced.get()),
        ("quelea_gossip_dedup", "By", "Memory of the dedup stage", |g| g.bytes.get()),
    ];
    for (name, unit, help, read) in whole {
        let stats = Arc::clone(stats);
        meter
            .u64_observable_gauge(name)
            .with_unit(unit)
            .with_description(help)
            .with_callback(move |observer| observer.observe(read(&stats.gossip), &[]))
            .build();
    }
    type Share = fn(&GossipStats) -> f64;
    let shares: [(&'static str, &'static str, Share); 2] = [
        (
            "quelea_gossip_dedup_fill_ratio",
            "Share of bits set in the fuller filter of the dedup stage",
            GossipStats::fill,
        ),
        (
            "quelea_gossip_dedup_false_positive_ratio",
            "Likelihood that the dedup stage takes a new message for an old one, from the share of bits set",
            GossipStats::false_positives,
        ),
    ];
    for (name, help, read) in shares {
        let stats = Arc::clone(stats);
        meter
            .f64_observable_gauge(name)
            .with_description(help)
            .with_callback(move |observer| observer.observe(read(&stats.gossip), &[]))
            .build();
    }
}
