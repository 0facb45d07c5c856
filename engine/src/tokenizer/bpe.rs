//! Byte-pair encoding.
//!
//! Merges join two texts into a third and are numbered by rank. A word starts as its bytes, each written as one
//! printable character, or (in vocabularies made from SentencePiece's) as its characters, and the pair of lowest rank
//! (leftmost first) is joined until none is left. The pairs wait in a heap over a linked list, so a word of n bytes
//! costs O(n log n) whatever it holds.

use std::{cmp::Reverse, collections::BinaryHeap, collections::HashMap};

use super::{TokenizerError, vocab::Vocab, words::Words};

/// Longest word that is merged as one. Links are 32 bits wide; text this long has other problems.
const MAX_WORD_BYTES: usize = 1 << 28;

/// End of the linked list.
const NONE: u32 = u32::MAX;

/// The symbol of a character that neither a token nor a merge knows.
const UNSEEN: u32 = u32::MAX - 1;

/// What a word is before anything is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Units {
    /// Its bytes.
    Bytes,
    /// Its characters; what has no token becomes those of its bytes' tokens that there are, `<0x0A>`.
    Raw,
    /// Its characters; one that has no token becomes byte tokens, or the unknown token where the vocabulary has none.
    /// `fuse`: a run of unknown characters is one token.
    Characters {
        /// Whether byte tokens are used.
        byte_tokens: bool,
        /// Whether unknown tokens in a row become one.
        fuse: bool,
    },
}

/// The words that are tokens as they are, whatever the merges say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    /// None.
    Never,
    /// Those of newlines only.
    Newlines,
    /// All that the vocabulary holds.
    Always,
}

#[derive(Debug)]
pub(super) struct Bpe {
    words: Words,
    units: Units,
    whole: Whole,
    /// Symbols below this number are token ids; texts that only merges know are numbered from here.
    vocab_size: u32,
    /// Symbols of single characters that only merges know.
    characters: HashMap<char, u32>,
    /// The symbol of each byte.
    bytes: Vec<u32>,
    merges: HashMap<(u32, u32), Merge>,
}

#[derive(Clone, Copy, Debug)]
struct Merge {
    rank: u32,
    joined: u32,
}

/// A stretch of the word, from `start` to where the next one starts.
#[derive(Clone, Copy, Debug)]
struct Node {
    symbol: u32,
    start: u32,
    prev: u32,
    next: u32,
}

/// A pair that may be joined: stale once either side has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: u32,
    pair: (u32, u32),
}

/// Buffers that live through one text.
#[derive(Debug, Default)]
struct Scratch {
    nodes: Vec<Node>,
    heap: BinaryHeap<Reverse<Candidate>>,
    /// Candidates ever queued, at most three for each unit of the text.
    queued: usize,
    text: String,
}

impl Bpe {
    /// `merges` are pairs of texts by rank; of two that are the same the first counts.
    pub fn new<'m>(
        vocab: &Vocab,
        merges: impl Iterator<Item = (&'m str, &'m str)>,
        words: Words,
        units: Units,
        whole: Whole,
    ) -> Self {
        let vocab_size = vocab.len();
        let mut symbols = Symbols { vocab, added: HashMap::new() };
        let bytes = (0..=u8::MAX).map(|byte| symbols.get(byte_char(byte).encode_utf8(&mut [0; 4]))).collect();
        let mut table = HashMap::new();
        for (rank, (left, right)) in (0_u32..).zip(merges) {
            let pair = (symbols.get(left), symbols.get(right));
            let joined = symbols.get(&[left, right].concat());
            table.entry(pair).or_insert(Merge { rank, joined });
        }
        let single = |(text, symbol): (String, u32)| {
            let mut chars = text.chars();
            chars.next().filter(|_| chars.as_str().is_empty()).map(|c| (c, symbol))
        };
        let characters = symbols.added.into_iter().filter_map(single).collect();
        Self { words, units, whole, vocab_size, characters, bytes, merges: table }
    }

    /// Appends the token ids of `text`, in which no special token is left.
    pub fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        self.encode_from(vocab, text, true, out);
    }

    /// As [`Self::encode`]; `start`: the text begins the input.
    pub fn encode_from(&self, vocab: &Vocab, text: &str, start: bool, out: &mut Vec<u32>) {
        let mut scratch = Scratch::default();
        self.words.split(text, start, &mut |word| {
            if let Some(id) = self.whole_word(vocab, word, &mut scratch.text) {
                out.push(id);
                return;
            }
            let mut rest = word;
            while !rest.is_empty() {
                let (part, after) = rest.split_at(rest.floor_char_boundary(MAX_WORD_BYTES));
                self.merge(vocab, part, &mut scratch);
                self.emit(vocab, part, &scratch.nodes, out);
                rest = after;
            }
        });
    }

    fn whole_word(&self, vocab: &Vocab, word: &str, text: &mut String) -> Option<u32> {
        match self.whole {
            Whole::Never => return None,
            Whole::Newlines if word.bytes().any(|byte| byte != b'\n') => return None,
            Whole::Newlines | Whole::Always => {}
        }
        match self.units {
            Units::Raw | Units::Characters { .. } => vocab.id(word),
            Units::Bytes => {
                text.clear();
                text.extend(word.bytes().map(byte_char));
                vocab.id(text)
            }
        }
    }

    /// Joins pairs in `scratch.nodes` until no merge applies.
    fn merge(&self, vocab: &Vocab, word: &str, scratch: &mut Scratch) {
        let Scratch { nodes, heap, queued, .. } = scratch;
        nodes.clear();
        heap.clear();
        // A word is no longer than the bound, so that its offsets fit.
        let node = |(at, (start, symbol)): (u32, (usize, u32))| Node {
            symbol,
            start: start as u32,
            prev: at.checked_sub(1).unwrap_or(NONE),
            next: at + 1,
        };
        match self.units {
            Units::Bytes => {
                let symbols = word.bytes().map(|byte| self.bytes[usize::from(byte)]).enumerate();
                nodes.extend((0..).zip(symbols).map(node));
            }
            Units::Raw | Units::Characters { .. } => {
                let symbols = word.char_indices().map(|(start, c)| (start, self.character(vocab, c)));
                nodes.extend((0..).zip(symbols).map(node));
            }
        }
        if let Some(last) = nodes.last_mut() {
            last.next = NONE;
        }
        let mut queue = |heap: &mut BinaryHeap<_>, nodes: &[Node], left: u32| {
            let Some(node) = nodes.get(left as usize) else { return };
            let Some(right) = nodes.get(node.next as usize) else { return };
            let pair = (node.symbol, right.symbol);
            if let Some(merge) = self.merges.get(&pair) {
                heap.push(Reverse(Candidate { rank: merge.rank, left, pair }));
                *queued += 1;
            }
        };
        for left in (0_u32..).take(nodes.len().saturating_sub(1)) {
            queue(heap, nodes, left);
        }
        while let Some(Reverse(Candidate { left, pair, .. })) = heap.pop() {
            let node = nodes[left as usize];
            let Some(right) = nodes.get(node.next as usize).copied() else { continue };
            if (node.symbol, right.symbol) != pair {
                continue;
            }
            let Some(merge) = self.merges.get(&pair) else { continue };
            // The right node leaves the list; a symbol that no pair has makes its candidates stale.
            nodes[node.next as usize].symbol = NONE;
            nodes[node.next as usize].next = NONE;
            nodes[left as usize] = Node { symbol: merge.joined, next: right.next, ..node };
            if let Some(after) = nodes.get_mut(right.next as usize) {
                after.prev = left;
            }
            queue(heap, nodes, node.prev);
            queue(heap, nodes, left);
        }
    }

    fn character(&self, vocab: &Vocab, c: char) -> u32 {
        vocab.id(c.encode_utf8(&mut [0; 4])).or_else(|| self.characters.get(&c).copied()).unwrap_or(UNSEEN)
    }

    fn emit(&self, vocab: &Vocab, word: &str, nodes: &[Node], out: &mut Vec<u32>) {
        let mut at = 0;
        let mut unknown_before = false;
        while let Some(node) = nodes.get(at as usize) {
            at = node.next;
            let end = nodes.get(at as usize).map_or(word.len(), |next| next.start as usize);
            let (known, part) = (node.symbol < self.vocab_size, node.start as usize..end);
            let mut unknown = false;
            match self.units {
                _ if known => out.push(node.symbol),
                // Not a token: its bytes, those that are.
                Units::Bytes => {
                    let symbols = word.as_bytes()[part].iter().map(|byte| self.bytes[usize::from(*byte)]);
                    out.extend(symbols.filter(|symbol| *symbol < self.vocab_size));
                }
                Units::Raw => out.extend(word[part].bytes().filter_map(|byte| vocab.id(&format!("<0x{byte:02X}>")))),
                Units::Characters { byte_tokens, fuse } => {
                    for c in word[part].chars() {
                        let mut buffer = [0; 4];
                        let bytes = c.encode_utf8(&mut buffer).bytes().map(|byte| vocab.byte_token(byte));
                        match (vocab.id(c.encode_utf8(&mut [0; 4])), bytes.collect::<Option<Vec<u32>>>()) {
                            (Some(id), _) => out.push(id),
                            (None, Some(bytes)) if byte_tokens => out.extend(bytes),
                            _ => {
                                out.extend(vocab.unknown().filter(|_| !(fuse && unknown_before)));
                                unknown = true;
                            }
                        }
                    }
                }
            }
            unknown_before = unknown;
        }
    }
}

/// The two texts of a line `left right`. A left side may itself start with a space, never be empty.
pub(super) fn sides((rank, line): (u32, &String)) -> Result<(&str, &str), TokenizerError> {
    let space = line.bytes().skip(1).position(|b| b == b' ').map(|at| at + 1);
    space
        .and_then(|at| Some((line.get(..at)?, line.get(at + 1..)?)))
        .ok_or_else(|| TokenizerError::Merge { rank, merge: line.clone() })
}

/// Numbers for the texts in merges: the token id, else one past the vocabulary.
struct Symbols<'v> {
    vocab: &'v Vocab,
    added: HashMap<String, u32>,
}

impl Symbols<'_> {
    fn get(&mut self, text: &str) -> u32 {
        if let Some(id) = self.vocab.id(text).or_else(|| self.added.get(text).copied()) {
            return id;
        }
        // Three texts for each of fewer than 2^25 merges (the vocabulary checks) cannot wrap.
        let symbol = self.vocab.len() + self.added.len() as u32;
        self.added.insert(text.to_owned(), symbol);
        symbol
    }
}

/// The character that stands for a byte: itself when Latin-1 prints it, else the next free one from U+0100.
pub(super) fn byte_char(byte: u8) -> char {
    let code = u32::from(byte);
    let shifted = match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => code,
        0x00..=0x20 => 0x100 + code,
        0x7f..=0xa0 => 0x100 + 0x21 + (code - 0x7f),
        0xad => 0x100 + 0x43,
    };
    char::from_u32(shifted).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that a character stands for.
pub(super) fn char_byte(c: char) -> Option<u8> {
    let code = u32::from(c);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{TokenizerData, pretokenize::PreTokenizer, vocab::Spelling, vocab::tests::byte_level},
        *,
    };

    #[test]
    fn bytes_and_characters_are_one_to_one() {
        for byte in 0..=u8::MAX {
            assert_eq!(char_byte(byte_char(byte)), Some(byte));
        }
        assert_eq!(byte_char(b' '), 'Ġ');
        assert_eq!(byte_char(b'\n'), 'Ċ');
        assert_eq!(char_byte('\u{144}'), None);
    }

    fn bpe(merges: &[&str]) -> (Vocab, Bpe) {
        let joined: Vec<String> = merges.iter().map(|m| m.replacen(' ', "", 1)).collect();
        let vocab = byte_level(&joined.iter().map(String::as_str).collect::<Vec<_>>());
        let bpe = over(&vocab, merges);
        (vocab, bpe)
    }

    fn over(vocab: &Vocab, merges: &[&str]) -> Bpe {
        let words = Words::Named(PreTokenizer::from_name("gpt-2").unwrap());
        let merges = merges.iter().map(|merge| merge.split_once(' ').unwrap());
        Bpe::new(vocab, merges, words, Units::Bytes, Whole::Never)
    }

    fn texts(vocab: &Vocab, bpe: &Bpe, text: &str) -> Vec<String> {
        let mut ids = Vec::new();
        bpe.encode(vocab, text, &mut ids);
        ids.iter().map(|id| vocab.text(*id).unwrap().to_owned()).collect()
    }

    #[test]
    fn lower_rank_first_then_leftmost() {
        let (vocab, bpe) = bpe(&["b c", "a b", "a a"]);
        assert_eq!(texts(&vocab, &bpe, "abc"), ["a", "bc"]);
        assert_eq!(texts(&vocab, &bpe, "aaa"), ["aa", "a"]);
        assert_eq!(texts(&vocab, &bpe, "aabab"), ["a", "ab", "ab"]);
    }

    /// A megabyte without a space: the candidates queued are what the time goes by, and they are linear.
    #[test]
    fn one_long_word_costs_no_more_than_three_candidates_a_byte() {
        let (vocab, bpe) = bpe(&["a a", "aa aa", "aaaa aaaa", "a b", "ab ab"]);
        let word: String = (0..1_000_000_u32).map(|i| if i % 7 < 5 { 'a' } else { 'b' }).collect();
        for word in [word, "a".repeat(1_000_000)] {
            let mut scratch = Scratch::default();
            bpe.merge(&vocab, &word, &mut scratch);
            assert!(scratch.queued <= 3 * word.len(), "{} candidates", scratch.queued);
            assert!(scratch.heap.is_empty());
        }
    }

    #[test]
    fn a_merge_without_two_sides_is_refused() {
        let line = |line: &str| sides((7, &line.to_owned())).map(|(left, right)| (left.to_owned(), right.to_owned()));
        assert!(matches!(line("ab"), Err(TokenizerError::Merge { rank: 7, .. })));
        assert_eq!(line("  a b").unwrap(), (" ".to_owned(), "a b".to_owned()));
    }

    #[test]
    fn a_joined_text_outside_the_vocabulary_falls_back_to_its_bytes() {
        let vocab = byte_level(&[]);
        let bpe = over(&vocab, &["Ġ x", "x y", "xy z"]);
        assert_eq!(texts(&vocab, &bpe, " x"), ["Ġ", "x"]);
        assert_eq!(texts(&vocab, &bpe, "xyz"), ["x", "y", "z"]);
    }

    #[test]
    fn characters_without_a_token_become_bytes_or_unknown() {
        let tokens = ["<unk>", "a", "ab", "b", "<0xC3>", "<0xA9>"].map(str::to_owned).to_vec();
        let data =
            TokenizerData { tokens, types: vec![2, 1, 1, 1, 6, 6], unknown: Some(0), ..TokenizerData::default() };
        let vocab = Vocab::new(&data, Spelling::SentencePiece).unwrap();
        let encode = |byte_tokens: bool, fuse: bool, text: &str| {
            let words = Words::Named(PreTokenizer::from_name("gemma4").unwrap());
            let units = Units::Characters { byte_tokens, fuse };
            let bpe = Bpe::new(&vocab, [("a", "b"), ("é", "x")].into_iter(), words, units, Whole::Never);
            let mut ids = Vec::new();
            bpe.encode(&vocab, text, &mut ids);
            ids
        };
        assert_eq!(encode(true, false, "abéxéb☃"), [2, 4, 5, 0, 4, 5, 3, 0]);
        assert_eq!(encode(false, false, "☃☃a"), [0, 0, 1]);
        assert_eq!(encode(false, true, "☃☃a☃"), [0, 1, 0]);
    }
}
