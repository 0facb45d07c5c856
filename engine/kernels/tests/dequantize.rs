//! Frozen vectors: what the `gguf` Python package makes of the same blocks (`dequantize.py` beside this file prints them).

use quelea_kernels::{WeightType, dequantize};

/// Type, number of weights, the second of them, and FNV-1a over all of them as little-endian f32.
#[rustfmt::skip]
const VECTORS: [(WeightType, usize, f32, u64); 13] = [
    (WeightType::Q4_0, 96, -0.0546875, 0x0466_6b5c_63f0_d201),
    (WeightType::Q5_0, 96, 0.0390625, 0xad44_ab65_190c_aa57),
    (WeightType::Q8_0, 96, -0.7421875, 0x4e7c_a929_14be_c241),
    (WeightType::Q4_1, 96, 0.083_496_094, 0x67a8_d6ee_79c9_c64a),
    (WeightType::Q5_1, 96, -0.010_253_906, 0x20a9_7952_f16e_c1eb),
    (WeightType::Q4K, 768, 6.266_113_3, 0x5a31_697f_8b78_b76a),
    (WeightType::Q5K, 768, 10.477_051, 0xb927_5667_7fe9_fbf3),
    (WeightType::Q2K, 768, 0.117_187_5, 0xb340_291e_4be5_2cab),
    (WeightType::Q3K, 768, 0.09375, 0x8200_1dfe_93b0_8711),
    (WeightType::Q6K, 768, -25.523_438, 0xfe58_65f1_b5c2_2eeb),
    (WeightType::F16, 96, -0.033_691_406, 0xa242_a253_412d_e565),
    (WeightType::BF16, 96, -5.387_129_5e-19, 0x9db6_0d3e_6bc1_8965),
    (WeightType::F32, 48, 1.393_715_3e-6, 0x200b_cd72_2184_d4a5),
];

/// Blocks to a vector; 64 bytes of plain floats count as one.
const BLOCKS: usize = 3;

fn halves(ty: WeightType) -> Vec<usize> {
    match ty {
        WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => vec![0],
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => vec![0, 2],
        WeightType::Q2K => vec![80, 82],
        WeightType::Q3K => vec![108],
        WeightType::Q6K => vec![208],
        WeightType::F16 => (0..64).step_by(2).collect(),
        _ => vec![],
    }
}

#[test]
fn weights_are_those_of_the_gguf_package() {
    for (ty, weights, second, digest) in VECTORS {
        let block = if ty.is_float() { 64 } else { ty.block_bytes() };
        let mut bytes: Vec<u8> =
            (0..BLOCKS * block).map(|i| ((i * i * 7 + i * 31 + (i >> 5) * 11 + 5) & 0xbf) as u8).collect();
        for b in 0..BLOCKS {
            for (n, at) in halves(ty).into_iter().enumerate() {
                let scale = [0.007_812_5, -0.033_691_406][n % 2] * (b + 1) as f32;
                bytes[b * block + at..][..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
            }
        }
        let mut out = vec![0.0; weights];
        dequantize(ty, &bytes, &mut out).unwrap();
        assert_eq!(out[1], second, "{ty}");
        let found = out
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325_u64, |digest, byte| (digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        assert_eq!(found, digest, "{ty}");
    }
}
