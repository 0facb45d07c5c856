//! What dealings make peers worth, and what they may owe because of it. See [`quelea_ledger::trust`].

use std::collections::{HashMap, VecDeque};

use libp2p::PeerId;
use quelea_ledger::{
    book::{Account, Terms},
    overdue::Asked,
    trust::{Dealing, Losses, Policy, Row},
};
use quelea_wire::prefix::Prefix;

/// Dealings that are remembered for people, of all peers together.
const RECENT: usize = 1024;

/// A dealing, for people.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Past {
    /// With whom.
    pub(crate) peer: PeerId,
    /// When, in Unix milliseconds.
    pub(crate) at: u64,
    /// What.
    pub(crate) dealing: Dealing,
    /// The number before, in millionths.
    pub(crate) before: i32,
    /// And after.
    pub(crate) after: i32,
}

/// A peer, what it is worth and how its account stands.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    /// Who.
    pub(crate) peer: PeerId,
    /// Nothing where there is none yet.
    pub(crate) account: Option<Account>,
    /// From −1,000,000 to 900,000.
    pub(crate) commerce: i32,
    /// Whether it has paid for long enough to be counted by itself.
    pub(crate) proven: bool,
    /// What it may owe, in micro-credits.
    pub(crate) limit: u64,
    /// What it lets this node owe, as it says; and until when.
    pub(crate) granted: Option<(u64, u64)>,
    /// What is kept of it.
    pub(crate) row: Row,
    /// Its last dealings in this run, newest first.
    pub(crate) recent: Vec<Past>,
    /// What it has not paid in time.
    pub(crate) debt: Overdue,
    /// What it asks for, of what this node owes it.
    pub(crate) asks: Option<Asks>,
}

/// What a peer should have paid.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Overdue {
    /// Micro-credits.
    pub(crate) amount: u64,
    /// When it was asked for it.
    pub(crate) asked: Asked,
}

/// A peer's request to be paid.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asks {
    /// Micro-credits.
    pub(crate) amount: u64,
    /// Until when, in Unix milliseconds.
    pub(crate) deadline: u64,
    /// When it came, likewise.
    pub(crate) at: u64,
}

/// All peers' rows.
pub(super) struct Dealings {
    rows: HashMap<PeerId, Row>,
    losses: Losses,
    policy: Policy,
    recent: VecDeque<Past>,
}

impl Dealings {
    pub(super) fn new(rows: Vec<(PeerId, Row)>, losses: Losses, policy: Policy) -> Self {
        Self { rows: rows.into_iter().collect(), losses, policy, recent: VecDeque::new() }
    }

    /// Something happened: the row to be kept.
    pub(super) fn deal(&mut self, now: u64, peer: PeerId, dealing: Dealing) -> Row {
        let row = self.rows.entry(peer).or_default();
        let before = row.commerce(now);
        row.deal(dealing, &self.policy, now);
        let past = Past { peer, at: now, dealing, before, after: row.commerce(now) };
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(past);
        *row
    }

    /// The operator says what a peer may owe: the row to be kept.
    pub(super) fn grant(&mut self, peer: PeerId, amount: Option<u64>) -> Row {
        let row = self.rows.entry(peer).or_default();
        row.granted = amount;
        *row
    }

    /// So much was worked for and is not paid: what is to be kept of that, if the peer shares the strangers' pool.
    pub(super) fn lost(&mut self, now: u64, peer: &PeerId, amount: u64) -> Option<Losses> {
        let proven = self.row(peer).proven(&self.policy);
        (!proven && amount > 0).then(|| {
            self.losses.add(now, amount);
            self.losses.clone()
        })
    }

    /// Whether a peer has never paid, and nobody vouches for it.
    pub(super) fn is_new(&self, peer: &PeerId) -> bool {
        let row = self.row(peer);
        row.repaid == 0 && row.granted.is_none()
    }

    /// Whether a peer has not paid a default.
    pub(super) fn in_default(&self, peer: &PeerId) -> bool {
        self.row(peer).overdue > 0
    }

    /// What unproven peers took in the last thirty days.
    pub(super) fn written_off(&mut self, now: u64) -> u64 {
        self.losses.sum(now)
    }

    /// Whether this node knows that it cheats.
    pub(super) fn is_convicted(&self, peer: &PeerId) -> bool {
        self.row(peer).convicted
    }

    fn row(&self, peer: &PeerId) -> Row {
        self.rows.get(peer).copied().unwrap_or_default()
    }

    /// What a peer may owe.
    pub(super) fn terms(&self, now: u64, peer: &PeerId, group: Option<Prefix>) -> Terms {
        let row = self.row(peer);
        let (limit, proven) = (row.limit(&self.policy, now), row.proven(&self.policy));
        // Who is trusted no more owes what it was let owe before.
        let counted = if proven { u64::MAX } else { limit.max(self.policy.base) };
        let known = proven || row.granted.is_some();
        Terms { limit, counted, proven, known, group }
    }

    /// All rows.
    pub(super) fn rows(&self) -> impl Iterator<Item = (PeerId, &Row)> {
        self.rows.iter().map(|(peer, row)| (*peer, row))
    }

    /// Peers with a row.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.rows.keys().copied()
    }

    pub(super) fn standing(
        &self,
        now: u64,
        peer: PeerId,
        account: Option<Account>,
        granted: Option<(u64, u64)>,
    ) -> Standing {
        let row = self.row(&peer);
        Standing {
            peer,
            account,
            commerce: row.commerce(now),
            proven: row.proven(&self.policy),
            limit: row.limit(&self.policy, now),
            granted,
            row,
            recent: self.recent.iter().rev().filter(|past| past.peer == peer).copied().collect(),
            debt: Overdue::default(),
            asks: None,
        }
    }
}
