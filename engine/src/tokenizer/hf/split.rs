//! The pre-tokenizers of `tokenizer.json`: expressions, digits, punctuation, and what becomes of their matches.
//!
//! The published expressions look ahead in one way only, `\s+(?!\S)`: white space leaves its last character to the word
//! that follows. Without it they are regular, and an engine without backtracking runs them: the time stays linear in
//! the text. Possessive quantifiers are taken for greedy ones, which in these expressions match the same.

use std::borrow::Cow;

use regex::{Regex, RegexBuilder};
use serde_json::Value;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

use super::{HfError, normalize::Normalizer, unsupported};
use crate::tokenizer::pretokenize::PreTokenizer;

/// Longest expression; DeepSeek's longest has 1,100 bytes.
const MAX_PATTERN: usize = 1 << 13;

/// Most memory that an expression may be compiled to, in bytes, as its engine counts; it takes two or three times as
/// much in all. The published ones stay under a quarter.
pub(super) const MAX_COMPILED: usize = 4 << 20;

/// What becomes of a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behaviour {
    Isolated,
    Removed,
    MergedWithPrevious,
    MergedWithNext,
    Contiguous,
}

impl Behaviour {
    pub fn named(name: Option<&str>) -> Result<Self, HfError> {
        Ok(match name {
            None | Some("Isolated") => Self::Isolated,
            Some("Removed") => Self::Removed,
            Some("MergedWithPrevious") => Self::MergedWithPrevious,
            Some("MergedWithNext") => Self::MergedWithNext,
            Some("Contiguous") => Self::Contiguous,
            Some(other) => return Err(unsupported("split behaviour", other)),
        })
    }
}

#[derive(Debug)]
enum Matches {
    /// The words of an expression.
    Expression(Expression),
    /// GPT-2's words, which leave nothing out.
    Gpt2(PreTokenizer),
    /// Single characters of a kind.
    Each(fn(char) -> bool),
}

/// One pre-tokenizer.
#[derive(Debug)]
pub(super) struct Split {
    matches: Matches,
    behaviour: Behaviour,
    invert: bool,
}

impl Split {
    /// An entry of type `Split`.
    pub fn published(entry: &Value) -> Result<Self, HfError> {
        let pattern = entry.get("pattern");
        let text = |kind: &str| pattern.and_then(|pattern| pattern.get(kind)).and_then(Value::as_str);
        let expression = match (text("Regex"), text("String")) {
            (Some(pattern), _) => Expression::new(pattern)?,
            (None, Some(literal)) => Expression::new(&regex::escape(literal))?,
            _ => return Err(HfError::Field { field: "pre_tokenizer.pattern" }),
        };
        let behaviour = Behaviour::named(entry.get("behavior").and_then(Value::as_str))?;
        let invert = entry.get("invert").and_then(Value::as_bool).unwrap_or(false);
        Ok(Self { matches: Matches::Expression(expression), behaviour, invert })
    }

    /// GPT-2's own words.
    pub fn gpt2() -> Self {
        let words = PreTokenizer::from_name("gpt-2").unwrap_or_else(PreTokenizer::fallback);
        Self { matches: Matches::Gpt2(words), behaviour: Behaviour::Isolated, invert: false }
    }

    /// Numbers, whole or digit by digit.
    pub fn digits(individual: bool) -> Self {
        let behaviour = if individual { Behaviour::Isolated } else { Behaviour::Contiguous };
        Self { matches: Matches::Each(char::is_numeric), behaviour, invert: false }
    }

    /// Punctuation.
    pub fn punctuation(behaviour: Behaviour) -> Self {
        let is = |c: char| c.is_ascii_punctuation() || c.general_category_group() == GeneralCategoryGroup::Punctuation;
        Self { matches: Matches::Each(is), behaviour, invert: false }
    }

    /// Words and runs of what is neither word nor white space; white space is dropped.
    pub fn words() -> Result<Self, HfError> {
        let matches = Matches::Expression(Expression::new(r"\w+|[^\w\s]+")?);
        Ok(Self { matches, behaviour: Behaviour::Removed, invert: true })
    }

    /// White space, which is dropped.
    pub fn white_space() -> Self {
        Self { matches: Matches::Each(char::is_whitespace), behaviour: Behaviour::Removed, invert: false }
    }

    /// Words that begin with the character that stands for a space.
    pub fn before(space: &str) -> Result<Self, HfError> {
        let matches = Matches::Expression(Expression::new(&regex::escape(space))?);
        Ok(Self { matches, behaviour: Behaviour::MergedWithNext, invert: false })
    }

    /// The stretches of `text` in order, and whether each is a match.
    fn stretches(&self, text: &str) -> Vec<(usize, usize, bool)> {
        let mut all = Vec::new();
        let mut from = 0;
        let mut found = |start: usize, end: usize| {
            if from < start {
                all.push((from, start, self.invert));
            }
            if start < end {
                all.push((start, end, !self.invert));
            }
            from = end;
        };
        match &self.matches {
            Matches::Expression(expression) => expression.matches(text, &mut found),
            Matches::Each(is) => {
                let chars = text.char_indices().filter(|(_, c)| is(*c));
                chars.for_each(|(start, c)| found(start, start + c.len_utf8()));
            }
            Matches::Gpt2(words) => {
                let mut start = 0;
                words.split(text, |word| {
                    found(start, start + word.len());
                    start += word.len();
                });
            }
        }
        found(text.len(), text.len());
        all
    }

    /// Calls `word` with the ends of each word that this one makes of `text`.
    fn cut(&self, text: &str, word: &mut dyn FnMut(usize, usize)) {
        let all = self.stretches(text);
        let mut at = 0;
        while let Some(&(start, end, matched)) = all.get(at) {
            at += 1;
            let mut end = end;
            match self.behaviour {
                Behaviour::Isolated => {}
                Behaviour::Removed if matched => continue,
                Behaviour::Removed => {}
                Behaviour::Contiguous => {
                    while let Some((_, next, _)) = all.get(at).filter(|(_, _, same)| *same == matched) {
                        (end, at) = (*next, at + 1);
                    }
                }
                Behaviour::MergedWithPrevious if matched => {}
                Behaviour::MergedWithPrevious => {
                    if let Some((_, next, true)) = all.get(at) {
                        (end, at) = (*next, at + 1);
                    }
                }
                Behaviour::MergedWithNext if !matched => {}
                Behaviour::MergedWithNext => {
                    if let Some((_, next, false)) = all.get(at) {
                        (end, at) = (*next, at + 1);
                    }
                }
            }
            word(start, end);
        }
    }
}

/// One step of the way to words.
#[derive(Debug)]
pub(super) enum Step {
    /// A cut.
    Split(Split),
    /// A change of each word that there is by then.
    Each(Normalizer),
}

/// Pre-tokenizers one after the other.
#[derive(Debug, Default)]
pub(in crate::tokenizer) struct Splits(pub(super) Vec<Step>);

impl Splits {
    /// Whether a space is put before words, which decoding takes away again.
    pub fn leads(&self) -> bool {
        self.0.iter().any(|step| matches!(step, Step::Each(change) if change.leads()))
    }

    /// Calls `word` with each word of `text` in order; `start`: the text begins the input.
    pub fn split(&self, text: &str, start: bool, word: &mut dyn FnMut(&str)) {
        // Words, and whether each begins the input.
        let mut words = vec![(Cow::Borrowed(text), start)];
        for step in &self.0 {
            let mut next = Vec::with_capacity(words.len());
            for (text, start) in words {
                match (step, text) {
                    (Step::Each(change), text) => next.push((Cow::Owned(change.apply(&text, start)), start)),
                    (Step::Split(split), Cow::Borrowed(text)) => {
                        split
                            .cut(text, &mut |from, to| next.push((Cow::Borrowed(&text[from..to]), start && from == 0)));
                    }
                    (Step::Split(split), Cow::Owned(text)) => {
                        let owned = |from: usize, to: usize| Cow::Owned(text[from..to].to_owned());
                        split.cut(&text, &mut |from, to| next.push((owned(from, to), start && from == 0)));
                    }
                }
            }
            words = next;
        }
        words.iter().filter(|(text, _)| !text.is_empty()).for_each(|(text, _)| word(text));
    }
}

/// A published expression.
#[derive(Debug)]
struct Expression {
    regex: Regex,
    /// Whether white space alone, the last alternative, leaves its last character to what follows.
    leaves_one: bool,
}

impl Expression {
    fn new(pattern: &str) -> Result<Self, HfError> {
        let greedy = greedy(pattern);
        let ahead =
            [r"|\s+(?!\S)|\s+", r"|\s+(?!\S)|\s", r"|\s+(?!\S)"].iter().find_map(|end| greedy.strip_suffix(end));
        let source = ahead.map_or_else(|| greedy.clone(), |before| format!(r"(?:{before})|(?<space>\s+)"));
        Ok(Self { regex: regex(&source)?, leaves_one: ahead.is_some() })
    }

    /// Calls `found` with the ends of each match.
    fn matches(&self, text: &str, found: &mut dyn FnMut(usize, usize)) {
        if !self.leaves_one {
            self.regex.find_iter(text).for_each(|m| found(m.start(), m.end()));
            return;
        }
        let mut groups = self.regex.capture_locations();
        let mut at = 0;
        while let Some(m) = self.regex.captures_read_at(&mut groups, text, at) {
            let mut end = m.end();
            if groups.get(groups.len() - 1).is_some() && end < text.len() {
                let last = m.as_str().chars().next_back().map_or(0, char::len_utf8);
                // A single one stays: it is a word, or left to be one.
                end = if m.len() > last { end - last } else { end };
            }
            found(m.start(), end);
            // An empty match would be found for ever.
            at = if end > at { end } else { text.ceil_char_boundary(at + 1) };
            if at >= text.len() {
                break;
            }
        }
    }
}

/// An expression that a file has, of bounded length and size.
pub(super) fn regex(pattern: &str) -> Result<Regex, HfError> {
    let invalid = |reason: String| HfError::Expression { pattern: pattern.chars().take(200).collect(), reason };
    if pattern.len() > MAX_PATTERN {
        return Err(invalid(format!("it is longer than {MAX_PATTERN} bytes")));
    }
    RegexBuilder::new(pattern).size_limit(MAX_COMPILED).build().map_err(|error| invalid(error.to_string()))
}

/// The expression with greedy quantifiers for possessive ones.
fn greedy(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let (mut escaped, mut class, mut before) = (false, false, ' ');
    for c in pattern.chars() {
        let possessive = c == '+' && !escaped && !class && matches!(before, '?' | '+' | '*');
        if !possessive {
            out.push(c);
        }
        class = !escaped && (c == '[' || (class && c != ']')) || (escaped && class);
        before = if escaped || possessive { ' ' } else { c };
        escaped = c == '\\' && !escaped;
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(entry: &Value, text: &str) -> Vec<String> {
        let splits = Splits(vec![Step::Split(Split::published(entry).unwrap())]);
        let mut words = Vec::new();
        splits.split(text, true, &mut |word| words.push(word.to_owned()));
        words
    }

    fn regex(pattern: &str, behaviour: &str) -> Value {
        json!({ "pattern": { "Regex": pattern }, "behavior": behaviour, "invert": false })
    }

    #[test]
    fn white_space_leaves_its_last_character() {
        let gpt2 = regex(r"'s| ?\p{L}+| ?[^\s\p{L}]+|\s+(?!\S)|\s+", "Isolated");
        assert_eq!(words(&gpt2, "a   b\t\tc \n"), ["a", "  ", " b", "\t", "\t", "c", " \n"]);
        assert_eq!(words(&gpt2, " "), [" "]);
    }

    #[test]
    fn matches_go_where_the_behaviour_says() {
        for (behaviour, expected) in [
            ("Isolated", &["a", "-", "-", "b", "-"][..]),
            ("Removed", &["a", "b"]),
            ("MergedWithPrevious", &["a-", "-", "b-"]),
            ("MergedWithNext", &["a", "-", "-b", "-"]),
            ("Contiguous", &["a", "--", "b", "-"]),
        ] {
            assert_eq!(words(&regex("-", behaviour), "a--b-"), expected, "{behaviour}");
        }
    }

    #[test]
    fn possessive_quantifiers_are_greedy_ones() {
        assert_eq!(greedy(r"[^\r\n\p{L}\p{N}]?+\p{L}+|a++|[+*+]+|\++"), r"[^\r\n\p{L}\p{N}]?\p{L}+|a+|[+*+]+|\++");
        assert_eq!(greedy(r"[\]?+]+"), r"[\]?+]+");
    }

    #[test]
    fn looking_around_is_refused() {
        let refused = Split::published(&regex(r"\d{1,3}(?=(?:\d{3})*\b)", "Isolated")).unwrap_err();
        assert!(matches!(refused, HfError::Expression { .. }), "{refused}");
    }
}
