//! Finding who holds which layers, by Kademlia alone: provider records name peers, their announcements say the rest.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use libp2p::PeerId;
use quelea_announce::{LAYERS_PER_BUCKET, SignedAnnouncement, State, bucket_key, model_key};
use quelea_wire::ModelId;

use super::chain::{self, Candidate, Hop, NoChain};
use crate::swarm::Handle;

/// For how long an incomplete chain is looked for before the request fails. Provider records of a worker that has just
/// started take about a second to arrive.
const PATIENCE: Duration = Duration::from_secs(6);

/// Between two rounds of looking.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(400);

/// Peers asked for their announcement at once.
const PARALLEL: usize = 16;

/// What a look-around has found so far.
#[derive(Default)]
struct Found {
    announcements: HashMap<PeerId, SignedAnnouncement>,
    unreachable: HashMap<PeerId, String>,
}

/// The best chain for all `layers` of `model` that can be found within [`PATIENCE`].
///
/// `except` are peers that must not be used, with the reason that is shown when no chain is left without them.
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
    let mut found = Found::default();
    loop {
        look(handle, model_key(&model), &mut found).await;
        let chain = select(handle, model, layers, local, &found).await;
        let Err(missing) = chain else { return chain };
        // The model's own key holds a bounded number of providers; the buckets of the missing layers may know more.
        let buckets: HashSet<u16> = missing
            .missing
            .iter()
            .flat_map(|span| span.start() / LAYERS_PER_BUCKET..=(span.end() - 1) / LAYERS_PER_BUCKET)
            .collect();
        for bucket in buckets {
            look(handle, bucket_key(&model, bucket), &mut found).await;
        }
        let chain = select(handle, model, layers, local, &found).await;
        if chain.is_ok() || Instant::now() + BETWEEN_ROUNDS >= deadline {
            return chain;
        }
        tokio::time::sleep(BETWEEN_ROUNDS).await;
    }
}

/// Asks for the providers of `key` and for the announcement of each that is new.
async fn look(handle: &Handle, key: Vec<u8>, found: &mut Found) {
    let providers = handle.find_providers(key).await;
    let new = providers.into_iter().filter(|peer| !found.announcements.contains_key(peer));
    let answers = stream::iter(new).map(|peer| async move { (peer, ask(handle, peer).await) });
    for (peer, answer) in answers.buffer_unordered(PARALLEL).collect::<Vec<_>>().await {
        match answer {
            Ok(announcement) => {
                found.unreachable.remove(&peer);
                found.announcements.insert(peer, announcement);
            }
            Err(reason) => {
                found.unreachable.insert(peer, reason);
            }
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

/// Chooses among everything known now.
async fn select(
    handle: &Handle,
    model: ModelId,
    layers: u16,
    local: Option<&SignedAnnouncement>,
    found: &Found,
) -> Result<Vec<Hop>, NoChain> {
    let snapshot = handle.snapshot().await;
    let rtts: HashMap<PeerId, Duration> =
        snapshot.iter().flat_map(|s| &s.peers).filter_map(|p| Some((p.peer, p.rtt?))).collect();
    let mut candidates = Vec::new();
    let mut left_out: Vec<(PeerId, String)> =
        found.unreachable.iter().map(|(peer, reason)| (*peer, reason.clone())).collect();
    let own = local.map(|signed| (handle.local(), signed));
    for (peer, signed) in found.announcements.iter().map(|(peer, signed)| (*peer, signed)).chain(own) {
        let announcement = signed.announcement();
        let rtt = if peer == handle.local() { Some(Duration::ZERO) } else { rtts.get(&peer).copied() };
        for offer in announcement.offers.iter().filter(|offer| offer.model == model) {
            if offer.layers_total != layers {
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
    chain::choose(layers, &candidates, left_out)
}

/// The peers that serve any layer of `model`, with what they hold: what `--layers auto` looks at.
pub(crate) async fn spans_served(handle: &Handle, model: ModelId) -> Vec<quelea_wire::SpanRange> {
    let mut found = Found::default();
    look(handle, model_key(&model), &mut found).await;
    found
        .announcements
        .values()
        .flat_map(|signed| &signed.announcement().offers)
        .filter(|offer| offer.model == model)
        .map(|offer| offer.span)
        .collect()
}
