//! Reachability: what AutoNAT, UPnP, relays and hole punching report, and what is done about it.

use std::time::{Duration, Instant};

use libp2p::{
    Multiaddr, PeerId, autonat,
    core::{ConnectedPoint, transport::ListenerId},
    dcutr, identify,
    multiaddr::Protocol,
    relay,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
    upnp,
};
use quelea_behaviours::{
    nat::{is_relayed, kind::classify, relays::Candidate},
    scope::{self, Scope},
};
use tokio::sync::oneshot;

use crate::{
    swarm::{
        driver::Driver,
        nat::{NatView, RelayView, Upnp},
        state::Peer,
    },
    telemetry::{metrics::Punch, stats::Reachability, way},
};

/// Between two looks at the relays.
const LOOK: Duration = Duration::from_secs(1);

/// How long a node with an address of the internet waits for AutoNAT before it looks for relays. Three probes.
const PUBLIC_PATIENCE: Duration = Duration::from_secs(20);

/// Relays through which a peer is dialled that has not answered otherwise.
const MAX_TRIED_RELAYS: usize = 3;

/// How long a dial goes on alone before relays are tried beside it. A peer that can be dialled answers sooner.
const RELAY_AFTER: Duration = Duration::from_millis(1500);

/// Direct dials by which we try to replace one relayed connection of a peer, besides hole punching.
const MAX_REVERSALS: u8 = 2;

/// How long a relayed connection is kept beside a direct one: what runs on it may end.
const LINGER: Duration = Duration::from_secs(60);

/// What a relay calls the protocol by which it is asked.
const HOP: &str = "/libp2p/circuit/relay/0.2.0/hop";

pub(crate) fn autonat(driver: &mut Driver, event: &autonat::v2::client::Event) {
    let failure = event.result.as_ref().err().map(ToString::to_string);
    driver.state.nat.tested(&event.tested_addr, failure);
    match &event.result {
        Ok(()) => tracing::info!(addr = %event.tested_addr, server = %event.server, "dialled back from outside"),
        Err(error) => tracing::debug!(addr = %event.tested_addr, %error, "not reachable from outside"),
    }
    reconsider(driver);
}

/// Follows what is known now: the gauge, and the part in the DHT.
pub(crate) fn reconsider(driver: &mut Driver) {
    let stats = &driver.config.telemetry.stats;
    let public = is_public(driver);
    if public {
        stats.set_reachability(Reachability::Public);
    } else if driver.state.nat.tests().next().is_some() {
        stats.set_reachability(Reachability::Private);
    }
    let confirmed: Vec<_> = driver.swarm.external_addresses().filter(|_| public).cloned().collect();
    let mode = quelea_behaviours::kad::mode(driver.config.kad_mode, &confirmed);
    let kad = &mut driver.swarm.behaviour_mut().kad;
    if kad.mode() != mode {
        kad.set_mode(Some(mode));
    }
}

/// Whether anybody can surely dial this node.
pub(super) fn is_public(driver: &Driver) -> bool {
    driver.state.nat.surely_public(driver.swarm.external_addresses(), driver.state.listeners.values())
}

pub(crate) fn upnp(driver: &mut Driver, event: &upnp::Event) {
    let upnp = &mut driver.state.nat.upnp;
    match event {
        upnp::Event::NewExternalAddr { external_addr, .. } => {
            tracing::info!(addr = %external_addr, "UPnP: the router opened a port");
            match upnp {
                Upnp::Mapped(addrs) if addrs.contains(external_addr) => {}
                Upnp::Mapped(addrs) => addrs.push(external_addr.clone()),
                other => *other = Upnp::Mapped(vec![external_addr.clone()]),
            }
        }
        upnp::Event::ExpiredExternalAddr { external_addr, .. } => {
            if let Upnp::Mapped(addrs) = upnp {
                addrs.retain(|addr| addr != external_addr);
            }
        }
        upnp::Event::GatewayNotFound => {
            tracing::info!("UPnP: no router answers");
            *upnp = Upnp::NoGateway;
        }
        upnp::Event::NonRoutableGateway => {
            tracing::info!("UPnP: the router is itself behind NAT");
            *upnp = Upnp::NonRoutable;
        }
    }
    reconsider(driver);
}

pub(crate) fn dcutr(driver: &mut Driver, event: &dcutr::Event) {
    let success = event.result.is_ok();
    match &event.result {
        Ok(_) => tracing::info!(peer = %event.remote_peer_id, "hole punched: the connection is direct now"),
        Err(error) => tracing::debug!(peer = %event.remote_peer_id, %error, "hole punching failed"),
    }
    driver.state.nat.punched(success, Instant::now());
    driver.config.telemetry.metrics.hole_punch(if success { Punch::Success } else { Punch::Failure });
}

pub(crate) fn relay_client(driver: &mut Driver, event: &relay::client::Event) {
    match event {
        relay::client::Event::ReservationReqAccepted { relay_peer_id, renewal, limit } => {
            if !renewal {
                tracing::info!(relay = %relay_peer_id, ?limit, "a relay keeps a place for this node");
            }
            driver.state.nat.relays.accepted(relay_peer_id);
        }
        other => tracing::debug!(event = ?other, "relay"),
    }
}

/// Follows whom this node relays for. What they have here hangs on their connections, also where we dialled those.
pub(crate) fn relay_server(driver: &mut Driver, event: &relay::Event) {
    let (peers, nat) = (&mut driver.swarm.behaviour_mut().peers, &mut driver.state.nat);
    match event {
        relay::Event::ReservationReqAccepted { src_peer_id, .. } => {
            nat.guests.insert(*src_peer_id, peers.hold(*src_peer_id));
        }
        relay::Event::ReservationClosed { src_peer_id } | relay::Event::ReservationTimedOut { src_peer_id } => {
            nat.guests.remove(src_peer_id);
        }
        relay::Event::CircuitReqAccepted { src_peer_id, dst_peer_id } => {
            let holds = [peers.hold(*src_peer_id), peers.hold(*dst_peer_id)];
            nat.circuits.push((*src_peer_id, *dst_peer_id, holds));
        }
        relay::Event::CircuitClosed { src_peer_id, dst_peer_id, .. } => {
            let ended = nat.circuits.iter().position(|(src, dst, _)| (src, dst) == (src_peer_id, dst_peer_id));
            ended.map(|at| nat.circuits.swap_remove(at));
        }
        _ => {}
    }
}

/// Relays to which lines stay though nobody uses them: those that keep a place for this node or are asked for one, and the nearest
/// others, to reach peers through or to ask next.
pub(super) fn relays_to_keep(driver: &Driver) -> Vec<PeerId> {
    let relays = &driver.state.nat.relays;
    let (mut keep, mut others): (Vec<_>, Vec<_>) =
        candidates(driver).into_iter().partition(|relay| relays.uses(&relay.peer));
    others.sort_by_key(|relay| relay.rtt.unwrap_or(Duration::MAX));
    others.truncate(MAX_TRIED_RELAYS);
    keep.append(&mut others);
    keep.into_iter().map(|relay| relay.peer).collect()
}

/// An address of ours is listened on. A relay is told to be public by its operator: its addresses of the internet count as
/// confirmed, so that it can name them to those who ask for a place.
pub(super) fn listening(driver: &mut Driver, addr: &Multiaddr) {
    if driver.config.relay_server && !is_relayed(addr) && scope::of(addr) == Some(Scope::World) {
        driver.swarm.add_external_address(addr.clone());
    }
}

/// What is known about being reached.
pub(crate) fn view(driver: &mut Driver, reply: oneshot::Sender<NatView>) {
    let (now, state) = (Instant::now(), &driver.state);
    let relays = candidates(driver);
    let relays = relays.into_iter().map(|relay| RelayView {
        reserved: state.nat.relays.reserved().any(|peer| peer == relay.peer),
        peer: relay.peer,
        addr: relay.addr,
        rtt: relay.rtt,
    });
    let _ = reply.send(NatView {
        nat: classify(&state.nat.evidence(state.listeners.values())),
        public: is_public(driver),
        listeners: state.listeners.values().cloned().collect(),
        external: driver.swarm.external_addresses().cloned().collect(),
        tested: state.nat.tests().cloned().collect(),
        observed: state.nat.observed(),
        upnp: state.nat.upnp.clone(),
        relays: relays.collect(),
        wants_relays: wants_relays(driver, now),
        punches: state.nat.punch_score(now),
        clock: state.nat.clock_skew(),
        peers: state.peers.len(),
        relayed_peers: state.peers.values().filter(|peer| peer.connections.values().all(is_relayed)).count(),
    });
}

/// Notes what a new connection shows.
pub(super) fn established(driver: &mut Driver, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
    let known = driver.state.peers.contains_key(&peer);
    let addr = endpoint.get_remote_address();
    let nat = &mut driver.state.nat;
    if endpoint.is_dialer() {
        nat.connected_to(connection, addr);
    } else if nat.came_in(&peer, addr, known) {
        // Better proof than a dial-back: no server has to be drawn that can dial, and tells the truth.
        let transport = way(addr).1;
        let open =
            |addr: &&Multiaddr| !is_relayed(addr) && scope::of(addr) == Some(Scope::World) && way(addr).1 == transport;
        let ours: Vec<Multiaddr> = driver.state.listeners.values().filter(open).cloned().collect();
        for addr in ours {
            driver.swarm.add_external_address(addr);
        }
    }
    reconsider(driver);
}

/// Notes what a peer says of us, and whether it relays; replaces a relayed connection where it can be dialled.
pub(super) fn identified(driver: &mut Driver, peer: PeerId, connection: ConnectionId, info: &identify::Info) {
    let nat = &mut driver.state.nat;
    nat.seen_at(connection, &info.observed_addr);
    if info.protocols.iter().any(|protocol| protocol.as_ref() == HOP) {
        nat.relaying.insert(peer);
    } else {
        nat.relaying.remove(&peer);
    }
    reverse(driver, peer, &info.listen_addrs);
}

/// Dials a peer directly that came in through a relay: whoever can be dialled needs no hole. After a hole punch that failed
/// this is tried again, as the peer's router may let us in by now: it has seen packets to us.
fn reverse(driver: &mut Driver, peer: PeerId, addrs: &[Multiaddr]) {
    let public = |addr: &&Multiaddr| !is_relayed(addr) && scope::of(addr) == Some(Scope::World);
    let addrs: Vec<Multiaddr> = addrs.iter().filter(public).take(4).cloned().collect();
    let Some(known) = driver.state.peers.get_mut(&peer) else { return };
    if addrs.is_empty() || !came_in_relayed(known) || known.reversals >= MAX_REVERSALS {
        return;
    }
    known.reversals = known.reversals.saturating_add(1);
    let opts = DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(addrs).build();
    if let Err(error) = driver.swarm.dial(opts) {
        tracing::debug!(%peer, %error, "a relayed peer was not dialled directly");
    }
}

fn came_in_relayed(peer: &Peer) -> bool {
    peer.relayed_in && peer.connections.values().all(is_relayed)
}

/// A dial failed: where it led, we sent something. Returns whether the peer is now tried through relays instead.
pub(super) fn dial_failed(driver: &mut Driver, peer: PeerId, error: &DialError) -> bool {
    if let DialError::Transport(failed) = error {
        let addrs: Vec<Multiaddr> = failed.iter().map(|(addr, _)| addr.clone()).collect();
        for addr in &addrs {
            driver.state.nat.contacted(addr);
        }
        reverse(driver, peer, &addrs);
    }
    !driver.state.peers.contains_key(&peer) && through_relays(driver, peer)
}

/// Dials `peer` through relays that we are connected to, once per dial; a peer behind NAT keeps its places at relays that
/// others know, too.
pub(super) fn through_relays(driver: &mut Driver, peer: PeerId) -> bool {
    if !driver.state.first_try_through_relays(&peer) {
        return false;
    }
    let local = *driver.swarm.local_peer_id();
    let mut relays = candidates(driver);
    relays.retain(|relay| relay.peer != peer && relay.peer != local);
    relays.sort_by_key(|relay| relay.rtt.unwrap_or(Duration::MAX));
    let circuits: Vec<Multiaddr> = relays.iter().take(MAX_TRIED_RELAYS).map(circuit).collect();
    if circuits.is_empty() {
        return false;
    }
    let opts = DialOpts::peer_id(peer).condition(PeerCondition::Disconnected).addresses(circuits).build();
    driver.swarm.dial(opts).is_ok()
}

/// Connected peers that offer to relay, at addresses of the internet.
fn candidates(driver: &Driver) -> Vec<Candidate> {
    let of = |peer: &PeerId| {
        let known = driver.state.peers.get(peer)?;
        let direct = |addr: &&Multiaddr| !is_relayed(addr) && scope::of(addr) == Some(Scope::World);
        let addr = known.dialled.iter().find(direct)?.clone();
        Some(Candidate { peer: *peer, addr, rtt: known.rtt })
    };
    driver.state.nat.relaying.iter().filter_map(of).collect()
}

/// Where a relay's circuits begin.
fn circuit(relay: &Candidate) -> Multiaddr {
    let mut addr = relay.addr.clone();
    if matches!(addr.iter().last(), Some(Protocol::P2p(_))) {
        addr.pop();
    }
    addr.with(Protocol::P2p(relay.peer)).with(Protocol::P2pCircuit)
}

/// A listener closed: if it was a relay's, another one is asked at the next look.
pub(crate) fn listener_closed(driver: &mut Driver, listener: ListenerId) {
    if let Some(relay) = driver.state.nat.relays.lost(listener, Instant::now()) {
        tracing::info!(%relay, "the place at a relay is gone");
        driver.state.nat.next_look = None;
    }
}

/// Asks for places at relays while this node cannot be dialled, and closes relayed connections that nobody needs any more.
pub(crate) fn tick(driver: &mut Driver, now: Instant) {
    for peer in driver.state.dials_older_than(RELAY_AFTER, now) {
        through_relays(driver, peer);
    }
    if driver.state.nat.next_look.is_some_and(|next| now < next) {
        return;
    }
    driver.state.nat.next_look = now.checked_add(LOOK);
    let held = driver.state.nat.relays.reserved().count();
    driver.config.telemetry.stats.relay_reservations.set(u64::try_from(held).unwrap_or(u64::MAX));
    close_idle_circuits(driver, now);
    if wants_relays(driver, now) {
        let candidates = candidates(driver);
        while let Some(next) = driver.state.nat.relays.next(&candidates, now) {
            ask(driver, next, now);
        }
    }
}

/// Whoever listens and cannot surely be dialled. A node with an address of the internet gives AutoNAT time to say so first.
fn wants_relays(driver: &Driver, now: Instant) -> bool {
    let state = &driver.state;
    let world = state.listeners.values().any(|addr| !is_relayed(addr) && scope::of(addr) == Some(Scope::World));
    let patience = if world { PUBLIC_PATIENCE } else { Duration::ZERO };
    !state.listeners.is_empty() && now.saturating_duration_since(state.started) >= patience && !is_public(driver)
}

fn ask(driver: &mut Driver, relay: Candidate, now: Instant) {
    let addr = circuit(&relay);
    match driver.swarm.listen_on(addr) {
        Ok(listener) => driver.state.nat.relays.asked(relay.peer, relay.addr, listener, now),
        Err(error) => {
            tracing::debug!(relay = %relay.peer, %error, "a relay could not be asked");
            driver.state.nat.relays.failed(relay.peer, now);
        }
    }
}

/// Relays give a circuit to few at a time: one that a direct connection has replaced is given back, unless streams of ours
/// are still on it.
fn close_idle_circuits(driver: &mut Driver, now: Instant) {
    let mut idle: Vec<ConnectionId> = Vec::new();
    for known in driver.state.peers.values() {
        let direct = known.direct_since.is_some_and(|since| now.saturating_duration_since(since) >= LINGER);
        if direct && known.connections.values().any(|addr| !is_relayed(addr)) {
            idle.extend(known.connections.iter().filter(|(_, addr)| is_relayed(addr)).map(|(id, _)| *id));
        }
    }
    for connection in idle {
        let node = driver.swarm.behaviour();
        if node.shard.streams_on(connection) == 0 && node.service.streams_on(connection) == 0 {
            driver.swarm.close_connection(connection);
        }
    }
}
