//! The expressions of the families.
//!
//! An expression stands above its list; its alternatives are the list's entries, and what none of them matches stands
//! alone.

use super::{
    Pass,
    class::{Char, Class},
    ranges, scan,
    scan::{
        cased_word, contracted_word, contraction, digits, newlines, one, others, phrase, punctuated_word, run, spaces,
        spaces_by_halves, triple, word,
    },
};

fn never(_: Char) -> bool {
    false
}

fn newline_or_slash(ch: Char) -> bool {
    ch.newline() || ch.c == '/'
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
const GPT2_WORDS: Pass = Pass::Alternatives(&[
    |t, at| contraction(t, at, false),
    |t, at| others(t, at, Char::letter, never),
    |t, at| others(t, at, Char::number, never),
    |t, at| others(t, at, Char::other, never),
    spaces,
]);

/// `\p{N}`
const EACH_NUMBER: Pass = Pass::Alternatives(&[|t, at| one(t, at, Char::number)]);
/// `\p{N}{1,3}`
const NUMBERS_BY_THREE: Pass = Pass::Alternatives(&[|t, at| digits(t, at, 3)]);
/// `\p{N}+`
const NUMBERS: Pass = Pass::Alternatives(&[|t, at| run(t, at, Char::number)]);
/// `[0-9][0-9][0-9]`
const TRIPLES: Pass = Pass::Alternatives(&[triple]);
/// `[\r\n]`
const EACH_NEWLINE: Pass = Pass::Alternatives(&[|t, at| one(t, at, Char::newline)]);
/// `[^\n]+|[\n]+`
const LINE_RUNS: Pass =
    Pass::Alternatives(&[|t, at| run(t, at, |ch| ch.c != '\n'), |t, at| run(t, at, |ch| ch.c == '\n')]);

/// `\S+`
pub(super) const BLANKS: &[Pass] = &[Pass::Alternatives(&[|t, at| run(t, at, |ch| !ch.space())])];
pub(super) const LINES: &[Pass] = &[LINE_RUNS];
pub(super) const GPT2: &[Pass] = &[GPT2_WORDS];
pub(super) const DIGITS_GPT2: &[Pass] = &[EACH_NUMBER, GPT2_WORDS];

/// `[\p{P}\$\+<=>\^~\|]+`, GPT-2's, `\p{N}+`, `[0-9][0-9][0-9]`
pub(super) const DEFAULT: &[Pass] =
    &[Pass::Alternatives(&[|t, at| run(t, at, falcon_punctuation)]), GPT2_WORDS, NUMBERS, TRIPLES];
/// ``[\p{P}\$\+<=>\^~\|`]+``, GPT-2's, `[0-9][0-9][0-9]`
pub(super) const FALCON: &[Pass] =
    &[Pass::Alternatives(&[|t, at| run(t, at, |ch| falcon_punctuation(ch) || ch.c == '`')]), GPT2_WORDS, TRIPLES];

fn falcon_punctuation(ch: Char) -> bool {
    ch.is(Class::Punctuation) || matches!(ch.c, '$' | '+' | '<' | '=' | '>' | '^' | '~' | '|')
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
pub(super) const LLAMA3: &[Pass] = &[Pass::Alternatives(&[
    |t, at| contraction(t, at, true),
    word,
    |t, at| digits(t, at, 3),
    |t, at| others(t, at, Char::other, Char::newline),
    newlines,
    spaces,
])];
/// Llama 3's, with white space cut by halves.
pub(super) const JAIS2: &[Pass] = &[Pass::Alternatives(&[
    |t, at| contraction(t, at, true),
    word,
    |t, at| digits(t, at, 3),
    |t, at| others(t, at, Char::other, Char::newline),
    newlines,
    spaces_by_halves,
])];
/// Llama 3's, with single digits.
const QWEN2_WORDS: Pass = Pass::Alternatives(&[
    |t, at| contraction(t, at, true),
    word,
    |t, at| one(t, at, Char::number),
    |t, at| others(t, at, Char::other, Char::newline),
    newlines,
    spaces,
]);
pub(super) const QWEN2: &[Pass] = &[QWEN2_WORDS];
pub(super) const LAGUNA: &[Pass] = &[LINE_RUNS, QWEN2_WORDS];
/// Qwen 2's, with combining marks as letters.
pub(super) const QWEN35: &[Pass] = &[Pass::Alternatives(&[
    |t, at| contraction(t, at, true),
    scan::marked_word,
    |t, at| one(t, at, Char::number),
    |t, at| others(t, at, Char::other_than_mark, Char::newline),
    newlines,
    spaces,
])];
/// Qwen 2's without the contractions.
pub(super) const UFAKZEKA: &[Pass] = &[Pass::Alternatives(&[
    word,
    |t, at| one(t, at, Char::number),
    |t, at| others(t, at, Char::other, Char::newline),
    newlines,
    spaces,
])];
/// Qwen 2's, where newlines after punctuation stand alone.
pub(super) const SEED_CODER: &[Pass] = &[Pass::Alternatives(&[
    |t, at| contraction(t, at, true),
    word,
    |t, at| one(t, at, Char::number),
    |t, at| others(t, at, Char::other, never),
    newlines,
    spaces,
])];
/// `\p{N}{1,3}`, and Llama 3's with numbers of any length
pub(super) const MINICPM5: &[Pass] = &[
    NUMBERS_BY_THREE,
    Pass::Alternatives(&[
        |t, at| contraction(t, at, true),
        word,
        |t, at| run(t, at, Char::number),
        |t, at| others(t, at, Char::other, Char::newline),
        newlines,
        spaces,
    ]),
];
/// `(?i:'s|…)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+`
pub(super) const EXAONE_MOE: &[Pass] = &[Pass::Alternatives(&[
    |t, at| contraction(t, at, true),
    phrase,
    |t, at| one(t, at, Char::number),
    |t, at| match others(t, at, Char::other, never) {
        0 => 0,
        count => count + one(t, at + count, newline_or_slash),
    },
    newlines,
    spaces,
])];

/// `[^\r\n\p{L}\p{N}]?U*W+|[^\r\n\p{L}\p{N}]?U+W*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
pub(super) const TEKKEN: &[Pass] = &[Pass::Alternatives(&[
    |t, at| cased_word(t, at, Char::letter),
    |t, at| one(t, at, Char::number),
    |t, at| others(t, at, Char::other, newline_or_slash),
    newlines,
    spaces,
])];
/// Tekken's, with a contraction as the end of a word and three digits.
pub(super) const GPT4O: &[Pass] = &[Pass::Alternatives(&[
    |t, at| contracted_cased_word(t, at, Char::letter),
    |t, at| digits(t, at, 3),
    |t, at| others(t, at, Char::other, newline_or_slash),
    newlines,
    spaces,
])];
/// GPT-4o's, with combining marks as letters.
pub(super) const GRANITE_EMBED: &[Pass] = &[Pass::Alternatives(&[
    |t, at| contracted_cased_word(t, at, Char::letter_or_mark),
    |t, at| digits(t, at, 3),
    |t, at| others(t, at, Char::other, newline_or_slash),
    newlines,
    spaces,
])];

fn contracted_cased_word(text: &[Char], at: usize, letter: impl Fn(Char) -> bool + Copy) -> usize {
    match cased_word(text, at, letter) {
        0 => 0,
        count => count + contraction(text, at + count, true),
    }
}

/// Thousands, then GPT-4o's with letters of any case and marks as one.
pub(super) const TINY_AYA: &[Pass] = &[
    Pass::Cuts(groups_of_three),
    Pass::Alternatives(&[
        |t, at| contracted_word(t, at, Char::letter_or_mark),
        |t, at| digits(t, at, 3),
        |t, at| others(t, at, Char::other, newline_or_slash),
        newlines,
        spaces,
    ]),
];
/// `[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+`, then as Tiny Aya with single digits
pub(super) const YOUTU: &[Pass] = &[
    Pass::Alternatives(&[
        |t, at| run(t, at, |ch| ch.within(ranges::HANGUL)),
        |t, at| run(t, at, |ch| ch.within(ranges::CHINESE_PUNCTUATION)),
        |t, at| run(t, at, |ch| ch.within(ranges::BOPOMOFO)),
        |t, at| run(t, at, |ch| ch.within(ranges::HAN_AND_KANA)),
    ]),
    Pass::Alternatives(&[
        |t, at| contracted_word(t, at, Char::letter_or_mark),
        |t, at| one(t, at, Char::number),
        |t, at| others(t, at, Char::other, newline_or_slash),
        newlines,
        spaces,
    ]),
];
/// `\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^\p{Han}]]+(?i:'s|…)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
pub(super) const KIMI_K2: &[Pass] = &[Pass::Alternatives(&[
    |t, at| run(t, at, han),
    |t, at| contracted_word(t, at, |ch| ch.letter() && !han(ch)),
    |t, at| digits(t, at, 3),
    |t, at| others(t, at, Char::other, Char::newline),
    newlines,
    spaces,
])];

fn han(ch: Char) -> bool {
    ch.within(ranges::HAN)
}

/// `[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
const DEEPSEEK3_WORDS: Pass = Pass::Alternatives(&[
    punctuated_word,
    deepseek_word,
    |t, at| others(t, at, Char::punctuation_or_symbol, Char::newline),
    newlines,
    spaces,
]);

fn deepseek_word(text: &[Char], at: usize) -> usize {
    let lead = |ch: Char| !ch.newline() && !ch.letter() && !ch.punctuation_or_symbol();
    scan::led(text, at, lead, Char::letter_or_mark)
}

/// `[一-龥぀-ゟ゠-ヿ]+`
const HAN_AND_KANA: Pass = Pass::Alternatives(&[|t, at| run(t, at, |ch| ch.within(ranges::HAN_AND_KANA))]);

pub(super) const DEEPSEEK3: &[Pass] = &[NUMBERS_BY_THREE, HAN_AND_KANA, DEEPSEEK3_WORDS];
/// DeepSeek 3's, where each newline stands alone.
pub(super) const SPARK: &[Pass] = &[
    NUMBERS_BY_THREE,
    HAN_AND_KANA,
    Pass::Alternatives(&[
        punctuated_word,
        deepseek_word,
        |t, at| others(t, at, Char::punctuation_or_symbol, never),
        |t, at| one(t, at, Char::newline),
        spaces,
    ]),
    EACH_NUMBER,
];
pub(super) const AFMOE: &[Pass] = &[
    Pass::Cuts(groups_of_three),
    Pass::Alternatives(&[|t, at| run(t, at, |ch| ch.within(ranges::ASIAN))]),
    DEEPSEEK3_WORDS,
];
/// `[一-龥ࠀ-一가-퟿]+`
const SAMARITAN_TO_HAN: Pass = Pass::Alternatives(&[|t, at| run(t, at, |ch| literally(ch, ranges::SAMARITAN_TO_HAN))]);

/// Whether the character is in the ranges. As in llama.cpp, white space outside ASCII never is.
fn literally(ch: Char, ranges: &[(char, char)]) -> bool {
    ch.within(ranges) && !ch.space()
}

/// `[\r\n]`, `\s?[A-Za-zµ…]+`, `\s?[!-/:-~！-／：-～‘-‟　-。]+`, `\s+$`, `[一-龥ࠀ-一가-퟿]+`, `\p{N}+`
pub(super) const DEEPSEEK_LLM: &[Pass] = &[
    EACH_NEWLINE,
    Pass::Alternatives(&[|t, at| scan::led(t, at, Char::space, |ch| ch.within(ranges::CASED_LETTERS))]),
    Pass::Alternatives(&[|t, at| scan::led(t, at, Char::space, |ch| literally(ch, ranges::DEEPSEEK_PUNCTUATION))]),
    Pass::Cuts(trailing_spaces),
    SAMARITAN_TO_HAN,
    NUMBERS,
];

/// `[\r\n]`, `\s?\p{L}+`, `\s?\p{P}+`, `[一-龥ࠀ-一가-퟿]+`, `\p{N}`
pub(super) const DEEPSEEK_CODER: &[Pass] = &[
    EACH_NEWLINE,
    Pass::Alternatives(&[|t, at| scan::led(t, at, Char::space, Char::letter)]),
    Pass::Alternatives(&[|t, at| scan::led(t, at, Char::space, |ch| ch.is(Class::Punctuation))]),
    SAMARITAN_TO_HAN,
    EACH_NUMBER,
];

/// ` ?[^(\s|.,!?…。，、।۔،)]+`
const BLOOM_WORDS: Pass = Pass::Alternatives(&[|t, at| others(t, at, bloom_letter, never)]);
pub(super) const BLOOM: &[Pass] = &[BLOOM_WORDS];
pub(super) const VIKING: &[Pass] = &[BLOOM_WORDS, EACH_NUMBER];

fn bloom_letter(ch: Char) -> bool {
    !ch.space() && !"(|.,!?…。，、।۔،)".contains(ch.c)
}

/// `<sentinel:[0-9]+>`, `IMGIMG[A-I]{1,4}Z`, `[\t\n]|    |  `, `\p{N}`, ``[\p{P}!-/:-@\[-`{-~]``, GPT-2's
pub(super) const CHAMELEON: &[Pass] = &[
    Pass::Alternatives(&[sentinel]),
    Pass::Alternatives(&[image]),
    Pass::Alternatives(&[
        |t, at| one(t, at, |ch| matches!(ch.c, '\t' | '\n')),
        |t, at| literal(t, at, "    "),
        |t, at| literal(t, at, "  "),
    ]),
    EACH_NUMBER,
    Pass::Alternatives(&[|t, at| one(t, at, |ch| ch.is(Class::Punctuation) || ch.c.is_ascii_punctuation())]),
    GPT2_WORDS,
];

/// `\p{N}+`, `(?=(\d{3})+(?!\d))`
pub(super) const SUPERBPE: &[Pass] = &[NUMBERS, Pass::Cuts(thousands)];

/// The characters of `expected`.
fn literal(text: &[Char], at: usize, expected: &str) -> usize {
    let count = expected.chars().count();
    let found = text.get(at..at + count).is_some_and(|found| found.iter().map(|ch| ch.c).eq(expected.chars()));
    if found { count } else { 0 }
}

fn sentinel(text: &[Char], at: usize) -> usize {
    match literal(text, at, "<sentinel:") {
        0 => 0,
        start => match run(text, at + start, |ch| ch.c.is_ascii_digit()) {
            digits if digits > 0 && literal(text, at + start + digits, ">") > 0 => start + digits + 1,
            _ => 0,
        },
    }
}

fn image(text: &[Char], at: usize) -> usize {
    match literal(text, at, "IMGIMG") {
        0 => 0,
        start => match run(text, at + start, |ch| matches!(ch.c, 'A'..='I')) {
            letters @ 1..=4 if literal(text, at + start + letters, "Z") > 0 => start + letters + 1,
            _ => 0,
        },
    }
}

/// Cuts the white space at the end off.
fn trailing_spaces(text: &[Char], end: &mut dyn FnMut(usize)) {
    let spaces = text.iter().rev().take_while(|ch| ch.space()).count();
    if spaces < text.len() {
        end(text.len() - spaces);
    }
}

/// Cuts numbers in threes from their right end. As in llama.cpp, the first cut of each comes after its one to three
/// first digits: what stands before a number stays with them.
fn groups_of_three(text: &[Char], end: &mut dyn FnMut(usize)) {
    let mut at = 0;
    while at < text.len() {
        let count = run(text, at, Char::number);
        let first = if count.is_multiple_of(3) { 3 } else { count % 3 };
        (first..=count).step_by(3).for_each(|digits| end(at + digits));
        at += count + run(text, at + count, |ch| !ch.number());
    }
}

/// Cuts before each three digits, counted from the right end of a number of ASCII digits.
fn thousands(text: &[Char], end: &mut dyn FnMut(usize)) {
    let mut at = 0;
    while at < text.len() {
        let count = run(text, at, |ch| ch.c.is_ascii_digit());
        (0..count).filter(|digits| (count - digits).is_multiple_of(3)).for_each(|digits| end(at + digits));
        at += count + run(text, at + count, |ch| !ch.c.is_ascii_digit());
    }
}
