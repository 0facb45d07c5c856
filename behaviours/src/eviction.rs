//! Who gives way when inbound connections are full: a pure rule, after Bitcoin Core's.
//!
//! An attacker that takes every place must not be able to keep it. So a newcomer displaces somebody, and whom depends on
//! things that each cost something different: to be in a network group whose place in a secret order one cannot know, to be
//! near, to have done something useful, to have served much, to have been there long. Whoever wants all places has to have all
//! of these; whoever has one of them stays. Of the rest, the group with most connections loses its youngest. Whoever has
//! misbehaved gives way before all of them: nobody but a peer itself can bring it into that.

use std::{
    cmp::Reverse,
    collections::HashMap,
    time::{Duration, Instant},
};

use quelea_wire::prefix::Prefix;

/// Connections protected by the secret order of their network groups, each the oldest of its group. An attacker does not know
/// which groups to rent.
pub const BY_GROUP: usize = 4;
/// Protected for the shortest round trip: nobody can be nearer than it is.
pub const BY_PING: usize = 8;
/// Protected for useful work, the latest first: an announcement that was new, rows that were served.
pub const BY_WORK: usize = 8;

/// Protected for what they have served, the best score first: the only one of these things that outlasts a restart.
pub const BY_CONDUCT: usize = 4;
/// A score that protects: more than messages alone bring.
const SERVED: i32 = crate::conduct::MOST;
/// The score at which nothing protects any more: something invalid, or ten floods.
pub const IN_DISGRACE: i32 = -200;

/// An inbound connection, as one who looks for a place sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<K> {
    /// Its name.
    pub key: K,
    /// Its network group; `None` for those without an address of their own, which are one group.
    pub group: Option<Prefix>,
    /// A hash of the group under a key that never leaves the process.
    pub order: u64,
    /// The shortest round trip measured.
    pub ping: Option<Duration>,
    /// When its peer last did something useful.
    pub worked: Option<Instant>,
    /// Its peer's score, see [`conduct`](crate::conduct).
    pub conduct: i32,
    /// Since when it stands.
    pub since: Instant,
    /// Whether the operator, or our own choice, holds on to its peer.
    pub kept: bool,
}

/// The connection that gives way, if there is one that is not protected.
#[must_use]
pub fn select<K: Copy + Ord>(mut candidates: Vec<Candidate<K>>) -> Option<K> {
    candidates.retain(|candidate| !candidate.kept);
    let disgraced = candidates.iter().filter(|candidate| candidate.conduct <= IN_DISGRACE);
    if let Some(worst) = disgraced.min_by_key(|c| (c.conduct, Reverse(c.since), c.key)) {
        return Some(worst.key);
    }
    protect_groups(&mut candidates);
    protect(&mut candidates, BY_PING, |c| c.ping.map(|ping| (ping, c.since, c.key)));
    protect(&mut candidates, BY_WORK, |c| c.worked.map(|worked| (Reverse(worked), c.since, c.key)));
    protect(&mut candidates, BY_CONDUCT, |c| (c.conduct > SERVED).then_some((Reverse(c.conduct), c.since, c.key)));
    let half = candidates.len() / 2;
    protect(&mut candidates, half, |c| Some((c.since, c.key)));

    let mut groups = HashMap::<Option<Prefix>, (usize, Instant)>::new();
    for candidate in &candidates {
        let (members, youngest) = groups.entry(candidate.group).or_insert((0, candidate.since));
        *members = members.saturating_add(1);
        *youngest = (*youngest).max(candidate.since);
    }
    // Of two groups as large as each other, the one that grew last.
    let (largest, _) = groups.into_iter().max_by_key(|(group, size)| (*size, *group))?;
    let members = candidates.iter().filter(|candidate| candidate.group == largest);
    members.max_by_key(|candidate| (candidate.since, candidate.key)).map(|candidate| candidate.key)
}

/// Takes the oldest of each of the first groups of the secret order out of the candidates.
fn protect_groups<K: Copy + Ord>(candidates: &mut Vec<Candidate<K>>) {
    let mut oldest = HashMap::<Option<Prefix>, (u64, Instant, K)>::new();
    for candidate in &*candidates {
        let this = (candidate.order, candidate.since, candidate.key);
        let known = oldest.entry(candidate.group).or_insert(this);
        *known = (*known).min(this);
    }
    let mut first: Vec<_> = oldest.into_values().collect();
    first.sort_unstable();
    first.truncate(BY_GROUP);
    candidates.retain(|candidate| !first.iter().any(|(.., key)| *key == candidate.key));
}

/// Takes the first `count` by `rank` out of the candidates; those without a rank stay.
fn protect<K: Copy + Ord, R: Ord>(
    candidates: &mut Vec<Candidate<K>>,
    count: usize,
    rank: impl Fn(&Candidate<K>) -> Option<R>,
) {
    let mut ranked: Vec<(R, K)> = candidates.iter().filter_map(|c| Some((rank(c)?, c.key))).collect();
    ranked.sort_unstable();
    ranked.truncate(count);
    candidates.retain(|candidate| !ranked.iter().any(|(_, key)| *key == candidate.key));
}

#[cfg(test)]
mod tests;
