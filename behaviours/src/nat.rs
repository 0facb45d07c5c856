//! Being reached from outside: AutoNAT, relays, UPnP; and from beside, mDNS.

use libp2p::{Multiaddr, PeerId, autonat, mdns, multiaddr::Protocol, relay, swarm::behaviour::toggle::Toggle, upnp};

use crate::{BuildError, Config};

pub(crate) fn autonat_client(config: &Config) -> autonat::v2::client::Behaviour {
    let probing = autonat::v2::client::Config::default().with_probe_interval(config.autonat_probe_interval);
    autonat::v2::client::Behaviour::new(rand::make_rng(), probing)
}

/// libp2p's defaults: 128 reservations (4 a peer), 16 circuits (4 a peer) of two minutes and 128 KiB each, all rate-limited
/// by peer and address. Enough to meet and punch a hole.
pub(crate) fn relay_server(local: PeerId, config: &Config) -> Toggle<relay::Behaviour> {
    Toggle::from(config.relay_server.then(|| relay::Behaviour::new(local, relay::Config::default())))
}

pub(crate) fn upnp(config: &Config) -> Toggle<upnp::tokio::Behaviour> {
    Toggle::from(config.upnp.then(upnp::tokio::Behaviour::default))
}

pub(crate) fn mdns(local: PeerId, config: &Config) -> Result<Toggle<mdns::tokio::Behaviour>, BuildError> {
    let enabled = config.mdns.then(|| mdns::tokio::Behaviour::new(mdns::Config::default(), local));
    Ok(Toggle::from(enabled.transpose().map_err(BuildError::Mdns)?))
}

/// Whether an address leads through a relay.
#[must_use]
pub fn is_relayed(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| matches!(part, Protocol::P2pCircuit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circuit_is_recognised() {
        let relay = PeerId::random();
        assert!(is_relayed(&format!("/ip4/9.9.9.9/tcp/1/p2p/{relay}/p2p-circuit").parse().unwrap()));
        assert!(!is_relayed(&format!("/ip4/9.9.9.9/tcp/1/p2p/{relay}").parse().unwrap()));
    }
}
