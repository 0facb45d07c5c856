//! Keys and values in pages, whatever a backend keeps in a page.
//!
//! A page holds [`KV_PAGE_ROWS`] positions of one layer. Sessions share pages (a prefix that several prompts have in
//! common is computed and kept once); whoever writes into a shared page gets a copy of it first.

// Positions come from other peers.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::sync::Arc;

use crate::{BackendError, KV_PAGE_ROWS};

/// The pages of one layer of one session, in the order of positions.
#[derive(Debug)]
pub struct PageTable<P>(Vec<Arc<P>>);

impl<P> Default for PageTable<P> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<P: Clone> PageTable<P> {
    /// The pages.
    pub fn pages(&self) -> &[Arc<P>] {
        &self.0
    }

    /// Forgets the pages that hold only positions from `rows` on.
    pub fn truncate(&mut self, rows: usize) {
        self.0.truncate(rows.div_ceil(KV_PAGE_ROWS));
    }

    /// Writes `rows` positions from `pos` on, page by page: `write` gets a page of this session's own, the first slot
    /// in it, the first row and the number of rows for that page. Pages that are not there yet come from `new`.
    ///
    /// # Errors
    /// When `pos` lies past the end, or whatever `write` returns.
    pub fn write(
        &mut self,
        pos: usize,
        rows: usize,
        mut new: impl FnMut() -> Result<P, BackendError>,
        mut write: impl FnMut(&mut P, usize, usize, usize) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let mut row = 0usize;
        while row < rows {
            let at = pos.saturating_add(row);
            let (index, slot) = (at / KV_PAGE_ROWS, at % KV_PAGE_ROWS);
            let n = KV_PAGE_ROWS.saturating_sub(slot).min(rows.saturating_sub(row));
            if index == self.0.len() {
                self.0.push(Arc::new(new()?));
            }
            let held = self.0.len();
            let page = self
                .0
                .get_mut(index)
                .ok_or_else(|| BackendError(format!("position {at} lies past the {held} KV pages there are")))?;
            write(Arc::make_mut(page), slot, row, n)?;
            row = row.saturating_add(n);
        }
        Ok(())
    }
}

/// All keys and values of one session in one stage.
#[derive(Debug)]
pub struct KvCache<P> {
    layers: Vec<PageTable<P>>,
}

/// Pages that several sessions may begin with: whole pages of every layer.
#[derive(Debug)]
pub struct KvPrefix<P> {
    layers: Vec<Vec<Arc<P>>>,
}

impl<P: Clone> KvCache<P> {
    /// An empty cache of this many layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| PageTable::default()).collect() }
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The pages of a layer, counted from the cache's first.
    ///
    /// # Errors
    /// When there is no such layer.
    pub fn layer(&mut self, index: usize) -> Result<&mut PageTable<P>, BackendError> {
        let layers = self.layers.len();
        self.layers
            .get_mut(index)
            .ok_or_else(|| BackendError(format!("layer {index} of a KV cache with {layers} layers")))
    }

    /// Forgets all positions from `rows` on. Does nothing when there are not more.
    pub fn truncate(&mut self, rows: usize) {
        for layer in &mut self.layers {
            layer.truncate(rows);
        }
    }

    /// Shares the pages numbered `first..end` of every layer, as far as all layers have them.
    pub fn share(&self, first: usize, end: usize) -> KvPrefix<P> {
        let pages = |table: &PageTable<P>| table.0.get(first..end.min(table.0.len())).unwrap_or_default().to_vec();
        KvPrefix { layers: self.layers.iter().map(pages).collect() }
    }

    /// Appends shared pages after those that are there, which must be whole.
    ///
    /// # Errors
    /// When the pages are of another number of layers.
    pub fn append(&mut self, prefix: &KvPrefix<P>) -> Result<(), BackendError> {
        if prefix.layers.len() != self.layers.len() {
            let (found, layers) = (prefix.layers.len(), self.layers.len());
            return Err(BackendError(format!("pages of {found} layers for a KV cache with {layers}")));
        }
        for (table, pages) in self.layers.iter_mut().zip(&prefix.layers) {
            table.0.extend(pages.iter().cloned());
        }
        Ok(())
    }
}
