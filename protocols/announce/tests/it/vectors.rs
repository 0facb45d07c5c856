//! Frozen bytes: what one version wrote, every later one reads and writes alike.

use libp2p::identity::Keypair;
use quelea_announce::{Announcement, Ends, Offer, Reach, SignedAnnouncement, State};
use quelea_wire::{ModelId, NetworkId, Profile, SpanRange};

const FULL: &str = "0101197f6b23e16c8532c6abc838facd5ea789be0c76b2920334039bfa8b3d368d61ee00881b000001a3185c50011b000001a3185c50001b000001a31860e3e0f401828b5820a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5018200081820011904b01a0001117003190200141b000000012a05f2008b58205a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a1903848218181820182002001affffffff19ffff00001bffffffffffffffff824804c0000207062114572920010db800000000000000000000000791022114cd03818258260024080112204508a07aa941707f3eb2db94c8897a80b2c1197476b6de213ac273df7d86c4ff0c3cbe23e2713b1092dc85a7da4613ab1c81e12c4f817f3979462fae94afd513c15ea6c615041cdd12ca6eb35a9fce6eff325a19eac0814589826fb11fb792960c";
const WITH_ENDS: &str = "0101197f6b23e16c8532c6abc838facd5ea789be0c76b2920334039bfa8b3d368d61f000881b000001a3185c50011b000001a3185c50001b000001a31860e3e0f401828c5820a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5018200081820011904b01a0001117003190200141b000000012a05f200018c58205a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a1903848218181820182002001affffffff19ffff00001bffffffffffffffff02824804c0000207062114572920010db800000000000000000000000791022114cd03818258260024080112204508a07aa941707f3eb2db94c8897a80b2c1197476b6de213ac273df7d86c4ff0c056cc876281f4f2e7c3b334cdac50cdf0ec19482f7201751e9d54b951e810014974372ba9dd2bde1548e9c8c6ad8bcf30dc4b11794ba1e43c377a3c20ea67d01";
const TOMBSTONE: &str = "0101197f6b23e16c8532c6abc838facd5ea789be0c76b2920334039bfa8b3d368d61190088091b000001a3185c50001b000001a3186577c0f500808080b6c795d12849a69341e1e9d4adf403bc53b674cf22aaef4136ea4ccda2fed240dd60849ba8d8844d616d73717488e82c6956bfbdba49a71d75b10f825381fc0e";

const ISSUED: u64 = 1_800_000_000_000;

fn key() -> Keypair {
    Keypair::ed25519_from_bytes([42; 32]).unwrap()
}

fn full() -> Announcement {
    let other = Keypair::ed25519_from_bytes([43; 32]).unwrap().public().to_peer_id();
    let mut said = Announcement::new(key().public().to_peer_id(), ISSUED + 1, ISSUED);
    said.expires_ms = ISSUED + 300_000;
    said.reach = Reach::Direct;
    said.offers = vec![
        Offer {
            model: ModelId([0xa5; 32]),
            profile: Profile::CandleCpu,
            span: SpanRange::new(0, 8).unwrap(),
            layers_total: 32,
            state: State::Ready,
            decode_rows_per_s: 1_200,
            prefill_rows_per_s: 70_000,
            queue: 3,
            kv_pages_free: 512,
            price_decode: 20,
            price_prefill: 5_000_000_000,
            ends: Ends::default(),
        },
        Offer {
            model: ModelId([0x5a; 32]),
            profile: Profile::Other(900),
            span: SpanRange::new(24, 32).unwrap(),
            layers_total: 32,
            state: State::Draining,
            decode_rows_per_s: 0,
            prefill_rows_per_s: u32::MAX,
            queue: u16::MAX,
            kv_pages_free: 0,
            price_decode: 0,
            price_prefill: u64::MAX,
            ends: Ends::default(),
        },
    ];
    said.addrs = vec!["/ip4/192.0.2.7/tcp/8468".parse().unwrap(), "/ip6/2001:db8::7/udp/8468/quic-v1".parse().unwrap()];
    said.rtt = vec![(other, 12)];
    said
}

fn check(said: Announcement, frozen: &str) {
    let network = NetworkId::from_name("main");
    let signed = SignedAnnouncement::sign(&key(), &network, said.clone()).unwrap();
    assert_eq!(hex::encode(signed.raw()), frozen);
    let read = SignedAnnouncement::verify(&hex::decode(frozen).unwrap(), &network, ISSUED).unwrap();
    assert_eq!(*read.announcement(), said);
    assert_eq!(read, signed);
}

#[test]
fn an_announcement_is_frozen() {
    check(full(), FULL);
}

#[test]
fn a_tombstone_is_frozen() {
    check(Announcement::tombstone(key().public().to_peer_id(), 9, ISSUED), TOMBSTONE);
}

#[test]
fn an_announcement_of_a_models_ends_is_frozen() {
    let mut said = full();
    let ends = [Ends { embedding: true, head: false }, Ends { embedding: false, head: true }];
    said.offers.iter_mut().zip(ends).for_each(|(offer, ends)| offer.ends = ends);
    check(said, WITH_ENDS);
}
