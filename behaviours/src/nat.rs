//! Being reached from outside: AutoNAT, relays, UPnP; and from beside, mDNS.

pub mod client;
pub mod kind;
pub mod relays;
mod tries;

use std::collections::HashSet;

use libp2p::{Multiaddr, PeerId, autonat, mdns, multiaddr::Protocol, relay, swarm::behaviour::toggle::Toggle, upnp};

use crate::{BuildError, Config};

pub(crate) fn autonat_client(local: PeerId, config: &Config) -> client::Behaviour {
    let probing = autonat::v2::client::Config::default().with_probe_interval(config.autonat_probe_interval);
    let inner = autonat::v2::client::Behaviour::new(rand::make_rng(), probing);
    client::Behaviour::new(inner, local, config.autonat_retry_after)
}

/// 128 reservations (4 a peer), rate-limited by peer and address; circuits as the configuration says.
pub(crate) fn relay_server(local: PeerId, config: &Config) -> Toggle<relay::Behaviour> {
    Toggle::from(config.relay_server.then(|| {
        let given = &config.relay;
        let mut relay = relay::Config {
            max_circuits: given.circuits,
            max_circuits_per_peer: given.circuits.div_ceil(4),
            max_circuit_bytes: given.circuit_bytes,
            max_circuit_duration: given.circuit_duration,
            ..relay::Config::default()
        };
        if !given.allow.is_empty() {
            let allow: HashSet<PeerId> = given.allow.iter().copied().collect();
            // First, so that strangers take nothing of what the rate limits give.
            relay.reservation_rate_limiters.insert(0, Box::new(move |peer, _: &Multiaddr, _| allow.contains(&peer)));
        }
        let mut behaviour = relay::Behaviour::new(local, relay);
        // The operator's word; left to itself it waits for a confirmed address, which needs somebody to confirm it.
        behaviour.set_status(Some(relay::Status::Enable));
        behaviour
    }))
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
