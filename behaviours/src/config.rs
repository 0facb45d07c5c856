//! Every limit of the node, with its arithmetic.

use std::time::Duration;

use libp2p::PeerId;
use quelea_rendezvous::Point;
use quelea_wire::NetworkId;

use crate::{peers::dialler::OUTBOUND, prefixes::PrefixLimits, store::StoreLimits, traffic::Traffic};

/// Connections being negotiated from outside. A handshake takes a round trip or two; 64 at once admit hundreds of peers a
/// second. When one more comes, the one that has taken longest gives way, so that those who never finish keep nobody out.
pub const PENDING_INBOUND: u32 = 64;
/// Times [`PENDING_INBOUND`] at which new connections are refused after all: those that gave way are still being cleared
/// away, each a socket.
pub const PENDING_INBOUND_SLACK: u32 = 4;
/// Connections being negotiated to outside: alpha = 3 lookups with a few addresses each, and room.
pub const PENDING_OUTBOUND: u32 = 64;
/// Established from outside. Leaves 56 of [`ESTABLISHED_TOTAL`] that no stranger can take. When one more comes, somebody gives
/// way: see [`inbound`](crate::inbound).
pub const ESTABLISHED_INBOUND: u32 = 200;
/// Established to outside: k = 20 neighbours, a gossip mesh of 12, a pipeline, and room for lookups.
pub const ESTABLISHED_OUTBOUND: u32 = 100;
/// Established altogether: at 64 streams of 256 KiB a hostile connection can make us hold 16 MiB unread, which the memory
/// limit stops long before 256 of them do it.
pub const ESTABLISHED_TOTAL: u32 = 256;
/// Established with one peer, at the worst moment: while two that found each other through relays punch holes by TCP and by
/// QUIC, from each side a relayed one, a direct one by each transport, and an AutoNAT dial-back. Were a dial-back refused, its
/// server would report that nobody can reach us. What is not used goes soon, and no address has more from outside
/// ([`PER_HOST`](crate::prefixes::PER_HOST)).
pub const ESTABLISHED_PER_PEER: u32 = 8;
/// Share of the machine's memory past which no connection is taken. Weights are memory-mapped and count as resident, so a
/// worker whose model fills most of the machine sets bytes instead.
pub const MEMORY_SHARE: f64 = 0.9;
/// Streams at once per connection: shard streams are long-lived and few, everything else is short.
pub const STREAMS_PER_CONNECTION: usize = 64;
/// Streams at once per connection that have not agreed on a protocol yet.
pub const NEGOTIATING_STREAMS: usize = 32;
/// Unread bytes a QUIC connection may hold.
pub const QUIC_CONNECTION_BYTES: u32 = 4_000_000;
/// Unread bytes a QUIC stream may hold: 120 decode rows of 8 KiB, or 30 bulk fragments.
pub const QUIC_STREAM_BYTES: u32 = 1_000_000;
/// How long a transport may take to connect, authenticate and multiplex.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a dial of one address may take. Less than the 10 s after which AutoNAT's clients give a request up: a dial-back that
/// a router drops has to fail before that, or the client never hears that it cannot be reached.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(7);
/// How long a connection is kept that nobody uses. Long enough that a coordinator which found, fetched and measured a
/// worker still has the line when it opens a session; short enough that lookups do not fill the tables.
pub const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a provider record is believed. Announcements live ten minutes; three missed publications (one each third)
/// and the worker is forgotten.
pub const PROVIDER_TTL: Duration = Duration::from_secs(15 * 60);
/// Time between pings of a connection; also how often a round trip is measured.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);
/// Time without an answer after which a ping has failed.
pub const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between AutoNAT probes of untested addresses (the default of libp2p).
pub const AUTONAT_PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Time after which an address is tested again that a first AutoNAT server did not reach: a machine that was busy when it was
/// asked has caught up, and with the next probe a public node knows within half a minute that it is one.
pub const AUTONAT_RETRY_AFTER: Duration = Duration::from_secs(10);

/// Circuits through this node at once, as a relay: libp2p's default.
pub const RELAY_CIRCUITS: usize = 16;
/// Bytes that a circuit carries, both ways together: libp2p's default. Enough to meet and punch a hole; a relayed inference
/// sends some 20 KiB a token and ends after a few.
pub const RELAY_CIRCUIT_BYTES: u64 = 128 << 10;
/// How long a circuit lasts: libp2p's default.
pub const RELAY_CIRCUIT_DURATION: Duration = Duration::from_secs(120);

/// What this node gives as a relay, when it is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayServer {
    /// See [`RELAY_CIRCUITS`]. A quarter of them for one peer.
    pub circuits: usize,
    /// See [`RELAY_CIRCUIT_BYTES`].
    pub circuit_bytes: u64,
    /// See [`RELAY_CIRCUIT_DURATION`].
    pub circuit_duration: Duration,
    /// The only peers that may have a place here, and so be reached through this node; all when empty.
    pub allow: Vec<PeerId>,
}

impl Default for RelayServer {
    fn default() -> Self {
        Self {
            circuits: RELAY_CIRCUITS,
            circuit_bytes: RELAY_CIRCUIT_BYTES,
            circuit_duration: RELAY_CIRCUIT_DURATION,
            allow: Vec::new(),
        }
    }
}

/// How this node takes part in the DHT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum KadMode {
    /// Asks, but is never asked: behind a NAT.
    Client,
    /// Answers and stores.
    Server,
    /// Client until an address is confirmed that others can dial directly; see [`kad::mode`](crate::kad::mode).
    #[default]
    Auto,
}

/// When the process holds too much memory to take another connection.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum MemoryLimit {
    /// A share of the machine's memory, 0.0 to 1.0.
    Share(f64),
    /// Resident bytes.
    Bytes(usize),
}

/// What the node takes from strangers at most. The defaults are the constants of this module.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// See [`PENDING_INBOUND`].
    pub pending_inbound: u32,
    /// See [`PENDING_OUTBOUND`].
    pub pending_outbound: u32,
    /// See [`ESTABLISHED_INBOUND`].
    pub established_inbound: u32,
    /// See [`ESTABLISHED_OUTBOUND`].
    pub established_outbound: u32,
    /// See [`ESTABLISHED_TOTAL`].
    pub established_total: u32,
    /// See [`ESTABLISHED_PER_PEER`].
    pub established_per_peer: u32,
    /// What one address range may have.
    pub prefixes: PrefixLimits,
    /// See [`MEMORY_SHARE`].
    pub memory: MemoryLimit,
    /// See [`STREAMS_PER_CONNECTION`].
    pub streams_per_connection: usize,
    /// See [`NEGOTIATING_STREAMS`].
    pub negotiating_streams: usize,
    /// See [`QUIC_CONNECTION_BYTES`].
    pub quic_connection_bytes: u32,
    /// See [`QUIC_STREAM_BYTES`].
    pub quic_stream_bytes: u32,
    /// What the DHT may store here.
    pub store: StoreLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pending_inbound: PENDING_INBOUND,
            pending_outbound: PENDING_OUTBOUND,
            established_inbound: ESTABLISHED_INBOUND,
            established_outbound: ESTABLISHED_OUTBOUND,
            established_total: ESTABLISHED_TOTAL,
            established_per_peer: ESTABLISHED_PER_PEER,
            prefixes: PrefixLimits::default(),
            memory: MemoryLimit::Share(MEMORY_SHARE),
            streams_per_connection: STREAMS_PER_CONNECTION,
            negotiating_streams: NEGOTIATING_STREAMS,
            quic_connection_bytes: QUIC_CONNECTION_BYTES,
            quic_stream_bytes: QUIC_STREAM_BYTES,
            store: StoreLimits::default(),
        }
    }
}

/// What a node is on the network.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Which swarm it belongs to.
    pub network: NetworkId,
    /// What it calls itself to peers, such as `quelea/0.1.0`.
    pub agent: String,
    /// Whether it relays for others.
    pub relay_server: bool,
    /// What it gives them.
    pub relay: RelayServer,
    /// Whether it asks the router to open its ports.
    pub upnp: bool,
    /// Whether it looks for peers on the local network.
    pub mdns: bool,
    /// The rendezvous points it registers at and asks for others, at most [`quelea_rendezvous::MAX_POINTS`].
    pub rendezvous: Vec<Point>,
    /// Whether it is a rendezvous point for others.
    pub rendezvous_server: bool,
    /// Certificates (X.509, DER) to trust at web servers besides those that browsers do.
    pub trust: Vec<Vec<u8>>,
    /// How it takes part in the DHT.
    pub kad_mode: KadMode,
    /// How many connections it chooses and keeps; see [`crate::peers::dialler::OUTBOUND`]. 0 for a node that only
    /// asks.
    pub outbound: usize,
    /// How long it believes that a peer provides a key.
    pub provider_ttl: Duration,
    /// How long it keeps a connection that nobody uses.
    pub idle_timeout: Duration,
    /// How often untested addresses are probed.
    pub autonat_probe_interval: Duration,
    /// How long after a failed dial-back the same address is tested again; the time after that it is six times as long.
    pub autonat_retry_after: Duration,
    /// Time between gossip's heartbeats. Others than a second are for tests.
    pub gossip_heartbeat: Duration,
    /// For measurements: how much later than written the bytes of its TCP connections leave, as if it were so far away.
    pub line_delay: Duration,
    /// What it takes from strangers at most.
    pub limits: Limits,
    /// Where bytes and streams of each peer are counted.
    pub traffic: Traffic,
}

impl Config {
    /// The defaults for `network`: no relay for others, no UPnP, no mDNS, no rendezvous.
    #[must_use]
    pub fn new(network: NetworkId) -> Self {
        Self {
            network,
            agent: concat!("quelea/", env!("CARGO_PKG_VERSION")).to_owned(),
            relay_server: false,
            relay: RelayServer::default(),
            upnp: false,
            mdns: false,
            rendezvous: Vec::new(),
            rendezvous_server: false,
            trust: Vec::new(),
            kad_mode: KadMode::default(),
            outbound: OUTBOUND,
            provider_ttl: PROVIDER_TTL,
            idle_timeout: IDLE_CONNECTION_TIMEOUT,
            autonat_probe_interval: AUTONAT_PROBE_INTERVAL,
            autonat_retry_after: AUTONAT_RETRY_AFTER,
            gossip_heartbeat: crate::gossip::HEARTBEAT,
            line_delay: Duration::ZERO,
            limits: Limits::default(),
            traffic: Traffic::default(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new(NetworkId::from_name("main"))
    }
}
