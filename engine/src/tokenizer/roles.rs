//! What tokens are by their names, where files say nothing or say it wrong: control tokens, the ends of a generation.
//!
//! Files name one end of sequence and perhaps one of turn, and models end with others as well. llama.cpp knows them by
//! their texts; the same are known here, with the same exceptions.

use std::collections::BTreeSet;

use super::vocab::{TokenType, Vocab};

/// Texts that end a generation, and are control tokens, in whatever vocabulary they are.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Texts of the tokens for filling in the middle of a text, of which a vocabulary has one each: before, after and
/// middle. They are control tokens.
const MIDDLE: [&[&str]; 3] = [
    &[
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ],
    &[
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ],
    &[
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ],
];

/// As [`MIDDLE`]: padding, name of a repository, start of a file. These also end a generation.
const MIDDLE_ENDS: [&[&str]; 3] = [
    &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
    &["<|file_sep|>"],
];

/// Parts of the answer in gpt-oss, for its reader to tell apart.
const SHOWN: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// The ids that end a generation where a file's types are to be trusted: those that it names, and the well-known ones
/// that are special tokens in it.
pub(super) fn ends(vocab: &Vocab, names: &[Option<u32>]) -> Vec<u32> {
    let special = |id: &u32| matches!(vocab.kind(*id), Some(TokenType::Control | TokenType::UserDefined));
    let middle = MIDDLE_ENDS.iter().copied().flatten();
    let known = ENDS.iter().chain(middle).filter_map(|text| vocab.id(text)).filter(special);
    let mut ends: BTreeSet<u32> = known.chain(names.iter().flatten().copied()).collect();
    ends.retain(|id| *id < vocab.len());
    if let Some(part) = part_end(vocab, &ends) {
        ends.remove(&part);
    }
    ends.into_iter().collect()
}

/// Where an answer has parts, `<|end|>` ends a part.
fn part_end(vocab: &Vocab, ends: &BTreeSet<u32>) -> Option<u32> {
    let end = |text: &str| vocab.id(text).filter(|id| ends.contains(id));
    let calls = end("<|call|>").or(end("<|calls|>")).is_some();
    let parts = calls && end("<|return|>").or(end("<|flush|>")).is_some();
    end("<|end|>").filter(|_| parts)
}

/// Gives tokens of well-known texts their types, and gathers the ids that end a generation: the well-known ones and
/// those that the file `names`.
pub(super) fn assign(vocab: &mut Vocab, names: &[Option<u32>]) -> Vec<u32> {
    let first = |vocab: &Vocab, texts: &[&str]| texts.iter().find_map(|text| vocab.id(text));
    let mut ends: BTreeSet<u32> = names.iter().flatten().copied().filter(|id| *id < vocab.len()).collect();
    for texts in MIDDLE {
        first(vocab, texts).into_iter().for_each(|id| vocab.set_kind(id, TokenType::Control));
    }
    let middle = MIDDLE_ENDS.iter().filter_map(|texts| first(vocab, texts));
    let known: Vec<u32> = middle.chain(ENDS.iter().filter_map(|text| vocab.id(text))).collect();
    for id in known {
        vocab.set_kind(id, TokenType::Control);
        ends.insert(id);
    }
    for id in SHOWN.iter().filter_map(|text| vocab.id(text)).collect::<Vec<_>>() {
        vocab.set_kind(id, TokenType::UserDefined);
    }
    // Gemma 4 and PLaMo have an `</s>` that is text.
    let end = |text: &str| vocab.id(text).filter(|id| ends.contains(id));
    let marked = end("<|tool_response>").or(end("<|plamo:eos|>")).is_some();
    let plain = end("</s>").filter(|_| marked);
    let part_end = part_end(vocab, &ends);
    for (id, kind) in [(part_end, TokenType::UserDefined), (plain, TokenType::Normal)] {
        if let Some(id) = id {
            vocab.set_kind(id, kind);
            ends.remove(&id);
        }
    }
    ends.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::{super::TokenizerData, super::vocab::Spelling, *};

    fn vocab(texts: &[&str]) -> Vocab {
        let tokens = texts.iter().map(ToString::to_string).collect();
        Vocab::new(&TokenizerData { tokens, ..TokenizerData::default() }, Spelling::ByteLevel).unwrap()
    }

    #[test]
    fn well_known_texts_are_control_tokens_and_end_a_generation() {
        let mut vocab = vocab(&["a", "<|im_end|>", "<fim_prefix>", "<|fim_prefix|>", "<|file_sep|>", "x"]);
        assert_eq!(assign(&mut vocab, &[Some(5), Some(9), None]), [1, 4, 5]);
        let control: Vec<u32> = vocab.of_kind(TokenType::Control).collect();
        assert_eq!(control, [1, 3, 4], "one token before the middle, the first known");
    }

    #[test]
    fn the_end_of_a_part_ends_nothing() {
        let mut vocab = vocab(&["<|end|>", "<|return|>", "<|call|>", "<|channel|>"]);
        assert_eq!(assign(&mut vocab, &[]), [1, 2]);
        assert_eq!(vocab.kind(0), Some(TokenType::UserDefined));
        assert_eq!(vocab.kind(3), Some(TokenType::UserDefined));
    }

    #[test]
    fn an_end_of_sequence_may_be_text() {
        let mut vocab = vocab(&["</s>", "<|tool_response>", "<turn|>"]);
        assert_eq!(assign(&mut vocab, &[]), [1, 2]);
        assert_eq!(vocab.kind(0), Some(TokenType::Normal));
    }
}
