//! Cutting text into words before byte-pair merging.
//!
//! Each model family was trained with a regular expression of its own, and merges never cross the words it makes, so
//! the cuts must be exact. The expressions are few and simple enough to be written as scanners: one pass, no
//! backtracking, the same time for any text. The expression stands above each scanner. Unknown names fall back to
//! `default`, as llama.cpp once did; [`PreTokenizer::from_name`] says so to its caller.

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// What the scanners need to know of a character. White space comes before the category, as in llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Space,
    Letter,
    Mark,
    Number,
    Punctuation,
    Symbol,
    Other,
}

impl Class {
    fn of(c: char) -> Self {
        if c.is_whitespace() {
            return Self::Space;
        }
        match c.general_category_group() {
            GeneralCategoryGroup::Letter => Self::Letter,
            GeneralCategoryGroup::Mark => Self::Mark,
            GeneralCategoryGroup::Number => Self::Number,
            GeneralCategoryGroup::Punctuation => Self::Punctuation,
            GeneralCategoryGroup::Symbol => Self::Symbol,
            GeneralCategoryGroup::Separator | GeneralCategoryGroup::Other => Self::Other,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Char {
    c: char,
    class: Class,
}

impl Char {
    fn is(self, class: Class) -> bool {
        self.class == class
    }

    fn newline(self) -> bool {
        matches!(self.c, '\r' | '\n')
    }

    /// `[^\s\p{L}\p{N}]`
    fn other(self) -> bool {
        !matches!(self.class, Class::Space | Class::Letter | Class::Number)
    }
}

/// One pass over a run of characters; the passes of a pre-tokenizer refine each other's cuts.
#[derive(Clone, Copy, Debug)]
enum Pass {
    /// The words of GPT-2.
    Gpt2,
    /// The words of Llama 3 and its kin.
    Words(Words),
    /// The words of Mistral's Tekken.
    Tekken,
    /// Runs of what matches stand alone, and so does what lies between.
    Runs(fn(Char) -> bool),
    /// Each single character that matches stands alone, and so does what lies between.
    Each(fn(Char) -> bool),
    /// `[0-9][0-9][0-9]`
    DigitTriples,
}

/// How the relatives of Llama 3 differ.
#[derive(Clone, Copy, Debug)]
struct Words {
    /// `\p{N}{1,digits}`
    digits: usize,
    /// Combining marks count as letters.
    marks: bool,
}

/// A family's way of cutting text into words.
#[derive(Clone, Debug)]
pub(super) struct PreTokenizer {
    passes: &'static [Pass],
    /// A word that is a token is that token, whatever the merges say.
    pub ignore_merges: bool,
    /// Whether models with this pre-tokenizer start with BOS when the file does not say.
    pub add_bos: bool,
}

/// `[\p{P}\$\+<=>\^~\|]+`, `GPT-2`, `\p{N}+`, `[0-9][0-9][0-9]`
const DEFAULT: &[Pass] = &[
    Pass::Runs(|ch| ch.is(Class::Punctuation) || matches!(ch.c, '$' | '+' | '<' | '=' | '>' | '^' | '~' | '|')),
    Pass::Gpt2,
    Pass::Runs(|ch| ch.is(Class::Number)),
    Pass::DigitTriples,
];
const GPT2: &[Pass] = &[Pass::Gpt2];
const LLAMA3: &[Pass] = &[Pass::Words(Words { digits: 3, marks: false })];
const QWEN2: &[Pass] = &[Pass::Words(Words { digits: 1, marks: false })];
const QWEN35: &[Pass] = &[Pass::Words(Words { digits: 1, marks: true })];
/// `\p{N}`, `GPT-2`
const DIGITS_GPT2: &[Pass] = &[Pass::Each(|ch| ch.is(Class::Number)), Pass::Gpt2];
const TEKKEN: &[Pass] = &[Pass::Tekken];

impl PreTokenizer {
    /// The pre-tokenizer that `tokenizer.ggml.pre` names; none when the name is unknown.
    pub fn from_name(name: &str) -> Option<Self> {
        let plain = |passes| Self { passes, ignore_merges: false, add_bos: false };
        Some(match name {
            "default" => plain(DEFAULT),
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
                Self { passes: LLAMA3, ignore_merges: true, add_bos: true }
            }
            "smaug-bpe" | "dbrx" | "glm4" | "chatglm-bpe" => plain(LLAMA3),
            "qwen2" | "deepseek-r1-qwen" | "kormo" | "megrez" | "stablelm2" | "hunyuan" | "solar-open" | "grok-2" => {
                plain(QWEN2)
            }
            "qwen35" => plain(QWEN35),
            "gpt-2" | "phi-2" | "gigachat" | "a.x-4.0" | "mellum" | "modern-bert" | "mpt" | "olmo" | "jais"
            | "trillion" | "exaone4" | "granite-docling" => plain(GPT2),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" | "mellum2" => {
                plain(DIGITS_GPT2)
            }
            "tekken" => Self { passes: TEKKEN, ignore_merges: true, add_bos: true },
            _ => return None,
        })
    }

    /// What a file without a (known) name gets.
    pub fn fallback() -> Self {
        Self { passes: DEFAULT, ignore_merges: false, add_bos: false }
    }

    /// Calls `word` with each word of `text` in order; together they are the text.
    pub fn split<'t>(&self, text: &'t str, mut word: impl FnMut(&'t str)) {
        let chars: Vec<Char> = text.chars().map(|c| Char { c, class: Class::of(c) }).collect();
        // Ends of the words so far, as character positions.
        let mut ends = vec![chars.len()];
        for pass in self.passes {
            let mut next = Vec::with_capacity(ends.len());
            let mut start = 0;
            for &end in &ends {
                pass.cut(&chars[start..end], |at| next.push(start + at));
                start = end;
            }
            ends = next;
        }
        let (mut from, mut at) = (0, 0);
        for end in ends {
            let bytes: usize = chars[at..end].iter().map(|ch| ch.c.len_utf8()).sum();
            if bytes > 0 {
                word(&text[from..from + bytes]);
            }
            (from, at) = (from + bytes, end);
        }
    }
}

impl Pass {
    /// Calls `end` with the end of each word of `text`, the last one being the text's.
    fn cut(self, text: &[Char], mut end: impl FnMut(usize)) {
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            at += match self {
                Self::Gpt2 => gpt2(rest),
                Self::Words(kind) => kind.word(rest),
                Self::Tekken => tekken(rest),
                Self::Runs(matches) => {
                    let inside = matches(rest[0]);
                    run(rest, |ch| matches(ch) == inside)
                }
                Self::Each(matches) => run(rest, |ch| !matches(ch)).max(1),
                Self::DigitTriples => digit_triples(rest),
            };
            end(at);
        }
    }
}

/// How many characters at the start of `text` match.
fn run(text: &[Char], matches: impl Fn(Char) -> bool) -> usize {
    text.iter().take_while(|ch| matches(**ch)).count()
}

fn is_at(text: &[Char], at: usize, matches: impl Fn(Char) -> bool) -> bool {
    text.get(at).is_some_and(|ch| matches(*ch))
}

/// `'s|'t|'re|'ve|'m|'ll|'d`, as characters; `fold` ignores ASCII case.
fn contraction(text: &[Char], fold: bool) -> Option<usize> {
    let letter = |at: usize| text.get(at).map(|ch| if fold { ch.c.to_ascii_lowercase() } else { ch.c });
    if letter(0) != Some('\'') {
        return None;
    }
    match (letter(1)?, letter(2)) {
        ('s' | 't' | 'm' | 'd', _) => Some(2),
        ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(3),
        _ => None,
    }
}

/// `\s+(?!\S)|\s+` at white space: a run leaves its last character to the word that follows.
fn spaces(text: &[Char]) -> usize {
    let count = run(text, |ch| ch.is(Class::Space));
    if count > 1 && count < text.len() { count - 1 } else { count.max(1) }
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
fn gpt2(text: &[Char]) -> usize {
    if let Some(length) = contraction(text, false) {
        return length;
    }
    let lead = usize::from(text[0].c == ' ');
    let Some(first) = text.get(lead) else { return lead };
    match first.class {
        Class::Space => spaces(text),
        Class::Letter | Class::Number => lead + run(&text[lead..], |ch| ch.class == first.class),
        _ => lead + run(&text[lead..], Char::other),
    }
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+` at white space.
fn spaces_and_newlines(text: &[Char]) -> usize {
    let count = run(text, |ch| ch.is(Class::Space));
    match text[..count].iter().rposition(|ch| ch.newline()) {
        Some(last) => last + 1,
        None => spaces(text),
    }
}

impl Words {
    fn letter(self, ch: Char) -> bool {
        ch.is(Class::Letter) || (self.marks && ch.is(Class::Mark))
    }

    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,n}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
    fn word(self, text: &[Char]) -> usize {
        if let Some(length) = contraction(text, true) {
            return length;
        }
        let first = text[0];
        if self.letter(first) {
            return run(text, |ch| self.letter(ch));
        }
        if !first.newline() && !first.is(Class::Number) && is_at(text, 1, |ch| self.letter(ch)) {
            return 1 + run(&text[1..], |ch| self.letter(ch));
        }
        if first.is(Class::Number) {
            return run(text, |ch| ch.is(Class::Number)).min(self.digits);
        }
        let lead = usize::from(first.c == ' ');
        if is_at(text, lead, |ch| ch.other() && !self.letter(ch)) {
            let end = lead + run(&text[lead..], |ch| ch.other() && !self.letter(ch));
            return end + run(&text[end..], Char::newline);
        }
        spaces_and_newlines(text)
    }
}

/// `[^\r\n\p{L}\p{N}]?U*W+|[^\r\n\p{L}\p{N}]?U+W*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
/// where, as llama.cpp has it, U is any letter but a–z and W any letter but A–Z.
fn tekken(text: &[Char]) -> usize {
    let upper = |ch: Char| ch.is(Class::Letter) && !ch.c.is_ascii_lowercase();
    let lower = |ch: Char| ch.is(Class::Letter) && !ch.c.is_ascii_uppercase();
    let first = text[0];
    let lead = usize::from(!first.newline() && !first.is(Class::Letter) && !first.is(Class::Number));
    if is_at(text, lead, |ch| ch.is(Class::Letter)) {
        let word = &text[lead..];
        let uppers = run(word, upper);
        let lowers = run(&word[uppers..], lower);
        if lowers > 0 {
            return lead + uppers + lowers;
        }
        // U* gives back letters until W+ has one: the last letter that is both. Without one the second form takes all.
        return lead + word[..uppers].iter().rposition(|ch| lower(*ch)).map_or(uppers, |last| last + 1);
    }
    if first.is(Class::Number) {
        return 1;
    }
    let lead = usize::from(first.c == ' ');
    if is_at(text, lead, Char::other) {
        let end = lead + run(&text[lead..], Char::other);
        return end + run(&text[end..], |ch| ch.newline() || ch.c == '/');
    }
    spaces_and_newlines(text)
}

/// `[0-9][0-9][0-9]` at the start of `text`, or what lies before the next one.
fn digit_triples(text: &[Char]) -> usize {
    let triple = |w: &[Char]| w.iter().all(|ch| ch.c.is_ascii_digit());
    match text.windows(3).position(triple) {
        Some(0) => 3,
        Some(before) => before,
        None => text.len(),
    }
}

#[cfg(test)]
mod tests {
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

    /// The scanners against the expressions they stand for, run by a real engine one after the other.
    fn by_expression(expressions: &[&str], text: &str) -> Vec<String> {
        let mut words = vec![text.to_owned()];
        for expression in expressions {
            let expression = fancy_regex::Regex::new(expression).unwrap();
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
            " ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "'vE", "'", "the", "A", "1", "123", "２", "½", "é", "e\u{301}", "\u{301}",
            "中", "🦙", ".", "!?", "=", "+", "`", "$", "_", "/", "ABC", "Éa", "\u{a0}", "\u{3000}", "\0", "\u{ad}", "\u{e000}",
        ]);
        prop::collection::vec(parts, 0..16).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn prop_scanners_cut_as_the_expressions_do(text in text()) {
            let gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
            let llama3 = r"'[sStTmMdD]|'[rRvV][eE]|'[lL][lL]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
            let qwen2 = llama3.replace("{1,3}", "");
            let qwen35 = qwen2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]");
            let (upper, lower) = ("(?:(?=\\p{L})[^a-z])", "(?:(?=\\p{L})[^A-Z])");
            let lead = r"[^\r\n\p{L}\p{N}]?";
            let rest = r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
            let tekken = format!("{lead}{upper}*{lower}+|{lead}{upper}+{lower}*|{rest}");
            for (name, expressions) in [
                ("default", &[r"[\p{P}\$\+<=>\^~\|]+", gpt2, r"\p{N}+", "[0-9][0-9][0-9]"][..]),
                ("gpt-2", &[gpt2]),
                ("smollm", &[r"\p{N}", gpt2]),
                ("llama-bpe", &[llama3]),
                ("qwen2", &[&qwen2]),
                ("qwen35", &[&qwen35]),
                ("tekken", &[&tekken]),
            ] {
                prop_assert_eq!(words(name, &text), by_expression(expressions, &text), "{}", name);
            }
        }
    }

    #[test]
    fn unknown_names_are_told() {
        assert!(PreTokenizer::from_name("no-such").is_none());
        assert!(PreTokenizer::from_name("llama-bpe").unwrap().add_bos);
    }
}
