//! A conversation: its messages, its model, how answers are drawn; and the file that keeps it.

use std::{fs::OpenOptions, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use quelea_wire::ErrorCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::cli::exit::CliError;

/// The longest file that is read.
const FILE_MAX: u64 = 16 << 20;

const SCHEMA: &str = "quelea.chat/v1";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Talk {
    schema: String,
    model: String,
    #[serde(default)]
    system: Option<String>,
    #[serde(default)]
    params: Map<String, Value>,
    messages: Vec<Message>,
    /// A question that got no answer.
    #[serde(skip)]
    unanswered: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    pub(super) role: String,
    pub(super) content: String,
}

pub(super) fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

impl Talk {
    pub(super) fn new(model: String, system: Option<String>) -> Self {
        Self { schema: SCHEMA.into(), model, system, params: Map::new(), messages: Vec::new(), unanswered: None }
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    pub(super) fn set_model(&mut self, model: String) {
        self.model = model;
    }

    pub(super) fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    pub(super) fn set_system(&mut self, text: Option<String>) {
        self.system = text;
    }

    pub(super) fn set(&mut self, name: &str, value: Value) {
        self.params.insert(name.into(), value);
    }

    pub(super) fn params(&self) -> String {
        self.params.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("  ")
    }

    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.unanswered = None;
    }

    pub(super) fn asked(&mut self, text: &str) {
        self.unanswered = None;
        self.messages.push(message("user", text));
    }

    pub(super) fn answered(&mut self, text: &str) {
        self.messages.push(message("assistant", text));
    }

    /// The last question got no answer: it is none of the conversation.
    pub(super) fn unanswered(&mut self) {
        self.unanswered = self.messages.pop().map(|message| message.content);
    }

    /// Takes the last question, and its answer, back.
    pub(super) fn take_last_question(&mut self) -> Option<String> {
        if let Some(text) = self.unanswered.take() {
            return Some(text);
        }
        let at = self.messages.iter().rposition(|message| message.role == "user")?;
        let question = self.messages.get(at)?.content.clone();
        self.messages.truncate(at);
        Some(question)
    }

    /// The request for the next answer.
    pub(super) fn request(&self) -> Value {
        let system = self.system.iter().map(|text| message("system", text));
        let messages: Vec<Message> = system.chain(self.messages.iter().cloned()).collect();
        let mut request = json!({ "model": self.model, "messages": messages });
        if let Some(fields) = request.as_object_mut() {
            fields.extend(self.params.clone());
        }
        request
    }

    /// Writes it where only its owner reads it.
    pub(super) fn save(&self, file: &Path) -> Result<(), CliError> {
        let failed = |e: &dyn std::fmt::Display| {
            CliError::new(ErrorCode::StorageFailed, format!("cannot write {}: {e}", file.display()))
        };
        let text = serde_json::to_string_pretty(self).map_err(|e| failed(&e))?;
        let mut open = OpenOptions::new();
        let mut out = open.create(true).write(true).truncate(true).mode(0o600).open(file).map_err(|e| failed(&e))?;
        out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).map_err(|e| failed(&e))
    }

    pub(super) fn load(file: &Path) -> Result<Self, CliError> {
        let failed = |what: &dyn std::fmt::Display| {
            CliError::new(ErrorCode::Usage, format!("cannot load {}: {what}", file.display()))
        };
        let meta = std::fs::metadata(file).map_err(|e| failed(&e))?;
        if meta.len() > FILE_MAX {
            return Err(failed(&"it is longer than 16 MiB"));
        }
        let text = std::fs::read_to_string(file).map_err(|e| failed(&e))?;
        let talk: Self = serde_json::from_str(&text).map_err(|e| failed(&e))?;
        if talk.schema != SCHEMA {
            return Err(failed(&format!("it is {:?}, not {SCHEMA:?}", talk.schema)));
        }
        Ok(talk)
    }
}
