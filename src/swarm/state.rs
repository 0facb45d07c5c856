//! What the loop remembers between events: peers, listeners, open questions.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, core::transport::ListenerId, kad::QueryId, swarm::ConnectionId};
use quelea_announce::{Book, SignedAnnouncement};
use quelea_behaviours::peers::{self, Hold, Known};
use quelea_behaviours::probe::{self, PingId};
use quelea_behaviours::{
    bans::Bans,
    conduct::Conduct,
    guard::Guard,
    prefixes::DeniedCounts,
    traffic::{Sums, Traffic},
};
use quelea_exchange::PeerRecord;
use quelea_service::ServiceStream;
use quelea_shard::ShardStream;
use tokio::sync::{mpsc, oneshot};

use super::{
    dht::Questions,
    handle::{AnnouncementError, ConnectError, OpenStreamError, PingFailure, WeightsError},
    nat::{NatState, Pong},
    on::{keep::Kept, record::Published},
    pending::Pending,
};

/// Dials, stream openings and fetches that may be under way at once. Each holds a few hundred bytes. As many as three
/// streams to each of 256 peers: see [`quelea_shard::Config`].
const MAX_PENDING: usize = 768;

/// Attempts to reach one peer that are under way at once: where it was, where somebody says that it is now, and relays.
const MAX_ATTEMPTS: u8 = 3;

/// Dials under way because another peer asked. Less than half of those that the connection limits allow: strangers who
/// have us dial where nobody answers must not keep us from our own.
const MAX_ASKED_DIALS: usize = 24;

/// Of these, dials for one asker. A coordinator opens a chain's links once and shares them among its sessions.
const MAX_DIALS_PER_ASKER: usize = 4;

/// How long a dial that was asked for may keep others waiting. Whoever is there answers within a few round trips.
const ASKED_DIAL_DUE: Duration = Duration::from_secs(1);

/// Protocols remembered of one peer: ours are some twenty.
pub(super) const MAX_PROTOCOLS: usize = 64;

/// Characters of one of them.
pub(super) const MAX_PROTOCOL: usize = 64;

/// Look-ups of providers that may run at once; each keeps up to alpha = 3 requests in flight per disjoint path.
const MAX_QUERIES: usize = 64;

/// Who waits for one dial; more than this many callers for one peer are told to come back.
const MAX_WAITERS: usize = 64;

/// Who waits for a dial.
type DialWaiter = oneshot::Sender<Result<(), ConnectError>>;

/// Connections that the operator asked for and that stay without use.
const MAX_WANTED: usize = 64;

/// A dial under way.
#[derive(Debug)]
pub(super) struct Dial {
    waiters: Vec<DialWaiter>,
    since: Instant,
    until: Instant,
    /// On whose word, when nobody here wants it.
    asker: Option<PeerId>,
    /// Whether relays are tried, too.
    through_relays: bool,
    /// Attempts that have not failed.
    attempts: u8,
}

/// What is known of one connected peer. The map of these is bounded by the connection limits.
#[derive(Debug, Default, Clone)]
pub(super) struct Peer {
    pub(super) connections: HashMap<ConnectionId, Multiaddr>,
    pub(super) agent: Option<String>,
    /// What it speaks: at most [`MAX_PROTOCOLS`], of at most [`MAX_PROTOCOL`] characters.
    pub(super) protocols: Vec<String>,
    pub(super) rtt: Option<Duration>,
    pub(super) since: Option<Instant>,
    /// Where we dialled it directly.
    pub(super) dialled: Option<Multiaddr>,
    /// Since when there has been a direct connection.
    pub(super) direct_since: Option<Instant>,
    /// Whether it came to us through a relay.
    pub(super) relayed_in: bool,
    /// Direct dials made to replace its relayed connection.
    pub(super) reversals: u8,
}

/// A connected peer, as commands and pages show it.
#[derive(Debug, Clone)]
pub(crate) struct PeerView {
    /// Its peer id.
    pub(crate) peer: PeerId,
    /// How it calls itself.
    pub(crate) agent: Option<String>,
    /// The last round trip that ping measured.
    pub(crate) rtt: Option<Duration>,
    /// The addresses of our connections to it.
    pub(crate) addrs: Vec<Multiaddr>,
    /// For how long it has been connected.
    pub(crate) connected_for: Duration,
    /// Whether we dialled a connection to it.
    pub(crate) outbound: bool,
    /// How it has behaved, 0 to 10,000.
    pub(crate) conduct: u16,
    /// What it speaks, as far as it has told.
    pub(crate) protocols: Vec<String>,
    /// What goes over its connections, where that is counted.
    pub(crate) traffic: Option<Sums>,
}

/// A peer that is remembered, as commands and pages show it.
#[derive(Debug, Clone)]
pub(crate) struct KnownView {
    /// Its peer id.
    pub(crate) peer: PeerId,
    /// What is remembered.
    pub(crate) known: Known,
    /// What it said of itself last, if it is not too old.
    pub(crate) record: Option<PeerRecord>,
    /// Whether it is connected.
    pub(crate) connected: bool,
}

/// What the loop knows, at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) listeners: Vec<Multiaddr>,
    pub(crate) external: Vec<Multiaddr>,
    pub(crate) peers: Vec<PeerView>,
    /// Peers remembered, connected or not.
    pub(crate) known: usize,
    /// Listeners that have told an address.
    pub(crate) listening: usize,
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
    /// The listeners behind these addresses: one on all interfaces has many.
    pub(super) listening: HashSet<ListenerId>,
    pub(super) dials: HashMap<PeerId, Dial>,
    pub(super) bootstrap: HashSet<PeerId>,
    pub(super) opens: Pending<quelea_shard::OpenId, Result<ShardStream, OpenStreamError>>,
    pub(super) services: Pending<quelea_service::OpenId, Result<ServiceStream, OpenStreamError>>,
    pub(super) fetches: Pending<quelea_announce::FetchId, Result<Option<SignedAnnouncement>, AnnouncementError>>,
    pub(super) weights: Pending<quelea_weights::AskId, Result<quelea_weights::Answer, WeightsError>>,
    pub(super) queries: HashMap<QueryId, ProviderQuery>,
    pub(super) dht: Questions,
    pub(super) kept: Kept,
    pub(super) record: Published,
    /// When this node's own record is looked at next.
    pub(super) next_record: Instant,
    pub(super) book: Book,
    pub(super) guard: Guard,
    pub(super) conduct: Conduct,
    pub(super) bans: Bans,
    /// When the bans were looked over last, in Unix milliseconds.
    pub(super) bans_looked_at: u64,
    /// What had been denied by address range when it was last counted.
    pub(super) denied: DeniedCounts,
    /// Peers whose conduct changed since it was written down. Bounded by the peers remembered.
    pub(super) judged: HashSet<PeerId>,
    /// When anchors and conduct are written down next.
    pub(super) next_save: Instant,
    /// Peers that the operator had us connect to. At most [`MAX_WANTED`].
    pub(super) wanted: HashMap<PeerId, Hold>,
    /// When lines that nobody uses are looked for next.
    pub(super) next_trim: Instant,
    pub(super) pings: Pending<PingId, Result<Pong, PingFailure>>,
    pub(super) nat: NatState,
    pub(super) started: Instant,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            peers: HashMap::new(),
            listeners: BTreeMap::new(),
            listening: HashSet::new(),
            dials: HashMap::new(),
            bootstrap: HashSet::new(),
            opens: Pending::new(MAX_PENDING),
            services: Pending::new(quelea_service::MAX_OPENING),
            fetches: Pending::new(MAX_PENDING),
            weights: Pending::new(quelea_weights::MAX_ASKS),
            queries: HashMap::new(),
            dht: Questions::default(),
            kept: Kept::default(),
            record: Published::default(),
            next_record: Instant::now(),
            book: Book::default(),
            guard: Guard::default(),
            conduct: Conduct::default(),
            bans: Bans::default(),
            bans_looked_at: 0,
            denied: DeniedCounts::default(),
            judged: HashSet::new(),
            next_save: Instant::now(),
            wanted: HashMap::new(),
            next_trim: Instant::now(),
            pings: Pending::new(probe::MAX_PENDING),
            nat: NatState::default(),
            started: Instant::now(),
        }
    }

    /// Whether one more connection may stay for the operator's sake.
    pub(super) fn wanted_has_room(&self) -> bool {
        self.wanted.len() < MAX_WANTED
    }

    /// Whether one more look-up may start.
    pub(super) fn query_has_room(&self) -> bool {
        self.queries.len() < MAX_QUERIES
    }

    /// Adds `reply` to those waiting for a dial of `peer`. Gives it back when too many wait already.
    pub(super) fn wait_for_dial(
        &mut self,
        peer: PeerId,
        asker: Option<PeerId>,
        reply: DialWaiter,
        deadline: Instant,
    ) -> Result<(), DialWaiter> {
        if !self.dials.contains_key(&peer) && self.dials.len() >= MAX_PENDING {
            return Err(reply);
        }
        let new = || Dial {
            waiters: Vec::new(),
            since: Instant::now(),
            until: deadline,
            asker,
            through_relays: false,
            attempts: 1,
        };
        let dial = self.dials.entry(peer).or_insert_with(new);
        if dial.waiters.len() >= MAX_WAITERS {
            return Err(reply);
        }
        dial.waiters.push(reply);
        dial.until = dial.until.max(deadline);
        dial.asker = dial.asker.and(asker);
        Ok(())
    }

    /// Whether one more dial may begin because `asker` wants it; perhaps once the dial that is returned has been given up.
    ///
    /// # Errors
    /// When all dials for others are taken, and none has taken long.
    pub(super) fn room_for_asked_dial(&self, asker: &PeerId, now: Instant) -> Result<Option<PeerId>, ()> {
        let asked = || self.dials.iter().filter_map(|(peer, dial)| Some((peer, dial.asker.as_ref()?, dial.since)));
        let of = |who: &PeerId| asked().filter(|(_, other, _)| *other == who).count();
        if of(asker) >= MAX_DIALS_PER_ASKER {
            return Err(());
        }
        if asked().count() < MAX_ASKED_DIALS {
            return Ok(None);
        }
        let overdue = asked().filter(|(.., since)| now.saturating_duration_since(*since) >= ASKED_DIAL_DUE);
        let gives_way = overdue.max_by_key(|(_, asker, since)| (of(asker), std::cmp::Reverse(*since)));
        gives_way.map(|(peer, ..)| Some(*peer)).ok_or(())
    }

    /// Whether a dial of `peer` is under way only because another peer asked.
    pub(super) fn is_asked_dial(&self, peer: &PeerId) -> bool {
        self.dials.get(peer).is_some_and(|dial| dial.asker.is_some())
    }

    /// Whether a dial of `peer` that we want ourselves may go through relays now: once each. It counts as one more attempt.
    pub(super) fn first_try_through_relays(&mut self, peer: &PeerId) -> bool {
        match self.dials.get_mut(peer) {
            Some(dial) if dial.asker.is_none() && !dial.through_relays => {
                dial.through_relays = true;
                dial.attempts = dial.attempts.saturating_add(1);
                true
            }
            _ => false,
        }
    }

    /// Whether a dial of `peer` that is under way may be joined by one to other addresses, which counts as one more attempt.
    pub(super) fn one_more_attempt(&mut self, peer: &PeerId) -> bool {
        match self.dials.get_mut(peer) {
            Some(dial) if dial.attempts < MAX_ATTEMPTS => {
                dial.attempts = dial.attempts.saturating_add(1);
                true
            }
            _ => false,
        }
    }

    /// One attempt to dial `peer` failed. Whether another one is still under way.
    pub(super) fn attempt_failed(&mut self, peer: &PeerId) -> bool {
        self.dials.get_mut(peer).is_some_and(|dial| {
            dial.attempts = dial.attempts.saturating_sub(1);
            dial.attempts > 0
        })
    }

    /// Dials that have gone on for so long and no relay has been tried for.
    pub(super) fn dials_older_than(&self, age: Duration, now: Instant) -> Vec<PeerId> {
        let old = |dial: &Dial| !dial.through_relays && now.saturating_duration_since(dial.since) >= age;
        self.dials.iter().filter(|(_, dial)| old(dial)).map(|(peer, _)| *peer).collect()
    }

    /// Tells everybody who waited for a dial of `peer` how it ended.
    pub(super) fn dial_ended(&mut self, peer: &PeerId, result: &Result<(), ConnectError>) {
        for reply in self.dials.remove(peer).map(|dial| dial.waiters).unwrap_or_default() {
            let _ = reply.send(result.clone());
        }
    }

    /// Whether an address that `peer` gives as its own is kept: it may be a name, or lead as far as the peer is from us.
    pub(super) fn may_claim(&self, peer: &PeerId, addr: &Multiaddr) -> bool {
        quelea_behaviours::scope::of(addr).is_none() || self.may_name(peer, addr)
    }

    /// Whether `asker` may have us dial `addr`, seen from where it is connected to us.
    pub(super) fn may_name(&self, asker: &PeerId, addr: &Multiaddr) -> bool {
        let connections = self.peers.get(asker).map(|peer| &peer.connections);
        connections.is_some_and(|c| c.values().any(|from| quelea_behaviours::scope::may_name(from, addr)))
    }

    /// Ends every question whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) {
        let late: Vec<PeerId> =
            self.dials.iter().filter(|(_, dial)| dial.until <= now).map(|(peer, _)| *peer).collect();
        for peer in late {
            self.dial_ended(&peer, &Err(ConnectError::Timeout { peer }));
        }
        self.opens.expire(now);
        self.services.expire(now);
        self.pings.expire(now);
        self.fetches.expire(now);
        self.weights.expire(now);
    }

    /// Look-ups whose time is over, or that nobody waits for any more. They are forgotten here.
    pub(super) fn take_finished_queries(&mut self, now: Instant) -> Vec<QueryId> {
        let over = |query: &ProviderQuery| query.deadline <= now || query.found.is_closed();
        self.queries.extract_if(|_, query| over(query)).map(|(id, _)| id).collect()
    }

    /// The connected peers, for people.
    pub(super) fn peer_views(&self, peers: &peers::Behaviour, traffic: &Traffic) -> Vec<PeerView> {
        let traffic = traffic.by_peer();
        let now = Instant::now();
        self.peers
            .iter()
            .map(|(peer, known)| PeerView {
                peer: *peer,
                agent: known.agent.clone(),
                rtt: known.rtt,
                addrs: known.connections.values().cloned().collect(),
                connected_for: known.since.map_or(Duration::ZERO, |since| now.duration_since(since)),
                outbound: peers.is_outbound(peer),
                conduct: peers.book().get(peer).map_or(0, |known| known.conduct),
                protocols: known.protocols.clone(),
                traffic: traffic.get(peer).copied(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dial(state: &mut State, asker: Option<PeerId>) -> PeerId {
        let peer = PeerId::random();
        let (reply, _) = oneshot::channel();
        state.wait_for_dial(peer, asker, reply, Instant::now() + Duration::from_secs(10)).unwrap();
        peer
    }

    #[test]
    fn dials_for_others_are_shared_and_never_all() {
        let mut state = State::new();
        let askers: Vec<PeerId> = (0..6).map(|_| PeerId::random()).collect();
        let now = Instant::now();
        for asker in &askers {
            for _ in 0..MAX_DIALS_PER_ASKER {
                assert_eq!(state.room_for_asked_dial(asker, now), Ok(None));
                dial(&mut state, Some(*asker));
            }
            assert_eq!(state.room_for_asked_dial(asker, now), Err(()));
        }
        let newcomer = PeerId::random();
        assert_eq!(state.room_for_asked_dial(&newcomer, now), Err(()), "none of them has taken long");
        let later = Instant::now() + ASKED_DIAL_DUE;
        let given_up = state.room_for_asked_dial(&newcomer, later).unwrap().unwrap();
        assert!(state.is_asked_dial(&given_up));
        state.dial_ended(&given_up, &Err(ConnectError::Busy));
        assert_eq!(state.room_for_asked_dial(&newcomer, later), Ok(None));
    }

    #[test]
    fn a_dial_that_somebody_here_wants_is_our_own() {
        let mut state = State::new();
        let peer = dial(&mut state, Some(PeerId::random()));
        assert!(state.is_asked_dial(&peer));
        let (reply, _) = oneshot::channel();
        state.wait_for_dial(peer, None, reply, Instant::now()).unwrap();
        assert!(!state.is_asked_dial(&peer));
        let ours = dial(&mut state, None);
        assert!(!state.is_asked_dial(&ours));
    }
}
