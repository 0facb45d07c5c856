//! Limits on what libp2p's own protocols bring us, as far as it asks us before it acts.
//!
//! Gossipsub checks the signature of who published a message before we see it, on the connection's task; Kademlia has
//! answered a lookup when it tells of it, and does not tell whose it was. What is left to us is the signature inside a
//! message, and the record that is to be held.

use std::time::{Duration, Instant};

use libp2p::{PeerId, core::ConnectedPoint};
use quelea_wire::rate::{Limiter, Limits, Quota, Scope};

/// Signatures checked for one peer in a second: some 60 µs each. A mesh neighbour on all topics brings a few.
pub const SIGNATURES_PER_PEER: u32 = 200;
/// For one address range: as many peers as it may connect.
pub const SIGNATURES_PER_PREFIX: u32 = 800;
/// For everybody: an eighth of a core.
pub const SIGNATURES: u32 = 2_000;

/// Records that one peer may have us hold, or hold longer, in ten seconds. A worker with sixteen models of 80 layers
/// provides 176 keys at once, and we are near some of them.
pub const RECORDS_PER_PEER: u32 = 200;
/// Of one address range.
pub const RECORDS_PER_PREFIX: u32 = 800;
/// Of everybody.
pub const RECORDS: u32 = 8_000;
const RECORD_PERIOD: Duration = Duration::from_secs(10);

/// Times that a peer may say in ten seconds who it is and what it speaks: once with each connection, and when an address of its
/// own comes or goes, of which a machine has a dozen.
pub const NAMES_PER_PEER: u32 = 32;
/// Of one address range: as many as are let in from there at once.
pub const NAMES_PER_PREFIX: u32 = 256;
/// Of everybody: some hundred a second, each of which every behaviour hears of.
pub const NAMES: u32 = 1_000;
const NAMES_PERIOD: Duration = Duration::from_secs(10);

/// The limits, and what has been spent of them.
#[derive(Debug)]
pub struct Guard {
    signatures: Limiter,
    records: Limiter,
    names: Limiter,
}

impl Default for Guard {
    fn default() -> Self {
        let records = |burst| Quota::new(burst, RECORD_PERIOD);
        let names = |burst| Quota::new(burst, NAMES_PERIOD);
        Self {
            signatures: Limiter::new(Limits {
                peer: Quota::per_second(SIGNATURES_PER_PEER),
                prefix: Quota::per_second(SIGNATURES_PER_PREFIX),
                global: Quota::per_second(SIGNATURES),
            }),
            records: Limiter::new(Limits {
                peer: records(RECORDS_PER_PEER),
                prefix: records(RECORDS_PER_PREFIX),
                global: records(RECORDS),
            }),
            names: Limiter::new(Limits {
                peer: names(NAMES_PER_PEER),
                prefix: names(NAMES_PER_PREFIX),
                global: names(NAMES),
            }),
        }
    }
}

impl Guard {
    /// `peer` has its first connection.
    pub fn connected(&mut self, peer: PeerId, endpoint: &ConnectedPoint) {
        self.signatures.connected(peer, endpoint);
        self.records.connected(peer, endpoint);
        self.names.connected(peer, endpoint);
    }

    /// `peer` has no connection any more.
    pub fn disconnected(&mut self, peer: &PeerId) {
        self.signatures.disconnected(peer);
        self.records.disconnected(peer);
        self.names.disconnected(peer);
    }

    /// Whether a signature that `peer` brings may be checked.
    ///
    /// # Errors
    /// Whose budget is spent.
    pub fn signature(&mut self, peer: PeerId, now: Instant) -> Result<(), Scope> {
        self.signatures.admit(peer, now)
    }

    /// Whether a record that `peer` sends may be looked at.
    ///
    /// # Errors
    /// Whose limit is reached.
    pub fn record(&mut self, peer: PeerId, now: Instant) -> Result<(), Scope> {
        self.records.admit(peer, now)
    }

    /// Whether what `peer` says of itself may be listened to.
    ///
    /// # Errors
    /// Whose limit is reached.
    pub fn names(&mut self, peer: PeerId, now: Instant) -> Result<(), Scope> {
        self.names.admit(peer, now)
    }

    /// Entries of all its maps.
    #[must_use]
    pub fn remembered(&self) -> usize {
        let records = self.records.remembered().saturating_add(self.names.remembered());
        self.signatures.remembered().saturating_add(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_its_name_too_often_is_not_heard_and_others_are() {
        let (mut guard, loud, other) = (Guard::default(), PeerId::random(), PeerId::random());
        let now = Instant::now();
        let heard = (0..10 * NAMES_PER_PEER).filter(|_| guard.names(loud, now).is_ok()).count();
        assert_eq!(heard, NAMES_PER_PEER as usize);
        assert_eq!(guard.names(loud, now), Err(Scope::Peer));
        assert_eq!(guard.names(other, now), Ok(()));
        assert_eq!(guard.names(loud, now + NAMES_PERIOD), Ok(()), "not for ever");
    }
}
