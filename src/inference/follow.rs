//! Answers that have to be something: JSON, what a JSON schema allows, or a text of a grammar.
//!
//! Before each draw the tokens that would spoil the answer are banned, by llguidance over a trie of the vocabulary; the
//! sampler then draws among the others as ever. All of that happens where tokens are drawn, at the coordinator, from the
//! logits of all tokens: an answer with a format is not asked for thinly. A clone goes its own way, so guesses of a draft are
//! drawn in the same bounds.

use std::{fmt, sync::Arc};

use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar};
use quelea_engine::tokenizer::{TokenType, Tokenizer};
use quelea_wire::ErrorCode;
use serde_json::{Map, Value, json};
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use super::{
    models::Ends,
    types::{Format, InferError, InferRequest},
};
use crate::weights::fetch::blocking;

/// Most bytes of all tokens of a vocabulary: the trie has no room for more nodes. The largest in use have 2.5 MB.
const MAX_TRIE_BYTES: usize = 4 << 20;

/// Most bytes of one token, for the same reason.
const MAX_TOKEN_BYTES: usize = 1000;

/// Longest schema or grammar: far above those that people write, and compiled in seconds at worst.
const MAX_FORMAT_BYTES: usize = 256 << 10;

/// A model's vocabulary, ready for grammars.
pub(super) struct Grammars {
    factory: Arc<ParserFactory>,
    ends: Arc<[u32]>,
}

impl Grammars {
    /// Takes some hundred milliseconds for a large vocabulary. Blocking.
    fn of(tokenizer: &Tokenizer) -> Result<Self, InferError> {
        let unusable = |why: String| {
            let message = format!("this model's vocabulary cannot be used for answers with a format: {why}");
            InferError::new(ErrorCode::ModelFile, message)
        };
        let count = u32::try_from(tokenizer.vocab_size()).map_err(|e| unusable(e.to_string()))?;
        let words: Vec<Vec<u8>> = (0..count).map(|id| word(tokenizer, id)).collect();
        let bytes: usize = words.iter().map(Vec::len).sum();
        if bytes > MAX_TRIE_BYTES {
            return Err(unusable(format!("its tokens have {bytes} bytes")));
        }
        let ends: Arc<[u32]> = tokenizer.eos_ids().into();
        // One that is no token stands for an end that the vocabulary lacks.
        let end = ends.first().copied().unwrap_or(u32::MAX);
        let trie = TokTrie::from(&TokRxInfo::new(count, end), &words);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|e| unusable(e.to_string()))?;
        factory.quiet();
        Ok(Self { factory: Arc::new(factory), ends })
    }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

/// A token's bytes as the trie has them: those that mean something to the model only begin with a byte that no text has.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let special = matches!(tokenizer.token_type(id), Some(TokenType::Control | TokenType::Unknown));
    let mut word = if special {
        let name = tokenizer.piece(id).unwrap_or_default();
        [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat()
    } else {
        tokenizer.bytes(id).into_owned()
    };
    // A byte of its own that no text has either is none that is ever wanted.
    if word.len() > MAX_TOKEN_BYTES || (!special && word.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER)) {
        word.clear();
    }
    word
}

/// What the rest of an answer has to be.
#[derive(Clone)]
pub(super) struct Follow {
    matcher: Matcher,
    ends: Arc<[u32]>,
}

impl Follow {
    /// What `request` wants the answer to be, after the tokens of `said`.
    ///
    /// # Errors
    /// When the format cannot be understood, or cannot be followed by this model.
    pub(super) async fn of(ends: &Arc<Ends>, request: &InferRequest, said: &[u32]) -> Result<Option<Self>, InferError> {
        let Some(format) = &request.format else { return Ok(None) };
        let grammar = grammar(format)?;
        let make = async || {
            let ends = ends.clone();
            blocking(move || Grammars::of(&ends.tokenizer)).await?
        };
        let grammars = ends.grammars.get_or_try_init(make).await?;
        let (factory, ids, said) = (grammars.factory.clone(), grammars.ends.clone(), said.to_vec());
        blocking(move || {
            let mut matcher = Matcher::new(factory.create_parser(grammar));
            if let Some(error) = matcher.get_error() {
                let message = format!("the answer's format cannot be followed: {}", first_line(&error));
                return Err(InferError::new(ErrorCode::Usage, message));
            }
            matcher.consume_tokens(&said).map_err(|e| failed(&e.to_string()))?;
            Ok(Some(Self { matcher, ends: ids }))
        })
        .await?
    }

    /// The logits with those of the tokens banned that may not come next.
    pub(super) fn allowed(&mut self, logits: &[f32]) -> Result<Vec<f32>, InferError> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|e| failed(&e.to_string()))?;
        let ends = self.ends.iter().any(|id| u32_in(&mask, *id));
        let allows = |id: u32| u32_in(&mask, id) || (ends && self.ends.contains(&id));
        let logits = (0..).zip(logits).map(|(id, logit)| if allows(id) { *logit } else { f32::NEG_INFINITY });
        Ok(logits.collect())
    }

    /// The answer has one more token.
    pub(super) fn push(&mut self, id: u32) -> Result<(), InferError> {
        if self.ends.contains(&id) {
            return Ok(());
        }
        self.matcher.consume_token(id).map_err(|e| failed(&e.to_string()))
    }

    /// Whether the answer is complete, and nothing may follow.
    pub(super) fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

fn u32_in(mask: &toktrie::SimpleVob, id: u32) -> bool {
    usize::try_from(id).is_ok_and(|at| at < mask.len()) && mask.is_allowed(id)
}

fn grammar(format: &Format) -> Result<TopLevelGrammar, InferError> {
    let bytes = match format {
        Format::Json => 0,
        Format::Schema(schema) => schema.to_string().len(),
        Format::Grammar(grammar) => grammar.len(),
    };
    if bytes > MAX_FORMAT_BYTES {
        let message = format!("the answer's format has {bytes} bytes, at most {MAX_FORMAT_BYTES} are allowed");
        return Err(InferError::new(ErrorCode::Usage, message));
    }
    Ok(match format {
        Format::Json => TopLevelGrammar::from_json_schema(spaced(&json!({ "type": "object" }))),
        Format::Schema(schema) => TopLevelGrammar::from_json_schema(spaced(schema)),
        Format::Grammar(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
    })
}

/// The schema with white space where most JSON that models have read has it, and nowhere else: where any amount is allowed, a
/// small model may never write anything else.
fn spaced(schema: &Value) -> Value {
    let options = json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
    let mut schema = match schema {
        Value::Object(schema) => schema.clone(),
        // Anything goes.
        Value::Bool(true) => Map::new(),
        other => return other.clone(),
    };
    schema.insert("x-guidance".into(), options);
    Value::Object(schema)
}

fn failed(why: &str) -> InferError {
    InferError::new(ErrorCode::EngineFailed, format!("the answer's format cannot be followed: {}", first_line(why)))
}

/// What llguidance says after its first line is for its authors.
fn first_line(error: &str) -> &str {
    error.lines().next().unwrap_or_default()
}
