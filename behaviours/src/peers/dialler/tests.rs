use super::*;
use crate::peers::book::{Now, Told};

fn now(seconds: u64) -> Now {
    Now { at: Duration::from_secs(seconds), unix_ms: 1_800_000_000_000 + 1000 * seconds }
}

fn place(group: u32, n: u32) -> libp2p::Multiaddr {
    format!("/ip4/20.{}.{}.{}/tcp/8468", group / 256, group % 256, 1 + n).parse().unwrap()
}

/// A node whose id is lower, or higher, than all others' in the test.
fn local(lowest: bool) -> PeerId {
    let ids = (0..4_000).map(|_| PeerId::random());
    if lowest { ids.min().unwrap() } else { ids.max().unwrap() }
}

fn book(local: PeerId, peers: u32, groups: u32) -> Book {
    let mut book = Book::new(local);
    for n in 0..peers {
        book.learn(PeerId::random(), &[place(n % groups, n / groups)], Source::Dht, now(0));
    }
    book
}

#[test]
fn as_many_as_are_missing_and_the_same_each_time() {
    let book = book(local(true), 40, 40);
    let mut view = View::default();
    let first = plan(&book, &view, OUTBOUND, now(0).at, 1);
    assert_eq!(first.len(), AT_ONCE);
    assert_eq!(first, plan(&book, &view, OUTBOUND, now(0).at, 1));
    assert_ne!(first, plan(&book, &view, OUTBOUND, now(0).at, 2), "another seed, others");
    view.dialling = first.iter().copied().collect();
    assert!(plan(&book, &view, OUTBOUND, now(0).at, 1).is_empty(), "enough under way");
    view.connected = std::mem::take(&mut view.dialling);
    view.chosen = view.connected.clone();
    let second = plan(&book, &view, OUTBOUND, now(0).at, 1);
    assert!(second.len() == AT_ONCE && second.iter().all(|peer| !first.contains(peer)));
    while view.chosen.len() < OUTBOUND {
        let next = plan(&book, &view, OUTBOUND, now(0).at, 1);
        assert!(!next.is_empty() && next.iter().all(|peer| !view.chosen.contains(peer)));
        view.connected.extend(&next);
        view.chosen.extend(&next);
    }
    assert!(plan(&book, &view, OUTBOUND, now(9).at, 1).is_empty());
    assert!(plan(&book, &View::default(), 0, now(9).at, 1).is_empty(), "a node that wants none dials none");
}

#[test]
fn who_is_on_a_spare_line_is_a_candidate_like_others() {
    let book = book(local(true), 3, 3);
    let all: std::collections::BTreeSet<PeerId> = book.iter().map(|(peer, _)| *peer).collect();
    let mut view = View { connected: all.clone(), ..View::default() };
    assert!(plan(&book, &view, OUTBOUND, now(0).at, 1).is_empty());
    view.spare = all.clone();
    let chosen = plan(&book, &view, OUTBOUND, now(0).at, 1);
    assert_eq!(chosen.iter().copied().collect::<std::collections::BTreeSet<_>>(), all);
    view.chosen = all;
    assert!(plan(&book, &view, OUTBOUND, now(0).at, 1).is_empty(), "they are chosen already");
}

#[test]
fn strangers_that_connect_do_not_take_the_places_we_choose() {
    let book = book(local(true), 40, 40);
    let view = View { connected: (0..1000).map(|_| PeerId::random()).collect(), ..View::default() };
    assert_eq!(plan(&book, &view, OUTBOUND, now(0).at, 1).len(), AT_ONCE);
}

#[test]
fn one_group_or_one_liar_does_not_fill_them() {
    let mut book = book(local(true), 0, 1);
    let liar = Told { source: Source::Exchange, teller: Some(PeerId::random()) };
    for n in 0..200 {
        book.learn(PeerId::random(), &[place(n, 1)], liar, now(0));
    }
    let others: Vec<PeerId> = (0..3).map(|_| PeerId::random()).collect();
    for (n, peer) in others.iter().enumerate() {
        let told = Told { source: Source::Exchange, teller: Some(PeerId::random()) };
        book.learn(*peer, &[place(300 + n as u32, 1)], told, now(0));
    }
    let chosen = plan(&book, &View::default(), OUTBOUND, now(0).at, 1);
    assert!(others.iter().all(|peer| chosen.contains(peer)), "a liar's many against three others");

    let mut crowded = self::book(local(true), 16, 1);
    let apart = PeerId::random();
    crowded.learn(apart, &[place(9, 1)], Source::Dht, now(0));
    let view = View { connected: [PeerId::random()].into(), ..View::default() };
    let chosen = plan(&crowded, &view, 2, now(0).at, 1);
    assert!(chosen.contains(&apart) && chosen.len() == 2);
}

#[test]
fn the_lower_id_dials_and_the_other_waits() {
    let crowd = View { connected: [PeerId::random()].into(), ..View::default() };
    let low = book(local(true), 10, 10);
    assert_eq!(plan(&low, &crowd, OUTBOUND, now(0).at, 1).len(), AT_ONCE);
    let high = book(local(false), 10, 10);
    assert!(plan(&high, &crowd, OUTBOUND, now(0).at, 1).is_empty());
    assert_eq!(plan(&high, &crowd, OUTBOUND, now(0).at + YIELD, 1).len(), AT_ONCE);
    assert_eq!(plan(&high, &View::default(), OUTBOUND, now(0).at, 1).len(), AT_ONCE, "alone it waits for nobody");
}

#[test]
fn anchors_come_first_and_who_failed_is_left_alone() {
    let mut book = book(local(true), 40, 40);
    let peers: Vec<PeerId> = book.iter().map(|(peer, _)| *peer).collect();
    book.set_anchor(&peers[7]);
    book.set_anchor(&peers[21]);
    let chosen = plan(&book, &View::default(), OUTBOUND, now(0).at, 1);
    assert!(chosen[..2].contains(&peers[7]) && chosen[..2].contains(&peers[21]));
    peers.iter().filter(|peer| **peer != peers[3]).for_each(|peer| book.failed(peer, 0, now(0)));
    assert_eq!(plan(&book, &View::default(), OUTBOUND, now(1).at, 1), [peers[3]]);
    assert_eq!(plan(&book, &View::default(), OUTBOUND, now(20).at, 1).len(), AT_ONCE);
}
