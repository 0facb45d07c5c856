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
    activations.set(isa, pool, x, matrix.inputs(), Forms::of([matrix.ty()]));
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

#[test]
fn what_runs_is_what_was_asked_for() {
    let one = pool(1);
    for ty in WeightType::ALL {
        let packed = PackedMatrix::pack(ty, 40, 256, &matrix(ty, 40, 256, &mut Source(9)), &one).unwrap();
        let run = |isa, rows: usize| {
            let mut x = Activations::default();
            x.set(isa, &one, &vec![1.0; rows * 256], 256, Forms::of([ty]));
            let before = kernels_run();
            let counts = matmul(isa, &one, &x, &mut [(&packed, &mut vec![0.0; rows * 40])]);
            assert!(kernels_run().of(isa) >= before.of(isa) + counts.of(isa));
            counts
        };
        for isa in Isa::available() {
            // Three groups of outputs times two tiles of rows.
            let expected = if isa == Isa::Amx && ty.is_float() { Isa::Avx512 } else { isa };
            assert_eq!(run(isa, 20).of(expected), 6, "{ty} on {isa}");
            assert_eq!(run(isa, 1).of(isa.min(Isa::Avx512)), 3, "{ty} on {isa}");
        }
    }
}

#[test]
fn threads_and_company_change_no_bit() {
    let mut source = Source(77);
    for ty in WeightType::ALL {
        let (outputs, inputs, rows) = (100, 768, 37);
        let bytes = matrix(ty, outputs, inputs, &mut source);
        let x = activations(rows, inputs, &mut source);
        let packed = PackedMatrix::pack(ty, outputs, inputs, &bytes, &pool(2)).unwrap();
        let expected = bits(&product(Isa::Scalar, &pool(1), &packed, &x));
        for isa in Isa::available() {
            for threads in [1, 2, 3] {
                assert_eq!(
                    bits(&product(isa, &pool(threads), &packed, &x)),
                    expected,
                    "{ty} on {isa}, {threads} threads"
                );
            }
            for (from, to) in [(0, 1), (5, 13), (20, 37), (36, 37)] {
                let part = product(isa, &pool(1), &packed, &x[from * inputs..to * inputs]);
                assert_eq!(bits(&part), expected[from * outputs..to * outputs], "{ty} on {isa}: rows {from}..{to}");
            }
        }
    }
}

#[test]
fn several_matrices_share_a_call() {
    let (one, two) = (pool(1), pool(2));
    let mut source = Source(3);
    let x = activations(11, 256, &mut source);
    let shapes = [(WeightType::Q4K, 70), (WeightType::Q6K, 1), (WeightType::F16, 33), (WeightType::Q8_0, 7)];
    let packed = shapes.map(|(ty, outputs)| {
        PackedMatrix::pack(ty, outputs, 256, &matrix(ty, outputs, 256, &mut source), &one).unwrap()
    });
    for isa in Isa::available() {
        let mut activations = Activations::default();
        // A longer set before leaves nothing behind.
        activations.set(isa, &two, &[1.0; 40 * 288], 288, Forms::of([WeightType::Q8_0, WeightType::F16]));
        activations.set(isa, &two, &x, 256, Forms::of(shapes.map(|(ty, _)| ty)));
        let mut outs = shapes.map(|(_, outputs)| vec![0.0; 11 * outputs]);
        let mut products: Vec<_> = packed.iter().zip(&mut outs).map(|(m, out)| (m, out.as_mut_slice())).collect();
        matmul(isa, &two, &activations, &mut products);
        for (matrix, out) in packed.iter().zip(&outs) {
            assert_eq!(bits(out), bits(&product(Isa::Scalar, &one, matrix, &x)), "{} on {isa}", matrix.ty());
        }
    }
}

#[test]
fn packed_rows_are_the_rows_of_the_file() {
    let mut source = Source(11);
    for ty in WeightType::ALL {
        let (outputs, inputs) = (21, 768);
        let bytes = matrix(ty, outputs, inputs, &mut source);
        let packed = PackedMatrix::pack(ty, outputs, inputs, &bytes, &pool(2)).unwrap();
        let (mut row, mut expected) = (vec![0.0; inputs], vec![0.0; inputs]);
        for (i, bytes) in bytes.chunks_exact(bytes.len() / outputs).enumerate() {
            packed.row(i, &mut row);
            dequantize(ty, bytes, &mut expected).unwrap();
            assert_eq!(bits(&row), bits(&expected), "{ty}, row {i}");
        }
    }
}

/// The documented bound, against a product in f64 of the weights and the rows as they are.
#[test]
fn products_are_within_their_error_of_the_true_ones() {
    let mut source = Source(123);
    let (outputs, inputs, rows) = (24, 1024, 3);
    for ty in WeightType::ALL {
        let bytes = matrix(ty, outputs, inputs, &mut source);
        let x: Vec<f32> = (0..rows * inputs).map(|_| source.next() as i32 as f32 / 2f32.powi(31)).collect();
        let packed = PackedMatrix::pack(ty, outputs, inputs, &bytes, &pool(1)).unwrap();
        let found = product(Isa::Scalar, &pool(1), &packed, &x);
        let mut w = vec![0.0; outputs * inputs];
        dequantize(ty, &bytes, &mut w).unwrap();
        for (i, &found) in found.iter().enumerate() {
            let (x, w) = (&x[i / outputs * inputs..][..inputs], &w[i % outputs * inputs..][..inputs]);
            let exact: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            let (rounding, terms) = if ty.is_float() {
                (0.0, x.iter().zip(w).map(|(&x, &w)| f64::from((x * w).abs())).sum::<f64>())
            } else {
                bounds(ty, &bytes[i % outputs * (bytes.len() / outputs)..][..bytes.len() / outputs], x, w)
            };
            let steps = if ty.is_float() { inputs } else { 2 * inputs / 16 + 2 };
            let bound = rounding + terms * steps as f64 * 2f64.powi(-24);
            assert!((f64::from(found) - exact).abs() <= bound, "{ty}: {found} for {exact}, allowed {bound}");
        }
    }
}

/// `Σ |w| · da/2`, and the sum of the magnitudes that enter the chain, from above: of a type with minimums, scale times
/// code and minimum enter one by one.
fn bounds(ty: WeightType, row: &[u8], x: &[f32], w: &[f32]) -> (f64, f64) {
    // Without the minimum a weight is its distance from the smallest its sub-block could hold.
    let mut no_minimum = row.to_vec();
    for block in no_minimum.chunks_exact_mut(ty.block_bytes()) {
        if let [_, min] = halves_at(ty) {
            block[*min..min + 2].fill(0);
        }
    }
    let mut coded = vec![0.0; w.len()];
    dequantize(ty, &no_minimum, &mut coded).unwrap();
    let (mut rounding, mut terms) = (0.0, 0.0);
    let length = if matches!(ty, WeightType::Q4K | WeightType::Q5K) { 32 } else { 16 };
    for ((x, w), coded) in x.chunks_exact(length).zip(w.chunks_exact(length)).zip(coded.chunks_exact(length)) {
        let da = f64::from(x.iter().fold(0f32, |m, x| m.max(x.abs()))) / 127.0;
        for ((&x, &w), &coded) in x.iter().zip(w).zip(coded) {
            rounding += f64::from(w.abs()) * (da / 2.0 + f64::from(x.abs()) * 2f64.powi(-22));
            terms += (f64::from(coded.abs()) + f64::from((w - coded).abs())) * (f64::from(x.abs()) + da);
        }
    }
    (rounding, terms)
}

#[test]
fn activations_that_are_no_numbers_spoil_their_row_and_no_other() {
    let one = pool(1);
    let mut source = Source(21);
    for ty in [WeightType::Q4K, WeightType::Q8_0, WeightType::F32] {
        let packed = PackedMatrix::pack(ty, 16, 256, &matrix(ty, 16, 256, &mut source), &one).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for isa in Isa::available() {
                let mut x = vec![0.5; 12 * 256];
                let good = product(isa, &one, &packed, &x);
                x[3 * 256 + 77] = bad;
                let out = product(isa, &one, &packed, &x);
                for (r, (row, good)) in out.chunks(16).zip(good.chunks(16)).enumerate() {
                    if r == 3 {
                        assert!(row.iter().all(|v| !v.is_finite()), "{ty} on {isa}");
                    } else {
                        assert_eq!(bits(row), bits(good));
                    }
                }
            }
        }
    }
}

#[test]
fn a_loud_block_keeps_its_codes_within_bounds() {
    let one = pool(1);
    let x = [f32::MAX, -f32::MAX, f32::MIN_POSITIVE, 1e-45].repeat(8);
    for ty in [WeightType::Q8_0, WeightType::Q5_1] {
        let packed = PackedMatrix::pack(ty, 5, 32, &matrix(ty, 5, 32, &mut Source(8)), &one).unwrap();
        let expected = bits(&product(Isa::Scalar, &one, &packed, &x));
        for isa in Isa::available() {
            assert_eq!(bits(&product(isa, &one, &packed, &x)), expected);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let one = pool(1);
    let pack = |ty, outputs, inputs, bytes: &[u8]| PackedMatrix::pack(ty, outputs, inputs, bytes, &one).map(|_| ());
    let wrong = pack(WeightType::Q8_0, 2, 64, &[0; 135]);
    assert!(matches!(wrong, Err(PackError::Length { expected: 136, got: 135, .. })), "{wrong:?}");
    for (outputs, inputs) in [(2, 48), (0, 64), (2, 0), (usize::MAX, 1 << 40)] {
        assert!(matches!(pack(WeightType::Q8_0, outputs, inputs, &[]), Err(PackError::Shape { .. })));
    }
    for ty in WeightType::ALL {
        let mut bytes = matrix(ty, 40, 512, &mut Source(4));
        let row = bytes.len() / 40;
        for at in if ty.is_float() { &[0][..] } else { halves_at(ty) } {
            // In the last block of rows 22 and 35, the highest exponent.
            for r in [35, 22] {
                let end = (r + 1) * row - ty.block_bytes() + at;
                match ty {
                    WeightType::F32 => bytes[end..end + 4].copy_from_slice(&f32::INFINITY.to_le_bytes()),
                    WeightType::BF16 => bytes[end..end + 2].copy_from_slice(&half::bf16::NAN.to_le_bytes()),
                    _ => bytes[end..end + 2].copy_from_slice(&half::f16::NEG_INFINITY.to_le_bytes()),
                }
            }
            assert_eq!(pack(ty, 40, 512, &bytes), Err(PackError::NotFinite { row: 22 }), "{ty}");
        }
    }
    assert!(dequantize(WeightType::Q4K, &[0; 144], &mut [0.0; 255]).is_err());
    assert!(dequantize(WeightType::Q4K, &[0; 143], &mut [0.0; 256]).is_err());
}
