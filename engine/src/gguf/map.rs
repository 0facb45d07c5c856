//! The bytes of a model file. The crate's only unsafe code is the memory map in this file.

use std::{fs::File, path::Path};

use super::GgufError;

/// Where a model's bytes live.
#[derive(Debug)]
pub(super) enum Bytes {
    /// A memory-mapped file.
    Mapped(memmap2::Mmap),
    /// Embedded in the program.
    Static(&'static [u8]),
    /// In memory, for callers that made the file themselves.
    Owned(Vec<u8>),
}

impl Bytes {
    #[allow(unsafe_code, reason = "mapping a file is the one thing here that Rust cannot prove sound")]
    pub(super) fn map(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(io(std::io::Error::other("not a regular file")));
        }
        if meta.len() == 0 {
            // An empty file cannot be mapped; the parser says what is missing.
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the map is read-only and private to this process, and is only ever seen as `&[u8]`. What nobody can
        // rule out is another program changing the file while it is mapped: changed bytes read as other numbers (every
        // length is checked again on each access, and text is checked to be UTF-8 each time), and a file truncated
        // underneath ends the process with SIGBUS when the lost pages are touched. Model files are written once and
        // replaced by renaming, which leaves the mapped file alone.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Ok(Self::Mapped(map))
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}
