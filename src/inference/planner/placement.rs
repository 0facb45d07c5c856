//! Which layers a node should hold: the thinnest, most wanted span that it can afford.
//!
//! Pure: who holds what goes in, a span comes out.
//!
//! A node that holds the wrong span moves: it says that another is coming, loads it, looks again, and only then gives up the
//! old one. What keeps a crowd from moving together is that everybody says so first ([`Standing::Comes`]) and looks once more
//! later than anybody's word takes: of those who come to one place, or leave one, the greater ids then think better of it.

use std::ops::Range;

use libp2p::PeerId;
use quelea_wire::SpanRange;

/// What a layer that nobody holds counts, beside one that somebody does. Without it there is no answer at all.
const UNCOVERED: u64 = 1000;

/// A move is worth it from this gain on, in parts of a hundred: loading costs everybody who takes weights or sessions.
const GAIN_PERCENT: u64 = 25;

/// Somebody holds this span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) span: SpanRange,
    /// How much of a whole worker it is worth: 0 for one that leaves.
    pub(crate) weight: u64,
}

/// How many hold each layer.
pub(crate) fn replicas(layers: usize, holdings: &[Holding]) -> Vec<u64> {
    let mut counts = vec![0_u64; layers];
    for holding in holdings {
        let span = holding.span.as_usize();
        for count in counts.get_mut(span.start.min(layers)..span.end.min(layers)).into_iter().flatten() {
            *count = count.saturating_add(holding.weight);
        }
    }
    counts
}

/// The most layers from `start` on that fit `budget` bytes.
fn fitting(layer_bytes: &[u64], start: usize, budget: u64) -> Option<Range<usize>> {
    let mut sum = 0_u64;
    let mut end = start;
    for bytes in layer_bytes.get(start..)? {
        sum = sum.saturating_add(*bytes);
        if sum > budget {
            break;
        }
        end += 1;
    }
    (end > start).then_some(start..end)
}

/// What one more holder of a span is worth: the fewer hold a layer, the more.
fn worth(counts: &[u64], span: Range<usize>) -> u64 {
    let one = |count: &u64| if *count == 0 { UNCOVERED * 100 } else { 100 / count.saturating_add(1) };
    counts.get(span).unwrap_or_default().iter().map(one).sum()
}

/// The span of the most layers that fit `budget`, placed where one more holder is worth the most.
///
/// Of places that are worth the same, those count that leave no gap to what others hold, so that nodes of one size end side
/// by side; of these it is number `pick`. Nodes that look at the same moment, each with a pick of its own, then mostly
/// choose different ones.
pub(crate) fn thinnest(layer_bytes: &[u64], others: &[Holding], budget: u64, pick: u64) -> Option<SpanRange> {
    let layers = layer_bytes.len();
    let counts = replicas(layers, others);
    let spans: Vec<Range<usize>> = (0..layers).filter_map(|start| fitting(layer_bytes, start, budget)).collect();
    let most = spans.iter().map(|span| worth(&counts, span.clone())).max()?;
    let best = spans.into_iter().filter(|span| worth(&counts, span.clone()) == most);
    let (flush, loose): (Vec<_>, Vec<_>) = best.partition(|span| is_flush(&counts, span));
    let best = if flush.is_empty() { loose } else { flush };
    let turn = usize::try_from(pick % u64::try_from(best.len()).unwrap_or(1).max(1)).unwrap_or(0);
    let span = best.get(turn)?;
    SpanRange::new(u16::try_from(span.start).ok()?, u16::try_from(span.end).ok()?).ok()
}

/// Whether whole spans of the same length fit between `span` and the last layer before it that others hold more or less of.
fn is_flush(counts: &[u64], span: &Range<usize>) -> bool {
    let own = counts.get(span.start);
    let before = counts.get(..span.start).unwrap_or_default();
    let alike = before.iter().rev().take_while(|count| Some(*count) == own).count();
    alike.is_multiple_of(span.len().max(1))
}

/// What becomes of somebody's span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// It is served.
    Stays,
    /// It is served until another span of the same peer is loaded.
    Leaves,
    /// It is being loaded.
    Comes,
}

/// Who holds a span, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) peer: PeerId,
    pub(crate) span: SpanRange,
    pub(crate) standing: Standing,
}

/// Whether `own` may be given up: each of its layers stays with somebody else. Of two who want to leave each other alone the one
/// of the greater id stays.
pub(crate) fn may_leave(own: SpanRange, here: PeerId, others: &[Holder]) -> bool {
    let stays = |other: &&Holder| match other.standing {
        Standing::Stays => true,
        Standing::Leaves => other.peer > here,
        Standing::Comes => false,
    };
    let staying: Vec<Holding> =
        others.iter().filter(stays).map(|other| Holding { span: other.span, weight: 1 }).collect();
    let counts = replicas(usize::from(own.end()), &staying);
    counts.get(own.as_usize()).is_some_and(|counts| counts.iter().all(|count| *count > 0))
}

/// Which span to hold instead of `own`, if it is worth a move. `others` are without this node.
pub(crate) fn better(
    layer_bytes: &[u64],
    own: SpanRange,
    here: PeerId,
    others: &[Holder],
    budget: u64,
    pick: u64,
) -> Option<SpanRange> {
    if !may_leave(own, here, others) {
        return None;
    }
    let there = holdings(others, |_| true);
    let span = thinnest(layer_bytes, &there, budget, pick).filter(|span| *span != own)?;
    is_worth_it(layer_bytes.len(), own, span, &there).then_some(span)
}

/// Whether a move that was begun is to be ended: nobody has become dependent on `own` since, and `to` is still thin, counting
/// those of smaller ids who come there as well.
pub(crate) fn still_better(layers: usize, own: SpanRange, to: SpanRange, here: PeerId, others: &[Holder]) -> bool {
    may_leave(own, here, others) && is_worth_it(layers, own, to, &holdings(others, |coming| coming < here))
}

/// Those who will be there, as far as those who come count.
fn holdings(others: &[Holder], counts: impl Fn(PeerId) -> bool) -> Vec<Holding> {
    let there = |other: &&Holder| match other.standing {
        Standing::Stays => true,
        Standing::Leaves => false,
        Standing::Comes => counts(other.peer),
    };
    others.iter().filter(there).map(|other| Holding { span: other.span, weight: 1 }).collect()
}

fn is_worth_it(layers: usize, own: SpanRange, to: SpanRange, there: &[Holding]) -> bool {
    let counts = replicas(layers, there);
    let (now, then) = (worth(&counts, own.as_usize()), worth(&counts, to.as_usize()));
    then >= now.saturating_add(now.saturating_mul(GAIN_PERCENT) / 100).max(now.saturating_add(1))
}

#[cfg(test)]
mod tests;
