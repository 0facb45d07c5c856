//! One slice, written by several tasks in parts of their own.

use std::marker::PhantomData;

/// Elements a task should have at least: below, starting it costs more than it saves.
pub(crate) const TASK: usize = 16 * 1024;

/// A slice that tasks on several threads write, each in a part that no other touches.
pub(crate) struct Split<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Split` gives access to its elements by `part` only, whose callers promise that no two parts overlap: that
// is the access of one `&mut [T]` split into pieces, which may go to other threads where `T` may.
unsafe impl<T: Send> Sync for Split<'_, T> {}

impl<'a, T> Split<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// The elements `from..from + len`.
    ///
    /// # Panics
    /// If they reach past the end.
    ///
    /// # Safety
    /// While the returned slice lives no other part with one of these elements is asked for.
    #[allow(clippy::mut_from_ref, reason = "the parts are disjoint")]
    pub(crate) unsafe fn part(&self, from: usize, len: usize) -> &mut [T] {
        assert!(from <= self.len && len <= self.len - from, "a part of the slice");
        // SAFETY: the elements lie in the slice, borrowed for 'a; the caller keeps parts disjoint.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}
