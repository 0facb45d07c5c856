//! Tokenizers against llama.cpp: real vocabularies with llama.cpp's own vectors, and the prompts of the model fixtures.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "helpers of tests fail loudly, as tests do")]

use std::path::PathBuf;

use proptest::prelude::*;
use quelea_engine::{
    Gguf,
    tokenizer::{EncodeOptions, TokenType, Tokenizer, TokenizerData, TokenizerError},
};

/// As llama.cpp's tests encode: no BOS, special tokens are text.
const PLAIN: EncodeOptions = EncodeOptions { parse_special: false, add_bos: false };
const SPECIAL: EncodeOptions = EncodeOptions { parse_special: true, add_bos: false };

/// Stands after each input of llama.cpp's vectors.
const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

/// A folder of the shared fixtures, unless it is not there.
fn fixtures(folder: &str) -> Option<PathBuf> {
    let root = std::env::var_os("QUELEA_FIXTURES")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures")), PathBuf::from);
    let path = root.join(folder);
    if path.is_dir() {
        return Some(path);
    }
    println!("skipped: no fixtures at {}", path.display());
    None
}

fn vocabulary(name: &str) -> Option<Tokenizer> {
    let path = fixtures("tokenizers")?.join(format!("ggml-vocab-{name}.gguf"));
    Some(Tokenizer::from_gguf(&Gguf::open(path).unwrap()).unwrap())
}

#[test]
fn all_ids_of_all_vocabularies_match() {
    let Some(folder) = fixtures("tokenizers") else { return };
    let mut compared = 0;
    for name in ["gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2"] {
        let tokenizer = vocabulary(name).unwrap();
        let read = |end: &str| std::fs::read_to_string(folder.join(format!("ggml-vocab-{name}.gguf.{end}"))).unwrap();
        let (inputs, outputs) = (read("inp"), read("out"));
        let inputs: Vec<&str> = inputs.strip_suffix(SEPARATOR).unwrap().split(SEPARATOR).collect();
        let outputs: Vec<&str> = outputs.lines().collect();
        assert_eq!(inputs.len(), outputs.len(), "{name}");
        for (input, output) in inputs.into_iter().zip(outputs) {
            let expected: Vec<u32> = output.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode(input, PLAIN), expected, "{name}: {input:?}");
            assert_eq!(tokenizer.decode(&expected), input, "{name}: {expected:?}");
            compared += 1;
        }
    }
    assert!(compared > 200, "only {compared} inputs");
}

/// A text and what llama.cpp makes of it: as text, with special tokens parsed, and as a whole input.
#[derive(serde::Deserialize)]
struct Case {
    text: String,
    plain: Vec<u32>,
    special: Vec<u32>,
    input: Vec<u32>,
}

/// Every `X.json` of a folder against `X.gguf` beside it; how many texts there were.
fn all_ids_of(folder: &std::path::Path) -> usize {
    let (mut compared, mut wrong) = (0, Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let gguf = path.with_extension("gguf");
        if path.extension().is_none_or(|extension| extension != "json") || !gguf.is_file() {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(gguf).unwrap()).unwrap();
        let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for Case { text, plain, special, input } in &cases {
            let found = [tokenizer.encode(text, PLAIN), tokenizer.encode(text, SPECIAL), tokenizer.encode_input(text)];
            for ((found, expected), what) in found.iter().zip([plain, special, input]).zip(["text", "special", "input"])
            {
                if found != expected {
                    wrong.push(format!("{name}, {what}, {text:?}\n  expected {expected:?}\n  found    {found:?}"));
                }
            }
        }
        compared += cases.len();
        println!("{name}: {} texts", cases.len());
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
    compared
}

/// Unigram, WordPiece and merges over characters: `tests/data/tokenizers/vocabularies.py` made them.
#[test]
fn all_ids_of_the_small_vocabularies_match() {
    let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tokenizers"));
    assert!(all_ids_of(folder) > 60);
}

/// The same for other vocabularies, where `QUELEA_VOCABULARIES` names a folder with files as that script writes them.
#[test]
fn all_ids_of_a_folder_match() {
    let Some(folder) = std::env::var_os("QUELEA_VOCABULARIES").map(PathBuf::from) else { return };
    assert!(all_ids_of(&folder) > 0);
}

#[test]
fn all_prompts_of_the_model_fixtures_match() {
    let Some(folder) = fixtures("models") else { return };
    let mut compared = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Some(stem) = path.to_str().unwrap().strip_suffix(".ref.json") else { continue };
        let reference: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(format!("{stem}.gguf")).unwrap()).unwrap();
        for prompt in reference["cases"].as_array().unwrap() {
            let text = prompt["prompt"].as_str().unwrap();
            let expected: Vec<u32> = serde_json::from_value(prompt["prompt_ids"].clone()).unwrap();
            assert_eq!(tokenizer.encode_input(text), expected, "{stem}: {text:?}");
            compared += 1;
        }
    }
    assert!(compared > 0);
}

#[test]
fn settings_follow_the_file_and_the_family() {
    for (name, add_bos, eos, ends) in [
        ("gpt-2", false, 50256, vec![50256]),
        ("llama-bpe", true, 128_001, vec![128_001, 128_009]),
        ("llama-spm", true, 2, vec![2]),
        ("phi-3", true, 32000, vec![2, 32000, 32007]),
        // `</s>` ends a generation wherever it is a token, as in llama.cpp.
        ("qwen2", false, 151_643, vec![128_247, 151_643, 151_645]),
    ] {
        let Some(tokenizer) = vocabulary(name) else { return };
        assert_eq!(tokenizer.defaults(), EncodeOptions { parse_special: true, add_bos }, "{name}");
        assert_eq!(tokenizer.eos(), Some(eos), "{name}");
        assert_eq!(tokenizer.eos_ids(), ends, "{name}");
    }
}

#[test]
fn special_tokens_are_parsed_only_when_asked() {
    let Some(tokenizer) = vocabulary("qwen2") else { return };
    let text = "<|im_start|>user\nHi<|im_end|>";
    let (start, end) = (tokenizer.token_id("<|im_start|>").unwrap(), tokenizer.token_id("<|im_end|>").unwrap());
    let parsed = tokenizer.encode(text, SPECIAL);
    assert_eq!((parsed.first(), parsed.last()), (Some(&start), Some(&end)));
    assert_eq!(tokenizer.decode(&parsed), "user\nHi", "control tokens are not shown");
    let plain = tokenizer.encode(text, PLAIN);
    assert!(!plain.contains(&start) && !plain.contains(&end));
    assert_eq!(tokenizer.decode(&plain), text);
    assert_eq!(tokenizer.piece(start), Some("<|im_start|>"));
    assert_eq!(tokenizer.token_type(start), Some(TokenType::Control));
    assert_eq!((tokenizer.piece(u32::MAX), tokenizer.vocab_size()), (None, 151_936));
}

#[test]
fn bos_is_added_once() {
    let Some(tokenizer) = vocabulary("llama-bpe") else { return };
    let bos = tokenizer.bos().unwrap();
    assert_eq!(tokenizer.encode_input("x")[0], bos);
    let count = |text: &str| tokenizer.encode_chat(text).iter().filter(|id| **id == bos).count();
    assert_eq!(count("<|begin_of_text|>Hi"), 1);
    assert_eq!(count("Hi"), 1);
}

#[test]
fn sentencepiece_puts_one_space_before_text_and_takes_it_away() {
    let Some(tokenizer) = vocabulary("llama-spm") else { return };
    let ids = tokenizer.encode("Hello</s>Hello", SPECIAL);
    let hello = tokenizer.token_id("▁Hello").unwrap();
    assert_eq!(ids, [hello, 2, hello]);
    assert_eq!(tokenizer.decode(&[hello]), "Hello");
    // A generation continues a text: there the space belongs to it.
    assert_eq!(tokenizer.decoder().push(hello), " Hello");
    // U+1F999 is no token: its four bytes are.
    let ids = tokenizer.encode("🦙", PLAIN);
    let mut decoder = tokenizer.decoder();
    let parts: Vec<String> = ids.iter().map(|id| decoder.push(*id)).collect();
    assert_eq!(parts, [" ", "", "", "", "🦙"]);
}

#[test]
fn broken_vocabularies_are_refused() {
    let data = |model: &str, tokens: &[&str], merges: &[&str]| TokenizerData {
        model: model.to_owned(),
        tokens: tokens.iter().map(ToString::to_string).collect(),
        merges: merges.iter().map(ToString::to_string).collect(),
        ..TokenizerData::default()
    };
    let refused = |data: TokenizerData| Tokenizer::new(&data).unwrap_err();
    assert!(matches!(refused(data("rwkv", &["a"], &[])), TokenizerError::UnsupportedModel { .. }));
    assert!(matches!(refused(data("gpt2", &[], &[])), TokenizerError::Size { .. }));
    assert!(matches!(refused(data("gpt2", &["a"], &["ab"])), TokenizerError::Merge { .. }));
    // Ids outside the vocabulary are as good as none.
    let odd = TokenizerData { bos: Some(9), eos: Some(9), add_bos: Some(true), ..data("llama", &["a"], &[]) };
    let tokenizer = Tokenizer::new(&odd).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos_ids()), (None, &[][..]));
    assert_eq!(
        tokenizer.encode_input("a"),
        [0; 4],
        "`▁` is no token: each of its bytes is unknown, SentencePiece's first token"
    );
    let unknown = TokenizerData { pre: Some("no-such".to_owned()), ..data("gpt2", &["a"], &[]) };
    let message = refused(unknown).to_string();
    assert!(message.contains("'no-such'") && message.contains("llama-bpe, "), "{message}");
}

/// What a hostile file may hold that others would trip over: the tokenizer stands, and works on the rest.
#[test]
fn odd_vocabularies_are_made_the_best_of() {
    let strings = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let odd = TokenizerData {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens: strings(&["a", "a", "", "b", "ab", "<x>"]),
        types: vec![1, 1, -7, 1, 99, i32::MAX],
        merges: strings(&["a b", "a b", "no where", "a ", "b é"]),
        eos: Some(u32::MAX),
        ends: vec![3, 77],
        ..TokenizerData::default()
    };
    let tokenizer = Tokenizer::new(&odd).unwrap();
    assert_eq!(tokenizer.encode("aab<x>", SPECIAL), [0, 4], "the first of two; bytes without a token are left out");
    assert_eq!(tokenizer.eos_ids(), [3]);
    assert_eq!(tokenizer.decode(&[0, 1, 2, 3, 4, 5, 6]), "aab", "what has no known type has no text");
    let cycle = TokenizerData { merges: strings(&["ab a", "a ab", "ab ab"]), ..odd };
    assert_eq!(Tokenizer::new(&cycle).unwrap().encode("abab", PLAIN), [0, 3, 0, 3]);
}

/// Texts of one character: nothing takes the square of their length.
#[test]
fn long_texts_of_one_character_end() {
    let tokens = ["<unk>", "▁", "a", "aa", "aaaa", "▁a"].map(str::to_owned).to_vec();
    let scores = vec![0.0, -1.0, -2.0, -3.0, -4.0, -5.0];
    let model = "llama".to_owned();
    let pieces = TokenizerData { model, tokens, scores, ..TokenizerData::default() };
    for tokenizer in [Tokenizer::new(&pieces).unwrap(), small("qwen2"), small("gpt-4o"), small("default")] {
        for c in ["a", " ", "1", "!", "<", "é"] {
            assert!(!tokenizer.encode(&c.repeat(1_000_000), SPECIAL).is_empty());
        }
    }
}

/// A small byte-level vocabulary with a few merges, so that the properties need no fixtures.
fn small(pre: &str) -> Tokenizer {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let mut tokens: Vec<String> = Vec::new();
    for byte in 0..=u8::MAX {
        let code = if printable(byte) { u32::from(byte) } else { next };
        next += u32::from(!printable(byte));
        tokens.push(char::from_u32(code).unwrap().to_string());
    }
    let merges = ["Ġ t", "h e", "Ġt he", "i n", "Ġ Ġ", "ĠĠ ĠĠ", "Ã ©", "1 2", "12 3", "a a", "aa aa"];
    tokens.extend(merges.iter().map(|merge| merge.replacen(' ', "", 1)));
    tokens.extend(["<|end|>".to_owned(), "<user>".to_owned()]);
    let mut types = vec![1; tokens.len()];
    let count = types.len();
    types[count - 2] = 3;
    types[count - 1] = 4;
    Tokenizer::new(&TokenizerData {
        model: "gpt2".to_owned(),
        pre: Some(pre.to_owned()),
        tokens,
        types,
        merges: merges.iter().map(ToString::to_string).collect(),
        ..TokenizerData::default()
    })
    .unwrap()
}

/// Arbitrary text, and text made of what the scanners look for.
fn text() -> impl Strategy<Value = String> {
    let parts = prop::sample::select(vec![
        " ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "'", "the", "in", "aaaa", "1", "123", "２", "é", "e\u{301}",
        "中文", "🦙", ".", "!?", "=", "<|end|>", "<user>", "<", "ABC", "éABC", "\u{a0}", "\u{3000}", "\0", "\u{fffd}",
        "_",
    ]);
    prop_oneof![any::<String>(), prop::collection::vec(parts, 0..24).prop_map(|parts| parts.concat())]
}

const PRES: [&str; 8] = ["default", "gpt-2", "llama-bpe", "qwen2", "qwen35", "smollm", "tekken", "deepseek-v3"];

proptest! {
    #[test]
    fn prop_byte_level_text_comes_back(text in text()) {
        for pre in PRES {
            let tokenizer = small(pre);
            let ids = tokenizer.encode(&text, PLAIN);
            prop_assert_eq!(tokenizer.decode(&ids), text.as_str(), "{}", pre);
            let mut decoder = tokenizer.decoder();
            let streamed: String = ids.iter().map(|id| decoder.push(*id)).collect();
            prop_assert_eq!(streamed + &decoder.finish(), text.as_str(), "{}", pre);
        }
    }

    #[test]
    fn prop_specials_only_take_their_own_text_away(text in text()) {
        let ids = small("qwen2").encode(&text, SPECIAL);
        prop_assert_eq!(small("qwen2").decode(&ids), text.replace("<|end|>", ""));
    }

    #[test]
    fn prop_any_ids_decode(ids in prop::collection::vec(any::<u32>().prop_map(|id| id % 300), 0..40)) {
        let tokenizer = small("gpt-2");
        let mut decoder = tokenizer.decoder();
        let mut streamed: String = ids.iter().map(|id| decoder.push(*id)).collect();
        streamed.push_str(&decoder.finish());
        prop_assert_eq!(streamed, tokenizer.decode(&ids));
    }
}

/// The same property on the real vocabularies, where the properties above find nothing rare.
#[test]
fn real_vocabularies_give_odd_text_back() {
    let odd =
        ["\0\u{1}\u{7f}\u{ad}", "a\u{a0}b\u{3000}c", "\u{200d}👩‍👩‍👧", "\u{10ffff}\u{e000}", "  \r\n\t ", "١٢٣ ½ Ⅷ", "ſ'ſ"];
    for name in ["gpt-2", "llama-bpe", "qwen2", "llama-spm", "phi-3"] {
        let Some(tokenizer) = vocabulary(name) else { return };
        for text in odd {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text, PLAIN)), text, "{name}");
        }
    }
}
