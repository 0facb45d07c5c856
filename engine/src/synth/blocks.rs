//! Random weights, made in the form in which they are stored: evenly distributed codes, scales that give each tensor the
//! spread asked for and a mean near zero.

use half::{bf16, f16};

use crate::gguf::DType;

/// A stream of random numbers (SplitMix64): the same for a seed everywhere.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        let (words, rest) = bytes.as_chunks_mut::<8>();
        for word in words {
            *word = self.next().to_le_bytes();
        }
        let last = self.next().to_le_bytes();
        rest.iter_mut().zip(last).for_each(|(byte, random)| *byte = random);
    }

    /// Evenly in -1..1.
    fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Evenly in `low..=low + 15`.
    fn near(&mut self, low: u8) -> u8 {
        low + (self.next() >> 60) as u8
    }
}

/// Fills `out`, whole blocks of `dtype`, with weights of standard deviation `spread` about `mean` (which only types of
/// single values keep; there is no other use for it).
pub(super) fn fill(dtype: DType, mean: f32, spread: f32, random: &mut Random, out: &mut [u8]) {
    // An even distribution over -a..a has the deviation a / sqrt(3).
    let reach = spread * 3f32.sqrt();
    match dtype {
        DType::F16 => singles(out, |r| f16::from_f32(mean + reach * r.signed()).to_le_bytes(), random),
        DType::BF16 => singles(out, |r| bf16::from_f32(mean + reach * r.signed()).to_le_bytes(), random),
        DType::F32 => singles(out, |r| (mean + reach * r.signed()).to_le_bytes(), random),
        // Codes of 4 bits lie -8..8 about the middle, and so on: the scale is the reach over that.
        DType::Q4_0 => blocks::<18>(out, random, |block, _| put(block, 0, reach / 8.0)),
        DType::Q5_0 => blocks::<22>(out, random, |block, _| put(block, 0, reach / 16.0)),
        DType::Q8_0 => blocks::<34>(out, random, |block, _| put(block, 0, reach / 128.0)),
        DType::Q4_1 => blocks::<20>(out, random, |block, _| pair(block, 0, reach / 7.5, -reach)),
        DType::Q5_1 => blocks::<24>(out, random, |block, _| pair(block, 0, reach / 15.5, -reach)),
        DType::Q4_K => blocks::<144>(out, random, |block, r| scales_and_minima(block, r, reach, 7.5)),
        DType::Q5_K => blocks::<176>(out, random, |block, r| scales_and_minima(block, r, reach, 15.5)),
        DType::Q6_K => blocks::<210>(out, random, |block, r| {
            (192..208).for_each(|i| block[i] = r.near(56));
            put(block, 208, reach / (32.0 * 64.0));
        }),
        DType::Q2_K => blocks::<84>(out, random, |block, r| {
            // A scale and an equal minimum in the two halves of each byte.
            (0..16).for_each(|i| block[i] = (r.near(0) / 2 + 8) * 0x11);
            // Four codes about 1.5: their deviation is the root of 1.25.
            let scale = spread / (1.25f32.sqrt() * 11.5);
            pair(block, 80, scale, 1.5 * scale);
        }),
        // Six-bit scales, 32 in the middle: of both signs, so that the middle of the codes, -0.5, shows in no mean.
        DType::Q3_K => blocks::<110>(out, random, |block, _| put(block, 108, spread / (18.5 * 2.34))),
        // The mixes name no other type.
        _ => out.fill(0),
    }
}

fn singles<const N: usize>(out: &mut [u8], value: impl Fn(&mut Random) -> [u8; N], random: &mut Random) {
    out.as_chunks_mut::<N>().0.iter_mut().for_each(|bytes| *bytes = value(random));
}

fn blocks<const N: usize>(out: &mut [u8], random: &mut Random, scales: impl Fn(&mut [u8; N], &mut Random)) {
    for block in out.as_chunks_mut::<N>().0 {
        random.fill(block);
        scales(block, random);
    }
}

fn put<const N: usize>(block: &mut [u8; N], at: usize, scale: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
}

fn pair<const N: usize>(block: &mut [u8; N], at: usize, scale: f32, minimum: f32) {
    put(block, at, scale);
    put(block, at + 2, minimum);
}

/// The head of a `Q4_K` or `Q5_K` block: eight six-bit scales between 48 and 63 and minima equal to them, so that the
/// middle of the codes is zero in every sub-block.
fn scales_and_minima<const N: usize>(block: &mut [u8; N], random: &mut Random, reach: f32, middle: f32) {
    let scale = reach / (middle * 56.0);
    pair(block, 0, scale, scale * middle);
    for i in 0..4 {
        let (low, high) = (random.near(48), random.near(48));
        // The first four scales and minima in bytes of their own, whose upper bits are the upper bits of the last four.
        block[4 + i] = low | (high >> 4) << 6;
        block[8 + i] = low | (high >> 4) << 6;
        block[12 + i] = (high & 0xf) * 0x11;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{
        Device,
        quantized::{GgmlDType, QStorage, QTensor},
    };

    use super::*;

    #[test]
    fn every_type_has_the_spread_asked_for_and_no_bias() {
        for (dtype, candle) in [
            (DType::F32, GgmlDType::F32),
            (DType::F16, GgmlDType::F16),
            (DType::BF16, GgmlDType::BF16),
            (DType::Q4_0, GgmlDType::Q4_0),
            (DType::Q4_1, GgmlDType::Q4_1),
            (DType::Q5_0, GgmlDType::Q5_0),
            (DType::Q5_1, GgmlDType::Q5_1),
            (DType::Q8_0, GgmlDType::Q8_0),
            (DType::Q2_K, GgmlDType::Q2K),
            (DType::Q3_K, GgmlDType::Q3K),
            (DType::Q4_K, GgmlDType::Q4K),
            (DType::Q5_K, GgmlDType::Q5K),
            (DType::Q6_K, GgmlDType::Q6K),
        ] {
            let n = 256 * 512;
            let mut bytes = vec![0; usize::try_from(dtype.bytes_for(n as u64).unwrap()).unwrap()];
            fill(dtype, 0.0, 0.02, &mut Random::new(7), &mut bytes);
            let storage = QStorage::from_data(bytes.into(), &Device::Cpu, candle).unwrap();
            let tensor = QTensor::new(storage, (512, 256)).unwrap().dequantize(&Device::Cpu).unwrap();
            let values: Vec<f64> =
                tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect();
            let mean = values.iter().sum::<f64>() / n as f64;
            let spread = (values.iter().map(|v| v * v).sum::<f64>() / n as f64).sqrt();
            assert!(mean.abs() < 0.0025, "{dtype}: the mean is {mean}");
            assert!((0.015..0.028).contains(&spread), "{dtype}: the spread is {spread}");
        }
    }
}
