//! What a file says of a tokenizer.

use crate::gguf::{Gguf, GgufError};

/// What a tokenizer is made of. [`TokenizerData::from_gguf`] reads it from a file; tests write it by hand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenizerData {
    /// Kind of tokenizer: `gpt2`, `gemma4`, `whitespace`, `llama`, `t5` or `bert`.
    pub model: String,
    /// Name of the model. Those of Phi-3 take the white space after special tokens away.
    pub name: Option<String>,
    /// Name of the pre-tokenizer.
    pub pre: Option<String>,
    /// Texts by id.
    pub tokens: Vec<String>,
    /// Types by id in GGUF's numbers, or empty: all normal.
    pub types: Vec<i32>,
    /// Scores by id, or empty: all zero. Used by SentencePiece and Unigram.
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
    /// Further ends of a generation, such as the padding for filling in the middle.
    pub ends: Vec<u32>,
    /// Separates texts, and ends them for WordPiece.
    pub separator: Option<u32>,
    /// Stands for what has no token.
    pub unknown: Option<u32>,
    /// Whether prompts start with BOS, when the file says.
    pub add_bos: Option<bool>,
    /// Whether prompts end with EOS, when the file says.
    pub add_eos: Option<bool>,
    /// Whether SentencePiece and Unigram put a space before the text, when the file says.
    pub add_space_prefix: Option<bool>,
    /// Whether Unigram makes one of spaces in a row, when the file says.
    pub remove_extra_whitespaces: Option<bool>,
    /// SentencePiece's map of characters, or empty. Used by Unigram.
    pub precompiled_charsmap: Vec<u8>,
    /// Whether WordPiece lowers texts, when the file says.
    pub lowercase: Option<bool>,
    /// Whether WordPiece strips accents, when the file says.
    pub strip_accents: Option<bool>,
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
        // Files call the bytes signed or unsigned.
        let bytes = |key: &str| {
            gguf.i32_array(key).map(|all| all.into_iter().map(|byte| (byte & 0xff) as u8).collect::<Vec<_>>())
        };
        let mut ends = Vec::new();
        for role in ["pad", "rep", "sep"] {
            ends.extend(id(&format!("tokenizer.ggml.fim_{role}_token_id"))?);
        }
        Ok(Self {
            model: gguf.get_str("tokenizer.ggml.model")?.to_owned(),
            name: optional(gguf, "general.name", |k| gguf.get_str(k).map(str::to_owned))?,
            pre: optional(gguf, "tokenizer.ggml.pre", |k| gguf.get_str(k).map(str::to_owned))?,
            tokens: strings("tokenizer.ggml.tokens")?,
            types: optional(gguf, "tokenizer.ggml.token_type", |k| gguf.i32_array(k))?.unwrap_or_default(),
            scores: optional(gguf, "tokenizer.ggml.scores", |k| gguf.f32_array(k))?.unwrap_or_default(),
            merges: optional(gguf, "tokenizer.ggml.merges", strings)?.unwrap_or_default(),
            bos: id("tokenizer.ggml.bos_token_id")?,
            eos: id("tokenizer.ggml.eos_token_id")?,
            eot: id("tokenizer.ggml.eot_token_id")?,
            eom: id("tokenizer.ggml.eom_token_id")?,
            ends,
            // The key is spelt so.
            separator: id("tokenizer.ggml.seperator_token_id")?,
            unknown: id("tokenizer.ggml.unknown_token_id")?,
            add_bos: flag("tokenizer.ggml.add_bos_token")?,
            add_eos: flag("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: flag("tokenizer.ggml.add_space_prefix")?,
            remove_extra_whitespaces: flag("tokenizer.ggml.remove_extra_whitespaces")?,
            precompiled_charsmap: optional(gguf, "tokenizer.ggml.precompiled_charsmap", bytes)?.unwrap_or_default(),
            lowercase: flag("tokenizer.ggml.normalizer.lowercase")?,
            strip_accents: flag("tokenizer.ggml.normalizer.strip_accents")?,
        })
    }
}
