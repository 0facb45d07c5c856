//! What templates expect of Python: methods of strings and mappings, printing, JSON.

use std::fmt::Write as _;

use super::{MAX_RENDERED, filters::pay, strings};
use minijinja::{
    Error, ErrorKind, Output, State, Value,
    value::{Kwargs, ValueKind, from_args},
};
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

pub(super) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Calls a method that Python's type has and Jinja's does not.
pub(super) fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            // What a method makes is paid for afterwards; reading the text, and others given to it, is not.
            pay(state, text)?;
            args.iter().filter_map(Value::as_str).try_for_each(|text| pay(state, text))?;
            strings::method(text, name, args)
        }
        ValueKind::Map => map_method(state, value, name, args),
        ValueKind::Seq => list_method(state, value, name, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// Refuses texts that are longer than what a template may give: methods work on none such, and make none.
pub(super) fn bounded(length: usize) -> Result<(), Error> {
    if length > MAX_RENDERED { Err(invalid("the text is too long")) } else { Ok(()) }
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
        "copy" => {
            let () = from_args(args)?;
            Ok(map.clone())
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn list_method(state: &mut State<'_, '_>, list: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if !matches!(name, "index" | "count" | "copy") {
        // What changes a list is refused in Python, too, where templates run.
        return Err(Error::from(ErrorKind::UnknownMethod));
    }
    if name == "copy" {
        let () = from_args(args)?;
        return Ok(list.clone());
    }
    state.consume_fuel(list.len().unwrap_or(0) as u64)?;
    let (wanted,): (Value,) = from_args(args)?;
    let mut found = list.try_iter()?.enumerate().filter(|(_, item)| *item == wanted).map(|(at, _)| at);
    match name {
        "index" => found.next().map(Value::from).ok_or_else(|| invalid("the value is not in the list")),
        _ => Ok(Value::from(found.count())),
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

/// What Python's `repr` gives.
pub(super) fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    REPR.write(&mut out, value, 0)?;
    Ok(out)
}

/// The function `dict`: of a mapping, or of pairs, and of named values.
pub(super) fn dict(value: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    if let Some(value) = value.filter(|value| !value.is_undefined()) {
        for item in value.try_iter()? {
            pairs.push(match value.kind() {
                ValueKind::Map => (item.clone(), value.get_item(&item)?),
                _ => (item.get_item_by_index(0)?, item.get_item_by_index(1)?),
            });
        }
    }
    for name in named.args() {
        pairs.push((Value::from(name), named.get(name)?));
    }
    Ok(Value::from_pairs(pairs))
}

/// The filter `tojson` as Hugging Face defines it: Python's `json.dumps` without escaping for HTML or ASCII.
pub(super) fn tojson(
    value: &Value,
    ascii: Option<Value>,
    indent: Option<Value>,
    separators: Option<Vec<String>>,
    named: Kwargs,
) -> Result<String, Error> {
    let or = |given: Option<Value>, name: &'static str| Ok::<_, Error>(given.or(named.get(name)?));
    let ascii = or(ascii, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let sort_keys = or(None, "sort_keys")?.is_some_and(|value| value.is_true());
    let indent = or(indent, "indent")?.filter(|indent| !indent.is_none());
    let separators = separators.or(named.get("separators")?);
    named.assert_all_used()?;
    let indent = match indent {
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            // What is written for each value is bounded, so that the whole is by the work that made the values.
            None => " ".repeat(usize::try_from(indent)?.min(MAX_SPACING + 1)),
        }),
        None => None,
    };
    let (comma, colon) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([comma, colon]) => (comma.as_str(), colon.as_str()),
        Some(_) => return Err(invalid("expected two separators")),
    };
    let indent = indent.as_deref();
    if [indent.unwrap_or_default(), comma, colon].iter().any(|text| text.len() > MAX_SPACING) {
        return Err(invalid("indent or separator is too long"));
    }
    let mut out = String::new();
    Style { json: true, indent, comma, colon, sort_keys }.write(&mut out, value, 0)?;
    Ok(if ascii { escaped(&out) } else { out })
}

/// JSON in ASCII; outside of strings it has nothing else.
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    out
}

/// The test `iterable`: Python goes over no nothing.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// The test `sequence`: whatever has a length and items, of which Python's strings, mappings and undefined values are.
pub(super) fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined)
        || value.is_tuple()
}

/// The filter `default`, with its parameters' names.
pub(super) fn default(
    value: Value,
    other: Option<Value>,
    boolean: Option<bool>,
    named: Kwargs,
) -> Result<Value, Error> {
    let other = other.or(named.get("default_value")?).unwrap_or_else(|| Value::from(""));
    let boolean = boolean.or(named.get("boolean")?).unwrap_or(false);
    named.assert_all_used()?;
    Ok(if value.is_undefined() || (boolean && !value.is_true()) { other } else { value })
}

/// The filter `float`: what is no number is the default.
pub(super) fn to_float(value: &Value, default: Option<f64>) -> f64 {
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    };
    number.or(default).unwrap_or(0.0)
}

/// The filter `int`: what is no number is the default.
pub(super) fn to_int(value: &Value, default: Option<i64>, base: Option<u32>, named: Kwargs) -> Result<Value, Error> {
    let default = default.or(named.get("default")?).unwrap_or(0);
    let base = base.or(named.get("base")?).filter(|base| (2..=36).contains(base)).unwrap_or(10);
    named.assert_all_used()?;
    if value.is_integer() {
        return Ok(value.clone());
    }
    let whole = value.as_str().and_then(|text| {
        let text = text.trim();
        let digits = if base == 16 { text.trim_start_matches("0x") } else { text };
        // Underscores may part digits.
        let parted = digits.starts_with('_') || digits.ends_with('_') || digits.contains("__");
        i128::from_str_radix(&digits.replace('_', if parted { "_" } else { "" }), base).ok()
    });
    let number = || match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        _ => Some(to_float(value, Some(f64::NAN))).filter(|number| number.is_finite()),
    };
    let whole = whole.or_else(|| number().map(|number| number as i128));
    Ok(whole.map_or_else(|| Value::from(default), |whole| i64::try_from(whole).map_or(Value::from(whole), Value::from)))
}

/// The filter `escape`, with Python's entities.
pub(super) fn escape(value: &Value) -> Result<Value, Error> {
    let text = string(value)?;
    bounded(text.len())?;
    if value.is_safe() {
        return Ok(value.clone());
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Ok(Value::from_safe_string(out))
}

/// The filter `center`.
pub(super) fn center(state: &mut State<'_, '_>, text: &str, width: Option<i64>) -> Result<Value, Error> {
    pay(state, text)?;
    strings::method(text, "center", &[Value::from(width.unwrap_or(80))])
}

/// The filter `wordcount`.
pub(super) fn wordcount(state: &mut State<'_, '_>, text: &str) -> Result<usize, Error> {
    pay(state, text)?;
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
    Ok(words.count())
}

/// Widest indent and longest separator of JSON; templates use an indent of 4.
const MAX_SPACING: usize = 16;

/// How a value is written as text: as Python's `repr`, or as its `json.dumps`.
#[derive(Clone, Copy)]
struct Style<'s> {
    json: bool,
    indent: Option<&'s str>,
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
            (ValueKind::Undefined, _) => out.push_str("Undefined"),
            (ValueKind::None, _) => out.push_str("None"),
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
                        None if self.json => {
                            out.push('"');
                            self.write(out, key, depth + 1)?;
                            out.push('"');
                        }
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
            out.extend(std::iter::repeat_n(indent, depth));
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
            c if printable(c) => out.push(c),
            c => match u32::from(c) {
                code @ 0..=0xff => out.push_str(&format!("\\x{code:02x}")),
                code @ 0x100..=0xffff => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
        }
    }
    out.push(quote);
}

/// Whether Python prints the character as itself.
fn printable(c: char) -> bool {
    let group = c.general_category_group();
    c == ' ' || !matches!(group, GeneralCategoryGroup::Other | GeneralCategoryGroup::Separator)
}

/// A float as Python writes it: the shortest digits, `1e-07` where Rust writes `1e-7`.
pub(super) fn float(value: f64) -> String {
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
