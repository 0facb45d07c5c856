//! Questions to the DHT that somebody waits for: what is asked, what comes back, and who waits.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    kad::{QueryId, QueryStats},
};
use quelea_behaviours::{
    kad::{Answers, Choice},
    store::StoreStats,
};
use tokio::sync::{oneshot, watch};

/// Questions under way at once. Each keeps up to alpha = 3 requests in flight on each of three paths, and holds at most 32
/// values of a kilobyte.
pub(super) const MAX_ASKED: usize = 32;

/// Peers told of in one answer: k.
pub(super) const MAX_PEERS: usize = 20;

/// How long a question may take at most, whatever the caller says: as long as Kademlia itself goes on.
pub(crate) const MAX_TIMEOUT: Duration = quelea_behaviours::kad::QUERY_TIMEOUT;

/// What to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Keep a value of ours at the k closest peers, and publish it again until `ttl` is over.
    Put { key: Vec<u8>, value: Vec<u8>, ttl: Option<Duration>, quorum: usize },
    /// What is held under `key`; ends early when `quorum` is met ([`Answers::enough`]), with `None` the namespace's own.
    Get { key: Vec<u8>, quorum: Option<usize> },
    /// Say that this node provides `key`, and say so again until it is told otherwise.
    Provide { key: Vec<u8> },
    /// Who provides `key`. Each is dialled as it turns up.
    Providers { key: Vec<u8> },
    /// Where `peer` is.
    FindPeer { peer: PeerId },
    /// The peers whose ids are closest to `target`.
    Closest { target: Vec<u8> },
}

/// What a lookup has cost so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Effort {
    /// Requests to peers.
    pub(crate) requests: u32,
    /// Of these, answered.
    pub(crate) answers: u32,
    /// Of these, failed.
    pub(crate) failures: u32,
}

impl From<&QueryStats> for Effort {
    fn from(stats: &QueryStats) -> Self {
        Self { requests: stats.num_requests(), answers: stats.num_successes(), failures: stats.num_failures() }
    }
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// This many peers acknowledged a value.
    Put { peers: usize },
    /// Values, best first, never none; and how many answers were not valid.
    Values { choices: Vec<Choice>, invalid: usize },
    /// The provider record is out.
    Provided,
    /// Providers, in the order in which they turned up.
    Providers(Vec<PeerId>),
    /// Peers and where they are; what was asked for comes first.
    Peers(Vec<(PeerId, Vec<Multiaddr>)>),
}

/// An answer and what it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) found: Found,
    pub(crate) effort: Effort,
    pub(crate) took: Duration,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DhtError {
    #[error("no peer that serves the DHT answered")]
    NoPeers,
    #[error("nobody who was asked has it")]
    NotFound,
    #[error("there was no answer in time")]
    Timeout,
    #[error("{peers} of {quorum} peers acknowledged it")]
    Quorum { peers: usize, quorum: usize },
    #[error("this node's own store does not take it: {0}")]
    Refused(String),
    #[error("too many lookups are under way")]
    Busy,
    #[error("the swarm has stopped")]
    Stopped,
}

/// Where an answer goes.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) progress: watch::Sender<Effort>,
    pub(crate) reply: oneshot::Sender<Result<Answer, DhtError>>,
}

/// What a lookup has found so far.
#[derive(Debug)]
pub(super) enum Gathering {
    Put {
        quorum: usize,
    },
    Get {
        quorum: Option<usize>,
        answers: Answers,
    },
    Provide,
    Providers(Vec<PeerId>),
    /// The lookup of a peer's id.
    FindPeer(PeerId),
    /// The lookup of what the peer has signed, when the first found nothing.
    PeerRecord {
        peer: PeerId,
        answers: Answers,
    },
    Closest,
}

impl Gathering {
    /// For metrics and `dht stats`.
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Put { .. } => Kind::Put,
            Self::Get { .. } => Kind::Get,
            Self::Provide => Kind::Provide,
            Self::Providers(_) => Kind::Providers,
            Self::FindPeer(_) | Self::PeerRecord { .. } => Kind::FindPeer,
            Self::Closest => Kind::FindNode,
        }
    }
}

/// Kinds of questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Put,
    Get,
    Provide,
    Providers,
    FindPeer,
    FindNode,
}

impl Kind {
    /// All, in the order of [`Tally`].
    pub(crate) const ALL: [(Self, &'static str); 6] = [
        (Self::Put, "put"),
        (Self::Get, "get"),
        (Self::Provide, "provide"),
        (Self::Providers, "providers"),
        (Self::FindPeer, "find-peer"),
        (Self::FindNode, "find-node"),
    ];
}

/// How questions of one kind ended since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    pub(crate) ok: u64,
    pub(crate) failed: u64,
}

/// One question under way.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) gathering: Gathering,
    pub(super) waiter: Waiter,
    pub(super) since: Instant,
    pub(super) deadline: Instant,
}

impl Asked {
    /// Answers, and counts how it ended.
    pub(super) fn end(self, tallies: &mut [Tally; Kind::ALL.len()], effort: Effort, result: Result<Found, DhtError>) {
        if let Some(tally) = tallies.get_mut(self.gathering.kind() as usize) {
            let count = if result.is_ok() { &mut tally.ok } else { &mut tally.failed };
            *count = count.saturating_add(1);
        }
        let took = self.since.elapsed();
        // Whoever asked may have gone away.
        let _ = self.waiter.reply.send(result.map(|found| Answer { found, effort, took }));
    }
}

/// The questions under way, and how earlier ones ended.
#[derive(Debug, Default)]
pub(super) struct Questions {
    pub(super) asked: HashMap<QueryId, Asked>,
    pub(super) tallies: [Tally; Kind::ALL.len()],
    /// How often the routing table had no room, as far as it has been counted.
    pub(super) crowded: u64,
}

impl Questions {
    pub(super) fn has_room(&self) -> bool {
        self.asked.len() < MAX_ASKED
    }
}

/// What `dht stats` shows.
#[derive(Debug, Clone)]
pub(crate) struct DhtStats {
    /// Whether this node serves the DHT.
    pub(crate) server: bool,
    /// The non-empty buckets: the logarithm of their distance (0 to 255), and their peers.
    pub(crate) buckets: Vec<(u32, usize)>,
    pub(crate) store: StoreStats,
    /// Lookups of every kind under way, those of Kademlia itself included.
    pub(crate) running: usize,
    pub(crate) tallies: [Tally; Kind::ALL.len()],
}
