//! What this node has learnt of its peers: how fast they are, which of them died. Shared by all its requests.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use libp2p::PeerId;
use quelea_wire::time::unix_ms;

use super::planner::{marks::Marks, observed::Observed};

/// Shared by all requests of a node. The locks are held for a look-up or two, never across a wait.
#[derive(Debug, Default)]
pub(crate) struct Experience {
    observed: Mutex<Observed>,
    marks: Mutex<Marks>,
}

impl Experience {
    /// The measurements.
    pub(crate) fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer could not be reached, or died in a session: it is not asked for a while. `reason` is for people.
    pub(crate) fn failed(&self, peer: PeerId, reason: &str) {
        tracing::debug!(%peer, reason, "a peer is not asked for a while");
        self.marks().failed(peer, reason, Instant::now(), unix_ms());
        self.observed().ended(peer, false);
    }

    /// Peers of a chain that answered to the end.
    pub(crate) fn worked(&self, peers: impl IntoIterator<Item = PeerId>) {
        for peer in peers {
            self.marks().worked(&peer);
            self.observed().ended(peer, true);
        }
    }

    /// Which of `peers` are not asked now, and why. With each goes when it signed its newest announcement, if one is known.
    pub(crate) fn shunned(&self, peers: impl IntoIterator<Item = (PeerId, Option<u64>)>) -> HashMap<PeerId, String> {
        let (marks, now) = (self.marks(), Instant::now());
        let why = |(peer, signed): (PeerId, Option<u64>)| Some((peer, marks.against(&peer, signed, now)?.to_owned()));
        peers.into_iter().filter_map(why).collect()
    }
}
