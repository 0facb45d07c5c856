//! libp2p's registry as Prometheus' text format 0.0.4.
//!
//! `prometheus-client` writes OpenMetrics. What differs, and what is done about it, for any registry:
//!
//! - a counter's `# HELP` and `# TYPE` lack the `_total` that its sample has: they get it;
//! - `# UNIT`, `# EOF`, `_created` samples and exemplars have no place: they go;
//! - the types `info` and `unknown` have none either: they become `gauge` (named `_info`) and `untyped`;
//! - one family may be written twice, by two sub-registries: it is merged, and a sample that is there already is left out;
//! - a backslash in help is not escaped: it is now; a family without help is given its name in words;
//! - a gauge may end in a suffix that is reserved for other types (`_total`, `_count`, `_sum`, `_bucket`): it loses it;
//! - names outside `libp2p_` get that prefix, so that they cannot meet ours;
//! - gossipsub's heartbeat histogram counts milliseconds without saying so: it is turned into `…_seconds`
//!   ([`MILLISECONDS`] lists such families).
//!
//! Families without samples are left out. Series of counters and gauges whose labels follow what peers send are cut at
//! [`SERIES_MAX`] a family.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt::Write as _,
};

/// What every family's name starts with.
const PREFIX: &str = "libp2p_";

/// Series of one counter or gauge at most. Identify's gauges have one per *form* of address that connected peers claim to
/// listen on, which is for those peers to choose; the largest honest family (routing-table updates per bucket) stays below
/// this.
const SERIES_MAX: usize = 500;

/// Suffixes that belong to counters, histograms and summaries.
const RESERVED_SUFFIXES: [&str; 4] = ["_total", "_count", "_sum", "_bucket"];

/// Histograms in milliseconds, by how their OpenMetrics names end.
const MILLISECONDS: [&str; 1] = ["heartbeat_duration"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Info,
    Histogram,
    Untyped,
}

impl Kind {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "counter" => Self::Counter,
            "gauge" => Self::Gauge,
            "info" => Self::Info,
            "histogram" => Self::Histogram,
            "unknown" | "untyped" => Self::Untyped,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge | Self::Info => "gauge",
            Self::Histogram => "histogram",
            Self::Untyped => "untyped",
        }
    }

    /// What follows the family's name in each of its samples: `(in OpenMetrics, in 0.0.4)`.
    fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Counter => &["_total"],
            Self::Info => &["_info"],
            Self::Histogram => &["_bucket", "_sum", "_count"],
            Self::Gauge | Self::Untyped => &[""],
        }
    }
}

#[derive(Debug)]
struct Family {
    help: String,
    kind: Kind,
    /// In order, for histograms, whose buckets must stay together.
    lines: Vec<String>,
    /// Name and labels of each line, to leave repetitions out.
    seen: BTreeSet<String>,
}

/// The families that a text in format 0.0.4 has.
pub(super) fn families(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
}

/// Rewrites OpenMetrics text, leaving out families named in `taken`.
pub(super) fn rewrite(open_metrics: &str, taken: &HashSet<&str>) -> String {
    let mut out = String::new();
    for (name, family) in collect(open_metrics) {
        if taken.contains(name.as_str()) || family.lines.is_empty() {
            continue;
        }
        let Family { help, kind, mut lines, .. } = family;
        if kind != Kind::Histogram {
            // Sorted, so that the same series are kept at every scrape.
            lines.sort_unstable();
            lines.truncate(SERIES_MAX);
        }
        // A String takes everything that is written to it.
        let _ = writeln!(out, "# HELP {name} {help}");
        let _ = writeln!(out, "# TYPE {name} {}", kind.name());
        for line in lines {
            out.push_str(&line);
            out.push('\n');
        }
    }
    out
}

/// The families by the name they shall have.
fn collect(open_metrics: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut help = ("", "");
    // The family that samples belong to: its name there, its name here.
    let mut current: Option<(&str, String)> = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').unwrap_or((rest, ""));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            current = rest.split_once(' ').and_then(|(name, kind)| {
                let kind = Kind::parse(kind)?;
                let renamed = family_name(name, kind);
                let words = if help.0 == name { help.1 } else { "" };
                let family = families.entry(renamed.clone()).or_insert_with(|| Family {
                    help: help_text(words, &renamed),
                    kind,
                    lines: Vec::new(),
                    seen: BTreeSet::new(),
                });
                // Two types under one name cannot be joined; the first one stays.
                (family.kind == kind).then_some((name, renamed))
            });
        } else if !line.starts_with('#')
            && let Some((name, renamed)) = &current
            && let Some(family) = families.get_mut(renamed)
            && let Some((key, line)) = sample(line, name, renamed, family.kind)
            && family.seen.insert(key)
        {
            family.lines.push(line);
        }
    }
    families
}

/// The name a family has in 0.0.4.
fn family_name(name: &str, kind: Kind) -> String {
    let mut base = name;
    if kind != Kind::Histogram {
        while let Some(stripped) = RESERVED_SUFFIXES.iter().find_map(|suffix| base.strip_suffix(suffix)) {
            base = stripped;
        }
    }
    let prefix = if base.starts_with(PREFIX) { "" } else { PREFIX };
    let suffix = match kind {
        Kind::Counter => "_total",
        Kind::Info => "_info",
        Kind::Histogram if in_milliseconds(base) => "_seconds",
        Kind::Gauge | Kind::Histogram | Kind::Untyped => "",
    };
    format!("{prefix}{base}{suffix}")
}

fn in_milliseconds(name: &str) -> bool {
    MILLISECONDS.iter().any(|end| name.ends_with(end))
}

fn help_text(help: &str, name: &str) -> String {
    // The encoder ends every help in a full stop, its own or not.
    let help = help.trim().trim_end_matches('.');
    if help.is_empty() {
        return name.trim_start_matches(PREFIX).replace('_', " ");
    }
    help.replace('\\', "\\\\")
}

/// One sample's identity and its line in 0.0.4; `None` for what is no sample of this family.
fn sample(line: &str, name: &str, renamed: &str, kind: Kind) -> Option<(String, String)> {
    let rest = line.strip_prefix(name)?;
    let labels_at = rest.find(['{', ' '])?;
    let (suffix, rest) = rest.split_at_checked(labels_at)?;
    if !kind.suffixes().contains(&suffix) {
        return None;
    }
    let (labels, rest) = rest.split_at_checked(labels_end(rest)?)?;
    // The value; what may follow is a time or an exemplar.
    let value = rest.split_whitespace().next()?;
    let value = match value {
        "inf" => "+Inf",
        "-inf" => "-Inf",
        other => other,
    };
    let number = value.parse::<f64>().ok()?;
    let labels = if labels == "{}" { "" } else { labels };
    let (mut value, mut labels) = (Cow::Borrowed(value), Cow::Borrowed(labels));
    if kind == Kind::Histogram && in_milliseconds(name) {
        match suffix {
            "_sum" => value = Cow::Owned((number / 1000.0).to_string()),
            "_bucket" => labels = Cow::Owned(bound_in_seconds(&labels)?),
            _ => {}
        }
    }
    // A counter's and an info's suffix is in the new name already.
    let suffix = if kind == Kind::Histogram { suffix } else { "" };
    let key = format!("{renamed}{suffix}{labels}");
    let line = format!("{key} {value}");
    Some((key, line))
}

/// A bucket's labels with the bound, which the encoder writes first, turned from milliseconds to seconds.
fn bound_in_seconds(labels: &str) -> Option<String> {
    let (bound, rest) = labels.strip_prefix("{le=\"")?.split_once('"')?;
    let bound = match bound {
        "+Inf" => bound.to_string(),
        millis => (millis.parse::<f64>().ok()? / 1000.0).to_string(),
    };
    Some(format!("{{le=\"{bound}\"{rest}"))
}

/// Where the labels at the start of `text` end; 0 without any. Quoted values may hold anything, brackets too.
fn labels_end(text: &str) -> Option<usize> {
    if !text.starts_with('{') {
        return Some(0);
    }
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return at.checked_add(1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests;
