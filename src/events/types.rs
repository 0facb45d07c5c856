//! The events there are, and how they read as JSON: `{"schema": "quelea.event/v1", "id", "time_ms", "type", …}`.

use serde::Serialize;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// Its number: one more than that of the event before.
    pub id: u64,
    /// When, Unix milliseconds.
    pub time_ms: u64,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// The first connection to a peer stands, or the last one is gone.
    Peer {
        /// Which.
        peer: String,
        /// Whether it is connected now.
        connected: bool,
    },
    /// A peer announced layers for the first time, anew, or left.
    Model {
        /// Who.
        peer: String,
        /// `added`, `updated` or `left`.
        change: &'static str,
        /// What it offers: model ids and layers.
        offers: Vec<Offered>,
    },
    /// A line was said to everybody.
    Message {
        /// Whose signature it bears.
        author: String,
        /// What it says: a stranger's words, to be escaped by whoever shows them.
        text: String,
        /// When its author says that it was sent, Unix milliseconds.
        sent_ms: u64,
        /// Whether it was said by this node.
        own: bool,
    },
    /// A request of this node's user was answered, or failed.
    Job {
        /// The model's short id, or `other`.
        model: String,
        /// How it ended, as the metrics have it.
        outcome: &'static str,
        /// Why it failed.
        error: Option<&'static str>,
        /// Tokens of the prompt.
        input_tokens: u64,
        /// Tokens of the answer.
        output_tokens: u64,
        /// From the request to the end.
        duration_s: f64,
    },
    /// An IOU was signed, by this node or by a peer.
    Ledger {
        /// The other side.
        peer: String,
        /// `made` or `taken`.
        note: &'static str,
        /// Micro-credits.
        amount: u64,
    },
    /// A lookup of this node's user in the DHT ended.
    Dht {
        /// `put`, `get`, `provide`, `providers`, `find_peer` or `find_node`.
        query: &'static str,
        /// Whether it found what it looked for.
        ok: bool,
        /// How long it took.
        duration_s: f64,
    },
    /// A model came onto the disk, or went from it.
    Storage {
        /// `pulled` or `removed`.
        change: &'static str,
        /// The model's id.
        model: String,
    },
    /// A warning or an error in the log.
    Log {
        /// `warn` or `error`.
        level: &'static str,
        /// The module that says it.
        target: &'static str,
        /// What it says, escaped.
        message: String,
    },
}

/// Layers of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Offered {
    /// The model's id.
    pub model: String,
    /// Half-open, like `0..8`.
    pub layers: String,
}

/// The types of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventType {
    /// See [`EventKind::Peer`].
    Peer,
    /// See [`EventKind::Model`].
    Model,
    /// See [`EventKind::Message`].
    Message,
    /// See [`EventKind::Job`].
    Job,
    /// See [`EventKind::Ledger`].
    Ledger,
    /// See [`EventKind::Dht`].
    Dht,
    /// See [`EventKind::Storage`].
    Storage,
    /// See [`EventKind::Log`].
    Log,
}

impl EventType {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Peer, Self::Model, Self::Message, Self::Job, Self::Ledger, Self::Dht, Self::Storage, Self::Log];

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Model => "model",
            Self::Message => "message",
            Self::Job => "job",
            Self::Ledger => "ledger",
            Self::Dht => "dht",
            Self::Storage => "storage",
            Self::Log => "log",
        }
    }
}

impl std::str::FromStr for EventType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.into_iter().map(Self::as_str).collect();
            format!("there is no type {text:?} of events; there are {}", known.join(", "))
        })
    }
}

impl EventKind {
    /// Its type.
    #[must_use]
    pub fn event_type(&self) -> EventType {
        match self {
            Self::Peer { .. } => EventType::Peer,
            Self::Model { .. } => EventType::Model,
            Self::Message { .. } => EventType::Message,
            Self::Job { .. } => EventType::Job,
            Self::Ledger { .. } => EventType::Ledger,
            Self::Dht { .. } => EventType::Dht,
            Self::Storage { .. } => EventType::Storage,
            Self::Log { .. } => EventType::Log,
        }
    }
}

/// As one JSON object.
impl Serialize for Event {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Whole<'a> {
            schema: &'static str,
            id: u64,
            time_ms: u64,
            #[serde(flatten)]
            kind: &'a EventKind,
        }
        Whole { schema: "quelea.event/v1", id: self.id, time_ms: self.time_ms, kind: &self.kind }.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_form_is_frozen() {
        let event = Event { id: 7, time_ms: 1000, kind: EventKind::Peer { peer: "12D3".into(), connected: false } };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"schema":"quelea.event/v1","id":7,"time_ms":1000,"type":"peer","peer":"12D3","connected":false}"#
        );
        let text = "a\"\u{202e}b".to_owned();
        let kind = EventKind::Message { author: "12D3".into(), text, sent_ms: 999, own: true };
        assert_eq!(
            serde_json::to_string(&Event { id: 8, time_ms: 1000, kind }).unwrap(),
            "{\"schema\":\"quelea.event/v1\",\"id\":8,\"time_ms\":1000,\"type\":\"message\",\"author\":\"12D3\",\"text\":\"a\\\"\u{202e}b\",\"sent_ms\":999,\"own\":true}"
        );
    }

    #[test]
    fn types_are_read_as_they_are_written() {
        for kind in EventType::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert!("weather".parse::<EventType>().unwrap_err().contains("peer, model, message"));
    }
}
