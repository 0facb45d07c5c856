//! Whom to ask, when, and what to answer: a machine without clock, socket or randomness of its own. A simulator drives it
//! with seeds; the behaviour drives it on a swarm.
//!
//! | when | what happens |
//! |---|---|
//! | a peer connects | it is asked at once |
//! | a round begins | [`ASKS_PER_ROUND`] connected peers, drawn at random, are asked |
//! | a peer answers | what it told is taken in; its silence is forgotten |
//! | a peer does not answer | it is left alone for a minute, then two, four, … up to an hour |
//!
//! Rounds come a second, two, four, … after the start, then every [`ROUND`], each a fifth earlier or later by chance: a node
//! that starts learns its neighbourhood in seconds, and nodes that start together do not stay in step.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use libp2p::PeerId;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::{
    filter::{Filter, MAX_KEYS},
    message::{ENTRY_OVERHEAD, Entry, MAX_RECORDS, MAX_RESPONSE_BYTES},
    record::{MAX_AGE_MS, SignedRecord},
    records::{Held, MAX_TTL, Records},
};

/// Time between rounds.
pub const ROUND: Duration = Duration::from_secs(30);
/// The first round comes this long after the start.
const FIRST_ROUND: Duration = Duration::from_secs(1);
/// Peers asked in a round: with 8 KiB of filter at most, 1 KiB a second.
pub const ASKS_PER_ROUND: usize = 4;
/// Newcomers asked at one look; the others at the next one. A crowd that connects at once is asked over a few looks.
const NEWCOMERS_PER_LOOK: usize = 8;
/// Connected peers that are asked; those beyond are answered only. Twice the connections of a node.
pub const MAX_PARTNERS: usize = 512;
/// How long a peer that did not answer is left alone at first.
const SILENCE: Duration = Duration::from_secs(60);
/// And at most.
pub const SILENCE_MAX: Duration = Duration::from_secs(3600);
/// Silent peers remembered, connected or not: one that reconnects stays left alone.
const MAX_SILENT: usize = 1024;
/// A record older than this is asked for again: half of what it may be, so that it is replaced before it is dropped.
const FRESH_MS: u64 = MAX_AGE_MS / 2;

/// What time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since some fixed moment, on a clock that never goes back.
    pub at: Duration,
    /// Unix milliseconds, for the age of records.
    pub unix_ms: u64,
}

/// One peer to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Whom.
    pub peer: PeerId,
    /// For how many records.
    pub want: u8,
    /// Whom we know.
    pub filter: Filter,
}

#[derive(Debug, Default)]
struct Partner {
    /// It was asked since it connected.
    met: bool,
    under_way: bool,
}

#[derive(Debug)]
struct Silence {
    times: u32,
    until: Duration,
}

/// The machine.
#[derive(Debug)]
pub struct Exchanger {
    local: PeerId,
    rng: StdRng,
    partners: BTreeMap<PeerId, Partner>,
    silent: HashMap<PeerId, Silence>,
    records: Records,
    round: u32,
    next_round: Option<Duration>,
}

impl Exchanger {
    /// For the peer `local`. Everything left to chance follows from `seed`.
    #[must_use]
    pub fn new(local: PeerId, seed: u64) -> Self {
        Self {
            local,
            rng: StdRng::seed_from_u64(seed),
            partners: BTreeMap::new(),
            silent: HashMap::new(),
            records: Records::default(),
            round: 0,
            next_round: None,
        }
    }

    /// A peer can be asked from now on.
    pub fn connected(&mut self, peer: PeerId) {
        if self.partners.len() < MAX_PARTNERS {
            self.partners.entry(peer).or_default();
        }
    }

    /// A peer can be asked no more. What it told stays.
    pub fn disconnected(&mut self, peer: &PeerId) {
        self.partners.remove(peer);
    }

    /// When to [`Exchanger::poll`] next, unless something happens before; `None` while there is nobody to ask.
    #[must_use]
    pub fn next_at(&self, now: Now) -> Option<Duration> {
        if self.newcomers(now).next().is_some() {
            return Some(now.at);
        }
        if self.partners.is_empty() { None } else { self.next_round.or(Some(now.at)) }
    }

    /// Whom to ask now. Each is under way until [`Exchanger::answered`] or [`Exchanger::silent`].
    pub fn poll(&mut self, now: Now) -> Vec<Ask> {
        self.records.sweep(now.unix_ms);
        let mut chosen: Vec<PeerId> = self.newcomers(now).take(NEWCOMERS_PER_LOOK).collect();
        if self.next_round.is_none_or(|next| next <= now.at) && !self.partners.is_empty() {
            if self.next_round.is_some() {
                chosen.extend(self.draw(now, &chosen));
                self.round = self.round.saturating_add(1);
            }
            self.next_round = Some(now.at.saturating_add(self.pause()));
        }
        let mut asks = Vec::with_capacity(chosen.len());
        for peer in chosen {
            if let Some(partner) = self.partners.get_mut(&peer) {
                *partner = Partner { met: true, under_way: true };
            }
            asks.push(Ask { peer, want: MAX_RECORDS, filter: self.filter(now) });
        }
        asks
    }

    fn newcomers(&self, now: Now) -> impl Iterator<Item = PeerId> {
        let new = self.partners.iter().filter(|(_, partner)| !partner.met && !partner.under_way);
        new.map(|(peer, _)| *peer).filter(move |peer| !self.is_left_alone(peer, now))
    }

    fn is_left_alone(&self, peer: &PeerId, now: Now) -> bool {
        self.silent.get(peer).is_some_and(|silence| silence.until > now.at)
    }

    /// Draws who is asked in a round.
    fn draw(&mut self, now: Now, chosen: &[PeerId]) -> Vec<PeerId> {
        let idle = self.partners.iter().filter(|(_, partner)| !partner.under_way).map(|(peer, _)| *peer);
        let mut idle: Vec<PeerId> =
            idle.filter(|peer| !self.is_left_alone(peer, now) && !chosen.contains(peer)).collect();
        idle.shuffle(&mut self.rng);
        idle.truncate(ASKS_PER_ROUND);
        idle
    }

    /// Until the next round.
    fn pause(&mut self) -> Duration {
        let whole = FIRST_ROUND.saturating_mul(1_u32.checked_shl(self.round).unwrap_or(u32::MAX)).min(ROUND);
        self.around(whole)
    }

    /// A fifth more or less.
    fn around(&mut self, whole: Duration) -> Duration {
        let ms = u64::try_from(whole.as_millis()).unwrap_or(u64::MAX);
        let fifth = ms / 5;
        let extra = self.rng.random_range(0..=fifth.saturating_mul(2));
        Duration::from_millis(ms.saturating_sub(fifth).saturating_add(extra))
    }

    /// Whom we know well enough not to be told again, under a fresh seed: whoever it wrongly holds this time, it does not
    /// hold the next.
    fn filter(&mut self, now: Now) -> Filter {
        let seed = self.rng.random();
        let fresh = || self.records.iter().filter(|held| held.record.age_ms(now.unix_ms) <= FRESH_MS);
        let mut filter = Filter::new(fresh().count().saturating_add(1), seed);
        filter.insert(&self.local);
        // There are fewer than a filter holds.
        fresh().take(MAX_KEYS).for_each(|held| filter.insert(&held.record.peer()));
        filter
    }

    /// What `peer` answered. Returns the records that tell something new.
    pub fn answered(&mut self, peer: PeerId, entries: Vec<Entry>) -> Vec<SignedRecord> {
        if let Some(partner) = self.partners.get_mut(&peer) {
            partner.under_way = false;
        }
        self.silent.remove(&peer);
        let mut new = Vec::new();
        for Entry { ttl, record } in entries {
            let first_hand = record.peer() == peer;
            // A record of somebody else has been passed on once at least, whatever is claimed.
            let ttl = if first_hand { MAX_TTL } else { ttl.min(MAX_TTL.saturating_sub(1)) };
            if record.peer() != self.local && self.records.insert(record.clone(), ttl, peer) {
                new.push(record);
            }
        }
        new
    }

    /// A record that its own peer handed us. Returns whether it tells something new.
    pub fn met(&mut self, record: SignedRecord) -> bool {
        let peer = record.peer();
        peer != self.local && self.records.insert(record, MAX_TTL, peer)
    }

    /// `peer` did not answer, or said that it was asked too often.
    pub fn silent(&mut self, peer: PeerId, now: Now) {
        if let Some(partner) = self.partners.get_mut(&peer) {
            partner.under_way = false;
        }
        if !self.silent.contains_key(&peer) && self.silent.len() >= MAX_SILENT {
            self.silent.retain(|_, silence| silence.until > now.at);
            let soonest = self.silent.iter().min_by_key(|(_, silence)| silence.until).map(|(peer, _)| *peer);
            if let Some(soonest) = soonest.filter(|_| self.silent.len() >= MAX_SILENT) {
                self.silent.remove(&soonest);
            }
        }
        let times = self.silent.get(&peer).map_or(0, |silence| silence.times);
        let pause = SILENCE.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX)).min(SILENCE_MAX);
        let until = now.at.saturating_add(self.around(pause));
        self.silent.insert(peer, Silence { times: times.saturating_add(1), until });
    }

    /// The connection to `peer` ended before it answered: that says nothing of the peer. Whoever was full may have room when we
    /// come again.
    pub fn interrupted(&mut self, peer: &PeerId) {
        if let Some(partner) = self.partners.get_mut(peer) {
            partner.under_way = false;
        }
    }

    /// What to answer `asker`: our own record first, then those not in its filter that `may_tell` allows, the most trusted
    /// first, those of equal trust in random order. At most `want` in [`MAX_RESPONSE_BYTES`].
    pub fn answer(
        &mut self,
        asker: &PeerId,
        filter: &Filter,
        want: u8,
        own: Option<SignedRecord>,
        now: Now,
        may_tell: impl Fn(&SignedRecord) -> bool,
    ) -> Vec<Entry> {
        let tellable = |held: &&Held| {
            held.ttl > 0
                && held.record.peer() != *asker
                && held.record.age_ms(now.unix_ms) <= MAX_AGE_MS
                && !filter.contains(&held.record.peer())
                && may_tell(&held.record)
        };
        let mut held: Vec<&Held> = self.records.iter().filter(tellable).collect();
        held.shuffle(&mut self.rng);
        held.sort_by_key(|held| std::cmp::Reverse((held.trust, held.ttl)));
        let own = own.filter(|own| !filter.contains(&own.peer())).map(|record| Entry { ttl: MAX_TTL, record });
        let others = held.into_iter().map(|h| Entry { ttl: h.ttl.saturating_sub(1), record: h.record.clone() });
        let (mut entries, mut bytes) = (Vec::new(), 2_usize);
        for entry in own.into_iter().chain(others) {
            if entries.len() >= usize::from(want.min(MAX_RECORDS)) {
                break;
            }
            let after = bytes.saturating_add(ENTRY_OVERHEAD).saturating_add(entry.record.raw().len());
            if after <= MAX_RESPONSE_BYTES {
                bytes = after;
                entries.push(entry);
            }
        }
        entries
    }

    /// How much a peer is trusted, for the order of answers and for what is kept when there is no room.
    pub fn set_trust(&mut self, peer: &PeerId, trust: u32) {
        self.records.set_trust(peer, trust);
    }

    /// Forgets what a peer said of itself: it is banned, or wrong.
    pub fn forget(&mut self, peer: &PeerId) {
        self.records.remove(peer);
    }

    /// The record held of a peer.
    #[must_use]
    pub fn record(&self, peer: &PeerId) -> Option<&Held> {
        self.records.get(peer)
    }

    /// Every record held, by peer id.
    pub fn records(&self) -> impl Iterator<Item = &Held> {
        self.records.iter()
    }

    /// How many records are held; bounded by [`MAX_HELD`](crate::MAX_HELD).
    #[must_use]
    pub fn known(&self) -> usize {
        self.records.len()
    }

    /// Entries in each of the machine's maps, for watching their bounds: partners, silent peers, records.
    #[must_use]
    pub fn sizes(&self) -> [usize; 3] {
        [self.partners.len(), self.silent.len(), self.records.len()]
    }
}
