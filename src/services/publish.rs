//! Provider records for the services that are offered, so that those who look find this node.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use quelea_service::{Name, service_key};
use tokio::sync::watch;

use super::Services;
use crate::node::Life;

/// Rounds between two puttings of all records: one that reached nobody, before the routing table had filled, is put again.
/// Kademlia repeats them by itself, more rarely.
const PUT_AGAIN: u32 = 12;

/// How often what is offered is looked over, unless it changes.
const LOOK: Duration = Duration::from_secs(5);

/// Publishes until the node stops.
pub(crate) async fn run(services: Arc<Services>, mut life: watch::Receiver<Life>) {
    let mut known: BTreeSet<Name> = BTreeSet::new();
    let mut look = tokio::time::interval(LOOK);
    let mut round = 0_u32;
    loop {
        let stopped = tokio::select! {
            _ = look.tick() => false,
            () = services.registry.changed() => false,
            _ = life.wait_for(|life| *life != Life::Running) => true,
        };
        let offered = services.registry.all().into_iter().filter(|offered| offered.enabled() && !stopped);
        let offered: BTreeSet<Name> = offered.map(|offered| offered.name.clone()).collect();
        let again = round.is_multiple_of(PUT_AGAIN);
        round = round.wrapping_add(1);
        for name in offered.iter().filter(|name| again || !known.contains(name)) {
            services.handle.provide(service_key(name)).await;
        }
        for name in known.difference(&offered) {
            services.handle.stop_providing(service_key(name)).await;
        }
        if stopped {
            return;
        }
        known = offered;
    }
}
