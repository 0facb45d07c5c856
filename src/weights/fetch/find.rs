//! Who may have weights of a model.

use std::{
    collections::{HashMap, hash_map::Entry},
    time::Duration,
};

use futures::{StreamExt as _, future, stream::FuturesUnordered};
use libp2p::PeerId;
use quelea_announce::model_key;
use quelea_weights::weights_key;
use quelea_wire::ModelId;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};

use super::{STALL_OF_REQUEST, picker::MAX_PEERS};
use crate::swarm::{
    Handle,
    dht::{Ask, DhtError},
};

/// Between two look-ups of providers, and between two questions of one peer what it has: those that pull themselves get more.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// Between two looks at who is connected. A node that has just started meets its peers one by one.
const LOOK: Duration = Duration::from_millis(500);

/// How long one look-up of providers is followed.
const ONE_LOOK: Duration = Duration::from_secs(2);

/// Between two look-ups of which both have to find nobody: a provider record that was published just before the first has
/// reached the peers that are asked by then.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Ends when it is sure that nobody gives the model: two look-ups of its providers went to their end, were answered, and
/// found none, and nobody has announced layers of it. Goes on while nobody answers, or somebody is found.
pub(super) async fn nowhere(handle: Handle, id: ModelId) {
    handle.listen_for(id).await;
    let mut in_vain = 0;
    while in_vain < 2 {
        let (weights, layers) =
            future::join(unprovided(&handle, weights_key(&id)), unprovided(&handle, model_key(&id))).await;
        let is_nowhere = weights && layers && handle.heard(id).await.issued_ms.is_empty();
        in_vain = if is_nowhere { in_vain + 1 } else { 0 };
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Whether peers that serve the DHT have answered, and know no provider of `key`.
async fn unprovided(handle: &Handle, key: Vec<u8>) -> bool {
    let (_, answer) = handle.dht(Ask::Providers { key }, STALL_OF_REQUEST).await;
    matches!(answer.await, Ok(Err(DhtError::NotFound)))
}

/// Names those who may have weights of a model, again and again, until nobody listens: whoever is connected, and providers.
pub(super) async fn run(handle: Handle, id: ModelId, found: mpsc::Sender<PeerId>) {
    future::join(connected(&handle, &found), providers(&handle, id, &found)).await;
}

async fn connected(handle: &Handle, found: &mpsc::Sender<PeerId>) {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut named: HashMap<PeerId, Instant> = HashMap::new();
    loop {
        look.tick().await;
        let now = Instant::now();
        named.retain(|_, at| now.saturating_duration_since(*at) < LOOK_AGAIN);
        let peers = handle.snapshot().await.map(|s| s.peers).unwrap_or_default();
        for peer in peers.iter().map(|view| view.peer).take(2 * MAX_PEERS) {
            let Entry::Vacant(new) = named.entry(peer) else { continue };
            new.insert(now);
            if found.send(peer).await.is_err() {
                return;
            }
        }
    }
}

async fn providers(handle: &Handle, id: ModelId, found: &mpsc::Sender<PeerId>) {
    let mut look = interval(LOOK_AGAIN);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let mut strangers = Vec::new();
        for key in [weights_key(&id), model_key(&id)] {
            let mut providers = handle.find_providers(key).await;
            let until = Instant::now() + ONE_LOOK;
            while let Ok(Some(peer)) = timeout_at(until, providers.recv()).await {
                if peer != handle.local() && !strangers.contains(&peer) && strangers.len() < MAX_PEERS {
                    strangers.push(peer);
                }
            }
        }
        // All at once: those that cannot be reached take their time to show it. Who is connected already is named anyhow.
        let connect = |peer| async move { handle.connect(peer, Vec::new()).await.is_ok().then_some(peer) };
        let mut dialling: FuturesUnordered<_> = strangers.into_iter().map(connect).collect();
        while let Some(reached) = dialling.next().await {
            if let Some(peer) = reached
                && found.send(peer).await.is_err()
            {
                return;
            }
        }
    }
}
