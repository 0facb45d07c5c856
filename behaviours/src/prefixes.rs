//! Connections by address range: how many one may have, how fast it may make them, and which are banned.
//!
//! libp2p counts connections by peer and in all, and identities cost nothing. What an attacker pays for is addresses, so
//! here they are counted: eight connections from what one subscriber has (an IPv4 address, an IPv6 /56), 64 from a site
//! (IPv6 /48), and twenty new ones a second.
//!
//! Nothing is noted when a handler is asked for, because a later behaviour may refuse the connection without a word to us:
//! connections are counted from `ConnectionEstablished` to `ConnectionClosed`, and those under way from the moment they
//! are let in until they end, or until any handshake must have ended.
//!
//! | memory | bound |
//! |---|---|
//! | connections | the swarm's connection limits |
//! | connections under way | [`MAX_PENDING`] |
//! | ranges whose rate is remembered | [`MAX_KEYS`] |
//! | banned ranges | [`MAX_BANNED`] |

use std::{
    collections::{HashMap, HashSet, VecDeque},
    convert::Infallible,
    net::IpAddr,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
        behaviour::{ConnectionClosed, ConnectionEstablished, ListenFailure},
        dummy,
    },
};
use quelea_wire::{
    prefix::{HOST, Prefix, SITE, ip_of, is_local},
    rate::{Buckets, MAX_KEYS, Quota},
};

use crate::config::CONNECTION_TIMEOUT;

/// Inbound connections of one IPv4 address or IPv6 /56. A home with a few machines; the figure of go-libp2p.
pub const PER_HOST: usize = 8;
/// Inbound connections of one IPv6 /48 (for IPv4, a site is an address). The figure of go-libp2p.
pub const PER_SITE: usize = 64;
/// Connections let in from one host per second. A peer that restarts needs two; a scan of identities thousands.
pub const ACCEPTED_PER_SECOND: u32 = 20;
/// Connections under way that are remembered: as many as the connection limits let be under way.
pub const MAX_PENDING: usize = 256;
/// Banned ranges; each connection is held against all of them.
pub const MAX_BANNED: usize = 1024;
/// After this a handshake has ended, whether we heard of it or not.
const PENDING_FOR: Duration = CONNECTION_TIMEOUT.saturating_mul(2);

/// What one range may have; see [`PER_HOST`], [`PER_SITE`], [`ACCEPTED_PER_SECOND`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixLimits {
    /// Inbound connections of a host.
    pub per_host: usize,
    /// Inbound connections of a site.
    pub per_site: usize,
    /// New ones of a host per second.
    pub accepted_per_second: u32,
    /// Whether loopback and private ranges are left alone.
    pub exempt_local: bool,
}

impl Default for PrefixLimits {
    fn default() -> Self {
        Self { per_host: PER_HOST, per_site: PER_SITE, accepted_per_second: ACCEPTED_PER_SECOND, exempt_local: true }
    }
}

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// The range is banned.
    #[error("{0} is banned")]
    Banned(Prefix),
    /// The range has as many connections as it may.
    #[error("{0} has its share of connections")]
    Full(Prefix),
    /// The range connects too fast.
    #[error("{0} connects too fast")]
    Rate(Prefix),
}

/// How many connections were refused, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct DeniedCounts {
    /// For a ban.
    pub banned: u64,
    /// For the number of connections of a range.
    pub full: u64,
    /// For the rate of a range.
    pub rate: u64,
}

/// The sizes of the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Connections, either direction, with an address.
    pub connections: usize,
    /// Inbound connections under way.
    pub pending: usize,
    /// Ranges whose rate is remembered.
    pub rates: usize,
    /// Banned ranges.
    pub banned: usize,
}

struct Connection {
    peer: PeerId,
    ip: IpAddr,
    inbound: bool,
}

/// Refuses connections by address range; see the module.
pub struct Behaviour {
    limits: PrefixLimits,
    connections: HashMap<ConnectionId, Connection>,
    /// Oldest first.
    pending: VecDeque<(Instant, ConnectionId, IpAddr)>,
    accepted: Buckets<Prefix>,
    banned: HashSet<Prefix>,
    closing: VecDeque<(PeerId, ConnectionId)>,
    waker: Option<Waker>,
    denied: DeniedCounts,
}

impl Behaviour {
    /// Nobody is connected or banned.
    #[must_use]
    pub fn new(limits: PrefixLimits) -> Self {
        Self {
            accepted: Buckets::with_capacity(Quota::per_second(limits.accepted_per_second), MAX_KEYS),
            limits,
            connections: HashMap::new(),
            pending: VecDeque::new(),
            banned: HashSet::new(),
            closing: VecDeque::new(),
            waker: None,
            denied: DeniedCounts::default(),
        }
    }

    /// Refuses this range from now on and closes its connections. `false` when [`MAX_BANNED`] are banned already.
    pub fn ban(&mut self, range: Prefix) -> bool {
        if self.banned.len() >= MAX_BANNED && !self.banned.contains(&range) {
            return false;
        }
        self.banned.insert(range);
        let there = self.connections.iter().filter(|(_, connection)| range.contains(connection.ip));
        self.closing.extend(there.map(|(id, connection)| (connection.peer, *id)));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        true
    }

    /// Lets this range in again. Says whether it was banned.
    pub fn unban(&mut self, range: &Prefix) -> bool {
        self.banned.remove(range)
    }

    /// Whether limits by address hold for `ip`: at home only where the configuration says so.
    #[must_use]
    pub fn limits_hold_for(&self, ip: IpAddr) -> bool {
        !(self.limits.exempt_local && is_local(ip))
    }

    /// What was refused so far.
    #[must_use]
    pub fn denied(&self) -> DeniedCounts {
        self.denied
    }

    /// The sizes of its maps, for tests and figures.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        Sizes {
            connections: self.connections.len(),
            pending: self.pending.len(),
            rates: self.accepted.len(),
            banned: self.banned.len(),
        }
    }

    fn check_banned(&mut self, ip: Option<IpAddr>) -> Result<(), Denied> {
        let Some(range) = ip.and_then(|ip| self.banned.iter().find(|range| range.contains(ip))) else { return Ok(()) };
        self.denied.banned = self.denied.banned.saturating_add(1);
        Err(Denied::Banned(*range))
    }

    /// Inbound connections of `range`, those under way too.
    fn count(&self, range: &Prefix) -> usize {
        let established = self.connections.values().filter(|c| c.inbound && range.contains(c.ip)).count();
        established.saturating_add(self.pending.iter().filter(|(.., ip)| range.contains(*ip)).count())
    }

    /// Whether one more connection from `ip` may begin; if so it is counted.
    fn admit(&mut self, id: ConnectionId, ip: IpAddr, now: Instant) -> Result<(), Denied> {
        self.check_banned(Some(ip))?;
        if !self.limits_hold_for(ip) {
            return Ok(());
        }
        while self.pending.front().is_some_and(|(since, ..)| now.saturating_duration_since(*since) >= PENDING_FOR) {
            self.pending.pop_front();
        }
        let (host, site) = (Prefix::around(ip, HOST), Prefix::around(ip, SITE));
        for (range, most) in [(host, self.limits.per_host), (site, self.limits.per_site)] {
            if self.count(&range) >= most {
                self.denied.full = self.denied.full.saturating_add(1);
                return Err(Denied::Full(range));
            }
        }
        if !self.accepted.admit(host, now) {
            self.denied.rate = self.denied.rate.saturating_add(1);
            return Err(Denied::Rate(host));
        }
        if self.pending.len() >= MAX_PENDING {
            self.pending.pop_front();
        }
        self.pending.push_back((now, id, ip));
        Ok(())
    }

    fn ended(&mut self, id: ConnectionId) {
        self.pending.retain(|(_, pending, _)| *pending != id);
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        // Who comes through a relay has no address of its own; the relay's limits hold for it.
        let Some(ip) = ip_of(remote) else { return Ok(()) };
        self.admit(id, ip, Instant::now()).map_err(ConnectionDenied::new)
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        // It may have been banned since it began.
        self.check_banned(ip_of(remote)).map_err(ConnectionDenied::new)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        addr: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.check_banned(ip_of(addr)).map_err(ConnectionDenied::new)?;
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished { peer_id, connection_id, endpoint, .. }) => {
                self.ended(connection_id);
                if let Some(ip) = ip_of(endpoint.get_remote_address()).filter(|_| !endpoint.is_relayed()) {
                    let connection = Connection { peer: peer_id, ip, inbound: endpoint.is_listener() };
                    self.connections.insert(connection_id, connection);
                }
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. }) => {
                self.connections.remove(&connection_id);
            }
            FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => self.ended(connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, never: THandlerOutEvent<Self>) {
        match never {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        match self.closing.pop_front() {
            Some((peer_id, id)) => {
                Poll::Ready(ToSwarm::CloseConnection { peer_id, connection: CloseConnection::One(id) })
            }
            None => {
                self.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use libp2p::{core::ConnectedPoint, swarm::ListenError};

    use super::*;

    fn behaviour() -> Behaviour {
        Behaviour::new(PrefixLimits::default())
    }

    fn id(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    fn begin(behaviour: &mut Behaviour, n: usize, ip: &str, now: Instant) -> Result<(), Denied> {
        behaviour.admit(id(n), ip.parse().unwrap(), now)
    }

    fn establish(behaviour: &mut Behaviour, n: usize, ip: &str) {
        let addr = Multiaddr::from(ip.parse::<IpAddr>().unwrap());
        let endpoint = ConnectedPoint::Listener { local_addr: Multiaddr::empty(), send_back_addr: addr };
        behaviour.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
            peer_id: PeerId::random(),
            connection_id: id(n),
            endpoint: &endpoint,
            failed_addresses: &[],
            other_established: 0,
        }));
    }

    fn close(behaviour: &mut Behaviour, n: usize) {
        let endpoint = ConnectedPoint::Listener { local_addr: Multiaddr::empty(), send_back_addr: Multiaddr::empty() };
        behaviour.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
            peer_id: PeerId::random(),
            connection_id: id(n),
            endpoint: &endpoint,
            cause: None,
            remaining_established: 0,
        }));
    }

    #[test]
    fn a_host_has_eight_connections_and_gets_a_place_back_when_one_ends() {
        let (mut behaviour, now) = (behaviour(), Instant::now());
        for n in 0..4 {
            assert_eq!(begin(&mut behaviour, n, "203.0.113.7", now), Ok(()));
            establish(&mut behaviour, n, "203.0.113.7");
        }
        for n in 4..8 {
            assert_eq!(begin(&mut behaviour, n, "203.0.113.7", now), Ok(()));
        }
        assert!(matches!(begin(&mut behaviour, 8, "203.0.113.7", now), Err(Denied::Full(_))));
        assert_eq!(begin(&mut behaviour, 9, "203.0.113.8", now), Ok(()), "a neighbour is another host");
        close(&mut behaviour, 0);
        assert_eq!(begin(&mut behaviour, 10, "203.0.113.7", now), Ok(()));
        let cut = std::io::Error::other("cut");
        let error = ListenError::Transport(libp2p::TransportError::Other(cut));
        behaviour.on_swarm_event(FromSwarm::ListenFailure(ListenFailure {
            local_addr: &Multiaddr::empty(),
            send_back_addr: &Multiaddr::empty(),
            error: &error,
            connection_id: id(10),
            peer_id: None,
        }));
        assert_eq!(begin(&mut behaviour, 11, "203.0.113.7", now), Ok(()));
        assert!(begin(&mut behaviour, 12, "203.0.113.7", now).is_err());
        assert_eq!(begin(&mut behaviour, 13, "203.0.113.7", now + PENDING_FOR), Ok(()), "handshakes end some time");
    }

    #[test]
    fn a_site_has_sixty_four() {
        let (mut behaviour, now) = (behaviour(), Instant::now());
        let taken = (0..200)
            .filter(|n| begin(&mut behaviour, *n, &format!("2001:db8:1:{:x}::1", n * 256), now).is_ok())
            .count();
        assert_eq!(taken, PER_SITE);
        assert_eq!(begin(&mut behaviour, 201, "2001:db8:2::1", now), Ok(()));
    }

    #[test]
    fn a_host_connects_twenty_times_a_second() {
        let (mut behaviour, now) = (behaviour(), Instant::now());
        let mut attempt = |n: usize, now| {
            let let_in = begin(&mut behaviour, n, "203.0.113.7", now);
            behaviour.ended(id(n));
            let_in.is_ok()
        };
        assert_eq!((0..500).filter(|n| attempt(*n, now)).count(), 20);
        assert!(attempt(501, now + Duration::from_millis(50)));
        assert_eq!(behaviour.denied().rate, 480);
    }

    #[test]
    fn homes_are_exempt_unless_the_configuration_says_otherwise() {
        let now = Instant::now();
        let mut exempt = behaviour();
        let mut strict = Behaviour::new(PrefixLimits { exempt_local: false, ..PrefixLimits::default() });
        for ip in ["127.0.0.1", "10.1.1.1", "192.168.1.1", "fe80::1", "fd00::1"] {
            assert_eq!((0..100).filter(|n| begin(&mut exempt, *n, ip, now).is_ok()).count(), 100);
            let ip_of_it = ip.parse().unwrap();
            assert!(!exempt.limits_hold_for(ip_of_it) && strict.limits_hold_for(ip_of_it));
            assert_eq!((0..100).filter(|n| begin(&mut strict, *n, ip, now).is_ok()).count(), PER_HOST);
        }
        assert_eq!(exempt.sizes(), Sizes::default(), "nothing to count");
    }

    #[test]
    fn a_ban_closes_what_is_open_and_ends() {
        let (mut behaviour, now) = (behaviour(), Instant::now());
        establish(&mut behaviour, 1, "203.0.113.7");
        establish(&mut behaviour, 2, "198.51.100.1");
        let range: Prefix = "203.0.113.0/24".parse().unwrap();
        assert!(behaviour.ban(range));
        assert_eq!(behaviour.closing.iter().map(|(_, id)| *id).collect::<Vec<_>>(), [id(1)]);
        assert_eq!(begin(&mut behaviour, 3, "203.0.113.200", now), Err(Denied::Banned(range)));
        assert_eq!(begin(&mut behaviour, 4, "198.51.100.1", now), Ok(()));
        assert!(behaviour.unban(&range) && !behaviour.unban(&range));
        assert_eq!(begin(&mut behaviour, 5, "203.0.113.200", now), Ok(()));
        let banned = (0..2 * MAX_BANNED).filter(|n| {
            let ip = std::net::Ipv4Addr::from_bits(u32::try_from(*n).unwrap());
            behaviour.ban(Prefix::new(ip.into(), 32))
        });
        assert_eq!(banned.count(), MAX_BANNED);
    }

    /// What denied connections with fresh identities leave behind: nothing (row 2 of the threats).
    #[test]
    fn ten_thousand_denied_connections_leave_every_map_as_it_was() {
        let (mut behaviour, now) = (behaviour(), Instant::now());
        for n in 0..8 {
            assert_eq!(begin(&mut behaviour, n, "203.0.113.7", now), Ok(()));
            establish(&mut behaviour, n, "203.0.113.7");
        }
        let before = behaviour.sizes();
        for n in 0..10_000 {
            assert!(begin(&mut behaviour, 100 + n, "203.0.113.7", now).is_err());
        }
        assert_eq!(behaviour.sizes(), before);
        assert_eq!(behaviour.denied().full, 10_000);
    }
}
