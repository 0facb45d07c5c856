//! Shard streams: opened for callers, handed to the host when others open them.

use libp2p::PeerId;
use quelea_shard::{Event, ShardStream};
use tokio::sync::oneshot;

use crate::swarm::{
    driver::Driver,
    handle::{OPEN_TIMEOUT, OpenStreamError},
};

pub(crate) fn open(driver: &mut Driver, peer: PeerId, reply: oneshot::Sender<Result<ShardStream, OpenStreamError>>) {
    if !driver.state.opens.has_room() {
        let _ = reply.send(Err(OpenStreamError::Busy));
        return;
    }
    let id = driver.swarm.behaviour_mut().shard.open(peer);
    driver.state.opens.insert(id, reply, OPEN_TIMEOUT, Err(OpenStreamError::Timeout { peer }));
}

pub(crate) fn event(driver: &mut Driver, event: Event) {
    match event {
        Event::Opened { id, peer, result } => {
            let result = result.map_err(|error| OpenStreamError::Refused { peer, reason: error.to_string() });
            driver.state.opens.answer(&id, result);
        }
        Event::Limited { peer, scope } => super::conduct::limited(driver, peer, scope),
        Event::Inbound { peer, stream, .. } => {
            // Dropping the stream resets it, which its opener sees at once.
            let full = driver.config.inbound.try_send((peer, stream)).is_err();
            driver.config.telemetry.metrics.channel_full_if(full, "shard_inbound");
        }
    }
}
