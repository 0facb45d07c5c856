//! What a stage keeps of the rows of a session, and when it commits to them.

use std::collections::BTreeSet;

use super::{Chain, Digest, EVERY, Root, SETTLED, due};

/// Rows before the last due commitment for which is signed once more after a recovery: the places where the one before signed
/// last, most likely, so that the two are compared there.
const AGAIN: u32 = 8 * EVERY;

/// What a stage commits to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The first row of the roots.
    pub first: u32,
    /// The position behind the last.
    pub rows: u32,
    /// Root over the rows that came in.
    pub in_root: Root,
    /// Root over the rows that were computed of them.
    pub out_root: Root,
}

/// The chains of one session at one stage. A stage commits
///
/// - at every multiple of [`EVERY`] rows, once [`SETTLED`] more are there,
/// - after a chunk of a prompt, of which the last stage gives back one row only: that one commits before this row as well, so
///   that the coordinator can tell by the two roots whether it got that row,
/// - where the last stage begins to give rows back anew, for the same reason, once as many more are there,
/// - when it is told to go on after a recovery, for what was due before, and
/// - at the end.
///
/// In the first epoch the roots begin with the first row that the stage computes, which is the same for all stages: those
/// who had more rows from before are trimmed. In later ones the coordinator says with Resume where they begin; until then
/// nothing is committed.
#[derive(Debug)]
pub struct Roots {
    input: Chain,
    output: Chain,
    first: Option<u32>,
    /// The last multiple that was committed to.
    committed: u32,
    /// Where rows begin to be given back.
    gives_back: Option<u32>,
}

impl Roots {
    /// For a session that was opened in `epoch` with rows up to `from` from before.
    #[must_use]
    pub fn new(from: u32, epoch: u32) -> Self {
        let chain = Chain::new(from);
        let first = (epoch <= 1).then_some(from);
        Self { input: chain.clone(), output: chain, first, committed: from, gives_back: None }
    }

    /// Rows from `pos` on are void.
    pub fn cut(&mut self, keep: u32) {
        self.input.cut(keep);
        self.output.cut(keep);
        self.committed = self.committed.min(keep);
        self.gives_back = self.gives_back.filter(|rows| *rows <= keep);
        if let Some(first) = &mut self.first {
            *first = keep.min(*first);
        }
    }

    /// The session has other neighbours, and may be given rows that it had from before: nothing is committed until it is
    /// [resumed](Self::resumed).
    pub fn rerouted(&mut self) {
        self.first = None;
    }

    /// The roots begin with row `first`; the last stage is also told where it begins to give rows back. What is committed
    /// to now: rows may have been computed before this was heard, and none may follow for as long as that is waited for. What
    /// was committed to before is said once more, as it may have come when the epoch was over already.
    pub fn resumed(&mut self, first: u32, gives_back: Option<u32>) -> Vec<Point> {
        if self.first.is_none() {
            self.gives_back = gives_back;
            self.committed = self.committed.min(due(self.output.end()).saturating_sub(AGAIN));
        }
        self.first = Some(first);
        let at = self.due();
        self.points(at)
    }

    /// Rows from `pos` on were computed. `last_of_chunk` when they are of a prompt, of which only the last row is wanted;
    /// `last_stage` when that alone is given back. What is committed to now, in order of the rows.
    pub fn computed(
        &mut self,
        pos: u32,
        [input, output]: [&[Digest]; 2],
        last_of_chunk: bool,
        last_stage: bool,
    ) -> Vec<Point> {
        if pos != self.output.end() {
            self.cut(pos);
        }
        self.input.append(pos, input);
        self.output.append(pos, output);
        let end = self.output.end();
        let mut at = self.due();
        if last_of_chunk {
            at.insert(end);
            at.extend(last_stage.then_some(end.saturating_sub(1)));
        }
        self.points(at)
    }

    /// Where a commitment has fallen due, which it has from now on no more.
    fn due(&mut self) -> BTreeSet<u32> {
        let (Some(first), end) = (self.first, self.output.end()) else { return BTreeSet::new() };
        let due = due(end);
        let next = self.committed.max(first).checked_div(EVERY).unwrap_or(0).saturating_add(1).saturating_mul(EVERY);
        let mut at: BTreeSet<u32> = (next..=due).step_by(usize::try_from(EVERY).unwrap_or(usize::MAX)).collect();
        self.committed = self.committed.max(due);
        if self.gives_back.is_some_and(|rows| rows.saturating_add(SETTLED) <= end) {
            at.extend(self.gives_back.take());
        }
        at
    }

    fn points(&mut self, at: BTreeSet<u32>) -> Vec<Point> {
        let Some(first) = self.first else { return Vec::new() };
        at.into_iter().filter_map(|rows| self.point(first, rows)).collect()
    }

    /// The session ends in order: what is committed to at last.
    pub fn closing(&mut self) -> Option<Point> {
        let (first, rows) = (self.first?, self.output.end());
        self.point(first, rows)
    }

    fn point(&mut self, first: u32, rows: u32) -> Option<Point> {
        if rows <= first {
            return None;
        }
        let (in_root, out_root) = (self.input.root(first, rows)?, self.output.root(first, rows)?);
        Some(Point { first, rows, in_root, out_root })
    }
}
