//! Models of real shapes with random weights: for measuring speed, on this engine and on others. They answer nonsense.

mod blocks;
mod shapes;
mod vocab;

use std::{
    io::{self, Write},
    path::Path,
};

use blocks::Random;
pub use shapes::{Experts, ModelShape, SHAPES, Spelling};

use crate::{
    gguf::{
        DType,
        write::{Record, Sink, WriteError, Writer},
    },
    models::rope::{FACTORS as ROPE_FACTORS, Llama3},
    quantize::{Facts, Mix},
};

/// Version of the block formats, for `general.quantization_version`.
pub(crate) const QUANTIZATION_VERSION: u32 = 2;

/// Bytes made at a time, rounded down to whole blocks.
const CHUNK: usize = 1 << 20;

/// A model that can be written.
#[derive(Debug)]
pub struct Synth {
    writer: Writer,
    /// The rotation's divisors, for families that have them.
    factors: Vec<u8>,
    seed: u64,
}

impl Synth {
    /// A model of `shape`, its matrices in the types of `mix`.
    ///
    /// # Errors
    /// [`WriteError::Content`] for a shape that a file cannot have, which no [`ModelShape`] of [`SHAPES`] is.
    pub fn new(shape: &ModelShape, mix: Mix, seed: u64) -> Result<Self, WriteError> {
        if shape.vocab < vocab::MIN_VOCAB {
            let reason = format!("a vocabulary of {} is too small", shape.vocab);
            return Err(WriteError::Content { name: shape.name.to_owned(), reason });
        }
        let mut writer = Writer::new();
        metadata(&mut writer, shape, mix);
        tensors(&mut writer, shape, mix)?;
        let factors = Llama3 { factor: f64::from(shape.rope_factor), ..Llama3::DEFAULT };
        let factors = factors.divisors(f64::from(shape.rope_base), shape.head_dim);
        Ok(Self { writer, factors: factors.into_iter().flat_map(f32::to_le_bytes).collect(), seed })
    }

    /// Bytes that the file will have.
    pub fn size(&self) -> u64 {
        self.writer.size().unwrap_or(u64::MAX)
    }

    /// Bytes of each of the first `layers` layers.
    pub fn layer_bytes(&self, layers: usize) -> Vec<u64> {
        let mut bytes = vec![0_u64; layers];
        for tensor in self.writer.tensors() {
            let layer = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            if let Some(sum) = layer.and_then(|layer| bytes.get_mut(layer)) {
                *sum = sum.saturating_add(tensor.bytes);
            }
        }
        bytes
    }

    /// Writes the file, telling `progress` how many bytes of tensors there are so far; its error ends the work.
    ///
    /// # Errors
    /// [`WriteError`]; nothing is left of a file that could not be finished.
    pub fn write_file(
        &self,
        path: &Path,
        overwrite: bool,
        mut progress: impl FnMut(u64) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        let mut done = 0;
        self.writer.write_file(path, overwrite, |tensor, sink| self.weights(tensor, sink, &mut done, &mut progress))
    }

    fn weights(
        &self,
        tensor: &Record,
        sink: &mut Sink<'_>,
        done: &mut u64,
        progress: &mut impl FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        if tensor.name == ROPE_FACTORS {
            return sink.write_all(&self.factors);
        }
        // Each tensor has its own stream: the same weights wherever it stands.
        let name = blake3::hash(tensor.name.as_bytes());
        let name = name.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let mut random = Random::new(self.seed ^ name);
        let block = usize::try_from(tensor.dtype.block_bytes()).unwrap_or(1).max(1);
        let mut chunk = vec![0; CHUNK / block * block];
        let (mean, spread) = distribution(tensor);
        let mut left = tensor.bytes;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(CHUNK).min(chunk.len());
            let part = chunk.get_mut(..part).unwrap_or_default();
            blocks::fill(tensor.dtype, mean, spread, &mut random, part);
            sink.write_all(part)?;
            left = left.saturating_sub(part.len() as u64);
            *done = done.saturating_add(part.len() as u64);
            progress(*done)?;
        }
        Ok(())
    }
}

fn metadata(writer: &mut Writer, shape: &ModelShape, mix: Mix) {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let arch = shape.architecture;
    writer
        .set("general.architecture", arch)
        .set("general.type", "model")
        .set("general.name", format!("{} of random weights", shape.name))
        .set("general.description", "made by `quelea model synth` for measuring; answers nonsense")
        .set("general.file_type", mix.file_type())
        .set("general.quantization_version", QUANTIZATION_VERSION);
    let mut set = |name: &str, value: u32| {
        writer.set(&format!("{arch}.{name}"), value);
    };
    set("context_length", shape.context);
    set("embedding_length", number(shape.hidden));
    set("block_count", number(shape.layers));
    set("feed_forward_length", number(shape.feed_forward));
    set("attention.head_count", number(shape.heads));
    set("attention.head_count_kv", number(shape.kv_heads));
    set("attention.key_length", number(shape.head_dim));
    set("attention.value_length", number(shape.head_dim));
    set("rope.dimension_count", number(shape.head_dim));
    set("vocab_size", number(shape.vocab));
    if let Some(experts) = shape.experts {
        set("expert_count", number(experts.count));
        set("expert_used_count", number(experts.used));
        set("expert_feed_forward_length", number(experts.feed_forward));
    }
    writer
        .set(&format!("{arch}.attention.layer_norm_rms_epsilon"), shape.eps)
        .set(&format!("{arch}.rope.freq_base"), shape.rope_base);
    vocab::write(writer, shape.spelling, shape.vocab);
}

fn tensors(writer: &mut Writer, shape: &ModelShape, mix: Mix) -> Result<(), WriteError> {
    let facts = Facts {
        layers: shape.layers,
        heads_per_kv: shape.heads / shape.kv_heads.max(1),
        experts: shape.experts.map_or(0, |experts| experts.count),
        tied: shape.tied,
    };
    let mut add = |name: &str, dims: &[usize]| {
        let dtype = mix.dtype_of(name, dims, &facts).unwrap_or(DType::F32);
        writer.tensor(name, dtype, dims).map(drop)
    };
    let (hidden, q, kv) = (shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    add("token_embd.weight", &[shape.vocab, hidden])?;
    if shape.rope_factor > 1.0 {
        add(ROPE_FACTORS, &[shape.head_dim / 2])?;
    }
    for layer in 0..shape.layers {
        let mut add = |part: &str, dims: &[usize]| add(&format!("blk.{layer}.{part}"), dims);
        add("attn_norm.weight", &[hidden])?;
        add("attn_q.weight", &[q, hidden])?;
        add("attn_k.weight", &[kv, hidden])?;
        add("attn_v.weight", &[kv, hidden])?;
        add("attn_output.weight", &[hidden, q])?;
        if shape.architecture == "qwen2" {
            add("attn_q.bias", &[q])?;
            add("attn_k.bias", &[kv])?;
            add("attn_v.bias", &[kv])?;
        }
        if shape.architecture.starts_with("qwen3") {
            add("attn_q_norm.weight", &[shape.head_dim])?;
            add("attn_k_norm.weight", &[shape.head_dim])?;
        }
        add("ffn_norm.weight", &[hidden])?;
        match shape.experts {
            None => {
                add("ffn_gate.weight", &[shape.feed_forward, hidden])?;
                add("ffn_up.weight", &[shape.feed_forward, hidden])?;
                add("ffn_down.weight", &[hidden, shape.feed_forward])?;
            }
            Some(Experts { count, feed_forward, .. }) => {
                add("ffn_gate_inp.weight", &[count, hidden])?;
                add("ffn_gate_exps.weight", &[count, feed_forward, hidden])?;
                add("ffn_up_exps.weight", &[count, feed_forward, hidden])?;
                add("ffn_down_exps.weight", &[count, hidden, feed_forward])?;
            }
        }
    }
    add("output_norm.weight", &[hidden])?;
    if !shape.tied {
        add("output.weight", &[shape.vocab, hidden])?;
    }
    Ok(())
}

/// Mean and standard deviation of a tensor's weights: norms near one, matrices such that they neither grow nor shrink
/// what they multiply, so that rows stay finite through any number of layers.
fn distribution(tensor: &Record) -> (f32, f32) {
    let inputs = tensor.shape.last().copied().unwrap_or(1).max(1) as f32;
    match tensor.name.as_str() {
        name if name.contains("_norm.") => (1.0, 0.05),
        name if name.ends_with(".bias") => (0.0, 0.1),
        "token_embd.weight" => (0.0, 0.5),
        // Logits far enough apart that one token is the likeliest.
        "output.weight" => (0.0, 3.0 / inputs.sqrt()),
        _ => (0.0, 1.0 / inputs.sqrt()),
    }
}
