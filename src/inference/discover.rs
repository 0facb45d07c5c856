//! Finding who holds which layers, by Kademlia alone: provider records name peers, their announcements say the rest.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use libp2p::PeerId;
use quelea_announce::{LAYERS_PER_BUCKET, SignedAnnouncement, State, bucket_key, model_key};
use quelea_wire::{ModelId, SpanRange};

use super::chain::{self, Candidate, Hop, NoChain};
use crate::swarm::Handle;

/// For how long an incomplete chain is looked for before the request fails. Provider records of a worker that has just
/// started take about a second to arrive.
const PATIENCE: Duration = Duration::from_secs(6);

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
pub(crate) async fn find_chain(
    handle: &Handle,
    model: ModelId,
    layers: u16,
    local: Option<&SignedAnnouncement>,
) -> Result<Vec<Hop>, NoChain> {
    let deadline = Instant::now() + PATIENCE;
    let wanted = Wanted { handle, model, layers, local };
    let mut found = Found::default();
    loop {
        wanted.look(model_key(&model), &mut found, deadline).await;
        let missing = match wanted.select(&found).await {
            Err(missing) => missing,
            chain => return chain,
        };
        // The model's own key holds a bounded number of providers; the buckets of the missing layers may know more.
        let last = |span: &SpanRange| (span.end() - 1) / LAYERS_PER_BUCKET;
        let buckets: HashSet<u16> =
            missing.missing.iter().flat_map(|span| span.start() / LAYERS_PER_BUCKET..=last(span)).collect();
        for bucket in buckets {
            wanted.look(bucket_key(&model, bucket), &mut found, deadline).await;
        }
        let chain = wanted.select(&found).await;
        if chain.is_ok() || Instant::now() + BETWEEN_ROUNDS >= deadline {
            return chain;
        }
        tokio::time::sleep(BETWEEN_ROUNDS).await;
    }
}

/// What a chain is looked for.
struct Wanted<'a> {
    handle: &'a Handle,
    model: ModelId,
    layers: u16,
    local: Option<&'a SignedAnnouncement>,
}

impl Wanted<'_> {
    /// Asks for the providers of `key` and for the announcement of each that is new. Once what is known covers all
    /// layers, those that have not answered yet get [`GRACE`] and are then left behind: one peer that does not answer must
    /// not hold up everybody.
    async fn look(&self, key: Vec<u8>, found: &mut Found, deadline: Instant) {
        let mut providers = self.handle.find_providers(key).await;
        let mut asked = FuturesUnordered::new();
        let mut until = deadline;
        let mut more = true;
        while more || !asked.is_empty() {
            tokio::select! {
                provider = providers.recv(), if more && asked.len() < PARALLEL => match provider {
                    Some(peer) if found.announcements.contains_key(&peer) => {}
                    Some(peer) => {
                        found.unreachable.entry(peer).or_insert_with(|| "has not answered yet".into());
                        asked.push(async move { (peer, ask(self.handle, peer).await) });
                    }
                    None => more = false,
                },
                Some((peer, answer)) = asked.next() => {
                    found.add(peer, answer);
                    if until == deadline && self.select(found).await.is_ok() {
                        until = deadline.min(Instant::now() + GRACE);
                    }
                }
                () = tokio::time::sleep_until(until.into()) => return,
            }
        }
    }

    /// Chooses among everything known now.
    async fn select(&self, found: &Found) -> Result<Vec<Hop>, NoChain> {
        let snapshot = self.handle.snapshot().await;
        let rtts: HashMap<PeerId, Duration> =
            snapshot.iter().flat_map(|s| &s.peers).filter_map(|p| Some((p.peer, p.rtt?))).collect();
        let mut candidates = Vec::new();
        let mut left_out: Vec<(PeerId, String)> =
            found.unreachable.iter().map(|(peer, reason)| (*peer, reason.clone())).collect();
        let here = self.handle.local();
        let own = self.local.map(|signed| (here, signed));
        for (peer, signed) in found.announcements.iter().map(|(peer, signed)| (*peer, signed)).chain(own) {
            let announcement = signed.announcement();
            let rtt = if peer == here { Some(Duration::ZERO) } else { rtts.get(&peer).copied() };
            for offer in announcement.offers.iter().filter(|offer| offer.model == self.model) {
                if offer.layers_total != self.layers {
                    left_out.push((peer, format!("announces {} layers for this model", offer.layers_total)));
                } else if offer.state != State::Ready {
                    left_out.push((peer, format!("{:?}", offer.state).to_lowercase()));
                } else {
                    candidates.push(Candidate {
                        peer,
                        span: offer.span,
                        profile: offer.profile,
                        rtt,
                        addrs: announcement.addrs.clone(),
                    });
                }
            }
        }
        chain::choose(self.layers, &candidates, left_out)
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
    let wanted = Wanted { handle, model, layers: u16::MAX, local: None };
    wanted.look(model_key(&model), &mut found, Instant::now() + LOOK_AROUND).await;
    found
        .announcements
        .values()
        .flat_map(|signed| &signed.announcement().offers)
        .filter(|offer| offer.model == model)
        .map(|offer| offer.span)
        .collect()
}
