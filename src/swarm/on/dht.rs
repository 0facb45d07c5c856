//! Questions to the DHT that a caller waits for.

use std::time::{Duration, Instant};

use libp2p::{
    Multiaddr, PeerId,
    kad::{
        self, GetClosestPeersError, GetProvidersOk, GetRecordError, GetRecordOk, PutRecordPhase, QueryId, QueryInfo,
        QueryResult, QueryStats,
    },
    swarm::dial_opts::{DialOpts, PeerCondition},
};
use quelea_behaviours::{
    kad::{Answers, K, OPEN_QUORUM, SIGNED_QUORUM, holders, publish},
    store::{StoreLimits, USER_PREFIX},
};
use quelea_record::{PeerRecord, peer_key};
use quelea_wire::time::unix_ms;
use tokio::sync::oneshot;

use crate::swarm::{
    dht::{Ask, Asked, DhtError, DhtStats, Effort, Found, Gathering, MAX_PEERS, MAX_TIMEOUT, Waiter},
    driver::Driver,
    handle::MAX_PROVIDERS,
};

/// Starts what was asked.
pub(crate) fn ask(driver: &mut Driver, ask: Ask, timeout: Duration, waiter: Waiter) {
    let now = Instant::now();
    let deadline = now + timeout.min(MAX_TIMEOUT);
    if !driver.state.dht.has_room() {
        driver.config.telemetry.metrics.channel_full("queries");
        let _ = waiter.reply.send(Err(DhtError::Busy));
        return;
    }
    match start(driver, ask) {
        Ok(Started::Query(id, gathering)) => {
            driver.state.dht.asked.insert(id, Asked { gathering, waiter, since: now, deadline });
        }
        Ok(Started::Known(gathering, found)) => {
            let asked = Asked { gathering, waiter, since: now, deadline };
            asked.end(&mut driver.state.dht.tallies, Effort::default(), Ok(found));
        }
        Err(error) => {
            let _ = waiter.reply.send(Err(error));
        }
    }
}

/// What a question leads to.
enum Started {
    /// A lookup.
    Query(QueryId, Gathering),
    /// An answer that is known already.
    Known(Gathering, Found),
}

fn start(driver: &mut Driver, ask: Ask) -> Result<Started, DhtError> {
    let answers = || Answers::new(driver.config.network, &StoreLimits::default());
    let refused = |error: kad::store::Error| DhtError::Refused(error.to_string());
    let (id, gathering) = match ask {
        Ask::Put { key, value, ttl, quorum } => {
            let mut record = kad::Record::new(key, value);
            record.expires = ttl.and_then(|ttl| Instant::now().checked_add(ttl));
            let id = publish(&mut driver.swarm.behaviour_mut().kad, record).map_err(refused)?;
            (id, Gathering::Put { quorum: quorum.clamp(1, K.get()) })
        }
        Ask::Get { key, quorum } => {
            let quorum = quorum.or(Some(if key.starts_with(USER_PREFIX) { OPEN_QUORUM } else { SIGNED_QUORUM }));
            let gathering = Gathering::Get { quorum, answers: answers() };
            (driver.swarm.behaviour_mut().kad.get_record(key.into()), gathering)
        }
        Ask::Provide { key } => {
            let id = driver.swarm.behaviour_mut().kad.start_providing(key.clone().into()).map_err(refused)?;
            super::keep::provided(driver, &key, true);
            (id, Gathering::Provide)
        }
        Ask::Providers { key } => {
            (driver.swarm.behaviour_mut().kad.get_providers(key.into()), Gathering::Providers(Vec::new()))
        }
        Ask::FindPeer { peer } => {
            let gathering = Gathering::FindPeer(peer);
            let known = known_addresses(driver, &peer);
            if !known.is_empty() {
                return Ok(Started::Known(gathering, Found::Peers(vec![(peer, known)])));
            }
            (driver.swarm.behaviour_mut().kad.get_closest_peers(peer), gathering)
        }
        Ask::Closest { target } => (driver.swarm.behaviour_mut().kad.get_closest_peers(target), Gathering::Closest),
    };
    Ok(Started::Query(id, gathering))
}

/// Where a peer is by what we know ourselves: the lines to it, else the routing table.
fn known_addresses(driver: &mut Driver, peer: &PeerId) -> Vec<Multiaddr> {
    if let Some(connected) = driver.state.peers.get(peer) {
        return connected.connections.values().cloned().collect();
    }
    quelea_behaviours::kad::addresses(&mut driver.swarm.behaviour_mut().kad, peer)
}

/// What a lookup brings. Returns whether it was somebody's question.
pub(super) fn progressed(
    driver: &mut Driver,
    id: QueryId,
    result: &QueryResult,
    stats: &QueryStats,
    last: bool,
) -> bool {
    let Some(asked) = driver.state.dht.asked.get_mut(&id) else { return false };
    let effort = Effort::from(stats);
    let _ = asked.waiter.progress.send_replace(effort);
    let mut new_providers = Vec::new();
    let enough = match (&mut asked.gathering, result) {
        (Gathering::Get { quorum, answers }, QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found)))) => {
            // Counted as invalid when it is.
            let _ = answers.add(found.peer, found.record.clone(), unix_ms());
            quorum.is_some_and(|quorum| answers.enough(quorum))
        }
        (Gathering::PeerRecord { answers, .. }, QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found)))) => {
            let _ = answers.add(found.peer, found.record.clone(), unix_ms());
            answers.enough(SIGNED_QUORUM)
        }
        (
            Gathering::Providers(known),
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })),
        ) => {
            for peer in providers {
                if known.len() < MAX_PROVIDERS && !known.contains(peer) {
                    known.push(*peer);
                    new_providers.push(*peer);
                }
            }
            known.len() >= MAX_PROVIDERS
        }
        _ => false,
    };
    dial(driver, &new_providers);
    if enough || last {
        finish(driver, id, Some(result), effort);
    }
    true
}

/// Dials by the id alone: the lookup knows the addresses as long as it lives.
fn dial(driver: &mut Driver, peers: &[PeerId]) {
    for peer in peers {
        if !driver.state.peers.contains_key(peer) && peer != driver.swarm.local_peer_id() {
            let opts = DialOpts::peer_id(*peer).condition(PeerCondition::DisconnectedAndNotDialing).build();
            driver.swarm.behaviour().peers.uses().looked_up(opts.connection_id());
            if let Err(error) = driver.swarm.dial(opts) {
                tracing::debug!(%peer, %error, "a provider was not dialled");
            }
        }
    }
}

/// Answers with what has been gathered. `result` is the lookup's last word; without one it is cut short.
fn finish(driver: &mut Driver, id: QueryId, result: Option<&QueryResult>, effort: Effort) {
    let Some(asked) = driver.state.dht.asked.remove(&id) else { return };
    let found = outcome(&asked.gathering, result, effort);
    if let (Gathering::FindPeer(peer), Err(DhtError::NotFound)) = (&asked.gathering, &found) {
        // It does not serve the DHT, perhaps: then it may have said where it is.
        let (peer, network) = (*peer, driver.config.network);
        let answers = Answers::new(network, &StoreLimits::default());
        let next = driver.swarm.behaviour_mut().kad.get_record(peer_key(&peer).into());
        driver.state.dht.asked.insert(next, Asked { gathering: Gathering::PeerRecord { peer, answers }, ..asked });
        return;
    }
    // A value still goes to the rest of the k closest peers.
    if !matches!(asked.gathering, Gathering::Put { .. })
        && let Some(mut query) = driver.swarm.behaviour_mut().kad.query_mut(&id)
    {
        query.finish();
    }
    let found = match (&asked.gathering, found) {
        (Gathering::PeerRecord { peer, .. }, Ok(Found::Values { choices, .. })) => {
            signed_addresses(driver, peer, choices.first().map(|choice| choice.value.as_slice()))
        }
        (_, found) => found,
    };
    asked.end(&mut driver.state.dht.tallies, effort, found);
}

/// What a peer's record says, as far as we would believe the peer itself.
fn signed_addresses(driver: &Driver, peer: &PeerId, value: Option<&[u8]>) -> Result<Found, DhtError> {
    let key = peer_key(peer);
    let record = value.and_then(|value| PeerRecord::open(&key, value, &driver.config.network, unix_ms()).ok());
    let addrs = record.map(|record| quelea_behaviours::identify::dialable(peer, &record.addrs)).unwrap_or_default();
    if addrs.is_empty() { Err(DhtError::NotFound) } else { Ok(Found::Peers(vec![(*peer, addrs)])) }
}

fn outcome(gathering: &Gathering, result: Option<&QueryResult>, effort: Effort) -> Result<Found, DhtError> {
    let nothing = match result {
        _ if effort.answers == 0 && effort.failures == effort.requests => DhtError::NoPeers,
        None
        | Some(
            QueryResult::GetRecord(Err(GetRecordError::Timeout { .. }))
            | QueryResult::GetProviders(Err(_))
            | QueryResult::GetClosestPeers(Err(_))
            | QueryResult::StartProviding(Err(_)),
        ) => DhtError::Timeout,
        Some(_) => DhtError::NotFound,
    };
    match gathering {
        Gathering::Put { quorum } => match result {
            Some(QueryResult::PutRecord(put)) => match holders(put) {
                0 => Err(DhtError::NoPeers),
                peers if peers < *quorum => Err(DhtError::Quorum { peers, quorum: *quorum }),
                peers => Ok(Found::Put { peers }),
            },
            _ => Err(DhtError::Timeout),
        },
        Gathering::Get { answers, .. } | Gathering::PeerRecord { answers, .. } => match answers.is_empty() {
            true => Err(nothing),
            false => Ok(Found::Values { choices: answers.clone().ranked(), invalid: answers.invalid() }),
        },
        Gathering::Provide => match result {
            Some(QueryResult::StartProviding(Ok(_))) if effort.answers > 0 => Ok(Found::Provided),
            _ => Err(nothing),
        },
        Gathering::Providers(known) if known.is_empty() => Err(nothing),
        Gathering::Providers(known) => Ok(Found::Providers(known.clone())),
        Gathering::FindPeer(wanted) => {
            let found = closest(result).into_iter().find(|(peer, addrs)| peer == wanted && !addrs.is_empty());
            found.map(|found| Found::Peers(vec![found])).ok_or(match nothing {
                DhtError::Timeout => DhtError::NotFound,
                nothing => nothing,
            })
        }
        Gathering::Closest => match closest(result) {
            peers if peers.is_empty() => Err(nothing),
            peers => Ok(Found::Peers(peers)),
        },
    }
}

/// The peers that a lookup ended at, also when it ran out of time.
fn closest(result: Option<&QueryResult>) -> Vec<(PeerId, Vec<Multiaddr>)> {
    let peers = match result {
        Some(QueryResult::GetClosestPeers(Ok(found))) => &found.peers,
        Some(QueryResult::GetClosestPeers(Err(GetClosestPeersError::Timeout { peers, .. }))) => peers,
        _ => return Vec::new(),
    };
    let dialable = |peer: &PeerId, addrs: &[Multiaddr]| quelea_behaviours::identify::dialable(peer, addrs);
    peers.iter().take(MAX_PEERS).map(|info| (info.peer_id, dialable(&info.peer_id, &info.addrs))).collect()
}

/// Tells how far lookups are, and ends those whose time is over, that nobody waits for, or that have enough.
pub(super) fn tick(driver: &mut Driver, now: Instant) {
    let mut over = Vec::new();
    for (id, asked) in &driver.state.dht.asked {
        let query = driver.swarm.behaviour().kad.query(id);
        let effort = query.as_ref().map(|query| Effort::from(query.stats())).unwrap_or_default();
        asked.waiter.progress.send_if_modified(|known| std::mem::replace(known, effort) != effort);
        let acknowledged = query.as_ref().map_or(0, |query| match query.info() {
            QueryInfo::PutRecord { phase: PutRecordPhase::PutRecord { success, .. }, .. } => success.len(),
            _ => 0,
        });
        let enough = matches!(asked.gathering, Gathering::Put { quorum } if acknowledged >= quorum);
        if enough || asked.deadline <= now || asked.waiter.reply.is_closed() {
            over.push((*id, effort, enough.then_some(acknowledged)));
        }
    }
    for (id, effort, acknowledged) in over {
        match acknowledged {
            Some(peers) => {
                if let Some(asked) = driver.state.dht.asked.remove(&id) {
                    asked.end(&mut driver.state.dht.tallies, effort, Ok(Found::Put { peers }));
                }
            }
            None => finish(driver, id, None, effort),
        }
    }
}

/// Stops publishing what is ours under `key`. Says whether there was a value, and whether we provided it.
pub(crate) fn delete(driver: &mut Driver, key: Vec<u8>, reply: oneshot::Sender<(bool, bool)>) {
    super::keep::provided(driver, &key, false);
    let kad = &mut driver.swarm.behaviour_mut().kad;
    let key = key.into();
    let (value, provided) = (kad.store_mut().is_own(&key), kad.store_mut().provides(&key));
    if value {
        kad.store_mut().forget(&key);
    }
    if provided {
        kad.stop_providing(&key);
    }
    let _ = reply.send((value, provided));
}

/// For `dht stats`.
pub(crate) fn stats(driver: &mut Driver, reply: oneshot::Sender<DhtStats>) {
    let tallies = driver.state.dht.tallies;
    let kad = &mut driver.swarm.behaviour_mut().kad;
    let buckets = kad.kbuckets().map(|bucket| (bucket.range().0.ilog2().unwrap_or(0), bucket.num_entries())).collect();
    let _ = reply.send(DhtStats {
        server: kad.mode() == kad::Mode::Server,
        buckets,
        store: kad.store_mut().stats(),
        running: kad.iter_queries().count(),
        tallies,
    });
}
