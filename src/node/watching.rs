//! What the node keeps for those who look at it: an hour of figures, and warnings among the events.

use std::time::Duration;

use quelea_wire::time::unix_ms;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};

use super::Life;
use crate::{
    events::EventKind,
    telemetry::{
        Telemetry,
        history::{Point, STEP},
        tail::LogTail,
    },
};

/// Between two looks at the log, and how many warnings one look takes: a flood of them must not push out what else happened.
const LOOK: Duration = Duration::from_secs(1);
const WARNINGS: usize = 4;

/// Takes a point of the figures every [`STEP`] until the node stops.
pub(super) async fn keep_history(telemetry: Telemetry, mut stopping: watch::Receiver<Life>) {
    let mut due = interval(STEP);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = due.tick() => {}
            _ = stopping.wait_for(|life| *life == Life::Stopping) => return,
        }
        let metrics = telemetry.metrics.clone();
        if let Ok(point) = tokio::task::spawn_blocking(move || Point::of(unix_ms(), &metrics.scrape())).await {
            telemetry.history.push(point);
        }
    }
}

/// Puts warnings and errors among the events until the node stops.
pub(super) async fn tell_warnings(telemetry: Telemetry, tail: LogTail, mut stopping: watch::Receiver<Life>) {
    let mut after = 0;
    loop {
        tokio::select! {
            () = tail.wait(after) => {}
            _ = stopping.wait_for(|life| *life == Life::Stopping) => return,
        }
        let lines = tail.after(after, usize::MAX);
        after = lines.last().map_or(after, |line| line.id);
        for line in lines.into_iter().filter(|line| matches!(line.level, "warn" | "error")).take(WARNINGS) {
            let kind = EventKind::Log { level: line.level, target: line.target, message: line.message };
            telemetry.events.emit(line.time_ms, kind);
        }
        sleep(LOOK).await;
    }
}
