//! The loop: takes, writes, and tells.

mod callers;
mod overdue;
mod peers;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    time::Duration,
};

use libp2p::PeerId;
use quelea_ledger::{
    HoldId, Unit,
    book::{Book, Key, Outcome, Send},
    overdue::Debt,
    trust::{Dealing, Policy},
};
use quelea_wire::{prefix::Prefix, time::unix_ms};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use self::callers::Payment;
use super::{
    Asks, Input, LedgerError,
    command::Command,
    dealings::Dealings,
    debts::Debts,
    people::Totals,
    repute::Reputes,
    store::Store,
    turn::{Commit, Told, Turn},
    waiting::Waiting,
};
use crate::{
    storage::LedgerRows,
    swarm::Handle,
    telemetry::{Component, Telemetry},
};

const UNIT: Unit = Unit::CREDIT;

/// Units that may be under way to the disk.
const IN_FLIGHT: usize = 8;

/// Inputs and commands that share a unit at most: it bounds what waits for one flush.
const BATCH: usize = 128;

/// How often time is looked at.
const TICK: Duration = Duration::from_secs(1);

/// A note that the peer has not acknowledged for this long, or a peer that has not synced, is talked to anew.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often limits follow from the time that has passed.
const REVIEW: Duration = Duration::from_secs(60);

/// Who is there, as the keeper knows it.
#[derive(Default)]
struct Line {
    /// When a session was last begun by this node.
    begun: Option<Instant>,
    /// Since when a note waits for its acknowledgement.
    unacknowledged: Option<Instant>,
    /// What the peer says that this node may owe it, and until when.
    granted: Option<(u64, u64)>,
    /// Until when it gets no credit if it is new, because of its neighbours.
    wary: Option<u64>,
}

pub(super) struct Keeper {
    book: Book,
    dealings: Dealings,
    reputes: Reputes,
    debts: Debts,
    /// What peers ask for that this node owes; see `overdue`.
    requests: HashMap<PeerId, Asks>,
    store: Store,
    handle: Handle,
    telemetry: Telemetry,
    lines: HashMap<PeerId, Line>,
    /// Where peers with an account were connected from last, also while they are away: what a range owes does not become less
    /// because its peers hang up.
    groups: HashMap<PeerId, Prefix>,
    waiting: Waiting,
    /// Payments that wait until their peers are there.
    due: Vec<Payment>,
    /// Holds that an earlier process has left open: nobody works on their sessions any more.
    left: HashSet<(PeerId, HoldId)>,
    turn: Turn,
    commits: VecDeque<Commit>,
    reviewed: Instant,
    broken: Option<LedgerError>,
}

impl Keeper {
    pub(super) fn new(
        book: Book,
        kept: LedgerRows,
        (policy, grace): (Policy, Duration),
        store: Store,
        handle: Handle,
        telemetry: Telemetry,
    ) -> Self {
        let LedgerRows { trust, losses, debts, .. } = kept;
        let dealings = Dealings::new(trust, losses, policy);
        let left = book.reserved().collect();
        let debts = Debts::new(debts, grace);
        let mut keeper = Self {
            book,
            dealings,
            reputes: Reputes::default(),
            debts,
            requests: HashMap::new(),
            store,
            handle,
            telemetry,
            lines: HashMap::new(),
            groups: HashMap::new(),
            waiting: Waiting::default(),
            due: Vec::new(),
            left,
            turn: Turn::default(),
            commits: VecDeque::new(),
            reviewed: Instant::now(),
            broken: None,
        };
        // Accounts without a dealing have terms too; those do not change by time.
        let accounts: Vec<PeerId> = keeper.book.accounts().map(|account| account.peer).collect();
        accounts.into_iter().for_each(|peer| keeper.set_terms(unix_ms(), peer));
        keeper.review();
        keeper
    }

    /// What others see of how dealings went.
    pub(super) fn reputes(&self) -> Reputes {
        self.reputes.clone()
    }

    /// Has debts kept that were not.
    pub(super) fn keep(&mut self, debts: Vec<(PeerId, Debt)>) {
        self.turn.batch.debts.extend(debts);
    }

    pub(super) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut commands: mpsc::Receiver<Command>,
        mut stopping: watch::Receiver<bool>,
    ) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let room = self.commits.len() < IN_FLIGHT;
            tokio::select! {
                biased;
                done = durable(&mut self.commits), if !self.commits.is_empty() => self.release(done).await,
                Some(input) = inputs.recv(), if room => self.input(input),
                command = commands.recv(), if room => match command {
                    Some(command) => self.command(command),
                    // Nobody can ask for anything any more.
                    None => break,
                },
                _ = tick.tick(), if room => self.tick(),
                () = stopped(&mut stopping) => break,
            }
            // What waits besides shares the unit, a peer's and a caller's in turns.
            for _ in 0..BATCH / 2 {
                let (input, command) = (inputs.try_recv(), commands.try_recv());
                if input.is_err() && command.is_err() {
                    break;
                }
                input.into_iter().for_each(|input| self.input(input));
                command.into_iter().for_each(|command| self.command(command));
            }
            self.commit().await;
        }
        while !self.commits.is_empty() {
            let done = durable(&mut self.commits).await;
            self.release(done).await;
        }
    }

    // Units.

    /// Gives what was taken to the storage.
    async fn commit(&mut self) {
        let turn = std::mem::take(&mut self.turn);
        if turn.is_empty() {
            return;
        }
        let writes = !turn.writes_nothing();
        let (batch, commit) = Commit::split(turn);
        if let Some(error) = &self.broken {
            return commit.fail(error);
        }
        let durable = if writes { self.store.submit(batch).await } else { Ok(None) };
        match durable {
            Ok(durable) => self.commits.push_back(commit.when(durable)),
            Err(error) => {
                self.broke(&error);
                commit.fail(&error);
            }
        }
    }

    /// The oldest unit is on disk, or will never be.
    async fn release(&mut self, done: Result<(), LedgerError>) {
        let Some(mut commit) = self.commits.pop_front() else { return };
        if let Some(error) = self.broken.clone().or(done.err()) {
            self.broke(&error);
            return commit.fail(&error);
        }
        let mut packets = Vec::new();
        for send in std::mem::take(&mut commit.sends) {
            match render(&self.store, &send, &commit.written).await {
                Ok(Some(packet)) => packets.push((send.to, packet)),
                Ok(None) => {}
                Err(error) => return self.fail_after(commit, &error),
            }
        }
        self.handle.ledger_send(packets);
        for told in std::mem::take(&mut commit.told) {
            match told {
                Told::Live(peer) => self.waiting.is_live(peer),
                Told::Open(peer, hold, open) => self.waiting.is_open(peer, hold, open),
                Told::Refused(peer, hold, why) => self.waiting.is_refused(peer, hold, why),
                Told::Settled(peer, hold, amount) => self.waiting.is_settled(peer, hold, amount),
            }
        }
        for compare in std::mem::take(&mut commit.compares) {
            match self.store.read(vec![compare.stored]).await {
                Ok(stored) => {
                    if let Some(Some(stored)) = stored.first() {
                        let outcome = self.book.compare(stored, &compare.received);
                        self.take(outcome);
                    }
                }
                Err(error) => return self.fail_after(commit, &error),
            }
        }
        commit.then.into_iter().for_each(|then| then(Ok(())));
    }

    fn fail_after(&mut self, commit: Commit, error: &LedgerError) {
        self.broke(error);
        commit.fail(error);
    }

    /// From now on nothing is signed.
    fn broke(&mut self, error: &LedgerError) {
        if self.broken.is_none() {
            tracing::error!(%error, "the ledger signs nothing more until the node is restarted");
            self.telemetry.health.set(Component::Storage, crate::telemetry::Status::Failed, error.to_string());
            self.broken = Some(error.clone());
        }
    }

    /// Takes in what a step of the book asks for.
    fn take(&mut self, outcome: Outcome) {
        let Outcome { writes, sends, events, compares } = outcome;
        self.turn.batch.writes.extend(writes);
        self.turn.sends.extend(sends);
        self.turn.compares.extend(compares);
        for (peer, _, event) in events {
            self.event(peer, event);
        }
    }

    fn deal(&mut self, peer: PeerId, dealing: Dealing) {
        let now = unix_ms();
        let row = self.dealings.deal(now, peer, dealing);
        self.reputes.set(now, peer, &row);
        self.turn.batch.trust.push((peer, row));
        self.set_terms(now, peer);
    }

    fn set_terms(&mut self, now: u64, peer: PeerId) {
        let mut terms = self.dealings.terms(now, &peer, self.groups.get(&peer).copied());
        let wary = self.lines.get(&peer).and_then(|line| line.wary);
        if wary.is_some_and(|until| now < until) && self.dealings.is_new(&peer) {
            terms.limit = 0;
        }
        self.book.set_terms(peer, UNIT, terms);
    }

    /// Limits follow from the time that has passed.
    fn review(&mut self) {
        let now = unix_ms();
        let known: Vec<PeerId> = self.dealings.peers().chain(self.lines.keys().copied()).collect();
        known.into_iter().for_each(|peer| self.set_terms(now, peer));
        for (peer, row) in self.dealings.rows() {
            self.reputes.set(now, peer, row);
        }
        let written_off = self.dealings.written_off(now);
        self.book.set_written_off(written_off);
        self.reviewed = Instant::now();
    }

    /// Whether a peer should have answered: a note, or the sync with which a session begins. Packets are lost, with the line
    /// that they were on if there was another one.
    fn is_silent(&self, peer: &PeerId, line: &Line) -> bool {
        let late = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() >= PATIENCE);
        let is_live = || self.book.account(peer, UNIT).is_some_and(|account| account.live);
        late(line.unacknowledged) || late(line.begun) && self.book.deals_with(peer, UNIT) && !is_live()
    }

    fn tick(&mut self) {
        let expired = self.book.expire(unix_ms());
        self.take(expired);
        self.waiting.sweep();
        self.look_at_debts();
        if self.reviewed.elapsed() >= REVIEW {
            self.review();
            self.forget_requests();
        }
        let silent: Vec<PeerId> =
            self.lines.iter().filter(|(peer, line)| self.is_silent(peer, line)).map(|(peer, _)| *peer).collect();
        silent.into_iter().for_each(|peer| self.begin(peer));
        let totals = Totals::of(self.book.accounts());
        let ledger = &self.telemetry.stats.ledger;
        ledger.owed.set(totals.owed);
        ledger.owing.set(totals.owing);
        ledger.pool.set(self.book.pool_exposure());
    }
}

/// When the oldest unit is on disk.
async fn durable(commits: &mut VecDeque<Commit>) -> Result<(), LedgerError> {
    match commits.front_mut() {
        Some(commit) => commit.durable().await,
        None => Ok(()),
    }
}

/// When the node stops, or is dropped.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// A packet's bytes: of what was just written, or of what is on disk.
async fn render(store: &Store, send: &Send, written: &[(Key, Vec<u8>)]) -> Result<Option<Vec<u8>>, LedgerError> {
    let mut values: BTreeMap<Key, Vec<u8>> = BTreeMap::new();
    let mut missing = Vec::new();
    for key in send.stored() {
        match written.iter().rev().find(|(of, _)| *of == key) {
            Some((_, value)) => drop(values.insert(key, value.clone())),
            None => missing.push(key),
        }
    }
    if !missing.is_empty() {
        let read = store.read(missing.clone()).await?;
        values.extend(missing.into_iter().zip(read).filter_map(|(key, value)| Some((key, value?))));
    }
    Ok(send.render(|key| values.get(key).cloned()))
}
