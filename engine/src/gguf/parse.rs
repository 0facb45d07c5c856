//! The header: metadata keys and the tensor table, checked whole before anything is handed out.

use std::collections::HashMap;

use super::{
    DType, GgufError, MAGIC,
    cursor::Cursor,
    tensor::{MAX_DIMS, Piece, Shape},
    value::{Value, ValueType},
};

/// Data alignment when `general.alignment` is absent, from the GGUF specification.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;
/// The largest alignment believed: a page of the largest size in common use.
const MAX_ALIGNMENT: u64 = 1 << 16;
/// More metadata pairs than any file has; each takes memory of ours.
const MAX_KEYS: u64 = 1 << 16;
/// More tensors than any model has, each expert of each layer counted.
const MAX_TENSORS: u64 = 1 << 18;
/// ggml's bound on a tensor's name, in bytes.
const MAX_NAME: u64 = 64;
/// The specification's bound on a key, in bytes.
const MAX_KEY: u64 = 65_535;
/// The fewest bytes of one metadata pair: key length, type, a one-byte value.
const MIN_PAIR: u64 = 8 + 4 + 1;
/// The fewest bytes of one tensor record: name length, dimensions count, one dimension, type, offset.
const MIN_TENSOR: u64 = 8 + 4 + 8 + 4 + 8;

/// Where a metadata value stands.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) ty: ValueType,
    pub(super) offset: usize,
}

/// One record of the tensor table.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Shape,
    /// One piece; in a model of several files a stack of experts may have one for each of them.
    pub(super) pieces: Vec<Piece>,
}

/// A checked header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) alignment: u64,
    pub(super) keys: Vec<Key>,
    pub(super) key_index: HashMap<String, usize>,
    pub(super) tensors: Vec<Tensor>,
    pub(super) tensor_index: HashMap<String, usize>,
}

impl Header {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, GgufError> {
        Self::read(bytes, Some(bytes.len()))
    }

    /// A header whose tensors' bytes are elsewhere: they come out without pieces.
    pub(super) fn alone(bytes: &[u8]) -> Result<Self, GgufError> {
        Self::read(bytes, None)
    }

    /// `data` is the length of the file that the tensors lie in.
    fn read(bytes: &[u8], data: Option<usize>) -> Result<Self, GgufError> {
        let mut cursor = Cursor::at(bytes, 0);
        let magic = cursor.array::<4>("the magic number")?;
        if magic != MAGIC {
            return Err(GgufError::Magic { found: magic });
        }
        let version = cursor.u32("the version")?;
        if !(2..=3).contains(&version) {
            let big_endian = (2..=3).contains(&version.swap_bytes());
            return Err(GgufError::Version { found: version, big_endian });
        }
        let n_tensors = count(&mut cursor, "the tensor count", MIN_TENSOR, MAX_TENSORS)?;
        let n_keys = count(&mut cursor, "the metadata count", MIN_PAIR, MAX_KEYS)?;

        let (keys, key_index) = read_keys(&mut cursor, n_keys)?;
        let alignment = alignment(bytes, &keys, &key_index)?;
        let (tensors, tensor_index) = read_tensors(&mut cursor, n_tensors, alignment, data)?;
        check_overlap(&tensors)?;
        Ok(Self { version, alignment, keys, key_index, tensors, tensor_index })
    }
}

/// A count of records, refused when the rest of the file could not hold that many of `min_bytes` each, or when no model has
/// so many.
fn count(cursor: &mut Cursor<'_>, what: &str, min_bytes: u64, max: u64) -> Result<u64, GgufError> {
    let offset = cursor.offset();
    let n = cursor.u64(what)?;
    let needed = n.saturating_mul(min_bytes);
    if needed > cursor.left() {
        return Err(GgufError::Truncated { what: format!("{what} ({n})"), offset, needed, left: cursor.left() });
    }
    if n > max {
        return Err(invalid(what.to_owned(), offset, n, &format!("at most {max}")));
    }
    Ok(n)
}

type Keys = (Vec<Key>, HashMap<String, usize>);

fn read_keys(cursor: &mut Cursor<'_>, n: u64) -> Result<Keys, GgufError> {
    let mut keys = Vec::new();
    let mut index = HashMap::new();
    for i in 0..n {
        let at = cursor.offset();
        let name = name(cursor, &format!("the name of metadata key {i}"), MAX_KEY)?;
        let type_at = cursor.offset();
        let id = cursor.u32(&format!("the type of metadata key '{name}'"))?;
        let ty = ValueType::from_id(id)
            .ok_or_else(|| invalid(format!("the type of metadata key '{name}'"), type_at, id, "a type from 0 to 12"))?;
        let offset = cursor.offset();
        if ty == ValueType::Str {
            // The text is checked when it is asked for: a stray byte in a description must not stop a model.
            cursor.raw_string(&name)?;
        } else {
            Value::read(cursor, ty, &name)?;
        }
        if index.insert(name.clone(), keys.len()).is_some() {
            return Err(invalid(format!("metadata key '{name}'"), at, "a second time", "each key once"));
        }
        keys.push(Key { name, ty, offset });
    }
    Ok((keys, index))
}

fn alignment(bytes: &[u8], keys: &[Key], index: &HashMap<String, usize>) -> Result<u64, GgufError> {
    const KEY: &str = "general.alignment";
    let Some(key) = index.get(KEY).and_then(|i| keys.get(*i)) else { return Ok(DEFAULT_ALIGNMENT) };
    let mut cursor = Cursor::at(bytes.get(key.offset..).unwrap_or_default(), key.offset);
    let value = Value::read(&mut cursor, key.ty, KEY)?;
    match value.as_u64() {
        Some(n) if n.is_power_of_two() && n <= MAX_ALIGNMENT => Ok(n),
        _ => {
            Err(invalid(format!("metadata key '{KEY}'"), key.offset, value.describe(), "a power of two, at most 65536"))
        }
    }
}

type Tensors = (Vec<Tensor>, HashMap<String, usize>);

/// A tensor record before the data section's start is known.
struct Record {
    name: String,
    dtype: DType,
    shape: Shape,
    offset: u64,
    bytes: u64,
    at: usize,
}

fn read_tensors(cursor: &mut Cursor<'_>, n: u64, alignment: u64, data: Option<usize>) -> Result<Tensors, GgufError> {
    let mut records = Vec::new();
    for i in 0..n {
        records.push(read_record(cursor, i, alignment)?);
    }
    let data_start = (cursor.offset() as u64).checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    let mut tensors = Vec::with_capacity(records.len());
    let mut index = HashMap::with_capacity(records.len());
    for record in records {
        let pieces = match data {
            Some(len) => vec![piece(&record, data_start, len)?],
            None => Vec::new(),
        };
        let Record { name, dtype, shape, at, .. } = record;
        if index.insert(name.clone(), tensors.len()).is_some() {
            return Err(invalid(format!("tensor '{name}'"), at, "a second record", "each name once"));
        }
        tensors.push(Tensor { name, dtype, shape, pieces });
    }
    Ok((tensors, index))
}

/// Where a tensor's bytes lie in a file of `len` bytes.
fn piece(record: &Record, data_start: u64, len: usize) -> Result<Piece, GgufError> {
    let start = data_start.checked_add(record.offset);
    let end = start.and_then(|start| start.checked_add(record.bytes)).filter(|end| *end <= len as u64);
    let range = start.and_then(|s| usize::try_from(s).ok()).zip(end.and_then(|e| usize::try_from(e).ok()));
    let Some((start, end)) = range else {
        return Err(GgufError::TensorRange {
            tensor: record.name.clone(),
            offset: data_start.saturating_add(record.offset),
            needed: record.bytes,
            len: len as u64,
        });
    };
    Ok(Piece { store: 0, start, end })
}

fn read_record(cursor: &mut Cursor<'_>, i: u64, alignment: u64) -> Result<Record, GgufError> {
    let at = cursor.offset();
    let name = name(cursor, &format!("the name of tensor {i}"), MAX_NAME)?;
    let field = |what: &str| format!("{what} of tensor '{name}'");

    let dims_at = cursor.offset();
    let n_dims = cursor.u32(&field("the number of dimensions"))?;
    if !(1..=MAX_DIMS as u32).contains(&n_dims) {
        return Err(invalid(field("the number of dimensions"), dims_at, n_dims, "1 to 4"));
    }
    let mut shape = Vec::with_capacity(MAX_DIMS);
    let mut elements = 1u64;
    for _ in 0..n_dims {
        let dim_at = cursor.offset();
        let dim = cursor.u64(&field("a dimension"))?;
        let size = usize::try_from(dim).ok().filter(|size| *size > 0);
        let (Some(size), Some(product)) = (size, elements.checked_mul(dim)) else {
            return Err(invalid(field("a dimension"), dim_at, dim, "at least 1 and few enough elements to count"));
        };
        elements = product;
        shape.push(size);
    }
    // A type without a name here has a size that nobody knows: its tensor is taken as empty, and refused when used.
    let dtype = DType::from_id(cursor.u32(&field("the type"))?);
    // Blocks run along the first dimension in the file, the innermost one.
    let row = shape.first().map_or(0, |first| *first as u64);
    if !row.is_multiple_of(dtype.block_len()) {
        let expected = format!("a multiple of {}, the block of {dtype}", dtype.block_len());
        return Err(invalid(field("the innermost dimension"), dims_at, row, &expected));
    }
    let bytes = dtype.bytes_for(elements).ok_or_else(|| {
        invalid(field("the number of elements"), dims_at, elements, "few enough bytes to count in 64 bits")
    })?;
    let offset_at = cursor.offset();
    let offset = cursor.u64(&field("the offset"))?;
    if !offset.is_multiple_of(alignment) {
        return Err(invalid(field("the offset"), offset_at, offset, &format!("a multiple of {alignment}")));
    }
    shape.reverse();
    let shape =
        Shape::new(&shape).ok_or_else(|| invalid(field("the number of dimensions"), dims_at, n_dims, "1 to 4"))?;
    Ok(Record { name, dtype, shape, offset, bytes, at })
}

/// Refuses tensors that share bytes: sorted by start, each must begin where the one before has ended.
fn check_overlap(tensors: &[Tensor]) -> Result<(), GgufError> {
    let mut order: Vec<(&str, &Piece)> =
        tensors.iter().filter_map(|t| Some((t.name.as_str(), t.pieces.first()?))).collect();
    order.sort_by_key(|(_, piece)| (piece.start, piece.end));
    for ((first, before), (second, after)) in order.iter().zip(order.iter().skip(1)) {
        if after.start < before.end {
            return Err(GgufError::Overlap {
                first: (*first).to_owned(),
                end: before.end as u64,
                second: (*second).to_owned(),
                offset: after.start as u64,
            });
        }
    }
    Ok(())
}

fn name(cursor: &mut Cursor<'_>, what: &str, max: u64) -> Result<String, GgufError> {
    let at = cursor.offset();
    let text = cursor.string(what)?;
    if text.is_empty() || text.len() as u64 > max {
        return Err(invalid(what.to_owned(), at, format!("{} bytes", text.len()), &format!("1 to {max} bytes")));
    }
    Ok(text.to_owned())
}

fn invalid(what: String, offset: usize, found: impl ToString, expected: &str) -> GgufError {
    GgufError::Invalid { what, offset, found: found.to_string(), expected: expected.to_owned() }
}
