//! Kademlia: provider records, and the table's health.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use libp2p::{
    PeerId,
    kad::{self, GetProvidersOk, InboundRequest, QueryId, QueryResult, QueryStats},
    swarm::dial_opts::{DialOpts, PeerCondition},
};
use quelea_behaviours::kad::{Inbound, holders};
use tokio::sync::mpsc;

use crate::swarm::{
    driver::Driver,
    handle::{MAX_PROVIDERS, PROVIDERS_TIMEOUT},
    state::ProviderQuery,
};

/// How often the store is looked over for what is due.
const REPUBLISH_LOOK: Duration = Duration::from_secs(10);

pub(crate) fn find_providers(driver: &mut Driver, key: Vec<u8>, found: mpsc::Sender<PeerId>) {
    if !driver.state.query_has_room() {
        // Dropping the sender tells the caller that nobody was found.
        driver.config.telemetry.metrics.channel_full("queries");
        return;
    }
    let id = driver.swarm.behaviour_mut().kad.get_providers(key.into());
    let query = ProviderQuery { seen: HashSet::new(), found, deadline: Instant::now() + PROVIDERS_TIMEOUT };
    driver.state.queries.insert(id, query);
}

pub(crate) fn provide(driver: &mut Driver, key: Vec<u8>) {
    if let Err(error) = driver.swarm.behaviour_mut().kad.start_providing(key.into()) {
        tracing::warn!(%error, "cannot keep a provider record of ours");
    }
}

pub(crate) fn stop_providing(driver: &mut Driver, key: &[u8]) {
    driver.swarm.behaviour_mut().kad.stop_providing(&key.to_vec().into());
}

pub(crate) fn event(driver: &mut Driver, event: kad::Event) {
    let (id, result, stats, step) = match event {
        kad::Event::OutboundQueryProgressed { id, result, stats, step } => (id, result, stats, step),
        kad::Event::InboundRequest { mut request } => {
            let source = match &request {
                InboundRequest::AddProvider { record: Some(record) } => Some(record.provider),
                InboundRequest::PutRecord { source, .. } => Some(*source),
                _ => None,
            };
            if let Some(source) = source
                && let Err(scope) = driver.state.guard.record(source, Instant::now())
            {
                super::conduct::limited(driver, source, scope);
                return;
            }
            if let InboundRequest::AddProvider { record: Some(record) } = &mut request {
                let (state, provider) = (&driver.state, record.provider);
                record.addresses.retain(|addr| state.may_claim(&provider, addr));
            }
            if let Inbound::Refused(why) =
                quelea_behaviours::kad::receive(&mut driver.swarm.behaviour_mut().kad, request)
            {
                driver.config.telemetry.metrics.dht_refused(why);
            }
            return;
        }
        kad::Event::RoutingUpdated { peer, .. } => {
            quelea_behaviours::kad::enforce(&mut driver.swarm.behaviour_mut().kad, &peer);
            return;
        }
        _ => return,
    };
    if step.last {
        published(driver, id, &result, &stats);
    }
    if super::dht::progressed(driver, id, &result, &stats, step.last) {
        return;
    }
    match result {
        QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) => {
            found(driver, id, providers);
        }
        QueryResult::StartProviding(Err(error)) => tracing::debug!(%error, "a provider record reached nobody"),
        QueryResult::Bootstrap(Err(error)) => tracing::debug!(%error, "kademlia bootstrap"),
        _ => {}
    }
    if step.last {
        driver.state.queries.remove(&id);
    }
}

/// What became of a value or a provider record of ours. What reached nobody is published again soon.
fn published(driver: &mut Driver, id: QueryId, result: &QueryResult, stats: &QueryStats) {
    let (key, reached, is_value) = match result {
        QueryResult::PutRecord(put) => {
            let key = put.as_ref().map_or_else(|error| error.key(), |put| &put.key);
            (key.clone(), holders(put) > 0, true)
        }
        QueryResult::StartProviding(done) | QueryResult::RepublishProvider(done) => {
            let key = done.as_ref().map_or_else(|error| error.key(), |done| &done.key);
            (key.clone(), done.is_ok() && stats.num_successes() > 0, false)
        }
        _ => return,
    };
    if !driver.state.dht.asked.contains_key(&id) {
        driver.config.telemetry.metrics.dht_republished(reached);
    }
    if reached {
        return;
    }
    if is_value {
        driver.swarm.behaviour_mut().kad.store_mut().unpublished(&key);
    } else {
        super::keep::provide_later(driver, key.to_vec());
    }
}

/// Notes new providers and dials them while the query still knows their addresses.
fn found(driver: &mut Driver, id: kad::QueryId, providers: HashSet<PeerId>) {
    let local = *driver.swarm.local_peer_id();
    for peer in providers {
        let Some(query) = driver.state.queries.get_mut(&id) else { return };
        if peer == local || query.seen.len() >= MAX_PROVIDERS || !query.seen.insert(peer) {
            continue;
        }
        // The channel holds as many as a look-up may find.
        let _ = query.found.try_send(peer);
        if !driver.state.peers.contains_key(&peer) {
            let opts = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).build();
            driver.swarm.behaviour().peers.uses().looked_up(opts.connection_id());
            if let Err(error) = driver.swarm.dial(opts) {
                tracing::debug!(%peer, %error, "a provider was not dialled");
            }
        }
    }
}

/// Publishes our own values again when they are due, and mirrors the size of the record store into the metrics.
pub(crate) fn tick(driver: &mut Driver, now: Instant) {
    for id in driver.state.take_finished_queries(now) {
        if let Some(mut query) = driver.swarm.behaviour_mut().kad.query_mut(&id) {
            query.finish();
        }
    }
    super::dht::tick(driver, now);
    super::keep::tick(driver, now);
    let kad = &mut driver.swarm.behaviour_mut().kad;
    if now >= driver.next_republish {
        quelea_behaviours::kad::republish(kad, now);
        driver.next_republish = now + REPUBLISH_LOOK;
    }
    let stats = driver.swarm.behaviour_mut().kad.store_mut().stats();
    let crowded = stats.crowded.saturating_sub(driver.state.dht.crowded);
    driver.config.telemetry.metrics.dht_group_full(crowded);
    driver.state.dht.crowded = stats.crowded;
    let records = stats.values + stats.own_values + stats.providers + stats.own_providers;
    driver.config.telemetry.stats.dht_records.set(u64::try_from(records).unwrap_or(u64::MAX));
}
