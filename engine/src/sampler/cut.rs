//! From adjusted logits to a token: temperature, top-k, top-p, min-p and the draw.

use std::cmp::Ordering;

use super::{
    config::{SamplerConfig, Vocab},
    draw,
    nucleus::{Nucleus, last_of_nucleus},
    weight::{ONE, Scale},
};

/// Top-p looks at so many of the most likely tokens before it looks at all: real models seldom need more.
const NUCLEUS_GUESS: usize = 512;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
    pub(super) weight: u64,
}

/// The working memory of the cuts.
#[derive(Clone, Debug, Default)]
pub(super) struct Cut {
    weights: Vec<u64>,
    kept: Vec<Candidate>,
    ranked: Vec<Candidate>,
    top: Vec<(u32, f32)>,
    nucleus: Nucleus,
}

impl Cut {
    /// Picks a token.
    pub(super) fn pick(&mut self, config: &SamplerConfig, logits: &[f32], vocab: Vocab, position: u64) -> u32 {
        let best = || first_of(logits, vocab.highest);
        if config.temperature == 0.0 {
            return best();
        }
        let kept = self.candidates(config, logits, vocab);
        let total: u64 = kept.iter().map(|c| c.weight).sum();
        let target = draw::below(config.seed, position, total);
        let mut reached = 0;
        let hit = kept.iter().find(|c| {
            reached += c.weight;
            reached > target
        });
        hit.map_or_else(best, |c| c.id)
    }

    /// The tokens to draw from, in order of ids. The most likely one is always among them.
    pub(super) fn candidates(&mut self, config: &SamplerConfig, logits: &[f32], vocab: Vocab) -> &[Candidate] {
        let Self { weights, kept, ranked, top, nucleus } = self;
        let scale = Scale::new(vocab.highest, config.temperature);
        let ranked_of = |k: usize, top: &mut Vec<(u32, f32)>, into: &mut Vec<Candidate>| -> u64 {
            select_top(logits, k, top);
            into.clear();
            into.extend(top.iter().map(|(id, logit)| Candidate {
                id: *id,
                logit: *logit,
                weight: scale.weight(*logit),
            }));
            into.iter().map(|c| c.weight).sum()
        };
        let all = |weights: &[u64], least: u64, into: &mut Vec<Candidate>| {
            into.clear();
            let each = (0..).zip(logits).zip(weights).map(|((id, logit), weight)| (id, *logit, *weight));
            let some = each.filter(|(.., weight)| *weight >= least);
            into.extend(some.map(|(id, logit, weight)| Candidate { id, logit, weight }));
        };
        let min_p = share(config.min_p, ONE);
        let cut_k = config.top_k > 0 && config.top_k < vocab.len;
        let total = if cut_k { ranked_of(config.top_k, top, kept) } else { scale.weights(logits, weights) };
        if config.top_p < 1.0 {
            let wanted = share(config.top_p, total);
            if cut_k || ranked_of(NUCLEUS_GUESS, top, kept) >= wanted {
                ranked.clone_from(kept);
                let last = last_of_nucleus(ranked, wanted);
                kept.retain(|c| last.is_none_or(|last| likely_first(c, &last) != Ordering::Greater));
            } else {
                let highest = (vocab.highest, config.temperature);
                nucleus.collect((logits, weights), highest, (wanted, min_p), kept);
            }
        } else if !cut_k {
            all(weights, min_p, kept);
        }
        kept.retain(|c| c.weight >= min_p);
        // What came from a whole pass is in order already, and is not to be sorted.
        if !kept.is_sorted_by_key(|c| c.id) {
            kept.sort_unstable_by_key(|c| c.id);
        }
        kept
    }
}

/// `share` of `total`, rounded up, at least 1.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share within 0..=1 of a whole number; the one rounding is the same everywhere"
)]
fn share(share: f32, total: u64) -> u64 {
    ((f64::from(share) * total as f64).ceil() as u64).clamp(1, total.max(1))
}

/// The order of likelihood; ties go to the lower id. Logits are not NaN.
pub(super) fn likely_first(a: &Candidate, b: &Candidate) -> Ordering {
    higher_first(&(a.id, a.logit), &(b.id, b.logit))
}

fn higher_first(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

/// The first id with this logit.
fn first_of(logits: &[f32], highest: f32) -> u32 {
    let at = logits.iter().position(|logit| *logit == highest);
    at.and_then(|at| u32::try_from(at).ok()).unwrap_or_default()
}

/// The `k` tokens of the highest logits, into `top`, in no order. Banned tokens are never among them.
///
/// One pass: a token enters when it is above the k-th of those before it, and every k entries the list is cut again.
fn select_top(logits: &[f32], k: usize, top: &mut Vec<(u32, f32)>) {
    const BLOCK: usize = 16;
    top.clear();
    if k == 0 {
        return;
    }
    let full = k.saturating_mul(2);
    let mut threshold = f32::NEG_INFINITY;
    let mut id = 0_u32;
    for block in logits.chunks(BLOCK) {
        // Most blocks hold nothing of interest, and finding that out takes a few instructions.
        if block.iter().fold(false, |any, logit| any | (*logit > threshold)) {
            for (id, logit) in (id..).zip(block) {
                if *logit > threshold {
                    top.push((id, *logit));
                }
                if top.len() >= full {
                    threshold = keep_top(top, k);
                }
            }
        }
        id = id.wrapping_add(BLOCK as u32);
    }
    if top.len() > k {
        keep_top(top, k);
    }
}

/// Keeps the `k` highest of more than `k`; the lowest of those.
fn keep_top(top: &mut Vec<(u32, f32)>, k: usize) -> f32 {
    let (_, last, _) = top.select_nth_unstable_by(k - 1, higher_first);
    let lowest = last.1;
    top.truncate(k);
    lowest
}

/// The `k` tokens of the highest logits with their logits, the highest first.
pub(super) fn ranking(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let mut top = Vec::new();
    select_top(logits, k, &mut top);
    top.sort_unstable_by(higher_first);
    top
}
