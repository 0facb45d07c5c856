//! Every family at sizes that nothing divides well, in every mix of types: the exact kernels, candle, and a plain
//! transformer in `f64`.

mod plain;

use plain::Plain;
use quelea_engine::{
    Chain, Device, Gguf, StageOptions,
    quantize::{Mix, Plan},
};

use crate::support::{Builder, noise};

/// Two computations of one function that round, in parts of the logits' spread.
const ROUNDS: f64 = 2e-5;
/// Activations in 8 bits through a few layers.
const QUANTISED: f64 = 0.06;

/// Sizes of a model. What is not said is taken from a plain Llama.
#[derive(Clone, Copy)]
struct Shape {
    arch: &'static str,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rope_dims: usize,
    hidden: usize,
    inner: usize,
    vocab: usize,
    tied: bool,
    /// Matrices with a bias, by what their names hold.
    biased: &'static [&'static str],
    /// Divisors of the rotation's frequencies.
    factors: bool,
    linear: Option<f32>,
    window: Option<u32>,
    caps: bool,
    experts: Option<(usize, usize)>,
}

const LLAMA: Shape = Shape {
    arch: "llama",
    heads: 3,
    kv_heads: 1,
    head_dim: 12,
    rope_dims: 12,
    hidden: 40,
    inner: 56,
    vocab: 51,
    tied: false,
    biased: &[],
    factors: false,
    linear: None,
    window: None,
    caps: false,
    experts: None,
};
const QKV: &[&str] = &["attn_q.", "attn_k.", "attn_v."];
const ALL: &[&str] = &["attn_q.", "attn_k.", "attn_v.", "attn_output.", "ffn_gate.", "ffn_up.", "ffn_down."];

/// Small and awkward, in floats.
const AWKWARD: &[(&str, Shape)] = &[
    ("one key head, heads that are not the width's share", LLAMA),
    ("tied, five heads, factors", Shape { heads: 5, head_dim: 8, rope_dims: 8, tied: true, factors: true, ..LLAMA }),
    ("biases everywhere", Shape { kv_heads: 3, biased: ALL, vocab: 33, ..LLAMA }),
    ("one head, linear scaling", Shape { heads: 1, head_dim: 40, rope_dims: 40, linear: Some(4.0), ..LLAMA }),
    (
        "odd sizes everywhere",
        Shape { heads: 7, kv_heads: 7, head_dim: 6, rope_dims: 4, hidden: 23, inner: 29, ..LLAMA },
    ),
    ("Mixtral, three of five experts", Shape { experts: Some((5, 3)), heads: 4, kv_heads: 2, ..LLAMA }),
    ("Mistral 3", Shape { arch: "mistral3", heads: 6, kv_heads: 3, tied: true, ..LLAMA }),
    ("Qwen2", Shape { arch: "qwen2", heads: 7, head_dim: 10, rope_dims: 10, biased: QKV, ..LLAMA }),
    ("Qwen2 without biases, tied", Shape { arch: "qwen2", heads: 6, kv_heads: 2, tied: true, ..LLAMA }),
    ("Qwen3", Shape { arch: "qwen3", heads: 5, head_dim: 20, rope_dims: 20, ..LLAMA }),
    ("Qwen3-MoE, one of three experts", Shape { arch: "qwen3moe", experts: Some((3, 1)), tied: true, ..LLAMA }),
    ("Phi-3, rotated in part", Shape { arch: "phi3", heads: 4, kv_heads: 2, rope_dims: 6, ..LLAMA }),
    ("Phi-3, tied, with biases", Shape { arch: "phi3", tied: true, biased: &["attn_qkv.", "ffn_up."], ..LLAMA }),
    ("Gemma 2", Shape { arch: "gemma2", tied: true, window: Some(5), caps: true, vocab: 70, ..LLAMA }),
    ("Gemma 3", Shape { arch: "gemma3", heads: 4, kv_heads: 2, tied: true, window: Some(6), ..LLAMA }),
    ("Gemma 3, linear, no window", Shape { arch: "gemma3", linear: Some(8.0), ..LLAMA }),
];

const BLOCKS: Shape = Shape { head_dim: 32, rope_dims: 32, hidden: 96, inner: 160, vocab: 77, ..LLAMA };

/// Rows of whole blocks of 32, and mostly not of 256.
const BLOCKY: &[(&str, Shape)] = &[
    ("96 wide", BLOCKS),
    ("288 wide, 256 in heads", Shape { heads: 8, kv_heads: 2, hidden: 288, inner: 512, tied: true, ..BLOCKS }),
    ("Mixtral", Shape { experts: Some((4, 2)), ..BLOCKS }),
    ("Qwen2", Shape { arch: "qwen2", heads: 7, hidden: 224, biased: QKV, ..BLOCKS }),
    ("Qwen3", Shape { arch: "qwen3", heads: 4, kv_heads: 4, hidden: 256, tied: true, ..BLOCKS }),
    ("Qwen3-MoE", Shape { arch: "qwen3moe", experts: Some((3, 2)), inner: 64, ..BLOCKS }),
    ("Phi-3", Shape { arch: "phi3", heads: 2, ..BLOCKS }),
    ("Gemma 2", Shape { arch: "gemma2", tied: true, window: Some(4), caps: true, ..BLOCKS }),
    ("Gemma 3", Shape { arch: "gemma3", heads: 8, hidden: 256, inner: 256, window: Some(4), tied: true, ..BLOCKS }),
];

const LAYERS: usize = 2;

fn build(shape: &Shape) -> Gguf {
    let Shape { arch, heads, kv_heads, head_dim, hidden, inner, vocab, .. } = *shape;
    let key = |name: &str| format!("{arch}.{name}");
    let mut b = Builder::default()
        .str("general.architecture", arch)
        .str("general.name", "shape")
        .u32(&key("block_count"), LAYERS as u32)
        .u32(&key("embedding_length"), hidden as u32)
        .u32(&key("feed_forward_length"), inner as u32)
        .u32(&key("attention.head_count"), heads as u32)
        .u32(&key("attention.head_count_kv"), kv_heads as u32)
        .u32(&key("attention.key_length"), head_dim as u32)
        .u32(&key("attention.value_length"), head_dim as u32)
        .u32(&key("rope.dimension_count"), shape.rope_dims as u32)
        .u32(&key("context_length"), 256)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-6);
    if let Some(factor) = shape.linear {
        b = b.str(&key("rope.scaling.type"), "linear").f32(&key("rope.scaling.factor"), factor);
    }
    if let Some(window) = shape.window {
        b = b.u32(&key("attention.sliding_window"), window);
    }
    if shape.caps {
        b = b.f32(&key("attn_logit_softcapping"), 4.0).f32(&key("final_logit_softcapping"), 9.0);
    }
    if let Some((count, used)) = shape.experts {
        b = b.u32(&key("expert_count"), count as u32).u32(&key("expert_used_count"), used as u32);
        b = b.u32(&key("expert_feed_forward_length"), inner as u32);
    }
    let mut seed = 0;
    let mut add = |b: Builder, name: &str, dims: &[usize], mean: f32, scale: f32| {
        seed += 1;
        let seed = seed;
        b.tensor(name, dims, move |i| mean + scale * noise(seed, i))
    };
    // Queries and keys large enough that attention has something to choose.
    let gain = |name: &str, inputs: usize| {
        let gain = if name.contains("attn_q") || name.contains("attn_k") { 3.0 } else { 1.8 };
        gain / (inputs as f32).sqrt()
    };
    b = add(b, "token_embd.weight", &[vocab, hidden], 0.0, if arch.starts_with("gemma") { 0.3 } else { 1.5 });
    if shape.factors {
        b = b.tensor("rope_freqs.weight", &[shape.rope_dims / 2], |i| 1.0 + i as f32);
    }
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let mut norms = vec![("attn_norm", hidden), ("ffn_norm", hidden)];
        if arch.starts_with("gemma") {
            norms.extend([("post_attention_norm", hidden), ("post_ffw_norm", hidden)]);
        }
        if arch.starts_with("qwen3") || arch == "gemma3" {
            norms.extend([("attn_q_norm", head_dim), ("attn_k_norm", head_dim)]);
        }
        for (norm, len) in norms {
            b = add(b, &name(&format!("{norm}.weight")), &[len], 1.0, 0.3);
        }
        let mut matrices = vec![("attn_output.", hidden, q)];
        if arch == "phi3" {
            matrices.extend([("attn_qkv.", q + 2 * kv, hidden), ("ffn_up.", 2 * inner, hidden)]);
        } else {
            matrices.extend([("attn_q.", q, hidden), ("attn_k.", kv, hidden), ("attn_v.", kv, hidden)]);
        }
        if let Some((count, _)) = shape.experts {
            b = add(b, &name("ffn_gate_inp.weight"), &[count, hidden], 0.0, gain("", hidden));
            for (part, outputs, inputs) in [("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)] {
                let dims = [count, outputs, inputs];
                b = add(b, &name(&format!("ffn_{part}_exps.weight")), &dims, 0.0, gain("", inputs));
            }
        } else {
            matrices.push(("ffn_down.", hidden, inner));
            if arch != "phi3" {
                matrices.extend([("ffn_gate.", inner, hidden), ("ffn_up.", inner, hidden)]);
            }
        }
        for (part, outputs, inputs) in matrices {
            b = add(b, &name(&format!("{part}weight")), &[outputs, inputs], 0.0, gain(part, inputs));
            if shape.biased.contains(&part) {
                b = add(b, &name(&format!("{part}bias")), &[outputs], 0.0, 0.3);
            }
        }
    }
    b = add(b, "output_norm.weight", &[hidden], 1.0, 0.3);
    if !shape.tied {
        b = add(b, "output.weight", &[vocab, hidden], 0.0, gain("", hidden));
    }
    b.open()
}

fn logits(gguf: &Gguf, device: Device, ids: &[u32]) -> Vec<f64> {
    let options = StageOptions { device, ..StageOptions::default() };
    let logits = Chain::load_with(gguf, &[1], &options).unwrap().advance_by(ids, 7).unwrap();
    logits.into_iter().map(f64::from).collect()
}

/// Mean distance in parts of the spread of the truth.
fn apart(found: &[f64], truth: &[f64]) -> f64 {
    assert_eq!(found.len(), truth.len());
    let mean = truth.iter().sum::<f64>() / truth.len() as f64;
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let spread = square(&mut truth.iter().map(|t| t - mean));
    (square(&mut found.iter().zip(truth).map(|(f, t)| f - t)) / spread).sqrt()
}

fn ids(shape: &Shape, n: usize) -> Vec<u32> {
    (0..n).map(|i| (noise(7, i).abs() * shape.vocab as f32) as u32 % shape.vocab as u32).collect()
}

#[test]
fn floats_of_any_shape_are_computed_to_rounding() {
    for (name, shape) in AWKWARD.iter().chain(BLOCKY) {
        let gguf = build(shape);
        for n in [1, 19] {
            let ids = ids(shape, n);
            let truth = Plain::new(&gguf).logits(&ids);
            for device in [Device::Cpu, Device::Candle] {
                let apart = apart(&logits(&gguf, device, &ids), &truth);
                assert!(apart < ROUNDS, "{} {name}, {n} tokens on {device}: {apart}", shape.arch);
            }
        }
    }
}

/// Where rows are not whole blocks of 256, types fall back to those with blocks of 32, as llama.cpp's do.
#[test]
fn quantised_files_of_any_shape_are_near_the_truth() {
    for (name, shape) in BLOCKY {
        let floats = build(shape);
        for mix in ["q8_0", "q4_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "bf16"] {
            let mut file = Vec::new();
            let plan = Plan::new(&floats, Mix::from_name(mix).unwrap()).unwrap();
            plan.write_to(&mut file, |_| Ok(())).unwrap();
            let gguf = Gguf::from_vec(file).unwrap();
            let ids = ids(shape, 9);
            let truth = Plain::new(&gguf).logits(&ids);
            let rounded = apart(&logits(&gguf, Device::Candle, &ids), &truth);
            assert!(rounded < ROUNDS, "{} {name} as {mix} on candle: {rounded}", shape.arch);
            let found = apart(&logits(&gguf, Device::Cpu, &ids), &truth);
            let bound = if mix == "bf16" { ROUNDS } else { QUANTISED };
            assert!(found < bound, "{} {name} as {mix}: {found}", shape.arch);
        }
    }
}
