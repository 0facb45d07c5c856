//! What must hold: after every step, at every packet that leaves a node, and at rest.

use std::collections::{BTreeMap, BTreeSet};

use libp2p::PeerId;

use super::world::{Disk, LIMIT, Node, UNIT};
use crate::{
    book::{Book, Event, Key, Lane, Outcome, Rules},
    fields::{Hash, HoldId},
    message::{Message, SignedMessage},
    packet::{Content, Packet},
};

/// Rows that one account may have: two lanes of notes and redeems each way, two of acknowledgements, its counters, and
/// four rows for each hold that can be remembered in a run.
const ROWS_PER_PEER: usize = 6 * 64 + 1 + 4 * 260;

/// Somebody who sees everything that is sent.
#[derive(Default)]
pub(super) struct Witness {
    /// What each step said: by signer, other, lane and number.
    steps: BTreeMap<(PeerId, PeerId, u8, u64), Hash>,
    /// The largest total that each signer ever signed in a lane.
    most: BTreeMap<(PeerId, PeerId, u8), u64>,
    /// The notes that name a hold, of those that were sent and of those that were taken.
    paid: BTreeMap<(PeerId, PeerId, HoldId), BTreeSet<Hash>>,
    taken: BTreeMap<(PeerId, PeerId, HoldId), BTreeSet<Hash>>,
}

impl Witness {
    /// A packet leaves a node.
    pub(super) fn left(&mut self, node: &Node, bytes: &[u8]) -> Result<(), String> {
        let Packet { content, .. } =
            Packet::decode(bytes).map_err(|e| format!("an honest packet is malformed: {e}"))?;
        let Content::Signed(raw) = content else { return Ok(()) };
        let network = quelea_wire::NetworkId::from_name("ledger simulation");
        let signed = SignedMessage::open(&raw.0, &network).map_err(|e| e.to_string())?;
        let (other, lane, seq, total) = match &signed.message {
            Message::Note(m) => (m.creditor, 0, m.seq, m.issued),
            Message::Redeem(m) => (m.debtor, 1, m.seq, m.redeemed),
            _ => return Ok(()),
        };
        let lane_name = if lane == 0 { Lane::Note } else { Lane::Redeem };
        let stored = Key::Step(lane_name, crate::book::Side::Mine, other, UNIT, seq);
        if node.disk.get(&stored) != Some(&raw.0) {
            return Err("a step left that is not on disk".into());
        }
        let before = self.steps.insert((node.peer, other, lane, seq), signed.id());
        if before.is_some_and(|before| before != signed.id()) {
            return Err(format!("a node incriminates itself: two steps with number {seq}"));
        }
        let most = self.most.entry((node.peer, other, lane)).or_default();
        *most = (*most).max(total);
        if let Message::Note(note) = &signed.message
            && note.hold != HoldId::NONE
        {
            let notes = self.paid.entry((node.peer, other, note.hold)).or_default();
            notes.insert(signed.id());
            // Whoever has lost a note that nobody else ever saw signs another in its place.
            if notes.len() > 1 && !node.restored {
                return Err("a hold is paid twice".into());
            }
        }
        Ok(())
    }

    /// A creditor counts a note.
    pub(super) fn took(&mut self, node: &Node, debtor: PeerId, hold: HoldId, note: Hash) -> Result<(), String> {
        if hold == HoldId::NONE {
            return Ok(());
        }
        let notes = self.taken.entry((debtor, node.peer, hold)).or_default();
        notes.insert(note);
        if notes.len() > 1 { Err("two notes for one hold are counted".into()) } else { Ok(()) }
    }

    /// A hold was taken: its debtor is within all limits.
    pub(super) fn admitted(&self, book: &Book, out: &Outcome) -> Result<(), String> {
        for (peer, unit, event) in &out.events {
            if let Event::HoldOpened { .. } = event {
                let account = book.account(peer, *unit).ok_or("a hold without an account")?;
                let exposure = account.owed + i128::from(account.held);
                if exposure > i128::from(LIMIT) {
                    return Err(format!("a hold above the limit: {exposure}"));
                }
                if book.pool_exposure() > Rules::default().pool {
                    return Err("the pool is overdrawn".into());
                }
            }
        }
        Ok(())
    }

    /// After every step.
    pub(super) fn check(&self, nodes: &[Node]) -> Result<(), String> {
        for node in nodes {
            let mut pool = 0;
            for account in node.book.accounts() {
                for (signer, other, lane, total) in
                    [(account.peer, node.peer, 0, account.received), (account.peer, node.peer, 1, account.discharged)]
                {
                    let most = self.most.get(&(signer, other, lane)).copied().unwrap_or_default();
                    if total > most {
                        return Err(format!("a view of {total} of what was signed up to {most}"));
                    }
                }
                if account.redeemed > account.received && !nodes.iter().any(|node| node.restored) {
                    return Err("more is discharged than was promised".into());
                }
                let owed = u64::try_from(account.owed.max(0)).unwrap_or(u64::MAX);
                if account.peer != nodes[0].peer {
                    pool += owed.min(LIMIT) + account.held;
                }
            }
            if pool != node.book.pool_exposure() {
                return Err(format!("the pool is {}, its parts {pool}", node.book.pool_exposure()));
            }
        }
        Ok(())
    }

    /// When everything has arrived.
    pub(super) fn settled(&self, nodes: &[Node]) -> Result<(), String> {
        for a in nodes {
            for b in nodes.iter().filter(|b| b.peer != a.peer) {
                let (Some(x), Some(y)) = (a.book.account(&b.peer, UNIT), b.book.account(&a.peer, UNIT)) else {
                    return Err("no account after a sync".into());
                };
                let mine = (x.issued, x.discharged, x.received, x.redeemed, x.owed);
                let theirs = (y.received, y.redeemed, y.issued, y.discharged, -y.owed);
                if mine != theirs {
                    return Err(format!("two views of one account: {mine:?} {theirs:?}"));
                }
                if x.redeemed > x.received {
                    return Err("more is discharged than was promised, at rest".into());
                }
            }
        }
        Ok(())
    }

    /// When all holds have had their time.
    pub(super) fn at_rest(&self, nodes: &[Node]) -> Result<(), String> {
        for node in nodes {
            if node.book.accounts().any(|account| account.held > 0) || node.book.unpaid().next().is_some() {
                return Err("a hold never ends".into());
            }
            if rows_per_peer(&node.disk).into_values().any(|rows| rows > ROWS_PER_PEER) {
                return Err("a peer fills the disk".into());
            }
            if node.disk.keys().any(|key| matches!(key, Key::Hold(..) | Key::HoldMessage(..) | Key::Result(..))) {
                return Err("a hold is never forgotten".into());
            }
        }
        Ok(())
    }
}

fn rows_per_peer(disk: &Disk) -> BTreeMap<PeerId, usize> {
    let mut rows = BTreeMap::new();
    for key in disk.keys() {
        let peer = match key {
            Key::Pair(peer, _)
            | Key::Hold(_, peer, _)
            | Key::Step(_, _, peer, _, _)
            | Key::HoldMessage(_, peer, _)
            | Key::Result(_, peer, _)
            | Key::Voucher(_, peer, _) => *peer,
            Key::Evidence(_) => continue,
        };
        *rows.entry(peer).or_default() += 1;
    }
    rows
}
