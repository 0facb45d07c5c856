//! Strangers' words, made safe for a terminal and a log.

/// The text with everything escaped that could move the cursor, start a line, hide, or turn round what is read: control
/// characters, line separators, direction marks and overrides, zero-width and tag characters, as `\u{…}`. A backslash
/// becomes two, so that an escape cannot be forged.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\\' || is_treacherous(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

fn is_treacherous(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_deceives_is_shown_and_what_is_written_stays() {
        let written = "Grüße, 世界! שלום 👋 `x` \"y\"";
        assert_eq!(escaped(written), written);
        assert_eq!(escaped("a\x1b[2J\r\nb\u{9b}31m"), "a\\u{1b}[2J\\r\\nb\\u{9b}31m");
        assert_eq!(
            escaped("safe\u{202e}exe.txt\u{2066}\u{200b}\u{2028}"),
            "safe\\u{202e}exe.txt\\u{2066}\\u{200b}\\u{2028}"
        );
        assert_eq!(escaped("\\u{1b}"), "\\\\u{1b}", "an escape cannot be forged");
    }
}
