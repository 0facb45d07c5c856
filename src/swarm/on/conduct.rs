//! How peers behave, and what follows: limits, scores, bans.

use std::time::{Duration, Instant};

use libp2p::PeerId;
use quelea_behaviours::{
    bans::{Ban, Bans, By, Full, Subject},
    conduct::{self, Deed},
    prefixes::DeniedCounts,
};
use quelea_wire::{
    prefix::{HOST, Prefix, ip_of},
    rate::Scope,
    time::unix_ms,
};
use tokio::sync::oneshot;

use super::ledger::GROUP;
use crate::{storage::NotRecorded, swarm::driver::Driver};

/// A gossip score that only floods of invalid messages reach: forty of them on one topic. Twenty-five honest peers behind one
/// address have half of it.
const HOPELESS: f64 = -2000.0;

/// Invalid messages of one peer that are counted in one look.
const WRONG_MOST: u32 = 100;

/// Takes the bans of earlier runs.
pub(crate) fn load(driver: &mut Driver, bans: Vec<Ban>) {
    let now = unix_ms();
    let (bans, left_out) = Bans::load(bans, now);
    let in_force: Vec<Ban> = bans.in_force(now).cloned().collect();
    driver.state.bans = bans;
    driver.state.bans_looked_at = now;
    for ban in &in_force {
        enforce(driver, &ban.subject);
        be_wary(driver, ban);
    }
    left_out.into_iter().for_each(|subject| forget(driver, subject));
}

/// A peer did something. Its score follows, and perhaps a ban.
pub(crate) fn deed(driver: &mut Driver, peer: PeerId, deed: Deed) {
    if peer == *driver.swarm.local_peer_id() {
        return;
    }
    if matches!(deed, Deed::Valid | Deed::Served) {
        driver.swarm.behaviour_mut().inbound.worked(&peer);
    }
    let too_many = driver.state.conduct.note(peer, deed, Instant::now());
    changed(driver, &peer);
    note_change(driver, peer);
    if !too_many || driver.state.bootstrap.contains(&peer) {
        return;
    }
    tracing::info!(%peer, why = deed.as_str(), "banned for its conduct");
    let known = driver.state.peers.get(&peer);
    let ip = known.and_then(|peer| peer.connections.values().find_map(ip_of));
    let ip = ip.filter(|ip| driver.swarm.behaviour().prefixes.limits_hold_for(*ip));
    let host = ip.map(|ip| Prefix::around(ip, HOST));
    let (bans, now) = (&mut driver.state.bans, unix_ms());
    let made = match deed {
        Deed::Fraud => bans.defrauded(peer, host, deed.as_str(), now),
        _ => bans.misbehaved(peer, host, deed.as_str(), now),
    };
    for (ban, displaced) in made {
        put(driver, ban, displaced);
    }
}

/// Has a peer's score written down soon.
pub(crate) fn note_change(driver: &mut Driver, peer: PeerId) {
    if driver.state.judged.len() < conduct::MAX_PEERS {
        driver.state.judged.insert(peer);
    }
}

/// A peer's score is another, or it has just connected: tells everybody who goes by it.
pub(crate) fn changed(driver: &mut Driver, peer: &PeerId) {
    let score = driver.state.conduct.score(peer, Instant::now());
    let good = u16::try_from(score.max(0)).unwrap_or(u16::MAX);
    let connected = driver.state.peers.contains_key(peer);
    let behaviour = driver.swarm.behaviour_mut();
    behaviour.peers.set_conduct(peer, good);
    behaviour.exchange.set_trust(peer, u32::from(good));
    behaviour.inbound.stands(peer, score);
    if connected {
        behaviour.gossipsub.stands(peer, score);
    }
}

/// A limit refused a peer something.
pub(crate) fn limited(driver: &mut Driver, peer: PeerId, scope: Scope) {
    driver.config.telemetry.metrics.rate_limited(scope.as_str(), 1);
    // What others have spent is not its fault.
    if scope == Scope::Peer {
        deed(driver, peer, Deed::Flood);
    }
}

pub(crate) fn ban(
    driver: &mut Driver,
    subject: Subject,
    duration: Duration,
    reason: &str,
    reply: oneshot::Sender<Result<Ban, Full>>,
) {
    let made = driver.state.bans.ban(subject, duration, reason, unix_ms());
    let _ = reply.send(made.map(|(ban, displaced)| {
        put(driver, ban.clone(), displaced);
        ban
    }));
}

pub(crate) fn unban(driver: &mut Driver, subject: Subject, reply: oneshot::Sender<bool>) {
    let lifted = driver.state.bans.unban(&subject, unix_ms());
    lift(driver, &subject);
    forget(driver, subject);
    mirror(driver);
    let _ = reply.send(lifted);
}

pub(crate) fn bans(driver: &Driver, reply: oneshot::Sender<Vec<Ban>>) {
    let _ = reply.send(driver.state.bans.in_force(unix_ms()).cloned().collect());
}

/// Ends the bans whose time is over, and mirrors what was refused into the metrics.
pub(crate) fn tick(driver: &mut Driver) {
    let now = unix_ms();
    let (ended, forgotten) = driver.state.bans.sweep(driver.state.bans_looked_at, now);
    driver.state.bans_looked_at = now;
    ended.iter().for_each(|subject| lift(driver, subject));
    forgotten.into_iter().for_each(|subject| forget(driver, subject));
    mirror(driver);
    let denied = driver.swarm.behaviour().prefixes.denied();
    let before = std::mem::replace(&mut driver.state.denied, denied);
    let refused = |counts: DeniedCounts| counts.rate.saturating_add(counts.full);
    driver.config.telemetry.metrics.rate_limited("accept", refused(denied).saturating_sub(refused(before)));
    judge_gossip(driver);
}

/// Gossipsub stops listening to a peer whose score is low, but goes on checking the signatures of all that it sends.
fn judge_gossip(driver: &mut Driver) {
    for (peer, wrong) in driver.swarm.behaviour_mut().gossipsub.take_wrong() {
        // More are more than enough for a ban.
        (0..wrong.min(WRONG_MOST)).for_each(|_| deed(driver, peer, Deed::Invalid));
    }
    let gossipsub = &driver.swarm.behaviour().gossipsub;
    let worst = |peer: &&PeerId| gossipsub.peer_score(peer).is_some_and(|score| score < HOPELESS);
    let worst: Vec<PeerId> = driver.state.peers.keys().filter(worst).copied().collect();
    for peer in worst {
        deed(driver, peer, Deed::Violation);
    }
}

fn put(driver: &mut Driver, ban: Ban, displaced: Option<Subject>) {
    if let Some(displaced) = displaced {
        lift(driver, &displaced);
        forget(driver, displaced);
    }
    enforce(driver, &ban.subject);
    be_wary(driver, &ban);
    if let Some(Err(NotRecorded::QueueFull)) = driver.config.db.as_ref().map(|db| db.try_put_ban(ban)) {
        driver.config.telemetry.metrics.channel_full("storage");
    }
    mirror(driver);
}

fn enforce(driver: &mut Driver, subject: &Subject) {
    let parts = driver.swarm.behaviour_mut();
    match subject {
        Subject::Peer(peer) => {
            parts.blocked_peers.block_peer(*peer);
            parts.peers.forget(peer);
            parts.exchange.forget(peer);
        }
        Subject::Range(range) => {
            if !parts.prefixes.ban(*range) {
                tracing::warn!(%range, "too many ranges are banned; this one is not refused");
            }
        }
    }
}

/// Where many of a range were banned for fraud, others of it are let in half as fast for as long as they get no credit.
fn be_wary(driver: &mut Driver, ban: &Ban) {
    let now = unix_ms();
    let range = ban.host.filter(|_| ban.by == By::Fraud).map(|host| Prefix::around(host.first(), GROUP));
    let wary = range.and_then(|range| Some((range, driver.state.bans.wary_of(range, now)?)));
    if let Some((range, until)) = wary {
        let left = Duration::from_millis(until.saturating_sub(now));
        driver.swarm.behaviour_mut().prefixes.be_wary(range, Instant::now() + left);
    }
}

fn lift(driver: &mut Driver, subject: &Subject) {
    let parts = driver.swarm.behaviour_mut();
    match subject {
        Subject::Peer(peer) => drop(parts.blocked_peers.unblock_peer(*peer)),
        Subject::Range(range) => drop(parts.prefixes.unban(range)),
    }
}

fn forget(driver: &Driver, subject: Subject) {
    if let Some(Err(NotRecorded::QueueFull)) = driver.config.db.as_ref().map(|db| db.try_remove_ban(subject)) {
        driver.config.telemetry.metrics.channel_full("storage");
    }
}

fn mirror(driver: &Driver) {
    let banned = driver.state.bans.in_force(unix_ms()).count();
    driver.config.telemetry.stats.peers_banned.set(u64::try_from(banned).unwrap_or(u64::MAX));
}
