//! Finding who holds which layers: provider records name peers, their announcements say the rest, and the planner chooses.

pub(crate) mod holders;

use std::{
    collections::{HashMap, HashSet},
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use libp2p::PeerId;
use quelea_announce::{Ends, LAYERS_PER_BUCKET, Offer, SignedAnnouncement, State, bucket_key, model_key};
use quelea_wire::{ModelId, Profile, SpanRange};

use super::{
    ask::{Unheard, ask_named},
    experience::{Experience, Said},
    planner::{self, Candidate, LeftOut, Links, Local, NoPlan, Planned, Query, Source, observed::Seen},
};
use crate::{
    ledger::Repute,
    swarm::{Handle, PeerView},
};

/// For how long an incomplete chain is looked for before the request fails. Provider records of a worker that has just
/// started take about a second to arrive.
const PATIENCE: Duration = Duration::from_secs(6);

/// For how long one look-up, and those it names, are waited for. Kademlia may wait much longer for a single peer that does
/// not answer; asking anew finds what has been published meanwhile.
const ONE_LOOK: Duration = Duration::from_secs(2);

/// Looking around gets at least this, however short the caller's steps are: it is several round trips.
const PATIENCE_MIN: Duration = Duration::from_secs(2);

/// How long the answers of others are waited for before those that have failed lately are asked, too, where their layers are
/// missing: a round trip or two. Somebody may be without a stage meanwhile.
const OTHERS_FIRST: Duration = Duration::from_millis(250);

/// Between two rounds of looking.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(400);

/// For how long `--layers auto` asks who holds what, at most; a node that starts first hears nobody.
const LOOK_AROUND: Duration = Duration::from_secs(3);

/// How long further peers are waited for once all layers are covered: they may offer a better chain.
const GRACE: Duration = Duration::from_millis(100);

/// Peers asked for their announcement at once.
const PARALLEL: usize = 16;

/// The link to a peer that nobody has measured: 100 Mbit/s.
const UNKNOWN_BYTES_PER_S: u64 = 12_500_000;

/// Bytes of weights that a machine of which nothing is known reads in a second: one row of an answer reads them all.
pub(super) const UNKNOWN_WEIGHTS_PER_S: u64 = 5_000_000_000;

/// A row of a prompt shares that reading with its chunk.
pub(super) const PROMPT_SHARE: u64 = 4;

/// Of a claimed queue, the part that is before a batch of ours: sessions wait for their own users most of the time, and
/// those that do not are computed together.
const QUEUE_SHARE: u64 = 4;

/// The most that a peer's risk can be, of a million.
const CERTAIN_PPM: u32 = 1_000_000;

/// For how long a figure counts as the peer's present one. A worker whose figures change says so within two seconds.
const FRESH: Duration = Duration::from_secs(3);

/// What a look-around has found so far.
#[derive(Default)]
pub(crate) struct Found {
    announcements: HashMap<PeerId, Said>,
    unreachable: HashMap<PeerId, String>,
    /// Said goodbye.
    left: HashSet<PeerId>,
}

impl Found {
    fn add(&mut self, peer: PeerId, answer: Result<Said, Unheard>) {
        match answer {
            Ok(said) => {
                self.unreachable.remove(&peer);
                self.announcements.insert(peer, said);
            }
            // What it said before stands, if it only does not answer now.
            Err(Unheard::Busy(_)) if self.announcements.contains_key(&peer) => {}
            Err(Unheard::Busy(reason) | Unheard::Gone(reason)) => {
                self.announcements.remove(&peer);
                self.unreachable.insert(peer, reason);
            }
        }
    }

    /// Whether a peer need not be asked (again).
    fn has_fresh(&self, peer: &PeerId) -> bool {
        self.announcements.get(peer).is_some_and(|said| said.at.elapsed() < FRESH)
    }
}

/// What a chain is looked for.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) model: ModelId,
    /// Layers of the model.
    pub(crate) layers: u16,
    /// The arithmetic that all stages must share with the coordinator.
    pub(crate) profile: Profile,
    /// How long the caller waits for one step; looking around takes no longer.
    pub(crate) patience: Duration,
    /// What this node announces itself, as it changes.
    pub(crate) own: Option<&'a RwLock<Option<SignedAnnouncement>>>,
    pub(crate) experience: &'a Experience,
    pub(crate) query: &'a Query,
    /// How fast this node runs the whole model.
    pub(crate) local: Option<Local>,
    /// Whether it is to be told why candidates are passed over.
    pub(crate) why: bool,
}

/// Everything a plan is made of, at one moment.
struct World {
    candidates: Vec<Candidate>,
    links: Links,
    left_out: Vec<LeftOut>,
}

/// What becomes of peers that have no room for the session, by their present figures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Full {
    LeftOut,
    /// For want of others.
    Asked,
}

/// Whether peers that have failed lately are asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// Not yet.
    Others,
    /// Nobody else has the layers.
    All,
}

/// The best plan for the query's layers that can be found within [`PATIENCE`], this node's own announcement included.
/// What was found stays in `found`, for a second plan at once.
///
/// # Errors
/// [`NoPlan`] when the layers are not covered.
pub(crate) async fn find(handle: &Handle, wanted: Wanted<'_>, found: &mut Found) -> Result<Planned, NoPlan> {
    let deadline = Instant::now() + PATIENCE.min(wanted.patience.max(PATIENCE_MIN));
    let model = wanted.model;
    // Nobody need be asked for what is here.
    if !wanted.why
        && let Ok(planned) = wanted.plan_with(handle, found, Full::LeftOut).await
        && let [only] = planned.chosen.hops.as_slice()
        && only.hop.peer == handle.local()
    {
        return Ok(planned);
    }
    // Who comes and goes meanwhile, and later, is heard of without asking.
    handle.listen_for(model).await;
    let one_look = || deadline.min(Instant::now() + ONE_LOOK);
    let mut who = Ask::Others;
    loop {
        wanted.look(handle, model_key(&model), found, one_look(), who).await;
        let missing = match wanted.plan(handle, found).await {
            Err(missing) => missing,
            planned => return planned,
        };
        // The model's own key holds a bounded number of providers; the buckets of the missing layers may know more.
        let last = |span: &SpanRange| (span.end() - 1) / LAYERS_PER_BUCKET;
        let buckets: HashSet<u16> =
            missing.missing.iter().flat_map(|span| span.start() / LAYERS_PER_BUCKET..=last(span)).collect();
        for bucket in buckets {
            wanted.look(handle, bucket_key(&model, bucket), found, one_look(), who).await;
        }
        who = Ask::All;
        let planned = wanted.plan(handle, found).await;
        if planned.is_ok() || Instant::now() + BETWEEN_ROUNDS >= deadline {
            return planned;
        }
        tokio::time::sleep(BETWEEN_ROUNDS).await;
    }
}

impl Wanted<'_> {
    /// Asks for the providers of `key` and for the announcement of each that is new. Once what is known covers all
    /// layers, those that have not answered yet get [`GRACE`] and are then left behind: one peer that does not answer must
    /// not hold up everybody.
    async fn look(&self, handle: &Handle, key: Vec<u8>, found: &mut Found, deadline: Instant, mut who: Ask) {
        let heard = handle.heard(self.model).await;
        found.left = heard.left.into_iter().collect();
        let spoke: HashMap<PeerId, u64> = heard.issued_ms.into_iter().collect();
        let experience = self.experience;
        let mut providers = handle.find_providers(key).await;
        let (mut asked, mut resting) = (FuturesUnordered::new(), Vec::new());
        let (mut until, mut others_first) = (deadline, Instant::now() + OTHERS_FIRST);
        let mut more = true;
        loop {
            if who == Ask::Others && (Instant::now() >= others_first || (!more && asked.is_empty())) {
                match self.is_covered(handle, found, who).await {
                    // Looked at again when somebody else has answered.
                    true => others_first = deadline,
                    false => who = Ask::All,
                }
            }
            while who == Ask::All
                && asked.len() < PARALLEL
                && let Some(peer) = resting.pop()
            {
                asked.push(ask_named(handle, experience, peer));
            }
            if !more && asked.is_empty() {
                return;
            }
            tokio::select! {
                provider = providers.recv(), if more && asked.len() < PARALLEL => match provider {
                    Some(peer) if found.has_fresh(&peer) => {}
                    Some(peer) if found.left.contains(&peer) || self.query.exclude.contains(&peer) => {}
                    Some(peer) => {
                        let spoke = spoke.get(&peer).copied();
                        let shunned = experience.shunned([(peer, spoke)]).remove(&peer).filter(|_| who == Ask::Others);
                        if let Some(why) = shunned {
                            found.unreachable.insert(peer, format!("is not asked for a while: {why}"));
                            resting.push(peer);
                            continue;
                        }
                        if !found.announcements.contains_key(&peer) {
                            found.unreachable.entry(peer).or_insert_with(|| "has not answered yet".into());
                        }
                        asked.push(ask_named(handle, experience, peer));
                    }
                    None => more = false,
                },
                Some((peer, answer)) = asked.next() => {
                    found.add(peer, answer);
                    if until == deadline && self.is_covered(handle, found, who).await {
                        until = deadline.min(Instant::now() + GRACE);
                    }
                }
                () = tokio::time::sleep_until(others_first.into()), if who == Ask::Others => {}
                () = tokio::time::sleep_until(until.into()) => return,
            }
        }
    }

    /// Whether peers that have answered hold all layers between them; with `who`, those that have failed lately count, too.
    async fn is_covered(&self, handle: &Handle, found: &Found, who: Ask) -> bool {
        let world = self.world(handle, found, Full::LeftOut).await;
        let usable: Vec<Candidate> = world
            .candidates
            .into_iter()
            .filter(|c| (who == Ask::All || !c.shunned) && c.is_usable(self.query))
            .collect();
        let spans: Vec<SpanRange> = usable.iter().map(|c| c.span).collect();
        let has_ends = planner::lacking(self.query, &usable) == Ends::default();
        has_ends && planner::uncovered(self.query.span, &spans).is_empty()
    }

    /// Chooses among everything known now.
    pub(crate) async fn plan(&self, handle: &Handle, found: &Found) -> Result<Planned, NoPlan> {
        match self.plan_with(handle, found, Full::LeftOut).await {
            // A stage that is full may let somebody's idle session give way to ours: it decides, where there is no other. Who
            // has refused this very request is not asked again.
            Err(missing) if missing.full && !self.why => {
                self.plan_with(handle, found, Full::Asked).await.map_err(|_| missing)
            }
            planned => planned,
        }
    }

    async fn plan_with(&self, handle: &Handle, found: &Found, full: Full) -> Result<Planned, NoPlan> {
        let world = self.world(handle, found, full).await;
        planner::plan(self.query, &world.candidates, &world.links, self.local, world.left_out, self.why)
    }

    /// Everything known now.
    async fn world(&self, handle: &Handle, found: &Found, full: Full) -> World {
        let snapshot = handle.snapshot().await;
        let connected: HashMap<PeerId, &PeerView> =
            snapshot.iter().flat_map(|s| &s.peers).map(|p| (p.peer, p)).collect();
        let here = handle.local();
        let mut links = Links::new(here);
        for (peer, view) in &connected {
            if let Some(rtt) = view.rtt {
                links.set_rtt(*peer, rtt);
            }
        }
        let mut left_out: Vec<LeftOut> =
            found.unreachable.iter().map(|(peer, reason)| LeftOut::new(*peer, None, reason.clone())).collect();
        left_out.extend(
            found
                .left
                .iter()
                .filter(|peer| found.announcements.contains_key(peer))
                .map(|peer| LeftOut::new(*peer, None, "has said goodbye")),
        );
        // Read anew each time: a node may be asked while it makes its first one.
        let own = self.own.and_then(|own| own.read().unwrap_or_else(PoisonError::into_inner).clone());
        let own = own.as_ref().map(|signed| (here, signed.announcement(), true));
        let known = found.announcements.iter().filter(|(peer, _)| **peer != here && !found.left.contains(peer));
        let known = known.map(|(peer, said)| (*peer, said.announcement.announcement(), said.at.elapsed() < FRESH));
        let all: Vec<_> = known.chain(own).collect();
        links.attest(&all.iter().map(|(_, announcement, _)| *announcement).collect::<Vec<_>>());
        let signed_at = all.iter().map(|(peer, announcement, _)| (*peer, Some(announcement.issued_ms)));
        let shunned = self.experience.shunned(signed_at);
        let observed = self.experience.observed();
        for (from, to, one_way_ns) in observed.hops() {
            links.set_measured(from, to, one_way_ns);
        }
        let mut candidates = Vec::new();
        for (peer, announcement, is_fresh) in all {
            let refused = self.experience.most_pages(&peer);
            let view = connected.get(&peer);
            let rtt = if peer == here { Some(Duration::ZERO) } else { view.and_then(|p| p.rtt) };
            // What we reached it at, others may reach it at: of the next hop's addresses only a few travel.
            let mut addrs = announcement.addrs.clone();
            addrs.sort_by_key(|addr| !view.is_some_and(|p| p.addrs.contains(addr)));
            for offer in announcement.offers.iter().filter(|offer| offer.model == self.model) {
                if let Some(why) = self.unfit(offer) {
                    left_out.push(LeftOut::new(peer, Some(offer.span), why));
                    continue;
                }
                let repute = self.experience.repute(&peer).filter(|_| peer != here);
                if let Some(repute) = repute {
                    left_out.push(LeftOut::new(peer, Some(offer.span), repute.to_string()));
                }
                if repute == Some(Repute::Convicted) {
                    continue;
                }
                if let Some(why) = self.experience.suspected(&peer) {
                    left_out.push(LeftOut::new(peer, Some(offer.span), format!("is suspect: {why}")));
                    continue;
                }
                let badly = repute.map_or(0, Repute::risk_ppm);
                if let Some(why) = shunned.get(&peer) {
                    left_out.push(LeftOut::new(peer, Some(offer.span), format!("not before others: {why}")));
                }
                let seen = observed.speed(peer, self.model);
                let (decode_ns, prefill_ns, source) = speed(offer, seen, self.bytes_per_layer());
                let queue_ns = u64::from(offer.queue).saturating_mul(u64::from(offer.span.count())) / QUEUE_SHARE;
                candidates.push(Candidate {
                    peer,
                    span: offer.span,
                    addrs: addrs.clone(),
                    rtt,
                    decode_ns,
                    prefill_ns,
                    source,
                    queue_ns: seen.queue_ns.unwrap_or(queue_ns.saturating_mul(decode_ns)),
                    bytes_per_s: observed.bytes_per_s(peer).unwrap_or(UNKNOWN_BYTES_PER_S),
                    risk_ppm: if peer == here {
                        0
                    } else {
                        observed.risk_ppm(peer).saturating_add(badly).min(CERTAIN_PPM)
                    },
                    // Nobody pays himself.
                    price_decode: if peer == here { 0 } else { offer.price_decode },
                    price_prefill: if peer == here { 0 } else { offer.price_prefill },
                    kv_pages_free: refused.map_or(offer.kv_pages_free, |most| most.min(offer.kv_pages_free)),
                    kv_is_old: full == Full::Asked || (refused.is_none() && !is_fresh),
                    shunned: shunned.contains_key(&peer),
                    ends: offer.ends,
                });
            }
        }
        World { candidates, links, left_out }
    }

    /// Why an offer is of no use to this request.
    fn unfit(&self, offer: &Offer) -> Option<String> {
        // Who computes exactly rounds between layers for those who ask.
        let rounds = self.profile == Profile::ExactBf16 && offer.profile == Profile::Exact;
        if offer.layers_total != self.layers {
            Some(format!("announces {} layers for this model", offer.layers_total))
        } else if offer.state != State::Ready {
            Some(format!("{:?}", offer.state).to_lowercase())
        } else if offer.profile != self.profile && !rounds {
            Some(format!("computes with {}, not {}", offer.profile, self.profile))
        } else {
            None
        }
    }

    /// The mean size of a layer; 0 when sizes are not known.
    fn bytes_per_layer(&self) -> u64 {
        let sizes = &self.query.layer_bytes;
        sizes.iter().sum::<u64>() / u64::try_from(sizes.len()).unwrap_or(1).max(1)
    }
}

/// Nanoseconds for one row through one layer, of an answer and of a prompt: as measured, else as claimed, else as weights of
/// that size are read by a machine of which nothing is known.
fn speed(offer: &Offer, seen: Seen, bytes_per_layer: u64) -> (u64, u64, Source) {
    let assumed = planner::nanos_for(bytes_per_layer, UNKNOWN_WEIGHTS_PER_S).max(1000);
    let (decode_ns, source) = match (seen.decode_ns, (offer.decode_rows_per_s > 0).then_some(offer.decode_rows_per_s)) {
        (Some(measured), _) => (measured, Source::Measured),
        (None, Some(rows)) => (1_000_000_000 / u64::from(rows), Source::Claimed),
        (None, None) => (assumed, Source::Assumed),
    };
    let claimed_prefill = (offer.prefill_rows_per_s > 0).then(|| 1_000_000_000 / u64::from(offer.prefill_rows_per_s));
    let prefill_ns = seen.prefill_ns.or(claimed_prefill).unwrap_or(decode_ns / PROMPT_SHARE);
    (decode_ns.max(1), prefill_ns.max(1), source)
}

/// Asks the peers that this node is connected to, so many at most, what they serve: then it is known which models there are.
pub(crate) async fn ask_around(handle: &Handle, most: usize, patience: Duration) {
    let snapshot = handle.snapshot().await;
    let peers = snapshot.map(|snapshot| snapshot.peers).unwrap_or_default();
    let mut rest = peers.into_iter().map(|view| view.peer).take(most).collect::<Vec<PeerId>>().into_iter();
    let all = async {
        let mut asked = FuturesUnordered::new();
        asked.extend(rest.by_ref().take(PARALLEL).map(|peer| handle.fetch_announcement(peer)));
        // Who serves nothing, or does not answer, is not in the book.
        while asked.next().await.is_some() {
            asked.extend(rest.next().map(|peer| handle.fetch_announcement(peer)));
        }
    };
    let _ = tokio::time::timeout(patience, all).await;
}

/// What others announce of `model`, as far as they answer in time: what placement looks at.
pub(crate) async fn announced(handle: &Handle, experience: &Experience, model: ModelId) -> Vec<SignedAnnouncement> {
    let mut found = Found::default();
    // Nothing has so many layers, so the look-around goes on until everybody has answered or the time is up.
    let Ok(any) = SpanRange::new(0, 1) else { return Vec::new() };
    let query = Query::new(handle.local(), any, 1);
    let wanted = Wanted {
        model,
        layers: u16::MAX,
        profile: Profile::Other(0),
        patience: LOOK_AROUND,
        own: None,
        experience,
        query: &query,
        local: None,
        why: false,
    };
    handle.listen_for(model).await;
    wanted.look(handle, model_key(&model), &mut found, Instant::now() + LOOK_AROUND, Ask::Others).await;
    let said = found.announcements.into_values().map(|said| said.announcement);
    said.filter(|signed| !found.left.contains(&signed.peer())).collect()
}

/// The spans of `model` that others serve: what `--layers auto` looks at.
pub(crate) async fn spans_served(handle: &Handle, experience: &Experience, model: ModelId) -> Vec<SpanRange> {
    let all = announced(handle, experience, model).await;
    let offers = all.iter().flat_map(|signed| &signed.announcement().offers);
    offers.filter(|offer| offer.model == model).map(|offer| offer.span).collect()
}
