//! The newest log lines, in memory, for those who look at them over the API. What is filtered out for stderr is not here
//! either; secrets are in neither, because nothing of ours logs one.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
    sync::{Arc, Mutex, PoisonError},
};

use quelea_wire::time::unix_ms;
use serde::Serialize;
use tokio::sync::watch;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id},
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

use crate::text::escaped;

/// Lines kept: with [`LINE_MAX`] bytes each some 2 MiB at most, and a tenth of that as lines are.
pub(crate) const LINES: usize = 2000;

/// Bytes kept of a line.
const LINE_MAX: usize = 1024;

/// The form of a line as JSON.
const SCHEMA: &str = "quelea.log/v1";

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = LogLine)]
pub(crate) struct Line {
    /// [`SCHEMA`].
    #[schema(pattern = "quelea.log/v1")]
    pub(crate) schema: &'static str,
    /// Its number: one more than that of the line before.
    pub(crate) id: u64,
    /// When, Unix milliseconds.
    pub(crate) time_ms: u64,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub(crate) level: &'static str,
    /// The module that says it.
    pub(crate) target: &'static str,
    /// What it says, its fields behind it. Strangers' words are escaped.
    pub(crate) message: String,
    /// The trace of the request that it belongs to, if it belongs to one: 32 hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    pub(crate) trace_id: Option<String>,
    /// That request's `x-request-id`, if it came over HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    pub(crate) request_id: Option<String>,
}

/// What sets the filter: directives as `RUST_LOG` has them.
pub(super) type SetFilter = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// A clonable reference to the lines.
#[derive(Clone)]
pub(crate) struct LogTail {
    shared: Arc<Shared>,
}

struct Shared {
    kept: Mutex<VecDeque<Line>>,
    newest: watch::Sender<u64>,
    filter: Mutex<Option<(String, SetFilter)>>,
}

impl fmt::Debug for LogTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogTail").field("newest", &self.newest()).finish_non_exhaustive()
    }
}

impl Default for LogTail {
    fn default() -> Self {
        let shared = Shared { kept: Mutex::default(), newest: watch::channel(0).0, filter: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }
}

impl LogTail {
    /// The number of the newest line; 0 before the first.
    pub(crate) fn newest(&self) -> u64 {
        *self.shared.newest.borrow()
    }

    /// At most `most` lines after number `after`, the newest of them, oldest first.
    pub(crate) fn after(&self, after: u64, most: usize) -> Vec<Line> {
        let kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let first = kept.partition_point(|line| line.id <= after);
        kept.iter().skip(first.max(kept.len().saturating_sub(most))).cloned().collect()
    }

    /// Waits for a line after number `after`.
    pub(crate) async fn wait(&self, after: u64) {
        let mut newest = self.shared.newest.subscribe();
        // The sender lives as long as the tail.
        let _ = newest.wait_for(|newest| *newest > after).await;
    }

    /// What is logged, and how that is changed.
    pub(super) fn set_with(&self, directives: &str, set: SetFilter) {
        *self.shared.filter.lock().unwrap_or_else(PoisonError::into_inner) = Some((directives.to_owned(), set));
    }

    /// The directives that hold.
    pub(crate) fn directives(&self) -> Option<String> {
        let filter = self.shared.filter.lock().unwrap_or_else(PoisonError::into_inner);
        filter.as_ref().map(|(directives, _)| directives.clone())
    }

    /// Logs by these directives from now on.
    pub(crate) fn direct(&self, directives: &str) -> Result<(), String> {
        let mut filter = self.shared.filter.lock().unwrap_or_else(PoisonError::into_inner);
        let (holds, set) = filter.as_mut().ok_or("logging was not set up by this program")?;
        set(directives)?;
        directives.clone_into(holds);
        Ok(())
    }

    fn push(&self, level: &'static str, target: &'static str, message: String, ids: Ids) {
        let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= LINES {
            kept.pop_front();
        }
        let id = self.newest().saturating_add(1);
        let Ids { trace_id, request_id } = ids;
        kept.push_back(Line { schema: SCHEMA, id, time_ms: unix_ms(), level, target, message, trace_id, request_id });
        // Under the lock: numbers become known in order.
        self.shared.newest.send_replace(id);
    }
}

/// The ids of a request, as spans of [`tracing`] have them in fields of these names.
#[derive(Debug, Clone, Default)]
struct Ids {
    trace_id: Option<String>,
    request_id: Option<String>,
}

impl Visit for Ids {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let place = match field.name() {
            "trace_id" => &mut self.trace_id,
            "request_id" => &mut self.request_id,
            _ => return,
        };
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = write!(Bounded(&mut text), "{value:?}");
        *place = Some(text);
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LogTail {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        // What is not said of a request itself is said of the one that it is part of.
        let mut ids = span.parent().and_then(|parent| parent.extensions().get::<Ids>().cloned()).unwrap_or_default();
        attributes.record(&mut ids);
        if ids.trace_id.is_some() || ids.request_id.is_some() {
            span.extensions_mut().insert(ids);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        let mut message = said.message;
        message.push_str(&said.fields);
        message.truncate(message.floor_char_boundary(LINE_MAX));
        let meta = event.metadata();
        let level = match *meta.level() {
            tracing::Level::ERROR => "error",
            tracing::Level::WARN => "warn",
            tracing::Level::INFO => "info",
            tracing::Level::DEBUG => "debug",
            tracing::Level::TRACE => "trace",
        };
        let ids = context.event_span(event).and_then(|span| span.extensions().get::<Ids>().cloned());
        self.push(level, meta.target(), escaped(&message), ids.unwrap_or_default());
    }
}

#[derive(Default)]
struct Said {
    message: String,
    fields: String,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // More than a line holds is not even written. Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(Bounded(&mut self.message), "{value:?}"),
            name => write!(Bounded(&mut self.fields), " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = match field.name() {
            "message" => write!(Bounded(&mut self.message), "{value}"),
            name => write!(Bounded(&mut self.fields), " {name}={value}"),
        };
    }
}

/// Takes what fits into a line.
struct Bounded<'a>(&'a mut String);

impl fmt::Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LINE_MAX.saturating_sub(self.0.len());
        self.0.push_str(text.get(..text.floor_char_boundary(room)).unwrap_or_default());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn logged(log: impl FnOnce()) -> LogTail {
        let tail = LogTail::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(tail.clone()), log);
        tail
    }

    #[test]
    fn lines_of_a_request_have_its_ids() {
        let tail = logged(|| {
            tracing::info!("of nobody");
            let http = tracing::error_span!("http", request_id = "req_1").entered();
            tracing::info!("before it is traced");
            let request = tracing::error_span!("request", trace_id = %"4bf9").entered();
            tracing::info!(parent: &tracing::info_span!("a part of it"), "while it is answered");
            drop((request, http));
            tracing::info!("after it");
        });
        let ids: Vec<_> = tail.after(0, 10).into_iter().map(|line| (line.trace_id, line.request_id)).collect();
        let of = |trace: Option<&str>, request: Option<&str>| (trace.map(str::to_owned), request.map(str::to_owned));
        let (none, http) = (of(None, None), of(None, Some("req_1")));
        assert_eq!(ids, [none.clone(), http, of(Some("4bf9"), Some("req_1")), none]);
    }

    #[test]
    fn lines_are_kept_with_their_fields_and_strangers_words_escaped() {
        let tail = logged(|| {
            tracing::info!(peers = 3, name = "a\u{1b}[2J\nb", "hello");
            tracing::warn!(target: "quelea::x", "{}", "x".repeat(5000));
        });
        let lines = tail.after(0, 10);
        assert_eq!((lines[0].level, lines[0].message.as_str()), ("info", "hello peers=3 name=a\\u{1b}[2J\\nb"));
        assert_eq!((lines[1].level, lines[1].target, lines[1].message.len()), ("warn", "quelea::x", LINE_MAX));
        assert_eq!(tail.after(1, 10).len(), 1);
        assert_eq!(tail.after(0, 1)[0].id, 2);
    }

    #[test]
    fn lines_are_bounded() {
        let tail = logged(|| (0..LINES + 5).for_each(|n| tracing::info!(n, "line")));
        let lines = tail.after(0, usize::MAX);
        assert_eq!((lines.len(), lines[0].id, tail.newest()), (LINES, 6, LINES as u64 + 5));
        assert!(tail.direct("info").is_err());
    }
}
