//! Writing GGUF files, version 3, little-endian.
//!
//! Metadata and the tensor table first, then each tensor's bytes, streamed in the table's order. A file appears under
//! its name only when it is whole: it is written beside it and moved there at the end, and taken away when something
//! fails on the way (a full disk, say).

use std::{
    collections::HashSet,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use super::{DType, MAGIC, Shape, ValueType, parse::DEFAULT_ALIGNMENT};

/// The version written.
const VERSION: u32 = 3;

/// Why a file was not written. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// There is a file of that name.
    #[error("{} exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused, or the disk is full.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A key or a tensor that no file can hold.
    #[error("cannot write '{name}': {reason}")]
    Content {
        /// The key or tensor.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// What a tensor's bytes are written to: exactly as many as its shape and type need.
pub struct Sink<'a> {
    out: &'a mut dyn Write,
    left: u64,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other("more bytes than the tensor's shape and type need"));
        }
        let written = self.out.write(bytes)?;
        self.left = self.left.saturating_sub(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A tensor of the table.
#[derive(Debug, Clone)]
pub struct Record {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, innermost last.
    pub shape: Shape,
    /// Bytes of its elements.
    pub bytes: u64,
}

/// A value that can stand under a key.
pub trait Encode {
    /// The value's type.
    const TYPE: ValueType;
    /// Appends the value as it stands in a file.
    fn encode(&self, out: &mut Vec<u8>);
}

macro_rules! numbers {
    ($($number:ty: $ty:ident),*) => {$(
        impl Encode for $number {
            const TYPE: ValueType = ValueType::$ty;
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        }
    )*};
}
numbers!(u8: U8, i8: I8, u16: U16, i16: I16, u32: U32, i32: I32, u64: U64, i64: I64, f32: F32, f64: F64);

impl Encode for bool {
    const TYPE: ValueType = ValueType::Bool;
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Encode for &str {
    const TYPE: ValueType = ValueType::Str;
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend((self.len() as u64).to_le_bytes());
        out.extend(self.as_bytes());
    }
}

impl Encode for String {
    const TYPE: ValueType = ValueType::Str;
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_str().encode(out);
    }
}

impl<T: Encode> Encode for &[T] {
    const TYPE: ValueType = ValueType::Array;
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend((T::TYPE as u32).to_le_bytes());
        out.extend((self.len() as u64).to_le_bytes());
        self.iter().for_each(|value| value.encode(out));
    }
}

/// A file to be written.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    /// Key, type's number, encoded value.
    metadata: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<Record>,
}

impl Writer {
    /// A file without anything in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key; a value it had is replaced in its place.
    pub fn set(&mut self, key: &str, value: impl Encode) -> &mut Self {
        fn type_of<T: Encode>(_: &T) -> u32 {
            T::TYPE as u32
        }
        let mut bytes = Vec::new();
        value.encode(&mut bytes);
        self.set_raw(key, type_of(&value), bytes)
    }

    /// Sets a key to a value as it stands in another file: its type's number and its bytes.
    pub(crate) fn set_raw(&mut self, key: &str, ty: u32, bytes: Vec<u8>) -> &mut Self {
        match self.metadata.iter_mut().find(|(known, ..)| known == key) {
            Some(entry) => (entry.1, entry.2) = (ty, bytes),
            None => self.metadata.push((key.to_owned(), ty, bytes)),
        }
        self
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(known, ..)| known != key);
        self
    }

    /// Adds a tensor to the table; dimensions innermost last.
    ///
    /// # Errors
    /// [`WriteError::Content`] for a shape or a type that a file cannot have.
    pub fn tensor(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Result<&mut Self, WriteError> {
        let bad = |reason: &str| WriteError::Content { name: name.to_owned(), reason: reason.to_owned() };
        let shape = Shape::new(shape).ok_or_else(|| bad("a tensor has one to four dimensions"))?;
        let row = shape.last().map_or(0, |dim| *dim as u64);
        let bytes = shape.elements().filter(|_| row.is_multiple_of(dtype.block_len()) && dtype.block_bytes() > 0);
        let bytes = bytes.and_then(|elements| dtype.bytes_for(elements)).filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or_else(|| bad(&format!("{shape:?} cannot be stored as {dtype}")))?;
        self.tensors.push(Record { name: name.to_owned(), dtype, shape, bytes });
        Ok(self)
    }

    /// The tensors so far, in order.
    pub fn tensors(&self) -> &[Record] {
        &self.tensors
    }

    /// Bytes that the whole file will have, or `None` when that is too many to count.
    pub fn size(&self) -> Option<u64> {
        let header = self.header().ok()?.len() as u64;
        self.tensors.iter().try_fold(header, |at, tensor| pad(at).checked_add(tensor.bytes)).map(pad)
    }

    /// Where the next tensor begins when one of so many bytes begins at `at`.
    pub(crate) fn next(at: u64, bytes: u64) -> u64 {
        pad(at.saturating_add(bytes))
    }

    /// Everything before the tensors' bytes, padded to where they begin.
    ///
    /// # Errors
    /// [`WriteError::Content`] when a name is there twice, or the offsets are too large to count.
    pub fn header(&self) -> Result<Vec<u8>, WriteError> {
        let mut out = MAGIC.to_vec();
        VERSION.encode(&mut out);
        (self.tensors.len() as u64).encode(&mut out);
        (self.metadata.len() as u64).encode(&mut out);
        for (key, ty, value) in &self.metadata {
            key.encode(&mut out);
            ty.encode(&mut out);
            out.extend(value);
        }
        let mut offset = 0u64;
        let mut names = HashSet::new();
        for tensor in &self.tensors {
            let bad = |reason: &str| WriteError::Content { name: tensor.name.clone(), reason: reason.to_owned() };
            if !names.insert(&tensor.name) {
                return Err(bad("there are two tensors of this name"));
            }
            tensor.name.encode(&mut out);
            u32::try_from(tensor.shape.len()).unwrap_or(u32::MAX).encode(&mut out);
            tensor.shape.iter().rev().for_each(|dim| (*dim as u64).encode(&mut out));
            tensor.dtype.id().encode(&mut out);
            offset.encode(&mut out);
            let next = offset.checked_add(tensor.bytes).and_then(|end| end.checked_next_multiple_of(DEFAULT_ALIGNMENT));
            offset = next.ok_or_else(|| bad("the file would be too large to count"))?;
        }
        out.resize(usize::try_from(pad(out.len() as u64)).unwrap_or(out.len()), 0);
        Ok(out)
    }

    /// Writes the whole file to `out`, asking for each tensor's bytes in the table's order.
    ///
    /// # Errors
    /// `out`'s or `data`'s own; an error when `data` wrote another number of bytes than the tensor has; one of kind
    /// `InvalidInput` for what [`Writer::header`] refuses.
    pub fn write_to(
        &self,
        out: &mut dyn Write,
        mut data: impl FnMut(&Record, &mut Sink<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        const ZEROS: [u8; DEFAULT_ALIGNMENT as usize] = [0; DEFAULT_ALIGNMENT as usize];
        let header = self.header().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        out.write_all(&header)?;
        for tensor in &self.tensors {
            let mut sink = Sink { out, left: tensor.bytes };
            data(tensor, &mut sink)?;
            if sink.left > 0 {
                return Err(io::Error::other(format!("tensor '{}' lacks {} bytes", tensor.name, sink.left)));
            }
            let padding = usize::try_from(pad(tensor.bytes).saturating_sub(tensor.bytes)).unwrap_or(0);
            out.write_all(ZEROS.get(..padding).unwrap_or_default())?;
        }
        out.flush()
    }

    /// Writes the file `path`, asking for each tensor's bytes in the table's order. A file of that name is replaced only
    /// when `overwrite` says so, and only by a whole one.
    ///
    /// # Errors
    /// [`WriteError`]; nothing is left of a file that could not be finished.
    pub fn write_file(
        &self,
        path: &Path,
        overwrite: bool,
        data: impl FnMut(&Record, &mut Sink<'_>) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        let io = |source| WriteError::Io { path: path.to_owned(), source };
        if !overwrite && path.symlink_metadata().is_ok() {
            return Err(WriteError::Exists { path: path.to_owned() });
        }
        self.header()?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".quelea-").suffix(".partial");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            // What a file made the plain way would get; the umask takes its part.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(folder).map_err(io)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        self.write_to(&mut out, data).map_err(io)?;
        let file = out.into_inner().map_err(|error| io(error.into_error()))?;
        file.as_file().sync_all().map_err(io)?;
        let moved = if overwrite { file.persist(path) } else { file.persist_noclobber(path) };
        match moved {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                Err(WriteError::Exists { path: path.to_owned() })
            }
            Err(error) => Err(io(error.error)),
        }
    }
}

/// `at` rounded up to where a tensor may begin.
fn pad(at: u64) -> u64 {
    at.checked_next_multiple_of(DEFAULT_ALIGNMENT).unwrap_or(u64::MAX)
}
