//! Everybody who holds certain layers, for those who choose by other things than speed.

use std::time::Instant;

use quelea_announce::{LAYERS_PER_BUCKET, bucket_key, model_key};

use super::{Ask, Found, Full, LOOK_AROUND, Wanted};
use crate::{inference::planner::Hop, swarm::Handle};

/// Peers that hold all layers of the query, have room, and are not left out for anything, each as a stage of exactly these.
/// This node is not among them.
pub(crate) async fn holders(handle: &Handle, wanted: Wanted<'_>) -> Vec<Hop> {
    let mut found = Found::default();
    let (query, deadline) = (wanted.query, Instant::now() + LOOK_AROUND);
    handle.listen_for(wanted.model).await;
    // Nothing has so many layers, so the look-around goes on until everybody has answered or the time is up: who is first must
    // have no better chance than others.
    let all = Wanted { layers: u16::MAX, ..wanted };
    for key in [model_key(&wanted.model), bucket_key(&wanted.model, query.span.start() / LAYERS_PER_BUCKET)] {
        all.look(handle, key, &mut found, deadline, Ask::Others).await;
    }
    let world = wanted.world(handle, &found, Full::LeftOut).await;
    let mut holders: Vec<Hop> = Vec::new();
    for candidate in world.candidates {
        let has_all = candidate.span.covers(&query.span)
            && candidate.has_ends(query, query.span.start(), query.span.end())
            && candidate.is_usable(query)
            && !candidate.shunned;
        if has_all && candidate.peer != handle.local() && !holders.iter().any(|hop| hop.peer == candidate.peer) {
            let price = candidate.price();
            holders.push(Hop {
                peer: candidate.peer,
                span: query.span,
                rtt: candidate.rtt,
                addrs: candidate.addrs,
                price,
            });
        }
    }
    holders
}
