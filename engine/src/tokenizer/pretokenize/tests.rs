use std::sync::LazyLock;

use fancy_regex::Regex;
use proptest::prelude::*;

use super::*;

fn words(name: &str, text: &str) -> Vec<String> {
    let mut out = Vec::new();
    PreTokenizer::from_name(name).unwrap().split(text, |word| out.push(word.to_owned()));
    assert_eq!(out.concat(), text, "{name}");
    out
}

#[test]
fn gpt2_leaves_one_space_to_the_next_word() {
    assert_eq!(
        words("gpt-2", "It's  2024's DAY'S end\n\n x  "),
        ["It", "'s", " ", " 2024", "'s", " DAY", "'", "S", " end", "\n\n", " x", "  "]
    );
}

#[test]
fn llama3_takes_three_digits_and_any_case() {
    assert_eq!(
        words("llama-bpe", "It'LL cost $12345 (now)!\n\n\nok \t\n x"),
        ["It", "'LL", " cost", " $", "123", "45", " (", "now", ")!\n\n\n", "ok", " \t\n", " x"]
    );
}

#[test]
fn qwen2_takes_one_digit_and_splits_off_marks() {
    assert_eq!(words("qwen2", "a12 e\u{301}x"), ["a", "1", "2", " e", "\u{301}x"]);
    assert_eq!(words("qwen35", "a12 e\u{301}x \u{301}"), ["a", "1", "2", " e\u{301}x", " \u{301}"]);
}

#[test]
fn default_isolates_punctuation_and_triples() {
    assert_eq!(
        words("default", "a+b, 1234567 it's `x` 3\u{ff12}4567"),
        ["a", "+", "b", ",", " ", "123", "456", "7", " it", "'", "s", " `", "x", "`", " ", "3\u{ff12}", "456", "7"]
    );
}

#[test]
fn smollm_takes_digits_one_by_one() {
    assert_eq!(words("smollm", "in 2024 a"), ["in", " ", "2", "0", "2", "4", " a"]);
}

#[test]
fn tekken_splits_at_capitals() {
    assert_eq!(
        words("tekken", "HTTPServer helloWorld éABC 12 a//\n"),
        ["HTTPServer", " hello", "World", " é", "ABC", " ", "1", "2", " a", "//\n"]
    );
}

/// The expressions that the scanners stand for, for a real engine to run one after the other.
static EXPRESSIONS: LazyLock<Vec<(&str, Vec<Regex>)>> = LazyLock::new(|| {
    let gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    let rest = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let lead = r"[^\r\n\p{L}\p{N}]?";
    let short = r"(?:'[sStTmMdD]|'[rRvV][eE]|'[lL][lL])";
    let llama3 = format!(r"{short}|{lead}\p{{L}}+|{rest}");
    let jais2 = llama3.replace(
        r"\s+(?!\S)|\s+",
        r"\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s",
    );
    let qwen2 = llama3.replace("{1,3}", "");
    let ufakzeka = qwen2.replace(&format!("{short}|"), "");
    let seed_coder = qwen2.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}]+");
    let minicpm5 = llama3.replace("{1,3}", "+");
    let exaone = llama3
        .replace("{1,3}", "")
        .replace(&format!(r"{lead}\p{{L}}+"), &format!(r"{lead}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+"))
        .replace(r"[\r\n]*", r"[\r\n/]?");
    let qwen35 = qwen2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}", r"[^\s\p{L}\p{M}");
    let rest = rest.replace("[\\r\\n]*", "[\\r\\n/]*");
    let tekken_rest = rest.replace("{1,3}", "");
    let (upper, lower) = (r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])");
    let tekken = format!("{lead}{upper}*{lower}+|{lead}{upper}+{lower}*|{tekken_rest}");
    let gpt4o = format!("{lead}{upper}*{lower}+{short}?|{lead}{upper}+{lower}*{short}?|{rest}");
    let granite = gpt4o.replace(r"(?=\p{L})", r"(?=[\p{L}\p{M}])");
    let youtu = format!(r"{lead}[\p{{L}}\p{{M}}]+{short}?|{tekken_rest}");
    let punctuation = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"##;
    let deepseek3 = format!(
        r"{punctuation}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    let spark = deepseek3.replace(r"+[\r\n]*", "+").replace(r"\s*[\r\n]+", r"[\r\n]");
    let kana = "[一-龥぀-ゟ゠-ヿ]+";
    let asian = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+";
    let all: [(&str, &[&str]); 25] = [
        ("default", &[r"[\p{P}\$\+<=>\^~\|]+", gpt2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        ("falcon", &[r"[\p{P}\$\+<=>\^~\|`]+", gpt2, "[0-9][0-9][0-9]"]),
        ("gpt-2", &[gpt2]),
        ("smollm", &[r"\p{N}", gpt2]),
        ("llama-bpe", &[&llama3]),
        ("jais-2", &[&jais2]),
        ("qwen2", &[&qwen2]),
        ("laguna", &[r"[^\n]+|[\n]+", &qwen2]),
        ("ufakzeka", &[&ufakzeka]),
        ("seed-coder", &[&seed_coder]),
        ("minicpm5", &[r"\p{N}{1,3}", &minicpm5]),
        ("exaone-moe", &[&exaone]),
        ("qwen35", &[&qwen35]),
        ("tekken", &[&tekken]),
        ("gpt-4o", &[&gpt4o]),
        ("granite-embed-multi-97m", &[&granite]),
        ("youtu", &[asian, &youtu]),
        ("deepseek-v3", &[r"\p{N}{1,3}", kana, &deepseek3]),
        ("spark2_5", &[r"\p{N}{1,3}", kana, &spark, r"\p{N}"]),
        ("deepseek-coder", &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"(?:(?!\s)[一-龥ࠀ-一가-퟿])+", r"\p{N}"]),
        ("poro-chat", &[r" ?[^(\s|.,!?…。，、।۔،)]+"]),
        ("viking", &[r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"]),
        (
            "chameleon",
            &[
                "<sentinel:[0-9]+>",
                "(?:IMGIMG)(?:(?:A|B|C|D|E|F|G|H|I){1,4})Z",
                "(?:[\\t\\n]|    |  )",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                gpt2,
            ],
        ),
        ("superbpe", &[r"\p{N}+", r"(?=(?:[0-9]{3})+(?![0-9]))"]),
        ("gemma4", &[r"[^\n]+|[\n]+"]),
    ];
    all.map(|(name, list)| (name, list.iter().map(|e| Regex::new(e).unwrap()).collect())).into()
});

fn by_expression(expressions: &[Regex], text: &str) -> Vec<String> {
    let mut words = vec![text.to_owned()];
    for expression in expressions {
        let mut next = Vec::new();
        for word in words {
            let mut from = 0;
            for found in expression.find_iter(&word).map(Result::unwrap) {
                next.push(word[from..found.start()].to_owned());
                next.push(found.as_str().to_owned());
                from = found.end();
            }
            next.push(word[from..].to_owned());
        }
        words = next.into_iter().filter(|word| !word.is_empty()).collect();
    }
    words
}

fn text() -> impl Strategy<Value = String> {
    let parts = prop::sample::select(vec![
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "'s",
        "'LL",
        "'vE",
        "'",
        "the",
        "A",
        "1",
        "123",
        "２",
        "½",
        "é",
        "\u{301}",
        "中",
        "🦙",
        ".",
        "!?",
        "=",
        "+",
        "`",
        "$",
        "_",
        "/",
        "ABC",
        "Éa",
        "\u{a0}",
        "\u{3000}",
        "\0",
        "\u{ad}",
        "\u{e000}",
        "//",
        "e a b",
        "1234567",
        "\u{2028}",
        "か",
        "한",
        "ㄱ",
        "、",
        "<sentinel:12>",
        "IMGIMGABZ",
        "    ",
    ]);
    prop::collection::vec(parts, 0..16).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn prop_scanners_cut_as_the_expressions_do(text in text()) {
        for (name, expressions) in EXPRESSIONS.iter() {
            prop_assert_eq!(words(name, &text), by_expression(expressions, &text), "{}", name);
        }
    }
}

#[test]
fn unknown_names_are_told() {
    assert!(PreTokenizer::from_name("no-such").is_none());
    assert!(PreTokenizer::from_name("llama-bpe").unwrap().add_bos);
    for name in PreTokenizer::names() {
        assert!(PreTokenizer::from_name(name).is_some(), "{name}: names are looked up in order");
    }
}

/// Where llama.cpp departs from the expressions it stands for: what precedes a number stays with its first digits.
#[test]
fn numbers_in_threes_from_the_right() {
    assert_eq!(words("superbpe", "a 1234567 b12"), ["a ", "1", "234", "567", " b", "12"]);
    assert_eq!(words("afmoe", "\n1234567"), ["\n", "1", "234", "567"]);
    assert_eq!(words("afmoe", "\u{0}1234 x"), ["\u{0}1", "234", " x"]);
    assert_eq!(words("tiny_aya", "ab 1234"), ["ab", " ", "1", "234"]);
}

#[test]
fn kimi_keeps_han_apart() {
    assert_eq!(words("kimi-k2", "x漢字y's 1234"), ["x", "漢字", "y's", " ", "123", "4"]);
}

#[test]
fn deepseek_llm_cuts_scripts_apart() {
    assert_eq!(
        words("deepseek-llm", "Hello, Вася 漢字 123  \n x "),
        ["Hello", ",", " Вася", " ", "漢字", " ", "123", "  ", "\n", " x", " "]
    );
}

/// Twenty thousand bytes of what makes matchers look far ahead; the test would not end if they took the square.
#[test]
fn all_are_linear() {
    let hostile = [" ", "a", "A", "1", "\n", "É", "ÉA", " \t", "<sentinel:1", "IMGIMGA", "\u{301}A", " \n", "中", "!"];
    for name in PreTokenizer::names() {
        for pattern in hostile {
            words(name, &pattern.repeat(20_000 / pattern.len()));
        }
    }
}

/// llama.cpp's own cuts, under each of its names; `tests/data/tokenizers/cuts.py` took them down.
#[test]
fn all_cuts_are_llama_cpps() {
    #[derive(serde::Deserialize)]
    struct Cuts {
        texts: Vec<String>,
        groups: Vec<Group>,
    }
    #[derive(serde::Deserialize)]
    struct Group {
        names: Vec<String>,
        lengths: Vec<Vec<usize>>,
    }
    let cuts: Cuts = serde_json::from_str(include_str!("../../../tests/data/tokenizers/cuts.json")).unwrap();
    let mut named = Vec::new();
    for Group { names, lengths } in cuts.groups {
        for name in &names {
            for (text, lengths) in cuts.texts.iter().zip(&lengths) {
                let found: Vec<usize> = words(name, text).iter().map(String::len).collect();
                assert_eq!(found, *lengths, "{name}: {text:?}");
            }
        }
        named.extend(names);
    }
    named.sort();
    assert_eq!(named, PreTokenizer::names().collect::<Vec<_>>());
}
