//! What the node's parts keep up to date for gauges to be read from. Plain atomics: writing costs nothing that the loop
//! would notice, and nothing is computed until somebody scrapes.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU8, AtomicU64, Ordering},
};

use super::{
    front::FrontStats, gossip::GossipStats, ledger::LedgerStats, local_llm::LocalLlmStats, storage::StorageStats,
};

/// Model ids that get a label of their own; later ones share [`OTHER_MODEL`]. Each label multiplies some twenty series.
pub const MODEL_LABELS_MAX: usize = 16;

/// The label of models beyond the first [`MODEL_LABELS_MAX`].
pub const OTHER_MODEL: &str = "other";

/// A number that goes up and down. Cannot go below zero.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// One more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less; zero stays zero.
    pub fn dec(&self) {
        self.0.update(Ordering::Relaxed, Ordering::Relaxed, |n| n.saturating_sub(1));
    }

    /// So many more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Exactly this many.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a connection reaches its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Without help.
    Direct,
    /// Through a relay.
    Relayed,
}

/// What a connection runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// QUIC.
    Quic,
    /// TCP.
    Tcp,
    /// WebSocket.
    Websocket,
    /// Anything else.
    Other,
}

/// Whether others can dial this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reachability {
    /// Not found out yet.
    Unknown = 0,
    /// On at least one address.
    Public = 1,
    /// On none.
    Private = 2,
}

impl Path {
    /// As a label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
        }
    }

    pub(super) const ALL: [(Self, &'static str); 2] = [(Self::Direct, "direct"), (Self::Relayed, "relayed")];
}

impl Transport {
    /// As a label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
            Self::Websocket => "websocket",
            Self::Other => "other",
        }
    }

    pub(super) const ALL: [(Self, &'static str); 4] =
        [(Self::Quic, "quic"), (Self::Tcp, "tcp"), (Self::Websocket, "websocket"), (Self::Other, "other")];
}

impl Reachability {
    pub(super) const ALL: [(Self, &'static str); 3] =
        [(Self::Public, "public"), (Self::Private, "private"), (Self::Unknown, "unknown")];
}

/// A model's label on metrics: its id, or `other`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelLabel(Arc<str>);

impl ModelLabel {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

/// What is known of a model that this node serves or uses. Unlike the others these gauges exist per model.
#[derive(Debug)]
pub struct ModelStats {
    label: ModelLabel,
    /// Layers this node holds.
    pub layers_hosted: Gauge,
    /// KV pages nobody uses.
    pub kv_pages_free: Gauge,
    /// KV pages there are.
    pub kv_pages_capacity: Gauge,
    /// Bytes of KV pages that sessions have.
    pub kv_used_bytes: Gauge,
    /// Bytes of all KV pages.
    pub kv_capacity_bytes: Gauge,
    /// Bytes of KV pages that are kept for prompts that begin alike, in use or not.
    pub prefix_cache_bytes: Gauge,
    /// Requests that wait for their turn.
    pub queue_depth: Gauge,
    /// Sessions open.
    pub running: Gauge,
    /// What was computed since the start.
    pub totals: StageTotals,
}

/// What the stages of a model have done since they were started; only grows.
#[derive(Debug, Default)]
pub struct StageTotals {
    /// Batches computed.
    pub batches: Gauge,
    /// Rows computed in them.
    pub rows: Gauge,
    /// Blocks of prompts that were looked up.
    pub prefix_lookups: Gauge,
    /// Blocks that were there, and were not computed.
    pub prefix_hits: Gauge,
    /// Sessions that had to give way to others.
    pub evicted_sessions: Gauge,
}

impl ModelStats {
    /// Its label.
    pub fn label(&self) -> &ModelLabel {
        &self.label
    }
}

/// The node's state as gauges show it.
#[derive(Debug, Default)]
pub struct NodeStats {
    connected: [[Gauge; Transport::ALL.len()]; Path::ALL.len()],
    reachability: AtomicU8,
    models: Mutex<Vec<Arc<ModelStats>>>,
    /// The web front of a masked node.
    pub front: FrontStats,
    /// Gossip.
    pub gossip: GossipStats,
    /// The ledger.
    pub ledger: LedgerStats,
    /// The process behind `llm_local`.
    pub local_llm: LocalLlmStats,
    /// What is on disk.
    pub storage: StorageStats,
    /// Peers remembered.
    pub peers_known: Gauge,
    /// Lines that were closed because nobody used them, since the start.
    pub lines_closed: Gauge,
    /// Peers and address ranges that are banned.
    pub peers_banned: Gauge,
    /// Relays that keep a place for this node.
    pub relay_reservations: Gauge,
    /// Shard streams open, either direction.
    pub shard_streams: Gauge,
    /// Shard sessions open on this node's stage.
    pub shard_sessions: Gauge,
    /// Sessions over chains whose results this node waits for.
    pub shard_results: Gauge,
    /// Shard links that this node keeps to others, to hand rows on or to coordinate.
    pub shard_links: Gauge,
    /// Bytes of what open sessions have handed on.
    pub log_bytes: Gauge,
    /// Bytes of them on disk.
    pub log_bytes_on_disk: Gauge,
    /// Registrations that this node holds as a rendezvous point.
    pub rendezvous_registrations: Gauge,
    /// Records in the DHT's store, values and provider records.
    pub dht_records: Gauge,
}

impl NodeStats {
    /// Peers connected in this way. A peer with several connections counts once, by its best.
    pub fn connected(&self, path: Path, transport: Transport) -> &Gauge {
        let [direct, relayed] = &self.connected;
        let [quic, tcp, websocket, other] = match path {
            Path::Direct => direct,
            Path::Relayed => relayed,
        };
        match transport {
            Transport::Quic => quic,
            Transport::Tcp => tcp,
            Transport::Websocket => websocket,
            Transport::Other => other,
        }
    }

    /// Says whether others can dial this node.
    pub fn set_reachability(&self, reachability: Reachability) {
        self.reachability.store(reachability as u8, Ordering::Relaxed);
    }

    pub(super) fn is_reachability(&self, reachability: Reachability) -> bool {
        self.reachability.load(Ordering::Relaxed) == reachability as u8
    }

    /// The gauges of a model this node serves or uses, made on first use. Call it with resolved ids only, never with what a
    /// client sent: the first 16 ids get labels, the rest share one entry labelled `other`.
    pub fn model(&self, id: &str) -> Arc<ModelStats> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = models.iter().find(|m| m.label.as_str() == id) {
            return Arc::clone(known);
        }
        let label = if models.len() < MODEL_LABELS_MAX { id } else { OTHER_MODEL };
        if let Some(other) = models.iter().find(|m| m.label.as_str() == label) {
            return Arc::clone(other);
        }
        let model = Arc::new(ModelStats {
            label: ModelLabel(label.into()),
            layers_hosted: Gauge::default(),
            kv_pages_free: Gauge::default(),
            kv_pages_capacity: Gauge::default(),
            kv_used_bytes: Gauge::default(),
            kv_capacity_bytes: Gauge::default(),
            prefix_cache_bytes: Gauge::default(),
            queue_depth: Gauge::default(),
            running: Gauge::default(),
            totals: StageTotals::default(),
        });
        models.push(Arc::clone(&model));
        model
    }

    pub(super) fn models(&self) -> Vec<Arc<ModelStats>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauges_stop_at_zero() {
        let gauge = Gauge::default();
        gauge.dec();
        assert_eq!(gauge.get(), 0);
        gauge.set(2);
        gauge.dec();
        gauge.inc();
        assert_eq!(gauge.get(), 2);
    }

    #[test]
    fn model_labels_are_bounded() {
        let stats = NodeStats::default();
        for n in 0..100 {
            stats.model(&format!("m{n}")).queue_depth.set(1);
        }
        assert_eq!(stats.models().len(), MODEL_LABELS_MAX + 1);
        assert_eq!(stats.model("m3").label().as_str(), "m3");
        assert_eq!(stats.model("m99").label().as_str(), OTHER_MODEL);
        assert_eq!(stats.model("never seen").label().as_str(), OTHER_MODEL);
    }

    #[test]
    fn ways_to_be_connected_are_kept_apart() {
        let stats = NodeStats::default();
        for (n, (path, _)) in Path::ALL.into_iter().enumerate() {
            for (m, (transport, _)) in Transport::ALL.into_iter().enumerate() {
                stats.connected(path, transport).set((10 * n + m) as u64);
            }
        }
        assert_eq!(stats.connected(Path::Relayed, Transport::Tcp).get(), 11);
        assert_eq!(stats.connected(Path::Direct, Transport::Other).get(), 3);
    }
}
