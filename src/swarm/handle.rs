//! The door to the swarm: clonable, bounded, one error type per operation.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId};
use quelea_announce::SignedAnnouncement;
use quelea_behaviours::{
    bans::{Ban, Full, Subject},
    conduct::Deed,
};
use quelea_service::ServiceStream;
use quelea_shard::ShardStream;
use quelea_weights::{ReplyId, Request};
use quelea_wire::ModelId;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::{
    command::Command,
    dht::{Answer, Ask, DhtError, DhtStats, Effort, Waiter},
    events::SwarmNotice,
    nat::{NatView, Pong},
    state::{KnownView, Snapshot},
};
use crate::telemetry::metrics::Metrics;

/// Commands that may wait for the loop. The loop takes them in microseconds; 256 covers every task of a busy node.
pub(super) const COMMAND_QUEUE: usize = 256;

/// How long a dial may take, several addresses and relays included.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the negotiation of one stream may take. The shard behaviour answers within 11 s itself; this is the second net.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(12);

/// How long a peer may take over its announcement, which it has in memory. The announce behaviour answers within 5 s itself;
/// this is the second net.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(8);

/// How long a ping may take. The probe behaviour answers within 10 s itself; this is the second net.
pub(super) const PING_DUE: Duration = Duration::from_secs(12);

/// Providers taken from one look-up. A chain needs one per span; the rest is choice.
pub(super) const MAX_PROVIDERS: usize = 64;

/// How long a look-up of providers may take before we go on with what was found.
pub(super) const PROVIDERS_TIMEOUT: Duration = Duration::from_secs(10);

/// The answer of the DHT, once it is there.
pub(crate) type DhtAnswer = oneshot::Receiver<Result<Answer, DhtError>>;

/// A clonable reference to the running swarm.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    notices: broadcast::Sender<SwarmNotice>,
    local: PeerId,
    metrics: Metrics,
}

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConnectError {
    #[error("no address of {peer} is known")]
    NoAddresses { peer: PeerId },
    #[error("{peer} could not be dialled: {reason}")]
    Dial { peer: PeerId, reason: String },
    #[error("{peer} did not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout { peer: PeerId },
    #[error("too many dials are under way")]
    Busy,
    #[error("the swarm has stopped")]
    Stopped,
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum OpenStreamError {
    #[error("{peer} refused the stream: {reason}")]
    Refused { peer: PeerId, reason: String },
    #[error("{peer} did not negotiate the stream within {} s", OPEN_TIMEOUT.as_secs())]
    Timeout { peer: PeerId },
    #[error("too many streams are being opened")]
    Busy,
    #[error("the swarm has stopped")]
    Stopped,
}

/// Why a ping was not answered.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PingFailure {
    #[error("no connection to {peer}")]
    NotConnected { peer: PeerId },
    #[error("{reason}")]
    Failed { reason: String },
    #[error("no answer in time")]
    Timeout,
    #[error("the swarm has stopped")]
    Stopped,
}

/// Why a peer's announcement could not be had.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AnnouncementError {
    #[error("{peer} gave no valid announcement: {reason}")]
    Fetch { peer: PeerId, reason: String },
    #[error("{peer} did not answer within {} s", FETCH_TIMEOUT.as_secs())]
    Timeout { peer: PeerId },
    #[error("too many announcements are being fetched")]
    Busy,
    #[error("the swarm has stopped")]
    Stopped,
}

/// What the book of announcements says of a model.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// When each peer that serves layers of it signed its newest announcement, in Unix milliseconds.
    pub(crate) issued_ms: Vec<(PeerId, u64)>,
    /// Peers that have said goodbye, whatever they served.
    pub(crate) left: Vec<PeerId>,
}

/// Why a question about weights brought nothing.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum WeightsError {
    #[error("{peer}: {reason}")]
    Failed { peer: PeerId, reason: String },
    #[error("{peer} did not answer in time")]
    Timeout { peer: PeerId },
    #[error("too many questions are under way")]
    Busy,
    #[error("the swarm has stopped")]
    Stopped,
}

/// Why nobody was banned.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BanError {
    #[error(transparent)]
    Full(#[from] Full),
    #[error("the swarm has stopped")]
    Stopped,
}

/// Why a line could not be said.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BroadcastError {
    #[error(transparent)]
    Line(#[from] quelea_broadcast::LineError),
    #[error("no connected peer listens to broadcasts")]
    Nobody,
    #[error("every neighbour's queue is full")]
    Busy,
    #[error("gossip refused the line: {0}")]
    Refused(String),
    #[error("the swarm has stopped")]
    Stopped,
}

impl Handle {
    pub(super) fn new(
        local: PeerId,
        notices: broadcast::Sender<SwarmNotice>,
        metrics: Metrics,
    ) -> (Self, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
        (Self { commands, notices, local, metrics }, receiver)
    }

    /// This node.
    pub(crate) fn local(&self) -> PeerId {
        self.local
    }

    /// What happens from now on, for those who watch.
    pub(crate) fn watch(&self) -> broadcast::Receiver<SwarmNotice> {
        self.notices.subscribe()
    }

    /// Has a connection to `peer`, dialling if there is none.
    pub(crate) async fn connect(&self, peer: PeerId, addrs: Vec<Multiaddr>) -> Result<(), ConnectError> {
        self.dial(peer, addrs, None).await
    }

    /// As [`Handle::connect`], because `asker` wants us to. Of the addresses it names only those are dialled that lead as
    /// far as `asker` itself is from us, and it shares the dials with other askers.
    pub(crate) async fn connect_for(
        &self,
        asker: PeerId,
        peer: PeerId,
        addrs: Vec<Multiaddr>,
    ) -> Result<(), ConnectError> {
        self.dial(peer, addrs, Some(asker).filter(|asker| *asker != self.local)).await
    }

    async fn dial(&self, peer: PeerId, addrs: Vec<Multiaddr>, asker: Option<PeerId>) -> Result<(), ConnectError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Connect { peer, addrs, asker, reply }, answer).await.unwrap_or(Err(ConnectError::Stopped))
    }

    /// Keeps the connection to `peer` until it ends, used or not: the operator wants it.
    pub(crate) async fn keep(&self, peer: PeerId) {
        let _ = self.commands.send(Command::Keep { peer }).await;
    }

    /// Dials a bootstrap peer; its fate shows in the notices and in health.
    pub(crate) async fn bootstrap(&self, peer: PeerId, addr: Multiaddr) {
        let _ = self.commands.send(Command::Bootstrap { peer, addr }).await;
    }

    /// Opens one shard stream on an existing connection.
    pub(crate) async fn open_stream(&self, peer: PeerId) -> Result<ShardStream, OpenStreamError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::OpenStream { peer, reply }, answer).await.unwrap_or(Err(OpenStreamError::Stopped))
    }

    /// Opens one stream to call a peer's services on, on an existing connection.
    pub(crate) async fn open_service(&self, peer: PeerId) -> Result<ServiceStream, OpenStreamError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::OpenService { peer, reply }, answer).await.unwrap_or(Err(OpenStreamError::Stopped))
    }

    /// A connected peer's announcement; `None` when it serves nothing.
    pub(crate) async fn fetch_announcement(
        &self,
        peer: PeerId,
    ) -> Result<Option<SignedAnnouncement>, AnnouncementError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::FetchAnnouncement { peer, reply }, answer).await.unwrap_or(Err(AnnouncementError::Stopped))
    }

    /// Peers with a provider record for `key`, as they turn up; the channel closes when the look-up is over. Dropping the
    /// receiver ends it early.
    pub(crate) async fn find_providers(&self, key: Vec<u8>) -> mpsc::Receiver<PeerId> {
        let (found, providers) = mpsc::channel(MAX_PROVIDERS);
        let _ = self.commands.send(Command::FindProviders { key, found }).await;
        providers
    }

    /// Publishes that this node provides `key`; Kademlia repeats it until [`Handle::stop_providing`].
    pub(crate) async fn provide(&self, key: Vec<u8>) {
        let _ = self.commands.send(Command::Provide { key }).await;
    }

    /// Stops providing `key`.
    pub(crate) async fn stop_providing(&self, key: Vec<u8>) {
        let _ = self.commands.send(Command::StopProviding { key }).await;
    }

    /// Asks the DHT; how far it is, and the answer.
    pub(crate) async fn dht(&self, ask: Ask, timeout: Duration) -> (watch::Receiver<Effort>, DhtAnswer) {
        let (progress, efforts) = watch::channel(Effort::default());
        let (reply, answer) = oneshot::channel();
        // When the loop is gone, so is the sender of the answer.
        let _ = self.commands.send(Command::Dht { ask, timeout, waiter: Waiter { progress, reply } }).await;
        (efforts, answer)
    }

    /// Stops publishing what is ours under `key`: whether there was a value, and whether we provided it.
    pub(crate) async fn dht_delete(&self, key: Vec<u8>) -> Result<(bool, bool), DhtError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::DhtDelete { key, reply }, answer).await.ok_or(DhtError::Stopped)
    }

    /// Figures of our part of the DHT.
    pub(crate) async fn dht_stats(&self) -> Result<DhtStats, DhtError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::DhtStats { reply }, answer).await.ok_or(DhtError::Stopped)
    }

    /// Serves this node's announcement, and gossips it if it is news.
    pub(crate) async fn announce(&self, announcement: SignedAnnouncement, gossip: bool) {
        let _ = self.commands.send(Command::Announce { announcement, gossip }).await;
    }

    /// A peer did something on a stream of ours. Never waits; a deed that finds the queue full is not counted.
    pub(crate) fn deed(&self, peer: PeerId, deed: Deed) {
        let _ = self.commands.try_send(Command::Deed { peer, deed });
    }

    /// Has packets of the ledger sent to connected peers, those to one peer in this order. Never waits: when the loop has more
    /// commands than it takes they are all dropped and counted, as others that are lost on their way; the ledger syncs again.
    pub(crate) fn ledger_send(&self, packets: Vec<(PeerId, Vec<u8>)>) {
        let count = packets.len();
        if self.commands.try_send(Command::LedgerSend { packets }).is_err() {
            (0..count).for_each(|_| self.metrics.channel_full("ledger_send"));
        }
    }

    /// Asks a connected peer about weights. The answer's bytes are not checked.
    pub(crate) async fn ask_weights(
        &self,
        peer: PeerId,
        request: Request,
    ) -> Result<quelea_weights::Answer, WeightsError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::AskWeights { peer, request, reply }, answer).await.unwrap_or(Err(WeightsError::Stopped))
    }

    /// Answers a peer's question about weights. Waits for room: not from an async thread.
    pub(crate) fn answer_weights(&self, id: ReplyId, answer: quelea_weights::Answer) {
        let _ = self.commands.blocking_send(Command::AnswerWeights { id, answer });
    }

    /// Refuses a peer or a range of addresses for so long.
    pub(crate) async fn ban(&self, subject: Subject, duration: Duration, reason: String) -> Result<Ban, BanError> {
        let (reply, answer) = oneshot::channel();
        let made = self.ask(Command::Ban { subject, duration, reason, reply }, answer).await;
        Ok(made.ok_or(BanError::Stopped)??)
    }

    /// Lets it in again; whether it was banned, `None` once the loop has stopped.
    pub(crate) async fn unban(&self, subject: Subject) -> Option<bool> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Unban { subject, reply }, answer).await
    }

    /// The bans in force.
    pub(crate) async fn bans(&self) -> Vec<Ban> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Bans { reply }, answer).await.unwrap_or_default()
    }

    /// Listens to announcements of a model that is used here, from now on.
    pub(crate) async fn listen_for(&self, model: ModelId) {
        let _ = self.commands.send(Command::ListenFor { model }).await;
    }

    /// Says a line to everybody, signed by this node. The message's id.
    pub(crate) async fn broadcast(&self, text: String) -> Result<String, BroadcastError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Broadcast { text, reply }, answer).await.unwrap_or(Err(BroadcastError::Stopped))
    }

    /// Sends `bytes` to a connected peer and back.
    pub(crate) async fn ping(&self, peer: PeerId, bytes: usize) -> Result<Pong, PingFailure> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Ping { peer, bytes, reply }, answer).await.unwrap_or(Err(PingFailure::Stopped))
    }

    /// What is known about being reached; `None` once the loop has stopped.
    pub(crate) async fn nat(&self) -> Option<NatView> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Nat { reply }, answer).await
    }

    /// What the loop knows about itself and its peers; `None` once it has stopped.
    pub(crate) async fn snapshot(&self) -> Option<Snapshot> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Snapshot { reply }, answer).await
    }

    /// What is remembered of one peer, or of all.
    pub(crate) async fn known(&self, peer: Option<PeerId>) -> Vec<KnownView> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Known { peer, reply }, answer).await.unwrap_or_default()
    }

    /// Ends every connection to a peer, and does not dial it by itself for a while. Whether there was one.
    pub(crate) async fn disconnect(&self, peer: PeerId) -> bool {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Disconnect { peer, reply }, answer).await.unwrap_or(false)
    }

    /// Every live announcement that this node has heard: thousands, on a large network.
    pub(crate) async fn announced(&self) -> Vec<SignedAnnouncement> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Announced { reply }, answer).await.unwrap_or_default()
    }

    /// Who serves layers of `model`, and who has left, without asking anybody.
    pub(crate) async fn heard(&self, model: ModelId) -> Heard {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Heard { model, reply }, answer).await.unwrap_or_default()
    }

    async fn ask<T>(&self, command: Command, answer: oneshot::Receiver<T>) -> Option<T> {
        self.commands.send(command).await.ok()?;
        answer.await.ok()
    }
}
