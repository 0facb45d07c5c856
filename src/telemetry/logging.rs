//! Logs: to stderr, as text for people or JSON lines for machines. Data goes to stdout, so a log line is never in its way.
//!
//! `RUST_LOG` wins over `-v`, because whoever sets it knows what they want to see.

use tracing::Subscriber;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter, layer::SubscriberExt as _, reload};

use super::tail::{LogTail, SetFilter};

/// The variable that wins over `-v`.
const VARIABLE: &str = "RUST_LOG";

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; coloured where that is wanted.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = LogError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LogError::UnknownFormat(other.into())),
        }
    }
}

/// Why logging cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Neither `text` nor `json`.
    #[error("unknown log format {0:?}: use text or json")]
    UnknownFormat(String),
    /// `RUST_LOG` is not a list of directives.
    #[error("{VARIABLE} cannot be understood: {0} (a right one looks like quelea=debug,libp2p_kad=trace,info)")]
    BadFilter(String),
    /// It was set up before.
    #[error("logging is set up already")]
    AlreadySet,
}

/// Sets logging up for the process. `verbosity` counts the `-v`s: 0 shows what the node does, 1 its details, 2 everything of
/// ours and libp2p's details. `ansi` colours text.
///
/// # Errors
/// When `RUST_LOG` is malformed, or logging was set up before. The newest lines can be read from what is returned, and what is
/// logged be changed.
pub(crate) fn init(format: LogFormat, verbosity: u8, ansi: bool) -> Result<LogTail, LogError> {
    let variable = std::env::var(VARIABLE).ok();
    let directives = directives(variable.as_deref(), verbosity);
    let filter = parse(directives)?;
    let tail = LogTail::default();
    let (subscriber, set) = subscriber(format, filter, ansi, std::io::stderr, tail.clone());
    tracing::subscriber::set_global_default(subscriber).map_err(|_already| LogError::AlreadySet)?;
    tail.set_with(directives, set);
    Ok(tail)
}

/// `quelea` stands for all our crates: a directive holds for every target that starts with it.
fn directives(variable: Option<&str>, verbosity: u8) -> &str {
    match (variable.map(str::trim), verbosity) {
        (Some(set), _) if !set.is_empty() => set,
        // gossipsub warns of each message that is wrong, identify of each that is too many: a stranger's would fill the disk.
        (_, 0) => "warn,libp2p_gossipsub=error,libp2p_identify=error,quelea=info",
        (_, 1) => "info,libp2p_gossipsub=error,libp2p_identify=error,quelea=debug",
        // Below debug these write a line for every packet.
        _ => "debug,quelea=trace,quinn=info,quinn_proto=info,yamux=info,hickory_proto=info,hyper=info",
    }
}

fn parse(directives: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder().parse(directives).map_err(|e| LogError::BadFilter(e.to_string()))
}

fn subscriber<W>(
    format: LogFormat,
    filter: EnvFilter,
    ansi: bool,
    writer: W,
    tail: LogTail,
) -> (Box<dyn Subscriber + Send + Sync>, SetFilter)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter);
    let set = move |directives: &str| {
        let filter = parse(directives).map_err(|error| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())
    };
    // Innermost: what it leaves out is nobody's.
    let filtered = tracing_subscriber::registry().with(filter).with(tail);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(ansi);
    let subscriber: Box<dyn Subscriber + Send + Sync> = match format {
        LogFormat::Text => Box::new(filtered.with(lines)),
        LogFormat::Json => Box::new(filtered.with(lines.json().flatten_event(true).with_current_span(true))),
    };
    (subscriber, Box::new(set))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, variable: Option<&str>, verbosity: u8, ansi: bool) -> String {
        let sink = Sink::default();
        let for_writer = sink.clone();
        let filter = parse(directives(variable, verbosity)).unwrap();
        let (subscriber, _) = subscriber(format, filter, ansi, move || for_writer.clone(), LogTail::default());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "quelea::swarm", peers = 3, "ours info\u{1b}[31m");
            tracing::debug!(target: "quelea_engine", "ours debug");
            tracing::trace!(target: "quelea_wire::envelope", "ours trace");
            tracing::warn!(target: "libp2p_kad", "theirs warn");
            tracing::info!(target: "libp2p_kad", "theirs info");
            tracing::debug!(target: "libp2p_kad", "theirs debug");
        });
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn each_v_shows_more() {
        let shown = |variable, verbosity| {
            let text = logged(LogFormat::Text, variable, verbosity, false);
            let words = ["ours info", "ours debug", "ours trace", "theirs warn", "theirs info", "theirs debug"];
            words.map(|w| text.contains(w))
        };
        assert_eq!(shown(None, 0), [true, false, false, true, false, false]);
        assert_eq!(shown(None, 1), [true, true, false, true, true, false]);
        assert_eq!(shown(None, 2), [true; 6]);
        assert_eq!(shown(Some("off,libp2p_kad=debug"), 2), [false, false, false, true, true, true]);
        assert_eq!(shown(Some(" "), 0), shown(None, 0), "an empty variable counts as unset");
    }

    #[test]
    fn json_lines_are_objects_with_the_fields() {
        let text = logged(LogFormat::Json, None, 0, false);
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["level"], "INFO");
        assert_eq!(lines[0]["target"], "quelea::swarm");
        assert_eq!(lines[0]["peers"], 3);
        assert!(lines[0]["message"].as_str().unwrap().starts_with("ours info"));
        assert!(lines[0]["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn lines_of_a_request_carry_its_ids_whatever_is_shown() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let sink = Sink::default();
            let for_writer = sink.clone();
            let (subscriber, _) =
                subscriber(format, parse("warn").unwrap(), false, move || for_writer.clone(), LogTail::default());
            tracing::subscriber::with_default(subscriber, || {
                let _http = tracing::error_span!("http", request_id = "req_1").entered();
                let _request = tracing::error_span!("request", trace_id = %"4bf9").entered();
                tracing::warn!("of it");
            });
            let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
            assert!(text.contains("4bf9") && text.contains("req_1"), "{text}");
            if format == LogFormat::Json {
                let line: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(
                    (&line["span"]["trace_id"], &line["spans"][0]["request_id"]),
                    (&"4bf9".into(), &"req_1".into())
                );
            }
        }
    }

    #[test]
    fn colours_only_when_asked_and_never_from_a_message() {
        assert!(!logged(LogFormat::Text, None, 0, false).contains('\u{1b}'));
        let coloured = logged(LogFormat::Text, None, 0, true);
        assert!(coloured.contains('\u{1b}') && !coloured.contains("\u{1b}[31m"), "{coloured:?}");
    }

    #[test]
    fn what_is_logged_can_be_changed_while_it_is() {
        let tail = LogTail::default();
        let (subscriber, set) = subscriber(LogFormat::Text, parse("warn").unwrap(), false, std::io::sink, tail.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("before");
            set("info").unwrap();
            tracing::info!("after");
            assert!(set("quelea=loud").unwrap_err().contains("quelea=debug"));
        });
        let said: Vec<String> = tail.after(0, 10).into_iter().map(|line| line.message).collect();
        assert_eq!(said, ["after"]);
    }

    #[test]
    fn a_bad_variable_is_named() {
        let error = parse(directives(Some("quelea=loud"), 0)).unwrap_err().to_string();
        assert!(error.contains("RUST_LOG") && error.contains("quelea=debug"), "{error}");
        assert!("xml".parse::<LogFormat>().unwrap_err().to_string().contains("text or json"));
        assert_eq!("json".parse::<LogFormat>().unwrap(), LogFormat::Json);
    }
}
