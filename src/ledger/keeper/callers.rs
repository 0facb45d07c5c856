//! What this node wants.

use libp2p::PeerId;
use quelea_behaviours::conduct::Deed;
use quelea_ledger::{
    Hash, HoldId, Raw,
    book::{Body, HoldState, Outcome, Refusal, Send, Side},
    trust::Dealing,
};
use quelea_wire::time::unix_ms;
use tokio::{sync::oneshot, time::Instant};

use super::{
    super::{
        LedgerError, Standing,
        command::{Command, OpenHold, Reply},
        dealings::Overdue,
        people::FORGIVEN,
        turn::Then,
    },
    Keeper, UNIT,
};

/// Of [`quelea_ledger::book::Account::heads`]: this node's notes.
const NOTES: usize = 0;
/// This node's redeems.
const REDEEMS: usize = 2;

/// Payments that may wait for their peers. Beyond, callers are told at once that nothing can be signed.
const MAX_DUE: usize = 4096;

/// What is to be paid for a hold.
pub(super) struct Payment {
    peer: PeerId,
    hold: HoldId,
    amount: u64,
    result_hash: Hash,
    reply: Reply<Hash>,
}

impl Keeper {
    pub(super) fn command(&mut self, command: Command) {
        if let Some(error) = self.broken.clone() {
            return refuse(command, &error);
        }
        let now = unix_ms();
        match command {
            Command::Ready { peer, reply } => {
                if self.book.account(&peer, UNIT).is_some_and(|account| account.live) {
                    return drop(reply.send(Ok(())));
                }
                self.waiting.for_live(peer, reply);
                self.begin(peer);
            }
            Command::Hold { peer, terms, reply } => {
                let step = self.book.hold(now, peer, UNIT, terms);
                self.step(step, reply);
                self.telemetry.metrics.ledger_entry("hold", "made");
            }
            Command::Voucher { peer, hold, epoch, cumulative, reply } => {
                let signed = self.book.voucher(peer, hold, epoch, cumulative).map_err(LedgerError::from);
                let envelope = signed.map(|outcome| outcome.sends.iter().find_map(raw_of).unwrap_or_default());
                let _ = reply.send(envelope); // whoever asked may have gone
            }
            Command::Pay { peer, hold, amount, result_hash, reply } => {
                self.pay(Payment { peer, hold, amount, result_hash, reply });
            }
            Command::Intend { peer, hold, amount, reply } => {
                let step = self.book.intend(peer, hold, amount);
                self.step(step, reply);
            }
            Command::Finish { peer, hold, price, result_hash, reply } => {
                let step = self.book.finish(peer, hold, price, result_hash);
                self.step(step, reply);
            }
            Command::Acknowledged { peer, reply } => {
                let waits = self.lines.get(&peer).is_some_and(|line| line.unacknowledged.is_some());
                let _ = reply.send(Ok(!waits)); // whoever asked may have gone
            }
            Command::HoldState { peer, side, hold, reply } => {
                // What is told is on disk.
                let state = self.view(side, peer, hold).map(|view| view.state);
                self.after(reply, state);
            }
            Command::Void { peer, side, hold, reply } => {
                let step = self.book.void(peer, side, hold);
                self.step(step, reply);
            }
            Command::Opened { peer, hold, reply } => match self.view(Side::Theirs, peer, hold) {
                Some(view) if view.state == HoldState::Open => {
                    // It may not be on disk yet.
                    let open = OpenHold {
                        max: view.max,
                        job_hash: view.job_hash,
                        expires_at: view.expires_at,
                        vouched: view.voucher,
                    };
                    self.after(reply, open);
                }
                Some(_) => drop(reply.send(Err(Refusal::NotOpen.into()))),
                None => self.waiting.for_hold(peer, hold, reply),
            },
            Command::Vouched { peer, envelope, reply } => match self.book.vouch(peer, &envelope) {
                Ok((hold, cumulative, outcome)) => {
                    self.take(outcome);
                    self.telemetry.metrics.ledger_entry("voucher", "taken");
                    let _ = reply.send(Ok((hold, cumulative)));
                }
                Err(rejected) => {
                    self.telemetry.metrics.ledger_entry("voucher", "rejected");
                    if rejected.is_fault() {
                        self.handle.deed(peer, Deed::Invalid);
                    }
                    let _ = reply.send(Err(LedgerError::Rejected(rejected.to_string())));
                }
            },
            Command::Settled { peer, hold, reply } => self.waiting.for_note(peer, hold, reply),
            Command::Failed { peer, amount, proven } => self.deal(peer, Dealing::Failed { amount, proven }),
            Command::Promise { peer, amount, due_at, reply } => {
                let step = self.book.promise(now, peer, UNIT, amount, due_at);
                self.issued(peer, amount, &step);
                self.entry(peer, step, reply, NOTES);
                self.look(peer);
            }
            Command::Redeem { peer, amount, method, reference, reply } => {
                let step = self.book.redeem(now, peer, UNIT, amount, (method, reference));
                // What is forgiven was not paid back; a stranger's default that is forgiven is lost.
                if step.is_ok() && method != FORGIVEN {
                    self.deal(peer, Dealing::Redeemed { amount });
                } else if step.is_ok() && self.dealings.in_default(&peer) {
                    self.turn.batch.losses = self.dealings.lost(now, &peer, amount).or(self.turn.batch.losses.take());
                }
                self.entry(peer, step, reply, REDEEMS);
                self.look(peer);
            }
            Command::Request { peer, amount, deadline, reply } => {
                let step = self.book.request_redeem(peer, UNIT, amount, deadline, rand::random());
                self.step(step, reply);
            }
            Command::Convict { peer } => self.convict(peer),
            Command::Limit { peer, amount, reply } => {
                let row = self.dealings.grant(peer, amount);
                self.turn.batch.trust.push((peer, row));
                self.set_terms(now, peer);
                // Told at once where it is there, with the next sync otherwise.
                self.grant(peer);
                let limit = self.dealings.terms(now, &peer, None).limit;
                self.after(reply, limit);
            }
            Command::Standings { reply } => {
                let mut peers: Vec<PeerId> = self.book.accounts().map(|account| account.peer).collect();
                peers.extend(self.dealings.peers());
                peers.sort_unstable();
                peers.dedup();
                let standing = |peer: PeerId| {
                    let granted = self.lines.get(&peer).and_then(|line| line.granted);
                    let account = self.book.account(&peer, UNIT);
                    let (overdue, asked) = account.map(|account| self.debts.view(now, &account)).unwrap_or_default();
                    let debt = Overdue { amount: overdue, asked };
                    let standing = self.dealings.standing(now, peer, account, granted);
                    Standing { debt, asks: self.request_of(&peer), ..standing }
                };
                // What is shown is on disk: whoever compares it with what is stored finds the same.
                let standings = peers.into_iter().map(standing).collect();
                self.after(reply, standings);
            }
        }
    }

    /// Pays now, or when both have synced again: what is to be paid is not forgotten because a line broke.
    pub(super) fn pay(&mut self, payment: Payment) {
        let Payment { peer, hold, amount, result_hash, reply } = payment;
        let account = self.book.account(&peer, UNIT);
        if self.view(Side::Mine, peer, hold).is_some_and(|view| view.state == HoldState::Settled) {
            // Asked again: what was paid stands.
            return self.after(reply, account.map_or(Hash::ZERO, |account| account.heads[NOTES].hash));
        }
        let owed = account.map_or(0, |account| account.owed);
        let step = self.book.pay(unix_ms(), peer, hold, amount, result_hash);
        if step == Err(Refusal::NotLive) && self.due.len() < MAX_DUE {
            self.due.push(Payment { peer, hold, amount, result_hash, reply });
            if self.lines.contains_key(&peer) {
                self.begin(peer);
            }
            return;
        }
        self.issued(peer, amount, &step);
        if step.is_ok() {
            self.deal(peer, Dealing::Transfer { amount });
            // By working for us it has paid back what it owed.
            let set_off = amount.min(u64::try_from(owed.max(0)).unwrap_or(u64::MAX));
            if set_off > 0 {
                self.deal(peer, Dealing::Redeemed { amount: set_off });
            }
        }
        self.entry(peer, step, reply, NOTES);
        self.look(peer);
    }

    /// Both have synced: what waits is paid.
    pub(super) fn pay_due(&mut self, peer: PeerId) {
        for payment in self.due.extract_if(.., |payment| payment.peer == peer).collect::<Vec<_>>() {
            self.pay(payment);
        }
    }

    /// Settles what an earlier process has left open at a peer, for what it had vouched for, or put down to be paid: the rest
    /// was not given to anybody. The peer shows the vouchers; a hold without one is taken back once it has shown `all`. Who is
    /// known to cheat is paid for none.
    pub(super) fn settle_left(&mut self, peer: PeerId, shown: &[(HoldId, u64)], all: bool) {
        let done = |(of, hold): &(PeerId, HoldId)| *of == peer && (all || shown.iter().any(|(named, _)| named == hold));
        let left: Vec<HoldId> = self.left.extract_if(done).map(|(_, hold)| hold).collect();
        for hold in left {
            let spent = shown.iter().filter(|(named, _)| *named == hold).map(|(_, amount)| *amount).max();
            let put_down = self.view(Side::Mine, peer, hold).map(|view| view.voucher).filter(|amount| *amount > 0);
            match spent.max(put_down).filter(|_| !self.dealings.is_convicted(&peer)) {
                Some(amount) => {
                    let (reply, _) = oneshot::channel();
                    self.pay(Payment { peer, hold, amount, result_hash: Hash::ZERO, reply });
                }
                None => self.take_back(peer, hold),
            }
        }
    }

    /// A peer cheats. What is known of it and that it is not paid become durable together.
    fn convict(&mut self, peer: PeerId) {
        self.deal(peer, Dealing::Evidence);
        self.due.retain(|payment| payment.peer != peer);
        let open: Vec<HoldId> = self.book.reserved().filter(|(of, _)| *of == peer).map(|(_, hold)| hold).collect();
        for hold in open {
            self.take_back(peer, hold);
        }
    }

    fn take_back(&mut self, peer: PeerId, hold: HoldId) {
        // Where it has ended already, nothing is left to be done.
        if let Ok(outcome) = self.book.void(peer, Side::Mine, hold) {
            self.take(outcome);
        }
    }

    /// A note is on its way.
    fn issued(&mut self, peer: PeerId, amount: u64, step: &Result<Outcome, Refusal>) {
        if step.is_ok() {
            self.telemetry.note(peer, "made", amount);
            self.lines.entry(peer).or_default().unacknowledged.get_or_insert_with(Instant::now);
        }
    }

    /// Takes a step, and answers when it is on disk.
    fn step(&mut self, step: Result<Outcome, Refusal>, reply: Reply<()>) {
        match step {
            Ok(outcome) => {
                self.take(outcome);
                self.after(reply, ());
            }
            Err(refusal) => drop(reply.send(Err(refusal.into()))),
        }
    }

    /// Likewise, with the name of the newest entry of one of the account's counters, see [`Account`](quelea_ledger::book::Account).
    fn entry(&mut self, peer: PeerId, step: Result<Outcome, Refusal>, reply: Reply<Hash>, counter: usize) {
        match step {
            Ok(outcome) => {
                self.take(outcome);
                let heads = self.book.account(&peer, UNIT).map(|account| account.heads);
                let name = heads.and_then(|heads| heads.get(counter).map(|head| head.hash)).unwrap_or_default();
                self.after(reply, name);
            }
            Err(refusal) => drop(reply.send(Err(refusal.into()))),
        }
    }

    /// Answers when all that was stepped before is on disk.
    fn after<T: std::marker::Send + 'static>(&mut self, reply: Reply<T>, value: T) {
        let then: Then = Box::new(move |done| drop(reply.send(done.map(|()| value))));
        self.turn.then.push(then);
    }
}

/// An envelope that is sent as it is.
fn raw_of(send: &Send) -> Option<Vec<u8>> {
    match send.body() {
        Body::Raw(Raw(bytes)) => Some(bytes.clone()),
        _ => None,
    }
}

/// Nothing is done any more.
fn refuse(command: Command, error: &LedgerError) {
    fn no<T>(reply: Reply<T>, error: &LedgerError) {
        let _ = reply.send(Err(error.clone())); // whoever asked may have gone
    }
    match command {
        Command::Ready { reply, .. }
        | Command::Hold { reply, .. }
        | Command::Void { reply, .. }
        | Command::Intend { reply, .. }
        | Command::Finish { reply, .. }
        | Command::Request { reply, .. } => no(reply, error),
        Command::Voucher { reply, .. } => no(reply, error),
        Command::Pay { reply, .. } | Command::Promise { reply, .. } | Command::Redeem { reply, .. } => no(reply, error),
        Command::Opened { reply, .. } => no(reply, error),
        Command::HoldState { reply, .. } => no(reply, error),
        Command::Acknowledged { reply, .. } => no(reply, error),
        Command::Vouched { reply, .. } => no(reply, error),
        Command::Settled { reply, .. } => no(reply, error),
        Command::Limit { reply, .. } => no(reply, error),
        Command::Standings { reply } => no(reply, error),
        Command::Failed { .. } | Command::Convict { .. } => {}
    }
}
