//! Every number of an announcement at its ends: signed, believed or not, and kept.

use libp2p::identity::Keypair;
use quelea_announce::{
    Announcement, Book, Ends, MAX_LIFETIME_MS, Offer, SignedAnnouncement, State, next_seq, topic_index,
};
use quelea_wire::{ModelId, NetworkId, Profile, SpanRange, envelope::Signed};

const ENDS: [u64; 8] = [0, 1, 255, u32::MAX as u64, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX - 1, u64::MAX];

fn cut<T: TryFrom<u64>>(end: u64, max: T) -> T {
    T::try_from(end).unwrap_or(max)
}

/// Everything that a peer can say of a span, each number at this end.
fn offer(end: u64) -> Offer {
    Offer {
        model: ModelId([5; 32]),
        profile: Profile::from_u16(cut(end, u16::MAX)),
        span: SpanRange::new(0, 1).unwrap(),
        layers_total: cut(end, u16::MAX).max(1),
        state: State::Ready,
        decode_rows_per_s: cut(end, u32::MAX),
        prefill_rows_per_s: cut(end, u32::MAX),
        queue: cut(end, u16::MAX),
        kv_pages_free: cut(end, u32::MAX),
        price_decode: end,
        price_prefill: end,
        ends: Ends { embedding: end > 0, head: end > 0 },
    }
}

#[test]
fn every_number_of_an_announcement() {
    let (key, net) = (Keypair::generate_ed25519(), NetworkId::from_name("main"));
    let (peer, mut believed) = (key.public().to_peer_id(), 0);
    for seq in ENDS {
        for issued_ms in ENDS {
            for lives in [0, 1, MAX_LIFETIME_MS, MAX_LIFETIME_MS + 1, u64::MAX] {
                let mut said = Announcement::new(peer, seq, issued_ms);
                said.expires_ms = issued_ms.saturating_add(lives);
                said.offers = vec![offer(seq), offer(issued_ms)];
                said.rtt = vec![(peer, cut(seq, u16::MAX))];
                // As a peer would that signs whatever it likes.
                let raw = Signed::seal(&key, &net, quelea_announce::DOMAIN, 1, &said.encode()).unwrap();
                for now in ENDS {
                    let Ok(signed) = SignedAnnouncement::verify(raw.raw(), &net, now) else { continue };
                    believed += 1;
                    assert_eq!(signed.announcement(), &said);
                    assert!(said.expires_ms > now && said.expires_ms - said.issued_ms <= MAX_LIFETIME_MS);
                    let mut book = Book::new(1);
                    let _ = book.insert(signed.clone(), now);
                    let _ = book.insert(signed, u64::MAX);
                    assert_eq!(book.serving(&ModelId([5; 32]), now).len(), 2);
                    assert!(next_seq(seq, now) >= seq && topic_index(&ModelId([5; 32])) < 16);
                    book.sweep(u64::MAX);
                }
            }
        }
    }
    assert!(believed > 50, "{believed}");
}

/// CBOR's own lengths and numbers, wherever they stand.
#[test]
fn every_byte_that_could_be_a_length() {
    let key = Keypair::generate_ed25519();
    let peer = key.public().to_peer_id();
    let mut said = Announcement::new(peer, 7, 1_000);
    said.offers = vec![offer(3)];
    said.rtt = vec![(peer, 3)];
    let good = said.encode();
    for at in 0..good.len() {
        for head in [0x1b_u8, 0x3b, 0x5b, 0x7b, 0x9b, 0xbb, 0xdb, 0xfb, 0x9f, 0xbf, 0x5f, 0xff] {
            for claimed in ENDS {
                let bytes = [&good[..at], &[head], &claimed.to_be_bytes()[..], &good[at..]].concat();
                // One encoding for each content: a number written wider than it must be is refused, too.
                let read = Announcement::decode(peer, &bytes);
                assert!(read.is_err() || read.unwrap().encode() == bytes);
            }
        }
    }
}
