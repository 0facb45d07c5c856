//! Finding special tokens in text, and knowing which of them end a generation.

use std::collections::{BTreeSet, HashMap};

use super::vocab::{TokenType, Vocab};

/// A stretch of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// Finds the texts of special tokens: the longest first wherever they stand, then leftmost. One lookup for each
/// position and each length there is, so the work grows with the text, not with the number of tokens.
#[derive(Debug)]
pub(super) struct Matcher {
    by_text: HashMap<Box<str>, u32>,
    /// Lengths in bytes, longest first.
    lengths: Vec<usize>,
    starts: [bool; 256],
}

impl Matcher {
    pub fn new(vocab: &Vocab, kinds: &[TokenType]) -> Self {
        let ids = kinds.iter().flat_map(|kind| vocab.of_kind(*kind));
        let by_text: HashMap<Box<str>, u32> = ids.filter_map(|id| Some((vocab.text(id)?.into(), id))).collect();
        let lengths: BTreeSet<usize> = by_text.keys().map(|text| text.len()).collect();
        let mut starts = [false; 256];
        for first in by_text.keys().filter_map(|text| text.bytes().next()) {
            starts[usize::from(first)] = true;
        }
        Self { by_text, lengths: lengths.into_iter().rev().collect(), starts }
    }

    pub fn split<'t>(&self, text: &'t str) -> Vec<Fragment<'t>> {
        let candidates: Vec<usize> =
            text.bytes().enumerate().filter(|(_, byte)| self.starts[usize::from(*byte)]).map(|(at, _)| at).collect();
        // Start → (end, id) of what was found; no two overlap.
        let mut found: std::collections::BTreeMap<usize, (usize, u32)> = std::collections::BTreeMap::new();
        for length in &self.lengths {
            for &start in &candidates {
                let end = start + length;
                let Some(id) = text.get(start..end).and_then(|slice| self.by_text.get(slice)) else { continue };
                let free = found.range(..end).next_back().is_none_or(|(_, (taken, _))| *taken <= start);
                if free {
                    found.insert(start, (end, *id));
                }
            }
        }
        let mut fragments = Vec::with_capacity(2 * found.len() + 1);
        let mut from = 0;
        for (start, (end, id)) in found {
            if from < start {
                fragments.push(Fragment::Text(&text[from..start]));
            }
            fragments.push(Fragment::Token(id));
            from = end;
        }
        if from < text.len() {
            fragments.push(Fragment::Text(&text[from..]));
        }
        fragments
    }
}

/// Texts that end a generation in the models that have them, whether or not the file says so.
const END_OF_GENERATION: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<EOT>",
    "<｜end▁of▁sentence｜>",
];

/// The ids that end a generation: those the file names, and the well-known ones that it holds as special tokens.
pub(super) fn end_of_generation(vocab: &Vocab, named: &[Option<u32>]) -> Vec<u32> {
    let special = |id: &u32| matches!(vocab.kind(*id), Some(TokenType::Control | TokenType::UserDefined));
    let known = END_OF_GENERATION.iter().filter_map(|text| vocab.id(text)).filter(special);
    let named = named.iter().flatten().copied().filter(|id| *id < vocab.len());
    known.chain(named).collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::{super::TokenizerData, super::vocab::Spelling, *};

    fn matcher(texts: &[&str]) -> Matcher {
        let tokens = texts.iter().map(ToString::to_string).collect();
        let data = TokenizerData { tokens, types: vec![3; texts.len()], ..TokenizerData::default() };
        Matcher::new(&Vocab::new(&data, Spelling::ByteLevel).unwrap(), &[TokenType::Control])
    }

    #[test]
    fn longest_first_then_leftmost() {
        use Fragment::{Text, Token};
        let m = matcher(&["<a>", "<a><b>", "aa", "ß"]);
        assert_eq!(m.split("x<a><b><a>y"), [Text("x"), Token(1), Token(0), Text("y")]);
        assert_eq!(m.split("aaa"), [Token(2), Text("a")]);
        assert_eq!(m.split("aßé"), [Text("a"), Token(3), Text("é")]);
        assert_eq!(m.split(""), []);
    }
}
