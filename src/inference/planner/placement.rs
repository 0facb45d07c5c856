//! Which layers a node should hold: the thinnest, most wanted span that it can afford.
//!
//! Pure: who holds what goes in, a span comes out.

use std::ops::Range;

use quelea_wire::SpanRange;

/// What a layer that nobody holds counts, beside one that somebody does. Without it there is no answer at all.
const UNCOVERED: u64 = 1000;

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
