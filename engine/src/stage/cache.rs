//! What a session keeps in a stage.

use std::any::Any;

use super::loaded::Pages;
use crate::KV_PAGE_ROWS;

/// The keys and values of one session in one stage.
pub struct Cache {
    pub(super) len: usize,
    /// Most rows it may hold.
    pub(super) limit: usize,
    pub(super) stage: u64,
    /// The first of the stage's layers that this session runs.
    pub(super) first: usize,
    /// How many of them.
    pub(super) layers: usize,
    /// Whether rows are rounded to bf16 before the first layer and after each.
    pub(super) rounds: bool,
    pub(super) pages: Box<dyn Pages>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Cache {
    /// For a session of the profile `exact-bf16`; of use while nothing is held.
    #[must_use]
    pub fn rounding(mut self) -> Self {
        self.rounds = true;
        self
    }

    /// Rows held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when no rows are held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Layers that it keeps rows of.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Forgets all rows from `rows` on; does nothing when there are not more.
    pub fn truncate(&mut self, rows: usize) {
        if rows < self.len {
            self.pages.truncate(rows);
            self.len = rows;
        }
    }

    /// The whole page `index` of every layer, to be shared.
    pub(crate) fn block(&self, index: usize) -> KvBlock {
        KvBlock(self.pages.share(index))
    }

    /// Adds a page of rows that another cache of the same stage and layers has computed; says whether it fits there.
    pub(crate) fn append(&mut self, block: &KvBlock) -> bool {
        let end = self.len.saturating_add(KV_PAGE_ROWS);
        let fits = self.len.is_multiple_of(KV_PAGE_ROWS) && end <= self.limit && self.pages.append(&*block.0);
        if fits {
            self.len = end;
        }
        fits
    }

    /// Takes a page of the same contents instead of its own; says whether it could.
    pub(crate) fn replace(&mut self, index: usize, block: &KvBlock) -> bool {
        self.pages.replace(index, &*block.0)
    }

    /// As [`Cache::truncate`], for layers that may have gone ahead of the cache when a computation broke off.
    pub(crate) fn truncate_layers(&mut self, rows: usize) {
        self.pages.truncate(rows);
        self.len = self.len.min(rows);
    }
}

/// A page of every layer of a session, which others may share.
pub(crate) struct KvBlock(pub(super) Box<dyn Any + Send>);

/// Rows of one session in a batch.
#[derive(Debug)]
pub struct Segment<'a> {
    /// The session's cache.
    pub cache: &'a mut Cache,
    /// Position of the first row: the rows that the cache holds.
    pub pos: usize,
    /// `[n, hidden]`, at most [`MAX_ROWS`](crate::MAX_ROWS) rows.
    pub rows: &'a [f32],
}
