//! Hash chains over rows.

/// The BLAKE3 of a row's values, as little-endian f32.
pub type Digest = [u8; 32];

/// The end of a chain of digests.
pub type Root = [u8; 32];

/// Separates the roots' beginnings from every other hash in the project.
const ROOTS: &str = "quelea shard roots v1";

/// Values that are turned into bytes at a time: a whole row of most models, on the stack.
const VALUES: usize = 4096;

/// The digest of each of `rows`, which have `width` values each.
#[must_use]
pub fn digests(rows: &[f32], width: usize) -> Vec<Digest> {
    let mut bytes = [0; VALUES * size_of::<f32>()];
    rows.chunks_exact(width.max(1)).map(|row| digest(row, &mut bytes)).collect()
}

fn digest(row: &[f32], bytes: &mut [u8; VALUES * size_of::<f32>()]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for values in row.chunks(VALUES) {
        let (places, _) = bytes.as_chunks_mut::<4>();
        for (place, value) in places.iter_mut().zip(values) {
            *place = value.to_le_bytes();
        }
        let len = values.len().saturating_mul(size_of::<f32>());
        hasher.update(bytes.get(..len).unwrap_or_default());
    }
    hasher.finalize().into()
}

/// The root over no rows yet, of a chain that begins with row `first`.
#[must_use]
pub fn seed(first: u32) -> Root {
    blake3::derive_key(ROOTS, &first.to_le_bytes())
}

/// Digests of consecutive rows, 32 bytes each, of which roots are made from any row on. Its owner bounds it by bounding the
/// rows.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    /// Position of the first digest.
    from: u32,
    digests: Vec<Digest>,
    /// The last root that was made, with its first row and the position behind its last: where the next one goes on.
    tip: Option<(u32, u32, Root)>,
}

impl Chain {
    /// A chain whose first row is at `from`.
    #[must_use]
    pub fn new(from: u32) -> Self {
        Self { from, ..Self::default() }
    }

    /// Position of the first row.
    #[must_use]
    pub fn from(&self) -> u32 {
        self.from
    }

    /// Where the next row belongs.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.from.saturating_add(u32::try_from(self.digests.len()).unwrap_or(u32::MAX))
    }

    /// Rows from `pos` on are these. Those that were there from `pos` on are forgotten; where rows between are missing, or
    /// `pos` lies before the first, the chain begins anew.
    pub fn append(&mut self, pos: u32, rows: &[Digest]) {
        if pos != self.end() {
            self.cut(pos);
        }
        self.digests.extend_from_slice(rows);
    }

    /// Forgets rows from `keep` on. Where that is not within the chain, it begins anew there.
    pub fn cut(&mut self, keep: u32) {
        if keep < self.from || keep > self.end() {
            self.digests.clear();
            self.from = keep;
            self.tip = None;
        } else {
            self.digests.truncate(usize::try_from(keep.saturating_sub(self.from)).unwrap_or(usize::MAX));
            self.tip = self.tip.filter(|(_, rows, _)| *rows <= keep);
        }
    }

    /// The root over rows `first..rows`; nothing where some of them are not here. Costs a hash of 64 bytes for each row since
    /// the last one asked for, and for each of all when that went further.
    pub fn root(&mut self, first: u32, rows: u32) -> Option<Root> {
        let (from, root) = match self.tip {
            Some((of, at, root)) if of == first && at <= rows => (at, root),
            _ => (first, seed(first)),
        };
        let root = self.onwards(root, from, rows)?;
        self.tip = Some((first, rows, root));
        Some(root)
    }

    /// What becomes of `root`, over rows up to `from`, with those up to `to`; nothing where some of them are not here.
    #[must_use]
    pub fn onwards(&self, root: Root, from: u32, to: u32) -> Option<Root> {
        let skip = usize::try_from(from.checked_sub(self.from)?).ok()?;
        let take = usize::try_from(to.checked_sub(from)?).ok()?;
        let rows = self.digests.get(skip..skip.checked_add(take)?)?;
        Some(rows.iter().fold(root, |root, digest| {
            let mut both = [0; 64];
            let (before, row) = both.split_at_mut(32);
            before.copy_from_slice(&root);
            row.copy_from_slice(digest);
            blake3::hash(&both).into()
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WIDTH: usize = 3;

    /// The row that belongs at `pos`, in its `version`.
    fn row(pos: u32, version: u32) -> [f32; WIDTH] {
        [pos as f32, version as f32, -0.0]
    }

    fn fresh(first: u32, rows: &[[f32; WIDTH]]) -> Root {
        let mut chain = Chain::new(first);
        chain.append(first, &digests(&rows.concat(), WIDTH));
        chain.root(first, first + rows.len() as u32).unwrap()
    }

    proptest! {
        #[test]
        fn one_that_was_cut_is_as_one_that_never_went_there(
            start in 0..100_u32,
            steps in proptest::collection::vec((0..90_u32, 1..70_u32, any::<bool>()), 1..30),
        ) {
            let mut chain = Chain::new(start);
            let mut model: Vec<[f32; WIDTH]> = Vec::new();
            for (version, (back, rows, looks)) in steps.into_iter().enumerate() {
                let end = start + model.len() as u32;
                let pos = if back < 60 { end } else { end.saturating_sub(back - 60).max(start) };
                let new: Vec<_> = (pos..pos + rows).map(|pos| row(pos, version as u32)).collect();
                model.truncate((pos - start) as usize);
                model.extend(&new);
                chain.append(pos, &digests(&new.concat(), WIDTH));
                prop_assert_eq!((chain.from(), chain.end()), (start, start + model.len() as u32));
                if looks {
                    // At any place, whatever was asked for before.
                    let rows = model.len() * (back as usize % 7) / 6;
                    let (first, rows) = (start + rows as u32 / 3, start + rows as u32);
                    let of = &model[(first - start) as usize..(rows - start) as usize];
                    prop_assert_eq!(chain.root(first, rows), Some(fresh(first, of)));
                    prop_assert_eq!(chain.onwards(fresh(first, of), rows, chain.end()), chain.clone().root(first, chain.end()));
                }
                prop_assert_eq!(chain.root(start, chain.end()), Some(fresh(start, &model)));
            }
        }
    }

    #[test]
    fn roots_of_rows_that_are_not_here_are_not_given() {
        let mut chain = Chain::new(10);
        chain.append(10, &digests(&[1.0, 2.0, 3.0], 1));
        assert_eq!(chain.root(9, 12), None);
        assert_eq!(chain.root(10, 14), None);
        assert_eq!(chain.root(12, 11), None);
        assert_eq!(chain.root(11, 11), Some(seed(11)));
        // Behind a gap, and before the beginning, it begins anew.
        chain.append(20, &digests(&[4.0], 1));
        assert_eq!((chain.from(), chain.end(), chain.root(10, 13)), (20, 21, None));
        chain.append(5, &digests(&[5.0], 1));
        assert_eq!((chain.from(), chain.end()), (5, 6));
    }

    #[test]
    fn a_row_is_hashed_as_the_bytes_that_travel() {
        for width in [1, 64, VALUES - 1, VALUES, VALUES + 1, 3 * VALUES + 5] {
            let values: Vec<f32> = (0..2 * width).map(|n| n as f32 - 0.5).collect();
            let rows = digests(&values, width);
            assert_eq!(rows.len(), 2);
            for (row, values) in rows.iter().zip(values.chunks(width)) {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                assert_eq!(*row, *blake3::hash(&bytes).as_bytes(), "{width}");
            }
        }
    }
}
