//! What a [`super::Handle`] asks of the loop. Every command carries the sender of its answer.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId};
use quelea_announce::SignedAnnouncement;
use quelea_behaviours::{
    bans::{Ban, Full, Subject},
    conduct::Deed,
};
use quelea_service::ServiceStream;
use quelea_shard::ShardStream;
use quelea_weights::{Answer, ReplyId, Request};
use quelea_wire::ModelId;
use tokio::sync::{mpsc, oneshot};

use super::{
    dht::{Ask, DhtStats, Waiter},
    handle::{AnnouncementError, BroadcastError, ConnectError, Heard, OpenStreamError, PingFailure, WeightsError},
    nat::{NatView, Pong},
    state::{KnownView, Snapshot},
};

/// One request to the loop.
#[derive(Debug)]
pub(super) enum Command {
    /// Have a connection to `peer`, dialling the given and the known addresses if there is none.
    Connect {
        peer: PeerId,
        addrs: Vec<Multiaddr>,
        /// On whose word, when it is not our own wish.
        asker: Option<PeerId>,
        reply: oneshot::Sender<Result<(), ConnectError>>,
    },
    /// Dial an address of a bootstrap peer and add it to the routing table.
    Bootstrap { peer: PeerId, addr: Multiaddr },
    /// Keep the connection to `peer` until it ends or is told to end: the operator wants it.
    Keep { peer: PeerId },
    /// Open one shard stream to a connected peer.
    OpenStream { peer: PeerId, reply: oneshot::Sender<Result<ShardStream, OpenStreamError>> },
    /// Open one stream to call a connected peer's services on.
    OpenService { peer: PeerId, reply: oneshot::Sender<Result<ServiceStream, OpenStreamError>> },
    /// Ask a connected peer for its announcement.
    FetchAnnouncement { peer: PeerId, reply: oneshot::Sender<Result<Option<SignedAnnouncement>, AnnouncementError>> },
    /// Who provides `key`, by Kademlia. Providers are dialled as they turn up, while their addresses are known.
    FindProviders { key: Vec<u8>, found: mpsc::Sender<PeerId> },
    /// Put a provider record of ours for `key`.
    Provide { key: Vec<u8> },
    /// Take a provider record of ours back.
    StopProviding { key: Vec<u8> },
    /// Ask the DHT.
    Dht { ask: Ask, timeout: Duration, waiter: Waiter },
    /// Stop publishing what is ours under `key`: answers whether there was a value, and whether we provided it.
    DhtDelete { key: Vec<u8>, reply: oneshot::Sender<(bool, bool)> },
    /// Figures of our part of the DHT.
    DhtStats { reply: oneshot::Sender<DhtStats> },
    /// Serve this announcement from now on, and gossip it if it is news.
    Announce { announcement: SignedAnnouncement, gossip: bool },
    /// Listen to announcements of this model.
    ListenFor { model: ModelId },
    /// Sign this line and say it to everybody; the answer is the message's id.
    Broadcast { text: String, reply: oneshot::Sender<Result<String, BroadcastError>> },
    /// Every live announcement that this node has heard.
    Announced { reply: oneshot::Sender<Vec<SignedAnnouncement>> },
    /// Who serves layers of this model, and who has said goodbye, as far as gossip and fetches tell.
    Heard { model: ModelId, reply: oneshot::Sender<Heard> },
    /// Ask a connected peer about weights.
    AskWeights { peer: PeerId, request: Request, reply: oneshot::Sender<Result<Answer, WeightsError>> },
    /// Answer a peer's question about weights.
    AnswerWeights { id: ReplyId, answer: Answer },
    /// Send these packets of the ledger to connected peers.
    LedgerSend { packets: Vec<(PeerId, Vec<u8>)> },
    /// A peer did something on a stream of ours.
    Deed { peer: PeerId, deed: Deed },
    /// Refuse a peer or a range from now on.
    Ban { subject: Subject, duration: Duration, reason: String, reply: oneshot::Sender<Result<Ban, Full>> },
    /// Let it in again; the answer is whether it was banned.
    Unban { subject: Subject, reply: oneshot::Sender<bool> },
    /// The bans in force.
    Bans { reply: oneshot::Sender<Vec<Ban>> },
    /// What is remembered of one peer, or of all.
    Known { peer: Option<PeerId>, reply: oneshot::Sender<Vec<KnownView>> },
    /// End every connection to a peer; answers whether there was one.
    Disconnect { peer: PeerId, reply: oneshot::Sender<bool> },
    /// Send so many bytes to a connected peer and back.
    Ping { peer: PeerId, bytes: usize, reply: oneshot::Sender<Result<Pong, PingFailure>> },
    /// What is known about being reached.
    Nat { reply: oneshot::Sender<NatView> },
    /// What the loop knows of itself and its peers.
    Snapshot { reply: oneshot::Sender<Snapshot> },
}
