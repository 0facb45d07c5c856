//! WordPiece (`tokenizer.ggml.model` = `bert`): words are lowered, stripped of accents and cut into the longest pieces
//! from the left; a word with a rest that is no piece is unknown as a whole.

use unicode_normalization::char::decompose_canonical;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use super::{
    pretokenize::{Char, Class},
    spm::SPACE,
    trie::Trie,
    vocab::Vocab,
};

#[derive(Debug)]
pub(super) struct WordPiece {
    pieces: Trie,
    lowercase: bool,
    strip_accents: bool,
}

impl WordPiece {
    pub fn new(vocab: &Vocab, lowercase: bool, strip_accents: bool) -> Self {
        let texts = (0..vocab.len()).filter_map(|id| Some((vocab.text(id)?, id)));
        Self { pieces: Trie::new(texts), lowercase, strip_accents }
    }

    /// Appends the token ids of `text`, in which no special token is left.
    pub fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        self.words(text, |word| {
            let before = out.len();
            let word = [SPACE, word].concat();
            let mut rest = word.as_bytes();
            while !rest.is_empty() {
                let Some((length, id)) = self.pieces.longest(rest) else {
                    out.truncate(before);
                    out.extend(vocab.unknown());
                    return;
                };
                out.push(id);
                rest = &rest[length..];
            }
        });
    }

    /// Words between white space; punctuation and Chinese characters are words of their own.
    fn words(&self, text: &str, mut word: impl FnMut(&str)) {
        let mut current = String::new();
        let mut finish = |current: &mut String| {
            if !current.is_empty() {
                word(current);
                current.clear();
            }
        };
        for c in text.chars() {
            let c = if self.strip_accents { base(c) } else { c };
            let Char { c, class } = Char::new(c);
            if class == Class::Space {
                finish(&mut current);
                continue;
            }
            let mark = class == Class::Mark && self.strip_accents;
            if matches!(c, '\0' | '\u{fffd}') || mark || control(c, class) {
                continue;
            }
            let alone = class == Class::Punctuation || (c < '\u{7f}' && class == Class::Symbol) || chinese(c);
            if alone {
                finish(&mut current);
            }
            current.push(if self.lowercase { c.to_lowercase().next().unwrap_or(c) } else { c });
            if alone {
                finish(&mut current);
            }
        }
        finish(&mut current);
    }
}

/// The first of the characters that this one is made of.
fn base(c: char) -> char {
    let mut first = None;
    decompose_canonical(c, |part| first = first.or(Some(part)));
    first.unwrap_or(c)
}

fn control(c: char, class: Class) -> bool {
    use GeneralCategory::{Control, Format, PrivateUse, Surrogate};
    class == Class::Other && matches!(c.general_category(), Control | Format | PrivateUse | Surrogate)
}

/// The ideographs that BERT's own code takes for words; the gap before U+2B920 is its own as well.
fn chinese(c: char) -> bool {
    matches!(c,
        '\u{4e00}'..='\u{9fff}'
        | '\u{3400}'..='\u{4dbf}'
        | '\u{20000}'..='\u{2a6df}'
        | '\u{2a700}'..='\u{2b73f}'
        | '\u{2b740}'..='\u{2b81f}'
        | '\u{2b920}'..='\u{2ceaf}'
        | '\u{f900}'..='\u{faff}'
        | '\u{2f800}'..='\u{2fa1f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{TokenizerData, vocab::Spelling};

    #[test]
    fn words_are_cut_from_the_left_or_unknown() {
        let tokens = ["[UNK]", "▁un", "know", "n", "▁e", "▁!", "▁中", "▁u"].map(str::to_owned).to_vec();
        let vocab = TokenizerData { tokens, unknown: Some(0), ..TokenizerData::default() };
        let vocab = Vocab::new(&vocab, Spelling::SentencePiece).unwrap();
        let encode = |text: &str, lowercase: bool| {
            let mut ids = Vec::new();
            WordPiece::new(&vocab, lowercase, lowercase).encode(&vocab, text, &mut ids);
            ids
        };
        assert_eq!(encode("Unknown É! 中中  unx\u{ad}\u{0}", true), [1, 2, 3, 4, 5, 6, 6, 0]);
        assert_eq!(encode("Un un\u{200b}n", false), [0, 1, 3]);
    }
}
