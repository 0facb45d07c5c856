use proptest::prelude::*;

use super::*;

fn now(seconds: u64) -> Now {
    Now { at: Duration::from_secs(seconds), unix_ms: 1_800_000_000_000 + 1000 * seconds }
}

fn addr(text: &str) -> Multiaddr {
    text.parse().unwrap()
}

fn at(a: u32, b: u32) -> Multiaddr {
    addr(&format!("/ip4/{}.{}.{}.{}/tcp/8468", 20 + a / 65_536, a / 256 % 256, a % 256, 1 + b % 200))
}

#[test]
fn whoever_rents_one_group_fills_that_group() {
    let mut book = Book::new(PeerId::random());
    let honest = PeerId::random();
    assert!(book.learn(honest, &[at(7, 1)], Source::Dht, now(0)));
    book.met(&honest, now(1));
    for n in 0..1000 {
        book.learn(PeerId::random(), &[at(7, n)], Source::Inbound, now(2));
    }
    assert_eq!(book.len(), MAX_PER_GROUP);
    assert!(book.get(&honest).is_some(), "whom we have met stays");
}

#[test]
fn home_is_no_group() {
    for place in ["/ip4/127.0.0.1/tcp/", "/ip4/192.168.1.2/tcp/", "/ip6/fd00::2/tcp/", "/dns4/example.org/tcp/"] {
        let mut book = Book::new(PeerId::random());
        (1..=100)
            .for_each(|n| assert!(book.learn(PeerId::random(), &[addr(&format!("{place}{n}"))], Source::Mdns, now(0))));
        assert_eq!(book.sizes(), [100, 0, 0]);
    }
}

#[test]
fn whoever_tells_of_many_fills_its_share_and_met_ones_do_not_count() {
    let mut book = Book::new(PeerId::random());
    let told = Told { source: Source::Exchange, teller: Some(PeerId::random()) };
    let met = PeerId::random();
    book.learn(met, &[at(1, 1)], told, now(0));
    book.met(&met, now(0));
    for n in 0..1000 {
        book.learn(PeerId::random(), &[at(100 + n, 1)], told, now(1));
    }
    assert_eq!(book.sizes(), [MAX_PER_TELLER + 1, MAX_PER_TELLER + 1, 1]);
    assert!(!book.learn(PeerId::random(), &[], told, now(1)), "somebody who is nowhere");
}

#[test]
fn when_it_is_full_the_worst_is_forgotten() {
    let mut book = Book::new(PeerId::random());
    let (named, good, met) = (PeerId::random(), PeerId::random(), PeerId::random());
    book.learn(named, &[at(1, 1)], Source::Bootstrap, now(0));
    for peer in [good, met] {
        book.learn(peer, &[at(2, 1)], Source::Inbound, now(0));
        book.met(&peer, now(0));
    }
    book.set_conduct(&good, 500);
    for n in 0..2 * MAX_PEERS as u32 {
        book.learn(PeerId::random(), &[at(1000 + n, 1)], Source::Dht, now(1));
    }
    assert_eq!(book.len(), MAX_PEERS);
    assert!([named, good, met].iter().all(|peer| book.get(peer).is_some()));
    assert!(!book.learn(book.local(), &[at(1, 2)], Source::Dht, now(1)), "not ourselves");
}

#[test]
fn a_peer_that_moves_is_known_by_where_it_is_now() {
    let (mut book, peer) = (Book::new(PeerId::random()), PeerId::random());
    for n in 0..20 {
        book.learn(peer, &[at(n, 1)], Source::Dht, now(0));
    }
    let known = book.get(&peer).unwrap();
    assert_eq!((known.addrs.len(), &known.addrs[0]), (MAX_ADDRS, &at(19, 1)));
    assert_eq!(book.sizes(), [1, 1, 0]);
}

#[test]
fn failures_pause_longer_until_a_connection_lasts() {
    let (mut book, peer) = (Book::new(PeerId::random()), PeerId::random());
    book.learn(peer, &[at(1, 1)], Source::Dht, now(0));
    let mut before = Duration::ZERO;
    for n in 0..30 {
        book.failed(&peer, n * 7919, now(0));
        let pause = book.get(&peer).unwrap().retry_at;
        assert!(pause >= before.mul_f64(0.8) && pause <= RETRY_MAX.mul_f64(1.25), "{pause:?} after {before:?}");
        before = pause;
    }
    assert!(before >= RETRY_MAX);
    book.met(&peer, now(5));
    assert_eq!(book.get(&peer).unwrap().failures, 30, "it may hang up at once");
    book.lasted(&peer);
    assert_eq!(book.get(&peer).unwrap().failures, 0);
}

#[test]
fn conduct_stays_within_its_scale() {
    let (mut book, peer) = (Book::new(PeerId::random()), PeerId::random());
    book.set_conduct(&peer, 1);
    assert!(book.get(&peer).is_none());
    book.learn(peer, &[at(1, 1)], Source::Dht, now(0));
    for (set, is) in [(7, 7), (u16::MAX, CONDUCT_MAX), (0, 0)] {
        book.set_conduct(&peer, set);
        assert_eq!(book.get(&peer).unwrap().conduct, is);
    }
}

proptest! {
    #[test]
    fn counts_are_those_of_the_peers(steps in proptest::collection::vec((0_u8..6, 0_u32..30, 0_u32..6), 0..300)) {
        let mut book = Book::new(PeerId::random());
        let peers: Vec<PeerId> = (0..30).map(|_| PeerId::random()).collect();
        for (n, (what, which, place)) in steps.into_iter().enumerate() {
            let (peer, now) = (peers[which as usize], now(n as u64));
            match what {
                0 => drop(book.learn(peer, &[at(place, which)], Source::Inbound, now)),
                1 => drop(book.learn(peer, &[at(place, which)], Told { source: Source::Exchange, teller: Some(peers[place as usize]) }, now)),
                2 => book.met(&peer, now),
                3 => book.forget(&peer),
                4 => book.failed(&peer, 1, now),
                _ => book.set_conduct(&peer, 40),
            }
            let by_group = |group: &Prefix| book.iter().filter(|(_, k)| k.group == Some(*group)).count();
            prop_assert!(book.groups.iter().all(|(group, count)| by_group(group) == *count && *count > 0));
            let by_teller = |teller: &PeerId| book.iter().filter(|(_, k)| k.teller == Some(*teller)).count();
            prop_assert!(book.tellers.iter().all(|(teller, count)| by_teller(teller) == *count && *count > 0));
        }
    }
}
