//! Which parts of the node work, and what liveness and readiness follow from it.
//!
//! *Live* means the swarm's loop still turns: it calls [`Health::beat`] at least once a second, and a supervisor restarts a
//! node whose last beat is too old. *Ready* means the node can serve: every component is ok or degraded, the loop turns, and
//! nobody asked it to drain. A node that waits for its first peer is live and not ready.

use std::{
    fmt::Write as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::watch;

/// The longest message kept for a component, in bytes: one screen line or two.
const MESSAGE_MAX: usize = 512;

/// A part of the node that can fail on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Component {
    /// The database.
    Storage,
    /// The swarm's event loop.
    Swarm,
    /// The addresses the node listens on.
    Listeners,
    /// The way into the network: bootstrap peers, or peers known from before.
    Bootstrap,
    /// The span this node holds, if it holds one.
    Model,
}

impl Component {
    /// All, in the order they are shown.
    pub const ALL: [Self; 5] = [Self::Storage, Self::Swarm, Self::Listeners, Self::Bootstrap, Self::Model];

    /// Its name in `/health`, `/readyz?verbose` and the label `check` of `quelea_ready`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Storage => "storage",
            Self::Swarm => "swarm",
            Self::Listeners => "listeners",
            Self::Bootstrap => "bootstrap",
            Self::Model => "model",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// How a component is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It has not said anything yet, or says that it is not there yet. Not ready.
    Starting,
    /// It works, or there is nothing for it to do.
    Ok,
    /// It works less well than it should. Still ready.
    Degraded,
    /// It does not work. Not ready.
    Failed,
}

impl Status {
    /// Its name in `/health`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
        }
    }

    /// A node can serve with a component in this state.
    pub fn is_ready(self) -> bool {
        matches!(self, Self::Ok | Self::Degraded)
    }
}

#[derive(Clone, Debug)]
struct State {
    status: Status,
    message: String,
}

/// The components' states. Shared; every method takes a moment only and may be called from the loop.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// Nanoseconds from `started` to the last beat.
    last_beat: AtomicU64,
    heartbeat_max: Duration,
    draining: AtomicBool,
    /// How long what is under way has, once somebody asked over the API that the node ends.
    stop: watch::Sender<Option<Duration>>,
    states: Mutex<[State; Component::ALL.len()]>,
}

impl Health {
    /// Everything is starting. The loop counts as stuck once its last beat (or this moment, before the first) is older than
    /// `heartbeat_max`.
    pub fn new(heartbeat_max: Duration) -> Self {
        let state = State { status: Status::Starting, message: "not heard of yet".into() };
        Self {
            started: Instant::now(),
            last_beat: AtomicU64::new(0),
            heartbeat_max,
            draining: AtomicBool::new(false),
            stop: watch::Sender::new(None),
            states: Mutex::new(std::array::from_fn(|_| state.clone())),
        }
    }

    /// The loop turns.
    pub fn beat(&self) {
        let since = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last_beat.fetch_max(since, Ordering::Relaxed);
    }

    /// Says how a component is. `message` says why, in a few words; it is cut at 512 bytes.
    pub fn set(&self, component: Component, status: Status, message: impl Into<String>) {
        let mut message: String = message.into();
        message.truncate(message.floor_char_boundary(MESSAGE_MAX));
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = states.get_mut(component.index()) {
            if state.status != status {
                tracing::debug!(component = component.name(), status = status.name(), %message, "health");
            }
            *state = State { status, message };
        }
    }

    /// From now on the node is not ready: it finishes what it has and stops.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whoever runs the node is to end it; what is under way has so long. The first word counts.
    pub fn ask_to_stop(&self, grace: Duration) {
        self.stop.send_if_modified(|asked| asked.replace(asked.unwrap_or(grace)).is_none());
    }

    /// Waits until somebody asks that the node ends.
    pub async fn asked_to_stop(&self) -> Duration {
        let mut stop = self.stop.subscribe();
        match stop.wait_for(Option::is_some).await.map(|grace| *grace) {
            Ok(Some(grace)) => grace,
            // The sender is ours: this cannot be.
            _ => std::future::pending().await,
        }
    }

    /// A picture of this moment.
    pub fn report(&self) -> Report {
        self.report_at(Instant::now())
    }

    fn report_at(&self, now: Instant) -> Report {
        let uptime = now.saturating_duration_since(self.started);
        let beat_age = uptime.saturating_sub(Duration::from_nanos(self.last_beat.load(Ordering::Relaxed)));
        let live = beat_age <= self.heartbeat_max;
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !live && let Some(swarm) = states.get_mut(Component::Swarm.index()) {
            let message = format!("the event loop has not turned for {:.1} s", beat_age.as_secs_f64());
            *swarm = State { status: Status::Failed, message };
        }
        let components = Component::ALL
            .into_iter()
            .zip(states)
            .map(|(component, State { status, message })| ComponentReport { component, status, message })
            .collect();
        Report { live, draining: self.draining.load(Ordering::Relaxed), uptime, components }
    }
}

/// How one component is.
#[derive(Clone, Debug)]
pub struct ComponentReport {
    /// Which.
    pub component: Component,
    /// How it is.
    pub status: Status,
    /// Why.
    pub message: String,
}

/// How the node is at one moment.
#[derive(Clone, Debug)]
pub struct Report {
    /// The loop turns.
    pub live: bool,
    /// The node is finishing.
    pub draining: bool,
    /// Since when it runs.
    pub uptime: Duration,
    /// Every component, in the order of [`Component::ALL`].
    pub components: Vec<ComponentReport>,
}

impl Report {
    /// The node can serve.
    pub fn ready(&self) -> bool {
        self.live && !self.draining && self.components.iter().all(|c| c.status.is_ready())
    }

    /// One word for all: `draining`, else the worst component's.
    pub fn status(&self) -> &'static str {
        let any = |status| self.components.iter().any(|c| c.status == status);
        if self.draining {
            "draining"
        } else if any(Status::Failed) {
            Status::Failed.name()
        } else if any(Status::Starting) {
            Status::Starting.name()
        } else if any(Status::Degraded) {
            Status::Degraded.name()
        } else {
            Status::Ok.name()
        }
    }

    /// The body of `/health`.
    pub fn to_json(&self) -> serde_json::Value {
        let components: serde_json::Map<_, _> = self
            .components
            .iter()
            .map(|c| {
                let state = serde_json::json!({"status": c.status, "message": c.message});
                (c.component.name().to_string(), state)
            })
            .collect();
        serde_json::json!({
            "schema": "quelea.health/v1",
            "status": self.status(),
            "live": self.live,
            "ready": self.ready(),
            "uptime_seconds": self.uptime.as_secs_f64(),
            "components": components,
        })
    }

    /// The body of `/readyz?verbose`: a line for each check, in the form Kubernetes' own servers use.
    pub fn to_checks(&self) -> String {
        let mut text = String::new();
        let mut line = |passed: bool, name: &str, words: &str| {
            // A message must not look like another check's line.
            let words = words.replace(['\n', '\r'], " ");
            let _ = writeln!(text, "[{}]{name} {words}", if passed { '+' } else { '-' }); // a String takes everything
        };
        for c in &self.components {
            let words = match c.status {
                Status::Ok => "ok".to_string(),
                other => format!("{}: {}", other.name(), c.message),
            };
            line(c.status.is_ready(), c.component.name(), &words);
        }
        line(!self.draining, "shutdown", if self.draining { "draining" } else { "ok" });
        let _ = writeln!(text, "readyz check {}", if self.ready() { "passed" } else { "failed" });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_ok() -> Health {
        let health = Health::new(Duration::from_secs(5));
        for component in Component::ALL {
            health.set(component, Status::Ok, "fine");
        }
        health
    }

    #[test]
    fn a_new_node_is_live_and_not_ready() {
        let report = Health::new(Duration::from_secs(5)).report();
        assert!(report.live && !report.ready());
        assert_eq!(report.status(), "starting");
    }

    #[test]
    fn degraded_is_ready_and_failed_is_not() {
        let health = all_ok();
        assert!(health.report().ready());
        assert_eq!(health.report().status(), "ok");
        health.set(Component::Bootstrap, Status::Degraded, "1 of 2 answered");
        assert!(health.report().ready());
        assert_eq!(health.report().status(), "degraded");
        for component in Component::ALL {
            health.set(component, Status::Failed, "no");
            assert!(!health.report().ready(), "{component:?}");
            assert_eq!(health.report().status(), "failed");
            health.set(component, Status::Ok, "");
        }
        assert!(health.report().ready());
    }

    #[test]
    fn a_stuck_loop_is_neither_live_nor_ready() {
        let health = all_ok();
        health.beat();
        let later = Instant::now() + Duration::from_secs(4);
        assert!(health.report_at(later).ready());
        let report = health.report_at(later + Duration::from_secs(3));
        assert!(!report.live && !report.ready());
        let swarm = &report.components[Component::Swarm.index()];
        assert_eq!(swarm.status, Status::Failed);
        assert!(swarm.message.starts_with("the event loop has not turned for "), "{}", swarm.message);
    }

    #[test]
    fn draining_ends_readiness_not_life() {
        let health = all_ok();
        health.drain();
        let report = health.report();
        assert!(report.live && !report.ready());
        assert_eq!(report.status(), "draining");
        assert!(report.to_checks().contains("[-]shutdown draining\n"));
    }

    #[test]
    fn checks_are_a_line_each_whatever_a_message_holds() {
        let health = all_ok();
        health.set(Component::Listeners, Status::Failed, "port\n[+]listeners ok\r\ntaken");
        health.set(Component::Model, Status::Degraded, "ä".repeat(1000));
        let text = health.report().to_checks();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), Component::ALL.len() + 2);
        assert_eq!(lines[0], "[+]storage ok");
        assert_eq!(lines[2], "[-]listeners failed: port [+]listeners ok  taken");
        assert!(lines[4].starts_with("[+]model degraded: ä") && lines[4].len() < 600);
        assert_eq!(lines[6], "readyz check failed");
    }
}
