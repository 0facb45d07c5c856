//! Text to token ids and back, from what a GGUF file says of its vocabulary.
//!
//! Two kinds are read: byte-pair encoding (`tokenizer.ggml.model` = `gpt2`, with the pre-tokenizer that
//! `tokenizer.ggml.pre` names, or `gemma4`) and SentencePiece with scores and byte fallback (`llama`). The ids are those
//! of llama.cpp, which the tests hold against its own vectors; an unknown pre-tokenizer is refused, as there, and a file
//! that names none gets `default`. [`Tokenizer::from_hf`] reads a Hugging Face `tokenizer.json`.
//!
//! Decoding gives the text that was encoded: the spaces that some tokenizers' clean-up drops before punctuation stay.

mod bpe;
mod data;
mod decode;
mod hf;
mod pretokenize;
mod roles;
mod special;
mod spm;
mod vocab;
mod words;

use std::{borrow::Cow, sync::Arc};

pub use data::TokenizerData;
pub use decode::Decoder;
pub use hf::HfError;
pub use vocab::TokenType;

use crate::{
    gguf::{Gguf, GgufError},
    huggingface,
};
use bpe::{Bpe, Units, Whole};
use hf::Normalizer;
use pretokenize::PreTokenizer;
use special::{Fragment, Matcher, Precedence, Strip};
use vocab::{Spelling, Vocab};
use words::Words;

/// Why a vocabulary cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A key is missing or has the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A kind of tokenizer that this engine does not have.
    #[error(
        "tokenizer model '{found}' is not supported; supported are gpt2 and gemma4 (BPE) and llama (SentencePiece)"
    )]
    UnsupportedModel {
        /// `tokenizer.ggml.model` of the file.
        found: String,
    },
    /// A pre-tokenizer that this engine does not have. Guessing would cut words where the model never saw it done.
    #[error("pre-tokenizer '{found}' is not supported; supported are {supported}")]
    UnsupportedPreTokenizer {
        /// `tokenizer.ggml.pre` of the file.
        found: String,
        /// The names there are.
        supported: String,
    },
    /// A `tokenizer.json` that cannot be used.
    #[error(transparent)]
    Hf(#[from] HfError),
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

/// How to encode a text. [`Tokenizer::defaults`] gives the model's own way; the `Default` here adds and parses nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Texts of control tokens in the input become those tokens. Never for text that a stranger wrote.
    pub parse_special: bool,
    /// Start with BOS, if the model has one.
    pub add_bos: bool,
}

#[derive(Clone, Debug)]
enum Model {
    /// Byte-pair encoding as in GGUF; `escape`: spaces are written `▁`.
    Bpe { bpe: Arc<Bpe>, escape: bool },
    /// Byte-pair encoding as in `tokenizer.json`.
    Published { bpe: Arc<Bpe>, normalizer: Normalizer },
    /// SentencePiece.
    SentencePiece { add_space_prefix: bool },
}

/// A model's tokenizer. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Clone, Debug)]
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

/// What a kind of file makes a tokenizer of.
struct Parts {
    vocab: Vocab,
    model: Model,
    strip: Strip,
    precedence: Precedence,
    /// Whether prompts start with BOS.
    add_bos: bool,
}

impl Tokenizer {
    /// The tokenizer of a GGUF file, which may hold only a vocabulary, or of a folder opened as one. A file that has a
    /// `tokenizer.json` beside a vocabulary of its own is read by the latter, as other engines do.
    ///
    /// # Errors
    /// [`TokenizerError`] when there is none, or one that this engine cannot use.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let text = |key: &str| match gguf.contains(key) {
            true => gguf.get_str(key).map(|text| Some(text.as_bytes())),
            false => Ok(None),
        };
        match text(huggingface::TOKENIZER_KEY)?.filter(|_| !gguf.contains("tokenizer.ggml.model")) {
            None => Self::new(&TokenizerData::from_gguf(gguf)?),
            Some(json) => {
                let tokenizer = Self::from_hf(json, text(huggingface::TOKENIZER_CONFIG_KEY)?)?;
                let generation = text(huggingface::GENERATION_CONFIG_KEY)?;
                generation.map_or(Ok(tokenizer.clone()), |json| tokenizer.with_generation_config(json))
            }
        }
    }

    /// A tokenizer from its parts.
    ///
    /// # Errors
    /// [`TokenizerError`] when they do not fit together.
    pub fn new(data: &TokenizerData) -> Result<Self, TokenizerError> {
        let (vocab, model, add_bos) = match data.model.as_str() {
            "gpt2" => byte_pairs(data, data.pre.as_deref())?,
            "gemma4" => byte_pairs(data, Some("gemma4"))?,
            "llama" => {
                let add_space_prefix = data.add_space_prefix.unwrap_or(true);
                let mut vocab = Vocab::new(data, Spelling::SentencePiece)?;
                // The id that SentencePiece gives.
                vocab.or_unknown(0);
                (vocab, Model::SentencePiece { add_space_prefix }, data.add_bos.unwrap_or(true))
            }
            other => return Err(TokenizerError::UnsupportedModel { found: other.to_owned() }),
        };
        let strip = strip(data, &vocab);
        Ok(Self::assemble(data, Parts { vocab, model, strip, precedence: Precedence::Longest, add_bos }))
    }

    /// A tokenizer around its model, with what `data` says of special tokens.
    fn assemble(data: &TokenizerData, parts: Parts) -> Self {
        let Parts { mut vocab, model, strip, precedence, add_bos } = parts;
        let default = |id| Some(id).filter(|_| matches!(model, Model::SentencePiece { .. }));
        let [bos, eos] = [("BOS", data.bos, default(1)), ("EOS", data.eos, default(2))].map(|(name, id, default)| {
            if let Some(id) = id.filter(|id| *id >= vocab.len()) {
                tracing::warn!(id, name, "special token is outside the vocabulary; ignored");
            }
            id.filter(|id| *id < vocab.len()).or(default.filter(|id| *id < vocab.len()))
        });
        let defaults = EncodeOptions { parse_special: true, add_bos: add_bos && bos.is_some() };
        let named: Vec<Option<u32>> =
            [eos, data.eot, data.eom].into_iter().chain(data.ends.iter().copied().map(Some)).collect();
        let end_of_generation = match model {
            Model::Published { .. } => roles::ends(&vocab, &named),
            Model::Bpe { .. } | Model::SentencePiece { .. } => roles::assign(&mut vocab, &named),
        };
        let matcher = |kinds: &[TokenType]| Matcher::new(&vocab, kinds, precedence, strip.clone());
        let user_defined = matcher(&[TokenType::UserDefined]);
        let special = matcher(&[TokenType::UserDefined, TokenType::Control, TokenType::Unknown]);
        Self(Arc::new(Inner {
            vocab: Arc::new(vocab),
            model,
            user_defined,
            special,
            bos,
            eos,
            defaults,
            add_eos: data.add_eos.unwrap_or(false),
            end_of_generation,
        }))
    }

    /// The same tokenizer with further ends of a generation: `eos_token_id` of a `generation_config.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Hf`] when the file is not valid.
    pub fn with_generation_config(self, json: &[u8]) -> Result<Self, TokenizerError> {
        let more = hf::ends(json)?;
        let mut inner = Arc::try_unwrap(self.0).unwrap_or_else(|shared| Inner::clone(&shared));
        inner.end_of_generation.extend(more.into_iter().filter(|id| *id < inner.vocab.len()));
        inner.end_of_generation.sort_unstable();
        inner.end_of_generation.dedup();
        Ok(Self(Arc::new(inner)))
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
        for (at, fragment) in matcher.split(text).into_iter().enumerate() {
            match (fragment, &inner.model) {
                (Fragment::Token(id), _) => ids.push(id),
                (Fragment::Text(text), Model::Bpe { bpe, escape: false }) => bpe.encode(&inner.vocab, text, &mut ids),
                (Fragment::Text(text), Model::Bpe { bpe, escape: true }) => {
                    bpe.encode(&inner.vocab, &text.replace(' ', spm::SPACE), &mut ids);
                }
                (Fragment::Text(text), Model::Published { bpe, normalizer }) => {
                    bpe.encode(&inner.vocab, &normalizer.apply(text, at == 0), &mut ids);
                }
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
        let led = match &self.0.model {
            Model::SentencePiece { add_space_prefix } => *add_space_prefix,
            Model::Published { normalizer, .. } => normalizer.leads(),
            Model::Bpe { .. } => false,
        };
        if led && text.starts_with(' ') {
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

/// Byte-pair encoding with the pre-tokenizer of that name, and whether prompts start with BOS.
fn byte_pairs(data: &TokenizerData, pre: Option<&str>) -> Result<(Vocab, Model, bool), TokenizerError> {
    let pre = match pre.filter(|name| !name.is_empty()) {
        Some(name) => PreTokenizer::from_name(name).ok_or_else(|| TokenizerError::UnsupportedPreTokenizer {
            found: name.to_owned(),
            supported: PreTokenizer::names().collect::<Vec<_>>().join(", "),
        })?,
        None => {
            tracing::warn!("the file names no pre-tokenizer; using 'default', which may cut words differently");
            PreTokenizer::fallback()
        }
    };
    let escape = pre.raw;
    // Files of Gemma 4 were made that say otherwise.
    let add_bos = if pre.newline_tokens { true } else { data.add_bos.unwrap_or(pre.add_bos) };
    let (spelling, units) = if escape {
        (Spelling::SentencePiece, Units::Characters { byte_tokens: true, fuse: false })
    } else {
        (Spelling::ByteLevel, Units::Bytes)
    };
    let whole = match (pre.ignore_merges, pre.newline_tokens) {
        (true, _) => Whole::Always,
        (false, true) => Whole::Newlines,
        (false, false) => Whole::Never,
    };
    let vocab = Vocab::new(data, spelling)?;
    let merges: Vec<(&str, &str)> = (0_u32..).zip(&data.merges).map(bpe::sides).collect::<Result<_, _>>()?;
    let bpe = Bpe::new(&vocab, merges.into_iter(), Words::Named(pre), units, whole);
    Ok((vocab, Model::Bpe { bpe: Arc::new(bpe), escape }, add_bos))
}

/// The tokens that take white space with them. Files do not say; llama.cpp goes by names, and so do we.
fn strip(data: &TokenizerData, vocab: &Vocab) -> Strip {
    let name = data.name.as_deref().unwrap_or_default().to_ascii_lowercase();
    let pre = data.pre.as_deref().unwrap_or_default();
    let mut strip = Strip::default();
    if ["jina-v2-de", "jina-v2-es", "jina-v2-code"].iter().any(|jina| pre.contains(jina)) {
        strip.left.extend(vocab.id("<mask>"));
    } else if name.contains("phi-3") || name.contains("phi3") {
        let kinds = [TokenType::Control, TokenType::UserDefined, TokenType::Unknown];
        strip.right.extend(kinds.iter().flat_map(|kind| vocab.of_kind(*kind)).chain(vocab.id("</s>")));
        let keep = ["<unk>", "<s>", "<|endoftext|>"].map(|text| vocab.id(text));
        strip.right.retain(|id| !keep.contains(&Some(*id)));
    } else if name.contains("modern-bert") {
        strip.left.extend(vocab.id("[MASK]"));
    }
    strip
}
