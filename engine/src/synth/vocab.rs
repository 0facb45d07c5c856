//! Vocabularies of any size that are valid and mean nothing: every string of small letters up to some length.

use super::shapes::Spelling;
use crate::gguf::write::Writer;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// Names of the special tokens of the byte-level vocabularies: beginning (and padding), end of a turn.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Tokens that every SentencePiece vocabulary begins with.
const PIECES: [(&str, i32); 3] = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)];

/// The fewest tokens that a vocabulary of either spelling has.
pub(super) const MIN_VOCAB: usize = 512;

/// Strings of small letters: "a" … "z", "aa" … "zz", "aaa" …; each after the first 26 is an earlier one and a letter.
fn words() -> impl Iterator<Item = String> {
    (1usize..).map(|mut n| {
        // Counting in base 26 with the digits 1 to 26.
        let mut letters = Vec::new();
        while n > 0 {
            n -= 1;
            letters.push(char::from(b'a' + (n % 26) as u8));
            n /= 26;
        }
        letters.into_iter().rev().collect()
    })
}

/// Writes the `tokenizer.*` keys of a vocabulary of exactly `size` tokens, at least [`MIN_VOCAB`].
pub(super) fn write(writer: &mut Writer, spelling: Spelling, size: usize) {
    let (mut tokens, mut types): (Vec<String>, Vec<i32>) = (Vec::with_capacity(size), Vec::with_capacity(size));
    let id = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    match spelling {
        Spelling::Pieces => {
            for (text, ty) in PIECES {
                tokens.push(text.to_owned());
                types.push(ty);
            }
            for byte in 0..=255u8 {
                tokens.push(format!("<0x{byte:02X}>"));
                types.push(BYTE);
            }
            tokens.push("\u{2581}".to_owned());
            tokens.extend(words().take(size.saturating_sub(tokens.len())));
            types.resize(tokens.len(), NORMAL);
            // Longer pieces come later and merge later.
            let scores: Vec<f32> = (0..tokens.len()).map(|at| if at < 259 { 0.0 } else { -(at as f32) }).collect();
            writer.set("tokenizer.ggml.model", "llama").set("tokenizer.ggml.pre", "default");
            writer.set("tokenizer.ggml.scores", scores.as_slice());
            writer.set("tokenizer.ggml.bos_token_id", 1u32).set("tokenizer.ggml.eos_token_id", 2u32);
            writer.set("tokenizer.ggml.unknown_token_id", 0u32).set("tokenizer.ggml.add_bos_token", true);
        }
        Spelling::Bytes(pre) => {
            let special = size.saturating_sub(SPECIAL.len());
            tokens.extend((0..=255).map(|byte| byte_char(byte).to_string()));
            let mut merges = Vec::new();
            // The single letters are there already, as bytes.
            for word in words().skip(26).take(special.saturating_sub(tokens.len())) {
                let (head, letter) = word.split_at(word.len().saturating_sub(1));
                merges.push(format!("{head} {letter}"));
                tokens.push(word);
            }
            types.resize(tokens.len(), NORMAL);
            for text in SPECIAL {
                tokens.push(text.to_owned());
                types.push(CONTROL);
            }
            writer.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", pre);
            writer.set("tokenizer.ggml.merges", merges.as_slice());
            writer.set("tokenizer.ggml.bos_token_id", id(special));
            writer.set("tokenizer.ggml.eos_token_id", id(special.saturating_add(2)));
            writer.set("tokenizer.ggml.padding_token_id", id(special)).set("tokenizer.ggml.add_bos_token", false);
        }
    }
    writer.set("tokenizer.ggml.tokens", tokens.as_slice()).set("tokenizer.ggml.token_type", types.as_slice());
}

/// The character that stands for a byte in byte-level vocabularies: itself where it can be seen, else one from U+0100.
fn byte_char(byte: u8) -> char {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return char::from(byte);
    }
    let hidden_before = (0..byte).filter(|b| !visible(*b)).count();
    u32::try_from(hidden_before).ok().and_then(|n| char::from_u32(n.saturating_add(256))).unwrap_or(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_counted_in_letters() {
        let words: Vec<String> = words().take(30_000).collect();
        assert_eq!((&*words[0], &*words[25], &*words[26], &*words[27]), ("a", "z", "aa", "ab"));
        assert_eq!((&*words[701], &*words[702], &*words[18_277], &*words[18_278]), ("zz", "aaa", "zzz", "aaaa"));
        let known: std::collections::HashSet<&str> = words.iter().map(String::as_str).collect();
        assert!(words[26..].iter().all(|word| known.contains(&word[..word.len() - 1])));
    }

    #[test]
    fn bytes_have_their_characters() {
        assert_eq!([0, b' ', b'a', 0x7f, 0xad, 0xff].map(byte_char), ['\u{100}', 'Ġ', 'a', '\u{121}', '\u{143}', 'ÿ']);
    }
}
