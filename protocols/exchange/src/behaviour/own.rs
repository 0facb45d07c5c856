//! What this node says of itself: its addresses, signed anew when they change and every ten minutes.

use libp2p::{Multiaddr, PeerId, identity::Keypair};
use quelea_wire::NetworkId;

use crate::record::{MAX_ADDR_BYTES, MAX_ADDRS, MAX_AGE_MS, MAX_AGENT_BYTES, PeerRecord, SignedRecord};

/// How long one signature serves: six times within the age at which a record is dropped.
const RENEW_MS: u64 = MAX_AGE_MS / 6;
/// Own addresses remembered: as many listeners and external addresses as a machine with a few networks has.
const MAX_OWN: usize = 32;
/// Audiences a record is signed for at once: this machine, a few networks, the world.
const MAX_AUDIENCES: usize = 8;

pub(super) struct Own {
    keypair: Keypair,
    network: NetworkId,
    agent: String,
    peer: PeerId,
    /// Addresses at which others have reached us.
    external: Vec<Multiaddr>,
    listen: Vec<Multiaddr>,
    seq: u64,
    signed_ms: u64,
    /// By the addresses in it. All under one number: who sees more of them knows more.
    signed: Vec<(Vec<Multiaddr>, SignedRecord)>,
}

impl Own {
    pub(super) fn new(keypair: Keypair, network: NetworkId, agent: String) -> Self {
        let plain: String = agent.chars().filter(|c| !c.is_control() && c.is_ascii()).take(MAX_AGENT_BYTES).collect();
        let peer = keypair.public().to_peer_id();
        let (external, listen, signed) = (Vec::new(), Vec::new(), Vec::new());
        Self { keypair, network, agent: plain, peer, external, listen, seq: 0, signed_ms: 0, signed }
    }

    pub(super) fn listening(&mut self, addr: &Multiaddr, there: bool) {
        set(&mut self.listen, addr, there);
        self.signed.clear();
    }

    pub(super) fn reachable(&mut self, addr: &Multiaddr, there: bool) {
        set(&mut self.external, addr, there);
        self.signed.clear();
    }

    /// Our record with the addresses for which `tells` holds; `None` when there is none, or the key cannot sign.
    pub(super) fn record(&mut self, now_ms: u64, tells: impl Fn(&Multiaddr) -> bool) -> Option<SignedRecord> {
        if self.signed.is_empty() || now_ms.saturating_sub(self.signed_ms) >= RENEW_MS || now_ms < self.signed_ms {
            self.signed.clear();
            // At least the clock, so that a node that starts again does not fall behind what others remember of it.
            self.seq = self.seq.saturating_add(1).max(now_ms);
            self.signed_ms = now_ms;
        }
        let mut addrs: Vec<Multiaddr> = Vec::new();
        for addr in self.external.iter().chain(&self.listen) {
            if addrs.len() < MAX_ADDRS && addr.len() <= MAX_ADDR_BYTES && !addrs.contains(addr) && tells(addr) {
                addrs.push(addr.clone());
            }
        }
        if addrs.is_empty() {
            return None;
        }
        if let Some((_, record)) = self.signed.iter().find(|(of, _)| *of == addrs) {
            return Some(record.clone());
        }
        let (peer, seq, signed_ms, agent) = (self.peer, self.seq, self.signed_ms, self.agent.clone());
        let record = PeerRecord { peer, seq, signed_ms, addrs: addrs.clone(), agent };
        let record = SignedRecord::sign(&self.keypair, &self.network, record).ok()?;
        if self.signed.len() >= MAX_AUDIENCES {
            self.signed.remove(0);
        }
        self.signed.push((addrs, record.clone()));
        Some(record)
    }
}

fn set(addrs: &mut Vec<Multiaddr>, addr: &Multiaddr, there: bool) {
    addrs.retain(|other| other != addr);
    if there && addrs.len() < MAX_OWN {
        addrs.push(addr.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_number_for_all_audiences_and_a_new_one_when_something_changes() {
        let mut own = Own::new(Keypair::generate_ed25519(), NetworkId::from_name("main"), "quelea/\u{7}0".into());
        assert_eq!(own.record(1_000, |_| true), None, "nowhere to be dialled");
        let (near, far) = (addr("/ip4/10.0.0.1/tcp/1"), addr("/ip4/9.9.9.9/tcp/1"));
        own.listening(&near, true);
        own.reachable(&far, true);
        let all = own.record(2_000, |_| true).unwrap();
        let world = own.record(3_000, |addr| *addr == far).unwrap();
        assert_eq!(all.record().addrs, [far.clone(), near.clone()]);
        assert_eq!((world.record().addrs.as_slice(), world.record().agent.as_str()), (&[far][..], "quelea/0"));
        assert_eq!(all.record().seq, world.record().seq);
        assert!(all.supersedes(&world) && !world.supersedes(&all));
        assert_eq!(own.record(4_000, |_| true).unwrap(), all);
        own.listening(&near, false);
        let moved = own.record(4_000, |_| true).unwrap();
        assert!(moved.supersedes(&all));
        assert!(own.record(4_000 + RENEW_MS, |_| true).unwrap().supersedes(&moved));
    }

    #[test]
    fn addresses_are_bounded() {
        let mut own = Own::new(Keypair::generate_ed25519(), NetworkId::from_name("main"), "quelea".into());
        for n in 1..200 {
            own.listening(&addr(&format!("/ip4/10.0.0.1/tcp/{n}")), true);
            own.reachable(&addr(&format!("/ip4/9.9.9.9/tcp/{n}")), true);
        }
        assert_eq!((own.listen.len(), own.external.len()), (MAX_OWN, MAX_OWN));
        assert_eq!(own.record(1, |_| true).unwrap().record().addrs.len(), MAX_ADDRS);
    }
}
