//! What peers owe, in sums: never of one of them.

use std::sync::Arc;

use opentelemetry::metrics::Meter;

use super::stats::{Gauge, NodeStats};

/// The ledger's sums, in micro-credits.
#[derive(Debug, Default)]
pub struct LedgerStats {
    /// What peers owe this node.
    pub owed: Gauge,
    /// What this node owes.
    pub owing: Gauge,
    /// What of that should have been paid by now.
    pub overdue: Gauge,
    /// What all unproven peers together owe, their open holds included, and what was lost to such lately.
    pub pool: Gauge,
    /// The most that this may be.
    pub pool_limit: Gauge,
}

/// Micro-credits in a credit.
const CREDIT: f64 = 1e6;

pub(super) fn observe(meter: &Meter, stats: &Arc<NodeStats>) {
    type Read = fn(&LedgerStats) -> u64;
    let gauges: [(&'static str, &'static str, Read); 5] = [
        ("quelea_ledger_owed_credits", "What peers owe this node", |s| s.owed.get()),
        ("quelea_ledger_owing_credits", "What this node owes to peers", |s| s.owing.get()),
        ("quelea_ledger_overdue_credits", "What peers should have paid by now and have not", |s| s.overdue.get()),
        ("quelea_ledger_pool_credits", "What all unproven peers owe together, with open holds and late losses", |s| {
            s.pool.get()
        }),
        ("quelea_ledger_exposure_limit_credits", "The most that all unproven peers may owe together", |s| {
            s.pool_limit.get()
        }),
    ];
    for (name, help, read) in gauges {
        let stats = Arc::clone(stats);
        meter
            .f64_observable_gauge(name)
            .with_description(help)
            .with_callback(move |observer| observer.observe(read(&stats.ledger) as f64 / CREDIT, &[]))
            .build();
    }
}
