//! Tensors: found in the folder's files, named as GGUF names them, changed where they must be.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{
    HfError, MAX_JSON,
    config::Config,
    names::{Target, target},
    read,
};
use crate::{
    gguf::{DType, Gguf, Piece, Store, write::Writer},
    quantize::Mix,
};

/// A tensor of the folder.
#[derive(Clone)]
struct Found {
    dtype: DType,
    shape: Vec<usize>,
    piece: Piece,
}

/// What a tensor will be made of.
enum Source {
    Whole(Found),
    /// By expert.
    Stack(BTreeMap<usize, Found>),
}

/// Puts the folder's tensors behind the metadata in `writer`; `extra` are tensors that the folder lacks.
pub(super) fn assemble(
    path: &Path,
    config: &Config,
    mut writer: Writer,
    extra: Vec<(&'static str, Vec<f32>)>,
) -> Result<Gguf, HfError> {
    let mut stores = Vec::new();
    let mut sources: BTreeMap<String, Source> = BTreeMap::new();
    for file in files(path)? {
        let store = Store::map(&file)?;
        stores.push(store);
        let Some(bytes) = stores.last().map(Store::as_slice) else { continue };
        for (name, found) in tensors(&file, bytes, stores.len())? {
            let bad = |reason: &str| HfError::Tensor { tensor: name.clone(), reason: reason.to_owned() };
            let known = target(&name, config.gemma(), config.tied());
            let twice = match known.ok_or_else(|| bad("none of the families here has a tensor of this name"))? {
                Target::Dropped => false,
                Target::Whole(name) => sources.insert(name, Source::Whole(found)).is_some(),
                Target::Expert(name, expert) => match sources.entry(name).or_insert(Source::Stack(BTreeMap::new())) {
                    Source::Stack(experts) => experts.insert(expert, found).is_some(),
                    Source::Whole(_) => true,
                },
            };
            if twice {
                return Err(bad("there is another of the same meaning"));
            }
        }
    }
    if config.says_tied() == Some(false) && !sources.contains_key("output.weight") {
        let reason = "it is missing, and config.json says that the output matrix is not the embedding".to_owned();
        return Err(HfError::Tensor { tensor: "lm_head.weight".to_owned(), reason });
    }
    let mut changed = Changed::new()?;
    // Stores are counted after the header's; what was changed goes into the last.
    let last = stores.len().saturating_add(1);
    let mut pieces = Vec::new();
    let mut most: HashMap<DType, u64> = HashMap::new();
    for (name, source) in sources {
        let (dtype, shape, places) = match source {
            Source::Whole(found) => whole(&name, found, config, &stores, &mut changed, last)?,
            Source::Stack(experts) => stack(&name, experts, config)?,
        };
        let bytes = writer.tensor(&name, dtype, &shape)?.tensors().last().map_or(0, |record| record.bytes);
        let sum = most.entry(dtype).or_default();
        *sum = sum.saturating_add(bytes);
        pieces.push(places);
    }
    for (name, values) in extra {
        writer.tensor(name, DType::F32, &[values.len()])?;
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        pieces.push(vec![changed.add(&bytes, last)?]);
    }
    let most = most.into_iter().max_by_key(|(dtype, bytes)| (*bytes, *dtype)).map(|(dtype, _)| dtype);
    if let Some(mix) = most.and_then(|dtype| Mix::from_name(dtype.name())) {
        writer.set("general.file_type", mix.file_type());
    }
    stores.push(changed.store()?);
    Ok(Gguf::assemble(writer.header()?, stores, pieces)?)
}

/// The folder's safetensors files, in order of their names.
fn files(path: &Path) -> Result<Vec<PathBuf>, HfError> {
    let index = path.join("model.safetensors.index.json");
    if !index.is_file() {
        return Ok(vec![path.join("model.safetensors")]);
    }
    let bad = |reason: String| HfError::Safetensors { path: index.clone(), reason };
    let json: Value = serde_json::from_slice(&read(&index, MAX_JSON)?).map_err(|e| bad(e.to_string()))?;
    let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| bad("there is no weight_map".into()))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        // A name, and nothing that leads out of the folder.
        let name = file.as_str().filter(|name| Path::new(name).file_name().is_some_and(|last| last == *name));
        names.insert(name.ok_or_else(|| bad(format!("tensor '{tensor}' is in {file}, which is no file's name")))?);
    }
    Ok(names.into_iter().map(|name| path.join(name)).collect())
}

/// The tensors of one file, which is the store of this number.
fn tensors(path: &Path, bytes: &[u8], store: usize) -> Result<Vec<(String, Found)>, HfError> {
    let bad = |reason: String| HfError::Safetensors { path: path.to_owned(), reason };
    // Checks the header's size, and that the tensors fill the file without gap or overlap.
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| bad(e.to_string()))?;
    let start = header.checked_add(8).ok_or_else(|| bad("the header is too large".into()))?;
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        let dtype = match info.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                let reason = format!("its type is {other:?}; supported are F32, F16 and BF16");
                return Err(HfError::Tensor { tensor: name, reason });
            }
        };
        let (from, to) = info.data_offsets;
        let range = start.checked_add(from).zip(start.checked_add(to));
        let (start, end) = range.ok_or_else(|| bad(format!("tensor '{name}' lies outside of the file")))?;
        tensors.push((name, Found { dtype, shape: info.shape.clone(), piece: Piece { store, start, end } }));
    }
    Ok(tensors)
}

type Placed = (DType, Vec<usize>, Vec<Piece>);

fn whole(
    name: &str,
    found: Found,
    config: &Config,
    stores: &[Store],
    changed: &mut Changed,
    last: usize,
) -> Result<Placed, HfError> {
    let Found { dtype, shape, piece } = found;
    let bytes = || {
        let store = piece.store.checked_sub(1).and_then(|i| stores.get(i)).map(Store::as_slice);
        store.and_then(|bytes| bytes.get(piece.start..piece.end)).unwrap_or_default()
    };
    let (heads, kv_heads) = config.heads()?;
    let turned = match name.rsplit_once('.').map(|(stem, _)| stem) {
        Some(stem) if config.architecture != "llama" || !stem.starts_with("blk.") => None,
        Some(stem) if stem.ends_with("attn_q") => Some(heads),
        Some(stem) if stem.ends_with("attn_k") => Some(kv_heads),
        _ => None,
    };
    let flat = shape.len() < 2;
    let shifted = config.gemma() && name.ends_with("norm.weight");
    if turned.is_none() && (!flat || (dtype == DType::F32 && !shifted)) {
        return Ok((dtype, shape, vec![piece]));
    }
    let mut values = if flat { floats(dtype, bytes(), if shifted { 1.0 } else { 0.0 }) } else { bytes().to_vec() };
    if let Some(heads) = turned {
        let rows = shape.first().copied().unwrap_or(0);
        values = interleave(&values, rows, usize::try_from(heads).unwrap_or(0)).ok_or_else(|| HfError::Tensor {
            tensor: name.to_owned(),
            reason: format!("{rows} rows are not {heads} heads of an even width"),
        })?;
    }
    let dtype = if flat { DType::F32 } else { dtype };
    Ok((dtype, shape, vec![changed.add(&values, last)?]))
}

/// Values of one dimension as `f32`, which norms and biases are in, plus `shift`.
fn floats(dtype: DType, bytes: &[u8], shift: f32) -> Vec<u8> {
    let values: Vec<f32> = match dtype {
        DType::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        DType::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    };
    values.into_iter().flat_map(|value| (value + shift).to_le_bytes()).collect()
}

/// Rows of each head in the order in which Llama's rotation pairs neighbours: first and second half by turns.
fn interleave(bytes: &[u8], rows: usize, heads: usize) -> Option<Vec<u8>> {
    let width = rows.checked_div(heads).filter(|width| width.checked_mul(heads) == Some(rows))?;
    let half = width.checked_div(2).filter(|half| half.checked_mul(2) == Some(width) && *half > 0)?;
    let row = bytes.len().checked_div(rows).filter(|row| *row > 0)?;
    let mut out = Vec::with_capacity(bytes.len());
    for head in bytes.chunks(row.checked_mul(width)?) {
        let (first, second) = head.split_at_checked(row.checked_mul(half)?)?;
        for (a, b) in first.chunks(row).zip(second.chunks(row)) {
            out.extend_from_slice(a);
            out.extend_from_slice(b);
        }
    }
    Some(out)
}

fn stack(name: &str, experts: BTreeMap<usize, Found>, config: &Config) -> Result<Placed, HfError> {
    let bad = |reason: String| HfError::Tensor { tensor: name.to_owned(), reason };
    let count = config.experts()?.and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    let Some(first) = experts.values().next().cloned() else { return Err(bad("it has no experts".into())) };
    let mut pieces = Vec::with_capacity(experts.len());
    for (at, (expert, found)) in experts.iter().enumerate() {
        if at != *expert || found.dtype != first.dtype || found.shape != first.shape || found.shape.len() != 2 {
            return Err(bad(format!("expert {at} is missing, or not of the same type and shape as the others")));
        }
        pieces.push(found.piece);
    }
    if pieces.len() != count {
        return Err(bad(format!("there are {} experts, config.json says {count}", pieces.len())));
    }
    Ok((first.dtype, [vec![count], first.shape].concat(), pieces))
}

/// Tensors in another form than the folder's: in a temporary file without a name.
struct Changed {
    out: io::BufWriter<std::fs::File>,
    len: usize,
}

impl Changed {
    /// Tensors begin at multiples of this, as in GGUF files.
    const ALIGNMENT: usize = 32;

    fn new() -> Result<Self, HfError> {
        Ok(Self { out: io::BufWriter::new(tempfile::tempfile().map_err(Self::io)?), len: 0 })
    }

    fn io(source: io::Error) -> HfError {
        HfError::Io { path: std::env::temp_dir(), source }
    }

    fn add(&mut self, bytes: &[u8], store: usize) -> Result<Piece, HfError> {
        let start = self.len;
        let end = start.saturating_add(bytes.len());
        let padded = end.checked_next_multiple_of(Self::ALIGNMENT).unwrap_or(end);
        self.out.write_all(bytes).map_err(Self::io)?;
        self.out.write_all(&vec![0; padded.saturating_sub(end)]).map_err(Self::io)?;
        self.len = padded;
        Ok(Piece { store, start, end })
    }

    fn store(mut self) -> Result<Store, HfError> {
        self.out.flush().map_err(Self::io)?;
        Store::map_file(self.out.get_ref()).map_err(Self::io)
    }
}
