//! What a stage has handed on in a session, kept for another that may have to begin anew: the newest rows in memory, those
//! before them on disk.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::spill::{Away, Disk, Spill};

/// Rows of a block: what leaves memory, or is forgotten, at once.
const BLOCK: usize = 32;

/// Room for the logs of all sessions of a node. In memory one may hold as much as it leaves free for others, half of it.
#[derive(Debug, Clone)]
pub(crate) struct LogBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    total: usize,
    taken: AtomicUsize,
    disk: Option<Disk>,
}

impl LogBudget {
    /// `total` bytes of memory, and a disk for what has no room there.
    pub(crate) fn new(total: usize, disk: Option<Disk>) -> Self {
        Self(Arc::new(Shared { total, taken: AtomicUsize::new(0), disk }))
    }

    /// Bytes of memory that logs hold now.
    pub(in crate::inference) fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }

    /// Bytes that logs take of the disk now.
    pub(in crate::inference) fn on_disk(&self) -> u64 {
        self.0.disk.as_ref().map_or(0, Disk::taken)
    }
}

/// Rows that were asked for.
#[derive(Debug)]
pub(super) enum Kept {
    /// As many as there were at hand.
    Rows(Vec<f32>),
    /// The first of them are on disk: to be fetched, given to [`Log::fetched`], and asked for again.
    OnDisk(Away),
}

/// Rows `from..end` on disk: the first ones of a block. Others of it were taken back.
#[derive(Debug)]
struct OnDisk {
    from: u32,
    end: u32,
    block: Away,
}

/// Rows `from..end` of what a session's stage computed, each `width` values. Appending never fails and waits for nothing: what
/// memory has no room for goes to disk, and what has none there is forgotten, the oldest rows first.
#[derive(Debug)]
pub(in crate::inference) struct Log {
    width: usize,
    from: u32,
    end: u32,
    /// Blocks on disk, the oldest first.
    away: VecDeque<OnDisk>,
    /// Place in the file of the first of them.
    first_slot: u64,
    /// Position of the first row in memory.
    here: u32,
    /// Rows in memory; all blocks but the last are full.
    blocks: VecDeque<Vec<f32>>,
    bytes: usize,
    budget: LogBudget,
    spill: Option<Spill>,
    /// The block that was fetched last.
    fetched: Option<(Away, Vec<f32>)>,
}

impl Log {
    /// An empty log of a session whose first row is at `from`.
    pub(super) fn new(width: u32, from: u32, budget: LogBudget) -> Self {
        let width = usize::try_from(width).unwrap_or(usize::MAX).max(1);
        let spill = budget.0.disk.as_ref().zip(width.checked_mul(BLOCK)).map(|(disk, values)| Spill::new(disk, values));
        let (away, blocks) = (VecDeque::new(), VecDeque::new());
        Self { width, from, end: from, away, first_slot: 0, here: from, blocks, bytes: 0, budget, spill, fetched: None }
    }

    /// The first row that is kept.
    pub(super) fn from(&mut self) -> u32 {
        self.forget_lost();
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
            if let Some(block) = self.blocks.pop_front() {
                self.put_away(block);
            }
            self.count();
        }
    }

    /// Moves the oldest block in memory to disk; where that cannot be, all up to it are forgotten.
    fn put_away(&mut self, block: Vec<f32>) {
        let slot = self.first_slot.saturating_add(self.away.len() as u64);
        let (from, end) = (self.here, self.here.saturating_add(BLOCK as u32));
        self.here = end;
        match self.spill.as_mut().and_then(|spill| spill.put(slot, block)) {
            Some(block) => self.away.push_back(OnDisk { from, end, block }),
            None => self.forget(self.away.len()),
        }
    }

    /// Forgets the first `blocks` of those on disk.
    fn forget(&mut self, blocks: usize) {
        drop(self.away.drain(..blocks.min(self.away.len())));
        self.from = self.away.front().map_or(self.here, |block| block.from);
        // Places may be used anew from the first on when none is in use.
        self.first_slot = if self.away.is_empty() { 0 } else { self.first_slot.saturating_add(blocks as u64) };
    }

    /// Forgets what the disk did not keep.
    fn forget_lost(&mut self) {
        if self.spill.as_ref().is_some_and(Spill::has_lost)
            && let Some(last) = self.away.iter().rposition(|on_disk| on_disk.block.is_lost())
        {
            self.forget(last + 1);
        }
    }

    /// Forgets rows from `keep` on. What begins behind that is no use, and the log begins there anew.
    pub(super) fn cut(&mut self, keep: u32) {
        if keep < self.from || keep > self.end {
            self.away.clear();
            self.blocks.clear();
            (self.from, self.here, self.first_slot) = (keep, keep, 0);
        } else if keep < self.here {
            self.blocks.clear();
            self.away.truncate(self.away.partition_point(|on_disk| on_disk.from < keep));
            if let Some(last) = self.away.back_mut() {
                last.end = last.end.min(keep);
            }
            self.here = keep;
        } else {
            let rows = usize::try_from(keep - self.here).unwrap_or(usize::MAX);
            self.blocks.truncate(rows.div_ceil(BLOCK));
            if let Some(block) = self.blocks.back_mut() {
                let last = rows - (rows.div_ceil(BLOCK) - 1) * BLOCK;
                block.truncate(last * self.width);
            }
        }
        self.end = keep;
        self.count();
    }

    /// Rows from `pos` up to `until`, at most `most`; nothing where none are kept.
    pub(super) fn read(&mut self, pos: u32, until: u32, most: usize) -> Kept {
        self.forget_lost();
        let until = until.min(self.end);
        let rows =
            |from: u32, until: u32| usize::try_from(until.saturating_sub(from)).unwrap_or(0).min(most) * self.width;
        if pos < self.from || pos >= until {
            return Kept::Rows(Vec::new());
        }
        let Some(on_disk) = self.away.get(self.away.partition_point(|on_disk| on_disk.end <= pos)) else {
            let skip = usize::try_from(pos - self.here).unwrap_or(usize::MAX);
            let blocks = self.blocks.iter().skip(skip / BLOCK);
            let values = blocks.flatten().skip(skip % BLOCK * self.width).take(rows(pos, until));
            return Kept::Rows(values.copied().collect());
        };
        // Up to the block's end: the next one is fetched in its turn.
        let skip = usize::try_from(pos - on_disk.from).unwrap_or(usize::MAX) * self.width;
        let take = rows(pos, until.min(on_disk.end));
        let part = |values: &[f32]| values.iter().skip(skip).take(take).copied().collect();
        match &self.fetched {
            Some((block, values)) if block.is(&on_disk.block) => Kept::Rows(part(values)),
            _ => match on_disk.block.in_memory() {
                Some(values) => Kept::Rows(part(&values)),
                None => Kept::OnDisk(on_disk.block.clone()),
            },
        }
    }

    /// Takes a block that was fetched. One that could not be is forgotten, and all before it.
    pub(super) fn fetched(&mut self, block: Away, values: Option<Vec<f32>>) {
        match values {
            Some(values) => self.fetched = Some((block, values)),
            None => self.forget_lost(),
        }
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

    /// As a task of a replay reads.
    fn read(log: &mut Log, mut pos: u32, until: u32, most: usize) -> Vec<f32> {
        let mut rows = Vec::new();
        while rows.len() / WIDTH < most {
            match log.read(pos, until, most - rows.len() / WIDTH) {
                Kept::Rows(some) if some.is_empty() => break,
                Kept::Rows(some) => {
                    pos += (some.len() / WIDTH) as u32;
                    rows.extend(some);
                }
                Kept::OnDisk(block) => {
                    let values = block.fetch();
                    log.fetched(block, values);
                }
            }
        }
        rows
    }

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
            on_disk in prop_oneof![Just(None), Just(Some(u64::MAX)), (0..40_000_u64).prop_map(Some)],
        ) {
            let dir = tempfile::tempdir().unwrap();
            let disk = on_disk.map(|total| Disk::start(dir.path().join("rows"), total).unwrap());
            let budget = LogBudget::new(total, disk);
            let mut log = Log::new(WIDTH as u32, start, budget.clone());
            let mut model: Vec<[f32; WIDTH]> = Vec::new();
            for (version, (back, rows)) in steps.into_iter().enumerate() {
                // Rows go on where those before ended, or take some of them back.
                let end = start + model.len() as u32;
                let pos = if back < 60 { end } else { end.saturating_sub((back - 60) * 20).max(start) };
                let new: Vec<_> = (pos..pos + rows).map(|pos| row(pos, version as u32)).collect();
                model.truncate((pos - start) as usize);
                model.extend(&new);
                log.append(pos, &new.concat());
                prop_assert_eq!(log.end(), start + model.len() as u32);
                prop_assert!(log.from() <= log.end());
                prop_assert!(on_disk != Some(u64::MAX) || log.from() == start, "a disk has room for all");
                let from = log.from();
                let kept = &model[(from - start) as usize..];
                prop_assert_eq!(read(&mut log, from, u32::MAX, usize::MAX), kept.concat());
                let half = from + (log.end() - from) / 2;
                let upper = &model[(half - start) as usize..];
                prop_assert_eq!(read(&mut log, half, u32::MAX, usize::MAX), upper.concat());
                let one = read(&mut log, half, half + 2, 1);
                prop_assert_eq!(one, upper.concat().into_iter().take(WIDTH).collect::<Vec<_>>());
                // A block may be more than its share; nothing beyond it.
                prop_assert!(budget.taken() <= total.max(2 * BLOCK * WIDTH * 4 * 2));
                prop_assert!(on_disk.is_none_or(|total| budget.on_disk() <= total));
            }
            drop(log);
            prop_assert_eq!(budget.taken(), 0);
            // The thread that writes may still hold the last block.
            let given_up = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while budget.on_disk() > 0 && std::time::Instant::now() < given_up {
                std::thread::yield_now();
            }
            prop_assert_eq!(budget.on_disk(), 0);
        }
    }

    #[test]
    fn one_log_leaves_half_to_others() {
        let budget = LogBudget::new(100 * BLOCK * WIDTH * 4, None);
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
        let mut log = Log::new(WIDTH as u32, 10, LogBudget::new(1 << 20, None));
        let rows: Vec<f32> = (10..13).flat_map(|pos| row(pos, 0)).collect();
        log.append(10, &rows);
        assert!(read(&mut log, 9, u32::MAX, 9).is_empty());
        assert!(read(&mut log, 13, u32::MAX, 9).is_empty());
        assert_eq!(read(&mut log, 11, 12, 9), row(11, 0));
        log.cut(5);
        assert_eq!((log.from(), log.end()), (5, 5));
        log.append(5, &row(5, 1));
        assert_eq!(read(&mut log, 5, u32::MAX, 9), row(5, 1));
    }

    /// A log of `rows` rows of which memory has room for few, and its disk.
    fn mostly_on_disk(dir: &std::path::Path, rows: u32) -> (Log, LogBudget) {
        let disk = Disk::start(dir.to_owned(), u64::MAX).unwrap();
        let budget = LogBudget::new(4 * BLOCK * WIDTH * 4, Some(disk));
        let mut log = Log::new(WIDTH as u32, 0, budget.clone());
        (0..rows).for_each(|pos| log.append(pos, &row(pos, 0)));
        // Written, all of them.
        for on_disk in &log.away {
            while on_disk.block.in_memory().is_some() {
                std::thread::yield_now();
            }
        }
        (log, budget)
    }

    #[test]
    fn nothing_readable_is_on_disk_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, budget) = mostly_on_disk(dir.path(), 40 * BLOCK as u32);
        assert!(budget.on_disk() >= 30 * (BLOCK * WIDTH * 4) as u64, "{}", budget.on_disk());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a file of logs has no name");
        let block = log.away[3].block.clone();
        let (sealed, plain) = (block.sealed(), row(3 * BLOCK as u32, 0));
        let plain: Vec<u8> = plain.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(!sealed.windows(plain.len()).any(|bytes| bytes == plain), "rows are on disk as they are");
        assert_eq!(read(&mut log, 0, u32::MAX, usize::MAX).len(), 40 * BLOCK * WIDTH);
        drop((log, block));
        while budget.on_disk() > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_was_changed_on_disk_is_forgotten_with_all_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = mostly_on_disk(dir.path(), 40 * BLOCK as u32);
        log.away[3].block.spoil();
        let first = read(&mut log, 0, u32::MAX, usize::MAX);
        assert_eq!(first.len(), 3 * BLOCK * WIDTH, "rows behind what cannot be read");
        assert_eq!(log.from(), 4 * BLOCK as u32);
        let rest = read(&mut log, 4 * BLOCK as u32, u32::MAX, usize::MAX);
        assert_eq!(rest.len(), 36 * BLOCK * WIDTH);
    }
}
