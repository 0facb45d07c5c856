//! Texts by their bytes, for walks that find every text a place begins with.

/// The longest text that is kept. SentencePiece makes pieces of 16 characters; a walk costs the length of the longest.
const MAX_LENGTH: usize = 512;

/// No token ends here.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    byte: u8,
    /// The token whose text ends here.
    token: u32,
    /// Children stand beside each other, in order of their bytes.
    first: u32,
    count: u16,
}

/// A trie over the bytes of texts.
#[derive(Debug)]
pub(super) struct Trie {
    /// The root first.
    nodes: Vec<Node>,
}

impl Trie {
    /// A trie of these texts; of two that are the same the first counts.
    pub fn new<'t>(texts: impl Iterator<Item = (&'t str, u32)>) -> Self {
        let mut texts: Vec<(&[u8], u32)> = texts
            .map(|(text, id)| (text.as_bytes(), id))
            .filter(|(text, _)| (1..=MAX_LENGTH).contains(&text.len()))
            .collect();
        // Stable, so that the first of two stays the first.
        texts.sort_by_key(|(text, _)| *text);
        texts.dedup_by_key(|(text, _)| *text);
        let mut nodes = vec![Node { byte: 0, token: NONE, first: 0, count: 0 }];
        // Nodes in the order in which they were made, and the texts below each.
        let mut below = vec![(0, texts.len())];
        let mut depths = vec![0_usize];
        let mut at = 0;
        while let (Some(&(mut start, end)), Some(&depth)) = (below.get(at), depths.get(at)) {
            if let Some((_, id)) = texts[start..end].first().filter(|(text, _)| text.len() == depth) {
                nodes[at].token = *id;
                start += 1;
            }
            // Fewer nodes than bytes of a vocabulary, which 32 bits count.
            nodes[at].first = nodes.len() as u32;
            while let Some(byte) = texts[start..end].first().map(|(text, _)| text[depth]) {
                let count = texts[start..end].partition_point(|(text, _)| text[depth] <= byte);
                nodes.push(Node { byte, token: NONE, first: 0, count: 0 });
                nodes[at].count += 1;
                below.push((start, start + count));
                depths.push(depth + 1);
                start += count;
            }
            at += 1;
        }
        Self { nodes }
    }

    /// Calls `found` with the length and the token of every text that `bytes` begins with, shortest first.
    pub fn prefixes(&self, bytes: &[u8], mut found: impl FnMut(usize, u32)) {
        let mut node = self.nodes[0];
        for (at, byte) in bytes.iter().enumerate() {
            let first = node.first as usize;
            let children = &self.nodes[first..first + usize::from(node.count)];
            let Ok(child) = children.binary_search_by_key(byte, |child| child.byte) else { return };
            node = children[child];
            if node.token != NONE {
                found(at + 1, node.token);
            }
        }
    }

    /// The longest text that `bytes` begins with: its length and its token.
    pub fn longest(&self, bytes: &[u8]) -> Option<(usize, u32)> {
        let mut longest = None;
        self.prefixes(bytes, |length, id| longest = Some((length, id)));
        longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_is_found() {
        let texts = ["abc", "a", "b", "ab", "é", "", "abd", "a"];
        let trie = Trie::new(texts.into_iter().zip(0..));
        let found = |text: &str| {
            let mut all = Vec::new();
            trie.prefixes(text.as_bytes(), |length, id| all.push((length, id)));
            all
        };
        assert_eq!(found("abcd"), [(1, 1), (2, 3), (3, 0)]);
        assert_eq!(found("abx"), [(1, 1), (2, 3)]);
        assert_eq!(found("éa"), [(2, 4)]);
        assert_eq!(found("x"), []);
        assert_eq!(found(""), []);
        assert_eq!(trie.longest(b"abd"), Some((3, 6)));
        assert_eq!(Trie::new(std::iter::empty()).longest(b"a"), None);
    }
}
