//! One page for a few queries: scores, their exponentials, and the values weighted by them.

#![allow(clippy::needless_range_loop, reason = "constant bounds over several arrays at once: registers, once unrolled")]

use std::ops::Range;

use super::PAGE;
use super::job::AttendShape;
use super::page::{Addresses, Block, F32Block, Tile};
use crate::float::simd::{Kernel, LANES, Simd};
use crate::float::{Softcap, exp_lanes};
use crate::memory::LINE;

/// Registers of a page's positions.
const HALVES: usize = PAGE / LANES;

/// What stands between a dot product and its score.
pub(super) struct Scores {
    scale: f32,
    softcap: Option<Softcap>,
}

impl Scores {
    pub(super) fn new(shape: &AttendShape) -> Self {
        Self { scale: shape.scale, softcap: shape.softcap.map(Softcap::new) }
    }
}

/// Some queries on their way through the pages.
pub(super) struct Query<'a> {
    /// `[head_dim][queries]`.
    pub q: &'a [f32],
    /// The slots that each sees, at least one.
    pub seen: &'a [Range<usize>],
    /// The greatest score so far.
    pub max: &'a mut [f32],
    /// The sum of the exponentials so far.
    pub sum: &'a mut [f32],
    /// `[query][head_dim / 16]`: the weighted values so far.
    pub acc: &'a mut [F32Block],
}

/// The most queries that are taken together.
pub(super) const MOST: usize = 8;

/// A page's positions for one query.
type Row = [[f32; LANES]; HALVES];

/// Takes up to [`MOST`] queries (1, 2, 4 or 8) one page further.
pub(super) struct Step<'a, B> {
    pub scores: &'a Scores,
    pub tile: Tile<'a, B>,
    /// The next page, which is fetched meanwhile.
    pub ahead: Addresses,
    pub query: Query<'a>,
}

impl<B: Block> Kernel for Step<'_, B> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { scores, tile, ahead, query } = self;
        let Query { q, seen, max, sum, acc } = query;
        let mut rows = [[[0.0; LANES]; HALVES]; MOST];
        let rows = &mut rows[..seen.len()];
        dot(s, q, tile.keys, ahead.keys, rows);
        let factors = s.call(Soften { scores, scales: tile.scales, rows, seen, max, sum });
        let factors = &factors[..seen.len()];

        let start = seen.iter().map(|seen| seen.start).max().unwrap_or(0);
        let end = seen.iter().map(|seen| seen.end).min().unwrap_or(0);
        if seen.iter().all(|seen| *seen == (start..end)) {
            return mix(s, factors, rows, start..end, tile.values, ahead.values, acc);
        }
        // Each query's slots in ascending order: those it sees alone, those that all see, the rest alone.
        let blocks = acc.len() / seen.len();
        let none = end.max(start);
        for (m, seen) in seen.iter().enumerate() {
            let first = seen.start..if start < end { start } else { seen.end };
            mix(s, &factors[m..=m], &rows[m..=m], first, tile.values, ahead.values, &mut acc[m * blocks..][..blocks]);
        }
        if start < end {
            mix(s, &[1.0; MOST][..seen.len()], rows, start..none, tile.values, ahead.values, acc);
            for (m, seen) in seen.iter().enumerate() {
                mix(
                    s,
                    &[1.0],
                    &rows[m..=m],
                    none..seen.end,
                    tile.values,
                    ahead.values,
                    &mut acc[m * blocks..][..blocks],
                );
            }
        }
    }
}

/// Scores to weights: what happens between the two products. Gives back what the sums so far are multiplied by.
struct Soften<'a> {
    scores: &'a Scores,
    scales: Option<(&'a [f32; PAGE], &'a [f32; PAGE])>,
    rows: &'a mut [Row],
    seen: &'a [Range<usize>],
    max: &'a mut [f32],
    sum: &'a mut [f32],
}

impl Kernel for Soften<'_> {
    type Out = [f32; LANES];
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; LANES] {
        let Self { scores, scales, rows, seen, max, sum } = self;
        // One lane per query; idle ones hold harmless zeros.
        let (mut old, mut new) = ([0.0; LANES], [0.0; LANES]);
        old[..max.len()].copy_from_slice(max);
        for ((row, seen), new) in rows.iter_mut().zip(seen).zip(&mut new) {
            for (half, slots) in row.iter_mut().enumerate() {
                let mut x = s.load(slots);
                if let Some((key_scales, _)) = scales {
                    x = s.mul(x, s.load(&key_scales.as_chunks().0[half]));
                }
                x = s.mul(x, s.splat(scores.scale));
                if let Some(softcap) = scores.softcap {
                    x = softcap.apply(s, x);
                }
                s.store(x, slots);
            }
            if *seen != (0..PAGE) {
                let slots = row.as_flattened_mut();
                slots[..seen.start].fill(f32::NEG_INFINITY);
                slots[seen.end..].fill(f32::NEG_INFINITY);
            }
            *new = s.greatest(s.max(s.load(&row[0]), s.load(&row[1])));
        }
        let before = s.load(&old);
        let after = s.max(before, s.load(&new));
        s.store(after, &mut new);
        let mut sums = [0.0; LANES];
        for ((row, new), sum) in rows.iter_mut().zip(&new).zip(&mut sums) {
            let low = exp_lanes(s, s.sub(s.load(&row[0]), s.splat(*new)));
            let high = exp_lanes(s, s.sub(s.load(&row[1]), s.splat(*new)));
            *sum = s.sum(s.add(low, high));
            for (half, mut weight) in [low, high].into_iter().enumerate() {
                if let Some((_, value_scales)) = scales {
                    weight = s.mul(weight, s.load(&value_scales.as_chunks().0[half]));
                }
                s.store(weight, &mut row[half]);
            }
        }
        let mut factors = [0.0; LANES];
        let shrink = exp_lanes(s, s.sub(before, after));
        s.store(shrink, &mut factors);
        let mut total = [0.0; LANES];
        total[..sum.len()].copy_from_slice(sum);
        s.store(s.fma(s.load(&total), shrink, s.load(&sums)), &mut total);
        sum.copy_from_slice(&total[..sum.len()]);
        max.copy_from_slice(&new[..max.len()]);
        factors
    }
}

/// The dot products of the queries, `[head_dim][queries]`, with the keys: along the dimensions in order.
#[inline(always)]
fn dot<S: Simd, B: Block>(s: S, q: &[f32], keys: &[[B; HALVES]], ahead: *const u8, rows: &mut [Row]) {
    match rows.len() {
        8 => dot_of::<S, B, 8>(s, q, keys, ahead, rows),
        4 => dot_of::<S, B, 4>(s, q, keys, ahead, rows),
        2 => dot_of::<S, B, 2>(s, q, keys, ahead, rows),
        _ => dot_of::<S, B, 1>(s, q, keys, ahead, rows),
    }
}

#[inline(always)]
fn dot_of<S: Simd, B: Block, const M: usize>(
    s: S,
    q: &[f32],
    keys: &[[B; HALVES]],
    ahead: *const u8,
    rows: &mut [Row],
) {
    let (q, _) = q.as_chunks::<M>();
    if const { M * HALVES <= S::SUMS } {
        s.call(Dot::<B, M, HALVES> { q, keys, first: 0, ahead, rows });
    } else if const { M <= S::SUMS } {
        for first in 0..HALVES {
            s.call(Dot::<B, M, 1> { q, keys, first, ahead, rows });
        }
    }
}

struct Dot<'a, B, const M: usize, const N: usize> {
    q: &'a [[f32; M]],
    keys: &'a [[B; HALVES]],
    /// The first register of positions.
    first: usize,
    ahead: *const u8,
    rows: &'a mut [Row],
}

impl<B: Block, const M: usize, const N: usize> Kernel for Dot<'_, B, M, N> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { q, keys, first, ahead, rows } = self;
        let mut sums = [[s.splat(0.0); N]; M];
        for (i, (q, keys)) in q.iter().zip(keys).enumerate() {
            let ahead = ahead.wrapping_add((i * HALVES + first) * size_of::<B>());
            s.prefetch(ahead);
            if const { N * size_of::<B>() > LINE } {
                s.prefetch(ahead.wrapping_add(LINE));
            }
            let mut k = [s.splat(0.0); N];
            for n in 0..N {
                k[n] = keys[first + n].widen(s);
            }
            for m in 0..M {
                for n in 0..N {
                    sums[m][n] = s.fma(s.splat(q[m]), k[n], sums[m][n]);
                }
            }
        }
        for m in 0..M {
            for n in 0..N {
                s.store(sums[m][n], &mut rows[m][first + n]);
            }
        }
    }
}

/// Multiplies the queries' sums by their factors, then adds the weighted values of `slots` in order.
#[inline(always)]
fn mix<S: Simd, B: Block>(
    s: S,
    factors: &[f32],
    rows: &[Row],
    slots: Range<usize>,
    values: &[B],
    ahead: *const u8,
    acc: &mut [F32Block],
) {
    match rows.len() {
        8 => mix_of::<S, B, 8>(s, factors, rows, slots, values, ahead, acc),
        4 => mix_of::<S, B, 4>(s, factors, rows, slots, values, ahead, acc),
        2 => mix_of::<S, B, 2>(s, factors, rows, slots, values, ahead, acc),
        _ => mix_of::<S, B, 1>(s, factors, rows, slots, values, ahead, acc),
    }
}

#[inline(always)]
fn mix_of<S: Simd, B: Block, const M: usize>(
    s: S,
    factors: &[f32],
    rows: &[Row],
    slots: Range<usize>,
    values: &[B],
    ahead: *const u8,
    acc: &mut [F32Block],
) {
    let blocks = acc.len() / M;
    let mut at = 0;
    while at < blocks {
        let (slots, left) = (slots.clone(), blocks - at);
        if const { 4 * M <= S::SUMS } && left >= 4 {
            s.call(Mix::<B, M, 4> { factors, rows, slots, values, ahead, acc, at });
            at += 4;
        } else if const { 2 * M <= S::SUMS } && left >= 2 {
            s.call(Mix::<B, M, 2> { factors, rows, slots, values, ahead, acc, at });
            at += 2;
        } else if const { M <= S::SUMS } {
            s.call(Mix::<B, M, 1> { factors, rows, slots, values, ahead, acc, at });
            at += 1;
        }
    }
}

/// [`mix`] for `N` blocks of dimensions from `at` on.
struct Mix<'a, B, const M: usize, const N: usize> {
    factors: &'a [f32],
    rows: &'a [Row],
    slots: Range<usize>,
    values: &'a [B],
    ahead: *const u8,
    acc: &'a mut [F32Block],
    at: usize,
}

impl<B: Block, const M: usize, const N: usize> Kernel for Mix<'_, B, M, N> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { factors, rows, slots, values, ahead, acc, at } = self;
        let blocks = acc.len() / M;
        let mut sums = [[s.splat(0.0); N]; M];
        for m in 0..M {
            for n in 0..N {
                sums[m][n] = s.mul(s.load(&acc[m * blocks + at + n].0), s.splat(factors[m]));
            }
        }
        for slot in slots {
            let row = &values[slot * blocks + at..][..N];
            for line in 0..const { (N * size_of::<B>()).div_ceil(LINE) } {
                s.prefetch(ahead.wrapping_add((slot * blocks + at) * size_of::<B>() + line * LINE));
            }
            let mut v = [s.splat(0.0); N];
            for n in 0..N {
                v[n] = row[n].widen(s);
            }
            for m in 0..M {
                let weight = s.splat(rows[m].as_flattened()[slot]);
                for n in 0..N {
                    sums[m][n] = s.fma(weight, v[n], sums[m][n]);
                }
            }
        }
        for m in 0..M {
            for n in 0..N {
                s.store(sums[m][n], &mut acc[m * blocks + at + n].0);
            }
        }
    }
}
