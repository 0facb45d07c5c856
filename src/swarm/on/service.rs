//! Streams of services: opened for callers, handed to the provider when others open them.

use libp2p::PeerId;
use quelea_service::{Event, ServiceStream};
use tokio::sync::oneshot;

use crate::swarm::{
    driver::Driver,
    handle::{OPEN_TIMEOUT, OpenStreamError},
};

pub(crate) fn open(driver: &mut Driver, peer: PeerId, reply: oneshot::Sender<Result<ServiceStream, OpenStreamError>>) {
    if !driver.state.services.has_room() {
        let _ = reply.send(Err(OpenStreamError::Busy));
        return;
    }
    let id = driver.swarm.behaviour_mut().service.open(peer);
    driver.state.services.insert(id, reply, OPEN_TIMEOUT, Err(OpenStreamError::Timeout { peer }));
}

pub(crate) fn event(driver: &mut Driver, event: Event) {
    match event {
        Event::Opened { id, peer, result } => {
            let result = result.map_err(|error| OpenStreamError::Refused { peer, reason: error.to_string() });
            driver.state.services.answer(&id, result);
        }
        Event::Limited { peer, scope } => super::conduct::limited(driver, peer, scope),
        Event::Inbound { stream, .. } => {
            // Dropping the stream resets it, which its opener sees at once.
            let full = driver.config.services.try_send(stream).is_err();
            driver.config.telemetry.metrics.channel_full_if(full, "service_inbound");
        }
        _ => {}
    }
}
