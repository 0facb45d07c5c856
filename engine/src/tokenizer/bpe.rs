//! Byte-level byte-pair encoding.
//!
//! A vocabulary writes each byte as one printable character; merges join two such texts into a third and are numbered
//! by rank. A word starts as its bytes, and the pair of lowest rank (leftmost first) is joined until none is left. The
//! pairs wait in a heap over a linked list, so a word of n bytes costs O(n log n) whatever it holds.

use std::{cmp::Reverse, collections::BinaryHeap, collections::HashMap};

use super::{TokenizerError, pretokenize::PreTokenizer, vocab::Vocab};

/// Longest word that is merged as one. Links are 32 bits wide; text this long has other problems.
const MAX_WORD_BYTES: usize = 1 << 28;

/// End of the linked list.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Bpe {
    pre: PreTokenizer,
    /// Symbols below this number are token ids.
    vocab_size: u32,
    /// Texts that merges name but the vocabulary does not hold, numbered from `vocab_size`.
    extra: Vec<String>,
    /// The symbol of each byte.
    bytes: Vec<u32>,
    merges: HashMap<(u32, u32), Merge>,
}

#[derive(Clone, Copy, Debug)]
struct Merge {
    rank: u32,
    joined: u32,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    symbol: u32,
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
    /// Candidates ever queued, at most three for each byte of the text.
    queued: usize,
    text: String,
}

impl Bpe {
    pub fn new(vocab: &Vocab, merges: &[String], pre: PreTokenizer) -> Result<Self, TokenizerError> {
        let vocab_size = vocab.len();
        let mut symbols = Symbols { vocab, added: HashMap::new(), extra: Vec::new() };
        let bytes = (0..=u8::MAX).map(|byte| symbols.get(byte_char(byte).encode_utf8(&mut [0; 4]))).collect();
        let mut table = HashMap::with_capacity(merges.len());
        for (rank, line) in (0_u32..).zip(merges) {
            // A left side may itself start with a space, never be empty.
            let space = line.bytes().skip(1).position(|b| b == b' ').map(|at| at + 1);
            let (left, right) = space
                .and_then(|at| Some((line.get(..at)?, line.get(at + 1..)?)))
                .ok_or_else(|| TokenizerError::Merge { rank, merge: line.clone() })?;
            let pair = (symbols.get(left), symbols.get(right));
            let joined = symbols.get(&[left, right].concat());
            table.entry(pair).or_insert(Merge { rank, joined });
        }
        let extra = symbols.extra;
        Ok(Self { pre, vocab_size, extra, bytes, merges: table })
    }

    /// Appends the token ids of `text`, in which no special token is left.
    pub fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let mut scratch = Scratch::default();
        self.pre.split(text, |word| {
            if self.pre.ignore_merges {
                scratch.text.clear();
                scratch.text.extend(word.bytes().map(byte_char));
                if let Some(id) = vocab.id(&scratch.text) {
                    out.push(id);
                    return;
                }
            }
            for part in word.as_bytes().chunks(MAX_WORD_BYTES) {
                self.merge(part, &mut scratch);
                self.emit(vocab, &scratch.nodes, out);
            }
        });
    }

    /// Joins pairs in `scratch.nodes` until no merge applies.
    fn merge(&self, word: &[u8], scratch: &mut Scratch) {
        let Scratch { nodes, heap, queued, .. } = scratch;
        nodes.clear();
        heap.clear();
        let last = word.len().saturating_sub(1);
        nodes.extend((0_u32..).zip(word).map(|(at, byte)| Node {
            symbol: self.bytes[usize::from(*byte)],
            prev: at.checked_sub(1).unwrap_or(NONE),
            next: if at as usize == last { NONE } else { at + 1 },
        }));
        let mut queue = |heap: &mut BinaryHeap<_>, nodes: &[Node], left: u32| {
            let Some(node) = nodes.get(left as usize) else { return };
            let Some(right) = nodes.get(node.next as usize) else { return };
            let pair = (node.symbol, right.symbol);
            if let Some(merge) = self.merges.get(&pair) {
                heap.push(Reverse(Candidate { rank: merge.rank, left, pair }));
                *queued += 1;
            }
        };
        for left in (0_u32..).take(last) {
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

    fn emit(&self, vocab: &Vocab, nodes: &[Node], out: &mut Vec<u32>) {
        let mut at = 0;
        while let Some(node) = nodes.get(at as usize) {
            at = node.next;
            if node.symbol < self.vocab_size {
                out.push(node.symbol);
            } else if let Some(text) = self.extra.get((node.symbol - self.vocab_size) as usize) {
                // Not a token: its characters, those that are.
                let mut buffer = [0; 4];
                out.extend(text.chars().filter_map(|c| vocab.id(c.encode_utf8(&mut buffer))));
            }
        }
    }
}

/// Numbers for the texts in merges: the token id, else one past the vocabulary.
struct Symbols<'v> {
    vocab: &'v Vocab,
    added: HashMap<String, u32>,
    extra: Vec<String>,
}

impl Symbols<'_> {
    fn get(&mut self, text: &str) -> u32 {
        if let Some(id) = self.vocab.id(text).or_else(|| self.added.get(text).copied()) {
            return id;
        }
        // Three texts for each of fewer than 2^30 merges (the vocabulary checks) cannot wrap.
        let symbol = self.vocab.len() + self.extra.len() as u32;
        self.added.insert(text.to_owned(), symbol);
        self.extra.push(text.to_owned());
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
    use super::{super::vocab::tests::byte_level, *};

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
        let merges: Vec<String> = merges.iter().map(ToString::to_string).collect();
        let bpe = Bpe::new(&vocab, &merges, PreTokenizer::from_name("gpt-2").unwrap()).unwrap();
        (vocab, bpe)
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
        let (_, bpe) = bpe(&["a a", "aa aa", "aaaa aaaa", "a b", "ab ab"]);
        let word: Vec<u8> = (0..1_000_000_u32).map(|i| if i % 7 < 5 { b'a' } else { b'b' }).collect();
        for word in [word, vec![b'a'; 1_000_000]] {
            let mut scratch = Scratch::default();
            bpe.merge(&word, &mut scratch);
            assert!(scratch.queued <= 3 * word.len(), "{} candidates", scratch.queued);
            assert!(scratch.heap.is_empty());
        }
    }

    #[test]
    fn a_merge_without_two_sides_is_refused() {
        let vocab = byte_level(&[]);
        let pre = PreTokenizer::fallback();
        assert!(matches!(Bpe::new(&vocab, &["ab".into()], pre), Err(TokenizerError::Merge { rank: 0, .. })));
    }

    #[test]
    fn a_joined_text_outside_the_vocabulary_falls_back_to_its_characters() {
        let vocab = byte_level(&[]);
        let bpe = Bpe::new(&vocab, &["Ġ x".into()], PreTokenizer::from_name("gpt-2").unwrap()).unwrap();
        assert_eq!(texts(&vocab, &bpe, " x"), ["Ġ", "x"]);
    }
}
