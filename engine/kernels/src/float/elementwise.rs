//! Operations on one element at a time.

use super::math::{gelu_tanh_lanes, silu_lanes, tanh_lanes};
use super::simd::{Kernel, LANES, Simd, dispatch};
use super::split::{Split, TASK};
use crate::{Isa, Pool};

/// x + y into `x`. Both of one length.
pub fn add(isa: Isa, x: &mut [f32], y: &[f32]) {
    zip(isa, x, y, Add);
}

/// Adds `bias` to every group of `bias.len()` values of `x`.
pub fn add_bias(isa: Isa, x: &mut [f32], bias: &[f32]) {
    if bias.is_empty() {
        return;
    }
    assert_eq!(x.len() % bias.len(), 0, "whole rows");
    for row in x.chunks_exact_mut(bias.len()) {
        add(isa, row, bias);
    }
}

/// fma(y, s, x) into `x`. Both of one length.
pub fn add_scaled(isa: Isa, x: &mut [f32], y: &[f32], s: f32) {
    zip(isa, x, y, AddScaled(s));
}

/// x · s into `x`.
pub fn scale(isa: Isa, x: &mut [f32], s: f32) {
    zip(isa, x, &[], Scale(s));
}

/// cap · [`tanh`](super::tanh)(x · (1 / cap)) into `x`; 1 / cap is rounded to `f32` first.
pub fn softcap(isa: Isa, pool: &Pool, x: &mut [f32], cap: f32) {
    zip_tasks(isa, pool, x, &[], Softcap::new(cap));
}

/// [`silu`](super::silu)(gate) · up into `gate`. Both of one length.
pub fn silu_mul(isa: Isa, pool: &Pool, gate: &mut [f32], up: &[f32]) {
    zip_tasks(isa, pool, gate, up, SiluMul);
}

/// [`gelu_tanh`](super::gelu_tanh)(gate) · up into `gate`. Both of one length.
pub fn gelu_mul(isa: Isa, pool: &Pool, gate: &mut [f32], up: &[f32]) {
    zip_tasks(isa, pool, gate, up, GeluMul);
}

/// A function of x and y.
trait Op: Copy + Sync {
    /// Whether y is read; else it is empty.
    const BINARY: bool = true;
    fn lanes<S: Simd>(self, s: S, x: S::F, y: S::F) -> S::F;
}

#[derive(Clone, Copy)]
struct Add;
impl Op for Add {
    #[inline(always)]
    fn lanes<S: Simd>(self, s: S, x: S::F, y: S::F) -> S::F {
        s.add(x, y)
    }
}

#[derive(Clone, Copy)]
struct AddScaled(f32);
impl Op for AddScaled {
    #[inline(always)]
    fn lanes<S: Simd>(self, s: S, x: S::F, y: S::F) -> S::F {
        s.fma(y, s.splat(self.0), x)
    }
}

#[derive(Clone, Copy)]
struct Scale(f32);
impl Op for Scale {
    const BINARY: bool = false;
    #[inline(always)]
    fn lanes<S: Simd>(self, s: S, x: S::F, _: S::F) -> S::F {
        s.mul(x, s.splat(self.0))
    }
}

/// See [`softcap`].
#[derive(Clone, Copy)]
pub(crate) struct Softcap {
    cap: f32,
    inverse: f32,
}

impl Softcap {
    pub(crate) fn new(cap: f32) -> Self {
        Self { cap, inverse: 1.0 / cap }
    }

    #[inline(always)]
    pub(crate) fn apply<S: Simd>(self, s: S, x: S::F) -> S::F {
        s.mul(s.splat(self.cap), tanh_lanes(s, s.mul(x, s.splat(self.inverse))))
    }
}

impl Op for Softcap {
    const BINARY: bool = false;
    #[inline(always)]
    fn lanes<S: Simd>(self, s: S, x: S::F, _: S::F) -> S::F {
        self.apply(s, x)
    }
}

#[derive(Clone, Copy)]
struct SiluMul;
impl Op for SiluMul {
    #[inline(always)]
    fn lanes<S: Simd>(self, s: S, x: S::F, y: S::F) -> S::F {
        s.mul(silu_lanes(s, x), y)
    }
}

#[derive(Clone, Copy)]
struct GeluMul;
impl Op for GeluMul {
    #[inline(always)]
    fn lanes<S: Simd>(self, s: S, x: S::F, y: S::F) -> S::F {
        s.mul(gelu_tanh_lanes(s, x), y)
    }
}

struct Zip<'a, O> {
    x: &'a mut [f32],
    y: &'a [f32],
    op: O,
}

impl<O: Op> Kernel for Zip<'_, O> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, x_rest) = self.x.as_chunks_mut::<LANES>();
        let (y, y_rest) = self.y.as_chunks::<LANES>();
        if O::BINARY {
            for (x, y) in x.iter_mut().zip(y) {
                let out = self.op.lanes(s, s.load(x), s.load(y));
                s.store(out, x);
            }
        } else {
            for x in x {
                let out = self.op.lanes(s, s.load(x), s.splat(0.0));
                s.store(out, x);
            }
        }
        if !x_rest.is_empty() {
            // The last few stand in a register of their own: an element's value does not depend on its neighbours.
            let (mut a, mut b) = ([0.0; LANES], [0.0; LANES]);
            a[..x_rest.len()].copy_from_slice(x_rest);
            b[..y_rest.len()].copy_from_slice(y_rest);
            let out = self.op.lanes(s, s.load(&a), s.load(&b));
            s.store(out, &mut a);
            x_rest.copy_from_slice(&a[..x_rest.len()]);
        }
    }
}

fn zip<O: Op>(isa: Isa, x: &mut [f32], y: &[f32], op: O) {
    assert_eq!(y.len(), if O::BINARY { x.len() } else { 0 }, "operands of one length");
    dispatch(isa, Zip { x, y, op });
}

/// As [`zip`], in parallel where it is worth it.
fn zip_tasks<O: Op>(isa: Isa, pool: &Pool, x: &mut [f32], y: &[f32], op: O) {
    if x.len() <= TASK {
        return zip(isa, x, y, op);
    }
    assert_eq!(y.len(), if O::BINARY { x.len() } else { 0 }, "operands of one length");
    let len = x.len();
    let parts = Split::new(x);
    pool.run(len.div_ceil(TASK), &|task| {
        let from = task * TASK;
        let len = TASK.min(len - from);
        // SAFETY: tasks have numbers of their own, hence ranges of their own.
        let x = unsafe { parts.part(from, len) };
        let y = if O::BINARY { &y[from..from + len] } else { y };
        dispatch(isa, Zip { x, y, op });
    });
}
