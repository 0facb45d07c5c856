//! Memory that steps use again and again: after the first steps nothing is allocated for rows.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use quelea_kernels::product::Activations;

/// Most buffers that are kept for later; a step needs a dozen.
const KEPT_BUFFERS: usize = 32;

/// Free buffers of one backend.
#[derive(Default)]
pub(super) struct Arena(Mutex<Free>);

#[derive(Default)]
struct Free {
    /// By their length; the contents are whatever was there.
    buffers: BTreeMap<usize, Vec<Vec<f32>>>,
    kept: usize,
    activations: Vec<Activations>,
}

impl Arena {
    /// Nothing panics while it holds the lock, so a poisoned list is still whole.
    fn lock(&self) -> MutexGuard<'_, Free> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for `rows` rows of `width` values, which hold anything.
    pub(super) fn rows(self: &Arc<Self>, rows: usize, width: usize) -> Rows {
        let len = rows.saturating_mul(width);
        let mut free = self.lock();
        // The smallest that is long enough, unless most of it would lie idle.
        let found = free.buffers.range(len..=len.saturating_mul(4)).map(|(length, _)| *length).next();
        let buffer = found.and_then(|length| {
            let list = free.buffers.get_mut(&length)?;
            let buffer = list.pop();
            if list.is_empty() {
                free.buffers.remove(&length);
            }
            buffer
        });
        if buffer.is_some() {
            free.kept = free.kept.saturating_sub(1);
        }
        drop(free);
        let buffer = buffer.unwrap_or_else(|| vec![0.0; len]);
        Rows { buffer, len, width, arena: Arc::clone(self) }
    }

    pub(super) fn activations(&self) -> Activations {
        self.lock().activations.pop().unwrap_or_default()
    }

    pub(super) fn keep_activations(&self, activations: Activations) {
        let mut free = self.lock();
        if free.activations.len() < KEPT_BUFFERS {
            free.activations.push(activations);
        }
    }

    fn keep(&self, buffer: Vec<f32>) {
        let mut free = self.lock();
        if !buffer.is_empty() && free.kept < KEPT_BUFFERS {
            free.kept = free.kept.saturating_add(1);
            free.buffers.entry(buffer.len()).or_default().push(buffer);
        }
    }
}

/// Rows in a buffer of the arena, which gets it back.
pub struct Rows {
    buffer: Vec<f32>,
    len: usize,
    width: usize,
    arena: Arc<Arena>,
}

impl Rows {
    /// Values per row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub(super) fn count(&self) -> usize {
        self.len.checked_div(self.width).unwrap_or(0)
    }

    pub(super) fn values(&self) -> &[f32] {
        self.buffer.get(..self.len).unwrap_or_default()
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        self.buffer.get_mut(..self.len).unwrap_or_default()
    }

    /// One row; empty when there is no such row.
    pub(super) fn row(&self, index: usize) -> &[f32] {
        let start = index.saturating_mul(self.width);
        self.values().get(start..start.saturating_add(self.width)).unwrap_or_default()
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.arena.keep(std::mem::take(&mut self.buffer));
    }
}
