//! Tokenizers of Hugging Face folders, held against Hugging Face's own library: files made from the vocabularies of
//! the shared fixtures, in the forms that the families publish.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "helpers of tests fail loudly, as tests do")]

use std::{collections::HashMap, path::PathBuf};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use quelea_engine::{
    Gguf,
    gguf::write::Writer,
    huggingface,
    tokenizer::{EncodeOptions, HfError, TokenType, Tokenizer, TokenizerData, TokenizerError},
};
use serde_json::{Value, json};

const PLAIN: EncodeOptions = EncodeOptions { parse_special: true, add_bos: false };

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn fixture(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("QUELEA_FIXTURES")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures")), PathBuf::from);
    let path = root.join(format!("tokenizers/ggml-vocab-{name}.gguf"));
    if path.is_file() {
        return Some(path);
    }
    println!("skipped: no vocabulary at {}", path.display());
    None
}

fn data(name: &str) -> Option<TokenizerData> {
    Some(TokenizerData::from_gguf(&Gguf::open(fixture(name)?).unwrap()).unwrap())
}

/// Inputs of llama.cpp's vectors, and what else is odd.
fn texts(name: &str) -> Vec<String> {
    let inputs = std::fs::read_to_string(fixture(name).unwrap().with_extension("gguf.inp")).unwrap();
    let mut all: Vec<String> = inputs.split("\n__ggml_vocab_test__\n").map(str::to_owned).collect();
    let more = [
        " Hello  world \n\n\n x\t\ty  ",
        "e\u{301}e\u{301} \u{1100}\u{1161}",
        "It'S we'LL I'D 'x",
        "HTTPServer éABC ǅa 12345678 ½٣",
        "ſ 's K'S don'ſ",
        "\u{a0}\u{3000}x \u{2028} y",
        "🦙\u{200d}👩‍👩‍👧 \u{10ffff}\0",
        "a<|im_start|>b <|im_end|>\n<|eot_id|> <s>x</s> y<unk>",
        "<|end|>  \n x<|user|> y",
        "",
    ];
    all.extend(more.map(str::to_owned));
    all
}

/// What all forms have in common.
fn file(data: &TokenizerData, merges: Value, more: Value) -> Value {
    let vocab: serde_json::Map<String, Value> =
        data.tokens.iter().enumerate().map(|(id, text)| (text.clone(), json!(id))).collect();
    let mut added = Vec::new();
    for (id, kind) in data.types.iter().enumerate().filter(|(_, kind)| matches!(kind, 2..=4)) {
        added.push(json!({
            "id": id, "content": data.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": *kind != 4,
        }));
    }
    let mut file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    });
    for (key, value) in more.as_object().unwrap() {
        match key.as_str() {
            "model" => {
                for (key, value) in value.as_object().unwrap() {
                    file["model"][key] = value.clone();
                }
            }
            _ => file[key] = value.clone(),
        }
    }
    file
}

/// Compares ids and, where `texts` come back, decoded text.
fn compare(name: &str, file: &Value, texts: &[String]) -> Tokenizer {
    let json = serde_json::to_vec(file).unwrap();
    let theirs = tokenizers::Tokenizer::from_bytes(&json).unwrap();
    let ours = Tokenizer::from_hf(&json, None).unwrap();
    for text in texts {
        let expected = theirs.encode(text.as_str(), false).unwrap().get_ids().to_vec();
        assert_eq!(ours.encode(text, PLAIN), expected, "{name}: {text:?}");
    }
    ours
}

fn byte_level(regex: Option<&str>) -> Value {
    let level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex.is_none() });
    let Some(regex) = regex else { return level };
    let split = json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
    json!({ "type": "Sequence", "pretokenizers": [split, level] })
}

#[test]
fn byte_level_families() {
    let Some(gpt2) = data("gpt-2") else { return };
    let pairs = |data: &TokenizerData| -> Value {
        data.merges.iter().map(|merge| merge.split_once(' ').map(|(l, r)| json!([l, r])).unwrap()).collect()
    };
    let lines = json!(gpt2.merges);
    compare("gpt-2", &file(&gpt2, lines.clone(), json!({ "pre_tokenizer": byte_level(None) })), &texts("gpt-2"));
    let mut leading = byte_level(None);
    leading["add_prefix_space"] = json!(true);
    compare("roberta", &file(&gpt2, lines.clone(), json!({ "pre_tokenizer": leading })), &texts("gpt-2"));
    for individual in [true, false] {
        let digits = json!({ "type": "Digits", "individual_digits": individual });
        let smollm = json!({ "type": "Sequence", "pretokenizers": [digits, byte_level(None)] });
        compare("smollm", &file(&gpt2, lines.clone(), json!({ "pre_tokenizer": smollm })), &texts("gpt-2"));
    }
    let falcon = json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Punctuation", "behavior": "Contiguous" }, byte_level(None),
        { "type": "Split", "pattern": { "Regex": "[0-9][0-9][0-9]" }, "behavior": "Isolated", "invert": false },
    ] });
    compare("falcon", &file(&gpt2, lines, json!({ "pre_tokenizer": falcon })), &texts("gpt-2"));

    let llama = data("llama-bpe").unwrap();
    let more = json!({ "pre_tokenizer": byte_level(Some(LLAMA3)), "model": { "ignore_merges": true } });
    compare("llama-3", &file(&llama, pairs(&llama), more), &texts("llama-bpe"));
    let more = json!({ "pre_tokenizer": byte_level(Some(TEKKEN)), "model": { "ignore_merges": true } });
    compare("tekken", &file(&llama, pairs(&llama), more), &texts("llama-bpe"));

    let qwen = data("qwen2").unwrap();
    let regex = LLAMA3.replace("{1,3}", "");
    let more = json!({ "normalizer": { "type": "NFC" }, "pre_tokenizer": byte_level(Some(&regex)) });
    compare("qwen2", &file(&qwen, json!(qwen.merges), more), &texts("qwen2"));
    let deepseek = json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": "\\p{N}{1,3}" }, "behavior": "Isolated", "invert": false },
        { "type": "Split", "pattern": { "Regex": "[一-龥\u{3040}-ゟ゠-ヿ]+" }, "behavior": "Isolated", "invert": false },
        byte_level(Some(concat!(
            r"[!", "\"", r"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ))),
    ] });
    compare("deepseek-v3", &file(&qwen, json!(qwen.merges), json!({ "pre_tokenizer": deepseek })), &texts("qwen2"));
}

/// The merges that the conversion from SentencePiece makes: all ways to put a piece together, best piece first.
fn merges_of_pieces(data: &TokenizerData) -> Value {
    let ids: HashMap<&str, usize> = data.tokens.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (id, piece) in data.tokens.iter().enumerate().filter(|(id, _)| data.types[*id] == 1) {
        let mut splits = Vec::new();
        for (at, _) in piece.char_indices().skip(1) {
            if let (Some(left), Some(right)) = (ids.get(&piece[..at]), ids.get(&piece[at..])) {
                splits.push((*left, *right));
            }
        }
        splits.sort_unstable();
        merges.extend(splits.into_iter().map(|split| (data.scores[id], split)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0));
    merges.into_iter().map(|(_, (left, right))| json!([data.tokens[left], data.tokens[right]])).collect()
}

#[test]
fn sentencepiece_as_byte_pairs() {
    let Some(llama) = data("llama-spm") else { return };
    let merges = merges_of_pieces(&llama);
    let model = json!({ "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true });
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let llama2 = json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" }, replace.clone()] });
    let more = json!({ "normalizer": llama2, "model": model });
    let made = file(&llama, merges.clone(), more);
    let ours = compare("llama-2", &made, &texts("llama-spm"));
    let hello = ours.token_id("▁Hello").unwrap();
    assert_eq!(ours.decode(&[hello]), "Hello");
    assert_eq!(ours.token_type(ours.token_id("<0x0A>").unwrap()), Some(TokenType::Byte));
    let metaspace = |scheme: &str, split: bool| json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split });
    for (scheme, split) in [("first", false), ("always", false), ("never", true), ("first", true)] {
        let more = json!({ "pre_tokenizer": metaspace(scheme, split), "model": model });
        compare(scheme, &file(&llama, merges.clone(), more), &texts("llama-spm"));
    }
    let split =
        json!({ "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false });
    let more = json!({ "normalizer": replace, "pre_tokenizer": split, "model": model });
    compare("gemma", &file(&llama, merges.clone(), more), &texts("llama-spm"));
    let mut stripping = made;
    for token in stripping["added_tokens"].as_array_mut().unwrap() {
        token["rstrip"] = json!(true);
        token["lstrip"] = json!(token["content"] == "</s>");
    }
    compare("phi-3", &stripping, &texts("llama-spm"));
}

/// A vocabulary of a few tokens, for what needs no real one.
fn small(more: Value) -> Value {
    let tokens = ["<s>", "</s>", "a", "b", "ab", "<|im_end|>"].map(str::to_owned).to_vec();
    let data = TokenizerData { tokens, types: vec![3, 3, 1, 1, 1, 4], ..TokenizerData::default() };
    let mut all = json!({ "pre_tokenizer": byte_level(None) });
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    file(&data, json!(["a b"]), all)
}

fn load(file: &Value, config: Option<Value>) -> Result<Tokenizer, TokenizerError> {
    let config = config.map(|config| serde_json::to_vec(&config).unwrap());
    Tokenizer::from_hf(&serde_json::to_vec(file).unwrap(), config.as_deref())
}

#[test]
fn special_tokens_come_from_both_files() {
    let template = json!({ "type": "Sequence", "processors": [{ "type": "TemplateProcessing", "single": [
        { "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
    ] }] });
    let file = small(json!({ "post_processor": template }));
    let config = json!({ "bos_token": { "content": "<s>", "lstrip": false }, "eos_token": "</s>" });
    let tokenizer = load(&file, Some(config)).unwrap();
    assert_eq!(tokenizer.encode_input("ab"), [0, 4]);
    assert_eq!(tokenizer.encode_chat("<s>ab"), [0, 4]);
    assert_eq!(tokenizer.eos_ids(), [1, 5]);
    let config = json!({ "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": false, "add_eos_token": true });
    let tokenizer = load(&file, Some(config)).unwrap();
    assert_eq!(tokenizer.encode_input("ab"), [4, 1]);
    let tokenizer = tokenizer.with_generation_config(br#"{ "eos_token_id": [3, 1, 99] }"#).unwrap();
    assert_eq!(tokenizer.eos_ids(), [1, 3, 5]);
    assert_eq!(load(&file, None).unwrap().bos(), None);
}

#[test]
fn a_folder_opened_as_gguf_has_its_tokenizer() {
    let config = json!({ "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true });
    let mut writer = Writer::new();
    writer.set(huggingface::TOKENIZER_KEY, small(json!({})).to_string());
    writer.set(huggingface::TOKENIZER_CONFIG_KEY, config.to_string());
    let open = |writer: &Writer| {
        let mut bytes = writer.header().unwrap();
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        Tokenizer::from_gguf(&Gguf::from_vec(bytes).unwrap())
    };
    let tokenizer = open(&writer).unwrap();
    assert_eq!((tokenizer.encode_input("ab"), tokenizer.eos_ids()), (vec![0, 4], &[1, 5][..]));
    writer.set(huggingface::GENERATION_CONFIG_KEY, r#"{ "eos_token_id": 3 }"#.to_owned());
    assert_eq!(open(&writer).unwrap().eos_ids(), [1, 3, 5]);
    // A vocabulary in GGUF's own words comes first.
    writer.set("tokenizer.ggml.model", "no-such".to_owned());
    assert!(open(&writer).is_err());
}

#[test]
fn what_is_not_supported_is_named() {
    let pieces = small(json!({ "model": { "type": "WordPiece" } }));
    let bert = small(json!({ "pre_tokenizer": { "type": "BertPreTokenizer" } }));
    let nmt = small(json!({ "normalizer": { "type": "Nmt" } }));
    let affix = small(json!({ "model": { "end_of_word_suffix": "</w>" } }));
    let ahead = small(json!({ "pre_tokenizer": byte_level(Some(r"\d+(?=a)")) }));
    for (file, name) in
        [(pieces, "WordPiece"), (bert, "BertPreTokenizer"), (nmt, "Nmt"), (affix, "</w>"), (ahead, "(?=a)")]
    {
        let message = load(&file, None).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn hostile_files_are_refused() {
    let far = small(json!({ "model": { "vocab": { "a": 4_000_000_000_u32 } } }));
    assert!(matches!(load(&far, None), Err(TokenizerError::Hf(HfError::Field { .. }))));
    let merge = small(json!({ "model": { "merges": ["ab"] } }));
    assert!(matches!(load(&merge, None), Err(TokenizerError::Merge { .. })));
    let large = small(json!({ "pre_tokenizer": byte_level(Some("(?:a{1000}){1000}")) }));
    assert!(matches!(load(&large, None), Err(TokenizerError::Hf(HfError::Expression { .. }))));
    let split = json!({ "type": "Split", "pattern": { "Regex": r"\w{90}x" }, "behavior": "Isolated" });
    for (key, list, kind) in
        [("pre_tokenizer", "pretokenizers", &split), ("normalizer", "normalizers", &json!({ "type": "NFC" }))]
    {
        let many = small(json!({ key: { "type": "Sequence", list: vec![kind; 600] } }));
        assert!(matches!(load(&many, None), Err(TokenizerError::Hf(HfError::Steps { found: 600.., .. }))));
    }
    let long = small(json!({ "pre_tokenizer": byte_level(Some(&"a".repeat(10_000))) }));
    assert!(matches!(load(&long, None), Err(TokenizerError::Hf(HfError::Expression { .. }))));
    for json in [&b"{"[..], b"[]", b"{}", b"{\"model\":{}}", b"{\"model\":{\"vocab\":{}}}"] {
        assert!(Tokenizer::from_hf(json, None).is_err());
    }
    assert!(matches!(load(&small(json!({})), Some(json!([]))), Err(TokenizerError::Hf(HfError::Json { .. }))));
}

/// A small Unigram vocabulary of sentencepiece's, and the texts that go with it.
fn unigram() -> (TokenizerData, Vec<String>) {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tokenizers/unigram.gguf"));
    let cases: Value = serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
    let texts = cases.as_array().unwrap().iter().map(|case| case["text"].as_str().unwrap().to_owned()).collect();
    (TokenizerData::from_gguf(&Gguf::open(path).unwrap()).unwrap(), texts)
}

#[test]
fn unigram_models() {
    let (data, texts) = unigram();
    let pieces: Vec<Value> = data.tokens.iter().zip(&data.scores).map(|(text, score)| json!([text, score])).collect();
    let model = json!({ "type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": false });
    let map = BASE64_STANDARD.encode(&data.precompiled_charsmap);
    let precompiled = json!({ "type": "Precompiled", "precompiled_charsmap": map });
    let merged = json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " });
    let strip = |left: bool| json!({ "type": "Strip", "strip_left": left, "strip_right": true });
    let sequence = |normalizers: Value| json!({ "type": "Sequence", "normalizers": normalizers });
    let metaspace = |scheme: &str, split: bool| json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split });
    let white = json!({ "type": "WhitespaceSplit" });
    let split = |pre: Value| json!({ "type": "Sequence", "pretokenizers": pre });
    let mut bytes = model.clone();
    bytes["byte_fallback"] = json!(true);
    for (name, more) in [
        ("plain", json!({ "pre_tokenizer": metaspace("always", true) })),
        (
            "t5",
            json!({ "normalizer": sequence(json!([precompiled, strip(false), merged])), "pre_tokenizer": metaspace("always", true) }),
        ),
        (
            "old t5",
            json!({ "normalizer": precompiled, "pre_tokenizer": split(json!([white, metaspace("always", true)])) }),
        ),
        (
            "first",
            json!({ "normalizer": strip(true), "pre_tokenizer": split(json!([white, metaspace("first", true)])) }),
        ),
        ("whole", json!({ "normalizer": merged, "pre_tokenizer": metaspace("first", false) })),
        (
            "accents",
            json!({ "normalizer": sequence(json!([{ "type": "NFKD" }, { "type": "StripAccents" }])), "pre_tokenizer": { "type": "Whitespace" } }),
        ),
        ("bytes", json!({ "model": bytes, "pre_tokenizer": metaspace("never", true) })),
    ] {
        let mut file = file(&data, json!([]), more);
        if file["model"]["type"] == "BPE" {
            file["model"] = model.clone();
        }
        compare(name, &file, &texts);
    }
}

/// Added tokens that take white space with them, are whole words only, or are looked for in normalized text.
#[test]
fn added_tokens() {
    let (data, _) = unigram();
    let pieces: Vec<Value> = data.tokens.iter().zip(&data.scores).map(|(text, score)| json!([text, score])).collect();
    let texts = [
        "a [L]  x [R] y  [LR]  z",
        "cat concat cat_ (cat) cats Cat CAT cat",
        "Norm norm a Norm  NORM norm norm",
        "[L][R] [LR][L]  [R]",
        "xcat",
        "[l] norm[L]Norm",
    ]
    .map(str::to_owned);
    for (normalizer, scheme) in [
        (Value::Null, "always"),
        (json!({ "type": "Lowercase" }), "first"),
        (json!({ "type": "Prepend", "prepend": "▁" }), "never"),
    ] {
        let mut file = file(&data, json!([]), json!({ "normalizer": normalizer }));
        file["pre_tokenizer"] =
            json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": true });
        file["model"] = json!({ "type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": false });
        let added = file["added_tokens"].as_array_mut().unwrap();
        let more = [("[L]", "l"), ("[R]", "r"), ("[LR]", "lr"), ("cat", "s"), ("Norm", "n"), ("norm cat", "ns")];
        for (id, (content, flags)) in (data.tokens.len()..).zip(more) {
            let has = |flag: char| flags.contains(flag);
            added.push(json!({
                "id": id, "content": content, "single_word": has('s'), "lstrip": has('l'), "rstrip": has('r'),
                "normalized": has('n'), "special": false,
            }));
        }
        compare(scheme, &file, &texts);
    }
}
