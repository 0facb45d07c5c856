//! What a template's source goes through before it is compiled: what Python's Jinja reads and the template engine does
//! not is said in other words.

/// The source to compile: tags for training without effect, `'…' % value` as a filter.
pub(super) fn prepared(source: &str) -> String {
    without_generation_tags(&with_percent_filters(source))
}

/// How many operators, brackets, attributes, filters, tests and branches the source could have: no branch of its syntax
/// tree is deeper than that, but for the few levels that the engine counts itself. Text between tags counts as well, so
/// that the bound does not depend on how the source is cut into tags.
pub(super) fn operators(source: &str) -> usize {
    let signs = source.bytes().filter(|c| b"+-*/%~.|([{".contains(c)).count();
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    // A word that only ends like one: a number may stand right before it.
    let operator = |word: &&str| ["if", "or", "and", "not", "is", "in"].iter().any(|end| word.ends_with(end));
    signs + source.split(|c: char| !word(c)).filter(operator).count()
}

/// Replaces the tags `generation` and `endgeneration`, which only training looks at, by ones without effect.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        let tag = after.trim_start_matches(['-', '+']).trim_start();
        let word_end = tag.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(tag.len());
        let (word, after_word) = tag.split_at(word_end);
        out.push_str(&after[..after.len() - tag.len()]);
        out.push_str(match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            other => other,
        });
        rest = after_word;
    }
    out + rest
}

/// Writes `'…' % value`, where a text literal stands on the left, as `('…'|percent(value))`.
fn with_percent_filters(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map(|at| at + 2),
            Some(b'%') if first_word(&tag[2..]) == "raw" => {
                tag.find("endraw").and_then(|at| Some(at + tag[at..].find("%}")? + 2))
            }
            Some(b'%' | b'{') => {
                let close = if tag.as_bytes().get(1) == Some(&b'%') { "%}" } else { "}}" };
                let (text, length) = in_tag(tag, close);
                out.push_str(&text);
                rest = &tag[length..];
                continue;
            }
            _ => Some(1),
        };
        let (text, after) = tag.split_at(end.unwrap_or(tag.len()));
        out.push_str(text);
        rest = after;
    }
    out + rest
}

fn first_word(tag: &str) -> &str {
    let tag = tag.trim_start_matches(['-', '+']).trim_start();
    tag.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default()
}

/// The tag that `text` begins with, rewritten, and its length.
fn in_tag(text: &str, close: &str) -> (String, usize) {
    let mut out = String::new();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        if text[at..].starts_with(close) {
            out.push_str(close);
            return (out, at + close.len());
        }
        let Some(length) = literal(&text[at..]) else {
            if quote(c) {
                // It never ends, nor does the tag: nothing more is looked for, however often.
                return (out + &text[at..], text.len());
            }
            out.push(c);
            at += c.len_utf8();
            continue;
        };
        let after = &text[at + length..];
        let operand = after.trim_start().strip_prefix('%').filter(|operand| !operand.starts_with('}'));
        match operand.map(str::trim_start) {
            Some(operand) => {
                let Some(end) = unary(operand) else { return (out + &text[at..], text.len()) };
                out.push_str(&["(", &text[at..at + length], "|percent(", &operand[..end], "))"].concat());
                at = text.len() - operand.len() + end;
            }
            None => {
                out.push_str(&text[at..at + length]);
                at += length;
            }
        }
    }
    (out, at)
}

/// Whether a text literal begins so.
fn quote(c: char) -> bool {
    matches!(c, '\'' | '"')
}

/// Length of the text literal that stands here.
fn literal(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| quote(*c))?;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Length of the operand that stands here: a value with its attributes, items, calls and filters. None where a text or a
/// bracket of it never ends.
fn unary(text: &str) -> Option<usize> {
    let word = |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let mut at = text.len() - text.trim_start_matches(['-', '+']).len();
    let rest = &text[at..];
    at += match rest.chars().next() {
        Some(c) if quote(c) => literal(rest)?,
        Some('(' | '[' | '{') => bracket(rest)?,
        _ => number(rest).unwrap_or_else(|| word(rest)),
    };
    loop {
        let rest = &text[at..];
        if rest.starts_with(['(', '[']) {
            at += bracket(rest)?;
        } else if let Some(name) = rest.strip_prefix('.') {
            at += 1 + word(name);
        } else if let Some(name) = rest.trim_start().strip_prefix('|') {
            let name = name.trim_start();
            at = text.len() - name.len() + word(name);
        } else {
            return Some(at);
        }
    }
}

/// Length of the number that stands here.
fn number(text: &str) -> Option<usize> {
    text.starts_with(|c: char| c.is_ascii_digit()).then_some(())?;
    let mut before = ' ';
    let end = text.find(|c: char| {
        let sign = matches!(c, '+' | '-') && matches!(before, 'e' | 'E');
        before = c;
        !(c.is_alphanumeric() || matches!(c, '.' | '_') || sign)
    });
    Some(end.unwrap_or(text.len()))
}

/// Length of what stands in brackets here.
fn bracket(text: &str) -> Option<usize> {
    text.starts_with(['(', '[', '{']).then_some(())?;
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(c) = text[at..].chars().next() {
        if let Some(length) = literal(&text[at..]) {
            at += length;
            continue;
        }
        at += c.len_utf8();
        match c {
            // As it never ends, neither does the bracket.
            c if quote(c) => return None,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 1 => return Some(at),
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_looked_for_once() {
        // Looking for the end again at each of these takes the square of the length, or its cube: hours.
        for part in ["\\'", "'a'%(", "'a'%x(", "'a'%x['", "'a'%'"] {
            let source = ["{{ '", &part.repeat(super::super::MAX_SOURCE / part.len())].concat();
            assert!(prepared(&source).len() >= source.len(), "{part}");
        }
    }

    #[test]
    fn operators_are_counted_wherever_they_stand() {
        assert_eq!(operators("{{ a+1 }}"), 3);
        assert_eq!(operators("{{1if 1else 2}}"), 3);
        assert_eq!(operators("{% if not a.b|c is d %}x{%elif e%}y{%endif%}"), 16);
    }

    #[test]
    fn only_texts_before_percent_signs_are_rewritten() {
        for (source, expected) in [
            ("{{ '%d' % x.y[0]|int ~ 'a' }}", "{{ ('%d'|percent(x.y[0]|int)) ~ 'a' }}"),
            ("{% set a = \"%s\\\"\"%('x', \")\") %}", "{% set a = (\"%s\\\"\"|percent(('x', \")\"))) %}"),
            ("{% if a == 'b' %}'%d' % x{% endif %}", "{% if a == 'b' %}'%d' % x{% endif %}"),
            ("{% if a == 'b'%}x", "{% if a == 'b'%}x"),
            ("{# '%' % x #}{% raw %}{{ '%' % x }}{% endraw %}", "{# '%' % x #}{% raw %}{{ '%' % x }}{% endraw %}"),
            ("{{ '%e' % 1.5e-7 - 2 }}", "{{ ('%e'|percent(1.5e-7)) - 2 }}"),
            ("{{ x % 'a' }} { é {{ 'é' }}", "{{ x % 'a' }} { é {{ 'é' }}"),
        ] {
            assert_eq!(with_percent_filters(source), expected);
        }
        for broken in ["{{ 'a", "{{ 'a' % (", "{#", "{% raw %}", "{{ 'a' %", "{"] {
            assert!(with_percent_filters(broken).len() >= broken.len());
        }
    }
}
