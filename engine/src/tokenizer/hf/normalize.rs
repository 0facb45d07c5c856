//! The normalizers of `tokenizer.json`, and the spaces that pre-tokenizers put before a text.

use serde_json::Value;
use unicode_normalization::UnicodeNormalization;

use super::{HfError, kind, unsupported};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    Lowercase,
    Prepend(String),
    Replace(String, String),
    /// A space (or what stands for one) before the text unless it starts with one; `first`: only before the whole
    /// input, not after a special token.
    Lead {
        space: String,
        first: bool,
    },
}

/// What happens to a text before it is cut into words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::tokenizer) struct Normalizer(Vec<Step>);

impl Normalizer {
    /// Adds an entry of the file.
    pub(super) fn add(&mut self, entry: &Value) -> Result<(), HfError> {
        let text = |field: &'static str, name: &str| {
            entry.get(name).and_then(Value::as_str).map(str::to_owned).ok_or(HfError::Field { field })
        };
        self.0.push(match kind(entry) {
            "NFC" => Step::Nfc,
            "NFD" => Step::Nfd,
            "NFKC" => Step::Nfkc,
            "NFKD" => Step::Nfkd,
            "Lowercase" => Step::Lowercase,
            "Prepend" => Step::Prepend(text("normalizer.prepend", "prepend")?),
            "Replace" => {
                let pattern = entry.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
                let pattern = pattern.filter(|pattern| !pattern.is_empty());
                let pattern = pattern.ok_or_else(|| unsupported("normalizer", "Replace with an expression"))?;
                Step::Replace(pattern.to_owned(), text("normalizer.content", "content")?)
            }
            other => return Err(unsupported("normalizer", other)),
        });
        Ok(())
    }

    /// Texts get a space before them.
    pub(super) fn lead_with_space(&mut self) {
        self.0.push(Step::Lead { space: " ".to_owned(), first: false });
    }

    /// The part of a pre-tokenizer `Metaspace` that changes the text: spaces are replaced, and one is put before it.
    /// Gives what stands for a space.
    pub(super) fn metaspace(&mut self, entry: &Value) -> Result<String, HfError> {
        let space = entry.get("replacement").and_then(Value::as_str).unwrap_or("\u{2581}").to_owned();
        self.0.push(Step::Replace(" ".to_owned(), space.clone()));
        let scheme = entry.get("prepend_scheme").and_then(Value::as_str);
        let old = entry.get("add_prefix_space").and_then(Value::as_bool);
        match (scheme, old) {
            (Some("never"), _) | (None, Some(false)) => {}
            (Some("first"), _) => self.0.push(Step::Lead { space: space.clone(), first: true }),
            (Some("always"), _) | (None, _) => self.0.push(Step::Lead { space: space.clone(), first: false }),
            (Some(other), _) => return Err(unsupported("prepend_scheme", other)),
        }
        Ok(space)
    }

    /// Whether a space is put before a text, which decoding takes away again.
    pub fn leads(&self) -> bool {
        self.0.iter().any(|step| matches!(step, Step::Prepend(_) | Step::Lead { .. }))
    }

    /// The text that is cut into words. `start`: it begins the input.
    pub fn apply(&self, text: &str, start: bool) -> String {
        let mut text = text.to_owned();
        for step in &self.0 {
            match step {
                Step::Nfc => text = text.nfc().collect(),
                Step::Nfd => text = text.nfd().collect(),
                Step::Nfkc => text = text.nfkc().collect(),
                Step::Nfkd => text = text.nfkd().collect(),
                Step::Lowercase => text = text.to_lowercase(),
                Step::Prepend(before) if !text.is_empty() => text.insert_str(0, before),
                Step::Prepend(_) => {}
                Step::Replace(from, to) => text = text.replace(from, to),
                Step::Lead { space, first } => {
                    if (start || !first) && !text.starts_with(space.as_str()) {
                        text.insert_str(0, space);
                    }
                }
            }
        }
        text
    }
}
