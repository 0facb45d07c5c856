//! Storage aligned to a cache line.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes in a cache line, and in the widest vector.
pub const LINE: usize = 64;

/// From this size on, storage is aligned to huge pages and the system is asked for them: a stream of weights then crosses
/// a page every two megabytes instead of every four kilobytes.
pub const HUGE: usize = 2 << 20;

/// A fixed number of zeroed values of a plain type, starting on a cache line.
pub struct AlignedVec<T: Plain> {
    start: NonNull<T>,
    len: usize,
    /// Whether the system was asked for it, not the allocator.
    mapped: bool,
}

/// Types for which all-zero bytes are a value and which need no drop.
///
/// # Safety
/// Only types with both properties may implement it.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: integers and floats are zero when their bytes are, and need no drop.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}

impl<T: Plain> AlignedVec<T> {
    /// `len` zeroes.
    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        if layout.size() == 0 {
            return Self { start: NonNull::dangling(), len: 0, mapped: false };
        }
        if layout.align() >= HUGE
            && let Some(start) = huge::map(layout)
        {
            return Self { start: start.cast(), len, mapped: true };
        }
        // SAFETY: the layout is not empty.
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        Self { start: start.cast(), len, mapped: false }
    }

    /// Grows to at least `len`; what it held is lost when it grows.
    pub fn reserve(&mut self, len: usize) {
        if len > self.len {
            *self = Self::zeroed(len.next_power_of_two());
        }
    }

    fn layout(len: usize) -> Layout {
        let bytes = len.saturating_mul(size_of::<T>());
        let align = if bytes >= HUGE { HUGE } else { LINE };
        match Layout::from_size_align(bytes, align) {
            Ok(layout) => layout,
            // More than half the address space: no allocator has it.
            Err(_) => handle_alloc_error(Layout::new::<T>()),
        }
    }
}

/// Storage straight from the system. An allocator zeroes aligned memory by hand, which takes it in small pages before
/// anybody could ask for huge ones; fresh mappings are zero already, and whoever fills them takes the pages.
#[cfg(target_os = "linux")]
mod huge {
    use std::alloc::Layout;
    use std::ptr::{NonNull, null_mut};

    /// Zeroes of this layout, aligned to huge pages; `None` when the system refuses.
    pub fn map(layout: Layout) -> Option<NonNull<u8>> {
        let wanted = length(layout)?;
        let room = wanted.checked_add(layout.align())?;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new private mapping at an address of the system's choice touches no memory of ours.
        let start = unsafe { libc::mmap(null_mut(), room, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let before = start.addr().next_multiple_of(layout.align()) - start.addr();
        // SAFETY: the parts before and behind the aligned range are of the mapping just made and hold nothing; the
        // advice changes neither contents nor protection, and a refusal costs speed only.
        unsafe {
            let aligned = start.byte_add(before);
            for (slack, len) in [(start, before), (aligned.byte_add(wanted), layout.align() - before)] {
                if len > 0 {
                    libc::munmap(slack, len);
                }
            }
            libc::madvise(aligned, wanted, libc::MADV_HUGEPAGE);
            NonNull::new(aligned.cast())
        }
    }

    /// Gives back what [`map`] gave.
    ///
    /// # Safety
    /// `start` came from [`map`] with this layout and is not used any more.
    pub unsafe fn unmap(start: NonNull<u8>, layout: Layout) {
        if let Some(len) = length(layout) {
            libc::munmap(start.as_ptr().cast(), len);
        }
    }

    /// Whole small pages, as mappings come.
    fn length(layout: Layout) -> Option<usize> {
        layout.size().checked_next_multiple_of(4096)
    }
}

#[cfg(not(target_os = "linux"))]
mod huge {
    use std::alloc::Layout;
    use std::ptr::NonNull;

    pub fn map(_: Layout) -> Option<NonNull<u8>> {
        None
    }

    pub unsafe fn unmap(_: NonNull<u8>, _: Layout) {}
}

impl<T: Plain> Default for AlignedVec<T> {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl<T: Plain> Deref for AlignedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `start` points to `len` initialised values that this owns, or is dangling with a length of 0.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> Drop for AlignedVec<T> {
    fn drop(&mut self) {
        let layout = Self::layout(self.len);
        if self.mapped {
            // SAFETY: mapped with this very layout in `zeroed`.
            unsafe { huge::unmap(self.start.cast(), layout) };
        } else if layout.size() != 0 {
            // SAFETY: allocated with this very layout in `zeroed`.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) };
        }
    }
}

// SAFETY: the storage is owned and holds values that are themselves Send and Sync.
unsafe impl<T: Plain> Send for AlignedVec<T> {}
// SAFETY: as above; shared references only read.
unsafe impl<T: Plain> Sync for AlignedVec<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_is_zeroed_and_aligned_whatever_its_length() {
        for len in [0, 1, 63, 64, 1000, HUGE / 4 - 1, HUGE / 4 + 3] {
            let mut v = AlignedVec::<f32>::zeroed(len);
            assert_eq!(v.len(), len);
            assert!(v.iter().all(|&x| x == 0.0));
            assert_eq!(v.as_ptr() as usize % if len == 0 { 4 } else { LINE }, 0);
            v.reserve(len + 1);
            assert!(v.len() > len);
        }
    }
}
