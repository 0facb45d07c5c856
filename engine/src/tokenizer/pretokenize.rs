//! Cutting text into words before byte-pair merging.
//!
//! Each model family was trained with regular expressions of its own, and merges never cross the words that they make,
//! so the cuts must be exact. The expressions are few and simple enough to be written as lists of matchers: one pass
//! each, no backtracking, time linear in the text whatever it holds. The cuts are llama.cpp's, also where those are not
//! what the family's own expression would give (its letters have no case but ASCII's, for one): the ids expected of a
//! GGUF file are its ids.

mod class;
mod families;
mod names;
mod ranges;
mod scan;

pub(super) use class::{Char, Class};

/// One pass over a run of characters; the passes of a pre-tokenizer refine each other's cuts.
#[derive(Clone, Copy, Debug)]
enum Pass {
    /// At each position the first matcher that gives a length makes a word; what none matches lies between words and
    /// is one as well.
    Alternatives(&'static [fn(&[Char], usize) -> usize]),
    /// Calls back with places to cut at, in order.
    Cuts(fn(&[Char], &mut dyn FnMut(usize))),
}

/// A family's way of cutting text into words.
#[derive(Clone, Debug, Default)]
pub(super) struct PreTokenizer {
    passes: &'static [Pass],
    /// Words are merged from characters, not from bytes.
    pub raw: bool,
    /// Spaces are written `▁`.
    pub escape: bool,
    /// A word that is a token is that token, whatever the merges say.
    pub ignore_merges: bool,
    /// The same, for words of newlines only.
    pub newline_tokens: bool,
    /// Whether models with this pre-tokenizer start with BOS when the file does not say.
    pub add_bos: bool,
}

impl PreTokenizer {
    /// Calls `word` with each word of `text` in order; together they are the text.
    pub fn split<'t>(&self, text: &'t str, mut word: impl FnMut(&'t str)) {
        let chars: Vec<Char> = text.chars().map(Char::new).collect();
        // Ends of the words so far, as character positions.
        let mut ends = vec![chars.len()];
        for pass in self.passes {
            let mut next = Vec::with_capacity(ends.len());
            let mut start = 0;
            for &end in &ends {
                pass.cut(&chars[start..end], &mut |at| next.push(start + at));
                next.push(end);
                start = end;
            }
            ends = next;
        }
        let (mut from, mut at) = (0, 0);
        for end in ends {
            let bytes: usize = chars[at..end].iter().map(|ch| ch.c.len_utf8()).sum();
            if bytes > 0 {
                word(&text[from..from + bytes]);
            }
            (from, at) = (from + bytes, end);
        }
    }
}

impl Pass {
    /// Calls `end` with the end of each word of `text`, perhaps twice or not at the text's end.
    fn cut(self, text: &[Char], end: &mut dyn FnMut(usize)) {
        match self {
            Self::Cuts(cuts) => cuts(text, end),
            Self::Alternatives(matchers) => {
                let mut at = 0;
                while at < text.len() {
                    match matchers.iter().map(|matcher| matcher(text, at)).find(|length| *length > 0) {
                        Some(length) => {
                            end(at);
                            at += length;
                            end(at);
                        }
                        None => at += 1,
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
