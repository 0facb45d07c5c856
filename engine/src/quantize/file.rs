//! A whole model from one mix of types into another.

use std::{
    io::{self, Write},
    path::Path,
};

use super::{Facts, Mix, can, rows};
use crate::{
    gguf::{
        DType, Gguf, TensorView,
        write::{Record, Sink, WriteError, Writer},
    },
    synth::QUANTIZATION_VERSION,
};

/// Values turned at a time: 64 MiB of floats.
const CHUNK: usize = 1 << 24;

/// Why a model cannot be quantised.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// It is quantised already: another rounding would only lose more.
    #[error("tensor '{tensor}' is {found} already, and another rounding would only lose more")]
    Already {
        /// The tensor's name.
        tensor: String,
        /// Its type.
        found: DType,
    },
    /// Something that a file cannot hold.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What a model will be as a file of some mix.
#[derive(Debug)]
pub struct Plan<'a> {
    source: &'a Gguf,
    writer: Writer,
}

impl<'a> Plan<'a> {
    /// Plans to write `source` in the types of `mix`.
    ///
    /// # Errors
    /// [`QuantizeError::Already`] for a model that is quantised, unless its types are those of the mix.
    pub fn new(source: &'a Gguf, mix: Mix) -> Result<Self, QuantizeError> {
        let mut writer = Writer::new();
        for (key, ty, bytes) in source.raw_values() {
            writer.set_raw(key, ty, bytes.to_vec());
        }
        // The writer aligns as the format does by default.
        writer.remove("general.alignment");
        writer.set("general.file_type", mix.file_type()).set("general.quantization_version", QUANTIZATION_VERSION);
        let facts = Facts::of(source);
        for tensor in source.tensors() {
            let dtype = mix.dtype_of(tensor.name, &tensor.shape, &facts).unwrap_or(tensor.dtype);
            if !can(tensor.dtype, dtype) {
                return Err(QuantizeError::Already { tensor: tensor.name.to_owned(), found: tensor.dtype });
            }
            writer.tensor(tensor.name, dtype, &tensor.shape)?;
        }
        Ok(Self { source, writer })
    }

    /// Bytes that the file will have.
    pub fn size(&self) -> u64 {
        self.writer.size().unwrap_or(u64::MAX)
    }

    /// Writes the file `path`, telling `progress` how many bytes of tensors there are so far; its error ends the work.
    ///
    /// # Errors
    /// [`WriteError`]; nothing is left of a file that could not be finished.
    pub fn write_file(
        &self,
        path: &Path,
        overwrite: bool,
        mut progress: impl FnMut(u64) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        let mut done = 0;
        self.writer.write_file(path, overwrite, |record, sink| self.tensor(record, sink, &mut done, &mut progress))
    }

    /// Writes the file's bytes to `out`.
    ///
    /// # Errors
    /// Those of `out` and of `progress`; one that names the tensor whose weights cannot be stored.
    pub fn write_to(&self, out: &mut dyn Write, mut progress: impl FnMut(u64) -> io::Result<()>) -> io::Result<()> {
        let mut done = 0;
        self.writer.write_to(out, |record, sink| self.tensor(record, sink, &mut done, &mut progress))
    }

    fn tensor(
        &self,
        record: &Record,
        sink: &mut Sink<'_>,
        done: &mut u64,
        progress: &mut impl FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let tensor = self.source.tensor(&record.name).map_err(io::Error::other)?;
        if let Some(row) = tensor.not_finite() {
            return Err(unstorable(record, &format!("there is a NaN or an infinity in row {row}")));
        }
        let inputs = record.shape.last().copied().unwrap_or(1).max(1);
        let bytes = |dtype: DType| dtype.bytes_for(inputs as u64).and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
        let (from, to) = (bytes(tensor.dtype), bytes(record.dtype));
        let together = (CHUNK / inputs).max(1);
        let mut out = Vec::new();
        for data in tensor.pieces().flat_map(|piece| piece.chunks(from.saturating_mul(together).max(1))) {
            out.resize(data.len() / from.max(1) * to, 0);
            rows(tensor.dtype, record.dtype, inputs, data, &mut out);
            let stored = TensorView::new(&record.name, record.dtype, &[data.len() / from.max(1), inputs], &out);
            if record.dtype != tensor.dtype && stored.is_ok_and(|stored| stored.not_finite().is_some()) {
                return Err(unstorable(record, &format!("its weights are too large for {}", record.dtype)));
            }
            sink.write_all(&out)?;
            *done = done.saturating_add(out.len() as u64);
            progress(*done)?;
        }
        tensor.forget_pages();
        Ok(())
    }
}

fn unstorable(record: &Record, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("tensor '{}' cannot be stored: {why}", record.name))
}

impl Facts {
    /// What a model's metadata says; a missing number is taken as one that changes no type.
    pub fn of(gguf: &Gguf) -> Self {
        let arch = gguf.get_str("general.architecture").unwrap_or_default();
        let number =
            |key: &str| gguf.get_u32(&format!("{arch}.{key}")).ok().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let heads = number("attention.head_count");
        Self {
            layers: number("block_count"),
            heads_per_kv: heads.checked_div(number("attention.head_count_kv")).unwrap_or(1),
            experts: number("expert_count"),
            tied: gguf.tensor("output.weight").is_err(),
        }
    }
}
