//! The two ways of cutting text into words: by a family's name, and by the expressions that a file publishes.

use super::{hf::split::Splits, pretokenize::PreTokenizer};

/// How text is cut into words before merging.
#[derive(Debug)]
pub(super) enum Words {
    /// As llama.cpp does for the family's name.
    Named(PreTokenizer),
    /// As `tokenizer.json` says.
    Published(Splits),
}

impl Words {
    /// Calls `word` with each word of `text` in order; `start`: it begins the input.
    pub fn split(&self, text: &str, start: bool, word: &mut dyn FnMut(&str)) {
        match self {
            Self::Named(pre) => pre.split(text, word),
            Self::Published(splits) => splits.split(text, start, word),
        }
    }
}
