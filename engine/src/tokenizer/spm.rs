//! SentencePiece-style encoding: characters are joined to the piece of highest score, leftmost first.
//!
//! Spaces are written `▁`. What no piece covers becomes byte tokens (`<0x0A>`), or the unknown token where the
//! vocabulary has none. As in [`super::bpe`], a heap over a linked list keeps the work at O(n log n).

use std::{cmp::Ordering, collections::BinaryHeap};

use super::vocab::Vocab;

/// How SentencePiece writes a space.
pub(super) const SPACE: &str = "\u{2581}";

/// A stretch of the text in the linked list; empty once it was joined to the one before.
#[derive(Clone, Copy, Debug)]
struct Node {
    start: usize,
    end: usize,
    prev: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that make a piece; stale once either has changed, which their length shows.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    length: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// Appends the token ids of `text`, in which no special token is left and spaces are `▁` already.
pub(super) fn encode(vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
    let mut nodes: Vec<Node> = text
        .char_indices()
        .enumerate()
        .map(|(at, (start, c))| {
            let end = start + c.len_utf8();
            Node { start, end, prev: at.checked_sub(1), next: (end < text.len()).then_some(at + 1) }
        })
        .collect();
    let mut heap = BinaryHeap::new();
    for left in 0..nodes.len() {
        queue(vocab, text, &nodes, &mut heap, Some(left));
    }
    while let Some(Candidate { left, right, length, .. }) = heap.pop() {
        let (a, b) = (nodes[left], nodes[right]);
        if a.start == a.end || b.start == b.end || b.end - a.start != length {
            continue;
        }
        nodes[left] = Node { end: b.end, next: b.next, ..a };
        nodes[right].end = b.start;
        if let Some(after) = b.next {
            nodes[after].prev = Some(left);
        }
        queue(vocab, text, &nodes, &mut heap, a.prev);
        queue(vocab, text, &nodes, &mut heap, Some(left));
    }
    let mut at = (!nodes.is_empty()).then_some(0);
    while let Some(node) = at.map(|at| nodes[at]) {
        at = node.next;
        let piece = &text[node.start..node.end];
        match vocab.id(piece) {
            Some(id) => out.push(id),
            None => out.extend(piece.bytes().filter_map(|byte| vocab.byte_token(byte).or(vocab.unknown()))),
        }
    }
}

fn queue(vocab: &Vocab, text: &str, nodes: &[Node], heap: &mut BinaryHeap<Candidate>, left: Option<usize>) {
    let Some(left) = left else { return };
    let Some(right) = nodes[left].next else { return };
    let (start, end) = (nodes[left].start, nodes[right].end);
    // No piece is longer, and looking a long text up costs its length.
    if end - start > vocab.longest() {
        return;
    }
    if let Some(id) = vocab.id(&text[start..end]) {
        heap.push(Candidate { score: vocab.score(id), left, right, length: end - start });
    }
}
