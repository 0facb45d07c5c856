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
//! | ranges that are let in half as fast | [`MAX_WARY`] |

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
/// Ranges that are let in half as fast; beyond, the one whose time is over first is let in as others are.
pub const MAX_WARY: usize = 256;
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
    /// Ranges that are let in half as fast, and until when.
    wary: HashMap<Prefix, Instant>,
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
            wary: HashMap::new(),
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

    /// Lets hosts of this range in half as fast until then: many of it were proven to cheat.
    pub fn be_wary(&mut self, range: Prefix, until: Instant) {
        if self.wary.len() >= MAX_WARY && !self.wary.contains_key(&range) {
            let first = self.wary.iter().min_by_key(|(_, until)| **until).map(|(range, _)| *range);
            first.map(|first| self.wary.remove(&first));
        }
        self.wary.insert(range, until);
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
        let wary = self.wary.iter().any(|(range, until)| range.contains(ip) && now < *until);
        // Who counts twice comes half as often.
        if !self.accepted.admit(host, now) || (wary && !self.accepted.admit(host, now)) {
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
mod tests;
