//! Models in Hugging Face's folders: `config.json`, `tokenizer.json` and `*.safetensors`, opened as if they were a GGUF
//! file.
//!
//! The metadata is said in GGUF's words, the tensors have GGUF's names. Weights stay in the folder's files, which are
//! memory-mapped; the few that must change their form (norms in `f32`, queries and keys of the Llama family in the order
//! of its rotation, Gemma's norms plus one) go to a temporary file that nobody else sees and that is gone at the end.
//! Experts stay where they are, each a tensor of its own. [`open_quantised`] writes all weights to such a file.

// Folders come from anywhere.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod config;
mod names;
mod tensors;

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use config::Config;
use serde_json::Value;

use crate::{
    gguf::{
        Gguf, GgufError,
        write::{WriteError, Writer},
    },
    quantize::{Mix, Plan, QuantizeError},
};

/// The largest `config.json` that is read.
const MAX_CONFIG: u64 = 4 << 20;
/// The largest tokenizer or index file that is read.
const MAX_JSON: u64 = 256 << 20;

/// The key under which a folder's `tokenizer.json` stands in the metadata.
pub const TOKENIZER_KEY: &str = "tokenizer.huggingface.json";
/// The key under which a folder's `tokenizer_config.json` stands in the metadata.
pub const TOKENIZER_CONFIG_KEY: &str = "tokenizer.huggingface.config";
/// The key under which a folder's `generation_config.json`, which names the ends of a generation, stands there.
pub const GENERATION_CONFIG_KEY: &str = "tokenizer.huggingface.generation";

/// Why a folder could not be opened as a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HfError {
    /// A file of it cannot be read, or a temporary file not be written.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file that is larger than any such file is.
    #[error("{} has {bytes} bytes, at most {max} are read", path.display())]
    Large {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// A model family that this engine has no definition of.
    #[error("model_type '{found}' is not supported; supported are {}", supported.join(", "))]
    Family {
        /// What `config.json` says.
        found: String,
        /// The families there are.
        supported: Vec<&'static str>,
    },
    /// A setting that is missing or makes no sense.
    #[error("config.json, '{key}': {reason}")]
    Config {
        /// The setting.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A safetensors file that is broken.
    #[error("{}: {reason}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that cannot be used.
    #[error("tensor '{tensor}': {reason}")]
    Tensor {
        /// Its name in the folder.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The model cannot be quantised.
    #[error(transparent)]
    Quantize(#[from] QuantizeError),
    /// The parts do not make a model.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The parts do not make a file.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// True when `path` is a folder with a `config.json`.
pub fn is_folder(path: &Path) -> bool {
    path.join("config.json").is_file()
}

/// Opens the model in the folder `path`.
///
/// # Errors
/// [`HfError`]: a file that is missing, broken or larger than believed; a family, a setting or a tensor that is not
/// known.
pub fn open(path: &Path) -> Result<Gguf, HfError> {
    let config = Config::parse(&read(&path.join("config.json"), MAX_CONFIG)?)?;
    let mut writer = Writer::new();
    let extra = config.write(&mut writer)?;
    let name = path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    writer.set("general.name", name.unwrap_or_else(|| "unnamed".to_owned()));
    tokenizer(path, &mut writer)?;
    tensors::assemble(path, &config, writer, extra)
}

/// Opens the model in the folder `path` with its weights in the types of `mix`: they are quantised once, into a temporary
/// file in `spool` (a folder on a disk with room for it) that has no name and is gone when the model is dropped.
/// `progress` is told how many bytes of how many are done; its error ends the work.
///
/// # Errors
/// As [`open`]; [`HfError::Io`] when the disk is full, [`HfError::Quantize`] for weights that are quantised already.
pub fn open_quantised(
    path: &Path,
    mix: Mix,
    spool: &Path,
    progress: impl FnMut(u64, u64) -> io::Result<()>,
) -> Result<Gguf, HfError> {
    quantised(&open(path)?, mix, spool, progress)
}

/// `source` with its weights in the types of `mix`, in a temporary file as [`open_quantised`] has it.
///
/// # Errors
/// As [`open_quantised`].
pub fn quantised(
    source: &Gguf,
    mix: Mix,
    spool: &Path,
    mut progress: impl FnMut(u64, u64) -> io::Result<()>,
) -> Result<Gguf, HfError> {
    let io = |source| HfError::Io { path: spool.to_owned(), source };
    let plan = Plan::new(source, mix)?;
    let total = plan.size();
    let file = tempfile::tempfile_in(spool).map_err(io)?;
    let mut out = io::BufWriter::with_capacity(1 << 20, file);
    plan.write_to(&mut out, |done| progress(done, total)).map_err(io)?;
    out.flush().map_err(io)?;
    let file = out.into_inner().map_err(|error| io(error.into_error()))?;
    Ok(Gguf::from_file(&file)?)
}

/// Puts the tokenizer's files and the chat template into the metadata.
fn tokenizer(path: &Path, writer: &mut Writer) -> Result<(), HfError> {
    let text = |name: &str| -> Result<Option<String>, HfError> {
        let path = path.join(name);
        match read(&path, MAX_JSON) {
            Ok(bytes) => String::from_utf8(bytes)
                .map(Some)
                .map_err(|e| HfError::Io { path, source: io::Error::new(io::ErrorKind::InvalidData, e.utf8_error()) }),
            Err(HfError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    };
    if let Some(json) = text("tokenizer.json")? {
        writer.set(TOKENIZER_KEY, json);
    }
    if let Some(json) = text("generation_config.json")? {
        writer.set(GENERATION_CONFIG_KEY, json);
    }
    let config = text("tokenizer_config.json")?;
    let template = match text("chat_template.jinja")? {
        Some(template) => Some(template),
        None => config.as_deref().and_then(template_in),
    };
    if let Some(config) = config {
        writer.set(TOKENIZER_CONFIG_KEY, config);
    }
    if let Some(template) = template {
        writer.set("tokenizer.chat_template", template);
    }
    Ok(())
}

/// The chat template of a `tokenizer_config.json`: a text, or the one called `default` of several.
fn template_in(config: &str) -> Option<String> {
    let config: Value = serde_json::from_str(config).ok()?;
    match config.get("chat_template")? {
        Value::String(text) => Some(text.clone()),
        Value::Array(several) => {
            let default = several.iter().find(|one| one.get("name").and_then(Value::as_str) == Some("default"))?;
            default.get("template")?.as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// A whole file of at most `max` bytes.
fn read(path: &Path, max: u64) -> Result<Vec<u8>, HfError> {
    let io = |source| HfError::Io { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    if bytes > max {
        return Err(HfError::Large { path: path.to_owned(), bytes, max });
    }
    let mut out = Vec::new();
    file.take(max).read_to_end(&mut out).map_err(io)?;
    Ok(out)
}
