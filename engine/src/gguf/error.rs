//! What can be wrong with a GGUF file.

use std::path::PathBuf;

/// Why a GGUF file, a metadata key or a tensor could not be read.
///
/// Offsets are bytes from the start of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The operating system refused to open or map the file.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file that was asked for.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file does not start with `GGUF`.
    #[error("not a GGUF file: it starts with the bytes {found:02x?}, expected {:02x?} (\"GGUF\")", super::MAGIC)]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A version this reader does not know.
    #[error("GGUF version {found} is not supported, expected 2 or 3{}", if *.big_endian { " (the file is big-endian; convert it to little-endian)" } else { "" })]
    Version {
        /// The version in the file, as read in little-endian order.
        found: u32,
        /// The number makes sense only when its bytes are swapped.
        big_endian: bool,
    },
    /// The file ends inside something.
    #[error("truncated at offset {offset}: {what} needs {needed} bytes, {left} are left in the file")]
    Truncated {
        /// What was being read, with the key or tensor it belongs to.
        what: String,
        /// Where it starts.
        offset: usize,
        /// Bytes it needs.
        needed: u64,
        /// Bytes from the offset to the end of the file.
        left: u64,
    },
    /// A field holds a value that no valid file has.
    #[error("{what} at offset {offset}: found {found}, expected {expected}")]
    Invalid {
        /// The field, with the key or tensor it belongs to.
        what: String,
        /// Where it stands.
        offset: usize,
        /// What was found.
        found: String,
        /// What would have been right.
        expected: String,
    },
    /// A tensor's bytes do not lie where the file can hold them.
    #[error(
        "tensor '{tensor}': its data lies at offset {offset} and needs {needed} bytes, but the file has {len} bytes"
    )]
    TensorRange {
        /// The tensor's name.
        tensor: String,
        /// Absolute offset of its first byte.
        offset: u64,
        /// Bytes its shape and type need.
        needed: u64,
        /// The file's length.
        len: u64,
    },
    /// Two tensors claim the same bytes.
    #[error("tensor '{second}' at offset {offset} overlaps tensor '{first}', which ends at offset {end}")]
    Overlap {
        /// The tensor that comes first in the file.
        first: String,
        /// Where it ends.
        end: u64,
        /// The tensor that starts before that.
        second: String,
        /// Where it starts.
        offset: u64,
    },
    /// A metadata key that is needed is not there.
    #[error("metadata key '{key}' is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata key holds another type than asked for, or a number that does not fit.
    #[error("metadata key '{key}': found {found}, expected {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// The type or value in the file.
        found: String,
        /// The type asked for.
        expected: &'static str,
    },
    /// A part of a tensor that it does not have.
    #[error("tensor '{tensor}' has no {asked}")]
    Slice {
        /// The tensor's name.
        tensor: String,
        /// What was asked for.
        asked: String,
    },
    /// A tensor that is needed is not there.
    #[error("tensor '{tensor}' is missing")]
    MissingTensor {
        /// The tensor's name.
        tensor: String,
    },
}

impl GgufError {
    /// True when a key or tensor is absent, as opposed to broken.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::MissingKey { .. } | Self::MissingTensor { .. })
    }
}

/// Turns "the key or tensor is absent" into `None` and keeps every other error.
pub trait Optional<T> {
    /// `Ok(None)` when absent, else as it was.
    fn optional(self) -> Result<Option<T>, GgufError>;
}

impl<T> Optional<T> for Result<T, GgufError> {
    fn optional(self) -> Result<Option<T>, GgufError> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
