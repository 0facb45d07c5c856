//! The crate's errors: loading, running, and the backend's own.

use crate::gguf::{DType, GgufError};

/// Why a model or a span of it could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file is broken, or a key or tensor is missing.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A model family this engine has no definition of.
    #[error("architecture '{found}' is not supported; supported are {}", supported.join(", "))]
    UnsupportedArchitecture {
        /// `general.architecture` of the file.
        found: String,
        /// The families there are.
        supported: &'static [&'static str],
    },
    /// A hyper-parameter that makes no sense, or names something this engine does not compute.
    #[error("metadata key '{key}': {reason}")]
    Hyperparameter {
        /// The metadata key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor's shape is not the one that the hyper-parameters ask for.
    #[error("tensor '{tensor}' has shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// The tensor's name.
        tensor: String,
        /// Its shape, innermost dimension last.
        found: Vec<usize>,
        /// The shape that was expected.
        expected: Vec<usize>,
    },
    /// A tensor type that the backend cannot compute with.
    #[error("tensor '{tensor}' has type {dtype}, which this backend does not support; supported are {supported}")]
    UnsupportedType {
        /// The tensor's name.
        tensor: String,
        /// Its type.
        dtype: DType,
        /// The types that would do.
        supported: &'static str,
    },
    /// A tensor that the family does not have: computing without it would be another function.
    #[error("tensor '{tensor}' is not part of this model family as it is supported here")]
    UnknownTensor {
        /// The tensor's name.
        tensor: String,
    },
    /// A weight that is not a number.
    #[error("tensor '{tensor}' has a NaN or an infinity in row {row}; the file is damaged")]
    NotFinite {
        /// The tensor's name.
        tensor: String,
        /// The first such row.
        row: usize,
    },
    /// A span that the model does not have.
    #[error("layers {start}..{end} are not a span of a model with {layers} layers")]
    Span {
        /// First layer.
        start: usize,
        /// One past the last layer.
        end: usize,
        /// Layers of the model.
        layers: usize,
    },
    /// The backend refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Why a stage could not compute. Nothing has been added to the cache when one of these is returned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// A slice that is not a whole number of rows.
    #[error("{found} values are not rows of {width}")]
    Width {
        /// Values per row.
        width: usize,
        /// Values given.
        found: usize,
    },
    /// More rows at once than a stage takes.
    #[error("{found} rows at once, at most {max} are allowed")]
    TooManyRows {
        /// Rows given.
        found: usize,
        /// The bound, [`crate::MAX_ROWS`].
        max: usize,
    },
    /// A NaN or an infinity in what came in or went out.
    #[error("row {row}, column {column} is not a finite number")]
    NotFinite {
        /// Row of the first such value.
        row: usize,
        /// Its column.
        column: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    Token {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// Rows for another position than the cache's end.
    #[error("rows are for position {found}, the cache ends at {expected}")]
    Position {
        /// Rows in the cache.
        expected: usize,
        /// Position given.
        found: usize,
    },
    /// The session would grow past what its cache may hold: what it was opened for, or the model's context.
    #[error("the session would grow to {end} rows, its limit is {limit}")]
    Context {
        /// Length the session would have.
        end: usize,
        /// Most rows it may have.
        limit: usize,
    },
    /// The stage was loaded without the embedding or the head.
    #[error("this stage was loaded without the {part}")]
    NotLoaded {
        /// `embedding` or `head`.
        part: &'static str,
    },
    /// A cache that another stage made.
    #[error("the cache was made by another stage")]
    ForeignCache,
    /// The backend refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl StageError {
    /// The same error for another session of the same batch.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Backend(error) => Self::Backend(BackendError(error.0.clone())),
            Self::ForeignCache => Self::ForeignCache,
            other => Self::Backend(BackendError(other.to_string())),
        }
    }
}

/// A failure inside a backend: shapes that do not fit, or memory that the device does not have.
#[derive(Debug, thiserror::Error)]
#[error("backend: {0}")]
pub struct BackendError(pub String);
