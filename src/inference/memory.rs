//! Whether a model fits in the memory of this machine, asked before it is loaded.

mod groups;
mod limits;

use std::{fs, path::Path};

use quelea_engine::{Gguf, Hparams, Span, outline::Place};
use quelea_wire::ErrorCode;

use super::{models::unusable, types::InferError};

/// What repacking and the rest of the process take beside the weights, as a share of them: one part in this many.
const OVERHEAD: u64 = 10;

/// Length of a session that there must be room for, in rows, unless the model's context is shorter.
pub(crate) const ROWS: u32 = 2048;

/// What a stage will take, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Needed {
    pub(crate) weights: u64,
    /// Keys and values.
    pub(crate) kv: u64,
}

impl Needed {
    /// What a span of a model takes, with the keys and values of `rows` rows, or of its whole context if that is less.
    /// Only the header is looked at.
    pub(crate) fn of(gguf: &Gguf, hparams: &Hparams, span: &Span, rows: u64) -> Self {
        // Embedding and head are one where there is no matrix for the head alone.
        let tied = gguf.tensor("output.weight").is_err();
        let taken = |place| match place {
            Place::Layer(layer) => span.layers.contains(&layer),
            Place::Embedding => span.embedding || (span.head && tied),
            Place::Head => span.head,
            Place::Shared => false,
        };
        let weights = gguf.tensors().filter(|tensor| taken(Place::of(tensor.name))).map(|tensor| tensor.bytes());
        let rows = rows.min(hparams.context_length as u64);
        let row = hparams.kv_bytes_per_row_per_layer().saturating_mul(span.layers.len() as u64);
        Self { weights: weights.fold(0, u64::saturating_add), kv: row.saturating_mul(rows) }
    }

    /// All of it, with [`OVERHEAD`].
    pub(crate) fn total(&self) -> u64 {
        self.weights.saturating_add(self.weights / OVERHEAD).saturating_add(self.kv)
    }
}

/// Refuses a whole model that does not fit, as [`check`] does, with sessions of so many rows.
pub(crate) fn check_whole(what: &str, gguf: &Gguf, rows: u64) -> Result<(), InferError> {
    let hparams = Hparams::from_gguf(gguf).map_err(|e| unusable(what, &e))?;
    check(what, Needed::of(gguf, &hparams, &Span::whole(hparams.n_layers), rows))
}

/// Refuses what does not fit in the memory that is free now, with the figures. Where the system does not say how much
/// that is, everything fits.
pub(crate) fn check(what: &str, needed: Needed) -> Result<(), InferError> {
    available().map_or(Ok(()), |free| fits(what, needed, free))
}

fn fits(what: &str, needed: Needed, free: u64) -> Result<(), InferError> {
    let total = needed.total();
    if total <= free {
        return Ok(());
    }
    let message = format!(
        "{what} does not fit in memory: {} MiB of weights and {} MiB of keys and values need {} MiB in all, {} MiB are free",
        needed.weights >> 20,
        needed.kv >> 20,
        total.div_ceil(1 << 20),
        free >> 20
    );
    Err(InferError::new(ErrorCode::NoMemory, message)
        .hint("serve fewer --layers, use a smaller quantisation, or free some memory"))
}

/// Bytes that this process may still take: the least of what the system has, and its control groups and its own limits
/// leave.
pub(crate) fn available() -> Option<u64> {
    available_under(Path::new("/"))
}

fn available_under(root: &Path) -> Option<u64> {
    let system = fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| field(&text, "MemAvailable:"))?;
    let system = system.saturating_mul(1 << 10);
    [Some(system), groups::left(root), limits::left(root)].into_iter().flatten().min()
}

/// The number after `name` on a line of its own.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '\t'])))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::models::{DEMO, ModelFile};

    #[test]
    fn what_does_not_fit_is_refused_with_the_figures() {
        let needed = Needed { weights: 1000 << 20, kv: 24 << 20 };
        fits("layers 0..8", needed, 1124 << 20).unwrap();
        let error = fits("layers 0..8", needed, 1123 << 20).unwrap_err();
        assert_eq!(error.code, ErrorCode::NoMemory.to_string());
        assert_eq!(
            error.message,
            "layers 0..8 does not fit in memory: 1000 MiB of weights and 24 MiB of keys and values need 1124 MiB in all, \
             1123 MiB are free"
        );
        assert!(fits("all", Needed { weights: u64::MAX, kv: u64::MAX }, u64::MAX - 1).is_err());
    }

    #[test]
    fn what_is_needed_stands_in_the_header() {
        let file = ModelFile::open(DEMO).unwrap();
        let needed = |span: &Span, rows| Needed::of(&file.gguf, &file.manifest.hparams, span, rows);
        let manifest = &file.manifest;
        let layers = |range: std::ops::Range<usize>| manifest.layers[range].iter().map(|part| part.bytes).sum::<u64>();
        let row = manifest.kv_bytes_per_row_per_layer();
        let two = needed(&Span::layers(1..3), 10);
        assert_eq!((two.weights, two.kv), (layers(1..3), 2 * 10 * row));
        let tied = file.gguf.tensor("output.weight").is_err();
        let ends = manifest.head.bytes + if tied { 0 } else { manifest.embedding.bytes };
        assert_eq!(needed(&Span::ends(), 10).weights, ends);
        let whole = needed(&Span::whole(manifest.n_layers), u64::MAX);
        assert_eq!(whole.weights, layers(0..manifest.n_layers) + ends);
        assert_eq!(whole.kv, manifest.n_layers as u64 * row * manifest.context_length as u64);
    }

    #[test]
    fn the_system_is_asked() {
        assert_eq!(field("MemTotal: 3 kB\nMemAvailable:   1024 kB\n", "MemAvailable:"), Some(1024));
        assert_eq!(field("inactive_filex 3\ninactive_file 4096\n", "inactive_file"), Some(4096));
        #[cfg(target_os = "linux")]
        assert!(available().unwrap() > 1 << 20);
        let root = tempfile::tempdir().unwrap();
        assert_eq!(available_under(root.path()), None, "a system that does not say");
    }
}
