//! Quantisation against llama.cpp's own, as decoded by a third implementation.

use candle_core::{
    Device,
    quantized::{GgmlDType, QStorage, QTensor},
};
use quelea_engine::{
    Gguf, Manifest,
    gguf::{DType, TensorView},
    quantize::{Mix, Plan, QuantizeError, rows},
};

use crate::support::{Builder, LAYERS, model, models, noise};

/// Each type, and the mean squared error that `llama-quantize` has with it on the noise below, relative to the mean
/// square.
const TYPES: [(DType, GgmlDType, f64); 10] = [
    (DType::Q8_0, GgmlDType::Q8_0, 2.566e-5),
    (DType::Q4_0, GgmlDType::Q4_0, 6.661e-3),
    (DType::Q4_1, GgmlDType::Q4_1, 5.723e-3),
    (DType::Q5_0, GgmlDType::Q5_0, 1.637e-3),
    (DType::Q5_1, GgmlDType::Q5_1, 1.339e-3),
    (DType::Q2_K, GgmlDType::Q2K, 8.280e-2),
    (DType::Q3_K, GgmlDType::Q3K, 2.129e-2),
    (DType::Q4_K, GgmlDType::Q4K, 4.742e-3),
    (DType::Q5_K, GgmlDType::Q5K, 1.210e-3),
    (DType::Q6_K, GgmlDType::Q6K, 2.888e-4),
];

const INPUTS: usize = 1024;
const OUTPUTS: usize = 96;

/// Sums of noise, which are distributed much as weights are.
fn weights() -> Vec<f32> {
    (0..INPUTS * OUTPUTS).map(|i| (0..4).map(|k| noise(k, i)).sum::<f32>() * 0.02).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn quantised(dtype: DType, values: &[f32]) -> Vec<u8> {
    let mut out = vec![0; dtype.bytes_for(values.len() as u64).unwrap() as usize];
    rows(DType::F32, dtype, INPUTS, &bytes(values), &mut out);
    out
}

fn expanded(dtype: GgmlDType, data: &[u8]) -> Vec<f32> {
    // Candle reads blocks where they stand; a copy of its own is aligned.
    let storage = QStorage::from_data(data.to_vec().into(), &Device::Cpu, dtype).unwrap();
    let elements = data.len() / dtype.type_size() * dtype.block_size();
    QTensor::new(storage, elements).unwrap().dequantize(&Device::Cpu).unwrap().to_vec1().unwrap()
}

fn mean_square(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.map(|value| value * value).sum::<f64>() / n
}

fn error(exact: &[f32], found: &[f32]) -> f64 {
    assert_eq!(exact.len(), found.len());
    mean_square(exact.iter().zip(found).map(|(a, b)| f64::from(*a) - f64::from(*b)))
}

#[test]
fn the_error_is_no_larger_than_the_references() {
    let exact = weights();
    let square = mean_square(exact.iter().map(|value| f64::from(*value)));
    for (dtype, candle, reference) in TYPES {
        let relative = error(&exact, &expanded(candle, &quantised(dtype, &exact))) / square;
        println!("{dtype}: {relative:.3e}, llama-quantize {reference:.3e}");
        assert!(relative <= 1.02 * reference, "{dtype}: {relative:.3e}, llama-quantize has {reference:.3e}");
    }
}

#[test]
fn odd_blocks_come_back() {
    let block = |of: fn(usize) -> f32| (0..INPUTS).map(of).collect::<Vec<_>>();
    for (dtype, candle, _) in TYPES {
        for exact in [
            block(|_| 0.0),
            block(|_| 0.25),
            block(|_| -3.0),
            block(|i| if i == 100 { 1.0 } else { 0.0 }),
            block(|i| if i % 2 == 0 { 1.0 } else { -1.0 }),
            block(|i| 1e-30 * i as f32),
            block(|i| 1.0 + i as f32 / 1024.0),
        ] {
            let found = expanded(candle, &quantised(dtype, &exact));
            assert!(found.iter().all(|value| value.is_finite()), "{dtype}");
            let most = exact.iter().fold(0f32, |most, value| most.max(value.abs()));
            for (i, (exact, found)) in exact.iter().zip(&found).enumerate() {
                // Two bits for one side, at worst.
                assert!((exact - found).abs() <= 0.36 * most + 1e-7, "{dtype} value {i}: {exact} became {found}");
            }
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let exact = weights();
    for (dtype, ..) in TYPES {
        let alone = rayon_pool(1).install(|| quantised(dtype, &exact));
        assert!(alone == rayon_pool(3).install(|| quantised(dtype, &exact)), "{dtype}");
    }
}

fn rayon_pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

fn written(source: &Gguf, mix: Mix) -> Gguf {
    let plan = Plan::new(source, mix).unwrap();
    let mut file = Vec::new();
    plan.write_to(&mut file, |_| Ok(())).unwrap();
    assert_eq!(file.len() as u64, plan.size());
    Gguf::from_vec(file).unwrap()
}

fn values(tensor: &TensorView<'_>) -> Vec<f32> {
    let candle = match tensor.dtype {
        DType::F32 => GgmlDType::F32,
        DType::F16 => GgmlDType::F16,
        other => TYPES.iter().find(|row| row.0 == other).unwrap().1,
    };
    expanded(candle, tensor.data)
}

/// Files that `llama-quantize` made of the same floats: the same types, and errors no larger.
#[test]
fn files_are_as_good_as_the_references() {
    let Some(dir) = models() else { return };
    for (family, mix) in [("llama", Mix::Q4_K_M), ("llama", Mix::Q6_K), ("llama", Mix::Q8_0)] {
        let floats = Gguf::open(dir.join(format!("{family}-f32.gguf"))).unwrap();
        let reference = Gguf::open(dir.join(format!("{family}-{mix:?}.gguf"))).unwrap();
        let ours = written(&floats, mix);
        assert_eq!(ours.tensors().len(), reference.tensors().len());
        let mut errors = [0.0, 0.0];
        for exact in floats.tensors() {
            let (ours, theirs) = (ours.tensor(exact.name).unwrap(), reference.tensor(exact.name).unwrap());
            assert_eq!((ours.dtype, ours.shape), (theirs.dtype, theirs.shape), "{}", exact.name);
            let exact = values(&exact);
            errors[0] += error(&exact, &values(&ours));
            errors[1] += error(&exact, &values(&theirs));
        }
        println!("{family} {mix:?}: {:.3e}, llama-quantize {:.3e}", errors[0], errors[1]);
        assert!(errors[0] <= 1.02 * errors[1], "{family} {mix:?}: {errors:?}");
        let manifest = Manifest::from_gguf(&ours).unwrap();
        assert_eq!(manifest.quantisation, format!("{mix:?}"));
        assert_eq!(manifest.tokenizer, Manifest::from_gguf(&floats).unwrap().tokenizer);
        assert!(matches!(Plan::new(&reference, Mix::Q5_0).unwrap_err(), QuantizeError::Already { .. }));
    }
}

#[test]
fn weights_that_cannot_be_stored_are_refused_by_name() {
    let refusal = |model: Builder, mix| {
        Plan::new(&model.open(), mix).unwrap().write_to(&mut std::io::sink(), |_| Ok(())).unwrap_err().to_string()
    };
    let nan = refusal(model("llama").fill(3, f32::NAN), Mix::Q8_0);
    assert_eq!(nan, "tensor 'blk.0.attn_q.weight' cannot be stored: there is a NaN or an infinity in row 0");
    let large = refusal(model("llama").fill(3, 1e30), Mix::Q8_0);
    assert_eq!(large, "tensor 'blk.0.attn_q.weight' cannot be stored: its weights are too large for Q8_0");
    assert_eq!(written(&model("llama").open(), Mix::F32).tensors().len(), 2 + 9 * LAYERS);
}
