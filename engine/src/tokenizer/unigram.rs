//! Unigram models (`tokenizer.ggml.model` = `t5`): of all ways to cut a text into pieces, the one whose scores add up to
//! the most.
//!
//! One walk over the text: for each place the best way to reach it, from which every piece that begins there leads on.
//! A character that is no piece of its own may be an unknown one, ten below the lowest score. Sums are `f64`, and of
//! equal ways the one found first stays, as in the other engines.

use super::{
    charsmap::Charsmap,
    spm::SPACE,
    trie::Trie,
    vocab::{TokenType, Vocab},
};

/// How far an unknown character's score lies below the lowest of a piece.
const UNKNOWN_PENALTY: f32 = 10.0;

#[derive(Debug)]
pub(super) struct Unigram {
    pieces: Trie,
    /// Scores by id.
    scores: Vec<f64>,
    unknown_score: f64,
}

/// The best way to a place in the text.
#[derive(Clone, Copy, Debug)]
struct Best {
    score: f64,
    /// Where its last piece begins.
    from: usize,
    /// The piece, or none for an unknown character.
    piece: Option<u32>,
}

impl Unigram {
    /// The pieces of a GGUF file's vocabulary. Those that the user defined cost nothing.
    pub fn new(vocab: &Vocab) -> Self {
        let of = |kind| vocab.of_kind(kind);
        let lowest = of(TokenType::Normal).map(|id| vocab.score(id)).fold(f32::MAX, f32::min);
        let mut scores: Vec<f64> = (0..vocab.len()).map(|id| f64::from(vocab.score(id))).collect();
        for id in of(TokenType::UserDefined) {
            scores[id as usize] = 0.0;
        }
        let kinds = [TokenType::Normal, TokenType::UserDefined, TokenType::Unused];
        let ids = kinds.into_iter().flat_map(of);
        let pieces = Trie::new(ids.filter_map(|id| Some((vocab.text(id)?, id))));
        Self { pieces, scores, unknown_score: f64::from(lowest - UNKNOWN_PENALTY) }
    }

    /// The pieces and scores of a published file, all of them alike.
    pub fn published(pieces: &[(String, f64)]) -> Self {
        let lowest = pieces.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
        let texts = pieces.iter().zip(0_u32..).map(|((text, _), id)| (text.as_str(), id));
        Self {
            pieces: Trie::new(texts),
            scores: pieces.iter().map(|(_, score)| *score).collect(),
            unknown_score: lowest - f64::from(UNKNOWN_PENALTY),
        }
    }

    /// The pieces of `text`, with none for each run of unknown characters, and the stretch of each.
    pub fn cut(&self, text: &[u8]) -> Vec<(Option<u32>, std::ops::Range<usize>)> {
        if text.is_empty() {
            return Vec::new();
        }
        let mut best = vec![Best { score: f64::MIN, from: 0, piece: None }; text.len() + 1];
        best[0].score = 0.0;
        let mut at = 0;
        while at < text.len() {
            let score = best[at].score;
            let width = width(text[at]).min(text.len() - at);
            let mut single = false;
            let mut offer = |length: usize, worth: f64, piece: Option<u32>| {
                let slot = &mut best[at + length];
                if score + worth > slot.score {
                    *slot = Best { score: score + worth, from: at, piece };
                }
            };
            self.pieces.prefixes(&text[at..], |length, id| {
                single |= length == width;
                offer(length, self.scores[id as usize], Some(id));
            });
            if !single {
                offer(width, self.unknown_score, None);
            }
            at += width;
        }
        let mut pieces: Vec<(Option<u32>, std::ops::Range<usize>)> = Vec::new();
        let mut end = text.len();
        loop {
            let Best { from, piece, .. } = best[end];
            match pieces.last_mut() {
                Some((None, run)) if piece.is_none() => run.start = from,
                _ => pieces.push((piece, from..end)),
            }
            if from == 0 {
                break;
            }
            end = from;
        }
        pieces.reverse();
        pieces
    }
}

/// Bytes of the character that begins with this one.
fn width(first: u8) -> usize {
    match first >> 4 {
        0..=11 => 1,
        12 | 13 => 2,
        14 => 3,
        _ => 4,
    }
}

/// What happens to a text of a GGUF file's model before it is cut.
#[derive(Debug)]
pub(super) struct Preparation {
    pub charsmap: Option<Charsmap>,
    /// A space stands before the text.
    pub add_space_prefix: bool,
    /// Spaces in a row become one, and those at the ends none.
    pub remove_extra_whitespaces: bool,
}

impl Preparation {
    /// The text that is cut; not always UTF-8, since a map may hold anything.
    pub fn apply(&self, text: &str) -> Vec<u8> {
        let bytes = text.as_bytes();
        let mut out = Vec::with_capacity(bytes.len() + SPACE.len());
        let (mut led, mut inside) = (false, false);
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let replaced = self.charsmap.as_ref().and_then(|map| map.longest(rest));
            let (taken, text) = replaced.unwrap_or_else(|| {
                let taken = width(rest[0]).min(rest.len());
                (taken, &rest[..taken])
            });
            for byte in text {
                if *byte == b' ' {
                    inside = false;
                    if !self.remove_extra_whitespaces {
                        out.extend(SPACE.as_bytes());
                    }
                    continue;
                }
                if !inside && ((self.add_space_prefix && !led) || self.remove_extra_whitespaces) {
                    out.extend(SPACE.as_bytes());
                    led = true;
                }
                inside = true;
                out.push(*byte);
            }
            at += taken;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::charsmap::tests::small;

    fn texts(model: &Unigram, text: &str) -> Vec<String> {
        let pieces = model.cut(text.as_bytes());
        pieces.into_iter().map(|(id, at)| format!("{}{}", if id.is_some() { "" } else { "?" }, &text[at])).collect()
    }

    fn model(pieces: &[(&str, f64)]) -> Unigram {
        let pieces: Vec<(String, f64)> = pieces.iter().map(|(text, score)| ((*text).to_owned(), *score)).collect();
        Unigram::published(&pieces)
    }

    #[test]
    fn the_best_sum_wins() {
        let unigram = model(&[("a", -1.0), ("b", -1.0), ("ab", -1.5), ("ba", -3.0), ("abab", -3.2)]);
        assert_eq!(texts(&unigram, "abab"), ["ab", "ab"]);
        assert_eq!(texts(&unigram, "bab"), ["b", "ab"]);
        assert_eq!(texts(&unigram, ""), Vec::<String>::new());
    }

    #[test]
    fn runs_of_unknown_characters_are_one() {
        let unigram = model(&[("a", -1.0), ("é", -1.0)]);
        assert_eq!(texts(&unigram, "xyaéz中a"), ["?xy", "a", "é", "?z中", "a"]);
        // A score that no sum reaches leaves the place to what comes after it.
        assert!(!model(&[("a", f64::NEG_INFINITY)]).cut(b"aa").is_empty());
    }

    #[test]
    fn spaces_are_merged_and_led() {
        let prepare = |charsmap: Option<Vec<u8>>, add_space_prefix, remove_extra_whitespaces, text: &str| {
            let charsmap = charsmap.and_then(|blob| Charsmap::new(&blob));
            let out = Preparation { charsmap, add_space_prefix, remove_extra_whitespaces }.apply(text);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(prepare(None, true, true, "  x  y "), "▁x▁y");
        assert_eq!(prepare(None, true, false, "x  y "), "▁x▁▁y▁");
        assert_eq!(prepare(None, false, false, "x"), "x");
        assert_eq!(prepare(Some(small()), false, false, "xacay"), "xby");
    }

    /// A megabyte of one character: the work is the text times the longest piece.
    #[test]
    fn long_texts_end() {
        let unigram = model(&[("a", -1.0), ("aa", -1.5), ("aaaaaaaa", -2.0)]);
        assert_eq!(unigram.cut(&[b'a'; 1 << 20]).len(), 1 << 17);
    }
}
