//! Memory that many links share.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;

/// Bytes that all links of a node may hold together. Each may hold as much as is left free after it has taken it, no more:
/// one link gets half, and n greedy ones leave an (n + 1)th part for whoever comes next. (Switches share their packet
/// buffers like this.)
#[derive(Debug, Clone)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    total: usize,
    taken: AtomicUsize,
    freed: Notify,
}

impl Budget {
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Shared { total: bytes, taken: AtomicUsize::new(0), freed: Notify::new() }))
    }

    /// Bytes taken now.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }

    /// Takes `bytes` for somebody who holds `held` already; `None` when that is more than its share.
    pub(crate) fn take(&self, held: usize, bytes: usize) -> Option<Lease> {
        let fits = |taken: usize| {
            let taken = taken.saturating_add(bytes);
            let left = self.0.total.checked_sub(taken)?;
            (held.saturating_add(bytes) <= left).then_some(taken)
        };
        self.0.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Lease { budget: self.clone(), bytes })
    }

    /// As [`Self::take`], waiting until it is given. Somebody must hold something meanwhile, or nothing will be freed.
    pub(crate) async fn wait_for(&self, held: impl Fn() -> usize, bytes: usize) -> Lease {
        loop {
            // Registered before looking, so that nothing that is freed in between is missed.
            let mut freed = std::pin::pin!(self.0.freed.notified());
            freed.as_mut().enable();
            match self.take(held(), bytes) {
                Some(lease) => return lease,
                None => freed.await,
            }
        }
    }
}

/// A part of a budget; given back when dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    budget: Budget,
    bytes: usize,
}

impl Lease {
    /// Makes it a lease of `bytes`; `false` when that is more than its holder's share, and nothing changes.
    pub(crate) fn resize(&mut self, bytes: usize) -> bool {
        match bytes.checked_sub(self.bytes) {
            Some(0) => true,
            Some(more) => match self.budget.take(self.bytes, more) {
                Some(mut lease) => {
                    lease.bytes = 0;
                    self.bytes = bytes;
                    true
                }
                None => false,
            },
            None => {
                let less = self.bytes.saturating_sub(bytes);
                self.budget.0.taken.fetch_sub(less, Ordering::Relaxed);
                self.budget.0.freed.notify_waiters();
                self.bytes = bytes;
                true
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.0.taken.fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one greedy holder gets, in pieces of ten.
    fn grab(budget: &Budget) -> Vec<Lease> {
        let mut leases = Vec::new();
        while let Some(lease) = budget.take(leases.len() * 10, 10) {
            leases.push(lease);
        }
        leases
    }

    #[test]
    fn the_greedy_leave_a_part_for_the_next() {
        let budget = Budget::new(1000);
        let first = grab(&budget);
        assert_eq!((first.len(), budget.taken()), (50, 500));
        let second = grab(&budget);
        assert_eq!(second.len(), 25);
        assert!(!grab(&budget).is_empty());
        drop(first);
        assert!(grab(&budget).len() > 30);
        drop(second);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn nothing_is_lost_by_asking_in_vain() {
        let budget = Budget::new(100);
        assert!(
            budget.take(0, 51).is_none()
                && budget.take(0, usize::MAX).is_none()
                && budget.take(usize::MAX, 1).is_none()
        );
        assert_eq!(budget.taken(), 0);
        let mut lease = budget.take(0, 0).unwrap();
        assert!(lease.resize(50) && !lease.resize(51) && !lease.resize(usize::MAX));
        assert_eq!(budget.taken(), 50);
        assert!(lease.resize(20) && lease.resize(20));
        assert_eq!(budget.taken(), 20);
        drop(lease);
        assert_eq!(budget.taken(), 0);
    }
}
