//! What the loop knows about being reached: who saw us where, which dial-backs arrived, relays, hole punches.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol, swarm::ConnectionId};
use quelea_behaviours::{
    nat::{
        is_relayed,
        kind::{Evidence, Nat, Observation},
        relays::Relays,
    },
    peers::Hold,
    scope::{self, Scope},
};

/// Addresses whose tests are remembered. A node has a few per transport; a symmetric NAT makes more, and the oldest go.
const MAX_TESTED: usize = 16;

/// Hole punches that are remembered: those of the last hour, at most so many.
const MAX_PUNCHES: usize = 256;
const PUNCH_MEMORY: Duration = Duration::from_secs(3600);

/// Addresses and peers that we have sent something to and remember. When it is full, nobody counts as a stranger any more:
/// who came in might be one we forgot.
const MAX_CONTACTED: usize = 4096;

/// Peers whose clock is compared with ours.
const MAX_CLOCKS: usize = 64;

/// How AutoNAT found one of our addresses.
#[derive(Debug, Clone)]
pub(crate) struct Tested {
    /// The address.
    pub(crate) addr: Multiaddr,
    /// Dial-backs that arrived.
    pub(crate) arrived: usize,
    /// Dial-backs that did not.
    pub(crate) failed: usize,
    /// What the last one that failed met.
    pub(crate) reason: Option<String>,
}

/// What UPnP has found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Upnp {
    /// Not wanted.
    #[default]
    Off,
    /// No answer yet.
    Searching,
    /// No router answers.
    NoGateway,
    /// The router is itself behind a NAT.
    NonRoutable,
    /// The router opened these ports.
    Mapped(Vec<Multiaddr>),
}

/// The answer to a ping.
#[derive(Debug, Clone)]
pub(crate) struct Pong {
    /// The round trip.
    pub(crate) rtt: Duration,
    /// Where the connection leads that it took.
    pub(crate) addr: Multiaddr,
}

/// A peer that offers to relay.
#[derive(Debug, Clone)]
pub(crate) struct RelayView {
    pub(crate) peer: PeerId,
    pub(crate) addr: Multiaddr,
    pub(crate) rtt: Option<Duration>,
    /// Whether it keeps a place for this node.
    pub(crate) reserved: bool,
}

/// What is known about being reached, at one moment.
#[derive(Debug, Clone)]
pub(crate) struct NatView {
    pub(crate) nat: Nat,
    /// Whether anybody can surely dial this node.
    pub(crate) public: bool,
    pub(crate) listeners: Vec<Multiaddr>,
    pub(crate) external: Vec<Multiaddr>,
    pub(crate) tested: Vec<Tested>,
    /// Where peers see this node.
    pub(crate) observed: Vec<Observation>,
    pub(crate) upnp: Upnp,
    pub(crate) relays: Vec<RelayView>,
    /// Whether this node looks for places at relays.
    pub(crate) wants_relays: bool,
    /// Hole punches of the last hour: tried, and successful.
    pub(crate) punches: (usize, usize),
    /// Milliseconds that the median peer's clock is ahead, and of how many.
    pub(crate) clock: Option<(i64, usize)>,
    /// Connected peers.
    pub(crate) peers: usize,
    /// Those of them that are reached through relays only.
    pub(crate) relayed_peers: usize,
}

/// Everything about being reached. Bounded by the constants above, and by the connections that stand.
#[derive(Debug, Default)]
pub(crate) struct NatState {
    pub(crate) relays: Relays,
    pub(crate) upnp: Upnp,
    /// Addresses that the operator says lead here.
    pub(crate) declared: Vec<Multiaddr>,
    /// Connected peers that offer to relay.
    pub(super) relaying: HashSet<PeerId>,
    /// Peers that keep a place at this node, a relay. As many as its server takes.
    pub(super) guests: HashMap<PeerId, Hold>,
    /// The circuits through this node, by their ends. As many as its server takes.
    pub(super) circuits: Vec<(PeerId, PeerId, [Hold; 2])>,
    /// Connections that we dialled, directly.
    outbound: HashMap<ConnectionId, Multiaddr>,
    observed: HashMap<ConnectionId, Observation>,
    tested: VecDeque<Tested>,
    punches: VecDeque<(Instant, bool)>,
    contacted: HashSet<IpAddr>,
    dialled: HashSet<PeerId>,
    stranger_came_in: bool,
    /// Milliseconds that a peer's clock is ahead of ours, at least.
    clocks: HashMap<PeerId, i64>,
    pub(super) next_look: Option<Instant>,
}

impl NatState {
    /// A dial of `peer` begins.
    pub(super) fn dialling(&mut self, peer: PeerId) {
        if self.dialled.len() < MAX_CONTACTED {
            self.dialled.insert(peer);
        }
    }

    /// Something was sent to `addr`.
    pub(super) fn contacted(&mut self, addr: &Multiaddr) {
        if !is_relayed(addr)
            && let Some(ip) = ip(addr)
            && self.contacted.len() < MAX_CONTACTED
        {
            self.contacted.insert(ip);
        }
    }

    /// A connection of ours stands.
    pub(super) fn connected_to(&mut self, connection: ConnectionId, addr: &Multiaddr) {
        self.contacted(addr);
        if !is_relayed(addr) {
            self.outbound.insert(connection, addr.clone());
        }
    }

    /// `peer` came in from `addr`. Nobody but an open port lets in whoever we never sent anything to; a peer that we dial,
    /// or reach through a relay, may be let in because of that.
    /// Returns whether it was such a one.
    pub(super) fn came_in(&mut self, peer: &PeerId, addr: &Multiaddr, known_otherwise: bool) -> bool {
        let full = self.contacted.len() >= MAX_CONTACTED || self.dialled.len() >= MAX_CONTACTED;
        let Some(ip) = ip(addr).filter(|_| !is_relayed(addr) && scope::of(addr) == Some(Scope::World)) else {
            return false;
        };
        let stranger = !full && !known_otherwise && !self.dialled.contains(peer) && !self.contacted.contains(&ip);
        self.stranger_came_in |= stranger;
        stranger
    }

    /// A connection is gone.
    pub(super) fn closed(&mut self, peer: &PeerId, connection: ConnectionId, last: bool) {
        self.outbound.remove(&connection);
        self.observed.remove(&connection);
        if last {
            self.relaying.remove(peer);
        }
    }

    /// The other end of `connection` sees us at `seen`.
    pub(super) fn seen_at(&mut self, connection: ConnectionId, seen: &Multiaddr) {
        let Some(by) = self.outbound.get(&connection) else { return };
        if let (Some((seen, quic)), Some(by)) = (socket(seen), ip(by)) {
            self.observed.insert(connection, Observation { quic, seen, by });
        }
    }

    /// AutoNAT tested `addr`.
    pub(super) fn tested(&mut self, addr: &Multiaddr, failure: Option<String>) {
        let mut entry = match self.tested.iter().position(|t| t.addr == *addr) {
            Some(at) => self.tested.remove(at),
            None => None,
        }
        .unwrap_or_else(|| Tested { addr: addr.clone(), arrived: 0, failed: 0, reason: None });
        match failure {
            None => entry.arrived = entry.arrived.saturating_add(1),
            Some(reason) => {
                entry.failed = entry.failed.saturating_add(1);
                entry.reason = Some(reason);
            }
        }
        if self.tested.len() >= MAX_TESTED {
            self.tested.pop_front();
        }
        self.tested.push_back(entry);
    }

    /// A hole punch ended.
    pub(super) fn punched(&mut self, success: bool, now: Instant) {
        if self.punches.len() >= MAX_PUNCHES {
            self.punches.pop_front();
        }
        self.punches.push_back((now, success));
    }

    /// `peer` signed something at `signed_ms`, which is here at `now_ms`. It was signed before it came, so the largest
    /// difference seen is the nearest to that of the clocks.
    pub(super) fn signed_at(&mut self, peer: PeerId, signed_ms: u64, now_ms: u64) {
        let ahead = i64::try_from(i128::from(signed_ms) - i128::from(now_ms)).unwrap_or_default();
        if self.clocks.len() < MAX_CLOCKS || self.clocks.contains_key(&peer) {
            let known = self.clocks.entry(peer).or_insert(ahead);
            *known = ahead.max(*known);
        }
    }

    /// The median of the peers' clocks against ours, in milliseconds, and how many there are.
    pub(super) fn clock_skew(&self) -> Option<(i64, usize)> {
        let mut all: Vec<i64> = self.clocks.values().copied().collect();
        all.sort_unstable();
        all.get(all.len() / 2).map(|median| (*median, all.len()))
    }

    /// Hole punches of the last hour: tried, and successful.
    pub(super) fn punch_score(&self, now: Instant) -> (usize, usize) {
        let recent = || self.punches.iter().filter(|(at, _)| now.saturating_duration_since(*at) <= PUNCH_MEMORY);
        (recent().count(), recent().filter(|(_, success)| *success).count())
    }

    /// Where peers see this node.
    pub(super) fn observed(&self) -> Vec<Observation> {
        self.observed.values().copied().collect()
    }

    /// Results of AutoNAT, the oldest first.
    pub(super) fn tests(&self) -> impl Iterator<Item = &Tested> {
        self.tested.iter()
    }

    /// What is known, for [`quelea_behaviours::nat::kind::classify`].
    pub(super) fn evidence<'a>(&self, listeners: impl IntoIterator<Item = &'a Multiaddr>) -> Evidence {
        let direct = || self.tested.iter().filter(|tested| scope::of(&tested.addr) == Some(Scope::World));
        let gateway = match &self.upnp {
            Upnp::Mapped(addrs) => addrs.iter().find_map(ip),
            _ => None,
        };
        Evidence {
            listeners: listeners.into_iter().filter(|addr| !is_relayed(addr)).filter_map(ip).collect(),
            observations: self.observed.values().copied().collect(),
            dial_backs: (direct().map(|t| t.arrived).sum(), direct().map(|t| t.failed).sum()),
            stranger_came_in: self.stranger_came_in,
            gateway,
        }
    }

    /// Whether anybody can surely dial one of `external`. AutoNAT alone does not show that: its dial-backs come from
    /// addresses that we are in touch with, and get through a restricted cone that keeps strangers out.
    pub(super) fn surely_public<'a>(
        &self,
        external: impl IntoIterator<Item = &'a Multiaddr>,
        listeners: impl IntoIterator<Item = &'a Multiaddr>,
    ) -> bool {
        let ours: Vec<IpAddr> = listeners.into_iter().filter(|addr| !is_relayed(addr)).filter_map(ip).collect();
        let mapped: &[Multiaddr] = if let Upnp::Mapped(addrs) = &self.upnp { addrs } else { &[] };
        external.into_iter().filter(|addr| !is_relayed(addr)).any(|addr| {
            self.stranger_came_in
                || self.declared.contains(addr)
                || mapped.contains(addr)
                || ip(addr).is_some_and(|ip| ours.contains(&ip))
        })
    }
}

/// The IP address at the head of `addr`.
pub(super) fn ip(addr: &Multiaddr) -> Option<IpAddr> {
    match addr.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// The socket address of a direct `addr`, and whether it is QUIC's.
fn socket(addr: &Multiaddr) -> Option<(SocketAddr, bool)> {
    if is_relayed(addr) {
        return None;
    }
    match addr.iter().nth(1)? {
        Protocol::Udp(port) => Some((SocketAddr::new(ip(addr)?, port), true)),
        Protocol::Tcp(port) => Some((SocketAddr::new(ip(addr)?, port), false)),
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
    fn only_a_stranger_from_outside_shows_an_open_port() {
        let (friend, stranger) = (PeerId::random(), PeerId::random());
        let mut nat = NatState::default();
        nat.dialling(friend);
        nat.connected_to(ConnectionId::new_unchecked(1), &addr("/ip4/45.65.1.1/udp/1/quic-v1"));
        for (peer, from, otherwise) in [
            (friend, "/ip4/45.99.1.1/tcp/9", false),
            (stranger, "/ip4/45.65.1.1/tcp/9", false),
            (stranger, "/ip4/192.168.1.9/tcp/9", false),
            (stranger, "/ip4/45.99.1.1/tcp/9", true),
        ] {
            nat.came_in(&peer, &addr(from), otherwise);
            assert!(!nat.stranger_came_in, "{from}");
        }
        nat.came_in(&stranger, &addr("/ip4/45.99.1.1/tcp/9"), false);
        assert!(nat.stranger_came_in);
    }

    #[test]
    fn a_confirmed_address_is_public_for_sure_only_with_a_reason() {
        let (external, inside) = ([addr("/ip4/45.70.1.1/tcp/1")], [addr("/ip4/192.168.1.7/tcp/1")]);
        let mut nat = NatState::default();
        assert!(!nat.surely_public(&external, &inside), "a restricted cone would look the same");
        assert!(nat.surely_public(&external, &external));
        nat.upnp = Upnp::Mapped(external.to_vec());
        assert!(nat.surely_public(&external, &inside));
        nat = NatState { declared: external.to_vec(), ..NatState::default() };
        assert!(nat.surely_public(&external, &inside));
        nat = NatState { stranger_came_in: true, ..NatState::default() };
        assert!(nat.surely_public(&external, &inside));
        let relayed = [addr(&format!("/ip4/45.65.1.1/tcp/1/p2p/{}/p2p-circuit", PeerId::random()))];
        assert!(!nat.surely_public(&relayed, &relayed));
    }

    #[test]
    fn what_peers_cause_is_bounded() {
        let mut nat = NatState::default();
        let now = Instant::now();
        for n in 0..10_000_u32 {
            nat.dialling(PeerId::random());
            nat.contacted(&addr(&format!("/ip4/{}/tcp/1", std::net::Ipv4Addr::from_bits(n + (45 << 24)))));
            nat.tested(&addr(&format!("/ip4/45.1.1.1/tcp/{}", n + 1)), None);
            nat.punched(true, now);
            nat.signed_at(PeerId::random(), 1, 2);
        }
        assert!(nat.dialled.len() <= MAX_CONTACTED && nat.contacted.len() <= MAX_CONTACTED);
        assert!(nat.tested.len() <= MAX_TESTED && nat.punches.len() <= MAX_PUNCHES && nat.clocks.len() <= MAX_CLOCKS);
        nat.came_in(&PeerId::random(), &addr("/ip4/9.9.9.9/tcp/1"), false);
        assert!(!nat.stranger_came_in, "a stranger may be somebody forgotten");
    }

    #[test]
    fn the_clock_is_the_median_of_the_nearest_looks() {
        let mut nat = NatState::default();
        assert_eq!(nat.clock_skew(), None);
        for (ahead, age) in [(40_u64, 0_u64), (50, 10), (45, 30)] {
            let peer = PeerId::random();
            nat.signed_at(peer, 1_000_000 + ahead, 1_000_000 + 5_000);
            nat.signed_at(peer, 1_000_000 + ahead, 1_000_000 + age);
        }
        assert_eq!(nat.clock_skew(), Some((40, 3)));
        nat.signed_at(PeerId::random(), u64::MAX, 0);
    }
}
