//! Guesses from the text itself: what followed the last time that it went as it goes now.

use std::{collections::HashMap, mem};

/// Tokens that have to be alike: the longer run is believed first.
const LONG: usize = 4;
const SHORT: usize = 2;

/// Runs of a length that are remembered: two generations of so many, some 2 MB for each length at most. A text that is
/// longer forgets how it began.
const GENERATION: usize = 16 * 1024;

/// A text, and where its runs of tokens were seen last.
#[derive(Debug, Default)]
pub(super) struct Ngrams {
    text: Vec<u32>,
    long: Places<LONG>,
    short: Places<SHORT>,
    /// What followed the last run that was like the text's end.
    follows: Option<usize>,
}

/// The positions after runs of `N` tokens.
#[derive(Debug, Default)]
struct Places<const N: usize> {
    new: HashMap<[u32; N], usize>,
    old: HashMap<[u32; N], usize>,
}

impl<const N: usize> Places<N> {
    /// Remembers how `text` ends; the position after the same run before.
    fn seen(&mut self, text: &[u32]) -> Option<usize> {
        let run: [u32; N] = *text.last_chunk()?;
        let before = self.new.insert(run, text.len()).or_else(|| self.old.get(&run).copied());
        if self.new.len() >= GENERATION {
            self.old = mem::take(&mut self.new);
        }
        before
    }
}

impl Ngrams {
    pub(super) fn text(&self) -> &[u32] {
        &self.text
    }

    pub(super) fn push(&mut self, id: u32) {
        self.text.push(id);
        let (long, short) = (self.long.seen(&self.text), self.short.seen(&self.text));
        self.follows = long.or(short);
    }

    /// The next `n` tokens, if the text goes on as it did before. A run that reaches the text's end repeats itself.
    pub(super) fn guess(&self, n: usize) -> Vec<u32> {
        let Some(before) = self.follows.and_then(|at| self.text.get(at..)) else { return Vec::new() };
        before.iter().cycle().take(n).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &[u32]) -> Ngrams {
        let mut ngrams = Ngrams::default();
        text.iter().for_each(|id| ngrams.push(*id));
        ngrams
    }

    #[test]
    fn a_text_goes_on_as_it_did_before() {
        assert_eq!(after(&[1, 2, 3, 4, 5, 6, 9, 1, 2]).guess(3), [3, 4, 5]);
        assert_eq!(after(&[7, 7, 7]).guess(5), [7; 5], "a run repeats itself");
        assert_eq!(after(&[1, 2, 3, 1, 2, 3, 1, 2]).guess(7), [3, 1, 2, 3, 1, 2, 3]);
        assert!(after(&[1, 2, 3, 4]).guess(4).is_empty() && after(&[]).guess(1).is_empty());
        // The longer run is believed, however old.
        assert_eq!(after(&[1, 2, 3, 4, 50, 3, 4, 60, 1, 2, 3, 4]).guess(1), [50]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut ngrams = Ngrams::default();
        (0..100_000).for_each(|id| ngrams.push(id));
        assert!(ngrams.long.new.len() + ngrams.long.old.len() <= 2 * GENERATION);
        assert!(ngrams.short.new.len() + ngrams.short.old.len() <= 2 * GENERATION);
    }
}
