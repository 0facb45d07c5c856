//! Gossip: announcements, validated before they are passed on.

use std::{collections::BTreeSet, time::Instant};

use libp2p::gossipsub;
use quelea_announce::{SignedAnnouncement, topic_index};
use quelea_behaviours::{
    conduct::Deed,
    gossip::{self, Topic, Verdict},
};
use quelea_wire::rate::Scope;

use super::conduct;
use crate::swarm::driver::Driver;

pub(crate) fn publish(driver: &mut Driver, announcement: &SignedAnnouncement) {
    let raw = announcement.raw().to_vec();
    let offers = &announcement.announcement().offers;
    let topics: BTreeSet<Topic> = match offers.as_slice() {
        // A tombstone goes wherever the node may have spoken.
        [] => Topic::all().collect(),
        offers => offers.iter().map(|offer| Topic::Announce(topic_index(&offer.model))).collect(),
    };
    for topic in topics {
        let ident = topic.ident(&driver.config.network);
        match driver.swarm.behaviour_mut().gossipsub.publish(ident, raw.clone()) {
            // A node without neighbours on the topic is found by Kademlia and asked directly; gossip only saves time.
            Ok(_) | Err(gossipsub::PublishError::NoPeersSubscribedToTopic | gossipsub::PublishError::Duplicate) => {}
            Err(error) => tracing::debug!(%error, "announcement not gossiped"),
        }
    }
}

pub(crate) fn event(driver: &mut Driver, event: gossipsub::Event) {
    let gossipsub::Event::Message { propagation_source, message_id, message } = event else { return };
    if let Err(scope) = driver.state.guard.signature(propagation_source, Instant::now()) {
        driver.config.telemetry.metrics.rate_limited("signatures", 1);
        if scope == Scope::Peer {
            conduct::deed(driver, propagation_source, Deed::Flood);
        }
        let ignore = gossipsub::MessageAcceptance::Ignore;
        let gossipsub = &mut driver.swarm.behaviour_mut().gossipsub;
        gossipsub.report_message_validation_result(&message_id, &propagation_source, ignore);
        return;
    }
    let now = quelea_wire::time::unix_ms();
    let verdict = gossip::validate(&driver.config.network, &message, now);
    let acceptance = verdict.acceptance();
    match verdict {
        Verdict::Accept(announcement) => {
            driver.state.book.insert(*announcement, now);
            conduct::deed(driver, propagation_source, Deed::Valid);
        }
        other => {
            tracing::debug!(from = %propagation_source, verdict = ?other, "gossip dropped");
            if matches!(other, Verdict::Reject(_)) {
                conduct::deed(driver, propagation_source, Deed::Invalid);
            }
        }
    }
    driver.swarm.behaviour_mut().gossipsub.report_message_validation_result(
        &message_id,
        &propagation_source,
        acceptance,
    );
}
