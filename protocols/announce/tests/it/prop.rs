//! What holds for every announcement and every sequence of bytes.

use libp2p::{Multiaddr, PeerId, identity::Keypair};
use proptest::prelude::*;
use quelea_announce::{
    Announcement, Book, Change, DecodeError, Ends, MAX_ADDRS, MAX_BYTES, MAX_LIFETIME_MS, MAX_OFFERS, MAX_RTT, Offer,
    Reach, SignError, SignedAnnouncement, State,
};
use quelea_wire::{ModelId, NetworkId, Profile, SpanRange};

const NOW: u64 = 1_800_000_000_000;

fn net() -> NetworkId {
    NetworkId::from_name("main")
}

fn key(n: u8) -> Keypair {
    Keypair::ed25519_from_bytes([n; 32]).unwrap()
}

fn peer(n: u8) -> PeerId {
    key(n).public().to_peer_id()
}

fn offer() -> impl Strategy<Value = Offer> {
    let state = prop_oneof![Just(State::Loading), Just(State::Ready), Just(State::Draining)];
    let span = (0_u16..100, 1_u16..100, 0_u16..100);
    let speeds = (any::<u32>(), any::<u32>(), any::<u16>(), any::<u32>(), any::<u64>(), any::<u64>());
    let ends = any::<[bool; 2]>().prop_map(|[embedding, head]| Ends { embedding, head });
    (any::<[u8; 32]>(), any::<u16>(), span, (state, ends), speeds).prop_map(
        |(model, profile, (start, count, rest), (state, ends), speeds)| Offer {
            model: ModelId(model),
            profile: Profile::from_u16(profile),
            span: SpanRange::new(start, start + count).unwrap(),
            layers_total: start + count + rest,
            state,
            decode_rows_per_s: speeds.0,
            prefill_rows_per_s: speeds.1,
            queue: speeds.2,
            kv_pages_free: speeds.3,
            price_decode: speeds.4,
            price_prefill: speeds.5,
            ends,
        },
    )
}

fn addr() -> impl Strategy<Value = Multiaddr> {
    (any::<[u8; 4]>(), any::<u16>())
        .prop_map(|(ip, port)| format!("/ip4/{}/tcp/{port}", std::net::Ipv4Addr::from(ip)).parse().unwrap())
}

prop_compose! {
    fn announcement()(
        seq in any::<u64>(),
        life in 1..=MAX_LIFETIME_MS,
        offers in proptest::collection::vec(offer(), 0..=MAX_OFFERS),
        addrs in proptest::collection::vec(addr(), 0..=MAX_ADDRS),
        rtt in proptest::collection::vec((1_u8..20, any::<u16>()), 0..=MAX_RTT),
        reach in prop_oneof![Just(Reach::Unknown), Just(Reach::Direct), Just(Reach::Relayed)],
        tombstone in any::<bool>(),
    ) -> Announcement {
        let mut said = Announcement::new(peer(42), seq, NOW);
        said.expires_ms = NOW + life;
        said.offers = if tombstone { vec![] } else { offers };
        said.addrs = addrs;
        said.rtt = rtt.into_iter().map(|(n, ms)| (peer(n), ms)).collect();
        said.reach = reach;
        said.tombstone = tombstone;
        said
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(said in announcement()) {
        prop_assert_eq!(Announcement::decode(said.peer, &said.encode()), Ok(said));
    }

    #[test]
    fn what_is_signed_is_believed_and_fits(mut said in announcement()) {
        let whole = said.clone();
        said.shrink_to(MAX_BYTES - quelea_wire::envelope::OVERHEAD);
        prop_assert_eq!(&said.offers, &whole.offers);
        match SignedAnnouncement::sign(&key(42), &net(), said.clone()) {
            Ok(signed) => {
                prop_assert!(signed.raw().len() <= MAX_BYTES);
                let read = SignedAnnouncement::verify(signed.raw(), &net(), NOW).unwrap();
                prop_assert_eq!(read.announcement(), &said);
                prop_assert_eq!(read.raw(), signed.raw());
            }
            // Eight offers of great numbers do not fit even alone.
            Err(error) => prop_assert!(matches!(error, SignError::TooLarge(_)) && said.addrs.is_empty() && said.offers.len() > 6),
        }
    }

    #[test]
    fn any_flipped_bit_is_refused(mut said in announcement(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        said.offers.truncate(4);
        said.rtt.clear();
        let signed = SignedAnnouncement::sign(&key(42), &net(), said).unwrap();
        let mut raw = signed.raw().to_vec();
        let at = at.index(raw.len());
        raw[at] ^= 1 << bit;
        prop_assert!(SignedAnnouncement::verify(&raw, &net(), NOW).is_err());
        prop_assert!(SignedAnnouncement::verify(&signed.raw()[..at], &net(), NOW).is_err());
    }

    #[test]
    fn random_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..1200)) {
        let _ = Announcement::decode(peer(42), &raw);
        prop_assert!(SignedAnnouncement::verify(&raw, &net(), NOW).is_err());
    }

    #[test]
    fn bodies_with_random_damage_never_panic_and_only_the_canonical_is_read(
        said in announcement(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        tail in proptest::collection::vec(any::<u8>(), 0..4),
    ) {
        let mut body = said.encode();
        for (at, byte) in damage {
            let at = at.index(body.len());
            body[at] = byte;
        }
        body.extend(&tail);
        if let Ok(read) = Announcement::decode(peer(42), &body) {
            prop_assert_eq!(read.encode(), body);
        }
    }

    #[test]
    fn the_book_ends_the_same_in_any_order(
        words in proptest::collection::vec((1_u8..6, 1_u64..10, any::<bool>()), 1..40),
        seed in any::<u64>(),
    ) {
        // One announcement per peer and number, as honest peers make them.
        let mut signed: Vec<SignedAnnouncement> = words
            .iter()
            .map(|(who, seq, leaves)| {
                let leaves = *leaves && seq % 3 == 0;
                let mut said = Announcement::new(peer(*who), *seq, NOW);
                said.tombstone = leaves && u64::from(*who) % 2 == seq % 2;
                SignedAnnouncement::sign(&key(*who), &net(), said).unwrap()
            })
            .collect();
        signed.sort_by_key(|s| (s.peer(), s.announcement().seq, s.announcement().tombstone));
        signed.dedup_by_key(|s| (s.peer(), s.announcement().seq));
        let mut forward = Book::default();
        let mut shuffled = Book::default();
        for word in &signed {
            forward.insert(word.clone(), NOW);
        }
        let mut order: Vec<usize> = (0..signed.len()).collect();
        order.sort_by_key(|i| (*i as u64 + 1).wrapping_mul(seed | 1));
        for i in order.iter().chain(&order) {
            shuffled.insert(signed[*i].clone(), NOW);
        }
        prop_assert_eq!(forward.len(), shuffled.len());
        for n in 1..6 {
            prop_assert_eq!(forward.get(&peer(n), NOW), shuffled.get(&peer(n), NOW));
            let newest = signed.iter().filter(|s| s.peer() == peer(n)).max_by_key(|s| s.announcement().seq);
            prop_assert_eq!(forward.get(&peer(n), NOW), newest.filter(|s| !s.announcement().tombstone));
        }
    }

    #[test]
    fn the_book_never_outgrows_its_bound(words in proptest::collection::vec((1_u8..40, 1_u64..5, 1_u64..100, 0_u64..50), 1..120)) {
        let mut book = Book::new(7);
        let mut now = NOW;
        for (who, seq, life, wait) in words {
            now += wait;
            let mut said = Announcement::new(peer(who), seq, now);
            said.expires_ms = now + life;
            let change = book.insert(SignedAnnouncement::sign(&key(who), &net(), said).unwrap(), now);
            prop_assert!(book.len() <= 7);
            if matches!(change, Change::Added | Change::Updated) {
                let held = book.get(&peer(who), now).map(|s| (s.announcement().seq, s.announcement().expires_ms));
                prop_assert_eq!(held, Some((seq, now + life)));
            }
            prop_assert!(book.live(now).all(|s| s.announcement().expires_ms > now));
        }
        book.sweep(u64::MAX);
        prop_assert!(book.is_empty());
    }
}

/// A list that claims to be long is refused by its length alone: nothing is taken for what is not there.
#[test]
fn a_claimed_length_takes_no_memory() {
    let empty = Announcement::new(peer(42), 1, NOW).encode();
    // The last three bytes are the three empty lists.
    let head = &empty[..empty.len() - 3];
    for (lists_before, what) in [(0, "offers"), (1, "addresses"), (2, "round-trip samples")] {
        for (claim, len) in [
            (vec![0x89], 9),
            (vec![0x99, 0xff, 0xff], 0xffff),
            (vec![0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], u64::MAX),
        ] {
            let body = [head, &vec![0x80; lists_before], &claim].concat();
            let error = Announcement::decode(peer(42), &body).unwrap_err();
            assert_eq!(error, DecodeError::TooMany { len, max: 8, what });
        }
        // Lists of indefinite length are no canonical form at all.
        let body = [head, &vec![0x80; lists_before], &[0x9f]].concat();
        assert_eq!(Announcement::decode(peer(42), &body), Err(DecodeError::NotCanonical));
    }
    // A byte string that claims more than is left.
    let body = [head, &[0x80, 0x81, 0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]].concat();
    assert!(matches!(Announcement::decode(peer(42), &body), Err(DecodeError::Malformed(_))));
}

#[test]
fn the_same_in_a_longer_form_is_refused() {
    let said = Announcement::new(peer(42), 1, NOW);
    let body = said.encode();
    assert_eq!(body[..2], [0x88, 0x01]);
    let longer = [&[0x88, 0x18, 0x01], &body[2..]].concat();
    assert_eq!(Announcement::decode(peer(42), &longer), Err(DecodeError::NotCanonical));
    let trailing = [&body[..], &[0]].concat();
    assert_eq!(Announcement::decode(peer(42), &trailing), Err(DecodeError::NotCanonical));
}

#[test]
fn what_cannot_be_is_refused() {
    let mut said = Announcement::new(peer(42), 1, NOW);
    let offer = Offer {
        model: ModelId([1; 32]),
        profile: Profile::CandleCpu,
        span: SpanRange::new(0, 8).unwrap(),
        layers_total: 7,
        state: State::Ready,
        decode_rows_per_s: 1,
        prefill_rows_per_s: 1,
        queue: 0,
        kv_pages_free: 1,
        price_decode: 1,
        price_prefill: 1,
        ends: Ends::default(),
    };
    said.offers = vec![offer.clone()];
    assert!(matches!(Announcement::decode(peer(42), &said.encode()), Err(DecodeError::Senseless(_))));
    assert!(matches!(SignedAnnouncement::sign(&key(42), &net(), said.clone()), Err(SignError::Content(_))));
    said.offers = vec![Offer { layers_total: 8, ..offer }; 9];
    assert!(matches!(said.check(), Err(DecodeError::TooMany { len: 9, .. })));
    said.offers.truncate(1);
    assert!(said.check().is_ok());
    said.tombstone = true;
    assert!(matches!(Announcement::decode(peer(42), &said.encode()), Err(DecodeError::Senseless(_))));
}

#[test]
fn a_query_finds_the_spans_of_one_model() {
    let mut book = Book::default();
    let offer = |model: u8, start: u16, end: u16| Offer {
        model: ModelId([model; 32]),
        profile: Profile::CandleCpu,
        span: SpanRange::new(start, end).unwrap(),
        layers_total: 32,
        state: State::Ready,
        decode_rows_per_s: 1,
        prefill_rows_per_s: 1,
        queue: 0,
        kv_pages_free: 1,
        price_decode: 1,
        price_prefill: 1,
        ends: Ends::default(),
    };
    let mut say = |who: u8, seq: u64, offers: Vec<Offer>, tombstone: bool| {
        let mut said = Announcement::new(peer(who), seq, NOW);
        said.offers = offers;
        said.tombstone = tombstone;
        book.insert(SignedAnnouncement::sign(&key(who), &net(), said).unwrap(), NOW)
    };
    assert_eq!(say(1, 1, vec![offer(7, 0, 8), offer(8, 0, 8)], false), Change::Added);
    assert_eq!(say(2, 1, vec![offer(7, 8, 32)], false), Change::Added);
    assert_eq!(say(3, 5, vec![offer(7, 0, 32)], false), Change::Added);
    assert_eq!(say(3, 6, vec![], true), Change::Left);
    assert_eq!(say(3, 5, vec![offer(7, 0, 32)], false), Change::Stale, "a late word does not bring a peer back");
    let mut spans: Vec<_> =
        book.serving(&ModelId([7; 32]), NOW).iter().map(|(p, o)| (*p, o.span.to_string())).collect();
    spans.sort_by_key(|(_, span)| span.clone());
    assert_eq!(spans, [(peer(1), "0..8".to_owned()), (peer(2), "8..32".to_owned())]);
    assert!(book.serving(&ModelId([7; 32]), NOW + MAX_LIFETIME_MS).is_empty());
    assert!(book.forget(&peer(1)) && !book.forget(&peer(1)));
    assert_eq!(book.serving(&ModelId([8; 32]), NOW).len(), 0);
    // Whoever has left cannot be dialled either; that does not undo the goodbye.
    assert!(!book.forget(&peer(3)));
    assert_eq!(book.left(NOW).collect::<Vec<_>>(), [peer(3)]);
}
