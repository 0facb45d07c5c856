//! Tokenizers of Hugging Face folders: `tokenizer.json`, and what `tokenizer_config.json` adds.
//!
//! Byte-pair encoding is read, byte-level or over characters, and Unigram, with the normalizers and pre-tokenizers that
//! language models use; others are refused by name. Here the ids are those of Hugging Face's own library, which cuts
//! words by the published expressions and normalises text (Qwen's to NFC) where llama.cpp does not. What differs: ends of
//! a generation are found by name as in a GGUF file.

mod normalize;
mod published;
pub(super) mod split;

use std::{collections::HashMap, sync::Arc};

use serde::Deserialize;
use serde_json::Value;

use super::{
    Model, Parts, Tokenizer, TokenizerData, TokenizerError, bpe,
    bpe::{Bpe, Units, Whole},
    unigram::Unigram,
    vocab::{Spelling, TokenType, Vocab},
    words::Words,
};
use normalize::Normalizer;
use published::Coder;
pub(super) use published::Published;
use split::{Behaviour, Split, Splits, Step};

/// Why a `tokenizer.json` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HfError {
    /// The file is not JSON, or a field has the wrong type.
    #[error("{file} is not valid: {source}")]
    Json {
        /// The file.
        file: &'static str,
        /// What was found.
        source: serde_json::Error,
    },
    /// A field is missing or makes no sense.
    #[error("tokenizer.json: '{field}' is missing or makes no sense")]
    Field {
        /// The field.
        field: &'static str,
    },
    /// A part that this engine does not have.
    #[error("tokenizer.json: {what} '{found}' is not supported; converting the model to GGUF may help")]
    Unsupported {
        /// Kind of part.
        what: &'static str,
        /// Its name.
        found: String,
    },
    /// An expression that this engine cannot run.
    #[error("tokenizer.json: the expression '{pattern}' cannot be used: {reason}")]
    Expression {
        /// The expression, perhaps shortened.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More steps on the way from text to words than any real tokenizer has.
    #[error("tokenizer.json: there are {found} normalizers and pre-tokenizers, at most {max} are allowed")]
    Steps {
        /// How many there are.
        found: usize,
        /// The bound.
        max: usize,
    },
}

/// Most normalizers and pre-tokenizers together; the published files have under ten. Each may compile an expression, so
/// that this bounds the memory of all of them: with [`split::MAX_COMPILED`], at some 400 MiB.
const MAX_STEPS: usize = 32;

fn unsupported(what: &'static str, found: impl Into<String>) -> HfError {
    HfError::Unsupported { what, found: found.into() }
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    model: PublishedModel,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    special: bool,
    #[serde(default)]
    single_word: bool,
    /// Looked for in normalized text.
    normalized: Option<bool>,
}

#[derive(Deserialize)]
struct PublishedModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: Value,
    #[serde(default)]
    merges: Vec<MergeEntry>,
    unk_token: Option<String>,
    unk_id: Option<u32>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// A merge as one line, or as its two sides.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeEntry {
    Line(String),
    Sides(String, String),
}

/// The parts of `tokenizer_config.json` that matter here.
#[derive(Default, Deserialize)]
struct Config {
    bos_token: Option<NamedToken>,
    eos_token: Option<NamedToken>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
}

/// A token by its text, or with more to it.
#[derive(Deserialize)]
#[serde(untagged)]
enum NamedToken {
    Text(String),
    Object { content: String },
}

impl NamedToken {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

fn parse<'j, T: Deserialize<'j>>(file: &'static str, json: &'j [u8]) -> Result<T, HfError> {
    serde_json::from_slice(json).map_err(|source| HfError::Json { file, source })
}

/// The type of an entry of a pipeline.
fn kind(entry: &Value) -> &str {
    entry.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The entries of a pipeline part: those of a sequence, or the one.
fn entries<'v>(part: Option<&'v Value>, list: &str) -> Vec<&'v Value> {
    match part.filter(|part| !part.is_null()) {
        None => Vec::new(),
        Some(part) if kind(part) == "Sequence" => {
            let inner = part.get(list).and_then(Value::as_array);
            inner.into_iter().flatten().flat_map(|entry| entries(Some(entry), list)).collect()
        }
        Some(part) => vec![part],
    }
}

fn flag(entry: &Value, field: &str, default: bool) -> bool {
    entry.get(field).and_then(Value::as_bool).unwrap_or(default)
}

/// How text reaches the model.
struct Pipeline {
    normalizer: Normalizer,
    /// What pre-tokenizers change before the first of them cuts.
    before: Normalizer,
    splits: Splits,
    byte_level: bool,
}

impl Pipeline {
    fn new(file: &File) -> Result<Self, HfError> {
        let normalizers = entries(file.normalizer.as_ref(), "normalizers");
        let splitters = entries(file.pre_tokenizer.as_ref(), "pretokenizers");
        let found = normalizers.len().saturating_add(splitters.len());
        if found > MAX_STEPS {
            return Err(HfError::Steps { found, max: MAX_STEPS });
        }
        let mut normalizer = Normalizer::default();
        for entry in normalizers {
            normalizer.add(entry)?;
        }
        let mut before = Normalizer::default();
        let mut splits = Vec::new();
        let mut byte_level = false;
        // The text as a whole is changed before it is cut, words are after that.
        let mut change = |splits: &mut Vec<Step>, add: &mut dyn FnMut(&mut Normalizer) -> Result<(), HfError>| {
            if splits.is_empty() {
                return add(&mut before);
            }
            let mut each = Normalizer::default();
            add(&mut each)?;
            splits.push(Step::Each(each));
            Ok(())
        };
        for entry in splitters {
            let split = match kind(entry) {
                "ByteLevel" => {
                    byte_level = true;
                    if flag(entry, "add_prefix_space", true) {
                        change(&mut splits, &mut |words| {
                            words.lead_with_space();
                            Ok(())
                        })?;
                    }
                    Some(Split::gpt2()).filter(|_| flag(entry, "use_regex", true))
                }
                "Split" => Some(Split::published(entry)?),
                "Digits" => Some(Split::digits(flag(entry, "individual_digits", false))),
                "Punctuation" => {
                    Some(Split::punctuation(Behaviour::named(entry.get("behavior").and_then(Value::as_str))?))
                }
                "WhitespaceSplit" => Some(Split::white_space()),
                "Whitespace" => Some(Split::words()?),
                "Metaspace" => {
                    let mut space = String::new();
                    change(&mut splits, &mut |words| {
                        space = words.metaspace(entry)?;
                        Ok(())
                    })?;
                    if flag(entry, "split", true) { Some(Split::before(&space)?) } else { None }
                }
                other => return Err(unsupported("pre-tokenizer", other)),
            };
            splits.extend(split.map(Step::Split));
        }
        Ok(Self { normalizer, before, splits: Splits(splits), byte_level })
    }
}

/// Whether the template that wraps a text puts a token before it, and after it.
fn template_ends(post_processor: Option<&Value>) -> (bool, bool) {
    let all = entries(post_processor, "processors");
    let Some(template) = all.into_iter().find(|entry| kind(entry) == "TemplateProcessing") else {
        return (false, false);
    };
    let single = template.get("single").and_then(Value::as_array);
    let special = |entry: Option<&Value>| entry.is_some_and(|entry| entry.get("SpecialToken").is_some());
    single.map_or((false, false), |single| (special(single.first()), special(single.last())))
}

impl Tokenizer {
    /// The tokenizer of a Hugging Face folder, from the bytes of its `tokenizer.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Hf`] when a file is not valid or asks for what this engine does not have; otherwise as
    /// [`Tokenizer::new`].
    pub fn from_hf(tokenizer_json: &[u8], tokenizer_config: Option<&[u8]>) -> Result<Self, TokenizerError> {
        let file: File = parse("tokenizer.json", tokenizer_json)?;
        let config: Config =
            tokenizer_config.map_or(Ok(Config::default()), |config| parse("tokenizer_config.json", config))?;
        let model = &file.model;
        match model.kind.as_deref() {
            None | Some("BPE" | "Unigram") => {}
            Some(other) => return Err(unsupported("model", other).into()),
        }
        for (what, affix) in [
            ("continuing_subword_prefix", &model.continuing_subword_prefix),
            ("end_of_word_suffix", &model.end_of_word_suffix),
        ] {
            if let Some(affix) = affix.as_ref().filter(|affix| !affix.is_empty()) {
                return Err(unsupported(what, affix).into());
            }
        }
        let pipeline = Pipeline::new(&file)?;
        let spelling = if pipeline.byte_level { Spelling::ByteLevel } else { Spelling::SentencePiece };
        let mut data = vocabulary(&file)?;
        let named = |token: &Option<NamedToken>| {
            let text = token.as_ref()?.text();
            (0_u32..).zip(&data.tokens).find(|(_, known)| *known == text).map(|(id, _)| id)
        };
        let (bos, eos) = (named(&config.bos_token), named(&config.eos_token));
        let unknown = model.unk_token.as_ref().map(|text| NamedToken::Text(text.clone()));
        data.unknown = model.unk_id.or(named(&unknown));
        let (template_bos, template_eos) = template_ends(file.post_processor.as_ref());
        data.bos = bos;
        data.eos = eos;
        let add_bos = config.add_bos_token.unwrap_or(template_bos);
        data.add_eos = Some(config.add_eos_token.unwrap_or(template_eos));

        let vocab = Vocab::new(&data, spelling)?;
        let coder = if model.kind.as_deref() == Some("Unigram") {
            let unigram = Unigram::published(&pieces(&model.vocab)?);
            Coder::Unigram { unigram, splits: pipeline.splits, byte_tokens: model.byte_fallback }
        } else {
            let merges = merges(&model.merges)?;
            let units = match spelling {
                Spelling::ByteLevel => Units::Bytes,
                Spelling::SentencePiece => Units::Characters { byte_tokens: model.byte_fallback, fuse: model.fuse_unk },
            };
            let whole = if model.ignore_merges { Whole::Always } else { Whole::Never };
            let words = Words::Published(pipeline.splits);
            Coder::Bpe(Bpe::new(&vocab, merges.into_iter(), words, units, whole))
        };
        let published = Published::new(coder, pipeline.normalizer, pipeline.before, &file.added_tokens);
        let special = Published::raw(&file.added_tokens);
        let model = Model::Published(Arc::new(published));
        Ok(Self::assemble(&data, Parts { vocab, model, special, add_bos }))
    }
}

/// `eos_token_id` of a `generation_config.json`: one id, or several.
pub(super) fn ends(json: &[u8]) -> Result<Vec<u32>, HfError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Ids {
        One(u32),
        Several(Vec<u32>),
    }
    #[derive(Deserialize)]
    struct Generation {
        eos_token_id: Option<Ids>,
    }
    Ok(match parse::<Generation>("generation_config.json", json)?.eos_token_id {
        None => Vec::new(),
        Some(Ids::One(id)) => vec![id],
        Some(Ids::Several(ids)) => ids,
    })
}

/// The model's texts and their ids: a map, or for Unigram a list with scores.
fn texts(model: &PublishedModel) -> Result<Vec<(&str, u32)>, HfError> {
    const WRONG: HfError = HfError::Field { field: "model.vocab" };
    match &model.vocab {
        Value::Object(entries) => {
            let id = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or(WRONG);
            entries.iter().map(|(text, value)| Ok((text.as_str(), id(value)?))).collect()
        }
        Value::Array(entries) => {
            let texts: Option<Vec<&str>> = entries.iter().map(|entry| entry.get(0)?.as_str()).collect();
            Ok(texts.ok_or(WRONG)?.into_iter().zip(0_u32..).collect())
        }
        _ => Err(WRONG),
    }
}

/// The pieces of a Unigram model and their scores.
fn pieces(vocab: &Value) -> Result<Vec<(String, f64)>, HfError> {
    let entries = vocab.as_array().into_iter().flatten();
    let piece = |entry: &Value| Some((entry.get(0)?.as_str()?.to_owned(), entry.get(1)?.as_f64()?));
    let pieces: Option<Vec<_>> = entries.map(piece).collect();
    pieces.filter(|pieces| !pieces.is_empty()).ok_or(HfError::Field { field: "model.vocab" })
}

/// Texts and types by id.
fn vocabulary(file: &File) -> Result<TokenizerData, HfError> {
    let entries = texts(&file.model)?;
    let added = file.added_tokens.len();
    // Ids in use lie close together; one far out would ask for memory that the file does not pay for.
    let most = (entries.len() + added).saturating_mul(2).saturating_add(1 << 16);
    let mut by_id: HashMap<u32, (&str, TokenType)> = HashMap::with_capacity(entries.len() + added);
    for (text, id) in &entries {
        let id = Some(*id).filter(|id| (*id as usize) < most).ok_or(HfError::Field { field: "model.vocab" })?;
        let byte = file.model.byte_fallback && super::vocab::byte_text(text).is_some();
        by_id.insert(id, (text, if byte { TokenType::Byte } else { TokenType::Normal }));
    }
    let is_unknown = |(text, id): &&(&str, u32)| match &file.model.unk_token {
        Some(unknown) => unknown == text,
        None => file.model.unk_id == Some(*id),
    };
    if let Some((text, id)) = entries.iter().find(is_unknown) {
        by_id.insert(*id, (text, TokenType::Unknown));
    }
    for token in &file.added_tokens {
        if token.id as usize >= most {
            return Err(HfError::Field { field: "added_tokens.id" });
        }
        let kind = if token.special { TokenType::Control } else { TokenType::UserDefined };
        by_id.insert(token.id, (&token.content, kind));
    }
    let count = by_id.keys().max().map_or(0, |last| *last as usize + 1);
    // An id without a token gets one that no text has.
    let texts = (0..count as u32).map(|id| by_id.get(&id).copied().unwrap_or(("", TokenType::Unused)));
    let (tokens, types) = texts.map(|(text, kind)| (text.to_owned(), kind.id())).unzip();
    Ok(TokenizerData { model: "gpt2".to_owned(), tokens, types, ..TokenizerData::default() })
}

fn merges(entries: &[MergeEntry]) -> Result<Vec<(&str, &str)>, TokenizerError> {
    let sides = (0_u32..).zip(entries).map(|(rank, entry)| match entry {
        MergeEntry::Line(line) => bpe::sides((rank, line)),
        MergeEntry::Sides(left, right) => Ok((left.as_str(), right.as_str())),
    });
    sides.collect()
}
