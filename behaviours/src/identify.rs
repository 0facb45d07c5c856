//! What peers tell each other about themselves, and how much of it is believed.

mod behaviour;

use std::net::IpAddr;

use libp2p::{
    Multiaddr, PeerId,
    identify::{self, Info},
    identity::Keypair,
    multiaddr::Protocol,
};

pub use self::behaviour::Behaviour;
use crate::{Config, kad};

/// Addresses kept of one peer. TCP and QUIC on two addresses; with 20 closer peers and 32 providers in an answer, four of
/// at most [`MAX_ADDRESS_BYTES`] keep it under [`kad::MAX_PACKET`].
pub const MAX_ADDRESSES: usize = 4;

/// Bytes of one address. A relayed one with two peer ids has some 95.
pub const MAX_ADDRESS_BYTES: usize = 128;

/// Characters of the agent string sent: it is shown in other people's tables.
const MAX_AGENT: usize = 64;

pub(crate) fn new(keypair: &Keypair, config: &Config) -> Behaviour {
    let protocol = config.network.protocol("id", 1).to_string();
    let agent = config.agent.chars().filter(|c| !c.is_control()).take(MAX_AGENT).collect();
    // Without libp2p's signed record: Rust signs it for a domain of its own, and js-libp2p drops everything that identify
    // says with a record that does not verify. Addresses are as sure as the connection they come over; what is passed on is
    // signed by the exchange.
    Behaviour::new(
        identify::Config::new(protocol, keypair.public()).with_agent_version(agent).with_push_listen_addr_updates(true),
    )
}

/// Whether a peer belongs to the network of `config`: libp2p's own protocols (ping, identify) are shared by every network.
#[must_use]
pub fn same_network(config: &Config, info: &Info) -> bool {
    info.protocol_version == config.network.protocol("id", 1).as_ref()
}

/// Of the addresses a peer claims, those worth keeping: something to dial, not overlong, not addressed to another peer, at
/// most [`MAX_ADDRESSES`]. Loopback and private ones stay: at home or in a test they are all there is.
#[must_use]
pub fn dialable<'a>(peer: &PeerId, claimed: impl IntoIterator<Item = &'a Multiaddr>) -> Vec<Multiaddr> {
    let mut kept: Vec<Multiaddr> = Vec::new();
    for addr in claimed {
        if kept.len() >= MAX_ADDRESSES {
            break;
        }
        if is_dialable(peer, addr) && !kept.contains(addr) {
            kept.push(addr.clone());
        }
    }
    kept
}

fn is_dialable(peer: &PeerId, addr: &Multiaddr) -> bool {
    if addr.len() > MAX_ADDRESS_BYTES {
        return false;
    }
    let mut parts = addr.iter();
    let host = match parts.next() {
        Some(Protocol::Ip4(ip)) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        Some(Protocol::Ip6(ip)) => !ip.is_unspecified() && !ip.is_multicast(),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)) => true,
        // The memory transport of tests.
        Some(Protocol::Memory(port)) => return port != 0,
        _ => false,
    };
    let port = match parts.next() {
        Some(Protocol::Tcp(port) | Protocol::Udp(port)) => port != 0,
        Some(Protocol::P2p(_)) => true,
        _ => false,
    };
    let names_another = addr.iter().last().is_some_and(|last| matches!(last, Protocol::P2p(named) if named != *peer));
    host && port && !names_another
}

/// Keeps what an identified peer said of itself: [`dialable`] addresses for the provider records it sends, and, if it
/// serves our network's Kademlia, a place in the routing table where [`kad::insert`] has room. Returns how many addresses
/// the table took. `from` is the address of a connection to the peer.
pub fn learn(kad: &mut kad::Behaviour, peer: PeerId, info: &Info, from: Option<&Multiaddr>) -> usize {
    let addrs = dialable(&peer, &info.listen_addrs);
    let serves = info.protocols.iter().any(|protocol| kad.protocol_names().contains(protocol));
    let taken = if serves { kad::insert(kad, peer, &addrs, from) } else { 0 };
    kad.store_mut().note_addresses(peer, addrs);
    taken
}

/// The IP address at the head of a multiaddr.
pub(crate) fn ip_of(addr: &Multiaddr) -> Option<IpAddr> {
    match addr.iter().next()? {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn keeps_what_can_be_dialled() {
        let (peer, other) = (PeerId::random(), PeerId::random());
        let good = [
            addr("/ip4/127.0.0.1/tcp/8468"),
            addr("/ip4/192.168.1.7/udp/8468/quic-v1"),
            addr("/dns4/example.org/tcp/1").with_p2p(peer).unwrap(),
            addr(&format!("/ip4/9.9.9.9/tcp/1/p2p/{other}/p2p-circuit/p2p/{peer}")),
        ];
        let bad = [
            addr("/ip4/0.0.0.0/tcp/8468"),
            addr("/ip6/::/udp/1/quic-v1"),
            addr("/ip4/224.0.0.251/udp/5353"),
            addr("/ip4/1.2.3.4/tcp/0"),
            addr("/ip4/1.2.3.4"),
            addr(&format!("/ip4/1.2.3.4/tcp/1/p2p/{other}")),
            addr(&format!("/dns4/{}/tcp/1", "x".repeat(200))),
            Multiaddr::empty(),
        ];
        assert_eq!(dialable(&peer, bad.iter().chain(&good)), good);
    }

    #[test]
    fn takes_no_more_than_the_limit_and_nothing_twice() {
        let peer = PeerId::random();
        let many: Vec<_> = (1..50).map(|port| addr(&format!("/ip4/10.0.0.1/tcp/{port}"))).collect();
        assert_eq!(dialable(&peer, &many).len(), MAX_ADDRESSES);
        assert_eq!(dialable(&peer, [&many[0], &many[0], &many[0]]), [many[0].clone()]);
    }
}
