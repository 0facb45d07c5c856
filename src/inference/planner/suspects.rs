//! Peers that others have contradicted: probably liars, and not for certain.
//!
//! As with [marks](super::marks) nobody is told. A suspicion ends by itself and by nothing that its peer does, and while it
//! stands its peer is not even asked where nobody else has the layers: a missing answer is better than a wrong one.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;

/// How long a suspicion stands.
const STANDS: Duration = Duration::from_secs(3600);

/// Peers that are suspect at once. The suspicion that ends first gives way.
const MOST: usize = 1024;

/// Peers that get no work for a while.
#[derive(Debug, Default)]
pub(crate) struct Suspects(HashMap<PeerId, (Instant, &'static str)>);

impl Suspects {
    /// `peer` is suspect. `why` is for people.
    pub(crate) fn add(&mut self, peer: PeerId, why: &'static str, now: Instant) {
        self.0.retain(|_, (until, _)| *until > now);
        if self.0.len() >= MOST
            && let Some(first) = self.0.iter().min_by_key(|(_, (until, _))| *until).map(|(peer, _)| *peer)
        {
            self.0.remove(&first);
        }
        self.0.insert(peer, (now + STANDS, why));
    }

    /// What `peer` is suspected of.
    pub(crate) fn against(&self, peer: &PeerId, now: Instant) -> Option<&'static str> {
        self.0.get(peer).filter(|(until, _)| *until > now).map(|(_, why)| *why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspicion_ends_by_itself_and_there_are_so_many_at_most() {
        let (mut suspects, start) = (Suspects::default(), Instant::now());
        let first = PeerId::random();
        suspects.add(first, "so", start);
        assert_eq!(suspects.against(&first, start + STANDS - Duration::from_secs(1)), Some("so"));
        assert_eq!(suspects.against(&first, start + STANDS), None);
        for n in 1..=MOST {
            suspects.add(PeerId::random(), "so", start + Duration::from_millis(n as u64));
        }
        assert_eq!((suspects.0.len(), suspects.against(&first, start)), (MOST, None));
    }
}
