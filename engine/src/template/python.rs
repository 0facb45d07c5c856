//! What templates expect of Python: methods of strings and mappings, printing, JSON.

use std::fmt::Write as _;

use super::MAX_RENDERED;
use minijinja::{
    Error, ErrorKind, Output, State, Value,
    value::{Kwargs, ValueKind, from_args},
};

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Calls a method that Python's type has and Jinja's does not.
pub(super) fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            bounded(text.len())?;
            // What a method makes is paid for afterwards; reading the text is not.
            state.consume_fuel(text.len() as u64 / 64)?;
            string_method(text, name, args)
        }
        ValueKind::Map => map_method(state, value, name, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// Refuses texts that are longer than what a template may give: methods work on none such, and make none.
fn bounded(length: usize) -> Result<(), Error> {
    if length > MAX_RENDERED { Err(invalid("the text is too long")) } else { Ok(()) }
}

fn string_method(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
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
        "splitlines" => {
            let () = from_args(args)?;
            text.lines().collect()
        }
        "startswith" => Value::from(any_affix(args, |affix| text.starts_with(affix))?),
        "endswith" => Value::from(any_affix(args, |affix| text.ends_with(affix))?),
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
            bounded(text.matches(old).take(count).count().saturating_mul(new.len()))?;
            Value::from(text.replacen(old, new, count))
        }
        "find" => {
            let (needle,): (&str,) = from_args(args)?;
            // Positions are in characters, as everywhere in Jinja.
            Value::from(text.find(needle).map_or(-1, |at| text[..at].chars().count() as i64))
        }
        "count" => {
            let (needle,): (&str,) = from_args(args)?;
            Value::from(text.matches(needle).count())
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
        "upper" => Value::from(no_args(args, text)?.to_uppercase()),
        "lower" => Value::from(no_args(args, text)?.to_lowercase()),
        "capitalize" => Value::from(capitalise(no_args(args, text)?)),
        "title" => Value::from(no_args(args, text)?.split_inclusive(' ').map(capitalise).collect::<String>()),
        "isdigit" => Value::from(!no_args(args, text)?.is_empty() && text.chars().all(char::is_numeric)),
        "isspace" => Value::from(!no_args(args, text)?.is_empty() && text.chars().all(blank)),
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

fn no_args<'t>(args: &[Value], text: &'t str) -> Result<&'t str, Error> {
    let () = from_args(args)?;
    Ok(text)
}

fn capitalise(word: &str) -> String {
    let mut chars = word.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect())
}

/// `startswith` and `endswith` take one text or a tuple of them.
fn any_affix(args: &[Value], matches: impl Fn(&str) -> bool) -> Result<bool, Error> {
    let (affix,): (Value,) = from_args(args)?;
    if let Some(affix) = affix.as_str() {
        return Ok(matches(affix));
    }
    for item in affix.try_iter()? {
        if matches(item.as_str().ok_or_else(|| invalid("expected a string or a tuple of strings"))?) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn split(text: &str, from_end: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, most): (Option<&str>, Option<i64>) = from_args(args)?;
    let pieces = most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
    Ok(match separator {
        Some("") => return Err(invalid("empty separator")),
        Some(separator) if from_end => {
            let parts: Vec<&str> = text.rsplitn(pieces, separator).collect();
            parts.into_iter().rev().collect()
        }
        Some(separator) => text.splitn(pieces, separator).collect(),
        None if pieces == usize::MAX => text.split_whitespace().collect(),
        None => return Err(invalid("splitting at white space with a limit is not supported")),
    })
}

fn map_method(state: &mut State<'_, '_>, map: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match name {
        "items" => {
            let () = from_args(args)?;
            state.apply_filter("items", std::slice::from_ref(map))
        }
        "keys" => {
            let () = from_args(args)?;
            Ok(map.try_iter()?.collect())
        }
        "values" => {
            let () = from_args(args)?;
            map.try_iter()?.map(|key| map.get_item(&key)).collect()
        }
        "get" => {
            let (key, default): (Value, Option<Value>) = from_args(args)?;
            let found = map.get_item(&key)?;
            Ok(if found.is_undefined() { default.unwrap_or(Value::from(())) } else { found })
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// Deepest nesting that is written; a template can nest further than a thread's stack reaches.
const MAX_DEPTH: usize = 64;

/// Prints a value as Python's `str` does: `True`, `None`, `['a', 1]`.
pub(super) fn format(out: &mut Output<'_>, _state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => Ok(out.write_str(text)?),
        None => Ok(out.write_str(&string(value)?)?),
    }
}

/// The filter `string`, as Python's `str`.
pub(super) fn string(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    let mut out = String::new();
    if !value.is_undefined() {
        REPR.write(&mut out, value, 0)?;
    }
    Ok(out)
}

/// The filter `tojson` as Hugging Face defines it: Python's `json.dumps` without escaping for HTML or ASCII.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    // Templates pass its default, which is what is done here anyway.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let (comma, colon) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([comma, colon]) => (comma.as_str(), colon.as_str()),
        Some(_) => return Err(invalid("expected two separators")),
    };
    // What is written for each value is bounded, so that the whole is by the work that made the values.
    if indent.unwrap_or(0) > MAX_SPACING || comma.len() > MAX_SPACING || colon.len() > MAX_SPACING {
        return Err(invalid("indent or separator is too long"));
    }
    let mut out = String::new();
    Style { json: true, indent, comma, colon, sort_keys }.write(&mut out, value, 0)?;
    Ok(out)
}

/// Widest indent and longest separator of JSON; templates use an indent of 4.
const MAX_SPACING: usize = 16;

/// How a value is written as text: as Python's `repr`, or as its `json.dumps`.
#[derive(Clone, Copy)]
struct Style<'s> {
    json: bool,
    indent: Option<usize>,
    comma: &'s str,
    colon: &'s str,
    sort_keys: bool,
}

const REPR: Style<'static> = Style { json: false, indent: None, comma: ", ", colon: ": ", sort_keys: false };

impl Style<'_> {
    fn write(self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("the value is nested too deeply"));
        }
        // A value may hold another many times over, so its text can be long however little the value cost.
        bounded(out.len())?;
        match (value.kind(), self.json) {
            (ValueKind::Undefined, true) => {
                return Err(Error::new(ErrorKind::UndefinedError, "an undefined value cannot be written as JSON"));
            }
            (ValueKind::None, true) => out.push_str("null"),
            (ValueKind::Undefined | ValueKind::None, _) => out.push_str("None"),
            (ValueKind::Bool, true) => out.push_str(if value.is_true() { "true" } else { "false" }),
            (ValueKind::Bool, false) => out.push_str(if value.is_true() { "True" } else { "False" }),
            (ValueKind::Number, _) if !value.is_integer() => out.push_str(&float(f64::try_from(value.clone())?)),
            (ValueKind::String, true) => out.push_str(&json_text(value.as_str().unwrap_or_default())?),
            (ValueKind::String, false) => quote(out, value.as_str().unwrap_or_default()),
            (ValueKind::Seq | ValueKind::Iterable, _) => {
                let tuple = value.is_tuple() && !self.json;
                out.push(if tuple { '(' } else { '[' });
                let mut count = 0;
                for item in value.try_iter()? {
                    self.separate(out, count, depth);
                    count += 1;
                    self.write(out, &item, depth + 1)?;
                }
                self.end(out, count, depth);
                out.push_str(match (tuple, count) {
                    (true, 1) => ",)",
                    (true, _) => ")",
                    (false, _) => "]",
                });
            }
            (ValueKind::Map, _) => {
                out.push('{');
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                for (count, key) in keys.iter().enumerate() {
                    self.separate(out, count, depth);
                    match key.as_str() {
                        None if self.json => out.push_str(&json_text(&key.to_string())?),
                        _ => self.write(out, key, depth + 1)?,
                    }
                    out.push_str(self.colon);
                    self.write(out, &value.get_item(key)?, depth + 1)?;
                }
                self.end(out, keys.len(), depth);
                out.push('}');
            }
            (ValueKind::Number, _) | (_, false) => write!(out, "{value}")?,
            (kind, true) => return Err(invalid(format!("{kind} cannot be written as JSON"))),
        }
        Ok(())
    }

    fn separate(self, out: &mut String, count: usize, depth: usize) {
        out.push_str(if count == 0 { "" } else { self.comma });
        self.line(out, depth + 1);
    }

    fn end(self, out: &mut String, count: usize, depth: usize) {
        if count > 0 {
            self.line(out, depth);
        }
    }

    fn line(self, out: &mut String, depth: usize) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }
}

fn json_text(text: &str) -> Result<String, Error> {
    serde_json::to_string(text).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// A string literal as Python prints it.
fn quote(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A float as Python writes it: the shortest digits, `1e-07` where Rust writes `1e-7`.
fn float(value: f64) -> String {
    let text = format!("{value:?}");
    match text.split_once('e') {
        None => text,
        Some((digits, exponent)) => {
            let (sign, power) = exponent.strip_prefix('-').map_or(('+', exponent), |power| ('-', power));
            format!("{digits}e{sign}{power:0>2}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_pythons() {
        let written = [1.0, 0.1, 1e-7, 1e16, 1.5e300, 123_456.789, 1e15, 0.0001].map(float);
        let expected = ["1.0", "0.1", "1e-07", "1e+16", "1.5e+300", "123456.789", "1000000000000000.0", "0.0001"];
        assert_eq!(written, expected);
    }
}
