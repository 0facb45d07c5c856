//! Tensors of an open file: borrowed views for whoever uses the bytes now, owned handles for whoever will later.

use std::ops::{Deref, Range};

use super::{DType, Gguf, GgufError, map::Store};

/// ggml tensors have one to four dimensions.
pub(super) const MAX_DIMS: usize = 4;

/// A tensor's dimensions, the innermost **last** (rows, columns), the reverse of the file's order. One to four, none
/// zero where they come from a file.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; MAX_DIMS],
    len: usize,
}

impl Shape {
    /// The shape with these dimensions, or `None` when there are none or more than four.
    pub fn new(dims: &[usize]) -> Option<Self> {
        let mut all = [0; MAX_DIMS];
        if dims.is_empty() {
            return None;
        }
        all.get_mut(..dims.len())?.copy_from_slice(dims);
        Some(Self { dims: all, len: dims.len() })
    }

    /// The shape of a matrix.
    pub fn matrix(rows: usize, columns: usize) -> Self {
        Self { dims: [rows, columns, 0, 0], len: 2 }
    }

    /// Number of elements, or `None` when that is too many to count.
    pub fn elements(&self) -> Option<u64> {
        self.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim as u64))
    }
}

impl Deref for Shape {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        self.dims.get(..self.len).unwrap_or_default()
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

impl<const N: usize> PartialEq<[usize; N]> for Shape {
    fn eq(&self, other: &[usize; N]) -> bool {
        **self == other[..]
    }
}

impl PartialEq<&[usize]> for Shape {
    fn eq(&self, other: &&[usize]) -> bool {
        **self == **other
    }
}

/// A run of bytes in one of a model's stores.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Which store.
    pub(crate) store: usize,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// One tensor: its description and its bytes.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, innermost last.
    pub shape: Shape,
    /// The elements, exactly as many bytes as shape and type need. Aligned as the file aligns them, when it is mapped.
    ///
    /// Empty for a stack of experts that lie apart (a folder of safetensors keeps each in a tensor of its own): take
    /// them one by one with [`TensorView::expert`], or all with [`TensorView::pieces`].
    pub data: &'a [u8],
    /// Where the pages are, for tensors of an open file.
    home: Option<Home<'a>>,
}

#[derive(Clone, Copy, Debug)]
struct Home<'a> {
    stores: &'a [Store],
    pieces: &'a [Piece],
}

impl<'a> TensorView<'a> {
    /// A tensor that no file holds. `shape` has one to four dimensions.
    ///
    /// # Errors
    /// [`GgufError::Slice`] when the number of dimensions is another, or `data` is not as long as shape and type need.
    pub fn new(name: &'a str, dtype: DType, shape: &[usize], data: &'a [u8]) -> Result<Self, GgufError> {
        let bad = || GgufError::Slice { tensor: name.to_owned(), asked: format!("{} bytes as {shape:?}", data.len()) };
        let shape = Shape::new(shape).ok_or_else(bad)?;
        let needed = shape.elements().and_then(|elements| dtype.bytes_for(elements));
        if needed != Some(data.len() as u64) {
            return Err(bad());
        }
        Ok(Self { name, dtype, shape, data, home: None })
    }

    pub(super) fn at_home(name: &'a str, dtype: DType, shape: Shape, stores: &'a [Store], pieces: &'a [Piece]) -> Self {
        let home = Home { stores, pieces };
        let data = if let [piece] = pieces { home.bytes(piece) } else { &[] };
        Self { name, dtype, shape, data, home: Some(home) }
    }

    /// Bytes of the whole tensor, also where they lie apart.
    pub fn bytes(&self) -> u64 {
        self.pieces().map(|piece| piece.len() as u64).sum()
    }

    /// All bytes in order: one piece, or one for each expert where these lie apart.
    pub fn pieces(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let apart = self.home.filter(|home| home.pieces.len() > 1);
        let whole = if apart.is_some() { None } else { Some(self.data) };
        whole.into_iter().chain(apart.into_iter().flat_map(|home| home.pieces.iter().map(move |p| home.bytes(p))))
    }

    /// Some rows (outputs) of a matrix: `[range.len(), inputs]`.
    ///
    /// # Errors
    /// [`GgufError::Slice`] unless this is a matrix that has these rows.
    pub fn rows(&self, range: Range<usize>) -> Result<Self, GgufError> {
        let asked = || GgufError::Slice { tensor: self.name.to_owned(), asked: format!("rows {range:?}") };
        let [rows, inputs] = *self.shape else { return Err(asked()) };
        let row =
            self.dtype.bytes_for(inputs as u64).and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(asked)?;
        if range.start >= range.end || range.end > rows {
            return Err(asked());
        }
        let bytes = row.checked_mul(range.start).zip(row.checked_mul(range.end));
        let data = bytes.and_then(|(start, end)| self.data.get(start..end)).ok_or_else(asked)?;
        Ok(Self { shape: Shape::matrix(range.len(), inputs), data, ..*self })
    }

    /// One expert of a stack `[experts, outputs, inputs]`: `[outputs, inputs]`.
    ///
    /// # Errors
    /// [`GgufError::Slice`] unless this is such a stack and has that expert.
    pub fn expert(&self, index: usize) -> Result<Self, GgufError> {
        let asked = || GgufError::Slice { tensor: self.name.to_owned(), asked: format!("expert {index}") };
        let [experts, outputs, inputs] = *self.shape else { return Err(asked()) };
        if index >= experts {
            return Err(asked());
        }
        let shape = Shape::matrix(outputs, inputs);
        if let Some(home) = self.home.filter(|home| home.pieces.len() > 1) {
            let pieces = home.pieces.get(index..=index).ok_or_else(asked)?;
            return Ok(Self::at_home(self.name, self.dtype, shape, home.stores, pieces));
        }
        let len = self.data.len().checked_div(experts).ok_or_else(asked)?;
        let start = len.checked_mul(index).ok_or_else(asked)?;
        let data = start.checked_add(len).and_then(|end| self.data.get(start..end)).ok_or_else(asked)?;
        Ok(Self { shape, data, ..*self })
    }

    /// Tells the operating system that the bytes of this view are not needed for now, because whoever needed them has a
    /// copy: they stop counting as this process's memory, and are read again from the file if they are used after all.
    /// Only pages that lie whole inside the view are let go, and only those of a mapped file.
    pub fn forget_pages(&self) {
        let Some(home) = self.home else { return };
        for piece in home.pieces {
            if let Some(store) = home.stores.get(piece.store) {
                let whole = home.bytes(piece);
                // A slice of rows or of experts is let go alone; of one piece, the data is a part.
                let part = if home.pieces.len() == 1 { self.data } else { whole };
                let skipped = part.as_ptr().addr().saturating_sub(whole.as_ptr().addr());
                store.forget(piece.start.saturating_add(skipped), part.len());
            }
        }
    }
}

impl<'a> Home<'a> {
    fn bytes(&self, piece: &Piece) -> &'a [u8] {
        // The range was checked against the store when the file was opened, and a store's length does not change.
        let store = self.stores.get(piece.store).map(Store::as_slice);
        store.and_then(|bytes| bytes.get(piece.start..piece.end)).unwrap_or_default()
    }
}

/// A tensor to be read later: keeps the file open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TensorHandle {
    pub(super) gguf: Gguf,
    pub(super) index: usize,
}

impl TensorHandle {
    /// The tensor.
    pub fn view(&self) -> TensorView<'_> {
        self.gguf.view_at(self.index)
    }
}
