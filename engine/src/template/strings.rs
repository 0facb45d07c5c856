//! The methods of Python's strings.

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, Tuple, from_args},
};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use super::{
    format,
    python::{bounded, invalid},
};

/// Calls a method of a string. What it makes is no longer than a template's text may be.
pub(super) fn method(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let blank = char::is_whitespace;
    Ok(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (set,): (Option<String>,) = from_args(args)?;
            let strip = |c: char| set.as_ref().map_or_else(|| blank(c), |set| set.contains(c));
            Value::from(match name {
                "strip" => text.trim_matches(strip),
                "lstrip" => text.trim_start_matches(strip),
                _ => text.trim_end_matches(strip),
            })
        }
        "split" | "rsplit" => split(text, name == "rsplit", args)?,
        "splitlines" => lines(text, args)?,
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let cut = if name == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
            let parts = match cut {
                _ if separator.is_empty() => return Err(invalid("empty separator")),
                Some((before, after)) => [before, separator, after],
                None if name == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Value::from(Tuple::new(parts.map(Value::from).to_vec()))
        }
        "startswith" => Value::from(any_affix(text, args, |text, affix| text.starts_with(affix))?),
        "endswith" => Value::from(any_affix(text, args, |text, affix| text.ends_with(affix))?),
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "replace" => {
            let (old, new, count, named): (&str, &str, Option<i64>, Kwargs) = from_args(args)?;
            let count = count.or(named.get("count")?);
            named.assert_all_used()?;
            let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
            bounded(text.matches(old).take(count).count().saturating_mul(new.len()))?;
            Value::from(text.replacen(old, new, count))
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (needle, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let (skipped, within) = slice(text, start, end);
            let at = if name.starts_with('r') { within.rfind(needle) } else { within.find(needle) };
            // Positions are in characters, as everywhere in Jinja.
            let at = at.map(|at| (skipped + within.get(..at).unwrap_or_default().chars().count()) as i64);
            match at {
                None if name.ends_with("index") => return Err(invalid("substring not found")),
                at => Value::from(at.unwrap_or(-1)),
            }
        }
        "count" => {
            let (needle, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            Value::from(slice(text, start, end).1.matches(needle).count())
        }
        "join" => {
            let (parts,): (Value,) = from_args(args)?;
            let mut joined = String::new();
            for (at, part) in parts.try_iter()?.enumerate() {
                joined.push_str(if at == 0 { "" } else { text });
                joined.push_str(part.as_str().ok_or_else(|| invalid("only strings can be joined"))?);
                bounded(joined.len())?;
            }
            Value::from(joined)
        }
        "format" => Value::from(format::format(text, args)?),
        "ljust" | "rjust" | "center" | "zfill" => Value::from(pad(text, name, args)?),
        "upper" => Value::from(no_args(args, text)?.to_uppercase()),
        "casefold" => Value::from(no_args(args, text)?.to_lowercase().replace('ß', "ss")),
        "lower" => Value::from(no_args(args, text)?.to_lowercase()),
        "swapcase" => {
            let swap = |c: char| {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect::<String>() }
            };
            Value::from(no_args(args, text)?.chars().map(swap).collect::<String>())
        }
        "capitalize" => Value::from(capitalise(no_args(args, text)?)),
        "title" => Value::from(title(no_args(args, text)?)),
        name if name.starts_with("is") => {
            let holds = is(no_args(args, text)?, name).ok_or_else(|| Error::from(ErrorKind::UnknownMethod))?;
            Value::from(holds)
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

fn no_args<'t>(args: &[Value], text: &'t str) -> Result<&'t str, Error> {
    let () = from_args(args)?;
    Ok(text)
}

/// The questions that begin with `is`; an empty text answers most with no.
fn is(text: &str, name: &str) -> Option<bool> {
    let all = |holds: fn(char) -> bool| !text.is_empty() && text.chars().all(holds);
    let cased = |holds: fn(char) -> bool, never: fn(char) -> bool| text.chars().any(holds) && !text.chars().any(never);
    Some(match name {
        "isnumeric" => all(char::is_numeric),
        "isdecimal" => all(decimal),
        // Superscripts, subscripts and digits in circles are digits, fractions and Roman numerals are not.
        "isdigit" => all(|c| {
            decimal(c) || matches!(c, '²' | '³' | '¹' | '\u{2070}'..='\u{2079}' | '₀'..='₉' | '①'..='⑨' | '⑴'..='⑼')
        }),
        "isspace" => all(char::is_whitespace),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isascii" => text.is_ascii(),
        "isupper" => cased(char::is_uppercase, char::is_lowercase),
        "islower" => cased(char::is_lowercase, char::is_uppercase),
        "istitle" => text.chars().any(char::is_alphabetic) && title(text) == text,
        "isidentifier" => {
            let start = |c: char| c.is_alphabetic() || c == '_';
            text.starts_with(start) && text.chars().all(|c| start(c) || c.is_numeric())
        }
        _ => return None,
    })
}

fn decimal(c: char) -> bool {
    c.general_category() == GeneralCategory::DecimalNumber
}

/// The characters from `start` to `end`, negative ones counted from the end, and how many were skipped.
fn slice(text: &str, start: Option<i64>, end: Option<i64>) -> (usize, &str) {
    if start.is_none() && end.is_none() {
        return (0, text);
    }
    let count = text.chars().count();
    let place = |at: i64| {
        let distance = usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX);
        if at < 0 { count.saturating_sub(distance) } else { distance.min(count) }
    };
    let (start, end) = (start.map_or(0, place), end.map_or(count, place));
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    (start, text.get(byte(start)..byte(end)).unwrap_or_default())
}

fn capitalise(word: &str) -> String {
    let mut chars = word.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect())
}

/// A capital after whatever is no letter, as Python has it: `They'Re`.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}

/// `startswith` and `endswith` take one text or a tuple of them, and perhaps where to look.
fn any_affix(text: &str, args: &[Value], matches: impl Fn(&str, &str) -> bool) -> Result<bool, Error> {
    let (affix, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
    let text = slice(text, start, end).1;
    if let Some(affix) = affix.as_str() {
        return Ok(matches(text, affix));
    }
    for item in affix.try_iter()? {
        if matches(text, item.as_str().ok_or_else(|| invalid("expected a string or a tuple of strings"))?) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn split(text: &str, from_end: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, most, named): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = separator.or(named.get("sep")?);
    let most = most.or(named.get("maxsplit")?);
    named.assert_all_used()?;
    let pieces = most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
    Ok(match separator {
        Some("") => return Err(invalid("empty separator")),
        Some(separator) if from_end => {
            let parts: Vec<&str> = text.rsplitn(pieces, separator).collect();
            parts.into_iter().rev().collect()
        }
        Some(separator) => text.splitn(pieces, separator).collect(),
        None if pieces == usize::MAX => text.split_whitespace().collect(),
        None => at_white_space(text, from_end, pieces).into_iter().collect(),
    })
}

/// At most `pieces` pieces between white space; the last keeps the white space within.
fn at_white_space(text: &str, from_end: bool, pieces: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = if from_end { text.trim_end() } else { text.trim_start() };
    while !rest.is_empty() {
        let cut = if from_end { rest.rsplit_once(char::is_whitespace) } else { rest.split_once(char::is_whitespace) };
        let (part, others) = match cut {
            Some((before, after)) if parts.len() + 1 < pieces => {
                if from_end {
                    (after, before.trim_end())
                } else {
                    (before, after.trim_start())
                }
            }
            _ => (rest, ""),
        };
        parts.push(part);
        rest = others;
    }
    if from_end {
        parts.reverse();
    }
    parts
}

fn lines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (keep, named): (Option<bool>, Kwargs) = from_args(args)?;
    let keep = keep.or(named.get("keepends")?).unwrap_or(false);
    named.assert_all_used()?;
    let mut lines = Vec::new();
    let mut rest = text;
    // What Python takes for the end of a line.
    let ends = ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    while let Some((line, after)) = rest.split_once(ends) {
        let after = if rest[line.len()..].starts_with("\r\n") { &after[1..] } else { after };
        let whole = &rest[..rest.len() - after.len()];
        lines.push(if keep { whole } else { line });
        rest = after;
    }
    lines.extend((!rest.is_empty()).then_some(rest));
    Ok(lines.into_iter().collect())
}

fn pad(text: &str, name: &str, args: &[Value]) -> Result<String, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let mut fill = fill.unwrap_or(if name == "zfill" { "0" } else { " " }).chars();
    let (Some(fill), None) = (fill.next(), fill.next()) else {
        return Err(invalid("the fill character must be exactly one character long"));
    };
    let width = usize::try_from(width).unwrap_or(0);
    bounded(width)?;
    let count = text.chars().count();
    let missing = width.saturating_sub(count);
    let run = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
    Ok(match name {
        "ljust" => [text, &run(missing)].concat(),
        "center" => {
            // Python puts the odd one on the left when the width is odd.
            let left = missing / 2 + (missing & width & 1);
            [run(left).as_str(), text, &run(missing - left)].concat()
        }
        "zfill" if text.starts_with(['+', '-']) => [&text[..1], &run(missing), &text[1..]].concat(),
        _ => [&run(missing), text].concat(),
    })
}
