//! Guessing several tokens and verifying them in one pass.
//!
//! A pass over one row costs almost as much as one over a few: the weights are read once, and over a chain the way is
//! paid once. So the rows of some guessed tokens are sent along with the last one, logits come back for all of them, and
//! each position draws its own token from its own logits, as ever. Where the guess is that token, the next position's
//! logits are right, too; else they are thrown away, and the next pass takes its rows back. Draws are counted, not made
//! in a row, so the answer is the same token for token, greedy or not.

mod draft;
mod ngrams;
mod pace;

use std::time::Duration;

pub(crate) use self::draft::{Draft, same_vocabulary};
use self::{ngrams::Ngrams, pace::Pace};
use super::{
    sampling::Picker,
    types::{InferError, Speculate, Speculation},
};

/// The most tokens that are guessed at once. With the last token they are eight rows, which every stage still treats as
/// a step of an answer and not as a piece of a prompt.
pub(crate) const MAX_GUESSES: usize = 7;

/// Who made the last guesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Text,
    Draft,
}

/// The guesses of one request.
pub(crate) struct Speculator {
    mode: Speculate,
    ngrams: Ngrams,
    draft: Option<Draft>,
    by_text: Pace,
    by_draft: Pace,
    last: Source,
    pub(super) done: Speculation,
}

impl Speculator {
    pub(crate) fn new(mode: Speculate, draft: Option<Draft>, prompt: &[u32]) -> Self {
        let mut ngrams = Ngrams::default();
        if mode != Speculate::Off {
            prompt.iter().for_each(|id| ngrams.push(*id));
        }
        let (by_text, by_draft) = (Pace::default(), Pace::default());
        Self { mode, ngrams, draft, by_text, by_draft, last: Source::Text, done: Speculation::default() }
    }

    /// The answer has one more token.
    pub(super) fn push(&mut self, id: u32) {
        if self.mode != Speculate::Off {
            self.ngrams.push(id);
        }
    }

    /// Tokens that may come next, `most` at most. `picker` draws the token after the last one.
    pub(super) async fn guess(&mut self, most: usize, picker: &Picker) -> Vec<u32> {
        let most = most.min(MAX_GUESSES);
        let by_text = !self.ngrams.guess(1).is_empty();
        self.last = if by_text || self.draft.is_none() { Source::Text } else { Source::Draft };
        if most == 0 || (by_text, self.last) == (false, Source::Text) {
            return Vec::new();
        }
        let n = match self.mode {
            Speculate::Off => 0,
            Speculate::Auto => self.pace().guesses(most),
            Speculate::Tokens(n) => most.min(usize::from(n)),
        };
        let Some(draft) = self.draft.as_mut().filter(|_| self.last == Source::Draft) else {
            return self.ngrams.guess(n);
        };
        draft.guess(self.ngrams.text(), n, picker).await.unwrap_or_else(|error: InferError| {
            tracing::debug!(%error, "the draft is given up");
            self.draft = None;
            Vec::new()
        })
    }

    fn pace(&mut self) -> &mut Pace {
        match self.last {
            Source::Text => &mut self.by_text,
            Source::Draft => &mut self.by_draft,
        }
    }

    /// A pass of the last token and so many guesses, and making those, took this long.
    pub(super) fn ran(&mut self, guesses: usize, time: Duration) {
        self.done.passes += 1;
        if guesses == 0 {
            self.by_text.ran(1, time);
            self.by_draft.ran(1, time);
        } else {
            self.pace().ran(1 + guesses, time);
        }
    }

    /// Of so many guesses the first `right` were right.
    pub(super) fn judged(&mut self, guesses: usize, right: usize) {
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        self.done.proposed += count(guesses);
        self.done.accepted += count(right);
        self.pace().judged(guesses, right);
    }
}
