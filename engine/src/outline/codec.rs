//! An outline's bytes, as peers send them and as they lie on disk.

use minicbor::{Decoder, Encoder, decode::Error, encode::Write};

use super::{Field, Outline, TensorInfo, Tree};
use crate::gguf::{DType, Shape};

/// What stands first.
const DOMAIN: &str = "quelea.outline";
/// Version of the form.
const VERSION: u16 = 1;

/// The longest outline that is taken: 32 bytes for each MiB of weights are 32 MiB for a terabyte, and a few hundred for
/// each of thousands of tensors.
pub const MAX_BYTES: usize = 64 << 20;

/// Metadata keys of a model's family and its name; files have some 40.
const MAX_FIELDS: u64 = 1024;
/// Bytes of all of them.
const MAX_METADATA: usize = 1 << 20;
/// The most tensors that a file can have.
const MAX_TENSORS: u64 = 1 << 18;
/// ggml's bound on a tensor's name, in bytes.
const MAX_NAME: usize = 64;
/// The longest key; the specification's bound is far above what anybody writes.
const MAX_KEY: usize = 256;
/// The largest tokenizer: vocabularies of a quarter of a million tokens take some 10 MiB.
pub const MAX_TOKENIZER: u64 = 64 << 20;

/// Bytes that are no outline.
#[derive(Debug, thiserror::Error)]
#[error("not an outline: {0}")]
pub struct OutlineError(pub(super) String);

impl From<Error> for OutlineError {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

fn bad<T>(what: &str) -> Result<T, OutlineError> {
    Err(OutlineError(what.to_owned()))
}

pub(super) fn encode(outline: &Outline) -> Vec<u8> {
    let mut out = Vec::new();
    write(outline, &mut Encoder::new(&mut out))
        .expect("writing to a vector cannot fail, and this encoder makes no error of its own");
    out
}

fn write<W: Write>(outline: &Outline, e: &mut Encoder<W>) -> Result<(), minicbor::encode::Error<W::Error>> {
    e.array(5)?.str(DOMAIN)?.u16(VERSION)?;
    e.array(outline.metadata.len() as u64)?;
    for Field { key, ty, value } in &outline.metadata {
        e.array(3)?.str(key)?.u32(*ty)?.bytes(value)?;
    }
    let tree = &outline.tokenizer;
    e.array(3)?.u64(tree.bytes())?.bytes(tree.hash())?.bytes(&tree.values().concat())?;
    e.array(outline.tensors.len() as u64)?;
    for TensorInfo { name, dtype, shape, tree } in &outline.tensors {
        e.array(5)?.str(name)?.u32(dtype.id())?.array(shape.len() as u64)?;
        for dim in shape.iter() {
            e.u64(*dim as u64)?;
        }
        e.bytes(tree.hash())?.bytes(&tree.values().concat())?;
    }
    Ok(())
}

pub(super) fn decode(bytes: &[u8]) -> Result<Outline, OutlineError> {
    if bytes.len() > MAX_BYTES {
        return bad("longer than any model's");
    }
    let mut d = Decoder::new(bytes);
    array_of(&mut d, 5)?;
    if d.str()? != DOMAIN || d.u16()? != VERSION {
        return bad("of another kind or version");
    }
    let mut metadata: Vec<Field> = Vec::new();
    let mut size = 0_usize;
    for _ in 0..count(&mut d, MAX_FIELDS)? {
        array_of(&mut d, 3)?;
        let (key, ty, value) = (d.str()?, d.u32()?, d.bytes()?);
        size = size.saturating_add(key.len()).saturating_add(value.len());
        if key.is_empty() || key.len() > MAX_KEY || size > MAX_METADATA || key.starts_with("tokenizer.") {
            return bad("metadata that no model has");
        }
        metadata.push(Field { key: key.to_owned(), ty, value: value.to_vec() });
    }
    array_of(&mut d, 3)?;
    let len = d.u64()?;
    if len > MAX_TOKENIZER {
        return bad("a tokenizer larger than any model's");
    }
    let tokenizer = tree(&mut d, len)?;
    let mut tensors = Vec::new();
    for _ in 0..count(&mut d, MAX_TENSORS)? {
        array_of(&mut d, 5)?;
        let name = d.str()?;
        if name.is_empty() || name.len() > MAX_NAME {
            return bad("a tensor's name that no file can have");
        }
        let dtype = DType::from_id(d.u32()?);
        let mut dims = [0_usize; 4];
        let n = count(&mut d, 4)?;
        let n = usize::try_from(n).unwrap_or(usize::MAX);
        for dim in dims.iter_mut().take(n) {
            *dim = usize::try_from(d.u64()?).ok().filter(|dim| *dim > 0).map_or_else(|| bad("a dimension"), Ok)?;
        }
        let shape = dims.get(..n).and_then(Shape::new).map_or_else(|| bad("a tensor without dimensions"), Ok)?;
        let row = shape.last().map_or(0, |dim| *dim as u64);
        let whole = !matches!(dtype, DType::Unknown(_)) && row.is_multiple_of(dtype.block_len());
        let len = shape.elements().filter(|_| whole).and_then(|elements| dtype.bytes_for(elements));
        let Some(len) = len.filter(|len| *len > 0) else { return bad("a tensor of no type or length") };
        let tree = tree(&mut d, len)?;
        tensors.push(TensorInfo { name: name.to_owned(), dtype, shape, tree });
    }
    if d.position() != bytes.len() {
        return bad("bytes after its end");
    }
    let outline = Outline::new(metadata, tokenizer, tensors)?;
    // One form only: who stores it and who hashes it see the same.
    if encode(&outline) != bytes {
        return bad("not in its canonical form");
    }
    Ok(outline)
}

fn tree(d: &mut Decoder<'_>, bytes: u64) -> Result<Tree, OutlineError> {
    let hash = <[u8; 32]>::try_from(d.bytes()?).map_err(|_| OutlineError("a hash of another length".into()))?;
    let (values, rest) = d.bytes()?.as_chunks::<32>();
    let tree = if rest.is_empty() { Tree::from_parts(hash, bytes, values.to_vec()) } else { None };
    tree.ok_or_else(|| OutlineError("hashes of chunks that do not make up the whole".into()))
}

fn array_of(d: &mut Decoder<'_>, len: u64) -> Result<(), OutlineError> {
    if d.array()? == Some(len) { Ok(()) } else { bad("an array of another length") }
}

fn count(d: &mut Decoder<'_>, most: u64) -> Result<u64, OutlineError> {
    match d.array()? {
        Some(n) if n <= most => Ok(n),
        _ => bad("more entries than any model has"),
    }
}
