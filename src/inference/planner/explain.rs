//! Who was left out and why; what is missing when there is no plan.

use std::{collections::HashSet, fmt};

use libp2p::PeerId;
use quelea_announce::Ends;
use quelea_wire::SpanRange;

use super::{
    Candidate, Query, Room,
    cost::Costs,
    search::{Through, shortest},
};

/// Candidates that a longer explanation is given for: each takes a search.
const EXPLAINED: usize = 64;

/// A peer that is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeftOut {
    pub(crate) peer: PeerId,
    /// What it holds, where that is known.
    pub(crate) span: Option<SpanRange>,
    pub(crate) reason: String,
}

impl LeftOut {
    pub(crate) fn new(peer: PeerId, span: Option<SpanRange>, reason: impl Into<String>) -> Self {
        Self { peer, span, reason: reason.into() }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.span {
            Some(span) => write!(f, "{} ({span}: {})", self.peer, self.reason),
            None => write!(f, "{} ({})", self.peer, self.reason),
        }
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NoPlan {
    /// The layers that were to be run.
    pub(crate) wanted: SpanRange,
    /// Layers that nobody usable holds; empty when only the combination fails.
    pub(crate) missing: Vec<SpanRange>,
    /// Bytes of their weights; 0 when sizes are not known.
    pub(crate) missing_bytes: u64,
    /// Ends of the model that are wanted, and that nobody usable has with the layers next to them.
    pub(crate) lacks: Ends,
    /// Whether everything would be covered, had all holders enough free memory for the session.
    pub(crate) full: bool,
    /// Who was counted, with what.
    pub(crate) counted: Vec<(PeerId, SpanRange)>,
    /// Who was left out, and why.
    pub(crate) left_out: Vec<LeftOut>,
}

impl NoPlan {
    pub(super) fn new(query: &Query, candidates: &[Candidate], left_out: Vec<LeftOut>) -> Self {
        let allowed = |c: &&Candidate| !query.exclude.contains(&c.peer);
        let spans = |roomy: bool| -> Vec<SpanRange> {
            let roomy = |c: &&Candidate| !roomy || c.room(query) != Room::None;
            candidates.iter().filter(allowed).filter(roomy).map(|c| c.span).collect()
        };
        let missing = uncovered(query.span, &spans(true));
        let bytes = |span: &SpanRange| query.layer_bytes.get(span.as_usize()).unwrap_or_default().iter().sum::<u64>();
        let counted = candidates.iter().filter(|c| c.is_usable(query));
        Self {
            wanted: query.span,
            lacks: lacking(query, candidates),
            missing_bytes: missing.iter().map(bytes).sum(),
            full: !missing.is_empty() && uncovered(query.span, &spans(false)).is_empty(),
            missing,
            counted: counted.map(|c| (c.peer, c.span)).collect(),
            left_out,
        }
    }
}

impl NoPlan {
    /// Whether all layers are covered, and it is the model's ends that nobody has.
    pub(crate) fn lacks_only_ends(&self) -> bool {
        self.missing.is_empty() && self.lacks != Ends::default()
    }
}

impl fmt::Display for NoPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted = self.wanted;
        if self.lacks_only_ends() {
            let what = match (self.lacks.embedding, self.lacks.head) {
                (true, true) => {
                    format!("the embedding with layer {}, nor the head with layer {}", wanted.start(), wanted.end() - 1)
                }
                (true, false) => format!("the embedding with layer {}", wanted.start()),
                (false, _) => format!("the head with layer {}", wanted.end() - 1),
            };
            write!(f, "layers {wanted} are covered, but no peer holds {what}, which this node does not have either")?;
        } else if self.missing.is_empty() {
            write!(f, "no chain covers layers {wanted} without using a peer twice")?;
        } else {
            let list = self.missing.iter().map(SpanRange::to_string).collect::<Vec<_>>().join(", ");
            write!(f, "no chain covers layers {wanted}: short of layers {list}")?;
            if self.missing_bytes > 0 {
                write!(f, " ({})", size(self.missing_bytes))?;
            }
        }
        if self.counted.is_empty() {
            f.write_str("; no peer offers any layer of this model")?;
        } else {
            let counted: Vec<_> = self.counted.iter().map(|(peer, span)| format!("{peer} ({span})")).collect();
            write!(f, "; peers counted: {}", counted.join(", "))?;
        }
        if !self.left_out.is_empty() {
            let out: Vec<_> = self.left_out.iter().map(LeftOut::to_string).collect();
            write!(f, "; left out: {}", out.join(", "))?;
        }
        Ok(())
    }
}

impl std::error::Error for NoPlan {}

/// Bytes as people write them.
#[expect(clippy::cast_precision_loss, reason = "a size for people")]
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// The layers of `wanted` that no span holds, as ranges.
pub(crate) fn uncovered(wanted: SpanRange, spans: &[SpanRange]) -> Vec<SpanRange> {
    let mut missing = Vec::new();
    let mut start = None;
    for layer in wanted.start()..=wanted.end() {
        let open = layer < wanted.end() && !spans.iter().any(|span| span.contains(layer));
        match (open, start) {
            (true, None) => start = Some(layer),
            (false, Some(from)) => {
                missing.extend(SpanRange::new(from, layer));
                start = None;
            }
            _ => {}
        }
    }
    missing
}

/// The ends of the model that a query wants, and that no usable candidate has with the layers next to them.
pub(crate) fn lacking(query: &Query, candidates: &[Candidate]) -> Ends {
    let usable = || candidates.iter().filter(|c| c.is_usable(query));
    let (first, last) = (query.span.start(), query.span.end().saturating_sub(1));
    Ends {
        embedding: query.ends.embedding && !usable().any(|c| c.ends.embedding && c.span.contains(first)),
        head: query.ends.head && !usable().any(|c| c.ends.head && c.span.contains(last)),
    }
}

/// Candidates that the query itself rules out.
pub(super) fn unusable(query: &Query, candidates: &[Candidate]) -> Vec<LeftOut> {
    let why = |c: &Candidate| {
        if query.exclude.contains(&c.peer) {
            Some("is not to be used for this request".to_owned())
        } else if let Some(why) = without_ends(query, c) {
            Some(why)
        } else if c.room(query) == Room::None {
            Some(format!("has {} KV pages free, and the session needs {}", c.kv_pages_free, query.kv_pages))
        } else {
            None
        }
    };
    candidates.iter().filter_map(|c| Some(LeftOut::new(c.peer, Some(c.span), why(c)?))).collect()
}

/// Why a candidate cannot run the first or the last layers of a query, though it holds them; nothing where others will do.
fn without_ends(query: &Query, c: &Candidate) -> Option<String> {
    let (first, last) = (query.span.start(), query.span.end().saturating_sub(1));
    let embedding = query.ends.embedding && !c.ends.embedding && c.span.contains(first);
    let head = query.ends.head && !c.ends.head && c.span.contains(last);
    let what = match (embedding, head) {
        (true, true) => "embedding and head",
        (true, false) => "the embedding",
        (false, true) => "the head",
        (false, false) => return None,
    };
    Some(format!("not for that end of the model: it does not compute {what}, which this node lacks"))
}

/// What a chain through each candidate that is not used would take, compared with the best.
pub(super) fn passed_over(
    query: &Query,
    candidates: &[Candidate],
    costs: &Costs<'_>,
    used: &HashSet<PeerId>,
    best: u128,
) -> Vec<LeftOut> {
    let overlaps = |c: &Candidate| c.span.start() < query.span.end() && c.span.end() > query.span.start();
    let usable = |c: &Candidate| overlaps(c) && !used.contains(&c.peer) && c.is_usable(query);
    let all = candidates.iter().enumerate().filter(|(_, c)| usable(c));
    all.take(EXPLAINED)
        .map(|(index, candidate)| {
            let (from, to) =
                (candidate.span.start().max(query.span.start()), candidate.span.end().min(query.span.end()));
            // Any layer of it will do to force it in; the middle one leaves it the most room.
            let through = Through { layer: from + (to - from) / 2, candidate: index };
            let reason = match shortest(query, candidates, costs, &HashSet::new(), Some(through)) {
                Some((_, cost)) => {
                    let more = cost.score(costs.peaks).saturating_sub(best) * 100 / best.max(1);
                    if more == 0 {
                        "as good as the one chosen".to_owned()
                    } else {
                        format!("a chain through it costs {more} % more")
                    }
                }
                None => "no chain leads through it".to_owned(),
            };
            LeftOut::new(candidate.peer, Some(candidate.span), reason)
        })
        .collect()
}
