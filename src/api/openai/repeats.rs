//! Requests with an `Idempotency-Key`: asked again, they get the answer that was given, or join the one that is under way.
//!
//! An answer with a key is made apart from whoever asked for it, and kept as it comes: status, headers and pieces of the body.
//! Whoever shows the key again reads from the beginning. If all readers are gone for [`LINGER`], it is cancelled. What failed
//! and cost nothing is not kept: asking again is then asking anew.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures::{StreamExt as _, stream};
use tokio::{sync::watch, time::timeout};

use super::{ApiError, ApiState};
use crate::api::BODY_MAX;

/// For how long an answer can be had again: longer than clients try.
const KEPT: Duration = Duration::from_secs(600);

/// For how long nobody may read an answer that is under way: a client that lost its connection is back by then.
const LINGER: Duration = Duration::from_secs(30);

/// Most answers that are kept, and most of one caller.
const MAX_KEPT: usize = 256;
const MAX_OF_CALLER: usize = 64;

/// Most bytes of all of them, and of one: sixteen times the longest answer with all its log-probabilities.
const MAX_BYTES: usize = 64 << 20;
const MAX_BYTES_OF_ONE: usize = 16 << 20;

/// Longest key: two UUIDs and a prefix fit several times.
const MAX_KEY: usize = 255;

/// Says that an answer is not new.
const REPLAYED: &str = "x-quelea-replayed";

/// An answer as far as it has come.
#[derive(Default)]
struct Recorded {
    head: Option<(StatusCode, HeaderMap)>,
    pieces: Vec<Bytes>,
    bytes: usize,
    over: bool,
    /// Whether it was cut off.
    broken: bool,
}

/// One answer.
struct Entry {
    caller: [u8; 32],
    /// Of the request's path and body.
    request: blake3::Hash,
    since: Instant,
    recorded: Mutex<Recorded>,
    /// Counts what was recorded.
    news: watch::Sender<u64>,
    readers: watch::Sender<usize>,
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, change: impl FnOnce(&mut Recorded)) {
        change(&mut self.lock());
        self.news.send_modify(|news| *news = news.wrapping_add(1));
    }

    /// Ends when nobody has read for a while.
    async fn abandoned(&self) {
        let mut readers = self.readers.subscribe();
        loop {
            // The sender lives as long as this.
            let _ = readers.wait_for(|count| *count == 0).await;
            if timeout(LINGER, readers.wait_for(|count| *count > 0)).await.is_err() {
                return;
            }
        }
    }
}

/// Somebody who reads an answer.
struct Reader(Arc<Entry>);

impl Reader {
    fn of(entry: &Arc<Entry>) -> Self {
        entry.readers.send_modify(|count| *count += 1);
        Self(entry.clone())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.readers.send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// The answers that are kept.
#[derive(Default)]
pub(super) struct Repeats {
    kept: Mutex<HashMap<[u8; 32], Arc<Entry>>>,
}

impl Repeats {
    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Arc<Entry>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer of this name, and whether it is new.
    fn entry(&self, name: [u8; 32], caller: [u8; 32], request: blake3::Hash) -> Result<(Reader, bool), ApiError> {
        let mut kept = self.lock();
        kept.retain(|_, entry| entry.since.elapsed() < KEPT || !entry.lock().over);
        if let Some(entry) = kept.get(&name) {
            if entry.request != request {
                let message = "the Idempotency-Key was used for another request: make a new one for each";
                let error = ApiError::invalid(message).with_status(StatusCode::UNPROCESSABLE_ENTITY);
                return Err(error.with_code("idempotency_key_reused"));
            }
            return Ok((Reader::of(entry), false));
        }
        let of_caller = |kept: &HashMap<_, Arc<Entry>>| kept.values().filter(|entry| entry.caller == caller).count();
        while kept.len() >= MAX_KEPT || of_caller(&kept) >= MAX_OF_CALLER || bytes(&kept) > MAX_BYTES {
            let mine = of_caller(&kept) >= MAX_OF_CALLER;
            let finished = kept.iter().filter(|(_, entry)| entry.lock().over && (!mine || entry.caller == caller));
            let oldest = finished.min_by_key(|(_, entry)| entry.since).map(|(name, _)| *name);
            match oldest {
                Some(oldest) => drop(kept.remove(&oldest)),
                None => return Err(ApiError::busy(MAX_OF_CALLER)),
            }
        }
        let entry = Arc::new(Entry {
            caller,
            request,
            since: Instant::now(),
            recorded: Mutex::default(),
            news: watch::Sender::new(0),
            readers: watch::Sender::new(0),
        });
        kept.insert(name, entry.clone());
        Ok((Reader::of(&entry), true))
    }

    fn forget(&self, name: [u8; 32], entry: &Arc<Entry>) {
        let mut kept = self.lock();
        if kept.get(&name).is_some_and(|known| Arc::ptr_eq(known, entry)) {
            kept.remove(&name);
        }
    }
}

fn bytes(kept: &HashMap<[u8; 32], Arc<Entry>>) -> usize {
    kept.values().map(|entry| entry.lock().bytes).fold(0, usize::saturating_add)
}

/// Answers requests with a key once.
pub(super) async fn once(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let Some(key) = request.headers().get("idempotency-key").cloned() else { return next.run(request).await };
    match repeated(&state, &key, request, next).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn repeated(state: &ApiState, key: &HeaderValue, request: Request, next: Next) -> Result<Response, ApiError> {
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(ApiError::invalid(format!("an Idempotency-Key has 1 to {MAX_KEY} bytes")));
    }
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, BODY_MAX).await.map_err(|_| {
        let message = format!("the request is cut off, or longer than {BODY_MAX} bytes");
        ApiError::invalid(message).with_status(StatusCode::PAYLOAD_TOO_LARGE)
    })?;
    let caller = caller(&parts.headers);
    let mut name = blake3::Hasher::new();
    name.update(&caller).update(key.as_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(parts.uri.path().as_bytes()).update(&[0]).update(&body);
    let name = *name.finalize().as_bytes();
    let (reader, new) = state.openai.repeats.entry(name, caller, hasher.finalize())?;
    if new {
        let (state, entry) = (state.clone(), reader.0.clone());
        let answer = next.run(Request::from_parts(parts, Body::from(body)));
        tokio::spawn(async move {
            let recorded = async {
                let response = answer.await;
                record(&state.openai.repeats, name, &entry, response).await
            };
            let keep = tokio::select! {
                keep = recorded => keep,
                () = entry.abandoned() => {
                    entry.record(|recorded| (recorded.over, recorded.broken) = (true, true));
                    false
                }
            };
            if !keep {
                state.openai.repeats.forget(name, &entry);
            }
        });
    }
    Ok(replay(reader, new).await)
}

/// Whose a request is: by what it is let in with. Over the unix socket all are one user's.
fn caller(headers: &HeaderMap) -> [u8; 32] {
    let shown = [header::AUTHORIZATION.as_str(), "x-api-key", header::COOKIE.as_str()];
    let mut hasher = blake3::Hasher::new();
    for value in shown.iter().filter_map(|name| headers.get(*name)) {
        hasher.update(value.as_bytes()).update(&[0]);
    }
    *hasher.finalize().as_bytes()
}

/// Keeps an answer as it comes; whether it is worth keeping.
async fn record(repeats: &Repeats, name: [u8; 32], entry: &Arc<Entry>, response: Response) -> bool {
    let (parts, body) = response.into_parts();
    // What cost nothing and failed may be asked again.
    let charged = parts.headers.get("x-should-retry").is_some_and(|retry| retry == "false");
    let keep = parts.status.is_success() || charged;
    entry.record(|recorded| recorded.head = Some((parts.status, parts.headers)));
    let mut pieces = body.into_data_stream();
    let mut broken = false;
    while let Some(piece) = pieces.next().await {
        let Ok(piece) = piece else {
            broken = true;
            break;
        };
        let mut full = false;
        entry.record(|recorded| {
            recorded.bytes = recorded.bytes.saturating_add(piece.len());
            full = recorded.bytes > MAX_BYTES_OF_ONE;
            recorded.pieces.push(piece);
        });
        if full {
            // Who reads it now has it to the end; nobody has it again.
            repeats.forget(name, entry);
        }
    }
    entry.record(|recorded| (recorded.over, recorded.broken) = (true, broken));
    keep && !broken
}

/// The answer from its beginning.
async fn replay(reader: Reader, new: bool) -> Response {
    let mut news = reader.0.news.subscribe();
    let head = loop {
        {
            let recorded = reader.0.lock();
            if let Some(head) = &recorded.head {
                break head.clone();
            }
            if recorded.over {
                break (StatusCode::INTERNAL_SERVER_ERROR, HeaderMap::new());
            }
        }
        // The sender lives as long as this reader.
        let _ = news.changed().await;
    };
    let pieces = stream::unfold((reader, news, 0), |(reader, mut news, at)| async move {
        loop {
            {
                let recorded = reader.0.lock();
                if let Some(piece) = recorded.pieces.get(at).cloned() {
                    drop(recorded);
                    return Some((Ok(piece), (reader, news, at + 1)));
                }
                if recorded.over && !recorded.broken {
                    return None;
                }
                if recorded.over {
                    drop(recorded);
                    return Some((Err(io::Error::other("the answer was cut off")), (reader, news, usize::MAX)));
                }
            }
            let _ = news.changed().await;
        }
    });
    let (status, mut headers) = head;
    if !new {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    (status, headers, Body::from_stream(pieces)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(n: u8) -> ([u8; 32], blake3::Hash) {
        ([n; 32], blake3::hash(&[n]))
    }

    #[test]
    fn a_key_stands_for_one_request_of_one_caller() {
        let repeats = Repeats::default();
        let (name, request) = named(1);
        let (first, new) = repeats.entry(name, [0; 32], request).unwrap();
        assert!(new);
        let (again, new) = repeats.entry(name, [0; 32], request).unwrap();
        assert!(!new && Arc::ptr_eq(&first.0, &again.0));
        assert_eq!(*first.0.readers.borrow(), 2);
        let other = repeats.entry(name, [0; 32], blake3::hash(b"other")).map(|(_, new)| new).unwrap_err();
        assert_eq!(other.to_json()["code"], "idempotency_key_reused");
        drop(again);
        assert_eq!(*first.0.readers.borrow(), 1);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_under_way_stays() {
        let repeats = Repeats::default();
        let mut under_way = Vec::new();
        for n in 0..MAX_OF_CALLER {
            let n = u8::try_from(n).unwrap();
            let (name, request) = named(n);
            under_way.push(repeats.entry(name, [0; 32], request).unwrap().0);
        }
        let (name, request) = named(200);
        assert!(repeats.entry(name, [0; 32], request).is_err(), "all of them are under way");
        assert!(repeats.entry(name, [1; 32], request).is_ok(), "of another caller");
        under_way[3].0.record(|recorded| recorded.over = true);
        let (name, request) = named(201);
        assert!(repeats.entry(name, [0; 32], request).is_ok(), "the one that is over made room");
        let (name, request) = named(3);
        repeats.lock().remove(&[201; 32]);
        assert!(repeats.entry(name, [0; 32], request).unwrap().1, "and is forgotten");
    }
}
