//! A published tokenizer at work: added tokens in the text as it came, normalizers, added tokens in what these gave,
//! pre-tokenizers, the model.

use super::{Added, normalize::Normalizer, split::Splits};
use crate::tokenizer::{
    Special,
    bpe::Bpe,
    special::{Fragment, Matcher, Precedence, Strip},
    unigram::Unigram,
    vocab::Vocab,
};

#[derive(Debug)]
pub(super) enum Coder {
    Bpe(Bpe),
    Unigram {
        unigram: Unigram,
        splits: Splits,
        /// What is no piece becomes the tokens of its bytes, where there are all of them.
        byte_tokens: bool,
    },
}

/// How a `tokenizer.json` encodes the stretches between the added tokens that are found in the text as it came.
#[derive(Debug)]
pub(in crate::tokenizer) struct Published {
    coder: Coder,
    normalizer: Normalizer,
    /// What pre-tokenizers change before they cut.
    before: Normalizer,
    /// Added tokens to be found in normalized text: those that are not special, and all. None where there are none.
    normalized: Option<(Matcher, Matcher)>,
}

impl Published {
    pub(super) fn new(coder: Coder, normalizer: Normalizer, before: Normalizer, added: &[Added]) -> Self {
        let contents = |token: &Added| normalizer.apply(&token.content, true);
        let late = |special: bool| matcher(added, |token| token.late() && (special || !token.special), contents);
        let normalized = added.iter().any(Added::late).then(|| (late(false), late(true)));
        Self { coder, normalizer, before, normalized }
    }

    /// The added tokens that are found in the text as it came.
    pub(super) fn raw(added: &[Added]) -> Special {
        let raw = |special: bool| {
            matcher(added, |token| !token.late() && (special || !token.special), |token| token.content.clone())
        };
        Special::Given { user_defined: Box::new(raw(false)), all: Box::new(raw(true)) }
    }

    /// Whether a space is put before a text, which decoding takes away again.
    pub fn leads(&self) -> bool {
        let words = matches!(&self.coder, Coder::Unigram { splits, .. } if splits.leads());
        words || self.normalizer.leads() || self.before.leads()
    }

    /// Appends the token ids of `text`; `start`: it begins the input.
    pub fn encode(&self, vocab: &Vocab, text: &str, start: bool, parse_special: bool, out: &mut Vec<u32>) {
        let start = start && self.normalizer.keeps_start(text);
        let text = self.normalizer.apply(text, start);
        // Nothing is put before nothing.
        if text.is_empty() {
            return;
        }
        let Some((user_defined, all)) = &self.normalized else {
            return self.words(vocab, &self.before.apply(&text, start), start, out);
        };
        let fragments = if parse_special { all.split(&text) } else { user_defined.split(&text) };
        for (at, fragment) in fragments.into_iter().enumerate() {
            match fragment {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(text) => {
                    let start = start && at == 0;
                    self.words(vocab, &self.before.apply(text, start), start, out);
                }
            }
        }
    }

    fn words(&self, vocab: &Vocab, text: &str, start: bool, out: &mut Vec<u32>) {
        let (unigram, splits, byte_tokens) = match &self.coder {
            Coder::Bpe(bpe) => return bpe.encode_from(vocab, text, start, out),
            Coder::Unigram { unigram, splits, byte_tokens } => (unigram, splits, *byte_tokens),
        };
        splits.split(text, start, &mut |word| {
            for (piece, at) in unigram.cut(word.as_bytes()) {
                let text = word.get(at).unwrap_or_default();
                let bytes = || text.bytes().map(|byte| vocab.byte_token(byte)).collect::<Option<Vec<u32>>>();
                match piece.or_else(|| vocab.id(text)) {
                    Some(id) => out.push(id),
                    None => match byte_tokens.then(bytes).flatten() {
                        Some(bytes) => out.extend(bytes),
                        None => out.extend(vocab.unknown()),
                    },
                }
            }
        });
    }
}

impl Added {
    /// Found in normalized text, not in the text as it came.
    fn late(&self) -> bool {
        self.normalized.unwrap_or(!self.special)
    }
}

fn matcher(added: &[Added], wanted: impl Fn(&Added) -> bool, content: impl Fn(&Added) -> String) -> Matcher {
    let wanted: Vec<&Added> = added.iter().filter(|token| wanted(token)).collect();
    let ids = |has: fn(&Added) -> bool| wanted.iter().filter(|token| has(token)).map(|token| token.id).collect();
    let strip = Strip {
        left: ids(|token| token.lstrip),
        right: ids(|token| token.rstrip),
        whole: ids(|token| token.single_word),
        unicode: true,
    };
    let texts: Vec<(String, u32)> = wanted.iter().map(|token| (content(token), token.id)).collect();
    Matcher::of(texts.iter().map(|(text, id)| (text.as_str(), *id)), Precedence::Leftmost, strip)
}
