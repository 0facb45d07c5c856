//! Peers known: what is written down of them, how they behave, and what people ask about them.

use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId};
use quelea_behaviours::peers::{Source, Told, lines};
use quelea_exchange::SignedRecord;
use tokio::sync::oneshot;

use crate::{
    storage::{ANCHORS_MAX, Anchor, NotRecorded, PeerRow},
    swarm::{driver::Driver, state::KnownView},
};

/// How often anchors and conduct are written down, besides when the node stops: what a crash forgets.
const SAVE_EVERY: Duration = Duration::from_secs(60);

/// How often lines that nobody uses are looked for. Gossip's meshes mend themselves within a second.
const TRIM_EVERY: Duration = Duration::from_secs(1);

/// What the node knew when it stopped last.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    pub(crate) rows: Vec<PeerRow>,
    pub(crate) conduct: Vec<(PeerId, i32)>,
    pub(crate) anchors: Vec<Anchor>,
}

/// Takes in what was written down.
pub(crate) fn restore(driver: &mut Driver, remembered: Remembered) {
    let now = Instant::now();
    for (peer, score) in &remembered.conduct {
        driver.state.conduct.restore(*peer, *score, now);
        // What is below 0 is forgiven on disk, too.
        super::conduct::note_change(driver, *peer);
    }
    let peers = &mut driver.swarm.behaviour_mut().peers;
    for (peer, addrs) in &remembered.anchors {
        let row = remembered.rows.iter().find(|row| row.peer == *peer);
        let seen = row.map_or((0, 0), |row| (row.first_seen_ms, row.last_seen_ms));
        let source = row.map_or(Source::Other, |row| row.source);
        peers.restore(*peer, addrs, source, seen, 0, true);
    }
    for row in &remembered.rows {
        let seen = (row.first_seen_ms, row.last_seen_ms);
        let source = if row.source == Source::Bootstrap { Source::Other } else { row.source };
        peers.restore(row.peer, &row.addrs, source, seen, 0, false);
    }
    for peer in remembered.anchors.iter().map(|(peer, _)| *peer) {
        driver.swarm.behaviour_mut().inbound.keep(peer);
    }
    for (peer, _) in &remembered.conduct {
        super::conduct::changed(driver, peer);
    }
}

/// A peer said of itself, or another of it, where it is.
pub(crate) fn told(driver: &mut Driver, teller: PeerId, record: &SignedRecord) {
    let said = record.record();
    let told = if said.peer == teller {
        Told::from(Source::Inbound)
    } else {
        Told { source: Source::Exchange, teller: Some(teller) }
    };
    let behaviour = driver.swarm.behaviour_mut();
    behaviour.peers.learn(said.peer, &said.addrs, told);
    if behaviour.peers.book().get(&said.peer).is_some_and(|known| known.agent.is_none()) {
        behaviour.peers.named(&said.peer, said.agent.clone());
    }
    super::conduct::changed(driver, &said.peer);
}

/// Figures, and what is written down now and then.
pub(crate) fn tick(driver: &mut Driver, now: Instant) {
    let known = driver.swarm.behaviour().peers.book().len();
    driver.config.telemetry.stats.peers_known.set(u64::try_from(known).unwrap_or(u64::MAX));
    if now >= driver.state.next_trim {
        driver.state.next_trim = now + TRIM_EVERY;
        let relays = super::nat::relays_to_keep(driver);
        lines::trim(driver.swarm.behaviour_mut(), |peer| relays.contains(peer));
        driver.config.telemetry.stats.lines_closed.set(driver.swarm.behaviour().peers.trimmed());
    }
    if now >= driver.state.next_save {
        driver.state.next_save = now + SAVE_EVERY;
        save(driver);
    }
}

/// Writes anchors and conduct down, if this node keeps a database and its queue has room.
pub(crate) fn save(driver: &mut Driver) {
    let Some(db) = driver.config.db.clone() else { return };
    let mut anchors = driver.swarm.behaviour().peers.chosen();
    anchors.truncate(ANCHORS_MAX);
    let mut full = false;
    // A node that is alone keeps the anchors it had: they are its way back.
    if !anchors.is_empty() {
        full |= db.try_save_anchors(anchors) == Err(NotRecorded::QueueFull);
    }
    let now = Instant::now();
    for peer in std::mem::take(&mut driver.state.judged) {
        let score = driver.state.conduct.score(&peer, now);
        let missed = db.try_record_conduct(peer, score) == Err(NotRecorded::QueueFull);
        full |= missed;
        // Time forgives: what is below 0 is another in a minute.
        if missed || score < 0 {
            driver.state.judged.insert(peer);
        }
    }
    driver.config.telemetry.metrics.channel_full_if(full, "storage");
}

pub(crate) fn known(driver: &Driver, peer: Option<PeerId>, reply: oneshot::Sender<Vec<KnownView>>) {
    let behaviour = driver.swarm.behaviour();
    let book = behaviour.peers.book();
    let view = |(peer, known): (&PeerId, &quelea_behaviours::peers::Known)| KnownView {
        peer: *peer,
        known: known.clone(),
        record: behaviour.exchange.exchanger().record(peer).map(|held| held.record.record().clone()),
        connected: driver.state.peers.contains_key(peer),
    };
    let views = match peer {
        Some(peer) => book.get(&peer).map(|known| view((&peer, known))).into_iter().collect(),
        None => book.iter().map(view).collect(),
    };
    let _ = reply.send(views);
}

/// The operator wants the connection to this peer: it stays without use.
pub(crate) fn keep(driver: &mut Driver, peer: PeerId) {
    if driver.state.wanted_has_room() && driver.state.peers.contains_key(&peer) {
        let hold = driver.swarm.behaviour_mut().peers.hold(peer);
        driver.state.wanted.insert(peer, hold);
    }
}

/// The operator ends every connection to a peer. Answers whether there was one.
pub(crate) fn disconnect(driver: &mut Driver, peer: PeerId, reply: oneshot::Sender<bool>) {
    driver.swarm.behaviour_mut().peers.hold_off(&peer);
    let _ = reply.send(driver.swarm.disconnect_peer_id(peer).is_ok());
}

/// Where a peer is, by what we heard.
pub(crate) fn learn(driver: &mut Driver, peer: PeerId, addrs: &[Multiaddr], source: Source) {
    driver.swarm.behaviour_mut().peers.learn(peer, addrs, source);
}
