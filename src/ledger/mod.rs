//! The keeper of this node's ledger: the one owner of the pure [`quelea_ledger::book::Book`].
//!
//! A task takes what peers send and what this node wants from bounded queues, and steps the book. The writes of everything
//! that was taken together are one durable unit; only when they are on disk are packets sent and callers answered. The next
//! unit is stepped meanwhile, so that one flush of the disk serves many. After any storage error the keeper signs nothing
//! more: every call says why.
//!
//! What dealings make a peer worth is kept here as well ([`dealings`]), and follows into what the peer may owe.
//!
//! | queue | bound | when full |
//! |---|---|---|
//! | inputs: swarm → keeper | 1,024 ([`INPUTS`]) | the peer is told that this node is busy |
//! | commands: callers → keeper | 256 | the caller waits, up to its own deadline |
//! | units that are being written | 8 | nothing more is taken meanwhile |

mod command;
mod dealings;
mod debts;
mod keeper;
mod people;
mod repute;
mod store;
mod turn;
mod waiting;

use std::collections::HashMap;

use libp2p::{PeerId, identity::Keypair};
use quelea_ledger::{
    Hash, HoldId, Raw, Unit,
    book::{Account, Book, HoldState, HoldTerms, Key, Lane, Refusal, Rules, Side},
    message::{Message, SignedMessage},
    overdue::{Debt, Kept},
    trust::Policy,
};
use quelea_wire::{ErrorCode, NetworkId, prefix::Prefix};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
};

pub(crate) use self::{
    command::OpenHold,
    dealings::{Asks, Standing},
    debts::DebtTerms,
    people::{Entry, FORGIVEN, Totals},
    repute::{Repute, Reputes},
};
use self::{
    command::{Command, Reply},
    keeper::Keeper,
    people::ALL,
    store::Store,
};
use crate::{
    inference::InferError,
    storage::{Db, LedgerRows},
    swarm::Handle,
    telemetry::Telemetry,
};

/// What the swarm tells the keeper of the ledger. It never waits for the keeper: what finds no place is counted and dropped.
#[derive(Debug)]
pub(crate) enum Input {
    /// A peer sent a packet: bytes in the form of one, of which nothing has been checked. When there is no place the peer is
    /// told to send it again.
    Packet { peer: PeerId, packet: Vec<u8> },
    /// A peer has its first connection, from this range of addresses; nothing at home. When this is lost, the session begins
    /// with the first packet of either side.
    /// Until the last, whoever is new in that range gets no credit.
    Connected(PeerId, Option<Prefix>, Option<u64>),
    /// A peer has taken a request to pay. When this is lost, it is asked again.
    RequestTaken(PeerId),
    /// A peer's last connection is gone. When this is lost, what is sent to it is dropped by the swarm.
    Disconnected(PeerId),
}

/// Inputs that may wait; beyond, peers are told that this node is busy. At 4 KiB for the longest packet these are 4 MiB, and
/// half a second at the 2,000 packets a second that the swarm admits.
pub(crate) const INPUTS: usize = 1024;

/// Commands that may wait.
const COMMANDS: usize = 256;

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LedgerError {
    /// This node's own rules.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing is signed any more.
    #[error("the ledger cannot be stored, and nothing is signed any more: {0}")]
    Storage(String),
    /// The peer did not sync, or did not send what was waited for.
    #[error("the peer does not answer in the ledger's protocol")]
    Silent,
    /// The peer's hold was not taken: it has no credit for it here.
    #[error("no credit for this: {0}")]
    NoCredit(&'static str),
    /// What a peer sent is not what it should be.
    #[error("{0}")]
    Rejected(String),
    /// The node stops.
    #[error("the ledger is closed")]
    Closed,
}

impl From<LedgerError> for InferError {
    fn from(error: LedgerError) -> Self {
        let code = match &error {
            LedgerError::Refused(Refusal::Frozen | Refusal::NoAccount) => ErrorCode::AccountFrozen,
            LedgerError::Refused(Refusal::NotLive) | LedgerError::Silent => ErrorCode::LedgerNotReady,
            LedgerError::Refused(_) | LedgerError::Rejected(_) => ErrorCode::Usage,
            LedgerError::NoCredit(_) => ErrorCode::NoCredit,
            LedgerError::Storage(_) => ErrorCode::StorageFailed,
            LedgerError::Closed => ErrorCode::ShuttingDown,
        };
        Self::new(code, error.to_string())
    }
}

/// What a ledger is begun with.
pub(crate) struct LedgerConfig {
    pub(crate) keypair: Keypair,
    pub(crate) network: NetworkId,
    pub(crate) rules: Rules,
    pub(crate) policy: Policy,
    pub(crate) debts: DebtTerms,
    /// Where it is kept. Without it, it is kept in memory, as the identity is.
    pub(crate) db: Option<Db>,
    pub(crate) handle: Handle,
    pub(crate) telemetry: Telemetry,
}

/// The way to the keeper. Clones share it.
#[derive(Clone)]
pub(crate) struct Ledger {
    commands: mpsc::Sender<Command>,
    store: Store,
    network: NetworkId,
    local: PeerId,
    rules: Rules,
    due_days: u16,
    reputes: Reputes,
}

impl Ledger {
    /// Reads what is kept and begins. The keeper ends after `stopping` says so, with everything on disk that it has taken.
    ///
    /// # Errors
    /// When what is kept cannot be read.
    pub(crate) async fn start(
        config: LedgerConfig,
        inputs: mpsc::Receiver<Input>,
        stopping: watch::Receiver<bool>,
    ) -> Result<(Self, JoinHandle<()>), LedgerError> {
        let LedgerConfig { keypair, network, rules, policy, debts, db, handle, telemetry } = config;
        let store = db.map_or_else(Store::memory, Store::Disk);
        let mut kept = store.load().await?;
        let local = keypair.public().to_peer_id();
        let mut book = Book::new(keypair, network, rules, rand::random());
        for (key, value) in &kept.rows {
            let damaged = |error| LedgerError::Storage(format!("the row {key:?} of the ledger is damaged: {error}"));
            book.restore(key, value).map_err(damaged)?;
        }
        let rebuilt = dates_from_notes(&store, &book, &mut kept, &network).await?;
        let (commands, queue) = mpsc::channel(COMMANDS);
        let mut keeper = Keeper::new(book, kept, (policy, debts.grace), store.clone(), handle, telemetry);
        keeper.keep(rebuilt);
        let reputes = keeper.reputes();
        let running = tokio::spawn(keeper.run(inputs, queue, stopping));
        Ok((Self { commands, store, network, local, rules, due_days: debts.days, reputes }, running))
    }

    /// With whom dealings went badly.
    pub(crate) fn reputes(&self) -> Reputes {
        self.reputes.clone()
    }

    /// Days after which what this node promises for work is due.
    pub(crate) fn due_days(&self) -> u16 {
        self.due_days
    }

    /// What this node lets others owe.
    pub(crate) fn rules(&self) -> Rules {
        self.rules
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_closed| LedgerError::Closed)?;
        answer.await.unwrap_or(Err(LedgerError::Closed))
    }

    async fn ask_until<T>(
        &self,
        deadline: Instant,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, LedgerError> {
        timeout_at(deadline, self.ask(command)).await.unwrap_or(Err(LedgerError::Silent))
    }

    /// Waits until both have synced, and begins to if nobody has. The peer has to be connected.
    pub(crate) async fn ready(&self, peer: PeerId, deadline: Instant) -> Result<(), LedgerError> {
        self.ask_until(deadline, |reply| Command::Ready { peer, reply }).await
    }

    /// Promises `amount` by hand: the note's name.
    pub(crate) async fn promise(&self, peer: PeerId, amount: u64, due_at: u64) -> Result<Hash, LedgerError> {
        self.ask(|reply| Command::Promise { peer, amount, due_at, reply }).await
    }

    /// Discharges `amount` of what a peer owes: the redeem's name.
    pub(crate) async fn redeem(
        &self,
        peer: PeerId,
        amount: u64,
        method: u8,
        reference: Hash,
    ) -> Result<Hash, LedgerError> {
        self.ask(|reply| Command::Redeem { peer, amount, method, reference, reply }).await
    }

    /// Asks a debtor to pay.
    pub(crate) async fn request(&self, peer: PeerId, amount: u64, deadline: u64) -> Result<(), LedgerError> {
        self.ask(|reply| Command::Request { peer, amount, deadline, reply }).await
    }

    /// This node has seen for itself that a peer cheats: it gets no credit any more, whatever it has earned, and no note for
    /// any hold that is open, whatever vouchers say.
    pub(crate) async fn convict(&self, peer: PeerId) {
        // Where the keeper is gone, nothing is to be remembered.
        let _ = self.commands.send(Command::Convict { peer }).await;
    }

    /// Lets a peer owe `amount`, whatever it has earned; without an amount what it has earned counts again. What it may owe
    /// now.
    pub(crate) async fn limit(&self, peer: PeerId, amount: Option<u64>) -> Result<u64, LedgerError> {
        self.ask(|reply| Command::Limit { peer, amount, reply }).await
    }

    /// All accounts, and what their peers are worth here.
    pub(crate) async fn standings(&self) -> Result<Vec<Standing>, LedgerError> {
        self.ask(|reply| Command::Standings { reply }).await
    }

    /// An account.
    pub(crate) async fn account(&self, peer: PeerId) -> Result<Option<Account>, LedgerError> {
        let all = self.standings().await?;
        Ok(all.into_iter().find(|standing| standing.peer == peer).and_then(|standing| standing.account))
    }

    /// The stored envelopes of an account, newest first.
    async fn steps(&self, peer: PeerId, most: usize) -> Result<Vec<(Key, Vec<u8>)>, LedgerError> {
        self.store.steps(peer, Unit::CREDIT, most).await
    }
}

/// Where it is not kept when a peer's promises are due, as by versions that did not, the notes say it that are kept. What is to
/// be kept of that.
async fn dates_from_notes(
    store: &Store,
    book: &Book,
    kept: &mut LedgerRows,
    network: &NetworkId,
) -> Result<Vec<(PeerId, Debt)>, LedgerError> {
    let mut known: HashMap<PeerId, Debt> = std::mem::take(&mut kept.debts).into_iter().collect();
    let mut rebuilt = Vec::new();
    for account in book.accounts().filter(|account| account.unit == Unit::CREDIT) {
        let debt = known.remove(&account.peer).unwrap_or_default();
        if debt.dues.total() == account.received {
            kept.debts.push((account.peer, debt));
            continue;
        }
        let steps = store.steps(account.peer, Unit::CREDIT, ALL).await?;
        let notes = steps.iter().filter_map(|(key, raw)| match key {
            Key::Step(Lane::Note, Side::Theirs, ..) => match SignedMessage::open(raw, network).ok()?.message {
                Message::Note(note) => Some(note),
                _ => None,
            },
            _ => None,
        });
        let notes =
            notes.map(|note| Kept { seq: note.seq, issued: note.issued, delta: note.delta, due_at: note.due_at });
        let debt = debts::from_notes(debt, notes.collect(), &account);
        rebuilt.push((account.peer, debt.clone()));
        kept.debts.push((account.peer, debt));
    }
    Ok(rebuilt)
}

/// What paid work needs.
impl Ledger {
    /// Takes out a hold at `peer`: durable and on its way when this returns.
    pub(crate) async fn hold(&self, peer: PeerId, terms: HoldTerms) -> Result<(), LedgerError> {
        self.ask(|reply| Command::Hold { peer, terms, reply }).await
    }

    /// The signed envelope that says how much of a hold is spent by now.
    pub(crate) async fn voucher(
        &self,
        peer: PeerId,
        hold: HoldId,
        epoch: u32,
        cumulative: u64,
    ) -> Result<Vec<u8>, LedgerError> {
        self.ask(|reply| Command::Voucher { peer, hold, epoch, cumulative, reply }).await
    }

    /// Settles a hold: durable when this returns, the note's name. Asked again it pays nothing more.
    pub(crate) async fn pay(
        &self,
        peer: PeerId,
        hold: HoldId,
        amount: u64,
        result_hash: Hash,
    ) -> Result<Hash, LedgerError> {
        self.ask(|reply| Command::Pay { peer, hold, amount, result_hash, reply }).await
    }

    /// Puts down that a hold will be paid so much unless it is taken back: durable when this returns. Should this node stop
    /// before that, it is paid when it runs again.
    pub(crate) async fn intend(&self, peer: PeerId, hold: HoldId, amount: u64) -> Result<(), LedgerError> {
        self.ask(|reply| Command::Intend { peer, hold, amount, reply }).await
    }

    /// Says and signs what the work for a debtor's hold costs: durable, and on its way, when this returns.
    pub(crate) async fn finish(
        &self,
        peer: PeerId,
        hold: HoldId,
        price: u64,
        result_hash: Hash,
    ) -> Result<(), LedgerError> {
        self.ask(|reply| Command::Finish { peer, hold, price, result_hash, reply }).await
    }

    /// Whether a peer has acknowledged all notes that it was sent since it came.
    pub(crate) async fn is_acknowledged(&self, peer: PeerId) -> Result<bool, LedgerError> {
        self.ask(|reply| Command::Acknowledged { peer, reply }).await
    }

    /// How a hold stands, while it is remembered.
    pub(crate) async fn hold_state(
        &self,
        peer: PeerId,
        side: Side,
        hold: HoldId,
    ) -> Result<Option<HoldState>, LedgerError> {
        self.ask(|reply| Command::HoldState { peer, side, hold, reply }).await
    }

    /// Ends a hold that nothing is to be paid for.
    pub(crate) async fn void(&self, peer: PeerId, side: Side, hold: HoldId) -> Result<(), LedgerError> {
        self.ask(|reply| Command::Void { peer, side, hold, reply }).await
    }

    /// Waits until a debtor's hold has come and is taken.
    pub(crate) async fn opened(&self, peer: PeerId, hold: HoldId, deadline: Instant) -> Result<OpenHold, LedgerError> {
        self.ask_until(deadline, |reply| Command::Opened { peer, hold, reply }).await
    }

    /// A voucher that a debtor sent beside its rows: which hold, and how much of it is spent.
    pub(crate) async fn vouched(&self, peer: PeerId, envelope: Vec<u8>) -> Result<(HoldId, u64), LedgerError> {
        self.ask(|reply| Command::Vouched { peer, envelope: Raw(envelope), reply }).await
    }

    /// Waits until a debtor's note has settled its hold: micro-credits.
    pub(crate) async fn settled(&self, peer: PeerId, hold: HoldId, deadline: Instant) -> Result<u64, LedgerError> {
        self.ask_until(deadline, |reply| Command::Settled { peer, hold, reply }).await
    }

    /// A job that came to nothing, by the peer's fault or perhaps not.
    pub(crate) async fn failed(&self, peer: PeerId, amount: u64, proven: bool) {
        // Where the keeper is gone, nothing is to be remembered.
        let _ = self.commands.send(Command::Failed { peer, amount, proven }).await;
    }
}
