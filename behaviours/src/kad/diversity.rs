//! Who may take which place in the routing table: an attacker has as many peer ids as it likes, but addresses cost it money.
//!
//! A *group* is what one customer of a provider can rent: an IPv4 /24 or an IPv6 /48, or the names under one domain. A
//! group has [`GROUP_PER_BUCKET`] places in a bucket and [`GROUP_PER_TABLE`] in the table (the figures of
//! go-libp2p-kad-dht). A peer counts in the group of every address that the table keeps of it, and in the group from which
//! it is connected to us: what a peer claims costs it nothing, where its packets come from does.
//!
//! Loopback, private and link-local ranges and the names of a home network are no groups: at home or in a test everybody
//! has the same.
//!
//! [`Seats`] is made from the table whenever it is asked, so that it cannot disagree with it.

use std::collections::{BTreeMap, BTreeSet};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use quelea_wire::prefix::{Prefix, ip_of, is_local};

/// Peers of one group in a bucket.
pub const GROUP_PER_BUCKET: usize = 2;
/// Peers of one group in the table.
pub const GROUP_PER_TABLE: usize = 3;

/// Leading bits of a group, for IPv4 and IPv6.
const GROUP_BITS: (u8, u8) = (24, 48);

/// Endings of names that mean something in one home only.
const HOME_NAMES: [&str; 5] = ["local", "lan", "internal", "localhost", "arpa"];

/// What one attacker gets at the price of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// A range of addresses.
    Range(Prefix),
    /// All names under a domain: its last two labels, in lower case.
    Domain(String),
}

/// The group of an address, by its head; `None` where limits do not apply.
#[must_use]
pub fn group_of(addr: &Multiaddr) -> Option<Group> {
    if let Some(ip) = ip_of(addr) {
        return (!is_local(ip)).then(|| Group::Range(Prefix::around(ip, GROUP_BITS)));
    }
    let name = match addr.iter().next()? {
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) | Protocol::Dnsaddr(name) => {
            name.trim_end_matches('.').to_ascii_lowercase()
        }
        _ => return None,
    };
    let mut labels = name.rsplit('.');
    let (top, second) = (labels.next()?, labels.next()?);
    (!HOME_NAMES.contains(&top)).then(|| Group::Domain(format!("{second}.{top}")))
}

/// The places that groups have taken.
#[derive(Debug, Default)]
pub struct Seats {
    taken: BTreeMap<Group, BTreeSet<(PeerId, u32)>>,
}

impl Seats {
    /// Counts `peer`, which stands in `bucket`, in `group`.
    pub fn take(&mut self, group: Group, peer: PeerId, bucket: u32) {
        self.taken.entry(group).or_default().insert((peer, bucket));
    }

    /// Whether `peer` may take a place of `group` in `bucket`, or has it.
    #[must_use]
    pub fn has_room(&self, group: &Group, peer: &PeerId, bucket: u32) -> bool {
        let Some(taken) = self.taken.get(group) else { return true };
        let others = || taken.iter().filter(|(other, _)| other != peer);
        others().count() < GROUP_PER_TABLE && others().filter(|(_, in_)| *in_ == bucket).count() < GROUP_PER_BUCKET
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn group(text: &str) -> Option<Group> {
        group_of(&text.parse().unwrap())
    }

    #[test]
    fn groups_are_what_can_be_rented_at_once() {
        assert_eq!(group("/ip4/9.8.7.6/tcp/1"), group("/ip4/9.8.7.255/udp/2/quic-v1"));
        assert_ne!(group("/ip4/9.8.7.6/tcp/1"), group("/ip4/9.8.6.6/tcp/1"));
        assert_eq!(group("/ip6/2001:db8:1:2::1/tcp/1"), group("/ip6/2001:db8:1:ffff::9/tcp/1"));
        assert_ne!(group("/ip6/2001:db8:1::1/tcp/1"), group("/ip6/2001:db8:2::1/tcp/1"));
        assert_eq!(group("/ip6/::ffff:9.8.7.1/tcp/1"), group("/ip4/9.8.7.6/tcp/1"));
        assert_eq!(group("/dns4/a.b.Example.org/tcp/1"), group("/dnsaddr/example.org."));
        assert_ne!(group("/dns4/example.org/tcp/1"), group("/dns4/example.net/tcp/1"));
        for home in [
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/192.168.1.2/tcp/1",
            "/ip4/169.254.0.9/tcp/1",
            "/ip6/fd00::2/tcp/1",
            "/ip6/fe80::2/tcp/1",
            "/dns4/worker-1/tcp/1",
            "/dns4/nas.local/tcp/1",
            "/memory/7",
        ] {
            assert_eq!(group(home), None, "{home}");
        }
        assert!(group("/dns4/nas.local/tcp/1").is_none() && group("/dns4/local.org/tcp/1").is_some());
    }

    proptest! {
        /// Whoever asks first, in whatever order: no group ever has more than its places.
        #[test]
        fn no_group_has_more_than_its_places(asking in proptest::collection::vec((0_u8..4, 0_u32..3, any::<bool>()), 0..200)) {
            let mut seats = Seats::default();
            let mut standing: Vec<(PeerId, u32, Group)> = Vec::new();
            for (net, bucket, leaves) in asking {
                if leaves && !standing.is_empty() {
                    standing.remove(0);
                    seats = Seats::default();
                    for (peer, bucket, group) in &standing {
                        seats.take(group.clone(), *peer, *bucket);
                    }
                }
                let peer = PeerId::random();
                let group = group(&format!("/ip4/9.8.{net}.1/tcp/1")).unwrap();
                let room = seats.has_room(&group, &peer, bucket);
                let same: Vec<_> = standing.iter().filter(|(_, _, other)| *other == group).collect();
                let in_bucket = same.iter().filter(|(_, other, _)| *other == bucket).count();
                prop_assert_eq!(room, same.len() < GROUP_PER_TABLE && in_bucket < GROUP_PER_BUCKET);
                if room {
                    seats.take(group.clone(), peer, bucket);
                    prop_assert!(seats.has_room(&group, &peer, bucket), "it has its own");
                    standing.push((peer, bucket, group));
                }
            }
        }
    }
}
