//! Quantisation: from floats to ggml's block formats, and from a model of floats to a file of a mix of them.
//!
//! The same weights give the same bytes on every machine and any number of threads.

mod blocks;
mod file;
mod mix;
mod search;

pub use file::{Plan, QuantizeError};
use half::{bf16, f16};
pub use mix::{Facts, Mix};
use rayon::prelude::*;

use crate::gguf::DType;

/// True when this module can turn `from` into `to`.
pub fn can(from: DType, to: DType) -> bool {
    let floats = |dtype| matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    let blocks = matches!(
        to,
        DType::Q4_0
            | DType::Q4_1
            | DType::Q5_0
            | DType::Q5_1
            | DType::Q8_0
            | DType::Q2_K
            | DType::Q3_K
            | DType::Q4_K
            | DType::Q5_K
            | DType::Q6_K
    );
    from == to || floats(from) && (floats(to) || blocks)
}

/// Turns rows of `inputs` values each from one type into another, as many as `out` has room for; both hold whole rows,
/// and [`can`] has been asked. A value that is not finite comes out as whatever it may: check before.
pub fn rows(from: DType, to: DType, inputs: usize, data: &[u8], out: &mut [u8]) {
    if from == to {
        let len = data.len().min(out.len());
        out[..len].copy_from_slice(&data[..len]);
        return;
    }
    let bytes = |dtype: DType| dtype.bytes_for(inputs as u64).and_then(|n| usize::try_from(n).ok()).unwrap_or(0).max(1);
    out.par_chunks_mut(bytes(to)).zip(data.par_chunks(bytes(from))).for_each_init(
        || vec![0f32; inputs],
        |values, (out, data)| {
            floats(from, data, values);
            row(to, values, out);
        },
    );
}

fn floats(from: DType, data: &[u8], values: &mut [f32]) {
    match from {
        DType::F16 => each(data, values, |bytes| f16::from_le_bytes(bytes).to_f32()),
        DType::BF16 => each(data, values, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        _ => each(data, values, f32::from_le_bytes),
    }
}

fn each<const N: usize>(data: &[u8], values: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    values.iter_mut().zip(data.as_chunks::<N>().0).for_each(|(value, bytes)| *value = read(*bytes));
}

fn row(to: DType, x: &[f32], out: &mut [u8]) {
    match to {
        DType::F32 => pack(x, out, |[x]: &[f32; 1], out: &mut [u8; 4]| *out = x.to_le_bytes()),
        DType::F16 => pack(x, out, |[x]: &[f32; 1], out: &mut [u8; 2]| *out = f16::from_f32(*x).to_le_bytes()),
        DType::BF16 => pack(x, out, |[x]: &[f32; 1], out: &mut [u8; 2]| *out = bf16::from_f32(*x).to_le_bytes()),
        DType::Q4_0 => pack(x, out, blocks::q4_0),
        DType::Q4_1 => pack(x, out, blocks::q4_1),
        DType::Q5_0 => pack(x, out, blocks::q5_0),
        DType::Q5_1 => pack(x, out, blocks::q5_1),
        DType::Q8_0 => pack(x, out, blocks::q8_0),
        DType::Q2_K => pack(x, out, blocks::q2_k),
        DType::Q3_K => pack(x, out, blocks::q3_k),
        DType::Q4_K => pack(x, out, blocks::q4_k),
        DType::Q5_K => pack(x, out, blocks::q5_k),
        DType::Q6_K => pack(x, out, blocks::q6_k),
        _ => {}
    }
}

fn pack<const V: usize, const N: usize>(x: &[f32], out: &mut [u8], block: impl Fn(&[f32; V], &mut [u8; N])) {
    x.as_chunks::<V>().0.iter().zip(out.as_chunks_mut::<N>().0).for_each(|(x, out)| block(x, out));
}
