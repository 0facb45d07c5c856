//! Whom to dial: a pure function of what is known, who is connected, the time and a seed.
//!
//! A node keeps [`OUTBOUND`] connections that it has chosen itself and that no stranger can take: whoever connects to us
//! chooses us, and an attacker with many identities would soon be all our neighbours. They lead into different address
//! groups, and to peers of whom different sources told, so that no single liar fills them. Anchors come first.
//!
//! Of two peers that hear of each other, the one with the lower id dials; the other waits [`YIELD`], and dials if nobody came.
//! A node without any connection waits for nobody.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use libp2p::PeerId;
use quelea_wire::prefix::Prefix;

use super::book::{Book, Known, Source};

/// Outbound connections that a node keeps: twice as many as Bitcoin Core. With as many inbound ones on average, a node has
/// six honest neighbours where four of five peers pass nothing on, and is cut off once in five hundred; with eight it would be
/// once in thirty (the simulator's `silent_neighbours_do_not_censor`).
pub const OUTBOUND: usize = 16;
/// Dials of this kind under way at once. More would only race for the same places.
pub const AT_ONCE: usize = 4;
/// How long the peer with the higher id waits for the other to dial.
pub const YIELD: Duration = Duration::from_secs(5);

/// Who is there.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Peers to which a connection stands, either way.
    pub connected: BTreeSet<PeerId>,
    /// Of those, the ones on lines of ours alone that are not chosen: left behind by lookups. They are candidates like others,
    /// and their lines are taken over.
    pub spare: BTreeSet<PeerId>,
    /// Of those that are connected, the ones we chose.
    pub chosen: BTreeSet<PeerId>,
    /// Peers being dialled because we chose them.
    pub dialling: BTreeSet<PeerId>,
}

/// Whom to dial now, best first. The same for the same arguments.
#[must_use]
pub fn plan(book: &Book, view: &View, target: usize, now: Duration, seed: u64) -> Vec<PeerId> {
    let busy = view.chosen.len().saturating_add(view.dialling.len());
    let wanted = target.saturating_sub(busy).min(AT_ONCE.saturating_sub(view.dialling.len()));
    if wanted == 0 {
        return Vec::new();
    }
    let alone = view.connected.is_empty();
    let mut candidates: Vec<(&PeerId, &Known)> =
        book.iter().filter(|(peer, known)| is_due(book, view, peer, known, alone, now)).collect();
    let ours = view.chosen.iter().chain(&view.dialling).filter_map(|peer| book.get(peer));
    let mut groups: BTreeSet<Prefix> = ours.clone().filter_map(Known::group).collect();
    let mut origins: BTreeSet<(Source, Option<PeerId>)> = ours.map(|known| (known.source, known.teller)).collect();
    let mut chosen = Vec::with_capacity(wanted);
    while chosen.len() < wanted {
        let rank = |peer: &PeerId, known: &Known| {
            let new_group = known.group().is_none_or(|group| !groups.contains(&group));
            let new_origin = !origins.contains(&(known.source, known.teller));
            (known.anchor, new_group, new_origin, known.met(), known.conduct / 1000, chance(seed, peer))
        };
        let best = candidates.iter().enumerate().max_by_key(|(_, (peer, known))| rank(peer, known)).map(|(i, _)| i);
        let Some(best) = best else { break };
        let (peer, known) = candidates.swap_remove(best);
        groups.extend(known.group());
        origins.insert((known.source, known.teller));
        chosen.push(*peer);
    }
    chosen
}

fn is_due(book: &Book, view: &View, peer: &PeerId, known: &Known, alone: bool, now: Duration) -> bool {
    let connected = view.connected.contains(peer) && !view.spare.contains(peer);
    let taken = connected || view.chosen.contains(peer) || view.dialling.contains(peer);
    // The other side may not know of us, or cannot reach us; then we are the one who dials.
    let first = alone || known.anchor || known.source == Source::Bootstrap || book.local() < *peer;
    !taken
        && !known.addrs.is_empty()
        && known.retry_at <= now
        && (first || known.learnt_at.saturating_add(YIELD) <= now)
}

/// A number for a peer that nobody without the seed can tell.
#[must_use]
pub fn chance(seed: u64, peer: &PeerId) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, peer).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
