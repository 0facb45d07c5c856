//! Text to token ids and back, from what a GGUF file says of its vocabulary.
//!
//! Two kinds are read: byte-level byte-pair encoding (`tokenizer.ggml.model` = `gpt2`, with the pre-tokenizer that
//! `tokenizer.ggml.pre` names) and SentencePiece with scores and byte fallback (`llama`). The ids are those of
//! llama.cpp, which the tests hold against its own vectors.

mod bpe;
mod decode;
mod pretokenize;
mod special;
mod spm;
mod vocab;

use std::{borrow::Cow, sync::Arc};

pub use decode::Decoder;
pub use vocab::TokenType;

use crate::gguf::{Gguf, GgufError};
use bpe::Bpe;
use pretokenize::PreTokenizer;
use special::{Fragment, Matcher};
use vocab::{Spelling, Vocab};

/// Why a vocabulary cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A key is missing or has the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A kind of tokenizer that this engine does not have.
    #[error(
        "tokenizer model '{found}' is not supported; supported are gpt2 (byte-level BPE) and llama (SentencePiece)"
    )]
    UnsupportedModel {
        /// `tokenizer.ggml.model` of the file.
        found: String,
    },
    /// No tokens at all, or absurdly many.
    #[error("a vocabulary of {tokens} tokens and {merges} merges; expected 1 to {max} tokens and at most {max} merges")]
    Size {
        /// Tokens found.
        tokens: usize,
        /// Merges found.
        merges: usize,
        /// The bound for both.
        max: usize,
    },
    /// An array that goes with the tokens is shorter than they are.
    #[error("{found} {what} for {tokens} tokens")]
    Short {
        /// What the array holds.
        what: &'static str,
        /// Its length.
        found: usize,
        /// Number of tokens.
        tokens: usize,
    },
    /// A merge that does not name two texts.
    #[error("merge {rank}, {merge:?}, is not two texts with a space between")]
    Merge {
        /// Its number.
        rank: u32,
        /// The line.
        merge: String,
    },
}

/// What a tokenizer is made of. [`TokenizerData::from_gguf`] reads it from a file; tests write it by hand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenizerData {
    /// Kind of tokenizer: `gpt2` or `llama`.
    pub model: String,
    /// Name of the pre-tokenizer.
    pub pre: Option<String>,
    /// Texts by id.
    pub tokens: Vec<String>,
    /// Types by id in GGUF's numbers, or empty: all normal.
    pub types: Vec<i32>,
    /// Scores by id, or empty: all zero. Used by SentencePiece.
    pub scores: Vec<f32>,
    /// Merges by rank, `left right`. Used by byte-pair encoding.
    pub merges: Vec<String>,
    /// Beginning of a sequence.
    pub bos: Option<u32>,
    /// End of a sequence.
    pub eos: Option<u32>,
    /// End of a turn.
    pub eot: Option<u32>,
    /// End of a message.
    pub eom: Option<u32>,
    /// Stands for what has no token.
    pub unknown: Option<u32>,
    /// Whether prompts start with BOS, when the file says.
    pub add_bos: Option<bool>,
    /// Whether prompts end with EOS, when the file says.
    pub add_eos: Option<bool>,
    /// Whether SentencePiece puts a space before the text, when the file says.
    pub add_space_prefix: Option<bool>,
}

impl TokenizerData {
    /// Reads the `tokenizer.ggml.*` keys.
    ///
    /// # Errors
    /// [`GgufError`] when model or tokens are missing, or any key has the wrong type.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, GgufError> {
        fn optional<T>(
            gguf: &Gguf,
            key: &str,
            get: impl Fn(&str) -> Result<T, GgufError>,
        ) -> Result<Option<T>, GgufError> {
            if gguf.contains(key) { get(key).map(Some) } else { Ok(None) }
        }
        let id = |key: &str| optional(gguf, key, |k| gguf.get_u32(k));
        let flag = |key: &str| optional(gguf, key, |k| gguf.get_bool(k));
        let strings = |key: &str| gguf.str_array(key).map(|all| all.into_iter().map(str::to_owned).collect::<Vec<_>>());
        Ok(Self {
            model: gguf.get_str("tokenizer.ggml.model")?.to_owned(),
            pre: optional(gguf, "tokenizer.ggml.pre", |k| gguf.get_str(k).map(str::to_owned))?,
            tokens: strings("tokenizer.ggml.tokens")?,
            types: optional(gguf, "tokenizer.ggml.token_type", |k| gguf.i32_array(k))?.unwrap_or_default(),
            scores: optional(gguf, "tokenizer.ggml.scores", |k| gguf.f32_array(k))?.unwrap_or_default(),
            merges: optional(gguf, "tokenizer.ggml.merges", strings)?.unwrap_or_default(),
            bos: id("tokenizer.ggml.bos_token_id")?,
            eos: id("tokenizer.ggml.eos_token_id")?,
            eot: id("tokenizer.ggml.eot_token_id")?,
            eom: id("tokenizer.ggml.eom_token_id")?,
            unknown: id("tokenizer.ggml.unknown_token_id")?,
            add_bos: flag("tokenizer.ggml.add_bos_token")?,
            add_eos: flag("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: flag("tokenizer.ggml.add_space_prefix")?,
        })
    }
}

/// How to encode a text. [`Tokenizer::defaults`] gives the model's own way; the `Default` here adds and parses nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Texts of control tokens in the input become those tokens. Never for text that a stranger wrote.
    pub parse_special: bool,
    /// Start with BOS, if the model has one.
    pub add_bos: bool,
}

#[derive(Debug)]
enum Model {
    Bpe(Box<Bpe>),
    SentencePiece { add_space_prefix: bool },
}

/// A model's tokenizer. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    vocab: Arc<Vocab>,
    model: Model,
    /// Tokens found in any text.
    user_defined: Matcher,
    /// Tokens found where special ones are parsed.
    special: Matcher,
    bos: Option<u32>,
    eos: Option<u32>,
    defaults: EncodeOptions,
    add_eos: bool,
    end_of_generation: Vec<u32>,
}

impl Tokenizer {
    /// The tokenizer of a GGUF file, which may hold only a vocabulary.
    ///
    /// # Errors
    /// [`TokenizerError`] when there is none, or one that this engine cannot use.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        Self::new(&TokenizerData::from_gguf(gguf)?)
    }

    /// A tokenizer from its parts.
    ///
    /// # Errors
    /// [`TokenizerError`] when they do not fit together.
    pub fn new(data: &TokenizerData) -> Result<Self, TokenizerError> {
        let (vocab, model, add_bos) = match data.model.as_str() {
            "gpt2" => {
                let pre = pre_tokenizer(data.pre.as_deref());
                let add_bos = pre.add_bos;
                let vocab = Vocab::new(data, Spelling::ByteLevel)?;
                let bpe = Bpe::new(&vocab, &data.merges, pre)?;
                (vocab, Model::Bpe(Box::new(bpe)), add_bos)
            }
            "llama" => {
                let add_space_prefix = data.add_space_prefix.unwrap_or(true);
                (Vocab::new(data, Spelling::SentencePiece)?, Model::SentencePiece { add_space_prefix }, true)
            }
            other => return Err(TokenizerError::UnsupportedModel { found: other.to_owned() }),
        };
        let [bos, eos] = [("BOS", data.bos), ("EOS", data.eos)].map(|(name, id)| {
            if let Some(id) = id.filter(|id| *id >= vocab.len()) {
                tracing::warn!(id, name, "special token is outside the vocabulary; ignored");
            }
            id.filter(|id| *id < vocab.len())
        });
        let defaults = EncodeOptions { parse_special: true, add_bos: data.add_bos.unwrap_or(add_bos) && bos.is_some() };
        let add_eos = data.add_eos.unwrap_or(false);
        let user_defined = Matcher::new(&vocab, &[TokenType::UserDefined]);
        let special = Matcher::new(&vocab, &[TokenType::UserDefined, TokenType::Control, TokenType::Unknown]);
        let end_of_generation = special::end_of_generation(&vocab, &[eos, data.eot, data.eom]);
        let vocab = Arc::new(vocab);
        Ok(Self(Arc::new(Inner {
            vocab,
            model,
            user_defined,
            special,
            bos,
            eos,
            defaults,
            add_eos,
            end_of_generation,
        })))
    }

    /// How this model's prompts are encoded: BOS as the file says (else as its family does), special tokens parsed.
    pub fn defaults(&self) -> EncodeOptions {
        self.0.defaults
    }

    /// The token ids of a whole input by the file's own settings: [`Tokenizer::defaults`], and EOS at the end for the
    /// few models that ask for it.
    pub fn encode_input(&self, text: &str) -> Vec<u32> {
        let mut ids = self.encode(text, self.defaults());
        ids.extend(self.eos().filter(|_| self.0.add_eos));
        ids
    }

    /// The token ids of what a chat template gave: special tokens parsed, and BOS where the model wants one and the
    /// template did not write it.
    pub fn encode_chat(&self, rendered: &str) -> Vec<u32> {
        let written = self.bos().and_then(|bos| self.piece(bos)).is_some_and(|bos| rendered.starts_with(bos));
        self.encode(rendered, EncodeOptions { add_bos: self.defaults().add_bos && !written, ..self.defaults() })
    }

    /// The token ids of `text`. Any text has some; what the vocabulary cannot spell is left out or becomes the unknown
    /// token.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Vec<u32> {
        let inner = &*self.0;
        let matcher = if options.parse_special { &inner.special } else { &inner.user_defined };
        let mut ids = Vec::new();
        ids.extend(inner.bos.filter(|_| options.add_bos));
        let mut after_special = true;
        for fragment in matcher.split(text) {
            match (fragment, &inner.model) {
                (Fragment::Token(id), _) => ids.push(id),
                (Fragment::Text(text), Model::Bpe(bpe)) => bpe.encode(&inner.vocab, text, &mut ids),
                (Fragment::Text(text), Model::SentencePiece { add_space_prefix }) => {
                    let prefix = if *add_space_prefix && after_special { spm::SPACE } else { "" };
                    spm::encode(&inner.vocab, &[prefix, &text.replace(' ', spm::SPACE)].concat(), &mut ids);
                }
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
        ids
    }

    /// The text of `ids`; control tokens are not shown. A SentencePiece text comes without the space put before it.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut decoder = self.decoder();
        let mut text: String = ids.iter().map(|id| decoder.push(*id)).collect();
        text.push_str(&decoder.finish());
        if matches!(self.0.model, Model::SentencePiece { add_space_prefix: true }) && text.starts_with(' ') {
            text.remove(0);
        }
        text
    }

    /// A decoder for the tokens of one generation, as they come. It continues a text, so a leading space stays.
    pub fn decoder(&self) -> Decoder {
        Decoder::new(Arc::clone(&self.0.vocab))
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab.len() as usize
    }

    /// The token's text as the vocabulary spells it (`Ġthe`, `▁the`, `<|im_end|>`).
    pub fn piece(&self, id: u32) -> Option<&str> {
        self.0.vocab.text(id)
    }

    /// The bytes that the token adds to a text: none for a control token.
    pub fn bytes(&self, id: u32) -> Cow<'_, [u8]> {
        self.0.vocab.bytes(id)
    }

    /// The id of the token that the vocabulary spells so.
    pub fn token_id(&self, piece: &str) -> Option<u32> {
        self.0.vocab.id(piece)
    }

    /// The token's type.
    pub fn token_type(&self, id: u32) -> Option<TokenType> {
        self.0.vocab.kind(id)
    }

    /// Beginning of a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.0.bos
    }

    /// End of a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.0.eos
    }

    /// Every id that ends a generation, in order: end of sequence, of turn, of message, and the well-known ones.
    pub fn eos_ids(&self) -> &[u32] {
        &self.0.end_of_generation
    }
}

fn pre_tokenizer(name: Option<&str>) -> PreTokenizer {
    match name.map(|name| (name, PreTokenizer::from_name(name))) {
        Some((_, Some(pre))) => pre,
        Some((name, None)) => {
            tracing::warn!(name, "unknown pre-tokenizer; using 'default', which may cut words differently");
            PreTokenizer::fallback()
        }
        None => {
            tracing::warn!("the file names no pre-tokenizer; using 'default', which may cut words differently");
            PreTokenizer::fallback()
        }
    }
}
