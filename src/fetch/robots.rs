//! What sites ask of programs: `/robots.txt`, as RFC 9309 has it. Ours is asked for by the name `quelea`.

/// Our name in the file.
const NAME: &str = "quelea";

/// Rules read of a file; who has more has them after the ones that count.
const RULES: usize = 2_000;

/// What a file says to us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    /// Patterns, and whether they allow.
    rules: Vec<(String, bool)>,
}

impl Rules {
    /// Nothing may be read: the file could not be had.
    pub(super) fn nothing() -> Self {
        Self { rules: vec![("/".into(), false)] }
    }

    /// Reads the groups that are for us; those for everybody if none is.
    pub(super) fn parse(file: &str) -> Self {
        let (mut ours, mut all): (Option<Vec<_>>, Vec<_>) = (None, Vec::new());
        // Names of the group that is being read, and whether its rules have begun.
        let (mut us, mut everybody, mut begun) = (false, false, false);
        for line in file.trim_start_matches('\u{feff}').lines() {
            let line = line.split('#').next().unwrap_or_default();
            let Some((key, value)) = line.split_once(':') else { continue };
            let (key, value) = (key.trim(), value.trim());
            if key.eq_ignore_ascii_case("user-agent") {
                if begun {
                    (us, everybody, begun) = (false, false, false);
                }
                let name = value.split(|c: char| !(c.is_ascii_alphabetic() || matches!(c, '-' | '_'))).next();
                if name.is_some_and(|name| name.eq_ignore_ascii_case(NAME)) {
                    us = true;
                    ours.get_or_insert_with(Vec::new);
                }
                everybody |= value == "*";
                continue;
            }
            let allows = key.eq_ignore_ascii_case("allow");
            if !allows && !key.eq_ignore_ascii_case("disallow") {
                continue;
            }
            begun = true;
            // An empty rule allows everything, which is so anyway.
            if value.is_empty() {
                continue;
            }
            for rules in [us.then_some(ours.as_mut()).flatten(), everybody.then_some(&mut all)].into_iter().flatten() {
                if rules.len() < RULES {
                    rules.push((value.to_owned(), allows));
                }
            }
        }
        Self { rules: ours.unwrap_or(all) }
    }

    /// Whether a path, with its query, may be read: the longest pattern that fits decides, and of two as long the kinder one.
    pub(super) fn allow(&self, path: &str) -> bool {
        let fitting = self.rules.iter().filter(|(pattern, _)| fits(pattern, path));
        fitting.map(|(pattern, allows)| (pattern.len(), *allows)).max().is_none_or(|(_, allows)| allows)
    }
}

/// Whether a pattern with `*` and a closing `$` fits the beginning of a path. One pass, with one place to go back to.
fn fits(pattern: &str, path: &str) -> bool {
    let (pattern, whole) = pattern.strip_suffix('$').map_or((pattern, false), |rest| (rest, true));
    let (pattern, path) = (pattern.as_bytes(), path.as_bytes());
    let (mut p, mut t) = (0_usize, 0_usize);
    let mut back: Option<(usize, usize)> = None;
    loop {
        match (pattern.get(p), path.get(t)) {
            (None, None) => return true,
            (None, Some(_)) if !whole => return true,
            (Some(b'*'), _) => {
                p = p.saturating_add(1);
                back = Some((p, t));
            }
            (Some(a), Some(b)) if a == b => (p, t) = (p.saturating_add(1), t.saturating_add(1)),
            _ => match back {
                Some((star, from)) if from < path.len() => {
                    let from = from.saturating_add(1);
                    back = Some((star, from));
                    (p, t) = (star, from);
                }
                _ => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_for_us_counts_and_its_longest_rule() {
        let rules = Rules::parse(
            "# hello\nUser-agent: *\nDisallow: /\n\nUser-Agent: other\nUser-agent: Quelea/1.0\nDisallow: /private\n\
             Allow: /private/not\nDisallow: /*.pdf$\nDisallow:\nSitemap: x\n",
        );
        for (path, allowed) in [
            ("/", true),
            ("/private", false),
            ("/privately", false),
            ("/private/not/this", true),
            ("/a.pdf", false),
            ("/a.pdf?x", true),
            ("/a/b.pdf", false),
        ] {
            assert_eq!(rules.allow(path), allowed, "{path}");
        }
        let all = Rules::parse("user-agent: *\ndisallow: /a\n");
        assert!(!all.allow("/a/b") && all.allow("/b"));
        assert!(Rules::parse("").allow("/") && Rules::parse("<html>nothing</html>").allow("/"));
        assert!(!Rules::nothing().allow("/x"));
    }

    #[test]
    fn a_pattern_of_stars_takes_no_time() {
        let pattern = "*a".repeat(500);
        let started = std::time::Instant::now();
        assert!(!fits(&format!("{pattern}b$"), &"a".repeat(2_000)));
        assert!(started.elapsed() < std::time::Duration::from_secs(1));
    }
}
