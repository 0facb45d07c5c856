//! One node's accounts with everybody: a pure state machine.
//!
//! Each step takes the time and gives an [`Outcome`]. The order of what its owner does with it is what makes the ledger
//! safe: **first all [`Write`]s in one durable transaction, only then the [`Send`]s**. What has been signed and sent is
//! then on disk whatever happens; a node that crashes between the two sends the same bytes again, and one that crashes
//! before has signed nothing that anybody saw. After an error of its storage a node must not use the book any more.
//!
//! Nothing is signed for a peer before both have synced: shown each other what they hold of the other's. A node that was
//! restored from an old backup finds its own newest note there and goes on from it.

mod admit;
mod command;
mod effects;
mod holds;
mod look;
mod receive;
mod row;
mod steps;
mod sync;

use std::collections::{BTreeMap, BTreeSet};

use libp2p::{PeerId, identity::Keypair};
use quelea_wire::{NetworkId, envelope::Signer, prefix::Prefix};

pub use self::{
    admit::NotTaken,
    command::{HoldTerms, Refusal},
    effects::{Body, Compare, Event, Key, Lane, Outcome, Send, Shown, Side, Write},
    look::{Account, HoldView},
    receive::Rejected,
    row::{FrozenWhy, HoldState},
};
use self::{
    holds::Holds,
    row::{HoldRow, PairRow},
};
use crate::{
    fields::{DecodeError, Hash, HoldId, Nonce, Unit, decode},
    message::SignedMessage,
    packet::Head,
};

/// Open holds of one account, each way: a sync lists them all.
pub const MAX_OPEN_HOLDS: usize = crate::packet::MAX_HOLDS;

/// Holds of one account that are remembered after they ended, each way, so that none is paid or worked for twice: as many as
/// calls are made in the few minutes for which one is remembered, at some tens a second.
pub const MAX_CLOSED_HOLDS: usize = 16_384;

/// The same of a debtor who has not repaid anything yet, and whom nobody vouches for.
pub const MAX_CLOSED_OF_STRANGERS: usize = 1024;

/// The longest that a hold may reserve anything, in milliseconds.
pub const MAX_HOLD_MS: u64 = 3600 * 1000;

/// How long after its end a hold can still be settled as if it had not ended, in milliseconds: clocks differ by at most
/// two minutes.
pub const GRACE_MS: u64 = 2 * 60 * 1000;

/// Notes and redeems that are kept of each counter. The newest is enough for any claim; the others are for people.
pub const KEPT_STEPS: usize = 64;

/// Accounts in all. A name costs nothing, and neither does a promise: without a bound strangers could fill the disk with
/// accounts of a kilobyte or two each. The largest that a start reads in well under a second.
pub const MAX_ACCOUNTS: usize = 100_000;

/// Notes that may wait for one that names them: as many as a peer may have on their way at once.
const MAX_UNNAMED: usize = 8;

/// What this node lets one debtor owe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The most that it may owe, open holds included, in micro-credits.
    pub limit: u64,
    /// The most of what it owes that counts against what debtors share. Nobody is worked for beyond its limit: what it promises
    /// besides, it gives away, and must not be able to take others' places with.
    pub counted: u64,
    /// Whether it has paid back enough to be counted by itself; otherwise it shares [`Rules::pool`] with all strangers.
    pub proven: bool,
    /// Whether as many of its holds are remembered as of anybody: it is proven, or the operator trusts it.
    pub known: bool,
    /// The address group that it belongs to; `None` at home.
    pub group: Option<Prefix>,
}

impl Default for Terms {
    /// No credit; what is owed already counts whole.
    fn default() -> Self {
        Self { limit: 0, counted: u64::MAX, proven: false, known: false, group: None }
    }
}

/// What this node lets others owe, in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// What all unproven debtors may owe together, in micro-credits: the most that any number of them can take.
    pub pool: u64,
    /// What the unproven debtors of one address group may owe.
    pub group_unproven: u64,
    /// What all debtors of one address group may owe.
    pub group: u64,
    /// The part of a debtor's limit that open holds may take, in hundredths: holds that are never paid cost others' turns.
    pub hold_share: u64,
    /// How many accounts there may be.
    pub accounts: usize,
}

impl Default for Rules {
    fn default() -> Self {
        // A newcomer may owe one credit; see `Terms`. Ten of them at once, two of one group.
        Self { pool: 10_000_000, group_unproven: 2_000_000, group: 10_000_000, hold_share: 25, accounts: MAX_ACCOUNTS }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Session {
    mine: Nonce,
    theirs: Nonce,
    live: bool,
}

/// An account: one peer, one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pair {
    row: PairRow,
    /// Holds of the peer, for which this node works.
    incoming: Holds,
    /// Holds of this node, for which the peer works.
    outgoing: Holds,
    session: Session,
    terms: Terms,
    /// Notes of the peer that were overtaken by those that came after them, by name, with the total that each promises: what
    /// these say comes before them. Not kept.
    overtaken: Vec<(Hash, u64)>,
    /// Notes that came late, while others are missing that may name them. Not kept.
    unnamed: Vec<SignedMessage>,
}

/// Whose limit an account's exposure counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Weight {
    exposure: u64,
    proven: bool,
    group: Option<Prefix>,
}

impl Pair {
    fn new(peer: PeerId, unit: Unit) -> Self {
        let row = PairRow {
            peer,
            unit,
            issued: Head::NONE,
            received: Head::NONE,
            redeemed: Head::NONE,
            discharged: Head::NONE,
            frozen: 0,
        };
        Self {
            row,
            incoming: Holds::default(),
            outgoing: Holds::default(),
            session: Session::default(),
            terms: Terms::default(),
            overtaken: Vec::new(),
            unnamed: Vec::new(),
        }
    }

    /// What the peer owes this node; negative when it is the other way round.
    fn owed(&self) -> i128 {
        let out =
            |promised: Head, discharged: Head| i128::from(promised.total).saturating_sub(i128::from(discharged.total));
        let row = &self.row;
        out(row.received, row.redeemed).saturating_sub(out(row.issued, row.discharged))
    }

    /// What the peer's open holds may still cost.
    fn held(&self) -> u64 {
        self.incoming.open().fold(0, |sum, hold| sum.saturating_add(hold.max))
    }

    /// What it takes of what debtors share.
    fn exposure(&self) -> u64 {
        let owed = u64::try_from(self.owed().max(0)).unwrap_or(u64::MAX);
        owed.min(self.terms.counted).saturating_add(self.held())
    }

    /// The four counters' newest steps: notes of this node and of the peer, then redeems of this node and of the peer.
    fn heads(&self) -> [Head; 4] {
        [self.row.issued, self.row.received, self.row.redeemed, self.row.discharged]
    }

    /// Whether nothing has ever happened in it.
    fn is_empty(&self) -> bool {
        *self == Self { terms: self.terms, ..Self::new(self.row.peer, self.row.unit) }
    }

    fn weight(&self) -> Weight {
        Weight { exposure: self.exposure(), proven: self.terms.proven, group: self.terms.group }
    }
}

/// Rules that can be left out, to show what each is there for.
#[cfg(test)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ablation {
    pub(crate) no_gate: bool,
    pub(crate) plain_seq: bool,
    pub(crate) no_binding: bool,
}

/// All accounts of one node.
#[derive(Clone)]
pub struct Book {
    keypair: Keypair,
    local: PeerId,
    network: NetworkId,
    rules: Rules,
    /// Where nonces come from; new in every process.
    nonce_secret: [u8; 32],
    nonces: u64,
    pairs: BTreeMap<(PeerId, Unit), Pair>,
    /// What unproven debtors owe together.
    pool: u64,
    /// What was lost to such lately.
    written_off: u64,
    groups: BTreeMap<Prefix, Exposure>,
    /// Holds by the time at which they end or are forgotten.
    timers: BTreeSet<(u64, Side, PeerId, Unit, HoldId)>,
    /// The keys of peers that have sent something since they came.
    signers: BTreeMap<PeerId, Signer>,
    #[cfg(test)]
    pub(crate) ablation: Ablation,
}

#[derive(Debug, Clone, Copy, Default)]
struct Exposure {
    all: u64,
    unproven: u64,
}

impl Book {
    /// An empty book. `nonce_secret` is random and new in every process.
    #[must_use]
    pub fn new(keypair: Keypair, network: NetworkId, rules: Rules, nonce_secret: [u8; 32]) -> Self {
        Self {
            local: keypair.public().to_peer_id(),
            keypair,
            network,
            rules,
            nonce_secret,
            nonces: 0,
            pairs: BTreeMap::new(),
            pool: 0,
            written_off: 0,
            groups: BTreeMap::new(),
            timers: BTreeSet::new(),
            signers: BTreeMap::new(),
            #[cfg(test)]
            ablation: Ablation::default(),
        }
    }

    /// Takes in one row that was written before, in any order. Rows that only travel (notes, acknowledgements) are passed
    /// over.
    ///
    /// # Errors
    /// When the row is damaged: the book must not be used then.
    pub fn restore(&mut self, key: &Key, value: &[u8]) -> Result<(), DecodeError> {
        match key {
            Key::Pair(peer, unit) => {
                let row: PairRow = decode(value)?;
                if (row.peer, row.unit) != (*peer, *unit) {
                    return Err(DecodeError::Field("pair"));
                }
                self.changing((*peer, *unit), |pair| pair.row = row);
            }
            Key::Hold(side, peer, hold) => {
                let row: HoldRow = decode(value)?;
                if (row.peer, row.hold) != (*peer, *hold) {
                    return Err(DecodeError::Field("hold"));
                }
                self.timers.insert((row.next_at(), *side, *peer, row.unit, *hold));
                self.changing((*peer, row.unit), |pair| {
                    let holds = if *side == Side::Mine { &mut pair.outgoing } else { &mut pair.incoming };
                    holds.insert(row);
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// Changes an account, which is made if there is none, and keeps the sums over all accounts right.
    fn changing<T>(&mut self, key: (PeerId, Unit), change: impl FnOnce(&mut Pair) -> T) -> T {
        let pair = self.pairs.entry(key).or_insert_with(|| Pair::new(key.0, key.1));
        let before = pair.weight();
        let result = change(pair);
        let after = pair.weight();
        if before != after {
            self.weigh(before, u64::saturating_sub);
            self.weigh(after, u64::saturating_add);
        }
        result
    }

    fn weigh(&mut self, weight: Weight, sum: fn(u64, u64) -> u64) {
        if !weight.proven {
            self.pool = sum(self.pool, weight.exposure);
        }
        if let Some(group) = weight.group {
            let exposure = self.groups.entry(group).or_default();
            exposure.all = sum(exposure.all, weight.exposure);
            if !weight.proven {
                exposure.unproven = sum(exposure.unproven, weight.exposure);
            }
            if exposure.all == 0 {
                self.groups.remove(&group);
            }
        }
    }

    /// Whether there is no room for this account, which has nothing in it yet.
    fn is_full_for(&self, key: (PeerId, Unit)) -> bool {
        let is_new = |pair: &Pair| {
            pair.heads() == [Head::NONE; 4]
                && pair.row.frozen == 0
                && pair.incoming.is_empty()
                && pair.outgoing.is_empty()
        };
        // Those that are connected and have nothing in them yet are a few hundred of these.
        self.pairs.len() > self.rules.accounts && self.pairs.get(&key).is_none_or(is_new)
    }

    fn nonce(&mut self) -> Nonce {
        self.nonces = self.nonces.saturating_add(1);
        let hash = blake3::keyed_hash(&self.nonce_secret, &self.nonces.to_le_bytes());
        let (head, _) = hash.as_bytes().split_first_chunk::<16>().unwrap_or((&[0; 16], &[]));
        Nonce(*head)
    }

    /// The number of a counter's next step.
    fn next_seq(&self, last: u64, now: u64) -> u64 {
        let next = last.saturating_add(1);
        #[cfg(test)]
        if self.ablation.plain_seq {
            return next;
        }
        next.max(now)
    }
}
