//! Gossip: what is said and heard, checked before it is passed on.

use std::{collections::BTreeSet, time::Instant};

use libp2p::{
    PeerId,
    gossipsub::{self, MessageId, PublishError},
};
use quelea_announce::{Change, SignedAnnouncement};
use quelea_behaviours::{
    conduct::Deed,
    gossip::{Content, Reason, Topic, Verdict, id_of},
};
use quelea_broadcast::SignedLine;
use quelea_wire::{ModelId, rate::Scope, time::unix_ms};
use tokio::sync::oneshot;

use super::conduct;
use crate::{
    events::{EventKind, Offered},
    swarm::{
        driver::Driver,
        handle::BroadcastError,
        validation::{Checked, Job},
    },
};

/// Listens to the topics of every node.
pub(crate) fn listen(driver: &mut Driver) {
    for topic in Topic::all().filter(|topic| topic.is_for_all()) {
        subscribe(driver, topic);
    }
}

/// Listens to announcements of a model that this node serves or uses.
pub(crate) fn listen_for(driver: &mut Driver, model: &ModelId) {
    subscribe(driver, Topic::of_model(model));
}

fn subscribe(driver: &mut Driver, topic: Topic) {
    let ident = topic.ident(&driver.config.network);
    if let Err(error) = driver.swarm.behaviour_mut().gossipsub.subscribe(&ident) {
        tracing::warn!(?topic, %error, "cannot listen to a topic");
    }
}

pub(crate) fn publish(driver: &mut Driver, announcement: &SignedAnnouncement) {
    let offers = &announcement.announcement().offers;
    let topics: BTreeSet<Topic> = match offers.as_slice() {
        // A tombstone goes wherever the node may have spoken.
        [] => Topic::all().filter(|topic| matches!(topic, Topic::Announce(_))).collect(),
        offers => offers.iter().map(|offer| Topic::of_model(&offer.model)).collect(),
    };
    for offer in offers {
        listen_for(driver, &offer.model);
    }
    let content = Content::Announcement(Box::new(announcement.clone()));
    for topic in topics {
        driver.gate.published(topic, announcement.raw(), &content, unix_ms());
        let ident = topic.ident(&driver.config.network);
        match driver.swarm.behaviour_mut().gossipsub.publish(ident, announcement.raw().to_vec()) {
            // A node without neighbours on the topic is found by Kademlia and asked directly; gossip only saves time.
            Ok(_) | Err(PublishError::NoPeersSubscribedToTopic | PublishError::Duplicate) => {}
            Err(error) => tracing::debug!(%error, "announcement not gossiped"),
        }
    }
}

/// Signs a line of this node and says it to everybody. The answer is the message's id.
pub(crate) fn broadcast(driver: &mut Driver, text: &str, reply: oneshot::Sender<Result<String, BroadcastError>>) {
    let _ = reply.send(say(driver, text));
}

fn say(driver: &mut Driver, text: &str) -> Result<String, BroadcastError> {
    // Two lines of one moment are two lines.
    let sent_ms = quelea_announce::next_seq(driver.said_ms, unix_ms());
    let line = SignedLine::sign(&driver.config.keypair, &driver.config.network, sent_ms, text)?;
    let ident = Topic::Broadcast.ident(&driver.config.network);
    let published = driver.swarm.behaviour_mut().gossipsub.publish(ident, line.raw().to_vec());
    let id = published.map_err(|error| match error {
        PublishError::NoPeersSubscribedToTopic => BroadcastError::Nobody,
        PublishError::AllQueuesFull(_) => BroadcastError::Busy,
        error => BroadcastError::Refused(error.to_string()),
    })?;
    driver.said_ms = sent_ms;
    driver.gate.published(Topic::Broadcast, line.raw(), &Content::Line(Box::new(line.clone())), unix_ms());
    heard(driver, &line, true);
    Ok(id.to_string())
}

pub(crate) fn event(driver: &mut Driver, event: gossipsub::Event) {
    let gossipsub::Event::Message { propagation_source, message_id, message } = event else { return };
    let id = id_of(message.topic.as_str(), &message.data);
    let source = propagation_source;
    let topic = match driver.gate.screen(&message.topic, &id, message.data.len()) {
        Ok(topic) => topic,
        Err(verdict) => return report(driver, &message_id, &source, &verdict),
    };
    let queued = match driver.state.guard.signature(source, Instant::now()) {
        Ok(()) => {
            let job = Job { topic, id, message_id: message_id.clone(), source, data: message.data };
            let queued = driver.validation.queue(job);
            driver.config.telemetry.metrics.channel_full_if(queued.is_err(), "gossip_validation");
            queued
        }
        Err(scope) => {
            driver.config.telemetry.metrics.rate_limited("signatures", 1);
            if scope == Scope::Peer {
                conduct::deed(driver, source, Deed::Flood);
            }
            Err(Reason::Busy)
        }
    };
    if let Err(reason) = queued {
        let verdict = driver.gate.admit(topic, id, Err(reason), unix_ms(), Instant::now());
        report(driver, &message_id, &source, &verdict);
    }
}

/// A message was checked.
pub(crate) fn checked(driver: &mut Driver, checked: Checked) {
    let Checked { topic, id, message_id, source, result } = checked;
    let verdict = driver.gate.admit(topic, id, result, unix_ms(), Instant::now());
    report(driver, &message_id, &source, &verdict);
    match verdict {
        Verdict::Accept(Content::Announcement(announcement)) => learn(driver, *announcement),
        Verdict::Accept(Content::Line(line)) => heard(driver, &line, false),
        _ => {}
    }
}

fn report(driver: &mut Driver, message: &MessageId, source: &PeerId, verdict: &Verdict) {
    let gossipsub = &mut driver.swarm.behaviour_mut().gossipsub;
    gossipsub.report_message_validation_result(message, source, verdict.acceptance());
    match verdict {
        Verdict::Accept(_) => conduct::deed(driver, *source, Deed::Valid),
        Verdict::Reject(reason) => {
            tracing::debug!(from = %source, %reason, "gossip rejected");
            conduct::deed(driver, *source, Deed::Invalid);
        }
        Verdict::Ignore(reason) => tracing::debug!(from = %source, %reason, "gossip ignored"),
        _ => {}
    }
}

/// Takes an announcement into the book, by whatever way it came.
pub(crate) fn learn(driver: &mut Driver, announcement: SignedAnnouncement) {
    let now = unix_ms();
    driver.state.nat.signed_at(announcement.peer(), announcement.announcement().issued_ms, now);
    let peer = announcement.peer().to_string();
    let said = announcement.announcement();
    let offered =
        |offer: &quelea_announce::Offer| Offered { model: offer.model.to_string(), layers: offer.span.to_string() };
    let offers = said.offers.iter().map(offered).collect();
    let change = match driver.state.book.insert(announcement, now) {
        Change::Added => "added",
        Change::Updated => "updated",
        Change::Left => "left",
        _ => return,
    };
    driver.config.telemetry.events.emit(now, EventKind::Model { peer, change, offers });
}

/// Tells of a line: in the log, and to those who follow events.
fn heard(driver: &Driver, line: &SignedLine, own: bool) {
    let author = line.author();
    tracing::info!(%author, text = line.text(), own, "broadcast");
    let (text, sent_ms) = (line.text().to_owned(), line.sent_ms());
    driver
        .config
        .telemetry
        .events
        .emit(unix_ms(), EventKind::Message { author: author.to_string(), text, sent_ms, own });
}

/// Lets time pass, and mirrors gossip's figures into the gauges.
pub(crate) fn tick(driver: &mut Driver, now: Instant) {
    driver.gate.tick(now);
    let gossipsub = &mut driver.swarm.behaviour_mut().gossipsub;
    gossipsub.tick(now);
    let penalised = gossipsub.conduct().penalised();
    let neighbours = gossipsub.all_mesh_peers().count();
    driver.config.telemetry.stats.gossip.set(&driver.gate.figures(), neighbours, penalised);
}
