//! What this node wants of the keeper.

use libp2p::PeerId;
use quelea_ledger::{
    Hash, HoldId, Raw,
    book::{HoldState, HoldTerms, Side},
};
use tokio::sync::oneshot;

use super::{LedgerError, Standing};

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, LedgerError>>;

/// A debtor's hold that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenHold {
    /// The most that the job may cost, in micro-credits.
    pub(crate) max: u64,
    /// What is to be done.
    pub(crate) job_hash: Hash,
    /// When it ends, in Unix milliseconds.
    pub(crate) expires_at: u64,
    /// What vouchers say is spent of it, in micro-credits.
    pub(crate) vouched: u64,
}

/// See the methods of [`super::Ledger`].
pub(super) enum Command {
    Ready { peer: PeerId, reply: Reply<()> },
    Hold { peer: PeerId, terms: HoldTerms, reply: Reply<()> },
    Voucher { peer: PeerId, hold: HoldId, epoch: u32, cumulative: u64, reply: Reply<Vec<u8>> },
    Pay { peer: PeerId, hold: HoldId, amount: u64, result_hash: Hash, reply: Reply<Hash> },
    Intend { peer: PeerId, hold: HoldId, amount: u64, reply: Reply<()> },
    Finish { peer: PeerId, hold: HoldId, price: u64, result_hash: Hash, reply: Reply<()> },
    HoldState { peer: PeerId, side: Side, hold: HoldId, reply: Reply<Option<HoldState>> },
    Acknowledged { peer: PeerId, reply: Reply<bool> },
    Void { peer: PeerId, side: Side, hold: HoldId, reply: Reply<()> },
    Opened { peer: PeerId, hold: HoldId, reply: Reply<OpenHold> },
    Vouched { peer: PeerId, envelope: Raw, reply: Reply<(HoldId, u64)> },
    Settled { peer: PeerId, hold: HoldId, reply: Reply<u64> },
    Failed { peer: PeerId, amount: u64, proven: bool },
    Promise { peer: PeerId, amount: u64, due_at: u64, reply: Reply<Hash> },
    Redeem { peer: PeerId, amount: u64, method: u8, reference: Hash, reply: Reply<Hash> },
    Request { peer: PeerId, amount: u64, deadline: u64, reply: Reply<()> },
    Convict { peer: PeerId },
    Limit { peer: PeerId, amount: Option<u64>, reply: Reply<u64> },
    Standings { reply: Reply<Vec<Standing>> },
}
