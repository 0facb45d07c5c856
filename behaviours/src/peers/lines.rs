//! The lines of a node that nobody needs: what counts as need, seen from the composite.
//!
//! Only the composite knows it all. A line is needed while
//!
//! * it is chosen, leads to an anchor or a bootstrap peer, or somebody has a [`Hold`](super::Hold) on its peer (`peers`),
//! * circuits or a relay's place for us hang on its peer (`peers`),
//! * shard streams, or calls of services, live on it (`shard`, `service`),
//! * a topic that we listen to would have too few neighbours without it (`gossipsub`),
//! * whoever calls wants its peer.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use libp2p::{PeerId, gossipsub::TopicHash};

use super::trim::{Line, overdue};
use crate::{Behaviour, gossip};

/// Subscribers that a topic must have on lines that stay, for its mesh to be made of them: gossipsub's D. With fewer, the members
/// of its mesh are needed.
const ENOUGH: usize = gossip::MESH;

/// Closes lines that nobody needs or has used for long; see [`trim`](super::trim). To be called about once a second.
/// `wanted` names peers whose lines stay for reasons that the caller knows.
pub fn trim(node: &mut Behaviour, wanted: impl Fn(&PeerId) -> bool) {
    let mut spare = node.peers.spare();
    spare.retain(|(peer, connection)| {
        let streams = node.shard.streams_on(*connection).saturating_add(node.service.streams_on(*connection));
        let needed = wanted(peer) || streams > 0;
        if needed {
            // It was used until now, when it is no longer.
            node.peers.uses().used(peer, Some(*connection));
        }
        !needed
    });
    let alone: BTreeSet<PeerId> = node.peers.only(&spare);
    let gossip = needed_by_gossip(&node.gossipsub, &alone);
    spare.retain(|(peer, _)| !gossip.contains(peer));
    let now = Instant::now();
    let lines = spare.into_iter().filter_map(|(peer, connection)| {
        let last = node.peers.uses().last(&peer, connection)?;
        Some(Line { key: (connection, peer), unused: now.saturating_duration_since(last) })
    });
    for (connection, peer) in overdue(lines.collect(), node.peers.idle()) {
        tracing::debug!(%peer, "a line that nobody uses is closed");
        node.peers.close(peer, connection);
    }
}

/// Of the peers that are connected on spare lines alone, the mesh members of topics that have too few other subscribers.
fn needed_by_gossip(gossip: &gossip::Behaviour, spare: &BTreeSet<PeerId>) -> BTreeSet<PeerId> {
    let mut staying: BTreeMap<&TopicHash, usize> = gossip.topics().map(|topic| (topic, 0)).collect();
    for (_, topics) in gossip.all_peers().filter(|(peer, _)| !spare.contains(peer)) {
        for topic in topics {
            if let Some(count) = staying.get_mut(topic) {
                *count = count.saturating_add(1);
            }
        }
    }
    let thin = staying.into_iter().filter(|(_, count)| *count < ENOUGH);
    let members = thin.flat_map(|(topic, _)| gossip.mesh_peers(topic));
    members.filter(|peer| spare.contains(peer)).copied().collect()
}
