//! Text to token ids and back, from what a GGUF file says of its vocabulary.
//!
//! Four kinds are read: byte-pair encoding (`tokenizer.ggml.model` = `gpt2`, with the pre-tokenizer that
//! `tokenizer.ggml.pre` names, `gemma4` or `whitespace`), SentencePiece with scores and byte fallback (`llama`), Unigram
//! (`t5`) and WordPiece (`bert`). The ids are those of llama.cpp, which the tests hold against its own vectors; an unknown
//! pre-tokenizer is refused, as there, and a file that names none gets `default`. [`Tokenizer::from_hf`] reads a Hugging
//! Face `tokenizer.json`.
//!
//! Decoding gives the text that was encoded: the spaces that some tokenizers' clean-up drops before punctuation stay.

mod bpe;
mod charsmap;
mod data;
mod decode;
mod hf;
mod pretokenize;
mod roles;
mod special;
mod spm;
mod trie;
mod unigram;
mod vocab;
mod wordpiece;
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
use charsmap::Charsmap;
use hf::Published;
use pretokenize::PreTokenizer;
use special::{Fragment, Matcher, Precedence, Strip};
use unigram::{Preparation, Unigram};
use vocab::{Spelling, Vocab};
use wordpiece::WordPiece;
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
        "tokenizer model '{found}' is not supported; supported are gpt2, gemma4 and whitespace (BPE), llama \
         (SentencePiece), t5 (Unigram) and bert (WordPiece)"
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
    /// A map of characters that is shorter than it says.
    #[error("tokenizer.ggml.precompiled_charsmap is damaged")]
    Map,
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
    /// Byte-pair encoding as in GGUF.
    Bpe { bpe: Arc<Bpe>, spaces: Spaces },
    /// What a `tokenizer.json` says.
    Published(Arc<Published>),
    /// SentencePiece.
    SentencePiece { add_space_prefix: bool },
    /// Unigram as in GGUF.
    Unigram { unigram: Arc<Unigram>, preparation: Arc<Preparation> },
    /// WordPiece as in GGUF.
    WordPiece(Arc<WordPiece>),
}

/// What becomes of the spaces of a text before byte-pair encoding.
#[derive(Clone, Copy, Debug)]
enum Spaces {
    /// They stay.
    Kept,
    /// They are written `▁`.
    Escaped,
    /// They part the text and are dropped; `lowercase`: what stays is lowered.
    Dropped { lowercase: bool },
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
    /// What a whole input ends with.
    last: Option<u32>,
    end_of_generation: Vec<u32>,
}

/// What a kind of file makes a tokenizer of.
struct Parts {
    vocab: Vocab,
    model: Model,
    special: Special,
    /// Whether prompts start with BOS.
    add_bos: bool,
}

/// How special tokens are found in a text.
enum Special {
    /// Those of the vocabulary's types, and the white space that goes with them.
    Typed(Strip),
    /// The ones that any text may hold, and all.
    Given { user_defined: Box<Matcher>, all: Box<Matcher> },
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
            "gpt2" | "whitespace" => byte_pairs(data, data.pre.as_deref())?,
            "gemma4" => byte_pairs(data, Some("gemma4"))?,
            "llama" => {
                let add_space_prefix = data.add_space_prefix.unwrap_or(true);
                let mut vocab = Vocab::new(data, Spelling::SentencePiece)?;
                // The id that SentencePiece gives.
                vocab.or_unknown(0);
                (vocab, Model::SentencePiece { add_space_prefix }, data.add_bos.unwrap_or(true))
            }
            "t5" => {
                let mut vocab = Vocab::new(data, Spelling::SentencePiece)?;
                vocab.or_unknown(2);
                let blob = &data.precompiled_charsmap;
                let charsmap =
                    if blob.is_empty() { None } else { Some(Charsmap::new(blob).ok_or(TokenizerError::Map)?) };
                let preparation = Preparation {
                    charsmap,
                    add_space_prefix: data.add_space_prefix.unwrap_or(false),
                    remove_extra_whitespaces: data.remove_extra_whitespaces.unwrap_or(false),
                };
                let (unigram, preparation) = (Arc::new(Unigram::new(&vocab)), Arc::new(preparation));
                (vocab, Model::Unigram { unigram, preparation }, data.add_bos.unwrap_or(false))
            }
            "bert" => {
                let mut vocab = Vocab::new(data, Spelling::SentencePiece)?;
                vocab.or_unknown(100);
                let lowercase = data.lowercase.unwrap_or(true);
                let pieces = WordPiece::new(&vocab, lowercase, data.strip_accents.unwrap_or(lowercase));
                // Whatever the file says of it.
                (vocab, Model::WordPiece(Arc::new(pieces)), true)
            }
            other => return Err(TokenizerError::UnsupportedModel { found: other.to_owned() }),
        };
        let special = Special::Typed(strip(data, &vocab));
        Ok(Self::assemble(data, Parts { vocab, model, special, add_bos }))
    }

    /// A tokenizer around its model, with what `data` says of special tokens.
    fn assemble(data: &TokenizerData, parts: Parts) -> Self {
        let Parts { mut vocab, model, special, add_bos } = parts;
        // The ids that files of these kinds leave out.
        let defaults = match model {
            Model::SentencePiece { .. } => [Some(1), Some(2), None],
            Model::Unigram { .. } => [None, Some(1), None],
            Model::WordPiece(_) => [Some(101), None, Some(102)],
            Model::Bpe { .. } | Model::Published(_) => [None; 3],
        };
        let named = [("BOS", data.bos), ("EOS", data.eos), ("separator", data.separator)];
        let mut found = named.into_iter().zip(defaults).map(|((name, id), default)| {
            if let Some(id) = id.filter(|id| *id >= vocab.len()) {
                tracing::warn!(id, name, "special token is outside the vocabulary; ignored");
            }
            id.filter(|id| *id < vocab.len()).or(default.filter(|id| *id < vocab.len()))
        });
        let [bos, eos, separator] = std::array::from_fn(|_| found.next().flatten());
        drop(found);
        let last = match model {
            Model::WordPiece(_) => separator,
            Model::Unigram { .. } => eos.filter(|_| data.add_eos.unwrap_or(true)),
            _ => eos.filter(|_| data.add_eos.unwrap_or(false)),
        };
        let defaults = EncodeOptions { parse_special: true, add_bos: add_bos && bos.is_some() };
        let named: Vec<Option<u32>> =
            [eos, data.eot, data.eom].into_iter().chain(data.ends.iter().copied().map(Some)).collect();
        let end_of_generation = match model {
            Model::Published(_) => roles::ends(&vocab, &named),
            _ => roles::assign(&mut vocab, &named),
        };
        let (user_defined, special) = match special {
            Special::Given { user_defined, all } => (*user_defined, *all),
            Special::Typed(strip) => {
                let matcher = |kinds: &[TokenType]| Matcher::new(&vocab, kinds, Precedence::Longest, strip.clone());
                let all = [TokenType::UserDefined, TokenType::Control, TokenType::Unknown];
                (matcher(&all[..1]), matcher(&all))
            }
        };
        Self(Arc::new(Inner {
            vocab: Arc::new(vocab),
            model,
            user_defined,
            special,
            bos,
            eos,
            defaults,
            last,
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
    /// few models that ask for it (for WordPiece its separator).
    pub fn encode_input(&self, text: &str) -> Vec<u32> {
        let mut ids = self.encode(text, self.defaults());
        ids.extend(self.0.last);
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
            let (text, vocab) = match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    after_special = true;
                    continue;
                }
                Fragment::Text(text) => (text, &*inner.vocab),
            };
            match &inner.model {
                Model::Bpe { bpe, spaces: Spaces::Kept } => bpe.encode(vocab, text, &mut ids),
                Model::Bpe { bpe, spaces: Spaces::Escaped } => {
                    bpe.encode(vocab, &text.replace(' ', spm::SPACE), &mut ids);
                }
                Model::Bpe { bpe, spaces: Spaces::Dropped { lowercase } } => {
                    let lowered = |c: char| if *lowercase { c.to_lowercase().next().unwrap_or(c) } else { c };
                    for part in text.split_whitespace() {
                        bpe.encode(vocab, &part.chars().map(lowered).collect::<String>(), &mut ids);
                    }
                }
                Model::Published(published) => {
                    published.encode(vocab, text, at == 0, options.parse_special, &mut ids);
                }
                Model::SentencePiece { add_space_prefix } => {
                    let prefix = if *add_space_prefix && after_special { spm::SPACE } else { "" };
                    spm::encode(vocab, &[prefix, &text.replace(' ', spm::SPACE)].concat(), &mut ids);
                }
                Model::Unigram { unigram, preparation } => {
                    let pieces = unigram.cut(&preparation.apply(text)).into_iter();
                    ids.extend(pieces.filter_map(|(piece, _)| piece.or(vocab.unknown())));
                }
                Model::WordPiece(pieces) => pieces.encode(vocab, text, &mut ids),
            }
            after_special = false;
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
            Model::Unigram { preparation, .. } => preparation.add_space_prefix || preparation.remove_extra_whitespaces,
            Model::WordPiece(_) => true,
            Model::Published(published) => published.leads(),
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
    let spaces = match data.model.as_str() {
        "whitespace" => {
            Spaces::Dropped { lowercase: data.lowercase.unwrap_or(data.pre.as_deref() != Some("whitespace")) }
        }
        _ if pre.escape => Spaces::Escaped,
        _ => Spaces::Kept,
    };
    // Files of Gemma 4 were made that say otherwise.
    let add_bos = if pre.newline_tokens { true } else { data.add_bos.unwrap_or(pre.add_bos) };
    let (spelling, units) =
        if pre.raw { (Spelling::SentencePiece, Units::Raw) } else { (Spelling::ByteLevel, Units::Bytes) };
    let whole = match (pre.ignore_merges, pre.newline_tokens) {
        (true, _) => Whole::Always,
        (false, true) => Whole::Newlines,
        (false, false) => Whole::Never,
    };
    let vocab = Vocab::new(data, spelling)?;
    let merges: Vec<(&str, &str)> = (0_u32..).zip(&data.merges).map(bpe::sides).collect::<Result<_, _>>()?;
    let bpe = Bpe::new(&vocab, merges.into_iter(), Words::Named(pre), units, whole);
    Ok((vocab, Model::Bpe { bpe: Arc::new(bpe), spaces }, add_bos))
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
