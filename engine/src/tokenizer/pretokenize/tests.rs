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
    let llama3 = format!(r"'[sStTmMdD]|'[rRvV][eE]|'[lL][lL]|{lead}\p{{L}}+|{rest}");
    let qwen2 = llama3.replace("{1,3}", "");
    let qwen35 = qwen2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}", r"[^\s\p{L}\p{M}");
    let (upper, lower) = (r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])");
    let rest = rest.replace("{1,3}", "").replace("[\\r\\n]*", "[\\r\\n/]*");
    let tekken = format!("{lead}{upper}*{lower}+|{lead}{upper}+{lower}*|{rest}");
    let all: [(&str, &[&str]); 7] = [
        ("default", &[r"[\p{P}\$\+<=>\^~\|]+", gpt2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        ("gpt-2", &[gpt2]),
        ("smollm", &[r"\p{N}", gpt2]),
        ("llama-bpe", &[&llama3]),
        ("qwen2", &[&qwen2]),
        ("qwen35", &[&qwen35]),
        ("tekken", &[&tekken]),
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
        " ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "'vE", "'", "the", "A", "1", "123", "２", "½", "é", "\u{301}",
        "中", "🦙", ".", "!?", "=", "+", "`", "$", "_", "/", "ABC", "Éa", "\u{a0}", "\u{3000}", "\0", "\u{ad}",
        "\u{e000}",
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
}
