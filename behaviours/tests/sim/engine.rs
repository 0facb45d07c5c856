//! Time, chance and distance. Everything follows from the seed.

use std::{cmp::Ordering, collections::BinaryHeap};

/// SplitMix64: small, and the same everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `n - 1`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// 0 to 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// `n` of `all`, in random order.
    pub fn pick<T: Copy>(&mut self, all: &[T], n: usize) -> Vec<T> {
        let mut all = all.to_vec();
        let n = n.min(all.len());
        for i in 0..n {
            let j = i + self.below(all.len() - i);
            all.swap(i, j);
        }
        all.truncate(n);
        all
    }
}

struct Planned<E> {
    at: u64,
    number: u64,
    event: E,
}

impl<E> PartialEq for Planned<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<E> Eq for Planned<E> {}

impl<E> PartialOrd for Planned<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Planned<E> {
    /// The next one is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// Events in order of time; of those at one moment, the one that was planned first.
pub struct Queue<E> {
    heap: BinaryHeap<Planned<E>>,
    planned: u64,
    /// Microseconds since the start.
    pub now: u64,
}

impl<E> Queue<E> {
    pub fn new() -> Self {
        Self { heap: BinaryHeap::new(), planned: 0, now: 0 }
    }

    pub fn plan(&mut self, after: u64, event: E) {
        self.heap.push(Planned { at: self.now + after, number: self.planned, event });
        self.planned += 1;
    }

    /// The next one up to `end`; after the last of them it is `end`.
    pub fn next(&mut self, end: u64) -> Option<E> {
        if self.heap.peek().is_none_or(|next| next.at > end) {
            self.now = end;
            return None;
        }
        let next = self.heap.pop()?;
        self.now = next.at;
        Some(next.event)
    }
}

/// All that happened, in one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace(pub u64);

impl Trace {
    pub fn note(&mut self, parts: [u64; 4]) {
        for part in parts {
            self.0 = Rng(self.0 ^ part).next();
        }
    }
}

/// Where nodes are. A packet takes 5 ms, and up to 140 ms more to the other end of the world, and some jitter.
pub struct World(Vec<(f64, f64)>);

impl World {
    pub fn new(nodes: usize, rng: &mut Rng) -> Self {
        Self((0..nodes).map(|_| (rng.unit(), rng.unit())).collect())
    }

    /// Microseconds one way, at best.
    pub fn distance(&self, a: usize, b: usize) -> u64 {
        let ((x, y), (u, v)) = (self.0[a], self.0[b]);
        (5_000.0 + 100_000.0 * (x - u).hypot(y - v)) as u64
    }

    /// Microseconds one way, this time.
    pub fn latency(&self, a: usize, b: usize, rng: &mut Rng) -> u64 {
        self.distance(a, b) + (10_000.0 * rng.unit()) as u64
    }
}

/// The smallest value below or at which a share of `sorted` lies.
pub fn quantile(sorted: &[u64], share: f64) -> u64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.max(1) - 1).copied().unwrap_or(0)
}
