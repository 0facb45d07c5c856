//! Attention of a batch: checks, tasks, and the walk over a sequence's pages.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::ops::Range;

use super::PAGE;
use super::page::{F32Block, KvPage, with_store};
use super::tile::{MOST, Query, Scores, Step};
use crate::float::simd::{Kernel, LANES, Simd, dispatch};
use crate::float::split::Split;
use crate::{Isa, Pool};

/// What all rows of a call share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttendShape {
    /// Heads of a query.
    pub heads: usize,
    /// Heads of keys and values; head h of a query uses h / (heads / kv_heads).
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// What a score is multiplied by.
    pub scale: f32,
    /// A soft cap on scores (Gemma 2).
    pub softcap: Option<f32>,
    /// A sliding window: key j is hidden from the query at p when p − j ≥ window.
    pub window: Option<usize>,
}

/// Consecutive rows of one sequence.
#[derive(Debug)]
pub struct AttendJob<'a, P> {
    /// The sequence's pages from position 0 on. Keys and values up to the last row's position have been written; what
    /// stands behind does not matter.
    pub pages: &'a [P],
    /// Position of the first row.
    pub position: usize,
    /// Rows, at `position`, `position + 1`, …
    pub rows: usize,
}

/// Queries (rows times the heads that share a KV head) that a task takes through the pages together.
const QUERIES: usize = 32;

/// Attention of the rows of all `jobs`, in their order: `q` and `out` are `[rows, heads · head_dim]`. For the numbers
/// see [the module](super).
///
/// Runs one task per KV head and tile of rows. Scratch stands in thread-local memory that grows to what the largest
/// call needs (some 64 KiB); nothing is allocated after that.
///
/// # Panics
/// If the lengths do not fit together, a page has another shape, or there are too few pages for a position.
pub fn attend<P: Borrow<KvPage> + Sync>(
    isa: Isa,
    pool: &Pool,
    shape: &AttendShape,
    jobs: &[AttendJob<'_, P>],
    q: &[f32],
    out: &mut [f32],
) {
    let &AttendShape { heads, kv_heads, head_dim, window, .. } = shape;
    assert!(kv_heads > 0 && head_dim > 0 && heads.is_multiple_of(kv_heads), "whole groups of heads");
    assert!(window != Some(0), "a window that holds the row's own key");
    let width = heads * head_dim;
    let rows: usize = jobs.iter().map(|job| job.rows).sum();
    assert!(q.len() == rows * width && out.len() == rows * width, "a query and an output for every row");
    for job in jobs {
        assert!(job.pages.len() * PAGE >= job.position + job.rows, "pages up to the last row");
        let fits = |page: &KvPage| page.kv_heads() == kv_heads && page.head_dim() == head_dim;
        assert!(job.pages.iter().all(|page| fits(page.borrow())), "pages of this shape");
    }
    let group = heads / kv_heads;
    if group == 0 {
        return;
    }
    let tile_rows = (QUERIES / group).max(1);
    let tasks = |job: &AttendJob<'_, P>| job.rows.div_ceil(tile_rows) * kv_heads;
    let out = Split::new(out);
    pool.run(jobs.iter().map(tasks).sum(), &|mut task| {
        let mut first = 0;
        for job in jobs {
            if task >= tasks(job) {
                task -= tasks(job);
                first += job.rows;
                continue;
            }
            // Tasks of one KV head follow each other, so that its keys and values are still in the cache.
            let tiles = job.rows.div_ceil(tile_rows);
            let (kv_head, tile) = (task / tiles, task % tiles);
            let done = tile * tile_rows;
            let task = Task {
                shape,
                group,
                page: &|i| job.pages[i].borrow(),
                kv_head,
                position: job.position + done,
                rows: tile_rows.min(job.rows - done),
                q: &q[(first + done) * width..],
                out: &out,
                out_at: (first + done) * width,
            };
            return SCRATCH.with_borrow_mut(|scratch| dispatch(isa, Walk { task, scratch }));
        }
    });
}

/// Some rows of one sequence at one KV head.
struct Task<'a> {
    shape: &'a AttendShape,
    /// Heads of a query that share a KV head.
    group: usize,
    page: &'a dyn Fn(usize) -> &'a KvPage,
    kv_head: usize,
    /// Of the first row.
    position: usize,
    rows: usize,
    /// From the first row on.
    q: &'a [f32],
    out: &'a Split<'a, f32>,
    out_at: usize,
}

/// Grown once, then reused by every task of a thread.
#[derive(Default)]
struct Scratch {
    /// The queries, block after block: `[head_dim][queries of the block]`.
    q: Vec<f32>,
    /// `[query][head_dim / 16]`.
    acc: Vec<F32Block>,
    max: Vec<f32>,
    sum: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

struct Walk<'t, 's> {
    task: Task<'t>,
    scratch: &'s mut Scratch,
}

impl Kernel for Walk<'_, '_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { task, scratch: Scratch { q, acc, max, sum } } = self;
        let head_dim = task.shape.head_dim;
        let queries = task.rows * task.group;
        let blocks = head_dim.div_ceil(LANES);
        q.resize(queries * head_dim, 0.0);
        for (start, len) in blocks_of::<S>(queries) {
            for i in 0..len {
                let to = q[start * head_dim..][i..].iter_mut().step_by(len);
                for (to, from) in to.zip(task.query(start + i)) {
                    *to = *from;
                }
            }
        }
        acc.clear();
        acc.resize(queries * blocks, F32Block::default());
        max.clear();
        max.resize(queries, f32::NEG_INFINITY);
        sum.clear();
        sum.resize(queries, 0.0);

        let scores = Scores::new(task.shape);
        let last = (task.position + task.rows - 1) / PAGE;
        for page in task.visible(task.position).start / PAGE..=last {
            let ahead = (task.page)(last.min(page + 1)).store().addresses(task.kv_head, head_dim);
            with_store!((task.page)(page).store(), store => {
                let tile = store.tile(task.kv_head, head_dim);
                for (start, len) in blocks_of::<S>(queries) {
                    let seen: &[_] = &task.seen(page, start, len)[..len];
                    let (max, sum) = (&mut max[start..start + len], &mut sum[start..start + len]);
                    let acc = &mut acc[start * blocks..][..len * blocks];
                    if seen.iter().all(|seen| !seen.is_empty()) {
                        let q = &q[start * head_dim..][..len * head_dim];
                        s.call(Step { scores: &scores, tile, ahead, query: Query { q, seen, max, sum, acc } });
                        continue;
                    }
                    // Rows on both sides of a page's border: those that see none of it take no step.
                    for i in (0..len).filter(|&i| !seen[i].is_empty()) {
                        let query = Query {
                            q: task.query(start + i),
                            seen: &seen[i..=i],
                            max: &mut max[i..=i],
                            sum: &mut sum[i..=i],
                            acc: &mut acc[i * blocks..][..blocks],
                        };
                        s.call(Step { scores: &scores, tile, ahead, query });
                    }
                }
            });
        }
        for (query, sum) in sum.iter().enumerate() {
            let at = task.out_at + task.at(query);
            // SAFETY: tasks differ in their rows or their KV head, and so in the heads that they write.
            let out = unsafe { task.out.part(at, head_dim) };
            for (out, acc) in out.chunks_mut(LANES).zip(&acc[query * blocks..]) {
                let mut lanes = [0.0; LANES];
                s.store(s.div(s.load(&acc.0), s.splat(*sum)), &mut lanes);
                out.copy_from_slice(&lanes[..out.len()]);
            }
        }
    }
}

impl Task<'_> {
    /// Where a query's values begin: they stand row by row, within a row the heads of the group.
    #[inline(always)]
    fn at(&self, query: usize) -> usize {
        let head = self.kv_head * self.group + query % self.group;
        (query / self.group * self.shape.heads + head) * self.shape.head_dim
    }

    #[inline(always)]
    fn query(&self, query: usize) -> &[f32] {
        &self.q[self.at(query)..][..self.shape.head_dim]
    }

    /// The keys that a row at `position` sees.
    #[inline(always)]
    fn visible(&self, position: usize) -> Range<usize> {
        let start = self.shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
        start..position + 1
    }

    /// The slots of `page` that the queries `start..start + len` see.
    #[inline(always)]
    fn seen(&self, page: usize, start: usize, len: usize) -> [Range<usize>; MOST] {
        let of_row = |row: usize| {
            let seen = self.visible(self.position + row);
            let slot = |position: usize| position.saturating_sub(page * PAGE).min(PAGE);
            slot(seen.start)..slot(seen.end)
        };
        let mut row = start / self.group;
        let mut left = (row + 1) * self.group - start;
        let mut seen = of_row(row);
        let mut out = [const { 0..0 }; MOST];
        for out in &mut out[..len] {
            if left == 0 {
                (row, left) = (row + 1, self.group);
                seen = of_row(row);
            }
            *out = seen.clone();
            left -= 1;
        }
        out
    }
}

/// Cuts queries into blocks whose sums fit the registers: (first, length), lengths 8, 4, 2, 1.
#[inline(always)]
fn blocks_of<S: Simd>(queries: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let left = queries - start;
        let len = [MOST, 4, 2, 1].into_iter().find(|&len| len <= left.min(S::SUMS))?;
        start += len;
        Some((start - len, len))
    })
}
