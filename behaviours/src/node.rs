//! What the node does on the network, field by field. Behaviours are asked in this order: those that can refuse a
//! connection come first, so that none of the others ever hears of one that is refused (several of them note a connection
//! when asked for its handler and forget it only when it closes); then what carries tokens, before what can wait.

use libp2p::{
    allow_block_list::{self, BlockedPeers},
    autonat, connection_limits, dcutr, mdns, memory_connection_limits, ping, relay,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    upnp,
};

use crate::{gossip, identify, inbound, kad, nat, peers, peers::Watched, prefixes, probe};

/// A node's behaviour; see [`build_swarm`](crate::build_swarm).
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
pub struct Behaviour {
    /// Refuses connections past the counts of [`Limits`](crate::Limits).
    pub connection_limits: connection_limits::Behaviour,
    /// Refuses connections while the process holds too much memory.
    pub memory_limits: memory_connection_limits::Behaviour,
    /// Refuses and closes connections of banned peers.
    pub blocked_peers: allow_block_list::Behaviour<BlockedPeers>,
    /// Refuses connections of an address range that has its share, connects too fast, or is banned.
    pub prefixes: prefixes::Behaviour,
    /// Closes the worst inbound connection when one more stands than there are places.
    pub inbound: inbound::Behaviour,
    /// Opens and accepts the streams that activations travel on.
    pub shard: Watched<quelea_shard::Behaviour>,
    /// Carries packets of the ledger: who owes whom.
    pub ledger: Watched<quelea_ledger::behaviour::Behaviour>,
    /// Fetches and answers signed announcements of who serves which layers.
    pub announce: Watched<quelea_announce::Behaviour>,
    /// Tells peers of peers, and hears of them, in signed records.
    pub exchange: quelea_exchange::Behaviour,
    /// Asks for models' weights, and lets others ask.
    pub weights: Watched<quelea_weights::Behaviour>,
    /// Opens and accepts the streams on which services are called.
    pub service: Watched<quelea_service::Behaviour>,
    /// Remembers peers, keeps a few connections that we chose, and closes lines that nobody uses.
    pub peers: peers::Behaviour,
    /// Tells peers our addresses and protocols, and learns theirs.
    pub identify: identify::Behaviour,
    /// Keeps lines alive and measures round trips.
    pub ping: ping::Behaviour,
    /// Measures a round trip when somebody asks for one.
    pub probe: Watched<probe::Behaviour>,
    /// Finds peers, and who provides what.
    pub kad: Watched<kad::Behaviour>,
    /// Spreads announcements to those who listen for a model.
    pub gossipsub: gossip::Behaviour,
    /// Asks others to dial our addresses back, to learn which can be reached; other ones where a first one fails.
    pub autonat_client: nat::client::Behaviour,
    /// Dials others back for the same purpose, unless it is masked.
    pub autonat_server: Toggle<autonat::v2::server::Behaviour>,
    /// Reserves a place at relays and connects through them.
    pub relay_client: relay::client::Behaviour,
    /// Relays for others, where the operator wants it.
    pub relay_server: Toggle<relay::Behaviour>,
    /// Replaces a relayed connection by a direct one through both NATs, unless it is masked.
    pub dcutr: Toggle<dcutr::Behaviour>,
    /// Asks the router to open our ports, where the operator wants it.
    pub upnp: Toggle<upnp::tokio::Behaviour>,
    /// Tells points where we are and asks them for others, or is one, where the operator wants it.
    pub rendezvous: Toggle<quelea_rendezvous::Behaviour>,
    /// Finds peers on the local network, where the operator wants it.
    pub mdns: Toggle<mdns::tokio::Behaviour>,
}
