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
mod tests;
