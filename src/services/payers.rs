//! Who has not paid for what it was given: worked for no more until it has.
//!
//! A note follows a result within a round trip and a flush of the disk. A caller that has more results unpaid than it may, or
//! one for longer than [`PATIENCE`], is refused until notes come or [`REMEMBERED`] is over; what it did is remembered longer in
//! its commerce.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use libp2p::PeerId;

/// How long the note for a result is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// How long a caller is refused after a result that it did not pay for.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Results that a caller may have unpaid at once: as many as it may have calls.
const MOST_UNPAID: u32 = 32;

/// Callers that are remembered; beyond, the one whose fault is longest ago is forgotten.
const CALLERS: usize = 4096;

#[derive(Debug, Default)]
struct Payer {
    unpaid: u32,
    failed: Option<Instant>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Payers(Mutex<HashMap<PeerId, Payer>>);

impl Payers {
    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Payer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why nothing more is done for a caller, if nothing is.
    pub(super) fn refuses(&self, peer: &PeerId, now: Instant) -> Option<String> {
        let mut all = self.lock();
        let payer = all.get_mut(peer)?;
        if payer.failed.is_some_and(|at| now.saturating_duration_since(at) >= REMEMBERED) {
            payer.failed = None;
        }
        if payer.failed.is_some() {
            return Some("an earlier call was answered and not paid".into());
        }
        (payer.unpaid >= MOST_UNPAID).then(|| format!("{} calls were answered and are not paid yet", payer.unpaid))
    }

    /// It is given a result.
    pub(super) fn owes(&self, peer: PeerId) {
        let mut all = self.lock();
        if all.len() >= CALLERS && !all.contains_key(&peer) {
            let oldest = all.iter().filter(|(_, payer)| payer.unpaid == 0).min_by_key(|(_, payer)| payer.failed);
            if let Some(oldest) = oldest.map(|(peer, _)| *peer) {
                all.remove(&oldest);
            }
        }
        all.entry(peer).or_default().unpaid += 1;
    }

    /// It has paid for one, or has not in time.
    pub(super) fn settled(&self, peer: &PeerId, paid: bool, now: Instant) {
        let mut all = self.lock();
        let Some(payer) = all.get_mut(peer) else { return };
        payer.unpaid = payer.unpaid.saturating_sub(1);
        payer.failed = if paid { None } else { Some(now) };
        if payer.unpaid == 0 && payer.failed.is_none() {
            all.remove(peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_pay_is_refused_until_it_does_or_it_is_long_ago() {
        let (payers, peer, now) = (Payers::default(), PeerId::random(), Instant::now());
        assert!(payers.refuses(&peer, now).is_none());
        payers.owes(peer);
        payers.owes(peer);
        assert!(payers.refuses(&peer, now).is_none());
        payers.settled(&peer, false, now);
        assert!(payers.refuses(&peer, now).is_some());
        payers.settled(&peer, true, now);
        assert!(payers.refuses(&peer, now).is_none());
        payers.owes(peer);
        payers.settled(&peer, false, now);
        assert!(payers.refuses(&peer, now + REMEMBERED).is_none());
    }

    #[test]
    fn unpaid_results_are_bounded_and_so_are_callers() {
        let (payers, peer, now) = (Payers::default(), PeerId::random(), Instant::now());
        (0..MOST_UNPAID).for_each(|_| payers.owes(peer));
        assert!(payers.refuses(&peer, now).is_some());
        for _ in 0..=CALLERS {
            let other = PeerId::random();
            payers.owes(other);
            payers.settled(&other, false, now);
        }
        assert!(payers.lock().len() <= CALLERS);
        assert!(payers.refuses(&peer, now).is_some(), "who owes something is not forgotten");
    }
}
