//! Pages of keys and values.

use super::PAGE;
use crate::Isa;
use crate::float::simd::{Kernel, LANES, Simd, dispatch};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvFormat {
    /// As they are: 4 bytes a value.
    #[default]
    F32,
    /// Half precision, to nearest even: 2 bytes a value. Beyond ±65504 a value becomes ±65504.
    F16,
    /// One byte a value, and an f32 scale per head and position, for keys and for values. With a the greatest magnitude
    /// of the head's vector: scale = a / 127; code = x · (1 / scale) to the nearest whole number, ties to even. If the
    /// scale is below the smallest normal f32, scale and codes are 0.
    Q8,
}

impl KvFormat {
    /// Bytes of a page of `kv_heads` heads of `head_dim` values, keys and values together; `None` if no machine could
    /// hold it.
    pub fn page_bytes(self, kv_heads: usize, head_dim: usize) -> Option<usize> {
        let keys = head_dim.checked_mul(PAGE)?;
        let values = head_dim.checked_next_multiple_of(LANES)?.checked_mul(PAGE)?;
        let numbers = keys.checked_add(values)?.checked_mul(kv_heads)?;
        match self {
            Self::F32 => numbers.checked_mul(4),
            Self::F16 => numbers.checked_mul(2),
            Self::Q8 => numbers.checked_add(kv_heads.checked_mul(2 * 4 * PAGE)?),
        }
        .filter(|&bytes| isize::try_from(bytes).is_ok())
    }
}

/// Keys and values of one layer for [`PAGE`] positions. A clone is a copy.
#[derive(Clone, Debug)]
pub struct KvPage {
    kv_heads: usize,
    head_dim: usize,
    store: AnyStore,
}

/// One variant per [`KvFormat`].
#[derive(Clone, Debug)]
pub(super) enum AnyStore {
    F32(Store<F32Block>),
    F16(Store<F16Block>),
    Q8(Store<Q8Block>),
}

/// Applies one generic expression to whichever store there is.
macro_rules! with_store {
    ($any:expr, $store:ident => $then:expr) => {
        match $any {
            $crate::attention::page::AnyStore::F32($store) => $then,
            $crate::attention::page::AnyStore::F16($store) => $then,
            $crate::attention::page::AnyStore::Q8($store) => $then,
        }
    };
}
pub(super) use with_store;

/// Where the keys and the values of one KV head begin: for asking ahead, not for reading.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub keys: *const u8,
    pub values: *const u8,
}

impl AnyStore {
    #[inline(always)]
    pub(super) fn addresses(&self, kv_head: usize, head_dim: usize) -> Addresses {
        with_store!(self, store => {
            let tile = store.tile(kv_head, head_dim);
            Addresses { keys: tile.keys.as_ptr().cast(), values: tile.values.as_ptr().cast() }
        })
    }
}

/// The numbers of a page. Sums never run across the lanes of a block: along positions for keys, along dimensions for
/// values.
#[derive(Clone, Debug)]
pub(super) struct Store<B> {
    /// `[kv_head][dimension]`: that dimension of the keys of the 32 positions.
    keys: Vec<[B; PAGE / LANES]>,
    /// `[kv_head][position][dimension / 16]`: the last block is filled up with zeros.
    values: Vec<B>,
    /// `[kv_head]`: scales of the 32 positions; empty where the format has none.
    key_scales: Vec<[f32; PAGE]>,
    value_scales: Vec<[f32; PAGE]>,
}

/// What one KV head of a page holds.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a, B> {
    /// One per dimension.
    pub keys: &'a [[B; PAGE / LANES]],
    /// `[position][blocks]`.
    pub values: &'a [B],
    /// Of keys and of values.
    pub scales: Option<(&'a [f32; PAGE], &'a [f32; PAGE])>,
}

/// Sixteen stored numbers.
pub(super) trait Block: Copy + Default + Send + Sync {
    /// Whether vectors have a scale.
    const SCALED: bool;
    fn widen<S: Simd>(&self, s: S) -> S::F;
    /// `x` is the vector's values times 1 / scale.
    fn narrow<S: Simd>(s: S, x: S::F) -> Self;
    fn put(&mut self, lane: usize, from: &Self, from_lane: usize);
}

// Aligned to their size: no block straddles two cache lines.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub(super) struct F32Block(pub [f32; LANES]);
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(32))]
pub(super) struct F16Block([u16; LANES]);
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(16))]
pub(super) struct Q8Block([i8; LANES]);

impl Block for F32Block {
    const SCALED: bool = false;
    #[inline(always)]
    fn widen<S: Simd>(&self, s: S) -> S::F {
        s.load(&self.0)
    }
    #[inline(always)]
    fn narrow<S: Simd>(s: S, x: S::F) -> Self {
        let mut out = Self::default();
        s.store(x, &mut out.0);
        out
    }
    #[inline(always)]
    fn put(&mut self, lane: usize, from: &Self, from_lane: usize) {
        self.0[lane] = from.0[from_lane];
    }
}

/// The greatest finite half.
const F16_MAX: f32 = 65504.0;

impl Block for F16Block {
    const SCALED: bool = false;
    #[inline(always)]
    fn widen<S: Simd>(&self, s: S) -> S::F {
        s.widen_f16(&self.0)
    }
    #[inline(always)]
    fn narrow<S: Simd>(s: S, x: S::F) -> Self {
        Self(s.narrow_f16(s.min(s.splat(F16_MAX), s.max(s.splat(-F16_MAX), x))))
    }
    #[inline(always)]
    fn put(&mut self, lane: usize, from: &Self, from_lane: usize) {
        self.0[lane] = from.0[from_lane];
    }
}

impl Block for Q8Block {
    const SCALED: bool = true;
    #[inline(always)]
    fn widen<S: Simd>(&self, s: S) -> S::F {
        s.widen_i8(&self.0)
    }
    #[inline(always)]
    fn narrow<S: Simd>(s: S, x: S::F) -> Self {
        Self(s.narrow_i8(x))
    }
    #[inline(always)]
    fn put(&mut self, lane: usize, from: &Self, from_lane: usize) {
        self.0[lane] = from.0[from_lane];
    }
}

impl KvPage {
    /// A page of zeros.
    ///
    /// # Panics
    /// If the page has no size, see [`KvFormat::page_bytes`].
    pub fn new(format: KvFormat, kv_heads: usize, head_dim: usize) -> Self {
        assert!(format.page_bytes(kv_heads, head_dim).is_some(), "a page that fits in memory");
        let store = match format {
            KvFormat::F32 => AnyStore::F32(Store::new(kv_heads, head_dim)),
            KvFormat::F16 => AnyStore::F16(Store::new(kv_heads, head_dim)),
            KvFormat::Q8 => AnyStore::Q8(Store::new(kv_heads, head_dim)),
        };
        Self { kv_heads, head_dim, store }
    }

    /// How the page keeps its values.
    pub fn format(&self) -> KvFormat {
        match self.store {
            AnyStore::F32(_) => KvFormat::F32,
            AnyStore::F16(_) => KvFormat::F16,
            AnyStore::Q8(_) => KvFormat::Q8,
        }
    }

    /// Heads of keys, and of values.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Values of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Bytes that the page holds on the heap.
    pub fn bytes(&self) -> usize {
        self.format().page_bytes(self.kv_heads, self.head_dim).unwrap_or(usize::MAX)
    }

    /// Stores the keys and values of the positions `slot`, `slot + 1`, … of the page: `[rows, kv_heads · head_dim]`.
    ///
    /// # Panics
    /// If `k` and `v` are not the same number of whole rows, or reach past slot [`PAGE`].
    pub fn write(&mut self, isa: Isa, slot: usize, k: &[f32], v: &[f32]) {
        let width = self.kv_heads * self.head_dim;
        if width == 0 {
            return;
        }
        assert!(k.len() == v.len() && k.len().is_multiple_of(width), "a key and a value for every head");
        assert!(slot <= PAGE && k.len() / width <= PAGE - slot, "slots of the page");
        let head_dim = self.head_dim;
        with_store!(&mut self.store, store => dispatch(isa, Write { store, head_dim, slot, k, v, width }));
    }

    pub(super) fn store(&self) -> &AnyStore {
        &self.store
    }
}

impl<B: Block> Store<B> {
    fn new(kv_heads: usize, head_dim: usize) -> Self {
        let scales = if B::SCALED { vec![[0.0; PAGE]; kv_heads] } else { Vec::new() };
        Self {
            keys: vec![[B::default(); PAGE / LANES]; kv_heads * head_dim],
            values: vec![B::default(); kv_heads * PAGE * head_dim.div_ceil(LANES)],
            key_scales: scales.clone(),
            value_scales: scales,
        }
    }

    /// Stores the key and the value of one head at one position.
    #[inline(always)]
    fn write<S: Simd>(&mut self, s: S, head: usize, slot: usize, k: &[f32], v: &[f32]) {
        let (mut k_inverse, mut v_inverse) = (1.0, 1.0);
        if B::SCALED {
            (self.key_scales[head][slot], k_inverse) = q8_scale(s, k);
            (self.value_scales[head][slot], v_inverse) = q8_scale(s, v);
        }
        let columns = &mut self.keys[head * k.len()..][..k.len()];
        for (columns, k) in columns.chunks_mut(LANES).zip(k.chunks(LANES)) {
            let block = B::narrow(s, s.mul(s.load(&padded(k)), s.splat(k_inverse)));
            for (lane, column) in columns.iter_mut().enumerate() {
                column[slot / LANES].put(slot % LANES, &block, lane);
            }
        }
        let blocks = v.len().div_ceil(LANES);
        let row = &mut self.values[(head * PAGE + slot) * blocks..][..blocks];
        for (to, v) in row.iter_mut().zip(v.chunks(LANES)) {
            *to = B::narrow(s, s.mul(s.load(&padded(v)), s.splat(v_inverse)));
        }
    }

    /// The part of one head.
    #[inline(always)]
    pub(super) fn tile(&self, kv_head: usize, head_dim: usize) -> Tile<'_, B> {
        let blocks = PAGE * head_dim.div_ceil(LANES);
        Tile {
            keys: &self.keys[kv_head * head_dim..][..head_dim],
            values: &self.values[kv_head * blocks..][..blocks],
            scales: B::SCALED.then(|| (&self.key_scales[kv_head], &self.value_scales[kv_head])),
        }
    }
}

struct Write<'a, B> {
    store: &'a mut Store<B>,
    head_dim: usize,
    slot: usize,
    k: &'a [f32],
    v: &'a [f32],
    width: usize,
}

impl<B: Block> Kernel for Write<'_, B> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { store, head_dim, slot, k, v, width } = self;
        for (row, (k, v)) in k.chunks_exact(width).zip(v.chunks_exact(width)).enumerate() {
            for (head, (k, v)) in k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)).enumerate() {
                store.write(s, head, slot + row, k, v);
            }
        }
    }
}

/// The scale of a vector in [`KvFormat::Q8`], and what its values are multiplied by.
#[inline(always)]
fn q8_scale<S: Simd>(s: S, x: &[f32]) -> (f32, f32) {
    let mut greatest = s.splat(0.0);
    for x in x.chunks(LANES) {
        greatest = s.max(greatest, s.abs(s.load(&padded(x))));
    }
    let scale = s.greatest(greatest) / 127.0;
    if scale < f32::MIN_POSITIVE { (0.0, 0.0) } else { (scale, 1.0 / scale) }
}

/// Up to sixteen values, filled up with zeros.
#[inline(always)]
pub(super) fn padded(x: &[f32]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    out[..x.len()].copy_from_slice(x);
    out
}
