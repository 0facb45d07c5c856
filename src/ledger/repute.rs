//! With whom dealings went badly: what planning goes by. A copy of what the keeper knows, so that a plan waits for nobody.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use libp2p::PeerId;
use quelea_ledger::trust::Row;

/// What is held against a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repute {
    /// It is proven to cheat.
    Convicted,
    /// It has not paid what was due.
    Default,
    /// Work that it did or paid for went wrong: commerce in millionths, below zero.
    Bad(i32),
}

/// Of a million sessions, those that one in default is taken not to finish: it is asked where others would cost as much as
/// half a recovery more.
const DEFAULT_PPM: u32 = 500_000;

impl Repute {
    fn of(row: &Row, now: u64) -> Option<Self> {
        let commerce = row.commerce(now);
        match row {
            Row { convicted: true, .. } => Some(Self::Convicted),
            Row { overdue: 1.., .. } => Some(Self::Default),
            _ => (commerce < 0).then_some(Self::Bad(commerce)),
        }
    }

    /// Of a million sessions, those that it is taken not to finish because of that. A tenth of the way down is a tenth.
    pub(crate) fn risk_ppm(self) -> u32 {
        match self {
            Self::Convicted => 1_000_000,
            Self::Default => DEFAULT_PPM,
            Self::Bad(commerce) => commerce.unsigned_abs().min(DEFAULT_PPM),
        }
    }
}

impl fmt::Display for Repute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Convicted => f.write_str("never: it is proven to cheat"),
            Self::Default => f.write_str("counted as a risk: it has not paid what it owes"),
            Self::Bad(commerce) => {
                write!(f, "counted as a risk: dealings with it went badly (commerce {:.3})", f64::from(*commerce) / 1e6)
            }
        }
    }
}

/// See the module. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reputes(Arc<Mutex<HashMap<PeerId, Repute>>>);

impl Reputes {
    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Repute>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a peer has changed, or time has passed.
    pub(super) fn set(&self, now: u64, peer: PeerId, row: &Row) {
        let mut all = self.lock();
        match Repute::of(row, now) {
            Some(repute) => drop(all.insert(peer, repute)),
            None => drop(all.remove(&peer)),
        }
    }

    /// What is held against a peer; nothing against most.
    pub(crate) fn of(&self, peer: &PeerId) -> Option<Repute> {
        self.lock().get(peer).copied()
    }
}

#[cfg(test)]
mod tests {
    use quelea_ledger::trust::{Dealing, Policy};

    use super::*;

    #[test]
    fn only_what_went_badly_is_held_against_a_peer() {
        let (reputes, peer, policy, now) = (Reputes::default(), PeerId::random(), Policy::default(), 1 << 40);
        let mut row = Row::default();
        let mut after = |dealing, now| {
            row.deal(dealing, &policy, now);
            reputes.set(now, peer, &row);
            reputes.of(&peer)
        };
        assert_eq!(after(Dealing::Transfer { amount: policy.base }, now), None);
        let failed = after(Dealing::Failed { amount: policy.base, proven: true }, now).unwrap();
        assert!(matches!(failed, Repute::Bad(-60_000..=-30_000)), "{failed:?}");
        assert_eq!(failed.risk_ppm() / 10_000, 4);
        assert!(failed.to_string().contains("commerce -0.04"), "{failed}");
        let default = after(Dealing::Defaulted { overdue: policy.base }, now).unwrap();
        assert_eq!((default, default.risk_ppm()), (Repute::Default, DEFAULT_PPM));
        let paid = after(Dealing::Settled, now).unwrap();
        assert!(matches!(paid, Repute::Bad(_)) && paid.risk_ppm() < DEFAULT_PPM);
        assert_eq!(after(Dealing::Evidence, now), Some(Repute::Convicted));
    }
}
