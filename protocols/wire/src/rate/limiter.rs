//! One limit in front of one protocol: by peer, by address range, and all together.

use std::{collections::HashMap, time::Instant};

use libp2p::{
    PeerId,
    core::ConnectedPoint,
    swarm::{
        FromSwarm,
        behaviour::{ConnectionClosed, ConnectionEstablished},
    },
};

use super::{Buckets, Cell, MAX_KEYS, Quota};
use crate::prefix::{HOST, Prefix, ip_of, is_local};

/// What is allowed of one thing. Each wider scope should allow several times the narrower one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// To one peer.
    pub peer: Quota,
    /// To one IPv4 address or IPv6 /56; loopback and private ranges are exempt.
    pub prefix: Quota,
    /// To all together.
    pub global: Quota,
}

/// Which limit refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The peer has had its share.
    Peer,
    /// Its address range has.
    Prefix,
    /// All together have.
    Global,
}

impl Scope {
    /// As a label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Prefix => "prefix",
            Self::Global => "global",
        }
    }
}

/// A limit in front of a protocol. A protocol's behaviour hands it every [`FromSwarm`], and asks before it does anything
/// for a peer that costs more than reading the request.
///
/// | memory | bound |
/// |---|---|
/// | peers' buckets, ranges' buckets | [`MAX_KEYS`] each |
/// | ranges of connected peers | the swarm's connection limits |
#[derive(Debug)]
pub struct Limiter {
    peers: Buckets<PeerId>,
    prefixes: Buckets<Prefix>,
    global: Cell,
    /// Where each connected peer is, by its first connection; those of local ranges and behind relays are left out.
    connected: HashMap<PeerId, Prefix>,
}

impl Limiter {
    /// Nobody has spent anything.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            peers: Buckets::with_capacity(limits.peer, MAX_KEYS),
            prefixes: Buckets::with_capacity(limits.prefix, MAX_KEYS),
            global: Cell::new(limits.global),
            connected: HashMap::new(),
        }
    }

    /// Notes who connects from where: for a behaviour.
    pub fn on_swarm_event(&mut self, event: &FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id, endpoint, other_established: 0, ..
            }) => {
                self.connected(*peer_id, endpoint);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, remaining_established: 0, .. }) => {
                self.disconnected(peer_id);
            }
            _ => {}
        }
    }

    /// `peer` has its first connection: for who owns the swarm.
    pub fn connected(&mut self, peer: PeerId, endpoint: &ConnectedPoint) {
        let ip = ip_of(endpoint.get_remote_address()).filter(|_| !endpoint.is_relayed());
        if let Some(ip) = ip.filter(|ip| !is_local(*ip)) {
            self.connected.insert(peer, Prefix::around(ip, HOST));
        }
    }

    /// `peer` has no connection any more.
    pub fn disconnected(&mut self, peer: &PeerId) {
        self.connected.remove(peer);
    }

    /// Whether `peer` may do one more at `now`; if so it is counted in every scope, and if not in none.
    ///
    /// # Errors
    /// The narrowest scope that has no room.
    pub fn admit(&mut self, peer: PeerId, now: Instant) -> Result<(), Scope> {
        let prefix = self.connected.get(&peer).copied();
        if !self.peers.has_room(&peer, now) {
            return Err(Scope::Peer);
        }
        if prefix.is_some_and(|prefix| !self.prefixes.has_room(&prefix, now)) {
            return Err(Scope::Prefix);
        }
        if !self.global.admit(now) {
            return Err(Scope::Global);
        }
        if let Some(prefix) = prefix {
            self.prefixes.admit(prefix, now);
        }
        self.peers.admit(peer, now);
        Ok(())
    }

    /// Entries of all its maps, for tests and figures.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.peers.len().saturating_add(self.prefixes.len()).saturating_add(self.connected.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use libp2p::{
        core::{Endpoint, transport::PortUse},
        swarm::ConnectionId,
    };
    use proptest::prelude::*;

    use super::*;

    fn limits(peer: u32, prefix: u32, global: u32) -> Limits {
        let quota = |n| Quota::new(n, Duration::from_secs(10));
        Limits { peer: quota(peer), prefix: quota(prefix), global: quota(global) }
    }

    fn connect(limiter: &mut Limiter, peer: PeerId, addr: &str) {
        let endpoint = ConnectedPoint::Dialer {
            address: addr.parse().unwrap(),
            role_override: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        limiter.on_swarm_event(&FromSwarm::ConnectionEstablished(ConnectionEstablished {
            peer_id: peer,
            connection_id: ConnectionId::new_unchecked(1),
            endpoint: &endpoint,
            failed_addresses: &[],
            other_established: 0,
        }));
    }

    #[test]
    fn each_scope_refuses_by_itself() {
        let now = Instant::now();
        let mut limiter = Limiter::new(limits(2, 3, 5));
        let [a, b, c, d] = [0; 4].map(|_| PeerId::random());
        connect(&mut limiter, a, "/ip4/203.0.113.7/tcp/1");
        connect(&mut limiter, b, "/ip4/203.0.113.7/tcp/2");
        connect(&mut limiter, c, "/ip4/192.168.1.1/tcp/1");
        assert_eq!([a, a, a].map(|peer| limiter.admit(peer, now)), [Ok(()), Ok(()), Err(Scope::Peer)]);
        assert_eq!([b, b].map(|peer| limiter.admit(peer, now)), [Ok(()), Err(Scope::Prefix)]);
        assert_eq!([c, c, d].map(|peer| limiter.admit(peer, now)), [Ok(()), Ok(()), Err(Scope::Global)]);
        assert_eq!(limiter.admit(d, now + Duration::from_secs(10)), Ok(()));
    }

    proptest! {
        /// Ten greedy peers, whatever they do, leave a modest one its share.
        #[test]
        fn the_modest_are_served_beside_the_greedy(order in proptest::collection::vec(0_usize..11, 1..400)) {
            let now = Instant::now();
            let mut limiter = Limiter::new(limits(5, 20, 60));
            let peers: Vec<PeerId> = (0..11).map(|_| PeerId::random()).collect();
            for n in order {
                if n < 10 {
                    let _ = limiter.admit(peers[n], now);
                }
            }
            for _ in 0..5 {
                prop_assert_eq!(limiter.admit(peers[10], now), Ok(()));
            }
            prop_assert!(limiter.remembered() <= 22);
        }
    }
}
