//! What of the DHT outlives a restart: taken back at the start, written down as it changes.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId};
use quelea_behaviours::store::Change;
use quelea_wire::time::unix_ms;

use crate::{
    storage::{DhtSaved, DhtWrite, NotRecorded},
    swarm::driver::Driver,
};

/// Values written down per tick of 250 ms: a full store of 4,096 is through in half a minute, and the queue to the
/// database, which others need too, is never filled.
const VALUES_PER_TICK: usize = 32;

/// Values written down when the node stops: what fits into the queue to the database, with room for the routing table.
const VALUES_AT_END: usize = 512;

/// How often the routing table is compared with what is written down. Peers come and go in minutes.
const ROUTING_EVERY: Duration = Duration::from_secs(60);

/// How often provider keys that have reached nobody are tried again.
const PROVIDE_EVERY: Duration = Duration::from_secs(5);

/// Of these, how many at once. A thousand are through in ten minutes.
const PROVIDES_AT_ONCE: usize = 8;

/// What is on disk, as far as it has to be compared.
#[derive(Debug, Default)]
pub(in crate::swarm) struct Kept {
    routing: HashMap<PeerId, Vec<Multiaddr>>,
    next_routing: Option<Instant>,
    /// Keys that we provide and have not told anybody since the restart, or the last time in vain.
    to_provide: Vec<Vec<u8>>,
    next_provide: Option<Instant>,
}

/// Takes back what was kept. Whoever stands in the routing table stands there again, through the same filter; who is no
/// longer where it was falls out of it at the first lookup.
pub(crate) fn restore(driver: &mut Driver, saved: DhtSaved) {
    let (now, now_ms) = (Instant::now(), unix_ms());
    let kad = &mut driver.swarm.behaviour_mut().kad;
    let store = kad.store_mut();
    store.track_changes();
    let (mut own, mut held) = (0_usize, 0_usize);
    for (key, until_ms, value) in saved.own {
        own += usize::from(store.restore_own(key, until_ms, value, now, now_ms));
    }
    for (key, source, until_ms, value) in saved.held {
        held += usize::from(store.restore_held(key, source, until_ms, value, now, now_ms));
    }
    for (peer, addrs) in &saved.routing {
        quelea_behaviours::kad::insert(kad, *peer, addrs, None);
    }
    if !saved.routing.is_empty() {
        // Fails only without peers.
        let _ = kad.bootstrap();
    }
    let (peers, provided) = (saved.routing.len(), saved.provided.len());
    driver.state.kept =
        Kept { routing: saved.routing.into_iter().collect(), to_provide: saved.provided, ..Kept::default() };
    if own + held + peers + provided > 0 {
        tracing::info!(own, held, provided, peers, "the DHT's state is back");
    }
}

/// Writes down what has changed, a little at a time, and takes up the provider keys of before once there is somebody to tell.
pub(super) fn tick(driver: &mut Driver, now: Instant) {
    provide_again(driver, now);
    values(driver, VALUES_PER_TICK, now);
    if driver.state.kept.next_routing.is_none_or(|at| at <= now) {
        driver.state.kept.next_routing = Some(now + ROUTING_EVERY);
        routing(driver);
    }
}

/// Writes down the rest when the loop ends.
pub(crate) fn last(driver: &mut Driver) {
    values(driver, VALUES_AT_END, Instant::now());
    routing(driver);
}

/// Notes that we provide `key` from now on, or no more.
pub(super) fn provided(driver: &mut Driver, key: &[u8], provided: bool) {
    driver.state.kept.to_provide.retain(|waiting| waiting != key);
    write(driver, DhtWrite::Provided { key: key.to_vec(), since: provided.then(unix_ms) });
}

/// A provider key that reached nobody is told of again as soon as there is somebody.
pub(super) fn provide_later(driver: &mut Driver, key: Vec<u8>) {
    if driver.swarm.behaviour_mut().kad.store_mut().provides(&key.clone().into())
        && !driver.state.kept.to_provide.contains(&key)
    {
        driver.state.kept.to_provide.push(key);
    }
}

fn provide_again(driver: &mut Driver, now: Instant) {
    let early = driver.state.kept.next_provide.is_some_and(|at| at > now);
    if driver.state.kept.to_provide.is_empty() || driver.state.peers.is_empty() || early {
        return;
    }
    driver.state.kept.next_provide = Some(now + PROVIDE_EVERY);
    let kad = &mut driver.swarm.behaviour_mut().kad;
    if kad.kbuckets().next().is_none() {
        return;
    }
    let waiting = &mut driver.state.kept.to_provide;
    let first = waiting.len().saturating_sub(PROVIDES_AT_ONCE);
    for key in waiting.drain(first..) {
        if let Err(error) = kad.start_providing(key.into()) {
            tracing::warn!(%error, "a provider record of before the restart is not taken up again");
        }
    }
}

fn values(driver: &mut Driver, limit: usize, now: Instant) {
    if driver.config.db.is_none() {
        return;
    }
    let changes = driver.swarm.behaviour_mut().kad.store_mut().take_changes(limit, now, unix_ms());
    for change in changes {
        let taken = match &change {
            Change::Clear => write(driver, DhtWrite::ClearValues),
            Change::Key { key, own, held } => {
                write(driver, DhtWrite::Own { key: key.clone(), row: own.clone() })
                    && write(driver, DhtWrite::Held { key: key.clone(), row: held.clone() })
            }
        };
        if !taken {
            driver.swarm.behaviour_mut().kad.store_mut().not_taken(&change);
        }
    }
}

fn routing(driver: &mut Driver) {
    if driver.config.db.is_none() {
        return;
    }
    let kad = &mut driver.swarm.behaviour_mut().kad;
    let current: HashMap<PeerId, Vec<Multiaddr>> = kad
        .kbuckets()
        .flat_map(|bucket| {
            let peers = bucket.iter().map(|entry| {
                (*entry.node.key.preimage(), entry.node.value.iter().cloned().collect::<Vec<Multiaddr>>())
            });
            peers.collect::<Vec<_>>()
        })
        .collect();
    let gone: Vec<PeerId> =
        driver.state.kept.routing.keys().filter(|peer| !current.contains_key(*peer)).copied().collect();
    for peer in gone {
        if write(driver, DhtWrite::Routing { peer, addrs: None }) {
            driver.state.kept.routing.remove(&peer);
        }
    }
    for (peer, addrs) in current {
        if driver.state.kept.routing.get(&peer) != Some(&addrs)
            && write(driver, DhtWrite::Routing { peer, addrs: Some(addrs.clone()) })
        {
            driver.state.kept.routing.insert(peer, addrs);
        }
    }
}

/// Says whether the database took it, or there is none to take it.
fn write(driver: &Driver, write: DhtWrite) -> bool {
    let Some(db) = &driver.config.db else { return true };
    match db.try_dht(write) {
        Ok(()) => true,
        Err(NotRecorded::QueueFull) => {
            driver.config.telemetry.metrics.channel_full("storage");
            false
        }
        // It says so itself, in health.
        Err(NotRecorded::Unavailable) => true,
    }
}
