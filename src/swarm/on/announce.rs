//! Announcements: ours to others, theirs to us.

use libp2p::PeerId;
use quelea_announce::{Event, FetchError, SignedAnnouncement};
use quelea_behaviours::conduct::Deed;
use quelea_wire::ModelId;
use tokio::sync::oneshot;

use crate::{
    swarm::{
        driver::Driver,
        handle::{AnnouncementError, FETCH_TIMEOUT, Heard},
    },
    telemetry::metrics::{Direction, RpcResult},
};

pub(crate) fn fetch(
    driver: &mut Driver,
    peer: PeerId,
    reply: oneshot::Sender<Result<Option<SignedAnnouncement>, AnnouncementError>>,
) {
    if !driver.state.fetches.has_room() {
        let _ = reply.send(Err(AnnouncementError::Busy));
        return;
    }
    let id = driver.swarm.behaviour_mut().announce.fetch(peer);
    driver.state.fetches.insert(id, reply, FETCH_TIMEOUT, Err(AnnouncementError::Timeout { peer }));
}

pub(crate) fn announce(driver: &mut Driver, announcement: SignedAnnouncement, gossip: bool) {
    let behaviour = driver.swarm.behaviour_mut();
    behaviour.announce.set_local(Some(announcement.clone()));
    if gossip {
        super::gossip::publish(driver, &announcement);
    }
}

pub(crate) fn announced(driver: &Driver, reply: oneshot::Sender<Vec<SignedAnnouncement>>) {
    let _ = reply.send(driver.state.book.live(quelea_wire::time::unix_ms()).cloned().collect());
}

pub(crate) fn heard(driver: &Driver, model: &ModelId, reply: oneshot::Sender<Heard>) {
    let now = quelea_wire::time::unix_ms();
    let book = &driver.state.book;
    let serves = |signed: &&SignedAnnouncement| signed.announcement().offers.iter().any(|offer| offer.model == *model);
    let issued_ms = book.live(now).filter(serves).map(|signed| (signed.peer(), signed.announcement().issued_ms));
    let _ = reply.send(Heard { issued_ms: issued_ms.collect(), left: book.left(now).collect() });
}

pub(crate) fn event(driver: &mut Driver, event: Event) {
    match event {
        Event::Fetched { id, peer, result } => {
            match &result {
                Ok(Some(_)) => super::conduct::deed(driver, peer, Deed::Valid),
                Err(FetchError::Invalid(error)) if !error.is_honest() => {
                    super::conduct::deed(driver, peer, Deed::Invalid);
                }
                Err(FetchError::WrongPeer(_)) => super::conduct::deed(driver, peer, Deed::Invalid),
                _ => {}
            }
            if let Ok(Some(announcement)) = &result {
                super::gossip::learn(driver, announcement.clone());
            }
            let outcome = match &result {
                Ok(_) => RpcResult::Ok,
                Err(FetchError::Timeout) => RpcResult::Timeout,
                Err(FetchError::Busy) => RpcResult::Refused,
                Err(_) => RpcResult::Error,
            };
            driver.config.telemetry.metrics.rpc("announce", Direction::Outbound, outcome);
            let result = result.map_err(|error| AnnouncementError::Fetch { peer, reason: error.to_string() });
            driver.state.fetches.answer(&id, result);
        }
        Event::Served { .. } => driver.config.telemetry.metrics.rpc("announce", Direction::Inbound, RpcResult::Ok),
        Event::Limited { peer, scope } => {
            super::conduct::limited(driver, peer, scope);
            driver.config.telemetry.metrics.rpc("announce", Direction::Inbound, RpcResult::Refused);
        }
        Event::Failed { peer, error } => {
            tracing::debug!(%peer, %error, "an announcement was not delivered");
            driver.config.telemetry.metrics.rpc("announce", Direction::Inbound, RpcResult::Error);
        }
        _ => {}
    }
}
