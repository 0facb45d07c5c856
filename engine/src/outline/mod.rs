//! A model without its weights: what each tensor is, and the hashes by which its bytes are known when they come from elsewhere.
//!
//! Who holds the outline and the tokenizer can make the model's GGUF file with nothing in it but the header ([`Outline::file`]),
//! and fill in the tensors of a span as they come, in chunks of 1 MiB that are checked one by one. Nothing in an outline needs to
//! be believed: [`Outline::manifest`] computes the model's id from it, and the id holds every hash and every length by which
//! chunks are checked.
//!
//! Chunks are numbered through the whole model: the tokenizer's first, then those of each tensor, in the order of [`Place`] and
//! the tensors' names. A chunk never crosses a tensor's end.

// Outlines come from peers.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod codec;
mod tree;

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

pub use self::{
    codec::{MAX_BYTES, OutlineError},
    tree::{CHUNK, Tree},
};
use crate::{
    LoadError, Manifest,
    gguf::{
        DType, Gguf, GgufError, Shape, TensorView,
        write::{WriteError, Writer},
    },
};

/// Metadata that says something of the model itself, besides the keys of its family. Everything else is of the file.
const GENERAL: [&str; 8] = [
    "general.architecture",
    "general.basename",
    "general.file_type",
    "general.license",
    "general.name",
    "general.quantization_version",
    "general.size_label",
    "general.type",
];

/// The part of a model that a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// What every layer needs, such as `rope_freqs.weight`.
    Shared,
    /// `token_embd.weight`.
    Embedding,
    /// The final norm, and the output matrix unless it is the embedding.
    Head,
    /// A layer.
    Layer(usize),
}

impl Place {
    /// Where the tensor called `name` belongs.
    pub fn of(name: &str) -> Self {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).and_then(|(i, _)| i.parse().ok());
        match (layer, name) {
            (Some(i), _) => Self::Layer(i),
            (_, "token_embd.weight") => Self::Embedding,
            (_, "output_norm.weight" | "output.weight") => Self::Head,
            _ => Self::Shared,
        }
    }
}

/// A metadata value as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) key: String,
    /// GGUF's number of the type.
    pub(crate) ty: u32,
    pub(crate) value: Vec<u8>,
}

/// What a tensor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, innermost last.
    pub shape: Shape,
    /// Its bytes' hashes.
    pub tree: Tree,
}

/// What somebody needs of a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Need {
    /// These layers, and what every layer needs.
    pub layers: Range<usize>,
    /// The embedding.
    pub embedding: bool,
    /// The final norm and the output matrix.
    pub head: bool,
}

/// A model without its weights. See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    metadata: Vec<Field>,
    tokenizer: Tree,
    tensors: Vec<TensorInfo>,
    /// For each tensor, the number of its first chunk; and one more, the number of all chunks.
    starts: Vec<u32>,
}

/// A model's file with nothing in it but what stands before the tensors' bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// The file's beginning.
    pub header: Vec<u8>,
    /// Bytes of the whole file.
    pub size: u64,
    /// Where each tensor's bytes begin, in the order of [`Outline::tensors`].
    offsets: Vec<u64>,
}

/// Where a chunk belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blob {
    Tokenizer,
    /// The tensor of this number.
    Tensor(usize),
}

impl Outline {
    /// Hashes all of a model, on as many threads as the machine has. Reads the whole file.
    ///
    /// # Errors
    /// [`LoadError::UnsupportedType`] for a tensor whose length nobody knows, or what the metadata lack.
    pub fn of(gguf: &Gguf) -> Result<Self, LoadError> {
        let mut views: Vec<TensorView<'_>> = gguf.tensors().collect();
        // The length of such a tensor is not known, so its hash would say nothing.
        if let Some(tensor) = views.iter().find(|tensor| matches!(tensor.dtype, DType::Unknown(_))) {
            let (tensor, dtype) = (tensor.name.to_owned(), tensor.dtype);
            return Err(LoadError::UnsupportedType { tensor, dtype, supported: crate::backend::SUPPORTED });
        }
        views.sort_by_key(|view| (Place::of(view.name), view.name));
        let trees = hash_all(&views);
        let tensors = views.iter().zip(trees).map(|(view, tree)| TensorInfo {
            name: view.name.to_owned(),
            dtype: view.dtype,
            shape: view.shape,
            tree,
        });
        let family = gguf.get_str("general.architecture")?;
        let told = gguf.raw_values().filter(|(key, ..)| says_of_the_model(key, family));
        let metadata = told.map(|(key, ty, value)| Field { key: key.to_owned(), ty, value: value.to_vec() }).collect();
        let blob = tokenizer_blob(gguf);
        let tokenizer = Tree::of([&blob[..]], blob.len() as u64);
        Self::new(metadata, tokenizer, tensors.collect())
            .map_err(|error| LoadError::Gguf(GgufError::Slice { tensor: "all tensors".into(), asked: error.0 }))
    }

    fn new(metadata: Vec<Field>, tokenizer: Tree, tensors: Vec<TensorInfo>) -> Result<Self, OutlineError> {
        let ordered = tensors
            .iter()
            .zip(tensors.iter().skip(1))
            .all(|(a, b)| (Place::of(&a.name), &a.name) < (Place::of(&b.name), &b.name));
        if !ordered {
            return Err(OutlineError("tensors out of order, or two of one name".into()));
        }
        let architecture = metadata.iter().find(|field| field.key == "general.architecture");
        let family = architecture.and_then(|field| field.value.get(8..)).and_then(|name| str::from_utf8(name).ok());
        if !metadata.iter().all(|field| says_of_the_model(&field.key, family.unwrap_or_default())) {
            return Err(OutlineError("metadata that say nothing of the model".into()));
        }
        let many = || OutlineError("more chunks than can be counted".into());
        let chunks = |tree: &Tree| u32::try_from(tree.count()).map_err(|_| many());
        let mut starts = Vec::with_capacity(tensors.len().saturating_add(1));
        let mut next = chunks(&tokenizer)?;
        starts.push(next);
        for tensor in &tensors {
            next = next.checked_add(chunks(&tensor.tree)?).ok_or_else(many)?;
            starts.push(next);
        }
        Ok(Self { metadata, tokenizer, tensors, starts })
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads what [`Outline::encode`] wrote, and nothing else.
    ///
    /// # Errors
    /// [`OutlineError`] says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, OutlineError> {
        codec::decode(bytes)
    }

    /// The model that this is the outline of. An outline that somebody sent is that of a model when this has the model's id.
    ///
    /// # Errors
    /// [`LoadError`] when the metadata describe no model that we can compute.
    pub fn manifest(&self) -> Result<Manifest, LoadError> {
        let bare = self.writer(&[]).and_then(|writer| writer.header());
        let refused = |error: WriteError| GgufError::Slice { tensor: "the header".into(), asked: error.to_string() };
        Manifest::from_outline(self, &Gguf::bare(bare.map_err(refused)?)?)
    }

    /// The tensors, in the order of their chunks.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tokenizer's hashes.
    pub fn tokenizer(&self) -> &Tree {
        &self.tokenizer
    }

    /// Number of chunks.
    pub fn chunks(&self) -> u32 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Bytes of all chunks.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().fold(self.tokenizer.bytes(), |sum, tensor| sum.saturating_add(tensor.tree.bytes()))
    }

    /// The tokenizer's chunks.
    pub fn tokenizer_chunks(&self) -> Range<u32> {
        0..self.starts.first().copied().unwrap_or(0)
    }

    /// The chunks of what is needed, the tokenizer's besides; ascending and apart.
    pub fn needed(&self, need: &Need) -> Vec<Range<u32>> {
        // The head's matrix is the embedding where it has none of its own.
        let tied = !self.tensors.iter().any(|tensor| tensor.name == "output.weight");
        let wanted = |place| match place {
            Place::Shared => !need.layers.is_empty(),
            Place::Embedding => need.embedding || (need.head && tied),
            Place::Head => need.head,
            Place::Layer(i) => need.layers.contains(&i),
        };
        let mut all = vec![self.tokenizer_chunks()];
        let ranges = self.starts.iter().zip(self.starts.iter().skip(1)).map(|(start, end)| *start..*end);
        all.extend(self.tensors.iter().zip(ranges).filter(|(t, _)| wanted(Place::of(&t.name))).map(|(_, range)| range));
        all
    }

    /// Bytes of a chunk; 0 where there is none of that number.
    pub fn chunk_len(&self, chunk: u32) -> u64 {
        self.locate(chunk).map_or(0, |(_, tree, index)| tree.chunk_len(index))
    }

    /// Whether these are the bytes of a chunk.
    pub fn check(&self, chunk: u32, bytes: &[u8]) -> bool {
        self.locate(chunk).is_some_and(|(_, tree, index)| tree.check(index, bytes))
    }

    /// A chunk's bytes, from a file that has all of them; `tokenizer` is its [`tokenizer_blob`].
    pub fn read(&self, gguf: &Gguf, tokenizer: &[u8], chunk: u32) -> Option<Vec<u8>> {
        let (blob, tree, index) = self.locate(chunk)?;
        let mut start = usize::try_from(index.checked_mul(CHUNK)?).ok()?;
        let len = usize::try_from(tree.chunk_len(index)).ok()?;
        let Blob::Tensor(i) = blob else { return self.read_tokenizer(tokenizer, chunk).map(<[u8]>::to_vec) };
        let tensor = gguf.tensor(&self.tensors.get(i)?.name).ok()?;
        let mut out = Vec::with_capacity(len);
        for piece in tensor.pieces() {
            let here = piece.get(start.min(piece.len())..).unwrap_or_default();
            start = start.saturating_sub(piece.len());
            let wanted = len.saturating_sub(out.len()).min(here.len());
            out.extend_from_slice(here.get(..wanted)?);
        }
        (out.len() == len).then_some(out)
    }

    /// The bytes of a chunk of the tokenizer, of which these are all.
    pub fn read_tokenizer<'a>(&self, tokenizer: &'a [u8], chunk: u32) -> Option<&'a [u8]> {
        let (Blob::Tokenizer, tree, index) = self.locate(chunk)? else { return None };
        let start = usize::try_from(index.checked_mul(CHUNK)?).ok()?;
        tokenizer.get(start..start.checked_add(usize::try_from(tree.chunk_len(index)).ok()?)?)
    }

    /// The model's file with nothing in it but its header. `tokenizer` is the [`tokenizer_blob`].
    ///
    /// # Errors
    /// When the blob is not this model's.
    pub fn file(&self, tokenizer: &[u8]) -> Result<File, OutlineError> {
        let refused = |error: WriteError| OutlineError(error.to_string());
        let writer = self.writer(&fields(tokenizer)?).map_err(refused)?;
        let header = writer.header().map_err(refused)?;
        let size = writer.size().ok_or_else(|| OutlineError("too large to count".into()))?;
        let mut at = header.len() as u64;
        let mut offsets = Vec::with_capacity(self.tensors.len());
        for tensor in &self.tensors {
            offsets.push(at);
            at = Writer::next(at, tensor.tree.bytes());
        }
        Ok(File { header, size, offsets })
    }

    /// Where a chunk of a tensor lies in the model's [`File`]; nothing for the tokenizer's, which are in the header.
    pub fn offset(&self, file: &File, chunk: u32) -> Option<u64> {
        let (Blob::Tensor(i), _, index) = self.locate(chunk)? else { return None };
        file.offsets.get(i)?.checked_add(index.checked_mul(CHUNK)?)
    }

    fn locate(&self, chunk: u32) -> Option<(Blob, &Tree, u64)> {
        let first = self.starts.first().copied()?;
        if chunk < first {
            return Some((Blob::Tokenizer, &self.tokenizer, u64::from(chunk)));
        }
        let at = self.starts.partition_point(|start| *start <= chunk).checked_sub(1)?;
        let tree = &self.tensors.get(at)?.tree;
        Some((Blob::Tensor(at), tree, u64::from(chunk.checked_sub(*self.starts.get(at)?)?)))
    }

    fn writer(&self, tokenizer: &[Field]) -> Result<Writer, WriteError> {
        let mut writer = Writer::new();
        for field in self.metadata.iter().chain(tokenizer) {
            writer.set_raw(&field.key, field.ty, field.value.clone());
        }
        for tensor in &self.tensors {
            writer.tensor(&tensor.name, tensor.dtype, &tensor.shape)?;
        }
        Ok(writer)
    }
}

/// Whether a metadata key is one of the model's, whose family is called `family`.
fn says_of_the_model(key: &str, family: &str) -> bool {
    GENERAL.contains(&key) || key.strip_prefix(family).is_some_and(|rest| rest.starts_with('.'))
}

/// A tokenizer's metadata in one run of bytes, whose BLAKE3 is the manifest's `tokenizer`: of each key in order its name, its
/// type's number and its value, each behind its length as a u64.
pub fn tokenizer_blob(gguf: &Gguf) -> Vec<u8> {
    let mut values: Vec<_> = gguf.raw_values().filter(|(key, ..)| key.starts_with("tokenizer.")).collect();
    values.sort_by_key(|(key, ..)| *key);
    let mut out = Vec::new();
    for (key, ty, value) in values {
        for field in [key.as_bytes(), &ty.to_le_bytes(), value] {
            out.extend((field.len() as u64).to_le_bytes());
            out.extend(field);
        }
    }
    out
}

/// What [`tokenizer_blob`] wrote.
fn fields(mut blob: &[u8]) -> Result<Vec<Field>, OutlineError> {
    let mut take = || -> Option<&[u8]> {
        let (len, rest) = blob.split_first_chunk::<8>()?;
        let (field, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        blob = rest;
        Some(field)
    };
    let mut all = Vec::new();
    while let Some(key) = take() {
        let field = || -> Option<Field> {
            let key = std::str::from_utf8(key).ok().filter(|key| key.starts_with("tokenizer."))?.to_owned();
            let ty = u32::from_le_bytes(take()?.try_into().ok()?);
            Some(Field { key, ty, value: take()?.to_vec() })
        }();
        all.push(field.ok_or_else(|| OutlineError("the tokenizer is cut off".into()))?);
    }
    if blob.is_empty() { Ok(all) } else { Err(OutlineError("the tokenizer is cut off".into())) }
}

/// Each tensor's hashes, in the tensors' order.
fn hash_all(tensors: &[TensorView<'_>]) -> Vec<Tree> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((i, tensor)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            tensors.get(i).map(|tensor| (i, tensor))
        } {
            let tree = Tree::of(tensor.pieces(), tensor.bytes());
            // The file has been read through once; what is loaded of it later is read again.
            tensor.forget_pages();
            done.push((i, tree));
        }
        done
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(tensors.len());
    let mut done = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut done = work();
        // A thread that hashes a slice has nothing to panic about.
        done.extend(others.into_iter().filter_map(|thread| thread.join().ok()).flatten());
        done
    });
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, tree)| tree).collect()
}

#[cfg(test)]
mod tests;
