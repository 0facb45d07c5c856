//! The normalizers of `tokenizer.json`, and the spaces that pre-tokenizers put before a text.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use regex::{NoExpand, Regex};
use serde_json::Value;
use unicode_normalization::{UnicodeNormalization, char::is_combining_mark};
use unicode_segmentation::UnicodeSegmentation;

use super::{HfError, flag, kind, split::regex, unsupported};
use crate::tokenizer::charsmap::Charsmap;

/// Longest cluster of characters that a precompiled map replaces as a whole.
const MAX_CLUSTER: usize = 5;

#[derive(Clone, Debug)]
enum Step {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    Lowercase,
    /// Marks that stand over or under letters are dropped.
    StripAccents,
    /// White space at the ends is dropped.
    Strip {
        left: bool,
        right: bool,
    },
    Precompiled(Arc<Charsmap>),
    Prepend(String),
    Replace(String, String),
    ReplaceMatches(Regex, String),
    /// A space (or what stands for one) before the text unless it starts with one; `first`: only before the whole
    /// input, not after a special token.
    Lead {
        space: String,
        first: bool,
    },
}

/// What happens to a text before it is cut into words.
#[derive(Clone, Debug, Default)]
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
            "StripAccents" => Step::StripAccents,
            "Strip" => Step::Strip { left: flag(entry, "strip_left", true), right: flag(entry, "strip_right", true) },
            "Precompiled" => {
                let field = "normalizer.precompiled_charsmap";
                let blob = BASE64_STANDARD.decode(text(field, "precompiled_charsmap")?).ok();
                Step::Precompiled(Arc::new(blob.and_then(|b| Charsmap::new(&b)).ok_or(HfError::Field { field })?))
            }
            "Replace" => {
                let pattern = |kind: &str| entry.get("pattern").and_then(|pattern| pattern.get(kind)?.as_str());
                let content = text("normalizer.content", "content")?;
                match (pattern("String"), pattern("Regex")) {
                    (Some(from), _) if !from.is_empty() => Step::Replace(from.to_owned(), content),
                    (None, Some(expression)) => Step::ReplaceMatches(regex(expression)?, content),
                    _ => return Err(HfError::Field { field: "normalizer.pattern" }),
                }
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

    /// Whether what a text begins with is there still, for what is put before the input only.
    pub fn keeps_start(&self, text: &str) -> bool {
        let strips = self.0.iter().any(|step| matches!(step, Step::Strip { left: true, .. }));
        !(strips && text.starts_with(char::is_whitespace))
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
                Step::StripAccents => text.retain(|c| !is_combining_mark(c)),
                Step::Strip { left, right } => {
                    let kept = if *left { text.trim_start() } else { &text };
                    text = if *right { kept.trim_end() } else { kept }.to_owned();
                }
                Step::Precompiled(map) => text = mapped(map, &text),
                Step::ReplaceMatches(expression, to) => {
                    text = expression.replace_all(&text, NoExpand(to)).into_owned();
                }
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

/// The text with each cluster of characters, else each character, replaced by what the map has for the shortest
/// beginning of it: so goes the library that the files are made for.
fn mapped(map: &Charsmap, text: &str) -> String {
    let replaced = |part: &str| map.shortest(part.as_bytes()).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let mut out = String::with_capacity(text.len());
    for cluster in text.graphemes(true) {
        if let Some(whole) = Some(cluster).filter(|cluster| cluster.len() <= MAX_CLUSTER).and_then(replaced) {
            out.push_str(&whole);
            continue;
        }
        for c in cluster.chars() {
            match replaced(c.encode_utf8(&mut [0; 4])) {
                Some(other) => out.push_str(&other),
                None => out.push(c),
            }
        }
    }
    out
}
