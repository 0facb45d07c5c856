//! One session: its queue, its rows, and which of its pages are the prefix cache's.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    Job, MAX_PREFIX_BLOCKS, OnEvent,
    pages::Pages,
    prefix::{PrefixKey, PrefixKeys, Scope},
};
use crate::{Cache, KV_PAGE_ROWS, KvBlock};

/// What a session keeps: rows in pages, some of which may be shared.
pub(super) trait Rows {
    /// A page of it.
    type Block;
    fn len(&self) -> usize;
    fn truncate(&mut self, rows: usize);
    /// The page `index`, which must be whole.
    fn block(&self, index: usize) -> Self::Block;
    /// Adds a page to an end that is a page's; says whether it did.
    fn append(&mut self, block: &Self::Block) -> bool;
    /// Takes a page of the same contents instead of its own.
    fn replace(&mut self, index: usize, block: &Self::Block) -> bool;
}

impl Rows for Cache {
    type Block = KvBlock;

    fn len(&self) -> usize {
        Cache::len(self)
    }

    fn truncate(&mut self, rows: usize) {
        Cache::truncate(self, rows);
    }

    fn block(&self, index: usize) -> KvBlock {
        Cache::block(self, index)
    }

    fn append(&mut self, block: &KvBlock) -> bool {
        Cache::append(self, block)
    }

    fn replace(&mut self, index: usize, block: &KvBlock) -> bool {
        Cache::replace(self, index, block)
    }
}

pub(super) struct Session<C> {
    pub(super) scope: Scope,
    /// Whether it begins with the model's first layer, and goes on elsewhere.
    pub(super) leads: bool,
    /// When its last prefill was taken, or it was opened, in prefills.
    pub(super) prefilled: u64,
    /// Pages of its own, used or not. With `shared` always as many as it was opened for.
    pub(super) own: u32,
    /// The keys of its first pages, as long as its rows are those that the keys name.
    pub(super) keys: Vec<PrefixKey>,
    /// Of them, those whose pages are the prefix cache's.
    pub(super) shared: usize,
    pub(super) queue: VecDeque<Item>,
    /// Absent while the thread computes with it.
    pub(super) cache: Option<C>,
    pub(super) closing: bool,
    pub(super) computed: bool,
    /// When it was opened, or something was last done for it.
    pub(super) active: Instant,
    /// When its last job was answered, and how long it took to come back with a decode after the one before.
    pub(super) answered: Option<Instant>,
    pub(super) returns_after: Option<Duration>,
    /// When its last decode came, and the one before.
    pub(super) came: [Option<Instant>; 2],
    pub(super) on_event: Option<OnEvent>,
}

pub(super) enum Item {
    Run(Pending),
    Trim(usize),
}

/// A job with its place in the order of arrival.
pub(super) struct Pending {
    pub(super) job: Job,
    pub(super) since: Instant,
    pub(super) rows: usize,
    pub(super) number: u64,
}

impl<C: Rows> Session<C> {
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.cache.is_some()
    }

    /// The next job. Trims never stand first while the cache is here.
    pub(super) fn front(&self) -> Option<&Pending> {
        match self.queue.front() {
            Some(Item::Run(pending)) if self.cache.is_some() => Some(pending),
            _ => None,
        }
    }

    /// Forgets rows. Pages that were shared become its own again, since other rows may follow: says whether there were
    /// enough for that.
    pub(super) fn cut(&mut self, pages: &mut Pages<C::Block>, keep: usize) -> bool {
        let Some(cache) = &mut self.cache else { return true };
        cache.truncate(keep);
        let whole = cache.len() / KV_PAGE_ROWS;
        let lost = self.keys.get(whole..self.shared).unwrap_or_default();
        let n = u32::try_from(lost.len()).unwrap_or(u32::MAX);
        pages.unpin(lost);
        self.shared = self.shared.min(whole);
        self.distrust(whole);
        let enough = pages.take(n);
        if enough {
            self.own = self.own.saturating_add(n);
        }
        enough
    }

    /// From this page on, what comes need not be what the keys name: something has failed, or was taken back. Before the
    /// first job it is: the session only begins with less than it was given.
    pub(super) fn distrust(&mut self, page: usize) {
        if self.computed {
            self.keys.truncate(page);
        }
    }

    /// More names, for the pages after the `first` ones. Who hears of nothing shares nothing; see [`Self::cut`].
    pub(super) fn name(&mut self, first: usize, keys: &PrefixKeys) {
        if self.on_event.is_none() || self.keys.len() != first {
            return;
        }
        let pages = (self.own as usize).saturating_add(self.shared);
        let room = pages.min(MAX_PREFIX_BLOCKS).saturating_sub(first);
        self.keys.extend(keys.scoped(self.scope).take(room));
    }

    /// Gives the pages that have become whole, and that keys name, to the prefix cache; where that has them already, the
    /// session uses those and gives its own back.
    pub(super) fn publish(&mut self, pages: &mut Pages<C::Block>) {
        let Some(cache) = &mut self.cache else { return };
        while let Some(key) = self.keys.get(self.shared) {
            if cache.len() / KV_PAGE_ROWS <= self.shared || self.own == 0 {
                return;
            }
            if pages.pin(key) {
                if !pages.get(key).is_some_and(|block| cache.replace(self.shared, block)) {
                    pages.unpin(&[*key]);
                    return;
                }
                pages.give_back(1);
            } else {
                pages.publish(*key, self.shared, cache.block(self.shared));
            }
            self.own = self.own.saturating_sub(1);
            self.shared = self.shared.saturating_add(1);
        }
    }
}

impl Item {
    pub(super) fn job(self) -> Option<Job> {
        match self {
            Self::Run(pending) => Some(pending.job),
            Self::Trim(_) => None,
        }
    }
}
