//! Peers that rendezvous points tell of, and those for whom this node is a point.

use quelea_behaviours::{
    conduct::Deed,
    peers::{Source, Told},
};
use quelea_rendezvous::{Event, Failure, Served};

use super::conduct;
use crate::{
    swarm::driver::Driver,
    telemetry::metrics::{Direction, RpcResult},
};

/// The protocol's label.
const RENDEZVOUS: &str = "rendezvous";

pub(crate) fn event(driver: &mut Driver, event: Event) {
    let metrics = driver.config.telemetry.metrics.clone();
    match event {
        Event::Registered { point, ttl } => {
            metrics.rpc(RENDEZVOUS, Direction::Outbound, RpcResult::Ok);
            tracing::debug!(%point, ttl_s = ttl, "registered at a rendezvous point");
        }
        Event::Discovered { point, peers: found, invalid } => {
            metrics.rpc(RENDEZVOUS, Direction::Outbound, RpcResult::Ok);
            tracing::debug!(%point, found = found.len(), invalid, "a rendezvous point told of peers");
            if invalid > 0 {
                conduct::deed(driver, point, Deed::Invalid);
            }
            let told = Told { source: Source::Rendezvous, teller: Some(point) };
            for (peer, addrs) in found {
                driver.swarm.behaviour_mut().peers.learn(peer, &addrs, told);
            }
        }
        Event::Failed { point, reason } => {
            let result = match reason {
                Failure::Timeout => RpcResult::Timeout,
                Failure::Refused(_) => RpcResult::Refused,
                _ => RpcResult::Error,
            };
            metrics.rpc(RENDEZVOUS, Direction::Outbound, result);
            tracing::warn!(%point, %reason, "a rendezvous point is of no use for now");
        }
        Event::Served { peer, what } => {
            metrics.rpc(RENDEZVOUS, Direction::Inbound, RpcResult::Ok);
            if let Served::Registered = what {
                tracing::debug!(%peer, "registered here");
            }
        }
        Event::Refused { peer, status } => {
            metrics.rpc(RENDEZVOUS, Direction::Inbound, RpcResult::Refused);
            tracing::debug!(%peer, ?status, "a rendezvous request was refused");
        }
        Event::Limited { peer, scope } => {
            conduct::limited(driver, peer, scope);
            metrics.rpc(RENDEZVOUS, Direction::Inbound, RpcResult::Refused);
        }
        Event::Broken { peer, error } => {
            metrics.rpc(RENDEZVOUS, Direction::Inbound, RpcResult::Error);
            tracing::debug!(%peer, %error, "a rendezvous request was not answered");
        }
        _ => {}
    }
}

/// Mirrors what is held here into the gauges.
pub(crate) fn tick(driver: &Driver) {
    let registry = driver.swarm.behaviour().rendezvous.as_ref().and_then(quelea_rendezvous::Behaviour::registry);
    let held = registry.map_or(0, quelea_rendezvous::Registry::len);
    driver.config.telemetry.stats.rendezvous_registrations.set(u64::try_from(held).unwrap_or(u64::MAX));
}
