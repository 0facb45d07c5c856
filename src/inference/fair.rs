//! Who gives way when a stage is full: a pure rule over what its sessions hold.
//!
//! Sessions cost nothing to open, and identities next to nothing. So a place that is held without use is held only until
//! somebody else wants it, and among those who hold such places the one with most loses first. A session that is being
//! used is never taken away: rows cost their sender bandwidth, and compute is shared out evenly.

use std::{collections::HashMap, time::Duration};

use libp2p::PeerId;

/// How long a session that has had no rows is left alone whoever wants its place. Rows follow an Accept within a round
/// trip, unless another stage of the chain is slow to open.
const UNUSED: Duration = Duration::from_secs(1);

/// How long a session may be without rows before its place goes to a peer that holds fewer: as long as one step may take
/// by default.
const IDLE: Duration = Duration::from_secs(10);

/// A session, as one who wants its place sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim<K> {
    pub(super) key: K,
    pub(super) owner: PeerId,
    /// Whether it has had rows.
    pub(super) used: bool,
    /// Whether rows are being computed.
    pub(super) busy: bool,
    /// For how long nothing has happened to it.
    pub(super) quiet: Duration,
}

/// The session whose place `newcomer` gets: always of somebody who holds more. Unused ones go before idle ones, those of
/// whoever holds most before others, then the one that has been quiet longest; `None` when nobody has to give way.
pub(super) fn gives_way<K: Copy>(claims: &[Claim<K>], newcomer: &PeerId) -> Option<K> {
    let mut held = HashMap::<PeerId, usize>::new();
    for claim in claims {
        *held.entry(claim.owner).or_default() += 1;
    }
    let mine = held.get(newcomer).copied().unwrap_or_default();
    let candidates = claims.iter().filter_map(|claim| {
        let theirs = held.get(&claim.owner).copied().unwrap_or_default();
        // With a difference of one, two who want each other's places would take turns for ever.
        let richer = theirs > mine + 1;
        let stale = claim.quiet >= UNUSED && theirs > mine;
        let expendable = if claim.used { claim.quiet >= IDLE && richer } else { stale || richer };
        let may_go = claim.owner != *newcomer && !claim.busy && expendable;
        may_go.then_some(((!claim.used, theirs, claim.quiet), claim.key))
    });
    candidates.max_by_key(|(rank, _)| *rank).map(|(_, key)| key)
}

/// Of `loads`, the owner with the heaviest, if it is heavier than that of `newcomer` by more than one.
pub(super) fn heaviest(loads: impl IntoIterator<Item = (PeerId, usize)>, newcomer: &PeerId) -> Option<PeerId> {
    let mut by_owner = HashMap::<PeerId, usize>::new();
    for (owner, load) in loads {
        *by_owner.entry(owner).or_default() += load;
    }
    let mine = by_owner.get(newcomer).copied().unwrap_or_default();
    let (owner, load) = by_owner.into_iter().max_by_key(|(_, load)| *load)?;
    (load > mine + 1).then_some(owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(key: usize, owner: PeerId, used: bool, quiet_ms: u64) -> Claim<usize> {
        Claim { key, owner, used, busy: false, quiet: Duration::from_millis(quiet_ms) }
    }

    #[test]
    fn who_holds_most_without_use_gives_way_first() {
        let [greedy, modest, newcomer] = [0; 3].map(|_| PeerId::random());
        let mut claims = vec![claim(0, modest, false, 900), claim(1, modest, true, 60_000)];
        claims.extend((2..6).map(|key| claim(key, greedy, key == 5, key as u64)));
        let mut gone = Vec::new();
        while let Some(key) = gives_way(&claims, &newcomer) {
            gone.push(key);
            claims.retain(|claim| claim.key != key);
        }
        // Once both hold two, the one that has been quiet longest goes; with one left to each, nobody is richer than a
        // newcomer would be.
        assert_eq!(gone, [4, 3, 0, 2]);
    }

    #[test]
    fn a_place_without_use_goes_after_a_second_and_one_in_use_only_to_the_poorer() {
        let [owner, newcomer] = [0; 2].map(|_| PeerId::random());
        assert_eq!(gives_way(&[claim(0, owner, false, 999)], &newcomer), None);
        assert_eq!(gives_way(&[claim(0, owner, false, 1000)], &newcomer), Some(0));
        let both = [claim(0, owner, false, 1000), claim(1, newcomer, true, 0)];
        assert_eq!(gives_way(&both, &newcomer), None, "who holds as much has nothing to ask for");
        let idle = [claim(0, owner, true, 10_000), claim(1, owner, true, 9_999)];
        assert_eq!(gives_way(&idle, &newcomer), Some(0));
        assert_eq!(gives_way(&idle[..1], &newcomer), None, "its only one");
        let busy = Claim { busy: true, ..idle[0] };
        assert_eq!(gives_way(&[busy, idle[1]], &newcomer), None);
    }

    #[test]
    fn of_two_hundred_identities_that_take_every_place_each_newcomer_finds_one() {
        let owners: Vec<PeerId> = (0..200).map(|_| PeerId::random()).collect();
        let claims: Vec<_> = (0..512).map(|key| claim(key, owners[key % 200], false, 0)).collect();
        assert!(gives_way(&claims, &PeerId::random()).is_some());
    }

    #[test]
    fn the_heaviest_is_only_so_beside_a_lighter_one() {
        let [heavy, light] = [0; 2].map(|_| PeerId::random());
        let loads = [(heavy, 3), (light, 2), (heavy, 4)];
        assert_eq!(heaviest(loads, &light), Some(heavy));
        assert_eq!(heaviest(loads, &heavy), None);
        assert_eq!(heaviest([(heavy, 3), (light, 2)], &light), None);
        assert_eq!(heaviest([], &light), None);
    }
}
