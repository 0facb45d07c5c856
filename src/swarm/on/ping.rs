//! Round trips.

use libp2p::ping;

use crate::swarm::driver::Driver;

pub(crate) fn event(driver: &mut Driver, event: &ping::Event) {
    if let Ok(rtt) = &event.result {
        driver.swarm.behaviour_mut().inbound.pinged(&event.peer, *rtt);
    }
    if let (Ok(rtt), Some(peer)) = (&event.result, driver.state.peers.get_mut(&event.peer)) {
        peer.rtt = Some(*rtt);
    }
}
