//! The bytes that a module and its host hand each other: blocks at addresses outside the module's own memory, as the kits of
//! the extism project have them. Every access is checked here, against what was really given out.

use std::collections::BTreeMap;

use crate::agents::limits::ARENA_MAX;

/// The first address. Below it nothing is valid, so that 0 stays "nothing".
const BASE: u64 = 1 << 16;

/// Blocks at once: each costs a node of a tree.
const BLOCKS: usize = 65_536;

/// The blocks.
#[derive(Debug, Default)]
pub(super) struct Arena {
    bytes: Vec<u8>,
    /// Offset and length of what is in use.
    blocks: BTreeMap<usize, usize>,
}

impl Arena {
    /// A block of so many zeros; nothing when there is no room.
    pub(super) fn alloc(&mut self, len: u64) -> Option<u64> {
        let len = usize::try_from(len).ok().filter(|len| *len <= ARENA_MAX)?;
        if self.blocks.len() >= BLOCKS {
            return None;
        }
        // Behind the last one; else in the first gap that is wide enough.
        let end = self.blocks.last_key_value().map_or(0, |(at, len)| at.saturating_add((*len).max(1)));
        let at = if end.saturating_add(len) <= ARENA_MAX { end } else { self.gap(len)? };
        let stop = at.checked_add(len.max(1))?;
        if self.bytes.len() < stop {
            self.bytes.resize(stop, 0);
        }
        self.bytes.get_mut(at..stop)?.fill(0);
        self.blocks.insert(at, len);
        Some(BASE.saturating_add(at as u64))
    }

    fn gap(&self, len: usize) -> Option<usize> {
        let mut from = 0_usize;
        for (at, used) in &self.blocks {
            if at.saturating_sub(from) > len {
                return Some(from);
            }
            from = at.saturating_add((*used).max(1));
        }
        None
    }

    /// A block with these bytes.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Option<u64> {
        let at = self.alloc(bytes.len() as u64)?;
        let block = self.block_mut(at)?;
        block.copy_from_slice(bytes);
        Some(at)
    }

    /// Gives a block back.
    pub(super) fn free(&mut self, at: u64) {
        if let Some(at) = offset(at) {
            self.blocks.remove(&at);
        }
    }

    /// A block's length; nothing where none begins.
    pub(super) fn length(&self, at: u64) -> Option<u64> {
        self.blocks.get(&offset(at)?).map(|len| *len as u64)
    }

    /// A whole block.
    pub(super) fn block(&self, at: u64) -> Option<&[u8]> {
        let at = offset(at)?;
        self.bytes.get(at..at.checked_add(*self.blocks.get(&at)?)?)
    }

    fn block_mut(&mut self, at: u64) -> Option<&mut [u8]> {
        let at = offset(at)?;
        let len = *self.blocks.get(&at)?;
        self.bytes.get_mut(at..at.checked_add(len)?)
    }

    /// Bytes anywhere in what was given out at some time.
    pub(super) fn slice(&self, at: u64, len: u64) -> Option<&[u8]> {
        let at = offset(at)?;
        self.bytes.get(at..at.checked_add(usize::try_from(len).ok()?)?)
    }

    /// The same, to write to.
    pub(super) fn slice_mut(&mut self, at: u64, len: u64) -> Option<&mut [u8]> {
        let at = offset(at)?;
        self.bytes.get_mut(at..at.checked_add(usize::try_from(len).ok()?)?)
    }
}

fn offset(at: u64) -> Option<usize> {
    usize::try_from(at.checked_sub(BASE)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn blocks_never_overlap_and_never_leave_the_arena(ops in prop::collection::vec((any::<bool>(), any::<u64>()), 0..60)) {
            let mut arena = Arena::default();
            let mut given: Vec<(u64, u64)> = Vec::new();
            for (alloc, n) in ops {
                if alloc || given.is_empty() {
                    // Most of them fit.
                    let len = if n % 7 == 0 { n } else { n % (ARENA_MAX as u64 / 4) };
                    if let Some(at) = arena.alloc(len) {
                        for (other, used) in &given {
                            prop_assert!(at + len <= *other || other + used <= at, "{at}+{len} in {other}+{used}");
                        }
                        prop_assert_eq!(arena.block(at).unwrap().len() as u64, len);
                        prop_assert!(arena.block(at).unwrap().iter().all(|byte| *byte == 0));
                        arena.slice_mut(at, len).unwrap().fill(0xa5);
                        given.push((at, len));
                    }
                } else {
                    let (at, _) = given.swap_remove(usize::try_from(n % given.len() as u64).unwrap());
                    arena.free(at);
                    prop_assert!(arena.block(at).is_none());
                }
                prop_assert!(arena.bytes.len() <= ARENA_MAX + 1);
            }
        }

        #[test]
        fn no_address_reaches_outside(at in any::<u64>(), len in any::<u64>()) {
            let mut arena = Arena::default();
            let block = arena.put(b"twelve bytes").unwrap();
            let inside = at >= block && len <= 12 && at - block <= 12 - len;
            prop_assert_eq!(arena.slice(at, len).is_some(), inside);
            prop_assert_eq!(arena.slice_mut(at, len).is_some(), inside);
            for (at, len) in [(block, u64::MAX), (u64::MAX, 1), (block + 11, 2), (0, 1), (block - 1, 1)] {
                prop_assert!(arena.slice(at, len).is_none());
            }
        }
    }
}
