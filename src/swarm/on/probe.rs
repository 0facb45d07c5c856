//! Pings that somebody asked for.

use libp2p::PeerId;
use quelea_behaviours::probe::{Event, PingError};
use tokio::sync::oneshot;

use crate::swarm::{
    driver::Driver,
    handle::{PING_DUE, PingFailure},
    nat::Pong,
};

pub(crate) fn ping(driver: &mut Driver, peer: PeerId, bytes: usize, reply: oneshot::Sender<Result<Pong, PingFailure>>) {
    if !driver.state.peers.contains_key(&peer) {
        let _ = reply.send(Err(PingFailure::NotConnected { peer }));
    } else if !driver.state.pings.has_room() {
        let _ = reply.send(Err(PingFailure::Failed { reason: "too many pings are under way".into() }));
    } else {
        let id = driver.swarm.behaviour_mut().probe.ping(peer, bytes);
        driver.state.pings.insert(id, reply, PING_DUE, Err(PingFailure::Timeout));
    }
}

pub(crate) fn event(driver: &mut Driver, event: Event) {
    let addr = event
        .connection
        .and_then(|connection| driver.state.peers.values().find_map(|peer| peer.connections.get(&connection)).cloned());
    let result = match (event.result, addr) {
        (Ok(rtt), Some(addr)) => Ok(Pong { rtt, addr }),
        (Err(PingError::Timeout), _) => Err(PingFailure::Timeout),
        (Err(error), _) => Err(PingFailure::Failed { reason: error.to_string() }),
        (Ok(_), None) => Err(PingFailure::Failed { reason: PingError::ConnectionClosed.to_string() }),
    };
    driver.state.pings.answer(&event.id, result);
}
