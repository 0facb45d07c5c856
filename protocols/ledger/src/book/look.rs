//! What a book looks like from outside.

use libp2p::PeerId;

use super::{Book, FrozenWhy, HoldRow, HoldState, Pair, Rejected, Side};
use crate::{
    fields::{Hash, HoldId, Raw, Unit},
    message::{Message, SignedMessage},
    packet::Head,
};

/// What an account looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// With whom.
    pub peer: PeerId,
    /// In what.
    pub unit: Unit,
    /// What this node has promised.
    pub issued: u64,
    /// What of that the peer has discharged.
    pub discharged: u64,
    /// What the peer has promised.
    pub received: u64,
    /// What of that this node has discharged.
    pub redeemed: u64,
    /// What the peer owes this node; negative when it is the other way round.
    pub owed: i128,
    /// What the peer's open holds may still cost.
    pub held: u64,
    /// What the peer may owe.
    pub limit: u64,
    /// The newest of this node's notes, of the peer's, of this node's redeems, and of the peer's.
    pub heads: [Head; 4],
    /// Whether something can be signed now.
    pub live: bool,
    /// Why nothing is signed any more.
    pub frozen: Option<FrozenWhy>,
}

/// A hold as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldView {
    /// In what.
    pub unit: Unit,
    /// The most that it may cost, in micro-credits.
    pub max: u64,
    /// What is to be done.
    pub job_hash: Hash,
    /// When it ends.
    pub expires_at: u64,
    /// Days after its note at which the debt is due.
    pub due_days: u16,
    /// How it stands.
    pub state: HoldState,
    /// The largest voucher for it.
    pub voucher: u64,
}

impl Book {
    /// An account; `None` for a peer with which there has been nothing.
    #[must_use]
    pub fn account(&self, peer: &PeerId, unit: Unit) -> Option<Account> {
        self.pairs.get(&(*peer, unit)).map(Self::view)
    }

    /// All accounts.
    pub fn accounts(&self) -> impl Iterator<Item = Account> {
        self.pairs.values().map(Self::view)
    }

    fn view(pair: &Pair) -> Account {
        let row = &pair.row;
        Account {
            peer: row.peer,
            unit: row.unit,
            issued: row.issued.total,
            discharged: row.discharged.total,
            received: row.received.total,
            redeemed: row.redeemed.total,
            owed: pair.owed(),
            held: pair.held(),
            limit: pair.terms.limit,
            heads: pair.heads(),
            live: pair.session.live,
            frozen: FrozenWhy::of(row.frozen),
        }
    }

    /// What all unproven debtors owe together, open holds included.
    #[must_use]
    pub fn pool_exposure(&self) -> u64 {
        self.pool
    }

    /// A hold, while it is remembered.
    #[must_use]
    pub fn hold_view(&self, side: Side, peer: &PeerId, hold: HoldId) -> Option<HoldView> {
        let (_, row) = self.find(side, *peer, hold).ok()?;
        let HoldRow { unit, max, job_hash, expires_at, due_days, voucher, .. } = row;
        Some(HoldView { unit, max, job_hash, expires_at, due_days, state: row.state(), voucher })
    }

    /// Holds of this node that are open, and at whom.
    pub fn reserved(&self) -> impl Iterator<Item = (PeerId, HoldId)> {
        let rows = self.pairs.values().flat_map(|pair| pair.outgoing.open());
        rows.map(|row| (row.peer, row.hold))
    }

    /// Whether there is anything between this node and a peer: an entry, or a hold that is open.
    #[must_use]
    pub fn deals_with(&self, peer: &PeerId, unit: Unit) -> bool {
        self.pairs.get(&(*peer, unit)).is_some_and(|pair| {
            let open = pair.outgoing.count_open().saturating_add(pair.incoming.count_open());
            open > 0 || pair.heads().iter().any(|head| head.seq > 0)
        })
    }

    /// Holds that are open, each way: this node's, the peers'.
    #[must_use]
    pub fn open_holds(&self) -> (usize, usize) {
        self.pairs.values().fold((0, 0), |(mine, theirs): (usize, usize), pair| {
            (mine.saturating_add(pair.outgoing.count_open()), theirs.saturating_add(pair.incoming.count_open()))
        })
    }

    /// A voucher that came beside the packets, on a line that only its signer writes to: it needs no session, because the
    /// largest counts whenever it comes.
    ///
    /// # Errors
    /// When it is no voucher of the peer for a hold that is known here.
    pub fn vouch(&mut self, peer: PeerId, envelope: &Raw) -> Result<(HoldId, u64, super::Outcome), Rejected> {
        let signed = SignedMessage::open(&envelope.0, &self.network)?;
        if signed.signer != peer {
            return Err(Rejected::Signer);
        }
        let Message::Voucher(voucher) = signed.message.clone() else { return Err(Rejected::Account) };
        let (key, _) = self.find(Side::Theirs, peer, voucher.hold).map_err(|_| Rejected::Session)?;
        let mut out = super::Outcome::default();
        self.voucher_came(key, &voucher, &signed, &mut out)?;
        Ok((voucher.hold, voucher.cumulative, out))
    }
}
