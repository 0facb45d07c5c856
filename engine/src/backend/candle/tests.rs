//! Every weight type that is taken computes what its stored values say.

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};

use super::Candle;
use crate::{
    LoadError,
    backend::{AttentionShape, Backend, Sequence, kv::KvCache},
    gguf::{DType, TensorView},
};

/// Two tiles and a short third one at this width.
const OUTPUTS: usize = 70;
const INPUTS: usize = 2048;

fn values(n: usize, scale: f32) -> Vec<f32> {
    (0..n).map(|i| scale * ((i * 7919 % 2003) as f32 / 1001.5 - 1.0)).collect()
}

#[test]
fn every_type_multiplies_and_looks_up_its_stored_values() {
    let backend = Candle::cpu();
    let weights = Tensor::from_vec(values(OUTPUTS * INPUTS, 0.1), (OUTPUTS, INPUTS), &Device::Cpu).unwrap();
    let shape = [OUTPUTS, INPUTS];
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
        let stored = QTensor::quantize(&weights, candle).unwrap();
        let expected = stored.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        let data = stored.data().unwrap();
        assert_eq!(data.len() as u64, dtype.bytes_for((OUTPUTS * INPUTS) as u64).unwrap(), "{dtype}");
        let matrix = backend.load_matrix(&TensorView::new("w", dtype, &shape, &data).unwrap()).unwrap();

        let ids = [0u32, 31, 32, 63, 64, 69, 1];
        let found = backend.download(backend.lookup(&matrix, &ids).unwrap()).unwrap();
        for (row, id) in found.chunks(INPUTS).zip(ids) {
            assert_eq!(row, expected[id as usize], "{dtype} row {id}");
        }
        for rows in [1, 3] {
            let x = values(rows * INPUTS, 1.0);
            let [product] = backend.matmul(&backend.upload(&x, INPUTS).unwrap(), [&matrix]).unwrap();
            let product = backend.download(product).unwrap();
            assert_eq!(product.len(), rows * OUTPUTS);
            for (i, value) in product.iter().enumerate() {
                let (x, w) = (&x[i / OUTPUTS * INPUTS..][..INPUTS], &expected[i % OUTPUTS]);
                let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                assert!((f64::from(*value) - exact).abs() < 1e-3, "{dtype}: {value} should be {exact}");
            }
        }
    }
}

#[test]
fn other_types_are_refused_by_name() {
    let view = TensorView::new("w", DType::IQ2_XS, &[1, 256], &[0; 74]).unwrap();
    let Err(error @ LoadError::UnsupportedType { .. }) = Candle::cpu().load_matrix(&view) else {
        panic!("it was taken");
    };
    assert!(error.to_string().starts_with("tensor 'w' has type IQ2_XS, which this backend does not support"));
}

/// Attention over a cache that has grown, shrunk and grown again equals attention computed in one go by the definition.
#[test]
fn attention_follows_its_definition_through_growth_and_truncation() {
    let backend = Candle::cpu();
    let shape =
        AttentionShape { heads: 4, kv_heads: 2, head_dim: 8, scale: 1.0 / 8f32.sqrt(), soft_cap: None, window: None };
    let (rows, q_width, kv_width) = (75, 32, 16);
    let (q, k, v) = (values(rows * q_width, 2.0), values(rows * kv_width, 1.5), values(rows * kv_width, 1.0));
    let mut cache = KvCache::new(1);
    let step = |from: usize, to: usize, cache: &mut KvCache<_>| {
        let sequence = Sequence { pos: from, rows: to - from, cache };
        let part = |values: &[f32], width: usize| backend.upload(&values[from * width..to * width], width).unwrap();
        let out = backend
            .attend(part(&q, q_width), part(&k, kv_width), part(&v, kv_width), 0, &mut [sequence], &shape)
            .unwrap();
        backend.download(out).unwrap()
    };
    let mut out = step(0, 30, &mut cache);
    step(30, 41, &mut cache);
    cache.truncate(30);
    out.extend(step(30, 70, &mut cache));
    for row in 70..rows {
        out.extend(step(row, row + 1, &mut cache));
    }

    for (i, value) in out.iter().enumerate() {
        let (row, head, dim) = (i / q_width, i % q_width / 8, i % 8);
        let kv_head = head / 2;
        let q = &q[row * q_width + head * 8..][..8];
        let score = |at: usize| {
            let k = &k[at * kv_width + kv_head * 8..][..8];
            let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
            (dot / 8f64.sqrt()).exp()
        };
        let sum: f64 = (0..=row).map(score).sum();
        let exact: f64 = (0..=row).map(|at| score(at) / sum * f64::from(v[at * kv_width + kv_head * 8 + dim])).sum();
        assert!((f64::from(*value) - exact).abs() < 1e-4, "row {row} head {head}: {value} should be {exact}");
    }
}
