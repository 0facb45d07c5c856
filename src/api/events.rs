//! `GET /api/v1/events?types=peer,message&after=N&follow=false`: events as server-sent events, oldest first.
//!
//! Each has its number as `id:` and its JSON, in one line, as `data:`. Without `after` the stream begins with what comes, or,
//! when it does not follow, with what is kept; a browser that comes back says the last number that it has in `Last-Event-ID`,
//! which counts more than `after`. A reader that was too slow or came too late gets `event: gap` with
//! `{"schema": "quelea.gap/v1", "missed": N}` where events are gone. While nothing happens there is a comment every
//! [`PING`], with the number of the newest event, so that who comes back need not ask for what it did not want.

use std::{fmt::Write as _, io, time::Duration};

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

use super::{ApiState, failure};
use crate::{
    events::{Batch, EventBus, EventType},
    inference::InferError,
};

/// Between two comments that keep the connection: less than the half minute after which proxies give up.
const PING: Duration = Duration::from_secs(15);

/// After how long a browser whose connection broke comes back, in milliseconds.
const RETRY_MS: u32 = 2000;

#[derive(Deserialize)]
pub(super) struct Wanted {
    /// Types, separated by commas; all when left out.
    #[serde(default)]
    types: String,
    /// Only events after this number.
    after: Option<u64>,
    /// Whether to go on with what comes.
    #[serde(default = "yes")]
    follow: bool,
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
}

pub(super) async fn events(
    State(state): State<ApiState>,
    headers: HeaderMap,
    Query(wanted): Query<Wanted>,
) -> Response {
    let types: Result<Vec<EventType>, String> =
        wanted.types.split(',').filter(|name| !name.is_empty()).map(str::parse).collect();
    let types = match types {
        Ok(types) => types,
        Err(message) => return failure(StatusCode::BAD_REQUEST, &InferError::new(ErrorCode::Usage, message)),
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
        bus,
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
        let batch = reader.bus.after(reader.cursor, &reader.types);
        let done = reader.until.is_some_and(|until| batch.cursor >= until);
        let text = text(&batch, reader.gap);
        reader.cursor = batch.cursor;
        reader.gap = true;
        match text {
            Ok(text) if text.is_empty() && done => return None,
            Ok(text) if text.is_empty() => {
                if tokio::time::timeout(PING, reader.bus.wait(reader.cursor)).await.is_err() {
                    let ping = format!(": nothing yet\nid: {}\n\n", reader.cursor);
                    return Some((Ok(ping.into()), Some(reader)));
                }
            }
            Ok(text) => return Some((Ok(text.into()), (!done).then_some(reader))),
            Err(error) => return Some((Err(error), None)),
        }
    }
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
    use crate::events::{Event, EventKind};

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
