//! The ledger as people read it: totals, entries, and whether what is stored is what the counters say.

use std::collections::HashMap;

use libp2p::PeerId;
use quelea_ledger::{
    Hash, HoldId,
    book::{Account, KEPT_STEPS, Key, Lane, Side},
    message::{Message, SignedMessage},
};

use super::{Ledger, LedgerError, Standing};

/// The method of a redeem that forgives.
pub(crate) const FORGIVEN: u8 = 1;

/// All envelopes that can be kept of an account.
pub(super) const ALL: usize = 6 * KEPT_STEPS;

/// Sums over all accounts, in micro-credits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Totals {
    /// What peers owe this node.
    pub(crate) owed: u64,
    /// What this node owes.
    pub(crate) owing: u64,
    /// What peers' open holds may still cost.
    pub(crate) held: u64,
}

impl Totals {
    pub(crate) fn of(accounts: impl Iterator<Item = Account>) -> Self {
        accounts.fold(Self::default(), |sum, account| {
            let amount = u64::try_from(account.owed.unsigned_abs()).unwrap_or(u64::MAX);
            let (owed, owing) = if account.owed > 0 { (amount, 0) } else { (0, amount) };
            Self {
                owed: sum.owed.saturating_add(owed),
                owing: sum.owing.saturating_add(owing),
                held: sum.held.saturating_add(account.held),
            }
        })
    }
}

/// One signed step of a counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name: the hash of who said what.
    pub(crate) id: Hash,
    /// With whom.
    pub(crate) peer: PeerId,
    /// Whether this node signed it.
    pub(crate) mine: bool,
    /// Whether it promises (a note) or discharges (a redeem).
    pub(crate) promises: bool,
    /// Its number: Unix milliseconds, or a little more.
    pub(crate) seq: u64,
    /// By how much it moved the counter, in micro-credits.
    pub(crate) delta: u64,
    /// The counter after it.
    pub(crate) total: u64,
    /// The hold that a note settles.
    pub(crate) hold: Option<HoldId>,
    /// When a note is due, in Unix milliseconds.
    pub(crate) due_at: Option<u64>,
    /// How a redeem discharges.
    pub(crate) method: Option<u8>,
    /// Whether the creditor has acknowledged the note.
    pub(crate) acknowledged: bool,
    /// The step before it.
    pub(crate) prev: Hash,
    /// The envelope, as it was signed.
    pub(crate) raw: Vec<u8>,
}

/// What a check of everything that is stored found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checked {
    pub(crate) accounts: usize,
    pub(crate) entries: usize,
    /// What is wrong, each with the account that it is about.
    pub(crate) faults: Vec<(PeerId, String)>,
}

impl Ledger {
    /// The newest entries of one account or of all, newest first.
    pub(crate) async fn entries(&self, peer: Option<PeerId>, most: usize) -> Result<Vec<Entry>, LedgerError> {
        let mut found = Vec::new();
        for peer in self.peers(peer).await? {
            found.extend(self.entries_of(peer).await?.0);
        }
        found.sort_by(|a, b| b.seq.cmp(&a.seq).then(a.id.0.cmp(&b.id.0)));
        found.truncate(most);
        Ok(found)
    }

    async fn peers(&self, only: Option<PeerId>) -> Result<Vec<PeerId>, LedgerError> {
        let standings = self.standings().await?;
        let with_account = standings.into_iter().filter(|standing| standing.account.is_some());
        Ok(with_account.map(|standing| standing.peer).filter(|peer| only.is_none_or(|only| only == *peer)).collect())
    }

    /// An account's entries, and what is wrong with what is stored of it.
    async fn entries_of(&self, peer: PeerId) -> Result<(Vec<Entry>, Vec<String>), LedgerError> {
        let (mut entries, mut faults, mut acknowledged) = (Vec::new(), Vec::new(), HashMap::new());
        for (key, raw) in self.steps(peer, ALL).await? {
            let Key::Step(lane, side, _, _, seq) = key else { continue };
            let signed = match SignedMessage::open(&raw, &self.network) {
                Ok(signed) => signed,
                Err(error) => {
                    faults.push(format!("the entry {seq} ({lane:?}, {side:?}) is damaged: {error}"));
                    continue;
                }
            };
            // An acknowledgement is signed by the other side than what it acknowledges.
            let by_me = (side == Side::Mine) != (lane == Lane::Ack);
            if signed.signer != if by_me { self.local } else { peer } {
                faults.push(format!("the entry {seq} ({lane:?}, {side:?}) is signed by {}", signed.signer));
                continue;
            }
            let id = signed.id();
            let entry = Entry {
                id,
                peer,
                mine: by_me,
                promises: lane == Lane::Note,
                seq,
                delta: 0,
                total: 0,
                hold: None,
                due_at: None,
                method: None,
                acknowledged: false,
                prev: Hash::ZERO,
                raw,
            };
            match signed.message {
                Message::Note(note) => {
                    let hold = (note.hold != HoldId::NONE).then_some(note.hold);
                    let (delta, total, prev) = (note.delta, note.issued, note.prev);
                    entries.push(Entry { delta, total, prev, hold, due_at: Some(note.due_at), ..entry });
                }
                Message::Redeem(redeem) => {
                    let (delta, total, prev) = (redeem.delta, redeem.redeemed, redeem.prev);
                    entries.push(Entry { delta, total, prev, method: Some(redeem.method), ..entry });
                }
                Message::Ack(ack) => drop(acknowledged.insert(ack.note, ())),
                _ => faults.push(format!("the entry {seq} ({lane:?}, {side:?}) is of another kind")),
            }
        }
        for entry in &mut entries {
            entry.acknowledged = acknowledged.contains_key(&entry.id);
        }
        Ok((entries, faults))
    }

    /// Checks every stored envelope's signature, that steps follow each other, and that the counters are where the newest
    /// steps say.
    pub(crate) async fn check(&self) -> Result<Checked, LedgerError> {
        let mut checked = Checked::default();
        let standings: Vec<Standing> = self.standings().await?;
        for standing in standings {
            let Some(account) = standing.account else { continue };
            checked.accounts += 1;
            let (entries, faults) = self.entries_of(standing.peer).await?;
            checked.entries += entries.len();
            checked.faults.extend(faults.into_iter().map(|fault| (standing.peer, fault)));
            let wrong = |text: String| (standing.peer, text);
            let lanes = [(true, true), (false, true), (true, false), (false, false)];
            for (head, (mine, promises)) in account.heads.iter().zip(lanes) {
                let mut steps: Vec<&Entry> =
                    entries.iter().filter(|entry| (entry.mine, entry.promises) == (mine, promises)).collect();
                steps.sort_by_key(|entry| std::cmp::Reverse(entry.seq));
                let what = if promises { "notes" } else { "redeems" };
                let newest = steps.first().map_or((0, Hash::ZERO, 0), |entry| (entry.seq, entry.id, entry.total));
                if newest != (head.seq, head.hash, head.total) {
                    checked.faults.push(wrong(format!("the newest of the {what} is not where the counter stands")));
                }
                for pair in steps.windows(2) {
                    let [later, before] = pair else { continue };
                    let follows = later.prev == before.id;
                    if follows && before.total.checked_add(later.delta) != Some(later.total)
                        || later.total < before.total
                    {
                        checked.faults.push(wrong(format!("{what} {} and {} do not add up", before.seq, later.seq)));
                    }
                }
            }
        }
        Ok(checked)
    }
}
