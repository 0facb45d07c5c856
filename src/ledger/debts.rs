//! What of peers' debts is overdue, and when each is to be looked at: by the next date on which something changes by itself, so
//! that a second in which nothing is due costs nothing, however many accounts there are. The rule is
//! [`quelea_ledger::overdue`]'s.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use libp2p::PeerId;
use quelea_ledger::{
    book::{Account, FrozenWhy},
    overdue::{Asked, Debt, Dues, Kept, Seen, Step, due_date},
};

/// When this node pays for work, and how long it waits for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DebtTerms {
    /// Days after which what it promises for work is due.
    pub(crate) days: u16,
    /// How long a peer may take to pay what is due, from when it was asked.
    pub(crate) grace: Duration,
}

impl DebtTerms {
    /// A month and three days: long enough that most debts set off by themselves, and that whoever is away for a weekend is no
    /// defaulter.
    pub(crate) const USUAL: Self = Self { days: 30, grace: Duration::from_secs(72 * 3600) };
}

/// A note's amount as it is added to what a peer owes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Promised {
    /// By how much the counter rose.
    pub(super) delta: u64,
    /// How much of that is the note's own.
    pub(super) own: u64,
    /// When it says that this is due.
    pub(super) due_at: u64,
    /// What its hold says of that.
    pub(super) days: Option<u16>,
}

struct Entry {
    debt: Debt,
    /// When it is looked at next; never, unless something happens, where there is no date.
    at: Option<u64>,
    /// What was overdue when it was looked at last.
    overdue: u64,
}

/// See the module.
pub(super) struct Debts {
    all: HashMap<PeerId, Entry>,
    next: BTreeSet<(u64, PeerId)>,
    /// The sum of what is overdue.
    overdue: u64,
    grace_ms: u64,
}

impl Debts {
    /// Those that are kept: all are looked at once.
    pub(super) fn new(rows: Vec<(PeerId, Debt)>, grace: Duration) -> Self {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let mut debts = Self { all: HashMap::new(), next: BTreeSet::new(), overdue: 0, grace_ms };
        for (peer, debt) in rows {
            debts.all.insert(peer, Entry { debt, at: None, overdue: 0 });
            debts.touch(peer);
        }
        debts
    }

    /// How long after a request the peer is in default, in milliseconds.
    pub(super) fn grace_ms(&self) -> u64 {
        self.grace_ms
    }

    /// A peer has promised more: what is to be kept.
    pub(super) fn promised(&mut self, now: u64, peer: PeerId, promised: Promised) -> Debt {
        let Promised { delta, own, due_at, days } = promised;
        let entry = self.all.entry(peer).or_insert(Entry { debt: Debt::default(), at: None, overdue: 0 });
        entry.debt.dues.promised(own, due_date(due_at, now, days));
        // Notes that did not come were signed before this one, and run no longer than any.
        entry.debt.dues.promised(delta.saturating_sub(own), due_date(u64::MAX, now, None));
        let debt = entry.debt.clone();
        self.touch(peer);
        debt
    }

    /// Something about this account has changed: it is looked at with the next.
    pub(super) fn touch(&mut self, peer: PeerId) {
        self.set(peer, Some(0));
    }

    fn set(&mut self, peer: PeerId, at: Option<u64>) {
        let Some(entry) = self.all.get_mut(&peer) else { return };
        if let Some(before) = entry.at {
            self.next.remove(&(before, peer));
        }
        entry.at = at;
        if let Some(at) = at {
            self.next.insert((at, peer));
        }
    }

    /// Some of those that are to be looked at by now.
    pub(super) fn due(&self, now: u64, most: usize) -> Vec<PeerId> {
        self.next.iter().take_while(|(at, _)| *at <= now).take(most).map(|(_, peer)| *peer).collect()
    }

    /// Looks at one: what is to be done, and what is to be kept where that has changed.
    pub(super) fn step(&mut self, now: u64, account: &Account) -> (Option<Step>, Option<Debt>) {
        let peer = account.peer;
        let Some(entry) = self.all.get_mut(&peer) else { return (None, None) };
        let seen = seen(account);
        let before = entry.debt.dues.clone();
        entry.debt.dues.redeemed(account.redeemed);
        let (step, changed) = entry.debt.step(now, seen, self.grace_ms);
        let kept = (changed || before != entry.debt.dues).then(|| entry.debt.clone());
        let overdue = entry.debt.overdue(now, seen.paid);
        self.overdue = self.overdue.saturating_sub(entry.overdue).saturating_add(overdue);
        entry.overdue = overdue;
        let next = entry.debt.next(now, seen, self.grace_ms);
        self.set(peer, next);
        (step, kept)
    }

    /// A peer has taken a request: what is to be kept, if that is news.
    pub(super) fn taken(&mut self, now: u64, peer: PeerId) -> Option<Debt> {
        let entry = self.all.get_mut(&peer)?;
        if !entry.debt.taken(now) {
            return None;
        }
        let debt = entry.debt.clone();
        self.touch(peer);
        Some(debt)
    }

    /// What is overdue of one account, and how often it was asked.
    pub(super) fn view(&self, now: u64, account: &Account) -> (u64, Asked) {
        let entry = self.all.get(&account.peer);
        entry.map_or((0, Asked::default()), |entry| (entry.debt.overdue(now, seen(account).paid), entry.debt.asked()))
    }

    /// The sum over all accounts, as they were looked at last: micro-credits.
    pub(super) fn overdue(&self) -> u64 {
        self.overdue
    }
}

fn seen(account: &Account) -> Seen {
    let reverse = account.issued.saturating_sub(account.discharged);
    Seen {
        paid: account.redeemed.saturating_add(reverse),
        live: account.live && account.frozen.is_none(),
        // Where this node has contradicted itself, the peer is not to blame for what it is not asked for.
        frozen: account.frozen.is_some_and(|why| why != FrozenWhy::OwnContradiction),
    }
}

/// What is known of a peer's promises where it was not kept, as by versions that did not: what the notes say that are.
pub(super) fn from_notes(mut debt: Debt, notes: Vec<Kept>, account: &Account) -> Debt {
    debt.dues = Dues::of_kept(notes, account.received, account.redeemed);
    debt
}

#[cfg(test)]
mod tests {
    use quelea_ledger::{Unit, packet::Head};

    use super::*;

    const T: u64 = 1_790_000_000_000;
    const DAY_MS: u64 = 24 * 3600 * 1000;

    fn account(peer: PeerId, redeemed: u64) -> Account {
        Account {
            peer,
            unit: Unit::CREDIT,
            issued: 0,
            discharged: 0,
            received: 9,
            redeemed,
            owed: 0,
            held: 0,
            limit: 0,
            heads: [Head::NONE; 4],
            live: true,
            frozen: None,
        }
    }

    #[test]
    fn only_what_is_due_is_looked_at() {
        let mut debts = Debts::new(Vec::new(), DebtTerms::USUAL.grace);
        let peers: Vec<PeerId> = (0..100).map(|_| PeerId::random()).collect();
        for (day, peer) in (1_u64..).zip(&peers) {
            debts.promised(T, *peer, Promised { delta: 9, own: 9, due_at: T + day * DAY_MS, days: Some(90) });
        }
        // Each once, a few at a time.
        let mut looks = 0;
        while let [_, ..] = debts.due(T, 7).as_slice() {
            for peer in debts.due(T, 7) {
                assert_eq!(debts.step(T, &account(peer, 0)), (None, None));
                looks += 1;
            }
        }
        assert_eq!((looks, debts.overdue(), debts.due(T + DAY_MS - 1, 7).len()), (100, 0, 0));
        let now = T + 3 * DAY_MS;
        let due = debts.due(now, 7);
        assert_eq!(due, peers[..3]);
        for peer in due {
            let (step, kept) = debts.step(now, &account(peer, 0));
            assert!(step == Some(Step::Ask(9)) && kept.is_some());
        }
        assert_eq!((debts.overdue(), debts.due(now, 7).len()), (27, 0));
        assert_eq!(debts.step(now, &account(peers[0], 9)).0, None);
        assert_eq!(debts.overdue(), 18);
        assert_eq!(debts.view(now, &account(peers[1], 4)).0, 5);
    }
}
