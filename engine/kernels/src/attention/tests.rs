//! Every path against the scalar one, bit for bit, however the rows are cut; the scalar one against f64.

use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::*;
use crate::float::tests::hash;
use crate::{Isa, Pool};

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap())
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Numbers in ±1, always the same for a seed.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb)
    };
    (0..len).map(|_| (next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0).collect()
}

/// A sequence's keys and values, `[positions, width]`, and queries for its last rows.
struct Case {
    shape: AttendShape,
    format: KvFormat,
    position: usize,
    rows: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn new(shape: AttendShape, format: KvFormat, position: usize, rows: usize, seed: u64, size: f32) -> Self {
        let width = shape.kv_heads * shape.head_dim;
        let sized = |x: Vec<f32>| x.into_iter().map(|x| x * size).collect();
        Self {
            shape,
            format,
            position,
            rows,
            q: sized(noise(seed, rows * shape.heads * shape.head_dim)),
            k: sized(noise(seed + 1, (position + rows) * width)),
            v: noise(seed + 2, (position + rows) * width),
        }
    }

    fn width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    /// Pages with the first `rows` positions; what lies behind is `rest`.
    fn pages(&self, isa: Isa, rows: usize, rest: f32) -> Vec<KvPage> {
        let width = self.shape.kv_heads * self.shape.head_dim;
        let mut pages = Vec::new();
        for first in (0..rows).step_by(PAGE) {
            let mut page = KvPage::new(self.format, self.shape.kv_heads, self.shape.head_dim);
            let rest = vec![rest; PAGE * width];
            page.write(isa, 0, &rest, &rest);
            let part = first * width..rows.min(first + PAGE) * width;
            page.write(isa, 0, &self.k[part.clone()], &self.v[part]);
            pages.push(page);
        }
        pages
    }

    fn run(&self, isa: Isa, threads: usize) -> Vec<f32> {
        let pages = self.pages(isa, self.position + self.rows, 0.0);
        let mut out = vec![f32::NAN; self.q.len()];
        let job = AttendJob { pages: &pages, position: self.position, rows: self.rows };
        attend(isa, &pool(threads), &self.shape, &[job], &self.q, &mut out);
        out
    }

    /// The row at `position + row`, alone, with pages that hold nothing else but `rest`.
    fn run_alone(&self, isa: Isa, row: usize, rest: f32) -> Vec<f32> {
        let pages = self.pages(isa, self.position + row + 1, rest);
        let mut out = vec![f32::NAN; self.width()];
        let job = AttendJob { pages: &pages, position: self.position + row, rows: 1 };
        attend(isa, &pool(1), &self.shape, &[job], &self.q[row * self.width()..][..self.width()], &mut out);
        out
    }

    /// What a page gives back for the vector of one head: the stored values.
    fn stored(&self, x: &[f32]) -> Vec<f64> {
        match self.format {
            KvFormat::F32 => x.iter().map(|&x| f64::from(x)).collect(),
            KvFormat::F16 => x.iter().map(|&x| half::f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f64()).collect(),
            KvFormat::Q8 => {
                let scale = x.iter().fold(0.0f32, |a, x| a.max(x.abs())) / 127.0;
                if scale < f32::MIN_POSITIVE {
                    return vec![0.0; x.len()];
                }
                let code = |x: f32| f64::from((x * (1.0 / scale)).round_ties_even());
                x.iter().map(|&x| code(x) * f64::from(scale)).collect()
            }
        }
    }

    /// In f64, and a bound on the error of the f32 result: with u = 2^−24 a score is off by at most
    /// e = u · (head_dim + 4) · Σ|q·k| · scale (its bound under a soft cap is no worse, plus 4 u · cap), a weight by
    /// a factor 1 + 2e + 8u per page and key, the sum over keys by (keys + 8) u: all times the greatest |v|.
    fn exact(&self) -> Vec<(f64, f64)> {
        let AttendShape { heads, kv_heads, head_dim, scale, softcap, window } = self.shape;
        let u = 2f64.powi(-24);
        let head_of = |x: &[f32], j: usize, h: usize| self.stored(&x[(j * kv_heads + h) * head_dim..][..head_dim]);
        let mut out = Vec::new();
        for row in 0..self.rows {
            let p = self.position + row;
            let start = window.map_or(0, |w| (p + 1).saturating_sub(w));
            for head in 0..heads {
                let q = &self.q[(row * heads + head) * head_dim..][..head_dim];
                let kv = head / (heads / kv_heads);
                let (mut scores, mut off) = (Vec::new(), 0.0f64);
                for j in start..=p {
                    let k = head_of(&self.k, j, kv);
                    let terms = q.iter().zip(&k).map(|(&q, k)| f64::from(q) * k);
                    let size: f64 = terms.clone().map(f64::abs).sum::<f64>() * f64::from(scale).abs();
                    let score = terms.sum::<f64>() * f64::from(scale);
                    let cap = softcap.map(f64::from);
                    scores.push(cap.map_or(score, |cap| cap * (score / cap).tanh()));
                    off = off.max(u * ((head_dim + 4) as f64 * size + cap.unwrap_or(0.0) * 4.0 + score.abs() * 2.0));
                }
                let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let e: Vec<f64> = scores.iter().map(|s| (s - greatest).exp()).collect();
                let sum: f64 = e.iter().sum();
                let (mut o, mut v_max) = (vec![0.0; head_dim], 0.0f64);
                for (j, e) in (start..=p).zip(&e) {
                    for (o, v) in o.iter_mut().zip(head_of(&self.v, j, kv)) {
                        *o += e / sum * v;
                        v_max = v_max.max(v.abs());
                    }
                }
                let keys = scores.len() as f64;
                let bound = v_max * (2.0 * (2.0 * off).exp_m1() + u * (2.0 * keys + 8.0 * keys / 32.0 + 40.0)) + 1e-43;
                out.extend(o.into_iter().map(|o| (o, bound)));
            }
        }
        out
    }

    fn check(&self) {
        let scalar = self.run(Isa::Scalar, 1);
        for (i, (found, (exact, bound))) in scalar.iter().zip(self.exact()).enumerate() {
            let off = (f64::from(*found) - exact).abs();
            assert!(off <= bound, "value {i}: {found} is {off:e} from {exact}, more than {bound:e}");
        }
        for isa in Isa::available() {
            for threads in [1, 3] {
                assert_eq!(bits(&self.run(isa, threads)), bits(&scalar), "{isa}, {threads} threads");
            }
            let row = self.rows - 1;
            for row in [0, row / 2, row] {
                let expected = bits(&scalar[row * self.width()..][..self.width()]);
                assert_eq!(bits(&self.run_alone(isa, row, 0.0)), expected, "{isa}, row {row} alone");
                let poisoned = self.run_alone(isa, row, f32::NAN);
                assert_eq!(bits(&poisoned), expected, "{isa}, row {row} beside what is no number");
            }
        }
    }
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttendShape {
    AttendShape { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), softcap: None, window: None }
}

const FORMATS: [KvFormat; 3] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn paths_agree_and_are_near(
        group in 1usize..10, kv_heads in 1usize..4, head_dim in prop::sample::select(vec![2, 14, 32, 48, 64, 80, 96, 100, 128]),
        format in prop::sample::select(FORMATS.to_vec()),
        position in 0usize..100, rows in 1usize..40, seed: u32, size in prop::sample::select(vec![1.0f32, 4.0, 1e-3]),
        window in prop::option::of(prop::sample::select(vec![1, 2, 7, 31, 32, 33, 64, 1000])),
        softcap in prop::option::of(5.0f32..60.0),
    ) {
        let shape = AttendShape { window, softcap, ..shape(group * kv_heads, kv_heads, head_dim) };
        Case::new(shape, format, position, rows, u64::from(seed), size).check();
    }
}

#[test]
fn a_head_of_256_and_many_pages() {
    for format in FORMATS {
        Case::new(shape(2, 1, 256), format, 500, 3, 1, 2.0).check();
    }
}

#[test]
fn windows_at_the_borders_of_pages() {
    for (window, position) in [(1, 31), (1, 32), (32, 31), (32, 32), (32, 63), (33, 64), (64, 95), (5, 62)] {
        let shape = AttendShape { window: Some(window), ..shape(6, 2, 32) };
        Case::new(shape, KvFormat::F16, position, 5, 9, 1.0).check();
    }
}

#[test]
fn scores_far_apart_and_far_out() {
    // Scores up to 1e30: one key takes all the weight.
    for size in [1e4, 1e15] {
        let case = Case::new(shape(3, 1, 48), KvFormat::F32, 70, 6, 5, size);
        let scalar = case.run(Isa::Scalar, 1);
        assert!(scalar.iter().all(|x| x.abs() <= 1.0));
        for isa in Isa::available() {
            assert_eq!(bits(&case.run(isa, 2)), bits(&scalar), "{isa}");
        }
    }
}

#[test]
fn zeros_of_both_signs_and_subnormals() {
    for format in FORMATS {
        let mut case = Case::new(shape(2, 2, 32), format, 40, 2, 3, 1e-20);
        for (i, v) in case.v.iter_mut().enumerate() {
            *v = [-0.0, 0.0, 1e-41, -3e-43, 6e-8, -1e-7][i % 6];
        }
        case.q.iter_mut().step_by(3).for_each(|q| *q = -0.0);
        case.check();
    }
}

#[test]
fn equal_keys_give_the_mean_of_the_values() {
    let mut case = Case::new(shape(1, 1, 16), KvFormat::F32, 63, 1, 8, 1.0);
    case.k.fill(0.5);
    case.v.fill(0.75);
    assert!(case.run(Isa::best(), 1).iter().all(|&x| x == 0.75));
}

#[test]
fn a_batch_of_strangers_changes_nothing() {
    for isa in Isa::available() {
        let shape = shape(4, 2, 48);
        let cases: Vec<_> = [(0, 1), (33, 20), (95, 1), (7, 40)]
            .iter()
            .enumerate()
            .map(|(i, &(position, rows))| Case::new(shape, KvFormat::F16, position, rows, i as u64 * 10, 1.0))
            .collect();
        let pages: Vec<_> = cases.iter().map(|case| case.pages(isa, case.position + case.rows, 0.0)).collect();
        let jobs: Vec<_> = cases
            .iter()
            .zip(&pages)
            .map(|(case, pages)| AttendJob { pages, position: case.position, rows: case.rows })
            .collect();
        let q: Vec<f32> = cases.iter().flat_map(|case| case.q.clone()).collect();
        let mut out = vec![0.0; q.len()];
        attend(isa, &pool(2), &shape, &jobs, &q, &mut out);
        let alone: Vec<f32> = cases.iter().flat_map(|case| case.run(isa, 1)).collect();
        assert_eq!(bits(&out), bits(&alone), "{isa}");
    }
}

#[test]
fn a_page_is_as_large_as_it_says_and_a_clone_is_a_copy() {
    for format in FORMATS {
        let mut page = KvPage::new(format, 3, 100);
        let numbers = 3 * PAGE * (100 + 112);
        let expected = match format {
            KvFormat::F32 => numbers * 4,
            KvFormat::F16 => numbers * 2,
            KvFormat::Q8 => numbers + 3 * PAGE * 8,
        };
        assert_eq!(page.bytes(), expected);
        assert_eq!(format.page_bytes(usize::MAX, 64), None);
        let before = format!("{page:?}");
        let copy = page.clone();
        page.write(Isa::best(), 5, &[1.0; 300], &[2.0; 300]);
        assert_eq!(format!("{copy:?}"), before);
        assert_ne!(format!("{page:?}"), before);
    }
}

#[test]
fn writing_gives_the_same_page_on_every_path() {
    let mut x = noise(4, 5 * 2 * 36);
    x[..8].copy_from_slice(&[0.0, -0.0, 1e6, -1e6, 1e-7, 3e-8, 65519.9, 1e-41]);
    x[36..72].fill(1e-42);
    for format in FORMATS {
        let mut scalar = KvPage::new(format, 2, 36);
        scalar.write(Isa::Scalar, 27, &x, &x);
        for isa in Isa::available() {
            let mut page = KvPage::new(format, 2, 36);
            for (i, row) in x.chunks(72).enumerate() {
                page.write(isa, 27 + i, row, row);
            }
            assert_eq!(format!("{page:?}"), format!("{scalar:?}"), "{format:?} {isa}");
        }
    }
}

/// Frozen: other bits are another numeric profile.
#[test]
fn attention_keeps_its_bits() {
    for isa in Isa::available() {
        let found = FORMATS.map(|format| {
            let shape = AttendShape { softcap: Some(20.0), window: Some(50), ..shape(6, 2, 80) };
            hash(Case::new(shape, format, 90, 9, 11, 2.0).run(isa, 1))
        });
        assert_eq!(found, [0xc467_8b28_7a7c_2238, 0x8960_4211_6eed_cf4c, 0xf731_3204_d7d1_b845], "{isa} {found:#x?}");
    }
}
