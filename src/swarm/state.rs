//! What the loop remembers between events: peers, listeners, open questions.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, kad::QueryId, swarm::ConnectionId};
use quelea_announce::{Book, SignedAnnouncement};
use quelea_shard::ShardStream;
use tokio::sync::{mpsc, oneshot};

use super::{
    handle::{AnnouncementError, ConnectError, OpenStreamError},
    pending::Pending,
};

/// Dials, stream openings and fetches that may be under way at once. Each holds a few hundred bytes.
const MAX_PENDING: usize = 512;

/// Look-ups of providers that may run at once; each keeps up to alpha = 3 requests in flight per disjoint path.
const MAX_QUERIES: usize = 64;

/// Who waits for one dial; more than this many callers for one peer are told to come back.
const MAX_WAITERS: usize = 64;

/// Who waits for a dial.
type DialWaiter = oneshot::Sender<Result<(), ConnectError>>;

/// What is known of one connected peer. The map of these is bounded by the connection limits.
#[derive(Debug, Default, Clone)]
pub(super) struct Peer {
    pub(super) connections: HashMap<ConnectionId, Multiaddr>,
    pub(super) agent: Option<String>,
    pub(super) rtt: Option<Duration>,
    pub(super) since: Option<Instant>,
}

/// A connected peer, as commands and pages show it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PeerView {
    /// Its peer id.
    pub peer: PeerId,
    /// How it calls itself.
    pub agent: Option<String>,
    /// The last round trip that ping measured.
    pub rtt: Option<Duration>,
    /// The addresses of our connections to it.
    pub addrs: Vec<Multiaddr>,
    /// For how long it has been connected.
    pub connected_for: Duration,
}

/// What the loop knows, at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) listeners: Vec<Multiaddr>,
    pub(crate) external: Vec<Multiaddr>,
    pub(crate) peers: Vec<PeerView>,
    pub(crate) announcements: Vec<SignedAnnouncement>,
}

/// A look-up of providers under way.
#[derive(Debug)]
pub(super) struct ProviderQuery {
    pub(super) seen: HashSet<PeerId>,
    pub(super) found: mpsc::Sender<PeerId>,
    pub(super) deadline: Instant,
}

/// Everything the loop remembers.
pub(super) struct State {
    pub(super) peers: HashMap<PeerId, Peer>,
    pub(super) listeners: BTreeMap<String, Multiaddr>,
    pub(super) dials: HashMap<PeerId, (Vec<DialWaiter>, Instant)>,
    pub(super) bootstrap: HashSet<PeerId>,
    pub(super) opens: Pending<quelea_shard::OpenId, Result<ShardStream, OpenStreamError>>,
    pub(super) fetches: Pending<quelea_announce::FetchId, Result<Option<SignedAnnouncement>, AnnouncementError>>,
    pub(super) queries: HashMap<QueryId, ProviderQuery>,
    pub(super) book: Book,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            peers: HashMap::new(),
            listeners: BTreeMap::new(),
            dials: HashMap::new(),
            bootstrap: HashSet::new(),
            opens: Pending::new(MAX_PENDING),
            fetches: Pending::new(MAX_PENDING),
            queries: HashMap::new(),
            book: Book::default(),
        }
    }

    /// Whether one more look-up may start.
    pub(super) fn query_has_room(&self) -> bool {
        self.queries.len() < MAX_QUERIES
    }

    /// Adds `reply` to those waiting for a dial of `peer`. Gives it back when too many wait already.
    pub(super) fn wait_for_dial(
        &mut self,
        peer: PeerId,
        reply: DialWaiter,
        deadline: Instant,
    ) -> Result<(), DialWaiter> {
        if !self.dials.contains_key(&peer) && self.dials.len() >= MAX_PENDING {
            return Err(reply);
        }
        let (waiters, until) = self.dials.entry(peer).or_insert_with(|| (Vec::new(), deadline));
        if waiters.len() >= MAX_WAITERS {
            return Err(reply);
        }
        waiters.push(reply);
        *until = (*until).max(deadline);
        Ok(())
    }

    /// Tells everybody who waited for a dial of `peer` how it ended.
    pub(super) fn dial_ended(&mut self, peer: &PeerId, result: &Result<(), ConnectError>) {
        for reply in self.dials.remove(peer).map(|(waiters, _)| waiters).unwrap_or_default() {
            let _ = reply.send(result.clone());
        }
    }

    /// Ends every question whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant, local: PeerId) {
        let late: Vec<PeerId> =
            self.dials.iter().filter(|(_, (_, until))| *until <= now).map(|(peer, _)| *peer).collect();
        for peer in late {
            self.dial_ended(&peer, &Err(ConnectError::Timeout { peer }));
        }
        // The two protocols below answer every question themselves within their own timeouts; this is the second net.
        self.opens.expire(now, || Err(OpenStreamError::Timeout { peer: local }));
        self.fetches.expire(now, || Err(AnnouncementError::Timeout { peer: local }));
    }

    /// Look-ups whose time is over, or that nobody waits for any more. They are forgotten here.
    pub(super) fn take_finished_queries(&mut self, now: Instant) -> Vec<QueryId> {
        let over = |query: &ProviderQuery| query.deadline <= now || query.found.is_closed();
        self.queries.extract_if(|_, query| over(query)).map(|(id, _)| id).collect()
    }

    /// The connected peers, for people.
    pub(super) fn peer_views(&self) -> Vec<PeerView> {
        let now = Instant::now();
        self.peers
            .iter()
            .map(|(peer, known)| PeerView {
                peer: *peer,
                agent: known.agent.clone(),
                rtt: known.rtt,
                addrs: known.connections.values().cloned().collect(),
                connected_for: known.since.map_or(Duration::ZERO, |since| now.duration_since(since)),
            })
            .collect()
    }
}
