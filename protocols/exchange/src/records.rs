//! The records a node holds to pass on: bounded, and shared out among those who told them.

use std::collections::BTreeMap;

use libp2p::PeerId;

use crate::record::{MAX_AGE_MS, SignedRecord};

/// Records held at once, some 700 bytes each: 1.5 MiB at most.
pub const MAX_HELD: usize = 2_048;
/// Of these, told by one peer about others. Whoever invents peers fills its own share and nobody else's.
pub const MAX_PER_TELLER: usize = 256;
/// How many times a record is passed on from the peer that signed it: one node to its neighbours, theirs, and theirs reach
/// thousands.
pub const MAX_TTL: u8 = 3;

/// A record with where it came from.
#[derive(Debug, Clone)]
pub struct Held {
    /// The record.
    pub record: SignedRecord,
    /// How many more times it may be passed on.
    pub ttl: u8,
    /// Who told us; the peer itself, when we have met it.
    pub teller: PeerId,
    /// How much the peer is trusted: whatever scale the node uses, more is better, 0 a newcomer.
    pub trust: u32,
}

impl Held {
    fn first_hand(&self) -> bool {
        self.teller == self.record.peer()
    }

    /// What is kept longest and told first: trust, then having met, then youth.
    fn rank(&self) -> (u32, bool, u64) {
        (self.trust, self.first_hand(), self.record.record().signed_ms)
    }
}

/// Records by peer, in an order that is the same in every run.
#[derive(Debug, Default)]
pub(crate) struct Records {
    held: BTreeMap<PeerId, Held>,
    /// How many each peer told about others. Entries leave when their number falls to 0, so there are at most [`MAX_HELD`].
    told: BTreeMap<PeerId, usize>,
}

impl Records {
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    pub(crate) fn get(&self, peer: &PeerId) -> Option<&Held> {
        self.held.get(peer)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Held> {
        self.held.values()
    }

    pub(crate) fn set_trust(&mut self, peer: &PeerId, trust: u32) {
        if let Some(held) = self.held.get_mut(peer) {
            held.trust = trust;
        }
    }

    /// Takes a record in. Returns whether it tells something new: an unknown peer, or more of a known one.
    pub(crate) fn insert(&mut self, record: SignedRecord, ttl: u8, teller: PeerId) -> bool {
        let peer = record.peer();
        let first_hand = teller == peer;
        if let Some(known) = self.held.get_mut(&peer) {
            if !record.supersedes(&known.record) {
                // What comes straight from the peer may travel further than what came round about.
                if first_hand && known.record == record && !known.first_hand() {
                    known.ttl = ttl;
                    self.retell(peer, teller);
                }
                return false;
            }
            known.record = record;
            known.ttl = ttl;
            // Whom we have met stays met when somebody else brings its newer record.
            if first_hand || !known.first_hand() {
                self.retell(peer, teller);
            }
            return true;
        }
        if !first_hand && self.told.get(&teller).is_some_and(|told| *told >= MAX_PER_TELLER) {
            self.drop_worst(Some(teller));
        }
        if self.held.len() >= MAX_HELD {
            // Whoever told most gives way, unless all have been met.
            let most = self.told.iter().max_by_key(|(teller, told)| (**told, **teller)).map(|(teller, _)| *teller);
            self.drop_worst(most);
        }
        self.held.insert(peer, Held { record, ttl, teller, trust: 0 });
        self.count(teller, peer);
        true
    }

    fn retell(&mut self, peer: PeerId, teller: PeerId) {
        let Some(held) = self.held.get_mut(&peer) else { return };
        let before = std::mem::replace(&mut held.teller, teller);
        self.uncount(before, peer);
        self.count(teller, peer);
    }

    fn count(&mut self, teller: PeerId, peer: PeerId) {
        if teller != peer {
            let told = self.told.entry(teller).or_default();
            *told = told.saturating_add(1);
        }
    }

    fn uncount(&mut self, teller: PeerId, peer: PeerId) {
        if teller != peer
            && let Some(told) = self.told.get_mut(&teller)
        {
            *told = told.saturating_sub(1);
            if *told == 0 {
                self.told.remove(&teller);
            }
        }
    }

    /// Drops the worst record that `teller` told about others, or of all.
    fn drop_worst(&mut self, teller: Option<PeerId>) {
        let candidates =
            self.held.values().filter(|held| teller.is_none_or(|t| held.teller == t && !held.first_hand()));
        let worst = candidates.min_by_key(|held| (held.rank(), held.record.peer())).map(|held| held.record.peer());
        if let Some(worst) = worst {
            self.remove(&worst);
        }
    }

    pub(crate) fn remove(&mut self, peer: &PeerId) {
        if let Some(held) = self.held.remove(peer) {
            self.uncount(held.teller, *peer);
        }
    }

    /// Forgets what is too old to pass on.
    pub(crate) fn sweep(&mut self, now_ms: u64) {
        let old: Vec<PeerId> =
            self.held.values().filter(|h| h.record.age_ms(now_ms) > MAX_AGE_MS).map(|h| h.record.peer()).collect();
        for peer in &old {
            self.remove(peer);
        }
    }

    /// Those who told records, for tests of the bounds.
    #[cfg(test)]
    pub(crate) fn tellers(&self) -> usize {
        self.told.len()
    }
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;
    use quelea_wire::NetworkId;

    use super::*;
    use crate::record::PeerRecord;

    fn record(key: &Keypair, seq: u64, signed_ms: u64, addrs: usize) -> SignedRecord {
        let addrs = (0..addrs).map(|n| format!("/ip4/10.0.0.1/tcp/{}", n + 1).parse().unwrap()).collect();
        let record =
            PeerRecord { peer: key.public().to_peer_id(), seq, signed_ms, addrs, agent: "quelea/0.1.0".into() };
        SignedRecord::sign(key, &NetworkId::from_name("main"), record).unwrap()
    }

    #[test]
    fn who_invents_peers_fills_its_own_share() {
        let (mut records, liar, honest) = (Records::default(), PeerId::random(), PeerId::random());
        let told = record(&Keypair::generate_ed25519(), 1, 1, 1);
        assert!(records.insert(told.clone(), 2, honest));
        for n in 0..2 * MAX_PER_TELLER {
            records.insert(record(&Keypair::generate_ed25519(), 1, 100 + n as u64, 1), 2, liar);
        }
        assert_eq!(records.len(), MAX_PER_TELLER + 1);
        assert!(records.get(&told.peer()).is_some());
        assert_eq!(records.tellers(), 2);
    }

    #[test]
    fn the_whole_is_bounded_and_whoever_told_most_gives_way() {
        let mut records = Records::default();
        let met = Keypair::generate_ed25519();
        let own = record(&met, 1, 1, 1);
        records.insert(own.clone(), MAX_TTL, own.peer());
        let tellers: Vec<PeerId> = (0..12).map(|_| PeerId::random()).collect();
        for teller in &tellers {
            for n in 0..MAX_PER_TELLER {
                records.insert(record(&Keypair::generate_ed25519(), 1, n as u64, 0), 2, *teller);
            }
        }
        assert_eq!(records.len(), MAX_HELD);
        assert!(records.get(&own.peer()).is_some(), "whom we have met stays");
        let late = records.iter().filter(|held| held.teller == tellers[11]).count();
        assert!(late > 100, "the last to tell has {late}");
        records.sweep(MAX_AGE_MS + 1000);
        assert_eq!((records.len(), records.tellers()), (0, 0));
    }

    #[test]
    fn more_of_a_known_peer_replaces_what_was_known() {
        let (key, teller) = (Keypair::generate_ed25519(), PeerId::random());
        let mut records = Records::default();
        assert!(records.insert(record(&key, 5, 10, 1), 1, teller));
        assert!(!records.insert(record(&key, 4, 9, 8), 2, teller), "an older one");
        assert!(records.insert(record(&key, 5, 10, 3), 1, teller), "the same number, more addresses");
        assert!(!records.insert(record(&key, 5, 10, 2), 1, teller));
        let newest = record(&key, 6, 11, 1);
        assert!(records.insert(newest.clone(), 1, teller));
        assert!(!records.insert(newest.clone(), MAX_TTL, newest.peer()), "the same from the peer itself");
        let held = records.get(&newest.peer()).unwrap();
        assert_eq!((held.ttl, held.teller), (MAX_TTL, newest.peer()));
        assert_eq!(records.tellers(), 0);
    }
}
