//! Peers that have just refused a session for want of room, and how much they were asked for.
//!
//! A refusal is newer than any announcement. It counts until the next announcement can have come, and no longer: sessions end
//! all the time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;

/// How long a refusal counts: a worker whose figures have changed says so within this.
const COUNTS_FOR: Duration = Duration::from_secs(3);

/// Refusals remembered at once. The one that counts for the shortest time gives way.
const MAX: usize = 1024;

/// Who refused what, lately.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    /// Until when, and the fewest pages that were refused.
    refused: HashMap<PeerId, (Instant, u32)>,
}

impl Refusals {
    /// A peer has refused a session of `pages` KV pages; 0 where it takes none of whatever size.
    pub(crate) fn refused(&mut self, peer: PeerId, pages: u32, now: Instant) {
        self.refused.retain(|_, (until, _)| *until > now);
        if self.refused.len() >= MAX
            && let Some(soonest) = self.refused.iter().min_by_key(|(_, (until, _))| *until).map(|(peer, _)| *peer)
        {
            self.refused.remove(&soonest);
        }
        let fewest = self.refused.get(&peer).map_or(pages, |(_, before)| pages.min(*before));
        self.refused.insert(peer, (now + COUNTS_FOR, fewest));
    }

    /// The most pages that a peer is asked for now, where it has refused lately.
    pub(crate) fn most(&self, peer: &PeerId, now: Instant) -> Option<u32> {
        let (_, refused) = self.refused.get(peer).filter(|(until, _)| *until > now)?;
        Some(refused.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_not_asked_for_again_at_once() {
        let (mut refusals, peer, now) = (Refusals::default(), PeerId::random(), Instant::now());
        assert_eq!(refusals.most(&peer, now), None);
        refusals.refused(peer, 8, now);
        assert_eq!(refusals.most(&peer, now), Some(7), "fewer may still fit");
        refusals.refused(peer, 3, now);
        refusals.refused(peer, 5, now);
        assert_eq!(refusals.most(&peer, now), Some(2));
        assert_eq!(refusals.most(&peer, now + COUNTS_FOR), None);
        refusals.refused(peer, 0, now);
        assert_eq!(refusals.most(&peer, now), Some(0));
    }

    #[test]
    fn they_are_bounded() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        for n in 0..3 * MAX {
            refusals.refused(PeerId::random(), 1, now + Duration::from_micros(n as u64));
        }
        assert_eq!(refusals.refused.len(), MAX);
    }
}
