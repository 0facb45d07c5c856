//! Connections and listeners come and go.

use std::time::Instant;

use libp2p::{
    Multiaddr, PeerId,
    core::{ConnectedPoint, transport::ListenerId},
    multiaddr::Protocol,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use quelea_behaviours::identify::dialable;
use quelea_wire::time::unix_ms;
use tokio::sync::oneshot;

use crate::{
    events::EventKind,
    storage::{NotRecorded, PeerRow, Source},
    swarm::{
        driver::Driver,
        events::SwarmNotice,
        handle::{CONNECT_TIMEOUT, ConnectError},
        state::{Peer, Snapshot},
    },
    telemetry::{
        Component, Status,
        stats::{Path, Transport},
        way,
    },
};

/// Addresses of one peer that a caller may hand over for a dial.
const MAX_DIAL_ADDRS: usize = 8;

pub(crate) fn connect(
    driver: &mut Driver,
    peer: PeerId,
    mut addrs: Vec<Multiaddr>,
    asker: Option<PeerId>,
    reply: oneshot::Sender<Result<(), ConnectError>>,
) {
    if driver.state.peers.contains_key(&peer) {
        // It is about to be used.
        driver.swarm.behaviour().peers.uses().used(&peer, None);
        let _ = reply.send(Ok(()));
        return;
    }
    if let Some(asker) = &asker {
        addrs.retain(|addr| driver.state.may_name(asker, addr));
        if !make_room_for_asked(driver, &peer, asker) {
            let _ = reply.send(Err(ConnectError::Busy));
            return;
        }
    }
    addrs.truncate(MAX_DIAL_ADDRS);
    if let Err(reply) = driver.state.wait_for_dial(peer, asker, reply, Instant::now() + CONNECT_TIMEOUT) {
        let _ = reply.send(Err(ConnectError::Busy));
        return;
    }
    let opts = DialOpts::peer_id(peer)
        .condition(PeerCondition::DisconnectedAndNotDialing)
        .addresses(addrs.clone())
        .extend_addresses_through_behaviour()
        .build();
    match driver.swarm.dial(opts) {
        Ok(()) => {}
        // A dial that is under way already may be to where the peer was before it was started again.
        Err(DialError::DialPeerConditionFalse(_)) if !addrs.is_empty() && driver.state.one_more_attempt(&peer) => {
            let opts = DialOpts::peer_id(peer).condition(PeerCondition::Disconnected).addresses(addrs).build();
            if let Err(error) = driver.swarm.dial(opts) {
                tracing::debug!(%peer, %error, "a second dial was not begun");
                let _ = driver.state.attempt_failed(&peer);
            }
        }
        // It will answer for this one, too.
        Err(DialError::DialPeerConditionFalse(_)) => {}
        Err(error) => {
            let _ = driver.state.attempt_failed(&peer);
            if !super::nat::through_relays(driver, peer) {
                driver.state.dial_ended(&peer, &Err(refused(peer, &error)));
            }
        }
    }
}

/// Whether one more dial may begin because `asker` wants it. Gives one up that has taken long, if need be.
fn make_room_for_asked(driver: &mut Driver, peer: &PeerId, asker: &PeerId) -> bool {
    if driver.state.dials.contains_key(peer) {
        return true;
    }
    match driver.state.room_for_asked_dial(asker, Instant::now()) {
        Ok(given_up) => {
            if let Some(given_up) = given_up {
                driver.state.dial_ended(&given_up, &Err(ConnectError::Busy));
                // Not connected, so it is only the dial that ends.
                let _ = driver.swarm.disconnect_peer_id(given_up);
            }
            true
        }
        Err(()) => false,
    }
}

/// A peer to start from, by the operator's word or from memory.
pub(crate) fn bootstrap(driver: &mut Driver, peer: PeerId, addr: Multiaddr) {
    driver.state.bootstrap.insert(peer);
    driver.swarm.behaviour_mut().inbound.keep(peer);
    super::peers::learn(driver, peer, std::slice::from_ref(&addr), Source::Bootstrap);
    if let Err(reason) = discovered(driver, peer, addr) {
        driver.notify(SwarmNotice::BootstrapFailed { peer, reason });
    }
}

/// A peer that somebody says is at `addr`.
pub(crate) fn discovered(driver: &mut Driver, peer: PeerId, addr: Multiaddr) -> Result<(), String> {
    quelea_behaviours::kad::insert(&mut driver.swarm.behaviour_mut().kad, peer, std::slice::from_ref(&addr), None);
    let opts = DialOpts::peer_id(peer)
        .condition(PeerCondition::DisconnectedAndNotDialing)
        .addresses(vec![addr])
        .extend_addresses_through_behaviour()
        .build();
    match driver.swarm.dial(opts) {
        Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

pub(crate) fn established(driver: &mut Driver, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
    super::nat::established(driver, peer, connection, endpoint);
    let addr = match endpoint {
        // Who comes through a relay shows only its id; what matters of such a connection is that it is relayed, and by whom.
        ConnectedPoint::Listener { local_addr, .. } if endpoint.is_relayed() => {
            local_addr.clone().with(Protocol::P2p(peer))
        }
        _ => endpoint.get_remote_address().clone(),
    };
    if endpoint.is_dialer() {
        // It answers there: worth remembering even if it is gone before it has said more of itself.
        remember(driver, peer, dialable(&peer, [&addr]));
    }
    let known =
        driver.state.peers.entry(peer).or_insert_with(|| Peer { since: Some(Instant::now()), ..Peer::default() });
    let first = known.connections.is_empty();
    match (endpoint.is_relayed(), endpoint.is_dialer()) {
        (true, dialled) => known.relayed_in |= !dialled,
        (false, dialled) => {
            known.direct_since.get_or_insert_with(Instant::now);
            if dialled {
                known.dialled = Some(addr.clone());
            }
        }
    }
    tracing::debug!(%peer, %addr, outbound = endpoint.is_dialer(), "connected");
    known.connections.insert(connection, addr);
    if !first {
        if !endpoint.is_relayed() {
            driver.notify(SwarmNotice::Another { peer });
        }
        return;
    }
    driver.state.guard.connected(peer, endpoint);
    super::conduct::changed(driver, &peer);
    driver.state.dial_ended(&peer, &Ok(()));
    if driver.state.bootstrap.contains(&peer) {
        driver.config.telemetry.ok(Component::Bootstrap, format!("connected to {peer}"));
        let _ = driver.swarm.behaviour_mut().kad.bootstrap();
    }
    driver.notify(SwarmNotice::Connected);
    super::ledger::connected(driver, peer, endpoint.get_remote_address());
    tell(driver, &peer, true);
}

/// Tells those who follow events.
fn tell(driver: &Driver, peer: &PeerId, connected: bool) {
    driver.config.telemetry.events.emit(unix_ms(), EventKind::Peer { peer: peer.to_string(), connected });
}

pub(crate) fn closed(driver: &mut Driver, peer: PeerId, connection: ConnectionId) {
    let Some(known) = driver.state.peers.get_mut(&peer) else { return };
    known.connections.remove(&connection);
    let last = known.connections.is_empty();
    driver.state.nat.closed(&peer, connection, last);
    if last {
        driver.state.peers.remove(&peer);
        driver.state.wanted.remove(&peer);
        driver.state.guard.disconnected(&peer);
        tracing::debug!(%peer, "disconnected");
        super::ledger::disconnected(driver, peer);
        tell(driver, &peer, false);
        if driver.state.bootstrap.contains(&peer) && driver.state.peers.is_empty() {
            driver.config.telemetry.health.set(Component::Bootstrap, Status::Degraded, "no peer is connected");
        }
    }
}

pub(crate) fn dial_failed(driver: &mut Driver, peer: Option<PeerId>, error: &DialError) {
    let Some(peer) = peer else { return };
    tracing::debug!(%peer, %error, "dial failed");
    let goes_on = super::nat::dial_failed(driver, peer, error);
    // A second dial may fail while a first connection stands; then nobody who waits is worse off.
    if driver.state.peers.contains_key(&peer) || matches!(error, DialError::DialPeerConditionFalse(_)) {
        return;
    }
    if driver.state.attempt_failed(&peer) || goes_on {
        return;
    }
    // Whoever named wrong addresses must not have us forget what the peer says of itself.
    if !driver.state.is_asked_dial(&peer) {
        driver.state.book.forget(&peer);
        let answers_not =
            matches!(error, DialError::Transport(_) | DialError::WrongPeerId { .. } | DialError::NoAddresses);
        // Whoever is connected to somebody is not the one that is gone.
        if answers_not && !driver.state.peers.is_empty() {
            quelea_behaviours::kad::unreachable(&mut driver.swarm.behaviour_mut().kad, &peer);
        }
    }
    driver.state.dial_ended(&peer, &Err(refused(peer, error)));
    if driver.state.bootstrap.contains(&peer) {
        driver.notify(SwarmNotice::BootstrapFailed { peer, reason: error.to_string() });
    }
}

pub(crate) fn listening(driver: &mut Driver, listener: ListenerId, addr: Multiaddr) {
    driver.state.listening.insert(listener);
    tracing::info!(%addr, "listening");
    super::nat::listening(driver, &addr);
    driver.state.listeners.insert(addr.to_string(), addr);
    driver.config.telemetry.ok(Component::Listeners, format!("{} addresses", driver.state.listeners.len()));
    driver.notify(SwarmNotice::Listening);
}

pub(crate) fn listener_gone(driver: &mut Driver, addr: &Multiaddr) {
    driver.state.listeners.remove(&addr.to_string());
    if driver.state.listeners.is_empty() {
        driver.config.telemetry.health.set(Component::Listeners, Status::Failed, "no listener is left");
    }
}

pub(crate) fn listener_closed(driver: &mut Driver, addrs: &[Multiaddr], error: Option<std::io::Error>) {
    for addr in addrs {
        listener_gone(driver, addr);
    }
    if let Some(error) = error {
        tracing::error!(%error, "a listener closed");
    }
}

pub(crate) fn snapshot(driver: &mut Driver, reply: oneshot::Sender<Snapshot>) {
    let _ = reply.send(Snapshot {
        listeners: driver.state.listeners.values().cloned().collect(),
        external: driver.swarm.external_addresses().cloned().collect(),
        peers: driver.state.peer_views(&driver.swarm.behaviour().peers, &driver.config.traffic),
        known: driver.swarm.behaviour().peers.book().len(),
        listening: driver.state.listening.len(),
    });
}

/// Writes a sighting down, if this node keeps a database and its queue has room.
pub(super) fn remember(driver: &Driver, peer: PeerId, addrs: Vec<Multiaddr>) {
    let Some(db) = &driver.config.db else { return };
    let now = unix_ms();
    let source = driver.swarm.behaviour().peers.book().get(&peer).map_or(Source::Other, |known| known.source);
    let row = PeerRow { peer, addrs, first_seen_ms: now, last_seen_ms: now, source };
    if let Err(NotRecorded::QueueFull) = db.try_record_peer(row) {
        driver.config.telemetry.metrics.channel_full("storage");
    }
}

fn refused(peer: PeerId, error: &DialError) -> ConnectError {
    match error {
        DialError::NoAddresses => ConnectError::NoAddresses { peer },
        other => ConnectError::Dial { peer, reason: other.to_string() },
    }
}

/// Mirrors the connected peers into the gauges: each once, by its best way.
pub(crate) fn tick(driver: &Driver) {
    let stats = &driver.config.telemetry.stats;
    let mut counts = [[0_u64; WAYS.len()]; PATHS.len()];
    for peer in driver.state.peers.values() {
        let ways = peer.connections.values().map(way);
        let best = ways.min_by_key(|way| PATHS.iter().position(|path| *path == way.0));
        if let Some((path, transport)) = best {
            let row = PATHS.iter().position(|p| *p == path).unwrap_or_default();
            let column = WAYS.iter().position(|t| *t == transport).unwrap_or_default();
            counts[row][column] += 1;
        }
    }
    for (path, row) in PATHS.iter().zip(counts) {
        for (transport, count) in WAYS.iter().zip(row) {
            stats.connected(*path, *transport).set(count);
        }
    }
}

/// Best first.
const PATHS: [Path; 2] = [Path::Direct, Path::Relayed];
const WAYS: [Transport; 4] = [Transport::Quic, Transport::Tcp, Transport::Websocket, Transport::Other];
