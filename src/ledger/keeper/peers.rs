//! What peers do.

use libp2p::PeerId;
use quelea_behaviours::conduct::Deed;
use quelea_ledger::{
    HoldId,
    book::{Event, HoldState, HoldView, Side},
    trust::Dealing,
};
use quelea_wire::time::unix_ms;
use tokio::time::Instant;

use super::{
    super::{Input, command::OpenHold, debts::Promised, turn::Told},
    Keeper, Line, PATIENCE, UNIT,
};

/// How long what this node tells a debtor of its limit is good for.
const GRANT_MS: u64 = 24 * 3600 * 1000;

impl Keeper {
    pub(super) fn input(&mut self, input: Input) {
        if self.broken.is_some() {
            return;
        }
        match input {
            Input::Connected(peer, group, wary) => {
                self.lines.insert(peer, Line { wary, ..Line::default() });
                match group {
                    Some(group) => drop(self.groups.insert(peer, group)),
                    None => drop(self.groups.remove(&peer)),
                }
                if self.book.account(&peer, UNIT).is_some() {
                    self.set_terms(unix_ms(), peer);
                }
                // With whom there has been nothing, a session begins when somebody wants something.
                if self.book.deals_with(&peer, UNIT) {
                    self.begin(peer);
                }
            }
            Input::Disconnected(peer) => {
                self.lines.remove(&peer);
                self.book.disconnected(peer);
                if self.book.account(&peer, UNIT).is_none() {
                    self.groups.remove(&peer);
                }
            }
            Input::RequestTaken(peer) => self.request_taken(peer),
            Input::Packet { peer, packet } => {
                let now = unix_ms();
                if self.book.account(&peer, UNIT).is_none() {
                    self.lines.entry(peer).or_default();
                    self.set_terms(now, peer);
                }
                match self.book.receive(now, peer, &packet) {
                    Ok(outcome) => {
                        // Who has begun a session is answered, and not talked to anew.
                        self.lines.entry(peer).or_default().begun.get_or_insert_with(Instant::now);
                        self.take(outcome);
                    }
                    Err(rejected) => {
                        tracing::debug!(%peer, %rejected, "a ledger packet is not taken");
                        self.telemetry.metrics.ledger_entry("packet", "rejected");
                        if rejected.is_fault() {
                            self.handle.deed(peer, Deed::Invalid);
                        }
                    }
                }
            }
        }
    }

    /// Begins a session with a peer, if none was begun lately.
    pub(super) fn begin(&mut self, peer: PeerId) {
        let line = self.lines.entry(peer).or_default();
        if line.begun.is_some_and(|at| at.elapsed() < PATIENCE) {
            return;
        }
        line.begun = Some(Instant::now());
        self.set_terms(unix_ms(), peer);
        let outcome = self.book.connected(peer, UNIT);
        self.take(outcome);
    }

    pub(super) fn event(&mut self, peer: PeerId, event: Event) {
        match event {
            Event::Live => {
                self.debts.touch(peer);
                self.turn.told.push(Told::Live(peer));
                self.grant(peer);
                self.pay_due(peer);
            }
            Event::SelfRecovered => {
                tracing::warn!(%peer, "this node's own newest entries were lost here; the peer had them");
                self.telemetry.metrics.ledger_self_recovered();
            }
            Event::Granted { limit, not_after } => {
                self.lines.entry(peer).or_default().granted = Some((limit, not_after));
            }
            Event::HoldOpened { hold, max, job_hash } => {
                let expires_at = self.view(Side::Theirs, peer, hold).map_or(0, |view| view.expires_at);
                self.turn.told.push(Told::Open(peer, hold, OpenHold { max, job_hash, expires_at, vouched: 0 }));
                self.telemetry.metrics.ledger_entry("hold", "taken");
            }
            Event::HoldRefused { hold, why } => {
                tracing::info!(%peer, why = why.as_str(), "a hold is not taken");
                self.turn.told.push(Told::Refused(peer, hold, why.as_str()));
                self.telemetry.metrics.ledger_entry("hold", "refused");
                self.telemetry.metrics.ledger_limit_refused(why.as_str());
            }
            Event::NoteArrived { delta, own, hold, due_at, .. } => {
                self.telemetry.note(peer, "taken", delta);
                let days = self.view(Side::Theirs, peer, hold).map(|view| view.due_days);
                self.promised(peer, Promised { delta, own, due_at, days });
                if hold != HoldId::NONE && !self.settled(peer, hold, delta) {
                    self.deal(peer, Dealing::Transfer { amount: delta });
                }
            }
            Event::NoteOvertaken { hold, delta } if hold != HoldId::NONE => {
                // What it pays was dealt with when the note came that overtook it.
                self.settled(peer, hold, delta);
            }
            Event::Acknowledged { seq } => {
                let newest = self.book.account(&peer, UNIT).map_or(0, |account| account.heads[0].seq);
                if seq >= newest
                    && let Some(line) = self.lines.get_mut(&peer)
                {
                    line.unacknowledged = None;
                }
            }
            Event::RedeemArrived { delta, .. } => {
                self.telemetry.metrics.ledger_entry("redeem", "taken");
                self.request_met(peer, delta);
                // What set off its debts is less now.
                self.debts.touch(peer);
            }
            Event::RedeemRequested { amount, deadline } => self.asked_to_pay(peer, amount, deadline),
            Event::HoldEnded { side: Side::Theirs, hold, state: HoldState::Expired } => {
                let unpaid = self.view(Side::Theirs, peer, hold).map_or(0, |view| view.voucher);
                if unpaid > 0 {
                    self.deal(peer, Dealing::Failed { amount: unpaid, proven: false });
                    self.turn.batch.losses =
                        self.dealings.lost(unix_ms(), &peer, unpaid).or(self.turn.batch.losses.take());
                }
            }
            Event::Frozen(why) => {
                self.debts.touch(peer);
                tracing::warn!(%peer, ?why, "nothing is signed for this peer any more");
                self.telemetry.metrics.ledger_disputed("frozen");
            }
            Event::Proven { offender, .. } => {
                tracing::warn!(peer = %offender, "it has signed two things that contradict each other");
                self.telemetry.metrics.ledger_disputed("evidence");
                self.deal(offender, Dealing::Evidence);
                self.handle.deed(offender, Deed::Fraud);
            }
            Event::OwnVouchers { shown, all } => self.settle_left(peer, &shown, all),
            Event::UnknownVoucher { hold, cumulative } => {
                tracing::warn!(%peer, ?hold, cumulative, "the peer holds a voucher of this node for a hold that it lost");
            }
            _ => {}
        }
    }

    /// A note of so much has come for a hold. Whether the debtor has signed that more is spent, and is the worse for it.
    fn settled(&mut self, peer: PeerId, hold: HoldId, amount: u64) -> bool {
        let vouched = self.view(Side::Theirs, peer, hold).map_or(0, |view| view.voucher);
        let short = vouched.saturating_sub(amount);
        if short > 0 {
            self.deal(peer, Dealing::Failed { amount: short, proven: true });
        }
        self.turn.told.push(Told::Settled(peer, hold, amount));
        short > 0
    }

    /// Tells a debtor what it may owe.
    pub(super) fn grant(&mut self, peer: PeerId) {
        let now = unix_ms();
        if let Ok(outcome) = self.book.grant(now, peer, UNIT, now.saturating_add(GRANT_MS)) {
            self.take(outcome);
        }
    }

    pub(super) fn view(&self, side: Side, peer: PeerId, hold: HoldId) -> Option<HoldView> {
        self.book.hold_view(side, &peer, hold)
    }
}
