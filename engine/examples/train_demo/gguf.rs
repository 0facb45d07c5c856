//! The model as a file: GGUF with Q8_0 matrices and F32 norms, and the metadata that llama.cpp expects.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use crate::Res;
use crate::net::{self, Net, Param};
use crate::vocab::Vocab;

/// `LLAMA_FTYPE_MOSTLY_Q8_0`.
const FILE_TYPE_Q8_0: u32 = 7;
/// Version of the Q8_0 encoding that the file uses.
const QUANTIZATION_VERSION: u32 = 2;
const TOKEN_NORMAL: i32 = 1;
const TOKEN_CONTROL: i32 = 3;
/// The plain form of a conversation, without a system turn of its own.
const CHAT_TEMPLATE: &str = "{%- for message in messages -%}\
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' -}}\
    {%- endfor -%}\
    {%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}";

fn strings(items: &[String]) -> Value {
    Value::Array(items.iter().cloned().map(Value::String).collect())
}

fn metadata(vocab: &Vocab) -> Vec<(&'static str, Value)> {
    let text = |s: &str| Value::String(s.to_owned());
    let size = |n: usize| Value::U32(n as u32);
    let kinds = (0..vocab.tokens.len() as u32)
        .map(|id| Value::I32(if id >= vocab.end_of_text { TOKEN_CONTROL } else { TOKEN_NORMAL }))
        .collect();
    vec![
        ("general.architecture", text("qwen3")),
        ("general.type", text("model")),
        ("general.name", text("quelea-demo")),
        ("general.description", text("Answers questions about swarms, peers, layers and the Quelea node")),
        ("general.license", text("MIT")),
        ("general.languages", strings(&["en".to_owned()])),
        ("general.file_type", Value::U32(FILE_TYPE_Q8_0)),
        ("general.quantization_version", Value::U32(QUANTIZATION_VERSION)),
        ("qwen3.context_length", Value::U32(net::CONTEXT)),
        ("qwen3.embedding_length", size(net::HIDDEN)),
        ("qwen3.block_count", size(net::LAYERS)),
        ("qwen3.feed_forward_length", size(net::FEED_FORWARD)),
        ("qwen3.attention.head_count", size(net::HEADS)),
        ("qwen3.attention.head_count_kv", size(net::KV_HEADS)),
        ("qwen3.attention.key_length", size(net::HEAD_DIM)),
        ("qwen3.attention.value_length", size(net::HEAD_DIM)),
        ("qwen3.attention.layer_norm_rms_epsilon", Value::F32(net::NORM_EPS)),
        ("qwen3.rope.freq_base", Value::F32(net::ROPE_BASE)),
        ("qwen3.vocab_size", size(vocab.tokens.len())),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("qwen2")),
        ("tokenizer.ggml.tokens", strings(&vocab.tokens)),
        ("tokenizer.ggml.token_type", Value::Array(kinds)),
        ("tokenizer.ggml.merges", strings(&vocab.merges)),
        ("tokenizer.ggml.bos_token_id", Value::U32(vocab.end_of_text)),
        ("tokenizer.ggml.eos_token_id", Value::U32(vocab.turn_end)),
        ("tokenizer.ggml.padding_token_id", Value::U32(vocab.end_of_text)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.chat_template", text(CHAT_TEMPLATE)),
    ]
}

/// Writes the model beside `path` and moves it there when it is whole.
pub fn write(path: &Path, params: &[Param], vocab: &Vocab) -> Res<()> {
    let mut tensors = Vec::with_capacity(params.len());
    for param in params {
        let tensor = Tensor::from_slice(&param.value, param.shape.as_slice(), &Device::Cpu)?;
        let kind = if param.shape.len() > 1 { GgmlDType::Q8_0 } else { GgmlDType::F32 };
        tensors.push((param.name.as_str(), QTensor::quantize(&tensor, kind)?));
    }
    let metadata = metadata(vocab);
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let partial = path.with_extension("partial");
    let mut file = BufWriter::new(File::create(&partial)?);
    gguf_file::write(&mut file, &metadata, &tensors)?;
    file.flush()?;
    file.into_inner().map_err(|e| e.into_error())?.sync_all()?;
    std::fs::rename(&partial, path)?;
    Ok(())
}

/// The weights of a file as parameters, for the second stage of training.
pub fn read_params(path: &Path) -> Res<(Vec<Param>, Vocab)> {
    let (net, vocab) = read(path)?;
    let mut params = net::init(vocab.tokens.len(), 0);
    for param in &mut params {
        param.value = net.get(&param.name)?.flatten_all()?.to_vec1()?;
    }
    Ok((params, vocab))
}

/// Reads a model that [`write()`] wrote, its weights as f32.
pub fn read(path: &Path) -> Res<(Net, Vocab)> {
    let mut file = BufReader::new(File::open(path).map_err(|e| format!("{}: {e}", path.display()))?);
    let content = gguf_file::Content::read(&mut file)?;
    let list = |key: &str| -> Res<Vec<String>> {
        let value = content.metadata.get(key).ok_or_else(|| format!("{}: no {key}", path.display()))?;
        Ok(value.to_vec()?.iter().map(|item| item.to_string().cloned()).collect::<Result<_, _>>()?)
    };
    let vocab = Vocab::new(list("tokenizer.ggml.tokens")?, list("tokenizer.ggml.merges")?)?;
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        let tensor = content.tensor(&mut file, name, &Device::Cpu)?.dequantize(&Device::Cpu)?;
        tensors.insert(name.clone(), tensor);
    }
    Ok((Net::from_tensors(tensors), vocab))
}
