//! Python's `str.format`, with its little language for how a value is written.

use minijinja::{
    Error, State, Value,
    value::{Kwargs, Rest, ValueKind, from_args},
};

use super::{
    filters::pay,
    python::{bounded, invalid, repr, string},
};

/// `'{} {0:>5} {name!r} {a[0]}'.format(…)`.
pub(super) fn format(text: &str, args: &[Value]) -> Result<String, Error> {
    let (Rest(positional), named): (Rest<Value>, Kwargs) = from_args(args)?;
    let mut arguments = Arguments { positional: &positional, named: &named, next: 0 };
    let out = arguments.fill(text, true)?;
    Ok(out)
}

struct Arguments<'a> {
    positional: &'a [Value],
    named: &'a Kwargs,
    /// The next of the arguments that are taken in order.
    next: usize,
}

impl Arguments<'_> {
    /// The text with its fields filled in. A specification may have fields itself (`nested`), these may not.
    fn fill(&mut self, text: &str, nested: bool) -> Result<String, Error> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            let after = &rest[at + 1..];
            if let Some(after) = after.strip_prefix(brace) {
                out.push_str(brace);
                rest = after;
            } else {
                let end = Some(after).filter(|_| brace == "{").and_then(closing);
                let end = end.ok_or_else(|| invalid("a single brace in a format string"))?;
                out.push_str(&self.field(&after[..end], nested)?);
                rest = &after[end + 1..];
            }
            bounded(out.len())?;
        }
        out.push_str(rest);
        bounded(out.len())?;
        Ok(out)
    }

    fn field(&mut self, field: &str, nested: bool) -> Result<String, Error> {
        let (name, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = name.split_once('!').map_or((name, None), |(name, how)| (name, Some(how)));
        let value = self.value(name)?;
        let value = match conversion {
            None => value,
            Some("s") => Value::from(string(&value)?),
            Some("r") => Value::from(repr(&value)?),
            Some(other) => return Err(invalid(format!("the conversion '{other}' is not supported"))),
        };
        let spec = if nested && spec.contains('{') { self.fill(spec, false)? } else { spec.to_owned() };
        write(&value, &spec)
    }

    /// What a field names: an argument, and perhaps attributes and items of it.
    fn value(&mut self, name: &str) -> Result<Value, Error> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut path) = name.split_at(end);
        let mut value = if first.is_empty() {
            self.next += 1;
            self.positional.get(self.next - 1).cloned()
        } else if first.bytes().all(|byte| byte.is_ascii_digit()) {
            first.parse().ok().and_then(|at: usize| self.positional.get(at).cloned())
        } else {
            self.named.get(first)?
        }
        .ok_or_else(|| invalid("a format field has no value"))?;
        while !path.is_empty() {
            let wrong = || invalid(format!("the format field '{name}' is not valid"));
            let key;
            if let Some(rest) = path.strip_prefix('[') {
                let (inner, after) = rest.split_once(']').ok_or_else(wrong)?;
                key = inner.parse::<i64>().map_or_else(|_| Value::from(inner), Value::from);
                path = after;
            } else {
                let rest = path.strip_prefix('.').ok_or_else(wrong)?;
                let end = rest.find(['.', '[']).unwrap_or(rest.len());
                key = Value::from(&rest[..end]);
                path = &rest[end..];
            }
            value = value.get_item(&key)?;
        }
        Ok(value)
    }
}

/// Where the field ends that begins here, past the fields within it.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
#[derive(Clone, Copy, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Spec {
    fn parse(text: &str) -> Result<Self, Error> {
        let wrong = || invalid(format!("the format specification '{text}' is not valid"));
        let mut spec = Self::default();
        let mut chars = text.chars().peekable();
        let align = |c: Option<char>| c.filter(|c| matches!(c, '<' | '>' | '^' | '='));
        if let Some(found) = align(text.chars().nth(1)) {
            (spec.fill, spec.align) = (chars.next(), Some(found));
            chars.next();
        } else if let Some(found) = align(text.chars().next()) {
            spec.align = Some(found);
            chars.next();
        }
        spec.sign = chars.next_if(|c| matches!(c, '+' | '-' | ' '));
        spec.alternate = chars.next_if_eq(&'#').is_some();
        spec.zero = chars.next_if_eq(&'0').is_some();
        let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            if digits.is_empty() { Ok(None) } else { digits.parse::<usize>().map(Some).map_err(|_| wrong()) }
        };
        spec.width = number(&mut chars)?.unwrap_or(0);
        spec.grouping = chars.next_if(|c| matches!(c, ',' | '_'));
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut chars)?.ok_or_else(wrong)?);
        }
        spec.kind = chars.next();
        bounded(spec.width)?;
        bounded(spec.precision.unwrap_or(0))?;
        if chars.next().is_some() { Err(wrong()) } else { Ok(spec) }
    }

    /// The digits of a number, behind its sign and prefix, as wide as wanted.
    fn number(&self, negative: bool, prefix: &str, digits: &str) -> String {
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            _ => "",
        };
        let digits = self.grouped(digits);
        let inner = self.align.or(self.zero.then_some('=')) == Some('=');
        if inner {
            let missing = self.width.saturating_sub(sign.len() + prefix.len() + digits.chars().count());
            let fill = self.fill.unwrap_or(if self.zero { '0' } else { ' ' });
            let fill: String = std::iter::repeat_n(fill, missing).collect();
            return [sign, prefix, &fill, &digits].concat();
        }
        self.aligned(&[sign, prefix, &digits].concat(), '>')
    }

    fn grouped(&self, digits: &str) -> String {
        let Some(separator) = self.grouping else { return digits.to_owned() };
        let whole = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
        let whole = if matches!(self.kind, Some('b' | 'o' | 'x' | 'X')) {
            digits.len()
        } else {
            digits.find(['.', 'e', 'E', '%']).unwrap_or(digits.len()).min(whole)
        };
        let every = if matches!(self.kind, Some('b' | 'o' | 'x' | 'X')) { 4 } else { 3 };
        let mut out = String::new();
        for (at, c) in digits[..whole].chars().enumerate() {
            if at > 0 && (whole - at).is_multiple_of(every) {
                out.push(separator);
            }
            out.push(c);
        }
        out + &digits[whole..]
    }

    fn aligned(&self, text: &str, default: char) -> String {
        let missing = self.width.saturating_sub(text.chars().count());
        let fill = self.fill.unwrap_or(if self.zero { '0' } else { ' ' });
        let (left, right) = match self.align.unwrap_or(default) {
            '<' => (0, missing),
            '^' => (missing / 2, missing - missing / 2),
            _ => (missing, 0),
        };
        let run = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
        [&run(left), text, &run(right)].concat()
    }
}

/// A value as its type and the specification say.
fn write(value: &Value, spec: &str) -> Result<String, Error> {
    if spec.is_empty() {
        return string(value);
    }
    write_as(value, &Spec::parse(spec)?)
}

fn write_as(value: &Value, spec: &Spec) -> Result<String, Error> {
    let wrong = |what: &str| invalid(format!("the format specification does not fit {what}"));
    match value.kind() {
        ValueKind::String => {
            if !matches!(spec.kind, None | Some('s')) || spec.sign.is_some() || spec.align == Some('=') {
                return Err(wrong("a string"));
            }
            let text = value.as_str().unwrap_or_default();
            let text: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
            Ok(spec.aligned(&text, '<'))
        }
        ValueKind::Bool | ValueKind::Number if value.is_integer() || value.kind() == ValueKind::Bool => {
            let number = match value.kind() {
                ValueKind::Bool => i128::from(value.is_true()),
                _ => i128::try_from(value.clone())?,
            };
            #[allow(clippy::cast_precision_loss, reason = "as Python's float() has it")]
            let as_float = || Ok(float(spec, number as f64));
            let digits = number.unsigned_abs();
            let (prefix, digits) = match spec.kind {
                None | Some('d' | 'n') => ("", digits.to_string()),
                Some('b') => ("0b", format!("{digits:b}")),
                Some('o') => ("0o", format!("{digits:o}")),
                Some('x') => ("0x", format!("{digits:x}")),
                Some('X') => ("0X", format!("{digits:X}")),
                Some('c') => {
                    let c = u32::try_from(number).ok().and_then(char::from_u32).ok_or_else(|| wrong("a number"))?;
                    return Ok(spec.aligned(c.encode_utf8(&mut [0; 4]), '<'));
                }
                Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') => return as_float(),
                Some(_) => return Err(wrong("a whole number")),
            };
            Ok(spec.number(number < 0, if spec.alternate { prefix } else { "" }, &digits))
        }
        ValueKind::Number => {
            if !matches!(spec.kind, None | Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'n' | '%')) {
                return Err(wrong("a number"));
            }
            Ok(float(spec, f64::try_from(value.clone())?))
        }
        _ => Err(wrong("a value of this type")),
    }
}

fn float(spec: &Spec, number: f64) -> String {
    // More digits than any number has.
    let places = spec.precision.unwrap_or(6).min(1100);
    let size = number.abs();
    let digits = if !number.is_finite() {
        (if number.is_nan() { "nan" } else { "inf" }).to_owned()
    } else {
        match spec.kind {
            Some('f' | 'F') => format!("{size:.places$}"),
            Some('%') => format!("{:.places$}%", size * 100.0),
            Some('e' | 'E') => exponent(&format!("{size:.places$e}")),
            Some('g' | 'G' | 'n') => general(size, places, spec.alternate),
            _ => match spec.precision {
                None => super::python::float(size),
                Some(places) => {
                    let text = general(size, places, false);
                    if text.contains(['.', 'e']) { text } else { text + ".0" }
                }
            },
        }
    };
    let digits = if matches!(spec.kind, Some('E' | 'G' | 'F')) { digits.to_uppercase() } else { digits };
    spec.number(number.is_sign_negative() && !number.is_nan(), "", &digits)
}

/// `1.5e4` as `1.5e+04`.
fn exponent(text: &str) -> String {
    let (digits, power) = text.split_once('e').unwrap_or((text, "0"));
    let (sign, power) = power.strip_prefix('-').map_or(('+', power), |power| ('-', power));
    format!("{digits}e{sign}{power:0>2}")
}

/// So many digits that count, in whichever way is shorter.
fn general(size: f64, places: usize, keep_zeros: bool) -> String {
    let places = places.max(1);
    let scientific = format!("{size:.*e}", places - 1);
    let power: i64 = scientific.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or(0);
    let shorter = |text: &str| {
        if keep_zeros || !text.contains('.') {
            return text.to_owned();
        }
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    if (-4..places as i64).contains(&power) {
        let after = usize::try_from(places as i64 - 1 - power).unwrap_or(0);
        return shorter(&format!("{size:.after$}"));
    }
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    exponent(&format!("{}e{power}", shorter(digits)))
}

/// What `text % value` is: Python's older formatting. A tuple is several values, a mapping one of which parts are named.
pub(super) fn percent(state: &mut State<'_, '_>, text: &str, value: &Value) -> Result<String, Error> {
    pay(state, text)?;
    let many: Vec<Value> = if value.is_tuple() { value.try_iter()?.collect() } else { vec![value.clone()] };
    let mut values = many.into_iter();
    let mut next = || values.next().ok_or_else(|| invalid("not enough arguments for format string"));
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        rest = after;
        let mut named = None;
        if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            named = Some(value.get_item(&Value::from(name))?);
            rest = after;
        }
        let flags = rest.len() - rest.trim_start_matches(['-', '+', ' ', '0', '#']).len();
        let (flags, after) = rest.split_at(flags);
        let has = |flag: char| flags.contains(flag);
        let mut size = |rest: &mut &str| -> Result<Option<usize>, Error> {
            if let Some(after) = rest.strip_prefix('*') {
                *rest = after;
                return Ok(Some(usize::try_from(next()?)?));
            }
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (digits, after) = rest.split_at(digits);
            *rest = after;
            if digits.is_empty() {
                return Ok(None);
            }
            digits.parse().map(Some).map_err(|_| invalid("the width is too large"))
        };
        rest = after;
        let width = size(&mut rest)?.unwrap_or(0);
        let precision = match rest.strip_prefix('.') {
            Some(after) => {
                rest = after;
                Some(size(&mut rest)?.unwrap_or(0))
            }
            None => None,
        };
        bounded(width.max(precision.unwrap_or(0)))?;
        let kind = rest.chars().next().ok_or_else(|| invalid("incomplete format"))?;
        rest = &rest[kind.len_utf8()..];
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => next()?,
        };
        pay(state, value.as_str().unwrap_or_default())?;
        let sign = if has('+') { Some('+') } else { Some(' ').filter(|_| has(' ')) };
        let align = Some(if has('-') { '<' } else { '>' });
        let zero = has('0') && !has('-');
        let text = Spec { align, width, precision, ..Spec::default() };
        let number = Spec {
            align: align.filter(|_| !zero),
            sign,
            alternate: has('#'),
            zero,
            kind: Some(if matches!(kind, 'i' | 'u') { 'd' } else { kind }),
            ..text
        };
        out.push_str(&match kind {
            's' | 'r' => {
                let all = if kind == 's' { string(&value)? } else { repr(&value)? };
                let cut: String = all.chars().take(precision.unwrap_or(usize::MAX)).collect();
                text.aligned(&cut, '>')
            }
            'c' if value.as_str().is_some_and(|text| text.chars().count() == 1) => text.aligned(&string(&value)?, '>'),
            'd' | 'i' | 'u' if value.kind() == ValueKind::Number && !value.is_integer() => {
                let whole = f64::try_from(value)?.trunc();
                if !whole.is_finite() {
                    return Err(invalid("the number is not finite"));
                }
                write_as(&Value::from(whole as i128), &number)?
            }
            'd' | 'i' | 'u' | 'o' | 'x' | 'X' | 'c' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G'
                if matches!(value.kind(), ValueKind::Number | ValueKind::Bool) =>
            {
                write_as(&value, &number)?
            }
            _ => return Err(invalid(format!("'%{kind}' does not fit the value"))),
        });
        bounded(out.len())?;
    }
    out.push_str(rest);
    bounded(out.len())?;
    if values.next().is_some() && value.kind() != ValueKind::Map {
        return Err(invalid("not all arguments converted during string formatting"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        let of = |value: Value, spec: &str| write(&value, spec).unwrap();
        assert_eq!(of(Value::from(-1_234_567), ","), "-1,234,567");
        assert_eq!(of(Value::from(1_234.5), ",.2f"), "1,234.50");
        assert_eq!(of(Value::from(-3), "05d"), "-0003");
        assert_eq!(of(Value::from(0.0), "g"), "0");
        assert_eq!(of(Value::from(1e-5), ".3"), "1e-05");
        assert_eq!(of(Value::from(3.0), ".3"), "3.0");
        assert_eq!(of(Value::from(f64::NAN), ">5"), "  nan");
        assert_eq!(of(Value::from(255), "#_b"), "0b1111_1111");
        for spec in ["d", "x", "5z", ".", "999999999999999999999"] {
            assert!(write(&Value::from(1.5), spec).is_err(), "{spec}");
        }
        assert!(write(&Value::from(()), ">5").is_err());
        assert!(write(&Value::from(1), "9999999").is_err(), "longer than a text may be");
    }
}
