use libp2p::{Multiaddr, identity::Keypair};
use proptest::prelude::*;

use super::*;
use crate::record::Form;

fn key(n: u32) -> Keypair {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&n.to_le_bytes());
    Keypair::ed25519_from_bytes(seed).unwrap()
}

fn of(n: u32) -> Record {
    let addr: Multiaddr = "/ip4/203.0.113.7/tcp/8468".parse().unwrap();
    Record::sign(&key(n), vec![addr], Form::Rust).unwrap()
}

fn group(n: u8) -> Option<Prefix> {
    format!("198.51.{n}.0/24").parse().ok()
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn peers(page: &Page) -> Vec<PeerId> {
    page.records.iter().map(|(_, record, _)| record.peer()).collect()
}

fn all(registry: &mut Registry, name: &str, now: u64) -> Vec<PeerId> {
    peers(&registry.discover(Some(name), None, None, at(now), |_| true).unwrap())
}

#[test]
fn who_registers_is_found_until_its_time_ends() {
    let mut registry = Registry::new(9);
    assert_eq!(registry.register("a", of(1), Some(100), None, at(0)), Ok(100));
    assert_eq!(registry.register("a", of(2), None, None, at(0)), Ok(MAX_TTL.as_secs()));
    assert_eq!(registry.register("b", of(3), Some(u64::MAX), None, at(0)), Ok(MAX_TTL.as_secs()));
    assert_eq!(registry.register("b", of(4), Some(0), None, at(0)), Err(Status::InvalidTtl));
    assert_eq!(all(&mut registry, "a", 99), [of(1).peer(), of(2).peer()]);
    assert_eq!(all(&mut registry, "a", 100), [of(2).peer()]);
    assert_eq!(peers(&registry.discover(None, None, None, at(100), |_| true).unwrap()).len(), 2);
    assert!(registry.unregister("a", &of(2).peer()) && !registry.unregister("a", &of(2).peer()));
    assert_eq!(all(&mut registry, "a", 100), []);
    registry.sweep(MAX_TTL);
    assert_eq!(registry.sizes(), [0; 5]);
}

#[test]
fn a_cookie_goes_on_where_the_last_answer_ended() {
    let mut registry = Registry::new(u64::MAX - 3);
    for n in 0..10 {
        registry.register("a", of(n), None, None, at(0)).unwrap();
        registry.register("b", of(n), None, None, at(0)).unwrap();
    }
    let mut ask = |cookie: Option<&[u8]>, limit| registry.discover(Some("a"), cookie, limit, at(1), |_| true);
    let first = ask(None, Some(4)).unwrap();
    let second = ask(Some(&first.cookie), Some(6)).unwrap();
    let third = ask(Some(&second.cookie), Some(6)).unwrap();
    let found: Vec<_> = [peers(&first), peers(&second)].concat();
    assert_eq!(found, (0..10).map(|n| of(n).peer()).collect::<Vec<_>>());
    assert!(third.records.is_empty());
    let none = ask(Some(&first.cookie), Some(0)).unwrap();
    assert_eq!((none.records.len(), &none.cookie), (0, &first.cookie));
    // Who registers again is told again: its addresses may be others.
    registry.register("a", of(3), None, None, at(2)).unwrap();
    let again = registry.discover(Some("a"), Some(&third.cookie), None, at(2), |_| true).unwrap();
    assert_eq!(peers(&again), [of(3).peer()]);
}

#[test]
fn a_cookie_of_another_namespace_or_of_nobody_is_refused() {
    let mut registry = Registry::new(1 << 40);
    registry.register("a", of(1), None, None, at(0)).unwrap();
    let cookie = registry.discover(Some("a"), None, None, at(0), |_| true).unwrap().cookie;
    for (name, cookie) in [
        (Some("b"), cookie.as_slice()),
        (None, &cookie),
        (Some("a"), &[]),
        (Some("a"), &[1; 7]),
        (Some("a"), &[0, 0, 0, 0, 0, 0, 0, 0, b'a']),
        (Some("a"), &[255; 512]),
    ] {
        let refused = registry.discover(name, Some(cookie), None, at(0), |_| true);
        assert_eq!(refused.err(), Some(Status::InvalidCookie), "{name:?} {cookie:?}");
    }
}

#[test]
fn one_peer_has_a_few_namespaces_and_may_always_renew_them() {
    let mut registry = Registry::new(0);
    let kept = (0..10_000).filter(|n| registry.register(&format!("n{n}"), of(1), None, None, at(0)).is_ok()).count();
    assert_eq!((kept, registry.len()), (MAX_PER_PEER, MAX_PER_PEER));
    for round in 1..10_000 {
        registry.register("n0", of(1), None, None, at(round / 10)).unwrap();
    }
    assert_eq!(registry.sizes(), [MAX_PER_PEER, 1, MAX_PER_PEER, 1, MAX_PER_PEER]);
}

#[test]
fn a_flood_from_one_place_throws_out_itself() {
    let mut registry = Registry::new(0);
    let shared = (0..1_000_u32).filter(|n| registry.register("a", of(*n), None, group(1), at(0)).is_ok()).count();
    assert_eq!(shared, MAX_PER_GROUP);
    // Everything that no group tells apart is one group.
    let rest = MAX_REGISTRATIONS - MAX_PER_GROUP;
    for n in 10_000..10_000 + u32::try_from(rest).unwrap() {
        registry.register("a", of(n), None, None, at(1)).unwrap();
    }
    assert_eq!(registry.register("a", of(1_000_000), None, None, at(1)), Err(Status::Unavailable));
    registry.register("a", of(1_000_001), None, group(2), at(1)).unwrap();
    assert_eq!(registry.len(), MAX_REGISTRATIONS);
    assert!(!registry.unregister("a", &of(10_000).peer()), "the oldest of the fullest group gave way");
    assert!(registry.unregister("a", &of(1_000_001).peer()) && registry.unregister("a", &of(10_001).peer()));
}

#[test]
fn what_the_asker_may_not_hear_is_passed_over() {
    let mut registry = Registry::new(0);
    for n in 0..100 {
        registry.register("a", of(n), None, None, at(0)).unwrap();
    }
    let only = of(99).peer();
    let page = registry.discover(Some("a"), None, Some(1), at(0), |record| record.peer() == only).unwrap();
    assert_eq!(peers(&page), [only]);
}

proptest! {
    #[test]
    fn its_maps_agree_whatever_happens(steps in proptest::collection::vec((0_u32..6, 0_u8..6, 0_u64..9, 0_u8..4, 0_u8..4), 0..200)) {
        let (mut registry, mut now) = (Registry::new(3), 0);
        let records: Vec<Record> = (0..6).map(of).collect();
        for (who, name, ttl, place, what) in steps {
            let name = format!("n{name}");
            now += u64::from(place);
            match what {
                0 | 1 => drop(registry.register(&name, records[who as usize].clone(), Some(ttl), group(place).filter(|_| place > 0), at(now))),
                2 => drop(registry.unregister(&name, &records[who as usize].peer())),
                _ => drop(registry.discover(Some(&name), None, Some(ttl), at(now), |_| true)),
            }
            let count = |sets: &BTreeMap<String, BTreeSet<u64>>| sets.values().map(BTreeSet::len).sum::<usize>();
            let len = registry.len();
            prop_assert_eq!(count(&registry.by_name), len);
            prop_assert_eq!(registry.by_group.values().map(BTreeSet::len).sum::<usize>(), len);
            prop_assert_eq!(registry.by_peer.values().map(BTreeMap::len).sum::<usize>(), len);
            prop_assert_eq!(registry.by_end.len(), len);
            prop_assert!(registry.by_peer.values().all(|own| (1..=MAX_PER_PEER).contains(&own.len())));
        }
    }
}
