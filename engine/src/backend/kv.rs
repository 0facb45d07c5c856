//! Keys and values in pages, whatever a backend keeps in a page.
//!
//! A page holds [`KV_PAGE_ROWS`] positions of one layer. Sessions share pages (a prefix that several prompts have in
//! common is computed and kept once); whoever writes into a shared page gets a copy of it first.

// Positions come from other peers.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::sync::{Arc, Mutex, PoisonError};

use crate::{BackendError, KV_PAGE_ROWS};

/// Pages that were let go, kept to be used again: memory that a step takes comes from here first.
#[derive(Debug)]
pub struct PagePool<P> {
    free: Mutex<Vec<Arc<P>>>,
    most: usize,
}

impl<P> PagePool<P> {
    /// A pool that keeps at most so many pages.
    pub fn new(most: usize) -> Self {
        Self { free: Mutex::default(), most }
    }

    fn take(&self) -> Option<Arc<P>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keeps the pages that nobody else uses, as far as there is room.
    fn keep(&self, pages: impl Iterator<Item = Arc<P>>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let room = self.most.saturating_sub(free.len());
        let unused = |mut page: Arc<P>| Arc::get_mut(&mut page).is_some().then_some(page);
        free.extend(pages.filter_map(unused).take(room));
    }
}

/// The pages of one layer of one session, in the order of positions.
#[derive(Debug)]
pub struct PageTable<P> {
    pages: Vec<Arc<P>>,
    pool: Option<Arc<PagePool<P>>>,
}

impl<P> Default for PageTable<P> {
    fn default() -> Self {
        Self { pages: Vec::new(), pool: None }
    }
}

impl<P> Drop for PageTable<P> {
    fn drop(&mut self) {
        self.forget(0);
    }
}

impl<P> PageTable<P> {
    fn forget(&mut self, kept: usize) {
        let gone = self.pages.drain(kept.min(self.pages.len())..);
        if let Some(pool) = &self.pool {
            pool.keep(gone);
        }
    }
}

impl<P: Clone> PageTable<P> {
    /// The pages.
    pub fn pages(&self) -> &[Arc<P>] {
        &self.pages
    }

    /// Forgets the pages that hold only positions from `rows` on.
    pub fn truncate(&mut self, rows: usize) {
        self.forget(rows.div_ceil(KV_PAGE_ROWS));
    }

    /// Writes `rows` positions from `pos` on, page by page: `write` gets a page of this session's own, the first slot
    /// in it, the first row and the number of rows for that page. Pages that are not there yet come from the pool, with
    /// whatever they held, or from `new`.
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
            if index == self.pages.len() {
                let used = self.pool.as_ref().and_then(|pool| pool.take());
                self.pages.push(used.map_or_else(|| new().map(Arc::new), Ok)?);
            }
            let held = self.pages.len();
            let page = self
                .pages
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

/// The page of some number of every layer, for several sessions to use.
#[derive(Debug)]
pub struct SharedPage<P>(Vec<Arc<P>>);

impl<P: Clone> KvCache<P> {
    /// An empty cache of this many layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| PageTable::default()).collect() }
    }

    /// An empty cache of this many layers that takes its pages from a pool, and gives them back.
    pub fn with_pool(layers: usize, pool: &Arc<PagePool<P>>) -> Self {
        let table = || PageTable { pages: Vec::new(), pool: Some(Arc::clone(pool)) };
        Self { layers: (0..layers).map(|_| table()).collect() }
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

    /// Shares the pages numbered `index`; nothing of layers that have no such page.
    pub fn share(&self, index: usize) -> SharedPage<P> {
        SharedPage(self.layers.iter().filter_map(|table| table.pages.get(index).cloned()).collect())
    }

    /// Adds a shared page after those that are there, which must be whole.
    ///
    /// # Errors
    /// When the page is of another number of layers.
    pub fn append(&mut self, page: &SharedPage<P>) -> Result<(), BackendError> {
        self.fits(page)?;
        for (table, page) in self.layers.iter_mut().zip(&page.0) {
            table.pages.push(Arc::clone(page));
        }
        Ok(())
    }

    /// Puts a shared page in the place of the one numbered `index`, which must hold the same.
    ///
    /// # Errors
    /// When the page is of another number of layers, or there is none of that number.
    pub fn replace(&mut self, index: usize, page: &SharedPage<P>) -> Result<(), BackendError> {
        self.fits(page)?;
        if self.layers.iter().any(|table| index >= table.pages.len()) {
            return Err(BackendError(format!("a KV cache without a page {index}")));
        }
        for (table, page) in self.layers.iter_mut().zip(&page.0) {
            if let Some(own) = table.pages.get_mut(index) {
                *own = Arc::clone(page);
            }
        }
        Ok(())
    }

    fn fits(&self, page: &SharedPage<P>) -> Result<(), BackendError> {
        let (found, layers) = (page.0.len(), self.layers.len());
        if found == layers {
            Ok(())
        } else {
            Err(BackendError(format!("pages of {found} layers for a KV cache with {layers}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes the position's number into every slot.
    fn fill(cache: &mut KvCache<Vec<usize>>, pos: usize, rows: usize) {
        for layer in 0..cache.layers() {
            let write = |page: &mut Vec<usize>, slot: usize, row: usize, n: usize| {
                (0..n).for_each(|i| page[slot + i] = pos + row + i);
                Ok(())
            };
            cache.layer(layer).unwrap().write(pos, rows, || Ok(vec![0; KV_PAGE_ROWS]), write).unwrap();
        }
    }

    #[test]
    fn pages_are_used_again_and_a_shared_one_is_copied_before_it_is_written() {
        let pool = Arc::new(PagePool::new(3));
        let mut first = KvCache::with_pool(2, &pool);
        fill(&mut first, 0, KV_PAGE_ROWS + 1);
        let page = first.share(0);
        let mut second = KvCache::with_pool(2, &pool);
        second.append(&page).unwrap();
        second.truncate(20);
        fill(&mut second, 20, 1);
        assert_eq!(first.layer(0).unwrap().pages()[0][21], 21);
        drop(second);
        assert_eq!(pool.free.lock().unwrap().len(), 2, "its copies");
        drop(first);
        assert_eq!(pool.free.lock().unwrap().len(), 3, "the shared ones are in use, and one is more than it keeps");
        drop(page);
        let mut third = KvCache::with_pool(1, &pool);
        fill(&mut third, 0, 1);
        assert_eq!(pool.free.lock().unwrap().len(), 2);
    }

    #[test]
    fn pages_of_another_shape_are_refused() {
        let mut two = KvCache::<Vec<usize>>::new(2);
        fill(&mut two, 0, KV_PAGE_ROWS);
        let mut one = KvCache::<Vec<usize>>::new(1);
        assert!(one.append(&two.share(0)).is_err());
        assert!(two.append(&two.share(1)).is_err(), "there is no such page");
        let page = two.share(0);
        assert!(two.replace(0, &page).is_ok() && two.replace(1, &page).is_err());
    }
}
