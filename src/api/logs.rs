//! The node's log.
//!
//! | route | does |
//! |---|---|
//! | `GET /api/v1/logs?lines=200&after=N&follow=true` | the newest lines, one JSON object a line; with `follow` also those that come |
//! | `POST /api/v1/logs/level` | `directives`, as `RUST_LOG` has them: what is logged from now on |
//!
//! What `RUST_LOG` and `-v` leave out is not there.

use std::{io, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Query, State},
    http::header,
    response::{IntoResponse as _, Response},
};
use futures::stream;
use quelea_wire::ErrorCode;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    ApiState,
    events::STREAMS_MAX,
    line, parse, refuse,
    shape::{Failure, answers},
};
use crate::{
    inference::InferError,
    telemetry::tail::{LINES, Line, LogTail},
};

/// Lines when nobody says how many.
const USUAL: usize = 200;

/// Between two pieces of a stream: a flood of lines is read in pieces.
const PACE: Duration = Duration::from_millis(250);

/// While nothing is logged, so that both sides see that the other is there.
const PING: Duration = Duration::from_secs(15);

/// The longest directives.
const DIRECTIVES_MAX: usize = 1024;

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    #[serde(default = "usual")]
    lines: usize,
    /// Only lines after this number.
    #[serde(default)]
    after: u64,
    #[serde(default)]
    follow: bool,
}

fn usual() -> usize {
    USUAL
}

#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LogLevelRequest)]
struct Level {
    /// As `RUST_LOG` has them.
    directives: String,
}

/// A reader under way.
struct Reader {
    tail: LogTail,
    after: u64,
    most: usize,
    follow: bool,
    _place: OwnedSemaphorePermit,
}

#[derive(utoipa::OpenApi)]
#[openapi(paths(logs, level))]
pub(super) struct Described;

answers! {
    /// What is logged from now on.
    LogLevel = "quelea.log_level/v1" { directives: String, }
}

/// The newest lines of the log; with `follow` also those that come, until the caller goes.
#[utoipa::path(
    get, path = "/api/v1/logs",
    params(Wanted),
    responses(
        (status = 200, body = Line, content_type = "application/x-ndjson"),
        (status = 404, body = Failure, description = "this program keeps no lines"),
    )
)]
pub(super) async fn logs(State(state): State<ApiState>, Query(wanted): Query<Wanted>) -> Response {
    let Some(tail) = state.logs.clone() else { return refuse(&none()) };
    let Ok(place) = state.streams.clone().try_acquire_owned() else {
        let message = format!("{STREAMS_MAX} streams of events are open already");
        return refuse(&InferError::new(ErrorCode::Overloaded, message));
    };
    // A number from before a restart lies in the future: all is news then.
    let after = if wanted.after > tail.newest() { 0 } else { wanted.after };
    let most = wanted.lines.min(LINES);
    let reader = Reader { tail, after, most, follow: wanted.follow, _place: place };
    let lines = stream::unfold(Some(reader), |reader| async { Some(next(reader?).await) });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(lines)).into_response()
}

/// The next lines, and the reader unless it is done. An empty line while there are none.
async fn next(mut reader: Reader) -> (io::Result<Bytes>, Option<Reader>) {
    let lines = reader.tail.after(reader.after, reader.most);
    if let Some(last) = lines.last() {
        reader.after = last.id;
        // What comes later comes whole, as far as it is kept.
        reader.most = LINES;
        let text: io::Result<Vec<Bytes>> = lines.iter().map(line).collect();
        let done = !reader.follow;
        return (text.map(|lines| lines.concat().into()), (!done).then_some(reader));
    }
    if !reader.follow {
        return (Ok(Bytes::new()), None);
    }
    tokio::time::sleep(PACE).await;
    let _ = tokio::time::timeout(PING, reader.tail.wait(reader.after)).await;
    (Ok(Bytes::from_static(b"\n")), Some(reader))
}

/// Changes what is logged, until the node stops.
#[utoipa::path(
    post, path = "/api/v1/logs/level",
    request_body = Level,
    responses((status = 200, body = LogLevel), (status = 404, body = Failure, description = "this program keeps no lines"))
)]
pub(super) async fn level(State(state): State<ApiState>, body: Bytes) -> Response {
    let set = || {
        let Level { directives } = parse(&body)?;
        if directives.trim().is_empty() || directives.len() > DIRECTIVES_MAX {
            let message = format!("directives have 1 to {DIRECTIVES_MAX} bytes, like quelea=debug,info");
            return Err(InferError::new(ErrorCode::Usage, message));
        }
        let tail = state.logs.as_ref().ok_or_else(none)?;
        tail.direct(&directives).map_err(|message| InferError::new(ErrorCode::Usage, message))?;
        Ok(directives)
    };
    match set() {
        Ok(directives) => {
            tracing::info!(%directives, "what is logged was changed over the API");
            Json(json!({ "schema": "quelea.log_level/v1", "directives": directives })).into_response()
        }
        Err(error) => refuse(&error),
    }
}

fn none() -> InferError {
    InferError::new(ErrorCode::NotFound, "this program keeps no log lines")
}
