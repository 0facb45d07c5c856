//! Looking for weights that are not finite numbers: a NaN or an infinity in an element, or in a block's scale.

use half::{bf16, f16};

use super::{DType, TensorView};

impl TensorView<'_> {
    /// The first row (of all, where there are more than two dimensions) with a stored value that is not a finite number.
    /// Reads the whole tensor; types whose blocks this engine cannot read are taken as finite, since loading them is
    /// refused anyway.
    pub fn not_finite(&self) -> Option<usize> {
        let inputs = self.shape.last().copied().unwrap_or(0) as u64;
        let row = usize::try_from(self.dtype.bytes_for(inputs)?).ok().filter(|bytes| *bytes > 0)?;
        let mut rows = self.pieces().flat_map(|piece| piece.chunks(row));
        rows.position(|row| !finite(self.dtype, row))
    }
}

fn finite(dtype: DType, data: &[u8]) -> bool {
    match dtype {
        DType::F32 => data.as_chunks::<4>().0.iter().all(|bytes| f32::from_le_bytes(*bytes).is_finite()),
        DType::F16 => data.as_chunks::<2>().0.iter().all(half_finite),
        DType::BF16 => data.as_chunks::<2>().0.iter().all(|bytes| bf16::from_le_bytes(*bytes).is_finite()),
        // Blocks that begin with a scale.
        DType::Q4_0 => scales::<18, 0, 2>(data),
        DType::Q5_0 => scales::<22, 0, 2>(data),
        DType::Q8_0 => scales::<34, 0, 2>(data),
        // A scale and a minimum.
        DType::Q4_1 => scales::<20, 0, 4>(data),
        DType::Q5_1 => scales::<24, 0, 4>(data),
        DType::Q4_K => scales::<144, 0, 4>(data),
        DType::Q5_K => scales::<176, 0, 4>(data),
        // The same at the end of the block.
        DType::Q2_K => scales::<84, 80, 84>(data),
        DType::Q3_K => scales::<110, 108, 110>(data),
        DType::Q6_K => scales::<210, 208, 210>(data),
        _ => true,
    }
}

/// Whether the `f16` at `FROM..TO` of every block of `BLOCK` bytes are finite.
fn scales<const BLOCK: usize, const FROM: usize, const TO: usize>(data: &[u8]) -> bool {
    data.as_chunks::<BLOCK>().0.iter().all(|block| {
        let scales = block.get(FROM..TO).unwrap_or_default();
        scales.as_chunks::<2>().0.iter().all(half_finite)
    })
}

fn half_finite(bytes: &[u8; 2]) -> bool {
    f16::from_le_bytes(*bytes).is_finite()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where each type's scales stand, by the layout of its blocks.
    const SCALES: [(DType, &[usize]); 13] = [
        (DType::F32, &[0, 4, 1020]),
        (DType::F16, &[0, 510]),
        (DType::BF16, &[0, 510]),
        (DType::Q4_0, &[0, 18]),
        (DType::Q4_1, &[0, 2, 22]),
        (DType::Q5_0, &[0, 22]),
        (DType::Q5_1, &[0, 2, 26]),
        (DType::Q8_0, &[0, 34]),
        (DType::Q2_K, &[80, 82]),
        (DType::Q3_K, &[108]),
        (DType::Q4_K, &[0, 2]),
        (DType::Q5_K, &[0, 2]),
        (DType::Q6_K, &[208]),
    ];

    #[test]
    fn scales_are_found_in_every_type() {
        for (dtype, places) in SCALES {
            let row = usize::try_from(dtype.bytes_for(256).unwrap()).unwrap();
            let mut data = vec![0x11; 2 * row];
            let not_finite = |data: &[u8]| TensorView::new("w", dtype, &[2, 256], data).unwrap().not_finite();
            assert_eq!(not_finite(&data), None, "{dtype}");
            for at in places.iter().flat_map(|at| [*at, row + *at]) {
                let bad: &[u8] = match dtype {
                    DType::F32 => &[0, 0, 0x80, 0xff],
                    DType::BF16 => &[0x80, 0x7f],
                    _ => &[0, 0x7c],
                };
                let kept = data[at..at + bad.len()].to_vec();
                data[at..at + bad.len()].copy_from_slice(bad);
                assert_eq!(not_finite(&data), Some(at / row), "{dtype} at {at}");
                data[at..at + bad.len()].copy_from_slice(&kept);
            }
        }
    }
}
