//! A reader of GGUF files, version 2 and 3, little-endian.
//!
//! The file is memory-mapped: opening a model of any size reads its header only, and a tensor's bytes are paged in
//! when they are used. Nothing in the file is believed: every count, length, offset and size is checked against the
//! file's length with checked arithmetic before it is used or anything is allocated for it, and each refusal names
//! the key or tensor, the offset and what was expected. A file without tensors (a vocabulary) is a valid file.

// Files come from anywhere.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod cursor;
mod dtype;
mod error;
mod finite;
mod map;
mod parse;
mod tensor;
mod value;
pub mod write;

use std::{path::Path, sync::Arc};

use cursor::Cursor;
pub use dtype::DType;
pub use error::{GgufError, Optional};
pub(crate) use map::Store;
use parse::{Header, Key, Tensor};
pub(crate) use tensor::Piece;
pub use tensor::{Shape, TensorHandle, TensorView};
pub use value::{Array, Value, ValueType};

/// The first four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// An open GGUF file. Cloning shares the map.
#[derive(Clone, Debug)]
pub struct Gguf(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The file itself comes first: it holds the header. A model of several files has more.
    stores: Vec<Store>,
    header: Header,
}

impl Gguf {
    /// Maps and checks the file at `path`.
    ///
    /// # Errors
    /// [`GgufError`] when it cannot be read or is not a well-formed GGUF file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        Self::new(Store::map(path.as_ref())?)
    }

    /// A model embedded in the program.
    ///
    /// # Errors
    /// [`GgufError`] when the bytes are not a well-formed GGUF file.
    pub fn from_static(bytes: &'static [u8]) -> Result<Self, GgufError> {
        Self::new(Store::Static(bytes))
    }

    /// A model held in memory.
    ///
    /// # Errors
    /// [`GgufError`] when the bytes are not a well-formed GGUF file.
    pub fn from_vec(bytes: Vec<u8>) -> Result<Self, GgufError> {
        Self::new(Store::Owned(bytes))
    }

    fn new(store: Store) -> Result<Self, GgufError> {
        let header = Header::parse(store.as_slice())?;
        Ok(Self(Arc::new(Inner { stores: vec![store], header })))
    }

    /// A header alone: metadata and the tensors' names and shapes, but none of their bytes.
    pub(crate) fn bare(header: Vec<u8>) -> Result<Self, GgufError> {
        let parsed = Header::alone(&header)?;
        Ok(Self(Arc::new(Inner { stores: vec![Store::Owned(header)], header: parsed })))
    }

    /// A model put together: `header` is a file's beginning with no tensor data after it, `pieces` says for each of its
    /// tensors where the bytes are, by the stores' numbers: 1 is the first of `stores`.
    pub(crate) fn assemble(header: Vec<u8>, stores: Vec<Store>, pieces: Vec<Vec<Piece>>) -> Result<Self, GgufError> {
        let mut parsed = Header::alone(&header)?;
        let stores: Vec<Store> = std::iter::once(Store::Owned(header)).chain(stores).collect();
        for (tensor, pieces) in parsed.tensors.iter_mut().zip(pieces) {
            let len = |piece: &Piece| stores.get(piece.store)?.as_slice().get(piece.start..piece.end).map(<[u8]>::len);
            let found: Option<usize> = pieces.iter().map(len).sum();
            let needed = tensor.shape.elements().and_then(|elements| tensor.dtype.bytes_for(elements));
            if found.map(|found| found as u64) != needed {
                let asked = format!("{} bytes in its files", needed.unwrap_or(0));
                return Err(GgufError::Slice { tensor: tensor.name.clone(), asked });
            }
            tensor.pieces = pieces;
        }
        Ok(Self(Arc::new(Inner { stores, header: parsed })))
    }

    /// The file that `file` is open on.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub(crate) fn from_file(file: &std::fs::File) -> Result<Self, GgufError> {
        let path = || std::path::PathBuf::from("a temporary file");
        Self::new(Store::map_file(file).map_err(|source| GgufError::Io { path: path(), source })?)
    }

    /// The bytes of the file that holds the header.
    fn bytes(&self) -> &[u8] {
        self.0.stores.first().map(Store::as_slice).unwrap_or_default()
    }

    /// The file's format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.0.header.version
    }

    /// The alignment of tensor data, in bytes.
    pub fn alignment(&self) -> u64 {
        self.0.header.alignment
    }

    /// The size in bytes, of all files where the model has several.
    pub fn size(&self) -> u64 {
        self.0.stores.iter().map(|store| store.as_slice().len() as u64).sum()
    }

    /// All metadata in file order. A value that cannot be read (text that is not UTF-8) comes as its error.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Result<Value<'_>, GgufError>)> {
        self.0.header.keys.iter().map(|key| (key.name.as_str(), self.value(key)))
    }

    /// True when the key is there.
    pub fn contains(&self, key: &str) -> bool {
        self.0.header.key_index.contains_key(key)
    }

    /// The value under `key`.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`]; [`GgufError::Invalid`] for text that is not UTF-8.
    pub fn get(&self, key: &str) -> Result<Value<'_>, GgufError> {
        let header = &self.0.header;
        let found = header.key_index.get(key).and_then(|i| header.keys.get(*i));
        self.value(found.ok_or_else(|| GgufError::MissingKey { key: key.to_owned() })?)
    }

    fn value(&self, key: &Key) -> Result<Value<'_>, GgufError> {
        let rest = self.bytes().get(key.offset..).unwrap_or_default();
        Value::read(&mut Cursor::at(rest, key.offset), key.ty, &key.name)
    }

    fn get_as<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<T, GgufError> {
        let value = self.get(key)?;
        convert(value).ok_or_else(|| wrong_type(key, &value, expected))
    }

    /// The string under `key`.
    ///
    /// # Errors
    /// As [`Gguf::get`], or [`GgufError::WrongType`].
    pub fn get_str(&self, key: &str) -> Result<&str, GgufError> {
        self.get_as(key, "a string", |v| if let Value::Str(s) = v { Some(s) } else { None })
    }

    /// The whole number under `key`, of whichever width the file uses.
    ///
    /// # Errors
    /// As [`Gguf::get`], or [`GgufError::WrongType`].
    pub fn get_u32(&self, key: &str) -> Result<u32, GgufError> {
        self.get_as(key, "an unsigned 32-bit number", |v| v.as_u64().and_then(|n| n.try_into().ok()))
    }

    /// The whole number under `key`, of whichever width the file uses.
    ///
    /// # Errors
    /// As [`Gguf::get`], or [`GgufError::WrongType`].
    pub fn get_u64(&self, key: &str) -> Result<u64, GgufError> {
        self.get_as(key, "an unsigned number", |v| v.as_u64())
    }

    /// The float under `key`.
    ///
    /// # Errors
    /// As [`Gguf::get`], or [`GgufError::WrongType`].
    pub fn get_f32(&self, key: &str) -> Result<f32, GgufError> {
        self.get_as(key, "a float", |v| v.as_f32())
    }

    /// The boolean under `key`.
    ///
    /// # Errors
    /// As [`Gguf::get`], or [`GgufError::WrongType`].
    pub fn get_bool(&self, key: &str) -> Result<bool, GgufError> {
        self.get_as(key, "a boolean", |v| if let Value::Bool(b) = v { Some(b) } else { None })
    }

    fn array_as<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Vec<T>, GgufError> {
        let value = self.get(key)?;
        let Value::Array(array) = value else { return Err(wrong_type(key, &value, expected)) };
        let mut out = Vec::new();
        for element in array.values(key) {
            let element = element?;
            out.push(convert(element).ok_or_else(|| wrong_type(key, &element, expected))?);
        }
        Ok(out)
    }

    /// The strings under `key`, borrowed from the file.
    ///
    /// # Errors
    /// As [`Gguf::get`], or [`GgufError::WrongType`].
    pub fn str_array(&self, key: &str) -> Result<Vec<&str>, GgufError> {
        self.array_as(key, "an array of strings", |v| if let Value::Str(s) = v { Some(s) } else { None })
    }

    /// The whole numbers under `key`, of whichever width the file uses.
    ///
    /// # Errors
    /// As [`Gguf::get`], or [`GgufError::WrongType`].
    pub fn i32_array(&self, key: &str) -> Result<Vec<i32>, GgufError> {
        self.array_as(key, "an array of signed 32-bit numbers", |v| v.as_i64().and_then(|n| n.try_into().ok()))
    }

    /// The whole numbers under `key`, of whichever width the file uses.
    ///
    /// # Errors
    /// As [`Gguf::get`], or [`GgufError::WrongType`].
    pub fn u32_array(&self, key: &str) -> Result<Vec<u32>, GgufError> {
        self.array_as(key, "an array of unsigned 32-bit numbers", |v| v.as_u64().and_then(|n| n.try_into().ok()))
    }

    /// The floats under `key`.
    ///
    /// # Errors
    /// As [`Gguf::get`], or [`GgufError::WrongType`].
    pub fn f32_array(&self, key: &str) -> Result<Vec<f32>, GgufError> {
        self.array_as(key, "an array of floats", |v| v.as_f32())
    }

    /// The booleans under `key`.
    ///
    /// # Errors
    /// As [`Gguf::get`], or [`GgufError::WrongType`].
    pub fn bool_array(&self, key: &str) -> Result<Vec<bool>, GgufError> {
        self.array_as(key, "an array of booleans", |v| if let Value::Bool(b) = v { Some(b) } else { None })
    }

    /// A metadata value as it stands in the file: its type's number and its bytes. For hashing.
    pub(crate) fn raw_values(&self) -> impl Iterator<Item = (&str, u32, &[u8])> {
        self.0.header.keys.iter().map(|key| {
            let rest = self.bytes().get(key.offset..).unwrap_or_default();
            let start = Cursor::at(rest, key.offset);
            let mut end = start;
            // Both were walked when the file was opened.
            let walked = match key.ty {
                ValueType::Str => end.raw_string(&key.name).is_ok(),
                ty => Value::read(&mut end, ty, &key.name).is_ok(),
            };
            (key.name.as_str(), key.ty as u32, if walked { start.until(&end) } else { &[] })
        })
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`GgufError::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, GgufError> {
        self.index_of(name).map(|index| self.view_at(index))
    }

    /// The tensor called `name`, for later: the handle keeps the file open.
    ///
    /// # Errors
    /// [`GgufError::MissingTensor`].
    pub fn handle(&self, name: &str) -> Result<TensorHandle, GgufError> {
        Ok(TensorHandle { index: self.index_of(name)?, gguf: self.clone() })
    }

    /// All tensors in file order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.0.header.tensors.iter().map(|tensor| self.view(tensor))
    }

    fn index_of(&self, name: &str) -> Result<usize, GgufError> {
        let found = self.0.header.tensor_index.get(name).copied();
        found.ok_or_else(|| GgufError::MissingTensor { tensor: name.to_owned() })
    }

    /// The tensor at a place of the table; an empty one where there is none, which no index of ours says.
    fn view_at(&self, index: usize) -> TensorView<'_> {
        match self.0.header.tensors.get(index) {
            Some(tensor) => self.view(tensor),
            None => TensorView::at_home("", DType::F32, Shape::matrix(0, 0), &[], &[]),
        }
    }

    fn view<'a>(&'a self, tensor: &'a Tensor) -> TensorView<'a> {
        TensorView::at_home(&tensor.name, tensor.dtype, tensor.shape, &self.0.stores, &tensor.pieces)
    }
}

fn wrong_type(key: &str, value: &Value<'_>, expected: &'static str) -> GgufError {
    GgufError::WrongType { key: key.to_owned(), found: value.describe(), expected }
}
