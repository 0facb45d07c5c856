//! Lines that may be closed for want of use: those that nothing here keeps.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Weak},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    multiaddr::Protocol,
    swarm::{CloseConnection, ConnectionId, ToSwarm},
};

use super::Behaviour;
use crate::peers::uses::Uses;

/// Keeps the lines to a peer from being closed for want of use, as long as it lives.
#[derive(Debug, Clone)]
pub struct Hold(#[expect(dead_code, reason = "its life is what counts")] Arc<()>);

impl Behaviour {
    /// When lines were used; for [`Watched`](crate::peers::Watched) behaviours.
    #[must_use]
    pub fn uses(&self) -> Uses {
        self.uses.clone()
    }

    /// How long few lines may be unused.
    #[must_use]
    pub fn idle(&self) -> Duration {
        self.idle
    }

    /// Lines to `peer` stay as long as what is returned lives, used or not.
    pub fn hold(&mut self, peer: PeerId) -> Hold {
        self.holds.retain(|_, held| held.strong_count() > 0);
        let held = self.holds.get(&peer).and_then(Weak::upgrade).unwrap_or_default();
        self.holds.insert(peer, Arc::downgrade(&held));
        Hold(held)
    }

    /// Lines that nothing known here keeps: dialled by us, not chosen, and to nobody who is named, held or relays for us.
    #[must_use]
    pub fn spare(&self) -> Vec<(PeerId, ConnectionId)> {
        let relays = self.policy.connections.values().flat_map(HashMap::values).filter_map(|line| line.via);
        let relays: BTreeSet<PeerId> = relays.chain(self.relays.values().copied()).collect();
        let mut spare = Vec::new();
        for (peer, lines) in
            self.policy.connections.iter().filter(|(peer, _)| !relays.contains(*peer) && !self.is_held(peer))
        {
            let chosen = self.policy.chosen.get(peer).map(|(connection, _)| *connection);
            let ours = lines.iter().filter(|(id, line)| line.outbound && !line.closing && chosen != Some(**id));
            spare.extend(ours.map(|(id, _)| (*peer, *id)));
        }
        spare
    }

    /// Of the peers that these lines lead to, those that have no other.
    #[must_use]
    pub(in crate::peers) fn only(&self, lines: &[(PeerId, ConnectionId)]) -> BTreeSet<PeerId> {
        let other = |peer: &PeerId| {
            let all = self.policy.connections.get(peer).into_iter().flatten();
            all.filter(|(_, line)| !line.closing).any(|(id, _)| !lines.contains(&(*peer, *id)))
        };
        lines.iter().map(|(peer, _)| *peer).filter(|peer| !other(peer)).collect()
    }

    /// Closes a line that nobody uses.
    pub(in crate::peers) fn close(&mut self, peer: PeerId, connection: ConnectionId) {
        let line = self.policy.connections.get_mut(&peer).and_then(|lines| lines.get_mut(&connection));
        if let Some(line) = line.filter(|line| !line.closing) {
            line.closing = true;
            self.trimmed = self.trimmed.saturating_add(1);
            self.ready
                .push_back(ToSwarm::CloseConnection { peer_id: peer, connection: CloseConnection::One(connection) });
        }
    }

    /// Lines closed because nobody used them, since the start.
    #[must_use]
    pub fn trimmed(&self) -> u64 {
        self.trimmed
    }

    /// Whether lines to the peer stay without use.
    fn is_held(&self, peer: &PeerId) -> bool {
        self.holds.get(peer).is_some_and(|held| held.strong_count() > 0) || self.policy.is_named(peer)
    }
}

/// The relay that an address goes through.
pub(super) fn relay_of(addr: &Multiaddr) -> Option<PeerId> {
    let mut before = None;
    for part in addr {
        match part {
            Protocol::P2pCircuit => return before,
            Protocol::P2p(peer) => before = Some(peer),
            _ => before = None,
        }
    }
    None
}
