//! `GET /api/v1/events?types=peer,message&after=N&follow=true`: events as lines of JSON, oldest first.
//!
//! Without `after` the stream begins with what is kept, or, when it follows, with what comes. A reader that was too slow or
//! came too late gets a line `{"schema": "quelea.gap/v1", "missed": N}` where events are gone.

use std::io;

use axum::{
    body::{Body, Bytes},
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures::stream;
use quelea_wire::ErrorCode;
use serde::Deserialize;
use serde_json::json;

use super::{ApiState, failure};
use crate::{
    events::{Batch, EventBus, EventType},
    inference::InferError,
};

#[derive(Deserialize)]
pub(super) struct Wanted {
    /// Types, separated by commas; all when left out.
    #[serde(default)]
    types: String,
    /// Only events after this number.
    after: Option<u64>,
    /// Whether to go on with what comes.
    #[serde(default)]
    follow: bool,
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

pub(super) async fn events(State(state): State<ApiState>, Query(wanted): Query<Wanted>) -> Response {
    let types: Result<Vec<EventType>, String> =
        wanted.types.split(',').filter(|name| !name.is_empty()).map(str::parse).collect();
    let types = match types {
        Ok(types) => types,
        Err(message) => return failure(StatusCode::BAD_REQUEST, &InferError::new(ErrorCode::Usage, message)),
    };
    let bus = state.telemetry.events.clone();
    let newest = bus.newest();
    let reader = Reader {
        types,
        cursor: wanted.after.unwrap_or(if wanted.follow { newest } else { 0 }),
        until: (!wanted.follow).then_some(newest),
        gap: wanted.after.is_some(),
        bus,
    };
    // The first lines leave at once: whoever follows then knows that nothing after them is missed.
    let lines = stream::unfold(Some(reader), |reader| async { next(reader?).await });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// The next lines, and the reader unless it is done.
async fn next(mut reader: Reader) -> Option<(io::Result<Bytes>, Option<Reader>)> {
    loop {
        let batch = reader.bus.after(reader.cursor, &reader.types);
        let done = reader.until.is_some_and(|until| batch.cursor >= until);
        let lines = lines(&batch, reader.gap);
        reader.cursor = batch.cursor;
        reader.gap = true;
        match lines {
            Ok(lines) if lines.is_empty() && done => return None,
            Ok(lines) if lines.is_empty() => reader.bus.wait(reader.cursor).await,
            Ok(lines) => return Some((Ok(lines.into()), (!done).then_some(reader))),
            Err(error) => return Some((Err(error), None)),
        }
    }
}

fn lines(batch: &Batch, gap: bool) -> io::Result<Vec<u8>> {
    let mut lines = Vec::new();
    if gap && batch.missed > 0 {
        serde_json::to_writer(&mut lines, &json!({ "schema": "quelea.gap/v1", "missed": batch.missed }))?;
        lines.push(b'\n');
    }
    for event in &batch.events {
        serde_json::to_writer(&mut lines, event)?;
        lines.push(b'\n');
    }
    Ok(lines)
}
