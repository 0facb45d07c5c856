//! Matchers that the families' expressions are made of. Each gives the length of its match at a position, 0 for none,
//! in characters. Together they take time linear in the text: a matcher looks no further than a run of characters
//! which the alternatives then consume in a bounded number of matches.

use super::class::Char;

/// How many characters from `at` on match.
pub(super) fn run(text: &[Char], at: usize, matches: impl Fn(Char) -> bool) -> usize {
    text.get(at..).unwrap_or_default().iter().take_while(|ch| matches(**ch)).count()
}

fn is_at(text: &[Char], at: usize, matches: impl Fn(Char) -> bool) -> bool {
    text.get(at).is_some_and(|ch| matches(*ch))
}

/// A single character.
pub(super) fn one(text: &[Char], at: usize, matches: impl Fn(Char) -> bool) -> usize {
    usize::from(is_at(text, at, matches))
}

/// `lead?body+`, for a lead that is no part of the body or whose being one makes no difference.
pub(super) fn led(text: &[Char], at: usize, lead: impl Fn(Char) -> bool, body: impl Fn(Char) -> bool + Copy) -> usize {
    let lead = usize::from(is_at(text, at, lead) && is_at(text, at + 1, body));
    match run(text, at + lead, body) {
        0 => 0,
        count => lead + count,
    }
}

/// `\p{N}{1,most}`
pub(super) fn digits(text: &[Char], at: usize, most: usize) -> usize {
    text.get(at..).unwrap_or_default().iter().take(most).take_while(|ch| ch.number()).count()
}

/// `[0-9][0-9][0-9]`
pub(super) fn triple(text: &[Char], at: usize) -> usize {
    let digits = text.get(at..at + 3).is_some_and(|digits| digits.iter().all(|ch| ch.c.is_ascii_digit()));
    if digits { 3 } else { 0 }
}

/// `'s|'t|'re|'ve|'m|'ll|'d`; `fold` ignores the case of ASCII letters.
pub(super) fn contraction(text: &[Char], at: usize, fold: bool) -> usize {
    let letter = |at: usize| text.get(at).map(|ch| if fold { ch.c.to_ascii_lowercase() } else { ch.c });
    if letter(at) != Some('\'') {
        return 0;
    }
    match (letter(at + 1), letter(at + 2)) {
        (Some('s' | 't' | 'm' | 'd'), _) => 2,
        (Some('r' | 'v'), Some('e')) | (Some('l'), Some('l')) => 3,
        _ => 0,
    }
}

/// `[^\r\n\p{L}\p{N}]`, what may stand before a word.
fn word_lead(ch: Char) -> bool {
    !ch.newline() && !ch.letter() && !ch.number()
}

/// `[^\r\n\p{L}\p{N}]?\p{L}+`
pub(super) fn word(text: &[Char], at: usize) -> usize {
    led(text, at, word_lead, Char::letter)
}

/// `[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+`
pub(super) fn marked_word(text: &[Char], at: usize) -> usize {
    led(text, at, word_lead, Char::letter_or_mark)
}

/// `[^\r\n\p{L}\p{N}]?letter+` and a contraction, if one follows.
pub(super) fn contracted_word(text: &[Char], at: usize, letter: impl Fn(Char) -> bool + Copy) -> usize {
    match led(text, at, word_lead, letter) {
        0 => 0,
        count => count + contraction(text, at + count, true),
    }
}

/// `lead?U*W+|lead?U+W*`, where U is any letter but a–z and W any letter but A–Z, as llama.cpp has it.
pub(super) fn cased_word(text: &[Char], at: usize, letter: impl Fn(Char) -> bool + Copy) -> usize {
    let lead = one(text, at, word_lead);
    // Both expressions first try with the lead; without it the same character may be a letter of the word.
    let starts = [lead, 0];
    let ends_low = starts.iter().find_map(|lead| Some(lead + ending_low(text, at + lead, letter)?));
    let all_high = || starts.iter().find_map(|lead| Some(lead + starting_high(text, at + lead, letter)?));
    ends_low.or_else(all_high).unwrap_or(0)
}

/// `U*W+`
fn ending_low(text: &[Char], at: usize, letter: impl Fn(Char) -> bool) -> Option<usize> {
    let low = |ch: Char| letter(ch) && !ch.c.is_ascii_uppercase();
    let highs = run(text, at, |ch| letter(ch) && !ch.c.is_ascii_lowercase());
    let lows = run(text, at + highs, low);
    if lows > 0 {
        return Some(highs + lows);
    }
    // U* gives back letters until W+ has one: the last letter that is both.
    text.get(at..at + highs)?.iter().rposition(|ch| low(*ch)).map(|last| last + 1)
}

/// `U+W*`, where `U*W+` does not match: no letter is left to W.
fn starting_high(text: &[Char], at: usize, letter: impl Fn(Char) -> bool) -> Option<usize> {
    Some(run(text, at, |ch| letter(ch) && !ch.c.is_ascii_lowercase())).filter(|highs| *highs > 0)
}

/// `[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+`: words go on over single spaces.
pub(super) fn phrase(text: &[Char], at: usize) -> usize {
    let lead = usize::from(is_at(text, at, word_lead) && is_at(text, at + 1, Char::letter));
    let mut end = at + lead;
    if !is_at(text, end, Char::letter) {
        return 0;
    }
    loop {
        end += run(text, end, Char::letter_or_mark);
        if !is_at(text, end, |ch| ch.c == ' ') || !is_at(text, end + 1, Char::letter) {
            return end - at;
        }
        end += 1;
    }
}

/// `[!-/:-@\[-`{-~][A-Za-z]+`
pub(super) fn punctuated_word(text: &[Char], at: usize) -> usize {
    let letters = run(text, at + 1, |ch| ch.c.is_ascii_alphabetic());
    if letters > 0 && is_at(text, at, |ch| ch.c.is_ascii_punctuation()) { 1 + letters } else { 0 }
}

/// ` ?other+` and as much of `tail` as follows.
pub(super) fn others(
    text: &[Char],
    at: usize,
    other: impl Fn(Char) -> bool + Copy,
    tail: impl Fn(Char) -> bool,
) -> usize {
    match led(text, at, |ch| ch.c == ' ', other) {
        0 => 0,
        count => count + run(text, at + count, tail),
    }
}

/// `\s+(?!\S)|\s+`: white space leaves its last character to the word that follows.
pub(super) fn spaces(text: &[Char], at: usize) -> usize {
    let count = run(text, at, Char::space);
    if count > 1 && at + count < text.len() { count - 1 } else { count }
}

/// `\s*[\r\n]+`
pub(super) fn newlines(text: &[Char], at: usize) -> usize {
    let before = at.checked_sub(1).and_then(|before| text.get(before));
    if before.is_some_and(|ch| ch.space() && !ch.newline()) {
        // An earlier match would have taken the newlines of this white space.
        return 0;
    }
    let count = run(text, at, Char::space);
    let space = text.get(at..at + count).unwrap_or_default();
    space.iter().rposition(|ch| ch.newline()).map_or(0, |last| last + 1)
}

/// `\s{512}(?!\S)|\s{256}(?!\S)|…|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}`
pub(super) fn spaces_by_halves(text: &[Char], at: usize) -> usize {
    let count = text.get(at..).unwrap_or_default().iter().take(513).take_while(|ch| ch.space()).count();
    // A word follows, and no match may end right before it.
    let free = if at + count < text.len() && count <= 512 { count.saturating_sub(1) } else { count };
    match free {
        0 => count.min(1),
        free => 1 << free.min(512).ilog2(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chars(text: &str) -> Vec<Char> {
        text.chars().map(Char::new).collect()
    }

    #[test]
    fn white_space_by_halves_leaves_one_to_the_word() {
        for (text, expected) in [("  a", 1), ("   a", 2), ("    a", 2), ("     a", 4), ("    ", 4), (" ", 1), (" a", 1)]
        {
            assert_eq!(spaces_by_halves(&chars(text), 0), expected, "{text:?}");
        }
        assert_eq!(spaces_by_halves(&chars(&" ".repeat(2000)), 0), 512);
        assert_eq!(spaces_by_halves(&chars(&(" ".repeat(513) + "a")), 0), 512);
        assert_eq!(spaces_by_halves(&chars(&(" ".repeat(512) + "a")), 0), 256);
    }

    #[test]
    fn capitals_give_back_what_a_small_letter_needs() {
        let cased = |text: &str| cased_word(&chars(text), 0, Char::letter);
        assert_eq!(["ABc", "ABÉ", "ÉAB", " AB", "AB", "1A"].map(cased), [3, 3, 1, 3, 2, 0]);
        // With marks as letters, one before capitals is a word of its own.
        assert_eq!(cased_word(&chars("\u{301}ABC"), 0, Char::letter_or_mark), 1);
    }
}
