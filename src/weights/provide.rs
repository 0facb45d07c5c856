//! Provider records for the models of which something is here, so that those who pull find this node.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use quelea_weights::weights_key;
use quelea_wire::ModelId;
use tokio::sync::watch;

use super::shelf::Shelf;
use crate::{node::Life, swarm::Handle};

/// How often the shelf is looked over for models that came or went. Kademlia repeats the records by itself.
const LOOK: Duration = Duration::from_secs(5);

/// Rounds between two puttings of all records: one that reached nobody, before the routing table had filled, is put again.
const PUT_AGAIN: u32 = 12;

/// Provides until the node stops.
pub(crate) async fn run(handle: Handle, shelf: Arc<Shelf>, mut life: watch::Receiver<Life>) {
    let mut known: BTreeSet<ModelId> = BTreeSet::new();
    let mut look = tokio::time::interval(LOOK);
    let mut round = 0_u32;
    loop {
        tokio::select! {
            _ = look.tick() => {}
            stopped = life.wait_for(|life| *life != Life::Running) => {
                drop(stopped);
                return;
            }
        }
        let shelf = shelf.clone();
        let Ok(here) = tokio::task::spawn_blocking(move || shelf.ids()).await else { return };
        let here: BTreeSet<ModelId> = here.into_iter().collect();
        let again = round.is_multiple_of(PUT_AGAIN);
        round = round.wrapping_add(1);
        for id in here.iter().filter(|id| again || !known.contains(id)) {
            handle.provide(weights_key(id)).await;
        }
        for id in known.difference(&here) {
            handle.stop_providing(weights_key(id)).await;
        }
        known = here;
    }
}
