//! Bytes and streams of each peer, for people: what libp2p counts, it counts by transport.
//!
//! The muxer of each connection counts (see `muxing`); its figures live as long as it does, so that there are as many as the
//! connection limits allow. A circuit counts for the peer at its end and, as bytes, for the relay, too.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use libp2p::PeerId;

/// What went over the connections that a peer has now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    /// Streams open.
    pub streams: u64,
    /// Bytes that streams sent, without what encryption and framing add.
    pub sent: u64,
    /// Bytes that streams got.
    pub received: u64,
}

/// A swarm's table of these. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    table: Arc<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: AtomicU64,
    lines: Mutex<HashMap<u64, (PeerId, Arc<Counts>)>>,
}

/// Of one connection.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) streams: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
}

/// Where figures go makes no difference to a configuration.
impl PartialEq for Traffic {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Traffic {
    /// By peer, of the connections that stand now.
    #[must_use]
    pub fn by_peer(&self) -> HashMap<PeerId, Sums> {
        let mut all = HashMap::<PeerId, Sums>::new();
        for (peer, counts) in self.table.lines.lock().unwrap_or_else(PoisonError::into_inner).values() {
            let sums = all.entry(*peer).or_default();
            sums.streams = sums.streams.saturating_add(counts.streams.load(Ordering::Relaxed));
            sums.sent = sums.sent.saturating_add(counts.sent.load(Ordering::Relaxed));
            sums.received = sums.received.saturating_add(counts.received.load(Ordering::Relaxed));
        }
        all
    }

    /// Has `counts` be those of a connection to `peer`, as long as what this returns is held.
    pub(crate) fn line(&self, peer: PeerId, counts: Arc<Counts>) -> Line {
        let id = self.table.next.fetch_add(1, Ordering::Relaxed);
        self.table.lines.lock().unwrap_or_else(PoisonError::into_inner).insert(id, (peer, counts));
        Line { id, table: Arc::clone(&self.table) }
    }
}

/// A connection's place in the table; dropped, it is free.
#[derive(Debug)]
pub(crate) struct Line {
    id: u64,
    table: Arc<Table>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.table.lines.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
