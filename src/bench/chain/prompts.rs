//! Texts of a given number of tokens, and no meaning.

use std::collections::BTreeSet;

use quelea_engine::{Gguf, tokenizer::Tokenizer};

use crate::inference::{InferError, models::unusable};

/// Words that are added before tokens are counted again.
const STEP: usize = 4;

pub(super) struct Prompts {
    tokenizer: Tokenizer,
    state: u64,
}

impl Prompts {
    pub(super) fn new(gguf: &Gguf, file: &str) -> Result<Self, InferError> {
        let tokenizer = Tokenizer::from_gguf(gguf).map_err(|e| unusable(file, &e))?;
        Ok(Self { tokenizer, state: rand::random() })
    }

    /// A text of at least `tokens` tokens, and a few more: another each time, from its first word on.
    pub(super) fn of(&mut self, tokens: usize) -> String {
        let mut text = self.word();
        while self.count(&text) < tokens {
            for _ in 0..STEP {
                text.push(' ');
                text += &self.word();
            }
        }
        text
    }

    /// One sentence again and again.
    pub(super) fn repeating(&mut self, tokens: usize) -> String {
        let sentence = self.of(STEP);
        let mut text = sentence.clone();
        while self.count(&text) < tokens {
            text.push(' ');
            text += &sentence;
        }
        text
    }

    /// Some tokens of words, each once.
    pub(super) fn few(&mut self, tokens: usize) -> Vec<u32> {
        let text = self.of(tokens.saturating_mul(STEP));
        // Not the one that a text begins with.
        let all: BTreeSet<u32> = self.tokenizer.encode_input(&text).into_iter().skip(1).collect();
        all.into_iter().take(tokens).collect()
    }

    fn count(&self, text: &str) -> usize {
        self.tokenizer.encode_input(text).len()
    }

    fn word(&mut self) -> String {
        let mut letter = || {
            self.state = self.state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            char::from(b'a' + u8::try_from((self.state >> 33) % 26).unwrap_or_default())
        };
        (0..6).map(|_| letter()).collect()
    }
}
