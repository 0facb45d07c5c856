//! Finding special tokens in text.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
};

use super::vocab::{TokenType, Vocab};

/// Longest text of a special token that is looked for. A match costs its length at every position; the longest in use
/// have some 60 bytes.
const MAX_LENGTH: usize = 512;

/// A stretch of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// Which of two overlapping matches counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Precedence {
    /// The longest wherever it stands, then the leftmost: llama.cpp's.
    Longest,
    /// The leftmost, then the longest: that of Hugging Face's tokenizers.
    Leftmost,
}

/// White space beside a token that goes with it.
#[derive(Clone, Debug, Default)]
pub(super) struct Strip {
    /// Tokens that take the white space before them.
    pub left: Vec<u32>,
    /// Tokens that take the white space after them.
    pub right: Vec<u32>,
    /// All of Unicode's white space, not ASCII's only.
    pub unicode: bool,
    /// Tokens that are none within a word.
    pub whole: Vec<u32>,
}

impl Strip {
    fn blank(&self, c: char) -> bool {
        if self.unicode { c.is_whitespace() } else { c.is_ascii_whitespace() || c == '\u{b}' }
    }
}

/// Finds the texts of special tokens. One walk along a trie from each position, so the work grows with the text, not
/// with the number of tokens.
#[derive(Clone, Debug)]
pub(super) struct Matcher {
    /// Children by node and byte; the root is node 0.
    children: HashMap<(u32, u8), u32>,
    /// Tokens by the node where their text ends.
    ends: HashMap<u32, u32>,
    starts: [bool; 256],
    precedence: Precedence,
    strip: Strip,
}

impl Matcher {
    /// A matcher for the tokens of these types.
    pub fn new(vocab: &Vocab, kinds: &[TokenType], precedence: Precedence, strip: Strip) -> Self {
        let ids = kinds.iter().flat_map(|kind| vocab.of_kind(*kind));
        let texts = ids.filter_map(|id| Some((vocab.text(id)?, id)));
        Self::of(texts, precedence, strip)
    }

    /// A matcher for these texts; of two that are the same the first counts.
    pub fn of<'t>(texts: impl Iterator<Item = (&'t str, u32)>, precedence: Precedence, strip: Strip) -> Self {
        let mut matcher =
            Self { children: HashMap::new(), ends: HashMap::new(), starts: [false; 256], precedence, strip };
        let mut nodes = 0_u32;
        for (text, id) in texts.filter(|(text, _)| (1..=MAX_LENGTH).contains(&text.len())) {
            let mut node = 0;
            for byte in text.bytes() {
                node = *matcher.children.entry((node, byte)).or_insert_with(|| {
                    // Fewer than the bytes of a file's vocabulary, which 32 bits hold.
                    nodes = nodes.saturating_add(1);
                    nodes
                });
            }
            matcher.ends.entry(node).or_insert(id);
            if let Some(first) = text.bytes().next() {
                matcher.starts[usize::from(first)] = true;
            }
        }
        matcher
    }

    /// The longest match at `start` of no more than `most` bytes: its length and token.
    fn longest(&self, text: &[u8], start: usize, most: usize) -> Option<(usize, u32)> {
        let mut node = 0;
        let mut found = None;
        for (at, byte) in text.get(start..)?.iter().take(most).enumerate() {
            let Some(next) = self.children.get(&(node, *byte)) else { break };
            node = *next;
            if let Some(id) = self.ends.get(&node) {
                found = Some((at + 1, *id));
            }
        }
        found
    }

    /// Cuts `text` into tokens and what lies between.
    pub fn split<'t>(&self, text: &'t str) -> Vec<Fragment<'t>> {
        let found = match self.precedence {
            Precedence::Longest => self.longest_first(text.as_bytes()),
            Precedence::Leftmost => self.leftmost_first(text.as_bytes()),
        };
        let mut fragments = Vec::with_capacity(2 * found.len() + 1);
        let mut from = 0;
        let mut before = None;
        let mut push = |text: &'t str, before: Option<u32>, token: Option<u32>| {
            let blank = |c| self.strip.blank(c);
            let text = if before.is_some_and(|id| self.strip.right.contains(&id)) {
                text.trim_start_matches(blank)
            } else {
                text
            };
            let text =
                if token.is_some_and(|id| self.strip.left.contains(&id)) { text.trim_end_matches(blank) } else { text };
            fragments.extend((!text.is_empty()).then_some(Fragment::Text(text)));
            fragments.extend(token.map(Fragment::Token));
        };
        for (start, length, id) in found {
            push(&text[from..start], before, Some(id));
            from = start + length;
            before = Some(id);
        }
        push(&text[from..], before, None);
        fragments
    }

    fn leftmost_first(&self, text: &[u8]) -> Vec<(usize, usize, u32)> {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(byte) = text.get(at) {
            match self.starts[usize::from(*byte)].then(|| self.longest(text, at, MAX_LENGTH)).flatten() {
                Some((length, id)) => {
                    if !self.strip.whole.contains(&id) || stands_alone(text, at, length) {
                        found.push((at, length, id));
                    }
                    at += length;
                }
                None => at += 1,
            }
        }
        found
    }

    fn longest_first(&self, text: &[u8]) -> Vec<(usize, usize, u32)> {
        let starts = text.iter().enumerate().filter(|(_, byte)| self.starts[usize::from(**byte)]);
        let longest = |start: usize, most: usize| {
            let (length, id) = self.longest(text, start, most)?;
            Some((length, Reverse(start), id))
        };
        let mut queue: BinaryHeap<_> = starts.filter_map(|(start, _)| longest(start, MAX_LENGTH)).collect();
        // Start → (length, token) of what was found; no two overlap.
        let mut found: BTreeMap<usize, (usize, u32)> = BTreeMap::new();
        while let Some((length, Reverse(start), id)) = queue.pop() {
            if found.range(..=start).next_back().is_some_and(|(at, (length, _))| at + length > start) {
                continue;
            }
            let free = found.range(start..).next().map_or(usize::MAX, |(next, _)| next - start);
            if length <= free {
                found.insert(start, (length, id));
            } else {
                queue.extend(longest(start, free));
            }
        }
        found.into_iter().map(|(start, (length, id))| (start, length, id)).collect()
    }
}

/// Whether no word goes on before or after the stretch.
fn stands_alone(text: &[u8], at: usize, length: usize) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_' || unicode_normalization::char::is_combining_mark(c);
    let (before, after) = (text.get(..at).unwrap_or_default(), text.get(at + length..).unwrap_or_default());
    // Tokens are text, so that both sides are; a character has up to four bytes.
    let near = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let last = near(&before[before.len().saturating_sub(4)..]).chars().next_back();
    let next = near(&after[..after.len().min(4)]).chars().next();
    !last.is_some_and(word) && !next.is_some_and(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split<'t>(tokens: &[&str], precedence: Precedence, text: &'t str) -> Vec<Fragment<'t>> {
        let tokens = tokens.iter().zip(0..).map(|(text, id)| (*text, id));
        Matcher::of(tokens, precedence, Strip::default()).split(text)
    }

    #[test]
    fn longest_first_then_leftmost() {
        use Fragment::{Text, Token};
        let tokens = &["<a>", "<a><b>", "aa", "ß"];
        let split = |text| split(tokens, Precedence::Longest, text);
        assert_eq!(split("x<a><b><a>y"), [Text("x"), Token(1), Token(0), Text("y")]);
        assert_eq!(split("aaa"), [Token(2), Text("a")]);
        assert_eq!(split("aßé"), [Text("a"), Token(3), Text("é")]);
        assert_eq!(split(""), []);
    }

    #[test]
    fn the_two_precedences_differ_where_matches_overlap() {
        use Fragment::{Text, Token};
        let tokens = &["ab", "bcd", "b"];
        assert_eq!(split(tokens, Precedence::Longest, "abcd"), [Text("a"), Token(1)]);
        assert_eq!(split(tokens, Precedence::Leftmost, "abcd"), [Token(0), Text("cd")]);
        // The longest at a place is taken by its neighbour; a shorter one still fits.
        assert_eq!(split(&["xab", "abbb", "x"], Precedence::Longest, "xabbb"), [Token(2), Token(1)]);
    }

    #[test]
    fn white_space_goes_with_the_tokens_that_take_it() {
        use Fragment::{Text, Token};
        let strip = Strip { left: vec![1], right: vec![0], ..Strip::default() };
        let tokens = [("<r>", 0), ("<l>", 1)];
        let matcher = Matcher::of(tokens.into_iter(), Precedence::Longest, strip);
        assert_eq!(
            matcher.split(" <r> \n x \t<l> <r>\u{a0} "),
            [Text(" "), Token(0), Text("x"), Token(1), Text(" "), Token(0), Text("\u{a0} ")]
        );
        assert_eq!(matcher.split("<r>  <l>"), [Token(0), Token(1)]);
    }

    #[test]
    fn some_tokens_are_whole_words() {
        use Fragment::{Text, Token};
        let strip = Strip { whole: vec![0], ..Strip::default() };
        let matcher = Matcher::of([("as", 0), ("at", 1)].into_iter(), Precedence::Leftmost, strip);
        assert_eq!(matcher.split("as éas as_ as-at"), [Token(0), Text(" éas as_ "), Token(0), Text("-"), Token(1)]);
    }

    /// Nested tokens and a text of nothing else: the walks are bounded by the longest.
    #[test]
    fn hostile_tokens_cost_no_more_than_their_length() {
        let texts: Vec<String> = (1..=2 * MAX_LENGTH).map(|length| "a".repeat(length)).collect();
        let tokens = texts.iter().zip(0..).map(|(text, id)| (text.as_str(), id));
        let matcher = Matcher::of(tokens, Precedence::Longest, Strip::default());
        let text = "a".repeat(100_000);
        assert_eq!(matcher.split(&text).len(), 100_000_usize.div_ceil(MAX_LENGTH));
    }
}
