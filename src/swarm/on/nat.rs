//! Reachability: what AutoNAT, UPnP, relays and hole punching report.

use libp2p::{autonat, dcutr, relay, upnp};

use crate::{swarm::driver::Driver, telemetry::stats::Reachability};

pub(crate) fn autonat(driver: &mut Driver, event: &autonat::v2::client::Event) {
    match &event.result {
        Ok(()) => {
            tracing::info!(addr = %event.tested_addr, server = %event.server, "reachable from outside");
            driver.config.telemetry.stats.set_reachability(Reachability::Public);
            let confirmed: Vec<_> = driver.swarm.external_addresses().cloned().collect();
            let mode = quelea_behaviours::kad::mode(driver.config.kad_mode, &confirmed);
            driver.swarm.behaviour_mut().kad.set_mode(Some(mode));
        }
        Err(error) => {
            tracing::debug!(addr = %event.tested_addr, %error, "not reachable from outside");
            if driver.swarm.external_addresses().next().is_none() {
                driver.config.telemetry.stats.set_reachability(Reachability::Private);
            }
        }
    }
}

pub(crate) fn upnp(event: &upnp::Event) {
    match event {
        upnp::Event::NewExternalAddr { .. } => tracing::info!("UPnP mapped a port"),
        upnp::Event::GatewayNotFound => tracing::info!("UPnP: no gateway answers"),
        upnp::Event::NonRoutableGateway => tracing::info!("UPnP: the gateway is itself behind NAT"),
        other => tracing::debug!(event = ?other, "UPnP"),
    }
}

pub(crate) fn dcutr(event: &dcutr::Event) {
    match &event.result {
        Ok(_) => tracing::info!(peer = %event.remote_peer_id, "hole punched: the connection is direct now"),
        Err(error) => tracing::debug!(peer = %event.remote_peer_id, %error, "hole punching failed"),
    }
}

pub(crate) fn relay_client(event: &relay::client::Event) {
    tracing::debug!(?event, "relay");
}
