//! `GET /api/v1/events?types=peer,message&after=N&follow=false&every_ms=1000`: events as server-sent events, oldest first.
//!
//! Each has its number as `id:` and its JSON, in one line, as `data:`. Without `after` the stream begins with what comes, or,
//! when it does not follow, with what is kept; a browser that comes back says the last number that it has in `Last-Event-ID`,
//! which counts more than `after`. A reader that was too slow or came too late gets `event: gap` with
//! `{"schema": "quelea.gap/v1", "missed": N}` where events are gone. While nothing happens there is a comment every
//! [`PING`], with the number of the newest event, so that who comes back need not ask for what it did not want.
//!
//! With `every_ms` there are at least so many milliseconds between two pieces; of several events of one peer's connection in a
//! piece only the last is sent. The type `metric`, which must be asked for, is the node's figures of now, each time that the
//! history has a new point: they have no number, and the history has those that were missed.

use std::{collections::HashSet, fmt::Write as _, io, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures::{StreamExt as _, stream};
use quelea_wire::ErrorCode;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};

use super::{ApiState, failure, refuse};
use crate::{
    events::{Batch, Event, EventBus, EventKind, EventType},
    inference::InferError,
    telemetry::history::Point,
};

/// The type that is no event: see the module.
const METRIC: &str = "metric";

/// Between two comments that keep the connection: less than the half minute after which proxies give up.
const PING: Duration = Duration::from_secs(15);

/// The longest pause between two pieces that may be asked for, in milliseconds.
const EVERY_MAX_MS: u64 = 10_000;

/// Streams at once: each costs a task and a connection.
pub(super) const STREAMS_MAX: usize = 256;

/// After how long a browser whose connection broke comes back, in milliseconds.
const RETRY_MS: u32 = 2000;

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Types, separated by commas; all when left out.
    #[serde(default)]
    types: String,
    /// Only events after this number.
    after: Option<u64>,
    /// Whether to go on with what comes.
    #[serde(default = "yes")]
    follow: bool,
    /// Milliseconds between two pieces.
    #[serde(default)]
    every_ms: u64,
}

fn yes() -> bool {
    true
}

/// A reader under way.
struct Reader {
    bus: EventBus,
    types: Vec<EventType>,
    cursor: u64,
    /// Up to which number, when it does not follow.
    until: Option<u64>,
    /// Whether events that are gone before the first read were asked for.
    gap: bool,
    /// Between two pieces.
    every: Duration,
    /// When the next piece may leave.
    due: Instant,
    /// New points of the history, where they were asked for.
    metrics: Option<watch::Receiver<Option<Point>>>,
    /// One that is not told yet.
    point: Option<Point>,
    /// The place that it takes.
    _place: OwnedSemaphorePermit,
}

#[derive(utoipa::OpenApi)]
#[openapi(paths(events))]
pub(super) struct Described;

/// What happens, as server-sent events: `id:` numbers them, `data:` is JSON.
#[utoipa::path(
    get, path = "/api/v1/events",
    params(Wanted),
    responses((status = 200, body = String, content_type = "text/event-stream"))
)]
pub(super) async fn events(
    State(state): State<ApiState>,
    headers: HeaderMap,
    Query(wanted): Query<Wanted>,
) -> Response {
    let names: Vec<&str> = wanted.types.split(',').filter(|name| !name.is_empty()).collect();
    let metrics = names.contains(&METRIC);
    let types: Result<Vec<EventType>, String> =
        names.into_iter().filter(|name| *name != METRIC).map(str::parse).collect();
    let types = match types {
        Ok(types) => types,
        Err(message) => return failure(StatusCode::BAD_REQUEST, &InferError::new(ErrorCode::Usage, message)),
    };
    let Ok(place) = state.streams.clone().try_acquire_owned() else {
        let message = format!("{STREAMS_MAX} streams of events are open already");
        return refuse(&InferError::new(ErrorCode::Overloaded, message));
    };
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.trim().parse().ok());
    let after: Option<u64> = last.or(wanted.after);
    let bus = state.telemetry.events.clone();
    let newest = bus.newest();
    let reader = Reader {
        types,
        cursor: after.unwrap_or(if wanted.follow { newest } else { 0 }),
        until: (!wanted.follow).then_some(newest),
        gap: after.is_some(),
        every: Duration::from_millis(wanted.every_ms.min(EVERY_MAX_MS)),
        due: Instant::now(),
        metrics: (metrics && wanted.follow).then(|| state.telemetry.history.watch()),
        point: None,
        bus,
        _place: place,
    };
    // This leaves at once: whoever follows then knows that nothing after it is missed.
    let begin = format!("retry: {RETRY_MS}\nid: {}\n\n", reader.cursor);
    let events = stream::unfold(Some(reader), |reader| async { next(reader?).await });
    let all = stream::iter([Ok(begin.into())]).chain(events);
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, [("x-accel-buffering", "no")], Body::from_stream(all)).into_response()
}

/// The next events, and the reader unless it is done.
async fn next(mut reader: Reader) -> Option<(io::Result<Bytes>, Option<Reader>)> {
    loop {
        tokio::time::sleep_until(reader.due).await;
        let mut batch = reader.bus.after(reader.cursor, &reader.types);
        if !reader.every.is_zero() {
            coalesce(&mut batch.events);
        }
        let done = reader.until.is_some_and(|until| batch.cursor >= until);
        let mut piece = match text(&batch, reader.gap) {
            Ok(piece) => piece,
            Err(error) => return Some((Err(error), None)),
        };
        reader.cursor = batch.cursor;
        reader.gap = true;
        if let Some(point) = reader.point.take() {
            let _ = write!(piece, "data: {}\n\n", point.event());
        }
        if piece.is_empty() && done {
            return None;
        }
        if !piece.is_empty() {
            reader.due = Instant::now() + reader.every;
            return Some((Ok(piece.into()), (!done).then_some(reader)));
        }
        let news = async {
            match &mut reader.metrics {
                Some(points) => tokio::select! {
                    () = reader.bus.wait(reader.cursor) => {}
                    Ok(()) = points.changed() => reader.point = *points.borrow_and_update(),
                },
                None => reader.bus.wait(reader.cursor).await,
            }
        };
        if tokio::time::timeout(PING, news).await.is_err() {
            let ping = format!(": nothing yet\nid: {}\n\n", reader.cursor);
            return Some((Ok(ping.into()), Some(reader)));
        }
    }
}

/// Leaves out what a later event of the same peer's connection says anew.
fn coalesce(events: &mut Vec<Event>) {
    let mut seen = HashSet::new();
    let mut kept: Vec<Event> = events
        .drain(..)
        .rev()
        .filter(|event| match &event.kind {
            EventKind::Peer { peer, .. } => seen.insert(peer.clone()),
            _ => true,
        })
        .collect();
    kept.reverse();
    *events = kept;
}

/// A batch as it goes over the wire. JSON has no line breaks of its own.
fn text(batch: &Batch, gap: bool) -> io::Result<String> {
    let mut text = String::new();
    if gap && batch.missed > 0 {
        let missed = json!({ "schema": "quelea.gap/v1", "missed": batch.missed });
        let _ = write!(text, "event: gap\ndata: {missed}\n\n");
    }
    for event in &batch.events {
        let _ = write!(text, "id: {}\ndata: {}\n\n", event.id, serde_json::to_string(event)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_one_peers_comings_and_goings_the_last_is_told() {
        let peer = |id, name: &str, connected| {
            let kind = EventKind::Peer { peer: name.into(), connected };
            Event { id, time_ms: id, kind }
        };
        let mut events = vec![peer(1, "a", true), peer(2, "b", true), peer(3, "a", false), peer(4, "a", true)];
        coalesce(&mut events);
        assert_eq!(events, [peer(2, "b", true), peer(4, "a", true)]);
    }

    #[test]
    fn events_have_numbers_and_what_is_gone_is_said() {
        let kind = EventKind::Message { author: "a".into(), text: "b\n\ndata: c".into(), sent_ms: 1, own: false };
        let batch = Batch { missed: 3, events: vec![Event { id: 9, time_ms: 7, kind }], cursor: 9 };
        let wire = text(&batch, true).unwrap();
        let blocks: Vec<&str> = wire.trim_end().split("\n\n").collect();
        let [gap, event] = blocks.as_slice() else { panic!("{wire}") };
        assert!(gap.starts_with("event: gap\ndata: {") && gap.contains(r#""missed":3"#), "{gap}");
        assert!(event.starts_with("id: 9\ndata: {") && event.lines().count() == 2, "{event}");
        assert!(!text(&batch, false).unwrap().contains("gap"));
    }
}
