//! The vocabulary: texts, types and scores of tokens, and what each token is in bytes.

use std::{
    borrow::Cow,
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use super::{
    TokenizerData, TokenizerError,
    bpe::{byte_char, char_byte},
    spm::SPACE,
};

/// A token's type, by GGUF's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenType {
    /// Part of ordinary text.
    Normal,
    /// Stands for text that has no token.
    Unknown,
    /// Has a meaning for the model and is never part of the text: `<|im_end|>`.
    Control,
    /// Taken verbatim wherever it stands in a text.
    UserDefined,
    /// In the vocabulary, but never used.
    Unused,
    /// A single byte, written `<0x0A>`.
    Byte,
}

impl TokenType {
    fn from_id(id: i32) -> Self {
        match id {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            // 5 is unused, 0 undefined; what others mean nobody has written down.
            _ => Self::Unused,
        }
    }

    /// GGUF's number.
    pub(super) fn id(self) -> i32 {
        match self {
            Self::Normal => 1,
            Self::Unknown => 2,
            Self::Control => 3,
            Self::UserDefined => 4,
            Self::Unused => 5,
            Self::Byte => 6,
        }
    }
}

/// The two ways of writing bytes as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// One character a byte.
    ByteLevel,
    /// UTF-8, with `▁` for a space.
    SentencePiece,
}

/// Largest vocabulary. The largest in use have a quarter of a million tokens; ids and symbol numbers stay far from 2³².
const MAX_TOKENS: usize = 1 << 24;

#[derive(Debug)]
pub(super) struct Vocab {
    spelling: Spelling,
    texts: Vec<Arc<str>>,
    types: Vec<TokenType>,
    scores: Vec<f32>,
    ids: HashMap<Arc<str>, u32>,
    longest: usize,
    unknown: Option<u32>,
    byte_tokens: Vec<Option<u32>>,
}

impl Vocab {
    pub fn new(data: &TokenizerData, spelling: Spelling) -> Result<Self, TokenizerError> {
        let count = data.tokens.len();
        if count == 0 || count > MAX_TOKENS || data.merges.len() > MAX_TOKENS {
            return Err(TokenizerError::Size { tokens: count, merges: data.merges.len(), max: MAX_TOKENS });
        }
        for (what, found) in [("token types", data.types.len()), ("scores", data.scores.len())] {
            if found != 0 && found < count {
                return Err(TokenizerError::Short { what, found, tokens: count });
            }
        }
        let mut texts = Vec::with_capacity(count);
        let mut ids = HashMap::with_capacity(count);
        for (id, text) in (0_u32..).zip(&data.tokens) {
            // A name of its own for a token that has none, so that empty text never finds it.
            let text: Arc<str> = if text.is_empty() { format!("[EMPTY_{id}]").into() } else { text.as_str().into() };
            texts.push(Arc::clone(&text));
            match ids.entry(text) {
                Entry::Vacant(free) => drop(free.insert(id)),
                Entry::Occupied(first) => {
                    tracing::warn!(
                        id,
                        text = &**first.key(),
                        "token occurs twice in the vocabulary; the first id is used"
                    );
                }
            }
        }
        let mut types: Vec<TokenType> = data.types.iter().take(count).map(|id| TokenType::from_id(*id)).collect();
        types.resize(count, TokenType::Normal);
        // NaN would be above everything, and -0 below 0, in the total order that the heap needs.
        let mut scores: Vec<f32> =
            data.scores.iter().take(count).map(|s| if s.is_nan() { f32::NEG_INFINITY } else { s + 0.0 }).collect();
        scores.resize(count, 0.0);
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let unknown = data.unknown.filter(|id| (*id as usize) < count);
        let mut vocab = Self { spelling, texts, types, scores, ids, longest, unknown, byte_tokens: Vec::new() };
        vocab.byte_tokens = (0..=u8::MAX).map(|byte| vocab.find_byte(byte)).collect();
        Ok(vocab)
    }

    fn find_byte(&self, byte: u8) -> Option<u32> {
        match self.spelling {
            Spelling::ByteLevel => self.id(byte_char(byte).encode_utf8(&mut [0; 4])),
            Spelling::SentencePiece => self.id(&format!("<0x{byte:02X}>")).or_else(|| {
                let ascii = byte.is_ascii().then(|| char::from(byte))?;
                self.id(ascii.encode_utf8(&mut [0; 4]))
            }),
        }
    }

    /// Number of tokens; fits because [`MAX_TOKENS`] does.
    pub fn len(&self) -> u32 {
        self.texts.len() as u32
    }

    pub fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    pub fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize).map(|text| &**text)
    }

    pub fn kind(&self, id: u32) -> Option<TokenType> {
        self.types.get(id as usize).copied()
    }

    /// Gives a token another type. Nothing happens to ids outside the vocabulary.
    pub fn set_kind(&mut self, id: u32, kind: TokenType) {
        if let Some(known) = self.types.get_mut(id as usize) {
            *known = kind;
        }
    }

    pub fn score(&self, id: u32) -> f32 {
        self.scores.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY)
    }

    /// Length of the longest text in bytes.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Makes `id` the unknown token of a vocabulary that has none.
    pub fn or_unknown(&mut self, id: u32) {
        self.unknown = self.unknown.or(Some(id).filter(|id| *id < self.len()));
    }

    pub fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    pub fn byte_token(&self, byte: u8) -> Option<u32> {
        self.byte_tokens[usize::from(byte)]
    }

    /// Ids of the type, in order.
    pub fn of_kind(&self, kind: TokenType) -> impl Iterator<Item = u32> {
        (0_u32..).zip(&self.types).filter(move |(_, k)| **k == kind).map(|(id, _)| id)
    }

    /// What the token adds to decoded text. Control tokens, unknown ones and ids outside the vocabulary add nothing.
    pub fn bytes(&self, id: u32) -> Cow<'_, [u8]> {
        let (Some(text), Some(kind)) = (self.text(id), self.kind(id)) else { return Cow::Borrowed(&[]) };
        match (kind, self.spelling) {
            (TokenType::UserDefined, _) => Cow::Borrowed(text.as_bytes()),
            (TokenType::Normal, Spelling::ByteLevel) => Cow::Owned(from_byte_level(text)),
            (TokenType::Normal, Spelling::SentencePiece) if text.contains(SPACE) => {
                Cow::Owned(text.replace(SPACE, " ").into_bytes())
            }
            (TokenType::Normal, Spelling::SentencePiece) => Cow::Borrowed(text.as_bytes()),
            (TokenType::Byte, _) => Cow::Owned(byte_text(text).into_iter().collect()),
            (TokenType::Control | TokenType::Unknown | TokenType::Unused, _) => Cow::Borrowed(&[]),
        }
    }
}

fn from_byte_level(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match char_byte(c) {
            Some(byte) => bytes.push(byte),
            // No byte is written so: the file means the character itself.
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// The byte that `<0x0A>` stands for.
pub(super) fn byte_text(text: &str) -> Option<u8> {
    u8::from_str_radix(text.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A vocabulary of the 256 bytes and `more`.
    pub fn byte_level(more: &[&str]) -> Vocab {
        let mut tokens: Vec<String> = (0..=u8::MAX).map(|byte| byte_char(byte).to_string()).collect();
        tokens.extend(more.iter().map(ToString::to_string));
        Vocab::new(&TokenizerData { tokens, ..TokenizerData::default() }, Spelling::ByteLevel).unwrap()
    }

    #[test]
    fn short_arrays_and_empty_vocabularies_are_refused() {
        let empty = TokenizerData::default();
        assert!(matches!(Vocab::new(&empty, Spelling::ByteLevel), Err(TokenizerError::Size { tokens: 0, .. })));
        let tokens = vec!["a".to_owned(), "b".to_owned()];
        let short = TokenizerData { tokens, types: vec![1], ..TokenizerData::default() };
        let refused = Vocab::new(&short, Spelling::ByteLevel);
        assert!(matches!(refused, Err(TokenizerError::Short { found: 1, tokens: 2, .. })));
    }

    #[test]
    fn tokens_become_bytes_by_type() {
        let tokens = ["▁a", "<0x0A>", "<s>", "<b>", ""].map(str::to_owned).to_vec();
        let data = TokenizerData { tokens, types: vec![1, 6, 3, 4, 1], ..TokenizerData::default() };
        let vocab = Vocab::new(&data, Spelling::SentencePiece).unwrap();
        let bytes: Vec<_> = (0..6).map(|id| vocab.bytes(id).into_owned()).collect();
        assert_eq!(bytes, [&b" a"[..], b"\n", b"", b"<b>", b"[EMPTY_4]", b""]);
        assert_eq!(vocab.byte_token(b'\n'), Some(1));
        assert_eq!(vocab.byte_token(b'x'), None);
    }
}
