//! Small GGUF files made on the spot, and the fixtures where they are.

use std::path::PathBuf;

use quelea_engine::Gguf;

/// The folder of reference models, or a word that it is not there.
pub fn models() -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures");
    let models = std::env::var_os("QUELEA_FIXTURES").map_or_else(|| default.into(), PathBuf::from).join("models");
    if models.is_dir() {
        return Some(models);
    }
    println!("skipped: no fixtures in {}", models.display());
    None
}

/// A number in -1..1 for each index, the same on every machine.
pub fn noise(seed: u64, i: usize) -> f32 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(i as u64 + 1);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^= x >> 31;
    (x >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// Writes GGUF files, right or wrong ones.
#[derive(Clone, Default)]
pub struct Builder {
    keys: Vec<(String, Vec<u8>)>,
    tensors: Vec<Tensor>,
    data: Vec<u8>,
    pub version: Option<u32>,
    pub n_tensors: Option<u64>,
    pub n_keys: Option<u64>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    /// Innermost dimension first, as in the file.
    pub dims: Vec<u64>,
    pub dtype: u32,
    pub offset: u64,
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

impl Builder {
    /// A value with the type's number and its bytes.
    pub fn raw(mut self, key: &str, ty: u32, bytes: &[u8]) -> Self {
        self.keys.push((key.to_owned(), [&ty.to_le_bytes(), bytes].concat()));
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn str(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        string(&mut bytes, value.as_bytes());
        self.raw(key, 8, &bytes)
    }

    pub fn strs(self, key: &str, values: &[&str]) -> Self {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| string(&mut bytes, value.as_bytes()));
        self.raw(key, 9, &bytes)
    }

    /// A tensor of `f32`, dimensions innermost last.
    pub fn tensor(mut self, name: &str, shape: &[usize], values: impl Fn(usize) -> f32) -> Self {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        let dims = shape.iter().rev().map(|dim| *dim as u64).collect();
        let offset = self.data.len() as u64;
        self.tensors.push(Tensor { name: name.to_owned(), dims, dtype: 0, offset });
        let count: usize = shape.iter().product();
        (0..count).for_each(|i| self.data.extend(values(i).to_le_bytes()));
        self
    }

    /// Changes the tensor record at `i`.
    pub fn edit(mut self, i: usize, change: impl FnOnce(&mut Tensor)) -> Self {
        change(&mut self.tensors[i]);
        self
    }

    /// Leaves out the tensors whose names do not pass.
    pub fn retain(&mut self, pass: impl Fn(&str) -> bool) {
        self.tensors.retain(|tensor| pass(&tensor.name));
    }

    /// Sets all values of the tensor at `i`, which has type `f32`.
    pub fn fill(mut self, i: usize, value: f32) -> Self {
        let start = self.tensors[i].offset as usize;
        let len = 4 * self.tensors[i].dims.iter().product::<u64>() as usize;
        self.data[start..start + len].copy_from_slice(&value.to_le_bytes().repeat(len / 4));
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.unwrap_or(3).to_le_bytes());
        out.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.n_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            string(&mut out, key.as_bytes());
            out.extend(value);
        }
        for tensor in &self.tensors {
            string(&mut out, tensor.name.as_bytes());
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(tensor.dtype.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }

    pub fn open(&self) -> Gguf {
        Gguf::from_vec(self.build()).unwrap()
    }
}

/// Sizes of the small models below.
pub const HIDDEN: usize = 32;
pub const VOCAB: usize = 48;
pub const LAYERS: usize = 3;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 8;
const INNER: usize = 64;

/// A model of some family with random weights, tied embeddings and no tokenizer.
pub fn model(arch: &str) -> Builder {
    small(arch, None)
}

/// Experts in each layer of the models below.
const EXPERTS: usize = 4;
/// How many of them a row goes through.
pub const USED: usize = 2;

/// A model with experts whose router finds them all equally good, so that every row goes through the first ones.
/// `joined`: all experts of a layer in one tensor, or each in its own. The weights come from expert and index.
pub fn sparse(arch: &str, joined: bool, weight: fn(usize, usize) -> f32) -> Builder {
    let add = move |mut b: Builder, layer: usize| {
        b = b.tensor(&format!("blk.{layer}.ffn_gate_inp.weight"), &[EXPERTS, HIDDEN], |_| 0.0);
        for (part, outputs, inputs) in [("gate", INNER, HIDDEN), ("up", INNER, HIDDEN), ("down", HIDDEN, INNER)] {
            let size = outputs * inputs;
            if joined {
                let name = format!("blk.{layer}.ffn_{part}_exps.weight");
                b = b.tensor(&name, &[EXPERTS, outputs, inputs], |i| weight(i / size, i % size));
                continue;
            }
            for expert in 0..EXPERTS {
                let name = format!("blk.{layer}.ffn_{part}.{expert}.weight");
                b = b.tensor(&name, &[outputs, inputs], |i| weight(expert, i));
            }
        }
        b
    };
    small(arch, Some(&add))
        .u32(&format!("{arch}.expert_count"), EXPERTS as u32)
        .u32(&format!("{arch}.expert_used_count"), USED as u32)
        .u32(&format!("{arch}.expert_feed_forward_length"), INNER as u32)
}

fn small(arch: &str, feed_forward: Option<&dyn Fn(Builder, usize) -> Builder>) -> Builder {
    let key = |name: &str| format!("{arch}.{name}");
    let mut b = Builder::default()
        .str("general.architecture", arch)
        .str("general.name", "small")
        .u32(&key("block_count"), LAYERS as u32)
        .u32(&key("embedding_length"), HIDDEN as u32)
        .u32(&key("feed_forward_length"), INNER as u32)
        .u32(&key("attention.head_count"), HEADS as u32)
        .u32(&key("attention.head_count_kv"), KV_HEADS as u32)
        .u32(&key("context_length"), 4096)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .strs("tokenizer.ggml.tokens", &["a", "b"]);
    let mut seed = 0;
    let mut random = |b: Builder, name: &str, shape: &[usize], mean: f32, scale: f32| {
        seed += 1;
        let seed = seed;
        b.tensor(name, shape, move |i| mean + scale * noise(seed, i))
    };
    b = random(b, "token_embd.weight", &[VOCAB, HIDDEN], 0.0, 1.0);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("blk.{layer}.{part}");
        for norm in ["attn_norm.weight", "ffn_norm.weight"] {
            b = random(b, &name(norm), &[HIDDEN], 1.0, 0.1);
        }
        for (part, outputs, inputs) in [
            ("attn_q", HEADS * HEAD_DIM, HIDDEN),
            ("attn_k", KV_HEADS * HEAD_DIM, HIDDEN),
            ("attn_v", KV_HEADS * HEAD_DIM, HIDDEN),
            ("attn_output", HIDDEN, HEADS * HEAD_DIM),
            ("ffn_gate", INNER, HIDDEN),
            ("ffn_up", INNER, HIDDEN),
            ("ffn_down", HIDDEN, INNER),
        ] {
            if part.starts_with("ffn") && feed_forward.is_some() {
                continue;
            }
            b = random(b, &name(&format!("{part}.weight")), &[outputs, inputs], 0.0, 0.3);
            if arch == "qwen2" && ["attn_q", "attn_k", "attn_v"].contains(&part) {
                b = random(b, &name(&format!("{part}.bias")), &[outputs], 0.0, 0.2);
            }
        }
        if let Some(add) = feed_forward {
            b = add(b, layer);
        }
        if arch.starts_with("qwen3") {
            for norm in ["attn_q_norm.weight", "attn_k_norm.weight"] {
                b = random(b, &name(norm), &[HEAD_DIM], 1.0, 0.1);
            }
        }
    }
    random(b, "output_norm.weight", &[HIDDEN], 1.0, 0.1)
}

/// `n` random token ids.
pub fn ids(n: usize) -> Vec<u32> {
    (0..n).map(|i| (noise(99, i).abs() * VOCAB as f32) as u32 % VOCAB as u32).collect()
}
