//! Filters and functions of Jinja that the template engine leaves out.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use minijinja::{
    Environment, Error, State, Value,
    value::{Kwargs, Object, Rest, ValueKind, ValueOrKwargs, from_args},
};

use super::python::{bounded, invalid, string};

/// Adds them to `environment`.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("truncate", truncate);
    environment.add_filter("urlencode", urlencode);
    environment.add_filter("wordwrap", wordwrap);
    environment.add_filter("striptags", striptags);
    environment.add_filter("filesizeformat", filesizeformat);
    environment.add_filter("forceescape", |value: &Value| super::python::escape(&Value::from(string(value)?)));
    environment.add_filter("percent", super::format::percent);
    environment.add_filter("indent", indent);
    environment.add_function("cycler", |Rest(items): Rest<Value>| match items.is_empty() {
        true => Err(invalid("at least one item has to be provided")),
        false => Ok(Value::from_object(Cycler { items, at: AtomicUsize::new(0) })),
    });
    environment.add_function("joiner", |separator: Option<String>| {
        let separator = separator.unwrap_or_else(|| ", ".to_owned());
        Value::from_object(Joiner { separator, used: AtomicBool::new(false) })
    });
}

/// Refuses a text that is too long, and pays for reading it: what a filter makes is paid for afterwards.
pub(super) fn pay(state: &mut State<'_, '_>, text: &str) -> Result<(), Error> {
    bounded(text.len())?;
    state.consume_fuel(text.len() as u64 / 64)
}

/// `s|truncate(length=255, killwords=false, end='...', leeway=5)`.
fn truncate(state: &mut State<'_, '_>, text: &str, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    type Given = (Option<usize>, Option<bool>, Option<String>, Option<usize>, Kwargs);
    let (length, kill, end, leeway, named): Given = from_args(&args.into_values())?;
    pay(state, text)?;
    let length = length.or(named.get("length")?).unwrap_or(255);
    let kill = kill.or(named.get("killwords")?).unwrap_or(false);
    let end = end.or(named.get("end")?).unwrap_or_else(|| "...".to_owned());
    let leeway = leeway.or(named.get("leeway")?).unwrap_or(5);
    named.assert_all_used()?;
    let count = text.chars().count();
    if count <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let kept = length.checked_sub(end.chars().count()).ok_or_else(|| invalid("the length is shorter than the end"))?;
    let cut = text.char_indices().nth(kept).map_or(text, |(at, _)| &text[..at]);
    let cut = if kill { cut } else { cut.rsplit_once(' ').map_or(cut, |(before, _)| before) };
    Ok([cut, &end].concat())
}

/// A text, a mapping or pairs, as parts of an address.
fn urlencode(state: &mut State<'_, '_>, value: &Value) -> Result<String, Error> {
    pay(state, value.as_str().unwrap_or_default())?;
    let pairs: Vec<(Value, Value)> = match value.kind() {
        ValueKind::Map => {
            let keys = value.try_iter()?;
            keys.map(|key| Ok((key.clone(), value.get_item(&key)?))).collect::<Result<_, Error>>()?
        }
        ValueKind::Seq | ValueKind::Iterable => value
            .try_iter()?
            .map(|pair| Ok((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?)))
            .collect::<Result<_, Error>>()?,
        _ => return Ok(quoted(&string(value)?, "/")),
    };
    let query = |value: &Value| Ok::<_, Error>(quoted(&string(value)?, " ").replace(' ', "+"));
    let mut out = String::new();
    for (key, value) in &pairs {
        out.push_str(if out.is_empty() { "" } else { "&" });
        out.push_str(&[query(key)?, query(value)?].join("="));
        bounded(out.len())?;
    }
    Ok(out)
}

fn quoted(text: &str, safe: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "_.-~".contains(c) || (c.is_ascii() && safe.contains(c)) {
            out.push(c);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// `s|wordwrap(width=79, break_long_words=true, wrapstring='\n', break_on_hyphens=true)`: each line filled as Python's
/// `textwrap` does without expanding or replacing white space.
fn wordwrap(state: &mut State<'_, '_>, text: &str, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    type Given = (Option<usize>, Option<bool>, Option<String>, Option<bool>, Kwargs);
    let (width, break_long, wrap, hyphens, named): Given = from_args(&args.into_values())?;
    pay(state, text)?;
    let width = width.or(named.get("width")?).unwrap_or(79);
    let break_long = break_long.or(named.get("break_long_words")?).unwrap_or(true);
    let wrap = wrap.or(named.get("wrapstring")?).unwrap_or_else(|| "\n".to_owned());
    let hyphens = hyphens.or(named.get("break_on_hyphens")?).unwrap_or(true);
    named.assert_all_used()?;
    if width == 0 {
        return Err(invalid("invalid width 0 (must be > 0)"));
    }
    let mut lines = Vec::new();
    for line in text.lines() {
        fill(line, width, break_long, hyphens, &mut lines);
    }
    bounded(lines.iter().map(String::len).sum::<usize>().saturating_add(lines.len().saturating_mul(wrap.len())))?;
    Ok(lines.join(&wrap))
}

/// Words and the white space between them; words end after a hyphen between letters where that is wanted.
fn chunks(line: &str, hyphens: bool) -> Vec<String> {
    let mut chunks: Vec<String> = Vec::new();
    let mut before: Option<char> = None;
    let mut chars = line.chars().peekable();
    let mut cut = true;
    while let Some(c) = chars.next() {
        let same = before.is_some_and(|before| before.is_whitespace() == c.is_whitespace());
        match chunks.last_mut().filter(|_| same && !cut) {
            Some(last) => last.push(c),
            None => chunks.push(c.to_string()),
        }
        let letter = |c: Option<&char>| c.is_some_and(|c| c.is_alphabetic());
        cut = hyphens && c == '-' && letter(before.as_ref()) && letter(chars.peek());
        before = Some(c);
    }
    chunks
}

fn fill(line: &str, width: usize, break_long: bool, hyphens: bool, lines: &mut Vec<String>) {
    let mut rest: std::collections::VecDeque<String> = chunks(line, hyphens).into();
    let blank = |text: &str| text.trim().is_empty();
    let start = lines.len();
    while !rest.is_empty() {
        if lines.len() > start && rest.front().is_some_and(|chunk| blank(chunk)) {
            rest.pop_front();
        }
        let (mut current, mut used): (Vec<String>, usize) = (Vec::new(), 0);
        while let Some(chunk) = rest.front() {
            let size = chunk.chars().count();
            if used + size > width {
                break;
            }
            used += size;
            current.extend(rest.pop_front());
        }
        if let Some(long) = rest.front_mut().filter(|chunk| chunk.chars().count() > width) {
            if break_long {
                let at = long.char_indices().nth(width - used).map_or(long.len(), |(at, _)| at);
                let tail = long.split_off(at);
                current.push(std::mem::replace(long, tail));
            } else if current.is_empty() {
                current.extend(rest.pop_front());
            }
        }
        if current.last().is_some_and(|chunk| blank(chunk)) {
            current.pop();
        }
        if !current.is_empty() {
            lines.push(current.concat());
        }
    }
    // An empty line stays one.
    if lines.len() == start {
        lines.push(String::new());
    }
}

/// The text without tags and comments, its white space in single spaces.
fn striptags(state: &mut State<'_, '_>, text: &str) -> Result<String, Error> {
    pay(state, text)?;
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('<') {
        let (open, end) = after.strip_prefix("!--").map_or((after, ">"), |inner| (inner, "-->"));
        let Some((_, after)) = open.split_once(end) else { break };
        out.push_str(before);
        rest = after;
    }
    out.push_str(rest);
    Ok(out.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Bytes for people: `13 kB`, or `13 KiB` where `binary`.
fn filesizeformat(value: f64, binary: Option<bool>) -> String {
    let binary = binary.unwrap_or(false);
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    #[allow(clippy::float_cmp, reason = "one byte, and no other number")]
    if value == 1.0 {
        return "1 Byte".to_owned();
    }
    if value < base {
        return format!("{} Bytes", value.trunc());
    }
    let names = if binary {
        ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]
    } else {
        ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]
    };
    let mut unit = base;
    for name in &names[..7] {
        if value < unit * base {
            return format!("{:.1} {name}", value / unit);
        }
        unit *= base;
    }
    format!("{:.1} {}", value / unit, names[7])
}

/// `s|indent(width=4, first=false, blank=false)`; the width may be a text.
fn indent(state: &mut State<'_, '_>, text: &str, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let (width, first, blank, named): (Option<Value>, Option<bool>, Option<bool>, Kwargs) =
        from_args(&args.into_values())?;
    pay(state, text)?;
    let width = width.or(named.get("width")?).unwrap_or_else(|| Value::from(4));
    let first = first.or(named.get("first")?).unwrap_or(false);
    let blank = blank.or(named.get("blank")?).unwrap_or(false);
    named.assert_all_used()?;
    let space = match width.as_str() {
        Some(text) => text.to_owned(),
        None => {
            let width = usize::try_from(width)?;
            bounded(width)?;
            " ".repeat(width)
        }
    };
    // As the original, whose text always gets an end of its last line.
    let text = [text, "\n"].concat();
    let mut out = String::new();
    for (at, line) in text.lines().enumerate() {
        let indented = if at == 0 { first } else { blank || !line.is_empty() };
        out.push_str(if at == 0 { "" } else { "\n" });
        out.push_str(if indented { &space } else { "" });
        out.push_str(line);
        bounded(out.len())?;
    }
    Ok(out)
}

/// `cycler('a', 'b')`: its `next()` goes round.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl Object for Cycler {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let current = || self.items.get(self.at.load(Ordering::Relaxed)).cloned();
        (key.as_str() == Some("current")).then(current).flatten()
    }

    fn call_method(self: &Arc<Self>, _state: &mut State<'_, '_>, method: &str, args: &[Value]) -> Result<Value, Error> {
        let () = from_args(args)?;
        match method {
            "next" => {
                let at = self.at.load(Ordering::Relaxed);
                self.at.store((at + 1) % self.items.len(), Ordering::Relaxed);
                Ok(self.items.get(at).cloned().unwrap_or_default())
            }
            "reset" => {
                self.at.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(minijinja::ErrorKind::UnknownMethod)),
        }
    }
}

/// `joiner(', ')`: nothing when it is called first, its text after that.
#[derive(Debug)]
struct Joiner {
    separator: String,
    used: AtomicBool,
}

impl Object for Joiner {
    fn call(self: &Arc<Self>, _state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        let () = from_args(args)?;
        Ok(Value::from(if self.used.swap(true, Ordering::Relaxed) { self.separator.as_str() } else { "" }))
    }
}
