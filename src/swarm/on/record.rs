//! The signed record of where this node can be dialled, in the DHT: how it is found by its id where it does not serve the DHT
//! itself, behind NAT above all.

use std::time::{Duration, Instant};

use libp2p::{Multiaddr, kad::Record};
use quelea_behaviours::{
    kad::{REPUBLISH_EVERY, publish},
    nat::is_relayed,
    scope::{self, Scope},
};
use quelea_record::{MAX_ADDR_BYTES, MAX_ADDRS, MAX_LIFETIME_MS, PeerRecord, peer_key};
use quelea_wire::time::unix_ms;

use crate::swarm::driver::Driver;

/// How long the addresses must have stayed as they are: at the start several are confirmed one after the other.
const SETTLED: Duration = Duration::from_secs(3);

/// The pause after a record that could not be signed or stored.
const PAUSE: Duration = Duration::from_secs(60);

/// What this node has published of itself.
#[derive(Debug, Default)]
pub(in crate::swarm) struct Published {
    /// The addresses of now, and since when.
    current: Option<(Vec<Multiaddr>, Instant)>,
    /// Those of the record that is out.
    addrs: Vec<Multiaddr>,
    seq: u64,
    /// When it is signed again at the latest: a third of its life, so that two more may fail.
    next: Option<Instant>,
}

impl Published {
    /// The addresses to publish now, if any are due.
    fn due(&mut self, addrs: Vec<Multiaddr>, now: Instant) -> Option<Vec<Multiaddr>> {
        let since = match &self.current {
            Some((known, since)) if *known == addrs => *since,
            _ => {
                self.current = Some((addrs.clone(), now));
                now
            }
        };
        let settled = now.saturating_duration_since(since) >= SETTLED;
        let due = addrs != self.addrs || self.next.is_some_and(|next| next <= now);
        (settled && due).then_some(addrs)
    }
}

/// Publishes the record when its addresses have changed or it gets old. With no address left the last one is not repeated.
pub(crate) fn tick(driver: &mut Driver, now: Instant) {
    if !driver.config.publishes || driver.state.peers.is_empty() || driver.state.next_record > now {
        return;
    }
    driver.state.next_record = now + Duration::from_secs(1);
    let public = super::nat::is_public(driver);
    // This machine's own addresses lead nobody here, unless the operator says so.
    let declared = &driver.state.nat.declared;
    let leads = |addr: &&Multiaddr| scope::of(addr) != Some(Scope::Machine) || declared.contains(*addr);
    let external = driver.swarm.external_addresses().filter(leads).filter(|addr| public || is_relayed(addr));
    let all = external.chain(driver.state.listeners.values().filter(|addr| is_relayed(addr)));
    let peers = driver.state.peers.values().flat_map(|peer| peer.connections.values());
    let addrs = chosen(all, peers.filter_map(scope::of).max());
    let Some(addrs) = driver.state.record.due(addrs, now) else { return };
    let key = peer_key(driver.swarm.local_peer_id());
    if addrs.is_empty() {
        driver.swarm.behaviour_mut().kad.store_mut().forget(&key.into());
        (driver.state.record.addrs, driver.state.record.next) = (addrs, None);
        return;
    }
    let signed = PeerRecord::sign(
        &driver.config.keypair,
        &driver.config.network,
        &addrs,
        driver.state.record.seq,
        unix_ms(),
        MAX_LIFETIME_MS,
    );
    let stored = signed.map_err(|error| error.to_string()).and_then(|(record, value)| {
        let mut put = Record::new(key, value);
        put.expires = now.checked_add(Duration::from_millis(MAX_LIFETIME_MS));
        let kad = &mut driver.swarm.behaviour_mut().kad;
        publish(kad, put).map(|_| record.seq).map_err(|error| error.to_string())
    });
    match stored {
        Ok(seq) => {
            tracing::debug!(?addrs, "published where this node can be dialled");
            let record = &mut driver.state.record;
            (record.addrs, record.seq, record.next) = (addrs, seq, now.checked_add(REPUBLISH_EVERY));
        }
        Err(error) => {
            tracing::warn!(%error, "no record of where this node can be dialled");
            driver.state.next_record = now + PAUSE;
        }
    }
}

/// The addresses of a record, direct ones first, always in the same order. The DHT is read by everybody: once a peer is connected
/// that is as far as `widest`, addresses that lead less far stay here.
fn chosen<'a>(all: impl Iterator<Item = &'a Multiaddr>, widest: Option<Scope>) -> Vec<Multiaddr> {
    let fits = |addr: &&Multiaddr| addr.len() <= MAX_ADDR_BYTES;
    let leads = |addr: &&Multiaddr| scope::of(addr).is_none_or(|scope| widest.is_none_or(|widest| scope >= widest));
    let mut addrs: Vec<Multiaddr> = all.filter(fits).filter(leads).cloned().collect();
    addrs.sort_by_cached_key(|addr| (is_relayed(addr), addr.to_vec()));
    addrs.dedup();
    addrs.truncate(MAX_ADDRS);
    addrs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn direct_addresses_come_first_and_those_of_home_stay_there() {
        let relay = libp2p::PeerId::random();
        let circuit = addr(&format!("/ip4/45.65.1.1/tcp/1/p2p/{relay}/p2p-circuit"));
        let (home, direct) = (addr("/ip4/192.168.1.7/tcp/1"), addr("/ip4/45.70.1.1/tcp/1"));
        let name = addr("/dns4/node.example/tcp/443/tls/ws");
        let all = [&circuit, &home, &direct, &direct, &name];
        assert_eq!(chosen(all.into_iter(), Some(Scope::World)), [direct.clone(), name.clone(), circuit.clone()]);
        assert!(chosen(all.into_iter(), Some(Scope::Site)).contains(&home));
        let many: Vec<Multiaddr> = (1..20).map(|port| addr(&format!("/ip4/45.70.1.1/tcp/{port}"))).collect();
        assert_eq!(chosen(many.iter().rev(), None), chosen(many.iter(), None));
        assert_eq!(chosen(many.iter(), None).len(), MAX_ADDRS);
    }

    #[test]
    fn it_is_published_once_settled_and_again_when_changed_or_old() {
        let (mut published, start) = (Published::default(), Instant::now());
        let (first, second) = (vec![addr("/ip4/45.70.1.1/tcp/1")], vec![addr("/ip4/45.70.1.1/tcp/2")]);
        assert_eq!(published.due(Vec::new(), start), None);
        assert_eq!(published.due(Vec::new(), start + SETTLED), None, "nothing is out, and there is nothing to say");
        assert_eq!(published.due(first.clone(), start + SETTLED), None);
        assert_eq!(published.due(first.clone(), start + 2 * SETTLED), Some(first.clone()));
        (published.addrs, published.next) = (first.clone(), Some(start + REPUBLISH_EVERY));
        assert_eq!(published.due(first.clone(), start + 3 * SETTLED), None);
        assert_eq!(published.due(second.clone(), start + 3 * SETTLED), None);
        assert_eq!(published.due(second.clone(), start + 4 * SETTLED), Some(second));
        assert_eq!(published.due(first.clone(), start + 5 * SETTLED), None, "it came back");
        assert_eq!(published.due(first.clone(), start + REPUBLISH_EVERY), Some(first));
        assert_eq!(published.due(Vec::new(), start + REPUBLISH_EVERY), None);
        assert_eq!(published.due(Vec::new(), start + REPUBLISH_EVERY + SETTLED), Some(Vec::new()), "to be given up");
    }
}
