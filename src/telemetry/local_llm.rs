//! The process behind `llm_local`, as gauges show it. Without one all its states are 0.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use opentelemetry::{KeyValue, metrics::Meter};

use super::stats::{Gauge, NodeStats};

/// How the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// There is none: nobody has called lately.
    Off = 1,
    /// It reads the model.
    Starting,
    /// It answers.
    Ready,
    /// It finishes what is under way.
    Stopping,
    /// It has failed, and is started again in a while.
    Resting,
}

impl State {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Off, "off"),
        (Self::Starting, "starting"),
        (Self::Ready, "ready"),
        (Self::Stopping, "stopping"),
        (Self::Resting, "resting"),
    ];
}

/// The process's figures.
#[derive(Debug, Default)]
pub struct LocalLlmStats {
    state: AtomicU8,
    /// Starts after it had failed.
    pub restarts: Gauge,
}

impl LocalLlmStats {
    /// It is like this now.
    pub fn set(&self, state: State) {
        self.state.store(state as u8, Ordering::Relaxed);
    }
}

pub(super) fn observe(meter: &Meter, stats: &Arc<NodeStats>) {
    let for_state = Arc::clone(stats);
    meter
        .u64_observable_gauge("quelea_local_llm_state")
        .with_description("1 for the state of the process behind the service llm_local")
        .with_callback(move |observer| {
            let now = for_state.local_llm.state.load(Ordering::Relaxed);
            for (state, name) in State::ALL {
                observer.observe(u64::from(state as u8 == now), &[KeyValue::new("state", name)]);
            }
        })
        .build();
    let for_restarts = Arc::clone(stats);
    meter
        .u64_observable_counter("quelea_local_llm_restarts")
        .with_description("Times that the process behind the service llm_local was started again after it had failed")
        .with_callback(move |observer| observer.observe(for_restarts.local_llm.restarts.get(), &[]))
        .build();
}
