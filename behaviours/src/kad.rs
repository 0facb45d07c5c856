//! Kademlia: how it is set up, and what libp2p leaves to us: which peers enter the routing table, which records are held,
//! whether we serve, and publishing our own values again.

mod answers;
pub mod diversity;
#[cfg(test)]
mod liars;
pub(crate) mod table;

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    kad::{self, BucketInserts, Caching, InboundRequest, Mode, Quorum, StoreInserts},
};

use crate::{
    Config, KadMode, identify, nat,
    store::{Refusal, Store},
};

pub use self::{
    answers::{Answers, Choice, MAX_CHOICES, OPEN_QUORUM, SIGNED_QUORUM},
    table::{addresses, enforce, insert, unreachable},
};

/// The behaviour.
pub type Behaviour = kad::Behaviour<Store>;

/// Peers per bucket, and holders per record: k of the Kademlia paper.
pub const K: NonZeroUsize = kad::K_VALUE;
/// Requests in flight per lookup, and disjoint paths.
pub const ALPHA: NonZeroUsize = kad::ALPHA_VALUE;
/// Bytes of a message. The longest answers name 20 closer peers, each with an id of 38 bytes and four addresses of 128 that
/// Kademlia ends with the id (41 more), and 32 providers with four addresses of 128: with the framing 20 x 734 + 32 x 570
/// = 32,920, and a key.
pub const MAX_PACKET: usize = 40 * 1024;
/// How long a lookup may take: some 4 rounds of dialling over bad lines.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one request may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How often our own values are published again: three times within their life of a day.
pub const REPUBLISH_EVERY: Duration = Duration::from_secs(8 * 3600);
/// Values published again at once. A thousand are through in twenty minutes when asked every ten seconds, at some eight
/// lookups at a time.
pub const REPUBLISH_AT_ONCE: usize = 8;
/// How often the table is refreshed by lookups of ourselves and of random ids far away.
pub const BOOTSTRAP_EVERY: Duration = Duration::from_secs(5 * 60);

/// Kademlia as `config` wants it, for the node `local`. Its table is filled through [`insert`] alone.
#[must_use]
pub fn new(local: PeerId, config: &Config) -> Behaviour {
    let mut kad = kad::Config::new(config.network.protocol("kad", 1));
    kad.set_parallelism(ALPHA)
        .set_replication_factor(K)
        .disjoint_query_paths(true)
        .set_query_timeout(QUERY_TIMEOUT)
        .set_substreams_timeout(REQUEST_TIMEOUT)
        .set_max_packet_size(MAX_PACKET)
        .set_kbucket_inserts(BucketInserts::Manual)
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_record_ttl(Some(config.limits.store.value_ttl))
        .set_provider_record_ttl(Some(config.provider_ttl))
        .set_provider_publication_interval(config.provider_ttl.checked_div(3))
        // libp2p's job for values notes the key of every record that anybody sends, until its next run: an unbounded set
        // of a stranger's choosing. We publish our own again by `republish`, and leave those of others to their
        // publishers.
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_periodic_bootstrap_interval(Some(BOOTSTRAP_EVERY))
        .set_caching(Caching::Disabled);
    let mut limits = config.limits.store.clone();
    limits.provider_ttl = config.provider_ttl;
    let mut behaviour = Behaviour::with_config(local, Store::new(local, config.network, limits), kad);
    // Left to itself it turns to server on a relay reservation too.
    behaviour.set_mode(Some(mode(config.kad_mode, [])));
    behaviour
}

/// Whether to serve, given the addresses at which others have confirmed that they can reach us. An address through a relay
/// does not count: whoever can only be reached that way would make every lookup slow.
#[must_use]
pub fn mode<'a>(wanted: KadMode, confirmed: impl IntoIterator<Item = &'a Multiaddr>) -> Mode {
    match wanted {
        KadMode::Client => Mode::Client,
        KadMode::Server => Mode::Server,
        KadMode::Auto if confirmed.into_iter().any(|addr| !nat::is_relayed(addr)) => Mode::Server,
        KadMode::Auto => Mode::Client,
    }
}

/// What became of an inbound request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inbound {
    /// A record of another peer is held now.
    Held,
    /// A record was not held.
    Refused(Refusal),
    /// Nothing to hold: a lookup.
    Lookup,
}

/// Holds what an inbound request brings, if it may. To be called with every [`kad::Event::InboundRequest`]: nothing is
/// held otherwise.
pub fn receive(kad: &mut Behaviour, request: InboundRequest) -> Inbound {
    let now = Instant::now();
    let result = match request {
        InboundRequest::PutRecord { source, record: Some(record), .. } => kad.store_mut().put_from(source, record, now),
        InboundRequest::AddProvider { record: Some(mut record) } => {
            record.addresses = identify::dialable(&record.provider, &record.addresses);
            kad.store_mut().provide_from(record, now)
        }
        _ => return Inbound::Lookup,
    };
    result.map_or_else(Inbound::Refused, |()| Inbound::Held)
}

/// Publishes at most [`REPUBLISH_AT_ONCE`] of those of our own values that are due, and sweeps what has expired. To be
/// called every few seconds; returns how many lookups it started. They end in a
/// [`PutRecord`](kad::QueryResult::PutRecord), of which [`holders`] tells the success.
pub fn republish(kad: &mut Behaviour, now: Instant) -> usize {
    kad.store_mut().sweep(now);
    if kad.kbuckets().next().is_none() {
        // Nobody to publish to: they stay due.
        return 0;
    }
    let due = kad.store_mut().due(now, REPUBLISH_EVERY, REPUBLISH_AT_ONCE);
    due.into_iter().filter_map(|record| publish(kad, record).ok()).count()
}

/// Keeps `record` as our own and starts to publish it to all of the k closest peers: libp2p stops at the quorum, which
/// would leave a value at a single peer.
///
/// # Errors
/// When our own store refuses it.
pub fn publish(kad: &mut Behaviour, record: kad::Record) -> Result<kad::QueryId, kad::store::Error> {
    kad.put_record(record, Quorum::All)
}

/// How many peers acknowledged a value of ours that was [published](publish). An acknowledgement says that it was received;
/// what a peer keeps is its own affair.
#[must_use]
pub fn holders(result: &kad::PutRecordResult) -> usize {
    match result {
        Ok(_) => K.get(),
        Err(kad::PutRecordError::QuorumFailed { success, .. } | kad::PutRecordError::Timeout { success, .. }) => {
            success.len()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identify::{MAX_ADDRESS_BYTES, MAX_ADDRESSES};

    fn table() -> Behaviour {
        new(PeerId::random(), &Config::default())
    }

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_a_direct_address_makes_a_server() {
        let relayed = addr(&format!("/ip4/9.9.9.9/tcp/1/p2p/{}/p2p-circuit", PeerId::random()));
        let direct = addr("/ip4/9.9.9.9/tcp/1");
        assert_eq!(mode(KadMode::Auto, []), Mode::Client);
        assert_eq!(mode(KadMode::Auto, [&relayed]), Mode::Client);
        assert_eq!(mode(KadMode::Auto, [&relayed, &direct]), Mode::Server);
        assert_eq!(mode(KadMode::Client, [&direct]), Mode::Client);
        assert_eq!(mode(KadMode::Server, []), Mode::Server);
        assert_eq!(table().mode(), Mode::Client);
    }

    #[test]
    fn the_longest_answer_fits_in_a_packet() {
        // Protobuf: a tag and a length of two bytes at most per field and per peer, a connection type per peer.
        let framed = |bytes: usize| bytes + 3;
        let peer = |address: usize| framed(framed(38) + MAX_ADDRESSES * framed(address) + 2);
        let longest = framed(crate::store::StoreLimits::default().key_bytes)
            + K.get() * peer(MAX_ADDRESS_BYTES + 41)
            + crate::store::StoreLimits::default().providers_per_key * peer(MAX_ADDRESS_BYTES);
        assert!(longest < MAX_PACKET, "{longest}");
    }

    #[test]
    fn own_values_are_published_when_due_and_lookups_bring_nothing_to_hold() {
        let mut kad = table();
        let key = kad::RecordKey::new(b"/quelea/user/a");
        let server = PeerId::random();
        insert(&mut kad, server, &[addr("/ip4/127.0.0.1/tcp/1")], None);
        kad.put_record(kad::Record::new(key, vec![1]), Quorum::One).unwrap();
        let now = Instant::now();
        assert_eq!(republish(&mut kad, now), 0);
        assert_eq!(republish(&mut kad, now + REPUBLISH_EVERY + Duration::from_secs(1)), 1);
        assert_eq!(receive(&mut kad, InboundRequest::FindNode { num_closer_peers: 3 }), Inbound::Lookup);
    }

    #[test]
    fn a_providers_addresses_are_cleaned_before_they_are_held() {
        let mut kad = table();
        let (key, peer) = (kad::RecordKey::new(b"/quelea/model/x"), PeerId::random());
        let good = addr("/ip4/192.0.2.1/tcp/1");
        let claimed = vec![addr("/ip4/0.0.0.0/tcp/1"), good.clone(), addr(&format!("/p2p/{}", PeerId::random()))];
        let record = kad::ProviderRecord::new(key.clone(), peer, claimed);
        let request = InboundRequest::AddProvider { record: Some(record) };
        assert_eq!(receive(&mut kad, request), Inbound::Held);
        let held = kad::store::RecordStore::providers(kad.store_mut(), &key);
        assert_eq!(held[0].addresses, [good]);
        assert!(held[0].expires.is_some());
    }
}
