//! Every path against the scalar one, bit for bit, and that one against the definition in f64.

use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::*;
use crate::isa::Isa;
use crate::pool::Pool;

fn pool(threads: usize) -> Pool {
    Pool::new(NonZeroUsize::new(threads).unwrap())
}

/// Deterministic numbers.
struct Source(u64);

impl Source {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn byte(&mut self) -> u8 {
        (self.next() >> 56) as u8
    }
}

/// Where the f16 scales of a block stand.
fn halves_at(ty: WeightType) -> &'static [usize] {
    match ty {
        WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => &[0],
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => &[0, 2],
        WeightType::Q2K => &[80, 82],
        WeightType::Q3K => &[108],
        WeightType::Q6K => &[208],
        WeightType::F16 | WeightType::BF16 | WeightType::F32 => &[],
    }
}

/// Random blocks: any codes, scales of either sign that are plain, zero, subnormal or large.
fn matrix(ty: WeightType, outputs: usize, inputs: usize, source: &mut Source) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..outputs * inputs / ty.block_len() * ty.block_bytes()).map(|_| source.byte()).collect();
    let mut number = || {
        let r = source.next();
        let sign = if r & 1 == 0 { 1.0 } else { -1.0 };
        let plain = sign * ((r >> 8 & 0xfff) as f32 + 1.0) / 65536.0;
        match r >> 32 & 15 {
            0 => 0.0,
            1 => sign * 6e-8,
            2 => sign * 60000.0,
            _ => plain,
        }
    };
    match ty {
        WeightType::F32 => bytes.chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&number().to_le_bytes())),
        WeightType::F16 => {
            let mut put = |b: &mut [u8]| b.copy_from_slice(&half::f16::from_f32(number()).to_le_bytes());
            bytes.chunks_exact_mut(2).for_each(&mut put);
        }
        WeightType::BF16 => {
            let mut put = |b: &mut [u8]| b.copy_from_slice(&half::bf16::from_f32(number()).to_le_bytes());
            bytes.chunks_exact_mut(2).for_each(&mut put);
        }
        _ => {
            for block in bytes.chunks_exact_mut(ty.block_bytes()) {
                for &at in halves_at(ty) {
                    block[at..at + 2].copy_from_slice(&half::f16::from_f32(number()).to_le_bytes());
                }
            }
        }
    }
    bytes
}

/// Rows with quiet blocks, loud blocks, blocks of zeroes and of subnormals.
fn activations(rows: usize, width: usize, source: &mut Source) -> Vec<f32> {
    let mut x = vec![0.0; rows * width];
    for block in x.chunks_mut(32) {
        let loudness = match source.next() >> 20 & 15 {
            0 => 0.0,
            1 => 1e-41,
            2 => 1e30,
            3 => 1e-30,
            _ => 1.0,
        };
        for v in block {
            *v = (source.next() as i32 as f32) / 2f32.powi(31) * loudness;
        }
    }
    x
}

fn product(isa: Isa, pool: &Pool, matrix: &PackedMatrix, x: &[f32]) -> Vec<f32> {
    let mut activations = Activations::default();
    activations.set(isa, pool, x, matrix.inputs());
    let mut out = vec![f32::NAN; activations.rows() * matrix.outputs()];
    matmul(isa, pool, &activations, &mut [(matrix, &mut out)]);
    out
}

/// The bits, with one for all that is not a number.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() }).collect()
}

fn check(ty: WeightType, outputs: usize, inputs: usize, rows: usize, seed: u64) {
    let mut source = Source(seed | 1);
    let bytes = matrix(ty, outputs, inputs, &mut source);
    let x = activations(rows, inputs, &mut source);
    let one = pool(1);
    let packed = PackedMatrix::pack(ty, outputs, inputs, &bytes, &one).unwrap();
    let expected = bits(&product(Isa::Scalar, &one, &packed, &x));
    for isa in Isa::available() {
        let found = bits(&product(isa, &one, &packed, &x));
        assert_eq!(found, expected, "{ty} on {isa}: {rows} rows of {inputs} into {outputs}");
    }
}

#[test]
fn every_path_gives_the_bits_of_the_scalar_one_at_every_number_of_rows() {
    for ty in WeightType::ALL {
        for rows in (1..=9).chain([16, 17, 33, 64, 128, 150]) {
            check(ty, 19, 512, rows, rows as u64 * 7919);
        }
        check(ty, 33, 2304, 21, 5);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_path_gives_the_bits_of_the_scalar_one(
        ty in proptest::sample::select(WeightType::ALL.to_vec()),
        outputs in 1usize..101,
        blocks in 1usize..10,
        rows in 1usize..24,
        seed in any::<u64>(),
    ) {
        let unit = if ty.is_float() { 17 } else { ty.block_len() };
        check(ty, outputs, unit * if unit == 256 { blocks.div_ceil(3) } else { blocks }, rows, seed);
    }
}
