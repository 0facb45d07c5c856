//! What this node has learnt of its peers: how fast they are, which of them died. Shared by all its requests.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use libp2p::PeerId;
use quelea_announce::SignedAnnouncement;
use quelea_wire::time::unix_ms;

use super::planner::{beside::Beside, marks::Marks, observed::Observed, refusals::Refusals, suspects::Suspects};
use crate::ledger::{Repute, Reputes};

/// Peers whose words are kept: at most 1 KiB signed and about as much decoded each.
const MAX_SAID: usize = 1024;

/// What a peer has said, and when it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub(crate) announcement: SignedAnnouncement,
    pub(crate) at: Instant,
}

/// Shared by all requests of a node. The locks are held for a look-up or two, never across a wait.
#[derive(Debug, Default)]
pub(crate) struct Experience {
    observed: Mutex<Observed>,
    beside: Mutex<Beside>,
    marks: Mutex<Marks>,
    refusals: Mutex<Refusals>,
    suspects: Mutex<Suspects>,
    said: Mutex<HashMap<PeerId, Said>>,
    /// With whom dealings went badly, as the ledger knows it.
    reputes: Reputes,
}

impl Experience {
    /// Nothing yet, beside what the ledger holds against peers.
    pub(crate) fn beside_ledger(reputes: Reputes) -> Self {
        Self { reputes, ..Self::default() }
    }

    /// What is held against a peer because of its dealings with this node.
    pub(crate) fn repute(&self, peer: &PeerId) -> Option<Repute> {
        self.reputes.of(peer)
    }

    /// The measurements.
    pub(crate) fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What requests take beside their chains.
    pub(crate) fn beside(&self) -> MutexGuard<'_, Beside> {
        self.beside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn suspects(&self) -> MutexGuard<'_, Suspects> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn said(&self) -> MutexGuard<'_, HashMap<PeerId, Said>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer has answered: other requests of the same moment need not ask it, too.
    pub(crate) fn has_said(&self, peer: PeerId, said: Said) {
        let mut all = self.said();
        if all.len() >= MAX_SAID {
            let now = unix_ms();
            all.retain(|_, said| said.announcement.announcement().expires_ms > now);
            let oldest = all.iter().min_by_key(|(_, said)| said.at).map(|(peer, _)| *peer);
            if let Some(oldest) = oldest.filter(|_| all.len() >= MAX_SAID) {
                all.remove(&oldest);
            }
        }
        all.insert(peer, said);
    }

    /// What a peer has said last, unless that has expired.
    pub(crate) fn last_said(&self, peer: &PeerId) -> Option<Said> {
        self.said().get(peer).filter(|said| said.announcement.announcement().expires_ms > unix_ms()).cloned()
    }

    /// A peer has refused a session of `pages` KV pages; 0 where it takes none at present.
    pub(crate) fn refused(&self, peer: PeerId, pages: u32) {
        self.refusals().refused(peer, pages, Instant::now());
    }

    /// The most pages that a peer is asked for now, where it has refused lately.
    pub(crate) fn most_pages(&self, peer: &PeerId) -> Option<u32> {
        self.refusals().most(peer, Instant::now())
    }

    /// Others have signed for other rows than a peer has: it gets no work for a while. `why` is for people.
    pub(crate) fn suspect(&self, peer: PeerId, why: &'static str) {
        self.suspects().add(peer, why, Instant::now());
    }

    /// What a peer is suspected of now.
    pub(crate) fn suspected(&self, peer: &PeerId) -> Option<&'static str> {
        self.suspects().against(peer, Instant::now())
    }

    /// A peer could not be reached, or died in a session: it is not asked for a while. `reason` is for people.
    pub(crate) fn failed(&self, peer: PeerId, reason: &str) {
        tracing::debug!(%peer, reason, "a peer is not asked for a while");
        self.said().remove(&peer);
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
