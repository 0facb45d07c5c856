//! gossipsub's peer scores: what conduct costs, and at which score what happens.
//!
//! | part | what it counts | here |
//! |---|---|---|
//! | P1, P2 | staying in the mesh, being first | a little: at most [`TOPICS_CAP`] in all |
//! | P3 | delivering too little | off: a topic may be silent for minutes |
//! | P4 | invalid messages | the square of the count, hardly forgotten |
//! | P5 | control traffic beyond any need, see [`super::conduct`]; conduct elsewhere, see [`crate::conduct`] | as it is |
//! | P6 | peers on one address | beyond ten, the square of the excess |
//! | P7 | broken promises (IHAVE without the message), grafting against a backoff | beyond six, the square of the excess |

use std::time::Duration;

use libp2p::gossipsub::{PeerScoreParams, PeerScoreThresholds, TopicScoreParams};
use quelea_wire::NetworkId;

use super::topic::Topic;

/// What P1 and P2 of all topics bring together at most. Less than the way from zero to [`GRAYLIST`]: nobody earns a licence
/// to misbehave.
const TOPICS_CAP: f64 = 20.0;

/// Points of the application score for the best conduct elsewhere. Less than a quarter of what topics bring.
const STANDING_MOST: f64 = 5.0;

/// A score so little below 0 costs no points: four refused requests are no reason to leave the mesh.
const LENIENT: i32 = -100;

/// Points for a peer's score in [`crate::conduct`]: up to [`STANDING_MOST`] for a good one. Of a bad one, a hundredth: a peer on its
/// way to a ban, which comes at −50, is not told of messages from −10 on.
pub(super) fn standing(conduct: i32) -> f64 {
    if conduct <= LENIENT {
        f64::from(conduct) / 100.0
    } else if conduct < 0 {
        0.0
    } else {
        STANDING_MOST * f64::from(conduct.min(crate::conduct::MAX)) / f64::from(crate::conduct::MAX)
    }
}

/// Below zero a peer leaves the mesh at the next heartbeat (gossipsub's rule). Below this, it is neither told of messages
/// nor asked: a few invalid messages.
const GOSSIP: f64 = -10.0;

/// Below this our own messages are not sent to it either.
const PUBLISH: f64 = -50.0;

/// Below this nothing it sends is read: ten invalid messages, nine broken promises, or twice the control traffic that is
/// tolerated.
const GRAYLIST: f64 = -80.0;

/// Peer exchange through gossip is off; peers are exchanged by signed records.
const ACCEPT_PX: f64 = 100.0;

/// When the median of the mesh is below this, better peers are grafted. P1 of one topic reaches 10/17 after ten minutes: a
/// mesh that has stood for a minute or two does not look for others.
const OPPORTUNISTIC: f64 = 0.1;

pub(super) fn thresholds() -> PeerScoreThresholds {
    PeerScoreThresholds {
        gossip_threshold: GOSSIP,
        publish_threshold: PUBLISH,
        graylist_threshold: GRAYLIST,
        accept_px_threshold: ACCEPT_PX,
        opportunistic_graft_threshold: OPPORTUNISTIC,
    }
}

pub(super) fn params(network: &NetworkId) -> PeerScoreParams {
    PeerScoreParams {
        topics: Topic::all().map(|topic| (topic.ident(network).hash(), of_topic(topic))).collect(),
        topic_score_cap: TOPICS_CAP,
        // P5 is in points already.
        app_specific_weight: 1.0,
        // Homes, labs and tests put many peers behind one address: only more than ten cost anything.
        ip_colocation_factor_threshold: 10.0,
        ip_colocation_factor_weight: -5.0,
        ip_colocation_factor_whitelist: ["127.0.0.1", "::1"].iter().filter_map(|ip| ip.parse().ok()).collect(),
        // Six are forgiven: a peer under load is late now and then. The ninth costs 90. Each second a tenth is forgotten.
        behaviour_penalty_weight: -10.0,
        behaviour_penalty_threshold: 6.0,
        behaviour_penalty_decay: 0.9,
        decay_interval: Duration::from_secs(1),
        // A peer that comes back within the hour finds its score as it left it.
        retain_score: Duration::from_secs(3600),
        ..PeerScoreParams::default()
    }
}

fn of_topic(topic: Topic) -> TopicScoreParams {
    TopicScoreParams {
        topic_weight: topic.weight(),
        // One point a minute in the mesh, up to ten.
        time_in_mesh_weight: 1.0,
        time_in_mesh_quantum: Duration::from_secs(60),
        time_in_mesh_cap: 10.0,
        first_message_deliveries_weight: 0.5,
        first_message_deliveries_decay: 0.9,
        first_message_deliveries_cap: 20.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        // The square of the count at a 17th of the weight: one costs 1.2 and the place in the mesh, 3 cost 10.6, 9 cost 95.
        // Halved in a minute or so.
        invalid_message_deliveries_weight: -20.0,
        invalid_message_deliveries_decay: 0.99,
        ..TopicScoreParams::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scores_are_sound() {
        let params = params(&NetworkId::from_name("main"));
        assert!(params.validate().is_ok());
        assert!(thresholds().validate().is_ok());
        assert_eq!(params.topics.len(), 17);
    }

    #[test]
    fn conduct_elsewhere_counts_here() {
        use crate::conduct::{BAN_BELOW, MAX};
        assert_eq!([0, -99, MAX, i32::MAX, -2_000].map(standing), [0.0, 0.0, STANDING_MOST, STANDING_MOST, -20.0]);
        assert!(standing(BAN_BELOW) <= PUBLISH && standing(-500) < 0.0);
    }

    #[test]
    fn no_credit_pays_for_ten_invalid_messages() {
        let topic = of_topic(Topic::Broadcast);
        let cost = |n: f64| topic.topic_weight * topic.invalid_message_deliveries_weight * n * n;
        assert!(cost(1.0) < 0.0 && cost(3.0) < GOSSIP && cost(9.0) < GRAYLIST);
        assert!(TOPICS_CAP + STANDING_MOST + cost(10.0) < GRAYLIST);
    }
}
