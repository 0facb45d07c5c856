//! Who a peer says it is, and where it listens.

use std::time::Instant;

use libp2p::identify;
use quelea_behaviours::{identify::dialable, peers::Source};

use super::connection::remember;
use crate::swarm::{
    driver::Driver,
    state::{MAX_PROTOCOL, MAX_PROTOCOLS},
};

pub(crate) fn event(driver: &mut Driver, event: identify::Event) {
    let identify::Event::Received { connection_id, peer_id, mut info } = event else { return };
    if let Err(scope) = driver.state.guard.names(peer_id, Instant::now()) {
        return super::conduct::limited(driver, peer_id, scope);
    }
    info.listen_addrs.retain(|addr| driver.state.may_claim(&peer_id, addr));
    if let Some(peer) = driver.state.peers.get_mut(&peer_id) {
        peer.agent = Some(info.agent_version.chars().filter(|c| !c.is_control()).take(64).collect());
        peer.protocols = protocols(&info);
    }
    super::nat::identified(driver, peer_id, connection_id, &info);
    let peers = &mut driver.swarm.behaviour_mut().peers;
    peers.named(&peer_id, info.agent_version.chars().filter(|c| !c.is_control()).take(64).collect());
    peers.learn(peer_id, &info.listen_addrs, Source::Inbound);
    let connected = driver.state.peers.get(&peer_id);
    let from = connected.and_then(|peer| peer.connections.values().next().cloned());
    let kad = &mut driver.swarm.behaviour_mut().kad;
    quelea_behaviours::identify::learn(kad, peer_id, &info, from.as_ref());
    remember(driver, peer_id, dialable(&peer_id, &info.listen_addrs));
}

/// What a peer says it speaks, in order and within bounds.
fn protocols(info: &identify::Info) -> Vec<String> {
    let shown = |name: &str| name.chars().filter(|c| !c.is_control()).take(MAX_PROTOCOL).collect::<String>();
    let mut all: Vec<String> = info.protocols.iter().take(MAX_PROTOCOLS).map(|name| shown(name.as_ref())).collect();
    all.sort_unstable();
    all
}
