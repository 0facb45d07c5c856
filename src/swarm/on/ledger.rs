//! Packets of the ledger: out for the keeper, in to the keeper. Nothing here waits for it.

use std::net::IpAddr;

use libp2p::{Multiaddr, PeerId};
use quelea_behaviours::conduct::Deed;
use quelea_ledger::{
    behaviour::{Answer, Event, NotSent, SendError},
    packet::asks_to_pay,
};

use quelea_wire::{
    prefix::{Prefix, ip_of},
    time::unix_ms,
};

use super::conduct;
use crate::{
    ledger::Input,
    swarm::driver::Driver,
    telemetry::metrics::{Direction, RpcResult},
};

/// The protocol's label, and the keeper's queue.
const LEDGER: &str = "ledger";

/// The bits of an address that its owner does not choose: a /24, and a /48 of IPv6, owe together.
pub(super) const GROUP: (u8, u8) = (24, 48);

/// The queue of packets to peers.
const OUT: &str = "ledger_out";

/// What a peer is told to wait while the keeper has more than it takes: it commits some hundred times a second.
const BUSY: Answer = Answer::Busy { retry_ms: 500 };

/// What a peer is told to wait where there is no keeper, as with one who only passes by: as long as it may be told.
const NOBODY: Answer = Answer::Busy { retry_ms: 10_000 };

/// The keeper's packets. Those that cannot be sent are dropped: the ledger syncs again.
pub(crate) fn send(driver: &mut Driver, packets: Vec<(PeerId, Vec<u8>)>) {
    for (peer, packet) in packets {
        if let Err(error) = driver.swarm.behaviour_mut().ledger.send(peer, packet) {
            tracing::debug!(%peer, %error, "a packet of the ledger was not sent");
            let metrics = &driver.config.telemetry.metrics;
            match error {
                NotSent::PeerFull | NotSent::Full => metrics.channel_full(OUT),
                _ => metrics.rpc(LEDGER, Direction::Outbound, RpcResult::Error),
            }
        }
    }
}

/// A peer's first connection stands.
pub(crate) fn connected(driver: &Driver, peer: PeerId, addr: &Multiaddr) {
    let limited = |ip: &IpAddr| driver.swarm.behaviour().prefixes.limits_hold_for(*ip);
    let group = ip_of(addr).filter(limited).map(|ip| Prefix::around(ip, GROUP));
    let wary = group.and_then(|group| driver.state.bans.wary_of(group, unix_ms()));
    tell(driver, Input::Connected(peer, group, wary));
}

/// A peer's last connection is gone.
pub(crate) fn disconnected(driver: &Driver, peer: PeerId) {
    tell(driver, Input::Disconnected(peer));
}

pub(crate) fn event(driver: &mut Driver, event: Event) {
    let metrics = driver.config.telemetry.metrics.clone();
    match event {
        Event::Received { peer, packet, reply } => {
            let (answer, result) = match tell(driver, Input::Packet { peer, packet }) {
                Some(true) => (Answer::Taken, RpcResult::Ok),
                Some(false) => (BUSY, RpcResult::Refused),
                None => (NOBODY, RpcResult::Refused),
            };
            driver.swarm.behaviour_mut().ledger.reply(reply, answer);
            metrics.rpc(LEDGER, Direction::Inbound, result);
        }
        Event::Sent { peer, packet } => {
            metrics.rpc(LEDGER, Direction::Outbound, RpcResult::Ok);
            if asks_to_pay(&packet) {
                tell(driver, Input::RequestTaken(peer));
            }
        }
        Event::NotSent { peer, packets, error } => {
            tracing::debug!(%peer, packets, %error, "packets of the ledger are lost");
            for _ in 0..packets {
                match error {
                    SendError::GaveWay => metrics.channel_full(OUT),
                    SendError::Timeout => metrics.rpc(LEDGER, Direction::Outbound, RpcResult::Timeout),
                    SendError::Busy | SendError::Refused => {
                        metrics.rpc(LEDGER, Direction::Outbound, RpcResult::Refused);
                    }
                    _ => metrics.rpc(LEDGER, Direction::Outbound, RpcResult::Error),
                }
            }
        }
        Event::Limited { peer, scope } => {
            conduct::limited(driver, peer, scope);
            metrics.rpc(LEDGER, Direction::Inbound, RpcResult::Refused);
        }
        Event::Misbehaved { peer, error } => {
            tracing::debug!(%peer, %error, "sent what is no packet of the ledger");
            metrics.rpc(LEDGER, Direction::Inbound, RpcResult::Error);
            conduct::deed(driver, peer, Deed::Invalid);
        }
        Event::Failed { peer, error } => {
            tracing::debug!(%peer, %error, "a packet of the ledger was not answered");
            metrics.rpc(LEDGER, Direction::Inbound, RpcResult::Error);
        }
        _ => {}
    }
}

/// Tells the keeper, if there is one; whether it had a place.
fn tell(driver: &Driver, input: Input) -> Option<bool> {
    let keeper = driver.config.ledger.as_ref()?;
    let told = keeper.try_send(input).is_ok();
    driver.config.telemetry.metrics.channel_full_if(!told, LEDGER);
    Some(told)
}

#[cfg(test)]
mod tests;
