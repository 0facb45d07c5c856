//! Peers on the same LAN.

use libp2p::mdns;
use quelea_behaviours::peers::Source;

use crate::swarm::driver::Driver;

/// Peers taken from one answer; a LAN has fewer.
const MAX_DISCOVERED: usize = 64;

pub(crate) fn event(driver: &mut Driver, event: mdns::Event) {
    let mdns::Event::Discovered(found) = event else { return };
    for (peer, addr) in found.into_iter().take(MAX_DISCOVERED) {
        if !driver.state.peers.contains_key(&peer)
            && {
                super::peers::learn(driver, peer, std::slice::from_ref(&addr), Source::Mdns);
                true
            }
            && let Err(reason) = super::connection::discovered(driver, peer, addr)
        {
            tracing::debug!(%peer, %reason, "a peer on the LAN was not dialled");
        }
    }
}
