//! How far an address leads, and who may have us dial it.
//!
//! Peers name addresses for us to dial: their own, or those of the next peer of a chain. Without a rule anybody on the
//! internet could have a node knock on the doors of its own machine and its own network. The rule: a peer may name
//! addresses that lead as far as the one at which we know it, or further. A neighbour on the LAN may name others there, a
//! process on this machine anything, a peer from far away only public ones.
//!
//! The other way round, a node tells peers its own addresses and those of others. Bridges of containers, link-local and home
//! addresses lead nowhere, or to somebody else, outside of their own network: the rule [`may_tell`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p::{Multiaddr, multiaddr::Protocol};

use crate::{identify::ip_of, nat::is_relayed};

/// Where an address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// This machine.
    Machine,
    /// Its own networks: private, link-local, carrier-grade NAT.
    Site,
    /// The internet.
    World,
}

/// Where `addr` leads; `None` for names, whose answer their owner may change after the check, and for what no single peer
/// listens on. Through a relay, where the relay is.
#[must_use]
pub fn of(addr: &Multiaddr) -> Option<Scope> {
    match ip_of(addr)? {
        IpAddr::V4(ip) => of_v4(ip),
        IpAddr::V6(ip) => of_v6(ip),
    }
}

/// Whether a peer that is connected to us at `from` may have us dial `addr`.
#[must_use]
pub fn may_name(from: &Multiaddr, addr: &Multiaddr) -> bool {
    // Who comes through a relay may be anywhere.
    let from = if is_relayed(from) { None } else { of(from) };
    of(addr).is_some_and(|to| to >= from.unwrap_or(Scope::World))
}

/// Whether a peer that is connected to us at `remote` is told `addr`: public addresses and names may go anywhere; those of a
/// private network only into it, or to this machine; loopback stays here. Without the network's mask, a private IPv4
/// network is taken as a /16 (so that a container's bridge at 172.17.0.1 is not told to 192.168.1.7), carrier-grade NAT
/// as a whole, a unique local IPv6 network as a /48. IPv6 link-local addresses mean nothing without the name of a link.
#[must_use]
pub fn may_tell(remote: &Multiaddr, addr: &Multiaddr) -> bool {
    let (from, to) = (host_of(remote), host_of(addr));
    match to {
        // Names lead everywhere; the memory transport of tests leads as far as the peer that uses it.
        None => is_named(addr) || (is_memory(addr) && is_memory(remote)),
        Some(IpAddr::V6(to)) if to.is_unicast_link_local() => false,
        Some(to) => match of(addr) {
            None => false,
            Some(Scope::World) => true,
            Some(scope) if is_relayed(remote) => scope == Scope::World,
            Some(scope) => from.is_some_and(|from| from.is_loopback() || (scope == Scope::Site && near(from, to))),
        },
    }
}

/// Whether a record of these addresses is believed from a peer that is connected to us at `from`: as [`may_name`], but the
/// memory transport of tests may name its own.
#[must_use]
pub fn may_record(from: &Multiaddr, addr: &Multiaddr) -> bool {
    may_name(from, addr) || (is_memory(from) && is_memory(addr))
}

/// Whether two private addresses seem to lie in one network.
fn near(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let ([a0, a1, ..], [b0, b1, ..]) = (a.octets(), b.octets());
            let shared = |first: u8, second: u8| first == 100 && (64..128).contains(&second);
            (a0 == b0 && a1 == b1) || (shared(a0, a1) && shared(b0, b1))
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => a.segments().iter().zip(b.segments()).take(3).all(|(a, b)| *a == b),
        _ => false,
    }
}

/// The address at the head, an IPv4 address in IPv6 clothes as what it is.
fn host_of(addr: &Multiaddr) -> Option<IpAddr> {
    match ip_of(addr)? {
        IpAddr::V6(ip) => Some(embedded_v4(&ip).map_or(IpAddr::V6(ip), IpAddr::V4)),
        ip => Some(ip),
    }
}

fn is_named(addr: &Multiaddr) -> bool {
    matches!(addr.iter().next(), Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)))
}

fn is_memory(addr: &Multiaddr) -> bool {
    matches!(addr.iter().next(), Some(Protocol::Memory(_)))
}

fn of_v4(ip: Ipv4Addr) -> Option<Scope> {
    let [a, b, ..] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b);
    if a == 0 || ip.is_multicast() || a >= 240 {
        None
    } else if ip.is_loopback() {
        Some(Scope::Machine)
    } else if ip.is_private() || ip.is_link_local() || shared {
        Some(Scope::Site)
    } else {
        Some(Scope::World)
    }
}

fn of_v6(ip: Ipv6Addr) -> Option<Scope> {
    if let Some(v4) = embedded_v4(&ip) {
        of_v4(v4)
    } else if ip.is_unspecified() || ip.is_multicast() {
        None
    } else if ip.is_loopback() {
        Some(Scope::Machine)
    } else if ip.is_unique_local() || ip.is_unicast_link_local() {
        Some(Scope::Site)
    } else {
        Some(Scope::World)
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, NAT64 or 6to4.
fn embedded_v4(ip: &Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match ip.segments() {
        // ::1 and :: are IPv6's own.
        [0, 0, 0, 0, 0, 0, 0, _] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        [0x2002, high, low, ..] => Some(v4(high, low)),
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
    fn every_spelling_of_a_place() {
        let relay = "12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS";
        for (text, scope) in [
            ("/ip4/127.0.0.1/tcp/1", Some(Scope::Machine)),
            ("/ip4/127.9.9.9/udp/1/quic-v1", Some(Scope::Machine)),
            ("/ip6/::1/tcp/1", Some(Scope::Machine)),
            ("/ip6/::ffff:127.0.0.1/tcp/1", Some(Scope::Machine)),
            ("/ip6/64:ff9b::7f00:1/tcp/1", Some(Scope::Machine)),
            ("/ip6/2002:7f00:1::/tcp/1", Some(Scope::Machine)),
            ("/ip4/10.0.0.1/tcp/1", Some(Scope::Site)),
            ("/ip4/172.31.0.1/tcp/1", Some(Scope::Site)),
            ("/ip4/192.168.0.1/tcp/1", Some(Scope::Site)),
            ("/ip4/169.254.169.254/tcp/80", Some(Scope::Site)),
            ("/ip4/100.64.0.1/tcp/1", Some(Scope::Site)),
            ("/ip6/fe80::1/tcp/1", Some(Scope::Site)),
            ("/ip6/fd12::1/tcp/1", Some(Scope::Site)),
            ("/ip6/::ffff:10.0.0.1/tcp/1", Some(Scope::Site)),
            ("/ip4/100.128.0.1/tcp/1", Some(Scope::World)),
            ("/ip4/9.9.9.9/tcp/1", Some(Scope::World)),
            ("/ip6/2606:4700::1/tcp/1", Some(Scope::World)),
            (&format!("/ip4/10.0.0.1/tcp/1/p2p/{relay}/p2p-circuit"), Some(Scope::Site)),
            ("/ip4/0.0.0.0/tcp/1", None),
            ("/ip4/0.1.2.3/tcp/1", None),
            ("/ip6/::/tcp/1", None),
            ("/ip4/224.0.0.1/udp/1", None),
            ("/ip4/255.255.255.255/udp/1", None),
            ("/ip6/ff02::1/udp/1", None),
            ("/dns4/localhost/tcp/1", None),
            ("/dnsaddr/example.org", None),
            ("/memory/7", None),
        ] {
            assert_eq!(of(&addr(text)), scope, "{text}");
        }
    }

    #[test]
    fn nobody_names_what_lies_nearer_to_us_than_they_do() {
        let relayed = format!("/ip4/127.0.0.1/tcp/1/p2p/{}/p2p-circuit", libp2p::PeerId::random());
        let places = ["/ip4/127.0.0.1/tcp/1", "/ip4/192.168.0.1/tcp/1", "/ip4/9.9.9.9/tcp/1"];
        for (from, allowed) in [(places[0], 3), (places[1], 2), (places[2], 1), (relayed.as_str(), 1)] {
            let named = places.iter().filter(|place| may_name(&addr(from), &addr(place))).count();
            assert_eq!(named, allowed, "{from}");
        }
        assert!(!may_name(&addr(places[0]), &addr("/dns4/example.org/tcp/1")));
    }

    #[test]
    fn addresses_are_told_only_where_they_lead_somewhere() {
        let relayed = format!("/ip4/127.0.0.1/tcp/1/p2p/{}/p2p-circuit", libp2p::PeerId::random());
        let (bridge, home, link) = ("/ip4/172.17.0.1/tcp/1", "/ip4/192.168.1.4/tcp/1", "/ip4/169.254.3.4/tcp/1");
        let (here, world, v6) = ("/ip4/127.0.0.1/tcp/1", "/ip4/9.9.9.9/tcp/1", "/ip6/fd12:3456:789a::4/tcp/1");
        let link6 = "/ip6/fe80::1/tcp/1";
        let all = [here, bridge, home, link, link6, v6, "/ip4/100.70.0.1/tcp/1", world, "/dns4/example.org/tcp/1"];
        for (remote, told) in [
            ("/ip4/127.0.0.1/tcp/5", [true, true, true, true, false, true, true, true, true]),
            ("/ip4/192.168.2.9/tcp/5", [false, false, true, false, false, false, false, true, true]),
            ("/ip6/::ffff:192.168.2.9/tcp/5", [false, false, true, false, false, false, false, true, true]),
            ("/ip4/172.17.0.3/tcp/5", [false, true, false, false, false, false, false, true, true]),
            ("/ip4/169.254.9.9/tcp/5", [false, false, false, true, false, false, false, true, true]),
            ("/ip6/fd12:3456:789a:1::5/tcp/5", [false, false, false, false, false, true, false, true, true]),
            ("/ip4/100.99.0.1/tcp/5", [false, false, false, false, false, false, true, true, true]),
            ("/ip4/8.8.8.8/tcp/5", [false, false, false, false, false, false, false, true, true]),
            (relayed.as_str(), [false, false, false, false, false, false, false, true, true]),
        ] {
            let got = all.map(|place| may_tell(&addr(remote), &addr(place)));
            assert_eq!(got, told, "{remote} of {all:?}");
        }
        assert!(!may_tell(&addr(here), &addr("/ip4/0.0.0.0/tcp/1")));
        assert!(may_tell(&addr("/memory/1"), &addr("/memory/2")) && !may_tell(&addr(world), &addr("/memory/2")));
    }
}
