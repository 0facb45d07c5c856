use libp2p::{
    identity::Keypair,
    kad::store::{Error, RecordStore},
};
use proptest::prelude::*;
use quelea_record::{PeerRecord, peer_key};
use quelea_wire::envelope::Signed;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn limits() -> StoreLimits {
    StoreLimits {
        values: 12,
        values_per_peer: 4,
        values_per_10_s: 1000,
        own: 8,
        providers: 24,
        providers_per_peer: 6,
        providers_per_key: 5,
        provider_ttl: 60 * SECOND,
        ..StoreLimits::default()
    }
}

fn network() -> NetworkId {
    NetworkId::from_name("store test")
}

fn store() -> (Store, PeerId) {
    let local = PeerId::random();
    (Store::new(local, network(), limits()), local)
}

fn user(n: usize) -> RecordKey {
    RecordKey::from(format!("/quelea/user/{n}").into_bytes())
}

fn key(n: usize) -> RecordKey {
    RecordKey::from(format!("/quelea/model/{n}").into_bytes())
}

fn value(n: usize) -> Record {
    Record::new(user(n), vec![7; 10])
}

fn provider(n: usize, peer: PeerId) -> ProviderRecord {
    ProviderRecord::new(key(n), peer, vec![])
}

fn holds(store: &Store, n: usize, peer: &PeerId) -> bool {
    store.providers(&key(n)).iter().any(|record| record.provider == *peer)
}

#[test]
fn values_are_judged_before_they_are_held() {
    let (mut store, _) = store();
    let (peer, now) = (PeerId::random(), Instant::now());
    let mut put = |record| store.put_from(peer, record, now);
    assert_eq!(put(Record::new(RecordKey::new(b"/quelea/x"), vec![])), Err(Refusal::Namespace));
    assert_eq!(put(Record::new(RecordKey::new(b"anything"), vec![])), Err(Refusal::Namespace));
    assert_eq!(put(Record::new(user(0), vec![0; 1025])), Err(Refusal::ValueTooLong));
    assert_eq!(
        put(Record::new(RecordKey::from([USER_PREFIX, &[b'k'; 128]].concat()), vec![])),
        Err(Refusal::KeyTooLong)
    );
    assert_eq!(put(Record { expires: Some(now), ..value(0) }), Err(Refusal::Expired));
    assert_eq!(put(Record::new(user(0), vec![0; 1024])), Ok(()));
    assert_eq!(store.stats().refused, 5);
}

#[test]
fn a_peer_has_its_share_of_values_and_may_refresh_them() {
    let (mut store, _) = store();
    let (greedy, other, now) = (PeerId::random(), PeerId::random(), Instant::now());
    for n in 0..4 {
        store.put_from(greedy, value(n), now).unwrap();
    }
    assert_eq!(store.put_from(greedy, value(4), now), Err(Refusal::Quota));
    store.put_from(greedy, value(0), now + SECOND).unwrap();
    store.put_from(other, value(4), now).unwrap();
    // The last writer of an open key wins, and it counts as the last writer's.
    store.put_from(other, value(0), now).unwrap();
    store.put_from(greedy, value(5), now).unwrap();
    assert_eq!(store.stats().values, 6);
    assert_eq!(store.stats().value_bytes, 60);
}

#[test]
fn a_peer_may_not_put_too_fast() {
    let local = PeerId::random();
    let mut store = Store::new(local, network(), StoreLimits { values_per_10_s: 2, ..limits() });
    let (peer, now) = (PeerId::random(), Instant::now());
    let results: Vec<_> = (0..3).map(|_| store.put_from(peer, value(0), now)).collect();
    assert_eq!(results, [Ok(()), Ok(()), Err(Refusal::Rate)]);
    assert_eq!(store.put_from(PeerId::random(), value(0), now), Ok(()));
    assert_eq!(store.put_from(peer, value(0), now + 5 * SECOND), Ok(()));
}

#[test]
fn what_we_publish_is_ours_alone() {
    let (mut store, _) = store();
    let now = Instant::now();
    store.put_from(PeerId::random(), value(1), now).unwrap();
    store.put(Record::new(user(1), b"mine".to_vec())).unwrap();
    assert_eq!(store.put_from(PeerId::random(), value(1), now), Err(Refusal::Own));
    assert_eq!(store.get(&user(1)).unwrap().value, b"mine");
    assert_eq!((store.stats().values, store.stats().own_values), (0, 1));
    assert_eq!(store.records().count(), 1);
    for n in 2..9 {
        store.put(value(n)).unwrap();
    }
    assert!(matches!(store.put(value(9)), Err(Error::MaxRecords)));
    assert!(store.put(value(2)).is_ok());
    store.remove(&user(2));
    assert!(store.get(&user(2)).is_none() && store.put(value(9)).is_ok());
}

#[test]
fn own_values_fall_due_and_are_then_published() {
    let (mut store, _) = store();
    store.put(value(1)).unwrap();
    let published = Instant::now();
    assert!(store.due(published + SECOND, 5 * SECOND, 9).is_empty());
    assert_eq!(store.due(published + 6 * SECOND, 5 * SECOND, 9), [value(1)]);
    store.remove(&user(1));
    assert!(store.due(published + 6 * SECOND, 5 * SECOND, 9).is_empty());
}

#[test]
fn providers_of_others_never_count_against_our_own() {
    let (mut store, local) = store();
    let now = Instant::now();
    for n in 0..100 {
        let _ = store.provide_from(provider(n, PeerId::random()), now);
    }
    for n in 0..8 {
        store.add_provider(provider(n, local)).unwrap();
    }
    assert!(store.add_provider(provider(8, local)).is_err());
    assert_eq!(store.provided().count(), 8);
    assert_eq!(store.provide_from(provider(50, local), now), Err(Refusal::Own));
    assert!(holds(&store, 0, &local));
    store.remove_provider(&key(0), &local);
    assert_eq!((store.provided().count(), holds(&store, 0, &local)), (7, false));
    assert_eq!(store.stats().providers, 24);
}

#[test]
fn a_full_key_admits_a_newcomer_for_the_one_that_expires_first() {
    let (mut store, _) = store();
    let start = Instant::now();
    let early: Vec<_> = (0..5).map(|_| PeerId::random()).collect();
    for (i, peer) in early.iter().enumerate() {
        store.provide_from(provider(1, *peer), start + SECOND * i as u32).unwrap();
    }
    let newcomer = PeerId::random();
    store.provide_from(provider(1, newcomer), start + 10 * SECOND).unwrap();
    assert_eq!(store.providers(&key(1)).len(), 5);
    assert!(holds(&store, 1, &newcomer) && !holds(&store, 1, &early[0]) && holds(&store, 1, &early[1]));
    // Whoever refreshes is no longer the first to go.
    store.provide_from(provider(1, early[1]), start + 11 * SECOND).unwrap();
    store.provide_from(provider(1, PeerId::random()), start + 12 * SECOND).unwrap();
    assert!(holds(&store, 1, &early[1]) && !holds(&store, 1, &early[2]));
    assert_eq!(store.stats().replaced, 2);
}

#[test]
fn a_flood_under_one_name_stays_within_its_quota() {
    let (mut store, _) = store();
    let (flood, now) = (PeerId::random(), Instant::now());
    let taken = (0..100_000).filter(|n| store.provide_from(provider(*n, flood), now).is_ok()).count();
    assert_eq!((taken, store.stats().providers, store.stats().provider_keys), (6, 6, 6));
}

#[test]
fn what_expired_is_swept() {
    let (mut store, _) = store();
    let now = Instant::now();
    let peer = PeerId::random();
    store.put_from(peer, Record { expires: Some(now + SECOND), ..value(1) }, now).unwrap();
    store.put_from(peer, value(2), now).unwrap();
    // A record cannot outlive what we allow, whatever it says.
    let forever = ProviderRecord { expires: Some(now + 100_000 * SECOND), ..provider(1, peer) };
    store.provide_from(forever, now).unwrap();
    assert_eq!(store.sweep(now + SECOND), 1);
    assert_eq!(store.sweep(now + 61 * SECOND), 1);
    assert_eq!(store.sweep(now + 25 * 3600 * SECOND), 1);
    let stats = store.stats();
    assert_eq!((stats.values, stats.value_bytes, stats.providers, stats.provider_keys, stats.peers), (0, 0, 0, 0, 0));
    assert_eq!(stats.expired, 3);
}

#[test]
fn a_record_without_addresses_gets_those_its_sender_told() {
    let (mut store, _) = store();
    let (peer, now) = (PeerId::random(), Instant::now());
    let told: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    store.provide_from(provider(1, peer), now).unwrap();
    store.note_addresses(peer, vec![told.clone()]);
    assert_eq!(store.providers(&key(1))[0].addresses, std::slice::from_ref(&told));
    for _ in 0..2 * KNOWN_PEERS {
        store.note_addresses(PeerId::random(), vec![told.clone()]);
    }
    assert_eq!((store.known.len(), store.known_order.len()), (KNOWN_PEERS, KNOWN_PEERS));
    assert!(store.providers(&key(1))[0].addresses.is_empty());
}

#[derive(Debug, Clone)]
enum Op {
    Put { who: usize, what: usize },
    Provide { who: usize, what: usize },
    OwnPut(usize),
    OwnProvide(usize),
    Remove(usize),
    Unprovide { who: usize, what: usize },
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0_usize..8, 0_usize..20).prop_map(|(who, what)| Op::Put { who, what }),
        4 => (0_usize..8, 0_usize..20).prop_map(|(who, what)| Op::Provide { who, what }),
        1 => (0_usize..20).prop_map(Op::OwnPut),
        1 => (0_usize..20).prop_map(Op::OwnProvide),
        1 => (0_usize..20).prop_map(Op::Remove),
        1 => (0_usize..8, 0_usize..20).prop_map(|(who, what)| Op::Unprovide { who, what }),
        1 => (0_u64..40).prop_map(Op::Wait),
    ]
}

proptest! {
    #[test]
    fn bounds_hold_and_counts_agree_whatever_happens(ops in proptest::collection::vec(op(), 0..400)) {
        let (mut store, local) = store();
        let limits = limits();
        let peers: Vec<PeerId> = (0..8).map(|_| PeerId::random()).collect();
        let mut now = Instant::now();
        for op in ops {
            match op {
                Op::Put { who, what } => {
                    let stored = store.put_from(peers[who], value(what), now);
                    prop_assert_eq!(stored.is_ok() && store.get(&user(what)).is_none(), false);
                }
                Op::Provide { who, what } => {
                    let stored = store.provide_from(provider(what, peers[who]), now);
                    prop_assert!(stored.is_err() || holds(&store, what, &peers[who]));
                }
                Op::OwnPut(what) => { let _ = store.put(value(what)); }
                Op::OwnProvide(what) => { let _ = store.add_provider(provider(what, local)); }
                Op::Remove(what) => store.remove(&user(what)),
                Op::Unprovide { who, what } => store.remove_provider(&key(what), &peers[who]),
                Op::Wait(seconds) => now += SECOND * u32::try_from(seconds).unwrap(),
            }
            let stats = store.stats();
            prop_assert!(stats.values <= limits.values && stats.providers <= limits.providers);
            prop_assert!(stats.own_values <= limits.own && stats.own_providers <= limits.own);
            prop_assert_eq!(stats.values, store.values_quota.len());
            prop_assert_eq!(stats.value_bytes, store.values.values().map(|held| held.record.value.len()).sum::<usize>());
            prop_assert_eq!(stats.providers, store.providers.values().map(Vec::len).sum::<usize>());
            prop_assert!(store.providers.values().all(|held| !held.is_empty() && held.len() <= limits.providers_per_key));
            for peer in &peers {
                prop_assert!(store.values_quota.count(peer) <= limits.values_per_peer);
                prop_assert!(store.providers_quota.count(peer) <= limits.providers_per_peer);
            }
        }
        store.sweep(now + 48 * 3600 * SECOND);
        let stats = store.stats();
        prop_assert_eq!((stats.values, stats.value_bytes, stats.providers, stats.provider_keys, stats.peers), (0, 0, 0, 0, 0));
    }
}

#[test]
fn a_signed_value_is_held_when_its_signer_is_named_and_the_newest_wins() {
    let (mut store, _) = store();
    let keypair = Keypair::generate_ed25519();
    let peer = keypair.public().to_peer_id();
    let (carrier, now, now_ms) = (PeerId::random(), Instant::now(), unix_ms());
    let signed = |last_seq: u64, lifetime: u64, network: &NetworkId| {
        let (record, value) = PeerRecord::sign(&keypair, network, &[], last_seq, now_ms, lifetime).unwrap();
        (record.seq, Record::new(peer_key(&peer), value))
    };
    let (_, old) = signed(0, 60_000, &network());
    let (_, new) = signed(now_ms + 5, 60_000, &network());
    let (_, foreign) = signed(0, 60_000, &NetworkId::from_name("elsewhere"));
    assert_eq!(store.put_from(carrier, foreign, now), Err(Refusal::Invalid));
    let forged = Record::new(peer_key(&PeerId::random()), old.value.clone());
    assert_eq!(store.put_from(carrier, forged, now), Err(Refusal::Invalid));
    assert_eq!(store.put_from(carrier, old.clone(), now), Ok(()));
    // Whoever brings it: the signer counts, and nobody can bring back what was replaced.
    assert_eq!(store.put_from(PeerId::random(), new.clone(), now), Ok(()));
    assert_eq!(store.put_from(carrier, old, now), Err(Refusal::Stale));
    assert_eq!(store.put_from(carrier, new.clone(), now), Ok(()));
    let held = store.get(&new.key).unwrap().into_owned();
    assert_eq!(held.value, new.value);
    assert!(held.expires.unwrap() <= now + 61 * SECOND, "it does not outlive what the signer said");
    assert_eq!(store.sweep(now + 61 * SECOND), 1);
}

#[test]
fn an_own_value_with_an_end_goes_at_its_end() {
    let (mut store, _) = store();
    let now = Instant::now();
    store.put(Record { expires: Some(now + 9 * SECOND), ..value(1) }).unwrap();
    store.put(value(2)).unwrap();
    assert_eq!((store.sweep(now + 9 * SECOND), store.stats().own_values), (1, 1));
    store.unpublished(&user(2));
    assert_eq!(store.due(now, 9 * SECOND, 9), [value(2)]);
    assert_eq!(store.due(now, 9 * SECOND, 0), []);
}

/// What is on disk of one key: our own value, and another peer's.
type Written = (Option<(u64, Vec<u8>)>, Option<(PeerId, u64, Vec<u8>)>);

proptest! {
    #[test]
    fn what_is_written_down_is_what_is_held(ops in proptest::collection::vec(op(), 0..200), takes in proptest::collection::vec(0_usize..6, 0..40)) {
        let (mut store, local) = store();
        store.track_changes();
        let (start, start_ms) = (Instant::now(), unix_ms());
        let mut disk: HashMap<Vec<u8>, Written> = HashMap::new();
        let mut takes = takes.into_iter();
        let peers: Vec<PeerId> = (0..8).map(|_| PeerId::random()).collect();
        let mut write = |store: &mut Store, limit: usize| {
            for change in store.take_changes(limit, start, start_ms) {
                match change {
                    Change::Clear => disk.clear(),
                    Change::Key { key, own: None, held: None } => { disk.remove(&key); }
                    Change::Key { key, own, held } => { disk.insert(key, (own, held)); }
                }
            }
            disk.clone()
        };
        for op in ops {
            match op {
                Op::Put { who, what } => { let _ = store.put_from(peers[who], value(what), start); }
                Op::OwnPut(what) => { let _ = store.put(value(what)); }
                Op::Remove(what) => store.remove(&user(what)),
                Op::Wait(seconds) => {
                    store.sweep(start + 3600 * SECOND * u32::try_from(seconds).unwrap());
                }
                Op::Provide { .. } | Op::OwnProvide(_) | Op::Unprovide { .. } => {
                    if let Some(limit) = takes.next() {
                        write(&mut store, limit);
                    }
                }
            }
        }
        let disk = write(&mut store, usize::MAX);
        prop_assert_eq!(disk.values().filter(|(own, _)| own.is_some()).count(), store.stats().own_values);
        prop_assert_eq!(disk.values().filter(|(_, held)| held.is_some()).count(), store.stats().values);
        let mut again = Store::new(local, network(), limits());
        for (key, (own, held)) in disk {
            if let Some((until, value)) = own {
                prop_assert!(again.restore_own(key.clone(), until, value, start, start_ms));
            }
            if let Some((source, until, value)) = held {
                prop_assert!(again.restore_held(key, source, until, value, start, start_ms));
            }
        }
        let (before, after) = (store.stats(), again.stats());
        prop_assert_eq!((before.values, before.own_values, before.value_bytes), (after.values, after.own_values, after.value_bytes));
        prop_assert_eq!(again.due(start, SECOND, 99).len(), after.own_values);
    }
}

#[test]
fn notes_of_changes_are_bounded_and_then_everything_is_told() {
    let (mut store, _) = store();
    let now = Instant::now();
    for n in 0..1000 {
        store.put(value(n % 20)).unwrap();
        store.remove(&user(n % 20));
        store.put(Record::new(RecordKey::from(format!("/quelea/user/gone{n}").into_bytes()), vec![])).unwrap();
        store.remove(&RecordKey::from(format!("/quelea/user/gone{n}").into_bytes()));
    }
    assert!(store.take_changes(9, now, 0).is_empty(), "nobody asked for notes");
    store.track_changes();
    store.put(value(1)).unwrap();
    for n in 0..1000 {
        let key = RecordKey::from(format!("/quelea/user/gone{n}").into_bytes());
        store.put(Record::new(key.clone(), vec![])).unwrap();
        store.remove(&key);
    }
    let told = store.take_changes(usize::MAX, now, 0);
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0], Change::Clear);
    let own = Some((FOREVER, value(1).value));
    assert_eq!(told[1], Change::Key { key: user(1).to_vec(), own, held: None });
    store.not_taken(&told[1]);
    assert_eq!(store.take_changes(9, now, 0), told[1..]);
    store.not_taken(&told[0]);
    assert_eq!(store.take_changes(9, now, 0), told);
}

/// A life is a number of a stranger's: as long as the wire can say, none, over, of a second. Ours are the limits, and a signed
/// value that claims more than a day is none.
#[test]
fn absurd_lives_are_cut_and_what_is_over_is_not_held() {
    let now = Instant::now();
    let longest = SECOND * u32::MAX;
    let ends = [
        None,
        Some(now),
        now.checked_sub(SECOND),
        Some(now + SECOND),
        Some(now + longest),
        now.checked_add(longest * 1000),
    ];
    for ends in ends {
        let (mut store, _) = store();
        let (peer, over) = (PeerId::random(), ends.is_some_and(|ends| ends <= now));
        let put = store.put_from(peer, Record { expires: ends, ..value(1) }, now);
        let provided = store.provide_from(ProviderRecord { expires: ends, ..provider(1, peer) }, now);
        assert_eq!((put.is_err(), provided.is_err()), (over, over), "{ends:?}");
        assert!(!over || (put, provided) == (Err(Refusal::Expired), Err(Refusal::Expired)));
        let held = store
            .records()
            .filter_map(|held| held.expires)
            .chain(store.providers(&key(1)).iter().filter_map(|held| held.expires))
            .collect::<Vec<_>>();
        assert_eq!(held.len(), if over { 0 } else { 2 });
        assert!(held.iter().all(|end| *end <= now + store.limits.value_ttl && *end > now), "{held:?}");
        // Whatever they said: after a day nothing is left.
        store.sweep(now + store.limits.value_ttl);
        assert_eq!((store.stats().values, store.stats().providers), (0, 0));
    }
    let (mut store, _) = store();
    let keypair = Keypair::generate_ed25519();
    let peer = keypair.public().to_peer_id();
    let signed_ms = unix_ms();
    for ends in [u64::MAX, signed_ms + quelea_record::MAX_LIFETIME_MS + 1, signed_ms - 1, 0] {
        // As `PeerRecord` has it: sequence, end, no addresses. It would never sign that itself.
        let body = [&signed_ms.to_le_bytes()[..], &ends.to_le_bytes(), &[0]].concat();
        let signed = Signed::seal(&keypair, &network(), quelea_record::DOMAIN, 1, &body).unwrap();
        let record = Record::new(RecordKey::from(peer_key(&peer)), signed.raw().to_vec());
        assert_eq!(store.put_from(peer, record, now), Err(Refusal::Invalid), "{ends}");
    }
    assert_eq!(store.stats().values, 0);
}

/// Threat 13: one peer puts a hundred thousand values, as fast as it can and with lives as long as the wire can say.
#[test]
fn a_hundred_thousand_values_of_one_peer_are_its_quota_and_live_for_a_day() {
    let (mut store, _) = store();
    let (flood, now) = (PeerId::random(), Instant::now());
    let for_ever = Some(now + SECOND * u32::MAX);
    let mut refused = HashMap::new();
    for n in 0..100_000_u32 {
        // Now and then the rate limit lets one through; then it is the quota that stops it.
        let record = Record { expires: for_ever, ..value(n as usize) };
        if let Err(why) = store.put_from(flood, record, now + Duration::from_millis(u64::from(n))) {
            *refused.entry(why).or_insert(0) += 1;
        }
    }
    let stats = store.stats();
    assert_eq!((stats.values, stats.value_bytes, stats.peers), (4, 40, 1));
    assert_eq!(
        refused.get(&Refusal::Quota).copied().unwrap_or(0) + refused.get(&Refusal::Rate).copied().unwrap_or(0),
        99_996
    );
    assert!(store.records().all(|held| held.expires.unwrap() <= now + store.limits.value_ttl + 100 * SECOND));
    assert_eq!(store.sweep(now + store.limits.value_ttl + 100 * SECOND), 4);
}
