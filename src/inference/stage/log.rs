//! What a stage has handed on in a session, kept for another that may have to begin anew.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Rows of a block: what is forgotten at once when memory is short.
const BLOCK: usize = 32;

/// Bytes that the logs of all sessions may hold together. One may hold as much as it leaves free for others, half of it:
/// 16,384 rows of 2,048 values.
const LOG_BYTES: usize = 256 << 20;

/// Memory of all logs of a node.
#[derive(Debug, Clone)]
pub(in crate::inference) struct LogBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    total: usize,
    taken: AtomicUsize,
}

impl Default for LogBudget {
    fn default() -> Self {
        Self::new(LOG_BYTES)
    }
}

impl LogBudget {
    fn new(total: usize) -> Self {
        Self(Arc::new(Shared { total, taken: AtomicUsize::new(0) }))
    }

    /// Bytes that logs hold now.
    pub(in crate::inference) fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }
}

/// Rows `from..end` of what a session's stage computed, each `width` values. Appending never fails: when memory is short the
/// oldest rows are forgotten.
#[derive(Debug)]
pub(in crate::inference) struct Log {
    width: usize,
    /// Position of the first row of the first block.
    from: u32,
    end: u32,
    /// All but the last are full.
    blocks: VecDeque<Vec<f32>>,
    bytes: usize,
    budget: LogBudget,
}

impl Log {
    /// An empty log of a session whose first row is at `from`.
    pub(super) fn new(width: u32, from: u32, budget: LogBudget) -> Self {
        let width = usize::try_from(width).unwrap_or(usize::MAX).max(1);
        Self { width, from, end: from, blocks: VecDeque::new(), bytes: 0, budget }
    }

    /// The first row that is kept.
    pub(super) fn from(&self) -> u32 {
        self.from
    }

    /// Where the next row belongs.
    pub(super) fn end(&self) -> u32 {
        self.end
    }

    /// Keeps `rows`, the first of them at `pos`; those that were kept from there on are forgotten.
    pub(super) fn append(&mut self, pos: u32, rows: &[f32]) {
        if pos != self.end {
            self.cut(pos);
        }
        for row in rows.chunks_exact(self.width) {
            match self.blocks.back_mut().filter(|block| block.len() < BLOCK * self.width) {
                Some(block) => block.extend_from_slice(row),
                None => self.blocks.push_back(row.to_vec()),
            }
            self.end = self.end.saturating_add(1);
        }
        self.count();
        while self.is_too_much() && self.blocks.len() > 1 {
            self.blocks.pop_front();
            self.from = self.from.saturating_add(u32::try_from(BLOCK).unwrap_or(u32::MAX));
            self.count();
        }
    }

    /// Forgets rows from `keep` on. What begins behind that is no use, and the log begins there anew.
    pub(super) fn cut(&mut self, keep: u32) {
        if keep < self.from || keep > self.end {
            self.blocks.clear();
            (self.from, self.end) = (keep, keep);
        } else {
            let rows = usize::try_from(keep - self.from).unwrap_or(usize::MAX);
            self.blocks.truncate(rows.div_ceil(BLOCK));
            if let Some(block) = self.blocks.back_mut() {
                let last = rows - (rows.div_ceil(BLOCK) - 1) * BLOCK;
                block.truncate(last * self.width);
            }
            self.end = keep;
        }
        self.count();
    }

    /// Rows from `pos` up to `until`, at most `most`; nothing where none are kept.
    pub(super) fn read(&self, pos: u32, until: u32, most: usize) -> Vec<f32> {
        let (Some(skip), until) = (pos.checked_sub(self.from), until.min(self.end)) else { return Vec::new() };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let rows = usize::try_from(until.saturating_sub(pos)).unwrap_or(0).min(most);
        let blocks = self.blocks.iter().skip(skip / BLOCK);
        let values = blocks.flatten().skip(skip % BLOCK * self.width).take(rows * self.width);
        values.copied().collect()
    }

    /// Values of a row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    fn count(&mut self) {
        let bytes = self.blocks.iter().map(|block| block.capacity() * size_of::<f32>()).sum();
        let shared = &self.budget.0;
        if bytes >= self.bytes {
            shared.taken.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else {
            shared.taken.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }

    /// Whether it holds more than it leaves free for others.
    fn is_too_much(&self) -> bool {
        self.bytes > self.budget.0.total.saturating_sub(self.budget.taken())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.blocks.clear();
        self.count();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WIDTH: usize = 3;

    /// The row that belongs at `pos`, in its `version`.
    fn row(pos: u32, version: u32) -> [f32; WIDTH] {
        [pos as f32, version as f32, 1.0]
    }

    proptest! {
        #[test]
        fn it_holds_the_latest_rows(
            start in 0..100_u32,
            steps in proptest::collection::vec((0..80_u32, 1..90_u32), 1..30),
            total in 2_000..60_000_usize,
        ) {
            let budget = LogBudget::new(total);
            let mut log = Log::new(WIDTH as u32, start, budget.clone());
            let mut model: Vec<[f32; WIDTH]> = Vec::new();
            for (version, (back, rows)) in steps.into_iter().enumerate() {
                // Rows go on where those before ended, or take some of them back.
                let end = start + model.len() as u32;
                let pos = if back < 60 { end } else { end.saturating_sub(back - 60).max(start) };
                let new: Vec<_> = (pos..pos + rows).map(|pos| row(pos, version as u32)).collect();
                model.truncate((pos - start) as usize);
                model.extend(&new);
                log.append(pos, &new.concat());
                prop_assert_eq!(log.end(), start + model.len() as u32);
                prop_assert!(log.from() <= log.end());
                let kept = &model[(log.from() - start) as usize..];
                prop_assert_eq!(log.read(log.from(), u32::MAX, usize::MAX), kept.concat());
                let half = log.from() + (log.end() - log.from()) / 2;
                let upper = &model[(half - start) as usize..];
                prop_assert_eq!(log.read(half, u32::MAX, usize::MAX), upper.concat());
                prop_assert_eq!(log.read(half, half + 2, 1), upper.concat().into_iter().take(WIDTH).collect::<Vec<_>>());
                // A block may be more than its share; nothing beyond it.
                prop_assert!(budget.taken() <= total.max(2 * BLOCK * WIDTH * 4 * 2));
            }
            drop(log);
            prop_assert_eq!(budget.taken(), 0);
        }
    }

    #[test]
    fn one_log_leaves_half_to_others() {
        let budget = LogBudget::new(100 * BLOCK * WIDTH * 4);
        let mut logs = [0, 0].map(|from| Log::new(WIDTH as u32, from, budget.clone()));
        for log in &mut logs {
            for pos in 0..200 * BLOCK as u32 {
                log.append(pos, &row(pos, 0));
            }
            assert!(log.from() > 0 && log.end() - log.from() > 10 * BLOCK as u32, "{} to {}", log.from(), log.end());
        }
        assert!(budget.taken() <= 100 * BLOCK * WIDTH * 4);
        assert!(logs[0].end() - logs[0].from() > logs[1].end() - logs[1].from());
    }

    #[test]
    fn rows_that_are_not_kept_are_not_given() {
        let mut log = Log::new(1, 10, LogBudget::default());
        log.append(10, &[1.0, 2.0, 3.0]);
        assert!(log.read(9, u32::MAX, 9).is_empty());
        assert!(log.read(13, u32::MAX, 9).is_empty());
        assert_eq!(log.read(11, 12, 9), [2.0]);
        log.cut(5);
        assert_eq!((log.from(), log.end()), (5, 5));
        log.append(5, &[9.0]);
        assert_eq!(log.read(5, u32::MAX, 9), [9.0]);
    }
}
