//! Peers that other peers tell of.

use quelea_behaviours::conduct::Deed;
use quelea_exchange::{Event, SilentReason};

use super::{conduct, peers};
use crate::{
    swarm::driver::Driver,
    telemetry::metrics::{Direction, RpcResult},
};

/// The protocol's label.
const EXCHANGE: &str = "exchange";

pub(crate) fn event(driver: &mut Driver, event: Event) {
    let metrics = driver.config.telemetry.metrics.clone();
    match event {
        Event::Received { peer, learnt, records, bytes } => {
            metrics.rpc(EXCHANGE, Direction::Outbound, RpcResult::Ok);
            metrics.exchanged(Direction::Inbound, records, bytes);
            tracing::trace!(%peer, records, new = learnt.len(), "told of peers");
            learnt.iter().for_each(|record| peers::told(driver, peer, record));
            if !learnt.is_empty() {
                conduct::deed(driver, peer, Deed::Valid);
            }
        }
        Event::Served { peer, learnt, records, bytes } => {
            learnt.iter().for_each(|record| peers::told(driver, peer, record));
            metrics.rpc(EXCHANGE, Direction::Inbound, RpcResult::Ok);
            metrics.exchanged(Direction::Outbound, records, bytes);
        }
        Event::Silent { peer, reason } => {
            let result = match reason {
                SilentReason::Timeout => RpcResult::Timeout,
                SilentReason::Busy => RpcResult::Refused,
                _ => RpcResult::Error,
            };
            metrics.rpc(EXCHANGE, Direction::Outbound, result);
            tracing::debug!(%peer, %reason, "told of no peers");
        }
        Event::Limited { peer, scope } => {
            conduct::limited(driver, peer, scope);
            metrics.rpc(EXCHANGE, Direction::Inbound, RpcResult::Refused);
        }
        Event::Misbehaved { peer, error } => {
            metrics.rpc(EXCHANGE, Direction::Inbound, RpcResult::Error);
            tracing::debug!(%peer, ?error, "sent what no honest peer sends");
            conduct::deed(driver, peer, Deed::Invalid);
        }
        Event::Failed { peer, error } => {
            metrics.rpc(EXCHANGE, Direction::Inbound, RpcResult::Error);
            tracing::debug!(%peer, %error, "a request for peers was not answered");
        }
        _ => {}
    }
}
