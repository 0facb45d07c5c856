//! ggml's blocks, read one by one: the codes and scales they hold, and the weights they stand for.

use half::{bf16, f16};

use super::WeightType;

/// Most weights in a block.
pub(super) const MAX_BLOCK: usize = 256;

/// The bytes or the space for weights do not fit the type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{ty}: {bytes} bytes do not hold {weights} weights")]
pub struct DequantizeError {
    /// The type of the weights.
    pub ty: WeightType,
    /// Bytes given.
    pub bytes: usize,
    /// Weights asked for.
    pub weights: usize,
}

/// The weights that `bytes` stand for, by ggml's formulas, in f32.
///
/// # Errors
/// When `bytes` is not exactly the blocks of `out.len()` weights.
pub fn dequantize(ty: WeightType, bytes: &[u8], out: &mut [f32]) -> Result<(), DequantizeError> {
    let (len, size) = (ty.block_len(), ty.block_bytes());
    let error = DequantizeError { ty, bytes: bytes.len(), weights: out.len() };
    if !out.len().is_multiple_of(len) || (out.len() / len).checked_mul(size) != Some(bytes.len()) {
        return Err(error);
    }
    match ty {
        WeightType::F32 => {
            for (w, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *w = f32::from_le_bytes(*b);
            }
        }
        WeightType::F16 => {
            for (w, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *w = f16::from_le_bytes(*b).to_f32();
            }
        }
        WeightType::BF16 => {
            for (w, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *w = bf16::from_le_bytes(*b).to_f32();
            }
        }
        _ => {
            let mut block = Block::default();
            for (w, b) in out.chunks_exact_mut(len).zip(bytes.chunks_exact(size)) {
                block.read(ty, b);
                block.weights(ty, w);
            }
        }
    }
    Ok(())
}

/// One block: codes in the order of the weights, as unsigned numbers, and the scales over them.
pub(super) struct Block {
    pub codes: [u8; MAX_BLOCK],
    pub d: f16,
    /// What a code of zero adds: the `m` of Q4_1 and Q5_1; `dmin` of the K types, there to be subtracted.
    pub min: f16,
    /// Of each sub-block: scales of the K types, those of Q3_K and Q6_K as `i8`.
    pub sub_scales: [u8; 16],
    /// Of each sub-block: the factor of `min`.
    pub sub_mins: [u8; 16],
}

impl Default for Block {
    fn default() -> Self {
        Self { codes: [0; MAX_BLOCK], d: f16::ZERO, min: f16::ZERO, sub_scales: [0; 16], sub_mins: [0; 16] }
    }
}

fn half_at(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

impl Block {
    /// Whether every weight of the block is a number.
    pub fn is_finite(&self) -> bool {
        self.d.is_finite() && self.min.is_finite()
    }

    /// Reads a block of a quantised type; `bytes` is one block long.
    #[inline(always)]
    pub fn read(&mut self, ty: WeightType, bytes: &[u8]) {
        match ty {
            WeightType::Q4_0 => {
                self.d = half_at(bytes, 0);
                self.nibbles(&bytes[2..18]);
            }
            WeightType::Q4_1 => {
                (self.d, self.min) = (half_at(bytes, 0), half_at(bytes, 2));
                self.nibbles(&bytes[4..20]);
            }
            WeightType::Q5_0 => {
                self.d = half_at(bytes, 0);
                self.nibbles(&bytes[6..22]);
                self.fifth_bits(&bytes[2..6]);
            }
            WeightType::Q5_1 => {
                (self.d, self.min) = (half_at(bytes, 0), half_at(bytes, 2));
                self.nibbles(&bytes[8..24]);
                self.fifth_bits(&bytes[4..8]);
            }
            WeightType::Q8_0 => {
                self.d = half_at(bytes, 0);
                for (code, b) in self.codes[..32].iter_mut().zip(&bytes[2..34]) {
                    *code = b ^ 0x80;
                }
            }
            WeightType::Q2K => {
                (self.d, self.min) = (half_at(bytes, 80), half_at(bytes, 82));
                for (i, b) in bytes[..16].iter().enumerate() {
                    self.sub_scales[i] = b & 0x0f;
                    self.sub_mins[i] = b >> 4;
                }
                self.pairs_of_bits(&bytes[16..80]);
            }
            WeightType::Q3K => {
                self.d = half_at(bytes, 108);
                self.pairs_of_bits(&bytes[32..96]);
                for (i, codes) in self.codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    for (code, high) in codes.iter_mut().zip(&bytes[..32]) {
                        *code |= ((high >> i) & 1) << 2;
                    }
                }
                let packed = &bytes[96..108];
                for i in 0..8 {
                    let (low, high) = (packed[i], packed[8 + i % 4]);
                    let twice = 2 * (i / 4);
                    self.sub_scales[i] = ((low & 0x0f) | (((high >> twice) & 3) << 4)).wrapping_sub(32);
                    self.sub_scales[8 + i] = ((low >> 4) | (((high >> (4 + twice)) & 3) << 4)).wrapping_sub(32);
                }
            }
            WeightType::Q4K => {
                (self.d, self.min) = (half_at(bytes, 0), half_at(bytes, 2));
                self.six_bit_pairs(&bytes[4..16]);
                self.nibbles_by_64(&bytes[16..144]);
            }
            WeightType::Q5K => {
                (self.d, self.min) = (half_at(bytes, 0), half_at(bytes, 2));
                self.six_bit_pairs(&bytes[4..16]);
                self.nibbles_by_64(&bytes[48..176]);
                for (i, codes) in self.codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    for (code, high) in codes.iter_mut().zip(&bytes[16..48]) {
                        *code |= ((high >> i) & 1) << 4;
                    }
                }
            }
            WeightType::Q6K => {
                self.d = half_at(bytes, 208);
                self.sub_scales.copy_from_slice(&bytes[192..208]);
                for (half, codes) in self.codes.as_chunks_mut::<128>().0.iter_mut().enumerate() {
                    let (low, high) = (&bytes[64 * half..][..64], &bytes[128 + 32 * half..][..32]);
                    for i in 0..32 {
                        codes[i] = (low[i] & 0x0f) | ((high[i] & 3) << 4);
                        codes[i + 32] = (low[i + 32] & 0x0f) | (((high[i] >> 2) & 3) << 4);
                        codes[i + 64] = (low[i] >> 4) | (((high[i] >> 4) & 3) << 4);
                        codes[i + 96] = (low[i + 32] >> 4) | ((high[i] >> 6) << 4);
                    }
                }
            }
            WeightType::F16 | WeightType::BF16 | WeightType::F32 => {}
        }
    }

    /// 16 bytes: the low nibbles are the first 16 codes, the high ones the rest.
    #[inline(always)]
    fn nibbles(&mut self, bytes: &[u8]) {
        let (low, high) = self.codes.split_at_mut(16);
        for ((low, high), b) in low.iter_mut().zip(high).zip(bytes) {
            (*low, *high) = (b & 0x0f, b >> 4);
        }
    }

    #[inline(always)]
    fn fifth_bits(&mut self, bytes: &[u8]) {
        let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        for (i, code) in self.codes[..32].iter_mut().enumerate() {
            *code |= (((bits >> i) & 1) as u8) << 4;
        }
    }

    /// Of each 32 bytes the low nibbles are 32 codes, the high ones the next 32.
    #[inline(always)]
    fn nibbles_by_64(&mut self, bytes: &[u8]) {
        for (codes, bytes) in self.codes.as_chunks_mut::<64>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
            for i in 0..32 {
                codes[i] = bytes[i] & 0x0f;
                codes[32 + i] = bytes[i] >> 4;
            }
        }
    }

    /// Of each 32 bytes the lowest two bits are 32 codes, and so on.
    #[inline(always)]
    fn pairs_of_bits(&mut self, bytes: &[u8]) {
        for (codes, bytes) in self.codes.as_chunks_mut::<128>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
            for i in 0..32 {
                codes[i] = bytes[i] & 3;
                codes[32 + i] = (bytes[i] >> 2) & 3;
                codes[64 + i] = (bytes[i] >> 4) & 3;
                codes[96 + i] = bytes[i] >> 6;
            }
        }
    }

    /// Eight scales and eight minimums of six bits in 12 bytes.
    #[inline(always)]
    fn six_bit_pairs(&mut self, p: &[u8]) {
        for i in 0..4 {
            self.sub_scales[i] = p[i] & 63;
            self.sub_mins[i] = p[4 + i] & 63;
            self.sub_scales[4 + i] = (p[8 + i] & 0x0f) | ((p[i] >> 6) << 4);
            self.sub_mins[4 + i] = (p[8 + i] >> 4) | ((p[4 + i] >> 6) << 4);
        }
    }

    /// The weights the block stands for. Products of a scale, a sub-scale and a code are exact but for Q6_K, which
    /// rounds once, so the order in which they are multiplied and whether the sum is fused do not matter.
    fn weights(&self, ty: WeightType, out: &mut [f32]) {
        let (d, min) = (self.d.to_f32(), self.min.to_f32());
        for (i, (w, &code)) in out.iter_mut().zip(&self.codes).enumerate() {
            let code = f32::from(code);
            *w = match ty {
                WeightType::Q4_0 => d * (code - 8.0),
                WeightType::Q5_0 => d * (code - 16.0),
                WeightType::Q8_0 => d * (code - 128.0),
                WeightType::Q4_1 | WeightType::Q5_1 => d * code + min,
                WeightType::Q2K => {
                    d * f32::from(self.sub_scales[i / 16]) * code - min * f32::from(self.sub_mins[i / 16])
                }
                WeightType::Q3K => d * f32::from(self.sub_scales[i / 16].cast_signed()) * (code - 4.0),
                WeightType::Q4K | WeightType::Q5K => {
                    d * f32::from(self.sub_scales[i / 32]) * code - min * f32::from(self.sub_mins[i / 32])
                }
                WeightType::Q6K => d * f32::from(self.sub_scales[i / 16].cast_signed()) * (code - 32.0),
                WeightType::F16 | WeightType::BF16 | WeightType::F32 => 0.0,
            };
        }
    }
}
