//! What the node keeps on disk, in bytes. Measured now and then, not when somebody scrapes: it walks directories.

use std::sync::Arc;

use opentelemetry::{KeyValue, metrics::Meter};

use super::stats::{Gauge, NodeStats};

/// Bytes on disk; zero until they were measured.
#[derive(Debug, Default)]
pub struct StorageStats {
    /// Weights and what belongs to them.
    pub models: Gauge,
    /// The most that these may be; zero without a limit of our own.
    pub models_limit: Gauge,
    /// The database.
    pub database: Gauge,
}

pub(super) fn observe(meter: &Meter, stats: &Arc<NodeStats>) {
    let for_bytes = Arc::clone(stats);
    meter
        .u64_observable_gauge("quelea_storage")
        .with_unit("By")
        .with_description("Disk that this node uses, by what for")
        .with_callback(move |observer| {
            let storage = &for_bytes.storage;
            for (kind, bytes) in [("models", &storage.models), ("database", &storage.database)] {
                observer.observe(bytes.get(), &[KeyValue::new("kind", kind)]);
            }
        })
        .build();
    let for_limit = Arc::clone(stats);
    meter
        .u64_observable_gauge("quelea_storage_limit")
        .with_unit("By")
        .with_description("Disk that this node may use, by what for, where that is limited")
        .with_callback(move |observer| match for_limit.storage.models_limit.get() {
            0 => {}
            limit => observer.observe(limit, &[KeyValue::new("kind", "models")]),
        })
        .build();
}
