//! Where this node can be dialled, signed for who is to know.

use libp2p::{Multiaddr, identity::Keypair};

use crate::record::{Form, MAX_ADDR_BYTES, MAX_ADDRS, Record};

/// Own addresses remembered: as many listeners and external addresses as a machine with a few networks has.
const MAX_OWN: usize = 32;

pub(crate) struct Own {
    keypair: Keypair,
    /// Addresses at which others have reached us.
    external: Vec<Multiaddr>,
    listen: Vec<Multiaddr>,
}

impl Own {
    pub(crate) fn new(keypair: Keypair) -> Self {
        Self { keypair, external: Vec::new(), listen: Vec::new() }
    }

    pub(crate) fn listening(&mut self, addr: &Multiaddr, there: bool) {
        set(&mut self.listen, addr, there);
    }

    pub(crate) fn reachable(&mut self, addr: &Multiaddr, there: bool) {
        set(&mut self.external, addr, there);
    }

    /// Our record with the addresses for which `tells` holds; `None` when there is none, or the key cannot sign.
    pub(crate) fn record(&self, form: Form, tells: impl Fn(&Multiaddr) -> bool) -> Option<Record> {
        let mut addrs: Vec<Multiaddr> = Vec::new();
        for addr in self.external.iter().chain(&self.listen) {
            if addrs.len() < MAX_ADDRS && addr.len() <= MAX_ADDR_BYTES && !addrs.contains(addr) && tells(addr) {
                addrs.push(addr.clone());
            }
        }
        Record::sign(&self.keypair, addrs, form).ok()
    }
}

fn set(addrs: &mut Vec<Multiaddr>, addr: &Multiaddr, there: bool) {
    addrs.retain(|other| other != addr);
    if there && addrs.len() < MAX_OWN {
        addrs.push(addr.clone());
    }
}
