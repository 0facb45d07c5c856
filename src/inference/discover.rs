//! Finding who holds which layers, by Kademlia alone: provider records name peers, their announcements say the rest.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use libp2p::PeerId;
use quelea_announce::{LAYERS_PER_BUCKET, SignedAnnouncement, State, bucket_key, model_key};
use quelea_wire::{ModelId, Profile, SpanRange};

use super::chain::{self, Candidate, Hop, NoChain};
use crate::swarm::{Handle, PeerView};

/// For how long an incomplete chain is looked for before the request fails. Provider records of a worker that has just
/// started take about a second to arrive.
const PATIENCE: Duration = Duration::from_secs(6);

/// For how long one look-up, and those it names, are waited for. Kademlia may wait much longer for a single peer that does
/// not answer; asking anew finds what has been published meanwhile.
const ONE_LOOK: Duration = Duration::from_secs(2);

/// Looking around gets at least this, however short the caller's steps are: it is several round trips.
const PATIENCE_MIN: Duration = Duration::from_secs(2);

/// Between two rounds of looking.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(400);

/// For how long `--layers auto` asks who holds what, at most; a node that starts first hears nobody.
const LOOK_AROUND: Duration = Duration::from_secs(3);

/// How long further peers are waited for once all layers are covered: they may offer a shorter chain.
const GRACE: Duration = Duration::from_millis(100);

/// Peers asked for their announcement at once.
const PARALLEL: usize = 16;

/// What a look-around has found so far.
#[derive(Default)]
struct Found {
    announcements: HashMap<PeerId, SignedAnnouncement>,
    unreachable: HashMap<PeerId, String>,
}

impl Found {
    fn add(&mut self, peer: PeerId, answer: Result<SignedAnnouncement, String>) {
        match answer {
            Ok(announcement) => {
                self.unreachable.remove(&peer);
                self.announcements.insert(peer, announcement);
            }
            Err(reason) => drop(self.unreachable.insert(peer, reason)),
        }
    }
}

/// The best chain for all `layers` of `model` that can be found within [`PATIENCE`], this node's own announcement
/// included.
///
/// # Errors
/// [`NoChain`] when the layers are not covered.
pub(crate) async fn find_chain(handle: &Handle, wanted: Wanted<'_>) -> Result<Vec<Hop>, NoChain> {
    let deadline = Instant::now() + PATIENCE.min(wanted.patience.max(PATIENCE_MIN));
    let model = wanted.model;
    let mut found = Found::default();
    // Nobody need be asked for what is here.
    if let Ok(hops) = wanted.select(handle, &found).await
        && hops.len() == 1
    {
        return Ok(hops);
    }
    // Who comes and goes meanwhile, and later, is heard of without asking.
    handle.listen_for(model).await;
    let one_look = || deadline.min(Instant::now() + ONE_LOOK);
    loop {
        wanted.look(handle, model_key(&model), &mut found, one_look()).await;
        let missing = match wanted.select(handle, &found).await {
            Err(missing) => missing,
            chain => return chain,
        };
        // The model's own key holds a bounded number of providers; the buckets of the missing layers may know more.
        let last = |span: &SpanRange| (span.end() - 1) / LAYERS_PER_BUCKET;
        let buckets: HashSet<u16> =
            missing.missing.iter().flat_map(|span| span.start() / LAYERS_PER_BUCKET..=last(span)).collect();
        for bucket in buckets {
            wanted.look(handle, bucket_key(&model, bucket), &mut found, one_look()).await;
        }
        let chain = wanted.select(handle, &found).await;
        if chain.is_ok() || Instant::now() + BETWEEN_ROUNDS >= deadline {
            return chain;
        }
        tokio::time::sleep(BETWEEN_ROUNDS).await;
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
    /// What this node announces itself.
    pub(crate) local: Option<&'a SignedAnnouncement>,
    /// Layers to look for, when not all of them.
    pub(crate) within: Option<SpanRange>,
    /// Peers that are not asked, and not chosen.
    pub(crate) without: &'a [PeerId],
}

impl Wanted<'_> {
    /// Asks for the providers of `key` and for the announcement of each that is new. Once what is known covers all
    /// layers, those that have not answered yet get [`GRACE`] and are then left behind: one peer that does not answer must
    /// not hold up everybody.
    async fn look(&self, handle: &Handle, key: Vec<u8>, found: &mut Found, deadline: Instant) {
        let mut providers = handle.find_providers(key).await;
        let mut asked = FuturesUnordered::new();
        let mut until = deadline;
        let mut more = true;
        while more || !asked.is_empty() {
            tokio::select! {
                provider = providers.recv(), if more && asked.len() < PARALLEL => match provider {
                    Some(peer) if found.announcements.contains_key(&peer) || self.without.contains(&peer) => {}
                    Some(peer) => {
                        found.unreachable.entry(peer).or_insert_with(|| "has not answered yet".into());
                        asked.push(async move { (peer, ask(handle, peer).await) });
                    }
                    None => more = false,
                },
                Some((peer, answer)) = asked.next() => {
                    found.add(peer, answer);
                    if until == deadline && self.select(handle, found).await.is_ok() {
                        until = deadline.min(Instant::now() + GRACE);
                    }
                }
                () = tokio::time::sleep_until(until.into()) => return,
            }
        }
    }

    /// Chooses among everything known now.
    async fn select(&self, handle: &Handle, found: &Found) -> Result<Vec<Hop>, NoChain> {
        let snapshot = handle.snapshot().await;
        let connected: HashMap<PeerId, &PeerView> =
            snapshot.iter().flat_map(|s| &s.peers).map(|p| (p.peer, p)).collect();
        let mut candidates = Vec::new();
        let mut left_out: Vec<(PeerId, String)> =
            found.unreachable.iter().map(|(peer, reason)| (*peer, reason.clone())).collect();
        let here = handle.local();
        let own = self.local.map(|signed| (here, signed));
        let all = found.announcements.iter().map(|(peer, signed)| (*peer, signed)).chain(own);
        for (peer, signed) in all.filter(|(peer, _)| !self.without.contains(peer)) {
            let announcement = signed.announcement();
            let view = connected.get(&peer);
            let rtt = if peer == here { Some(Duration::ZERO) } else { view.and_then(|p| p.rtt) };
            // What we reached it at, others may reach it at: of the next hop's addresses only a few travel.
            let mut addrs = announcement.addrs.clone();
            addrs.sort_by_key(|addr| !view.is_some_and(|p| p.addrs.contains(addr)));
            for offer in announcement.offers.iter().filter(|offer| offer.model == self.model) {
                if offer.layers_total != self.layers {
                    left_out.push((peer, format!("announces {} layers for this model", offer.layers_total)));
                } else if offer.state != State::Ready {
                    left_out.push((peer, format!("{:?}", offer.state).to_lowercase()));
                } else if offer.profile != self.profile {
                    left_out.push((peer, format!("computes with {}, not {}", offer.profile, self.profile)));
                } else {
                    candidates.push(Candidate { peer, span: offer.span, rtt, addrs: addrs.clone() });
                }
            }
        }
        match self.within {
            None => chain::choose(self.layers, &candidates, left_out),
            Some(span) => chain::choose_within(span, &candidates, left_out),
        }
    }
}

async fn ask(handle: &Handle, peer: PeerId) -> Result<SignedAnnouncement, String> {
    handle.connect(peer, Vec::new()).await.map_err(|e| e.to_string())?;
    match handle.fetch_announcement(peer).await {
        Ok(Some(announcement)) => Ok(announcement),
        Ok(None) => Err("it serves nothing at present".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// The spans of `model` that others serve, as far as they answer in time: what `--layers auto` looks at.
pub(crate) async fn spans_served(handle: &Handle, model: ModelId) -> Vec<SpanRange> {
    let mut found = Found::default();
    // Nothing has so many layers, so the look-around goes on until everybody has answered or the time is up.
    let (layers, profile, patience) = (u16::MAX, Profile::Other(0), LOOK_AROUND);
    let wanted = Wanted { model, layers, profile, patience, local: None, within: None, without: &[] };
    wanted.look(handle, model_key(&model), &mut found, Instant::now() + LOOK_AROUND).await;
    found
        .announcements
        .values()
        .flat_map(|signed| &signed.announcement().offers)
        .filter(|offer| offer.model == model)
        .map(|offer| offer.span)
        .collect()
}
