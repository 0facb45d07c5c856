//! The bytes of a model file. The crate's only unsafe code is about the memory maps in this file.

use std::{fs::File, path::Path};

use super::GgufError;

/// Where a model's bytes live.
#[derive(Debug)]
pub(crate) enum Store {
    /// A memory-mapped file.
    Mapped(memmap2::Mmap),
    /// Embedded in the program.
    Static(&'static [u8]),
    /// In memory, for callers that made the file themselves.
    Owned(Vec<u8>),
}

impl Store {
    /// Maps the file at `path`.
    pub(crate) fn map(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io { path: path.to_owned(), source };
        // Opening a pipe waits until somebody writes to it.
        Self::refuse_what_is_no_file(&std::fs::metadata(path).map_err(io)?).map_err(io)?;
        let file = File::open(path).map_err(io)?;
        Self::map_file(&file).map_err(io)
    }

    fn refuse_what_is_no_file(meta: &std::fs::Metadata) -> std::io::Result<()> {
        if meta.is_file() { Ok(()) } else { Err(std::io::Error::other("not a regular file")) }
    }

    /// Maps an open file.
    #[allow(unsafe_code, reason = "mapping a file is something that Rust cannot prove sound")]
    pub(crate) fn map_file(file: &File) -> std::io::Result<Self> {
        let meta = file.metadata()?;
        Self::refuse_what_is_no_file(&meta)?;
        if meta.len() == 0 {
            // An empty file cannot be mapped; the parser says what is missing.
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the map is read-only and private to this process, and is only ever seen as `&[u8]`. What nobody can
        // rule out is another program changing the file while it is mapped: changed bytes read as other numbers (every
        // length is checked again on each access, and text is checked to be UTF-8 each time), and a file truncated
        // underneath ends the process with SIGBUS when the lost pages are touched. Model files are written once and
        // replaced by renaming, which leaves the mapped file alone.
        let map = unsafe { memmap2::Mmap::map(file) }?;
        Ok(Self::Mapped(map))
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }

    /// Lets go of the pages that lie whole in `start..start + len` of a mapped file.
    #[allow(unsafe_code, reason = "dropping pages under a shared slice is something that Rust cannot prove sound")]
    pub(super) fn forget(&self, start: usize, len: usize) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            // The largest page in common use: aligned to it, a range is aligned to every smaller one. The map itself
            // begins at a page.
            const PAGE: usize = 1 << 16;
            let end = start.saturating_add(len).min(map.len());
            let Some(first) = start.checked_next_multiple_of(PAGE) else { return };
            let last = end & !(PAGE.saturating_sub(1));
            if first < last {
                // SAFETY: the pages belong to a read-only map of a file, so they cannot be dirty: when they are touched
                // again they are read from the file and hold the same bytes as before. Slices into them stay valid.
                let told = unsafe {
                    map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, first, last.saturating_sub(first))
                };
                // Advice: where it is not taken, the pages stay until they are needed elsewhere.
                drop(told);
            }
        }
        #[cfg(not(unix))]
        let _ = (start, len);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_refused_without_waiting_for_a_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let error = Store::map(&path).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}
