//! Who offers a service, and which of them is called.
//!
//! Providers stand in the DHT under the service's name; each is asked what it offers, over the service's own protocol, so that
//! price and load are those of this moment. Of those whose price may be paid, the one is called whose price and time together
//! are least:
//!
//! ```text
//! price + seconds × 10,000 micro-credits, more by as much as dealings with it went badly
//! ```
//!
//! Time is what calls of this node took there, and what the provider says where there was none. Who is proven to cheat is never
//! called; who failed lately counts as slower by [`AFTER_FAILURE`].

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use libp2p::PeerId;
use quelea_service::{Listed, Name, service_key};
use quelea_wire::{Credits, ErrorCode};
use tokio::time::{sleep_until, timeout};

use super::Services;
use crate::{inference::InferError, ledger::Repute};

/// How long providers are looked for.
const LOOK: Duration = Duration::from_secs(4);

/// How long others are waited for once one has answered.
const GRACE: Duration = Duration::from_millis(300);

/// Providers that are asked.
const ASKED: usize = 16;

/// What a second of waiting is worth, in micro-credits: a hundredth of a credit.
const SECOND: u64 = 10_000;

/// What a call is taken to take where nothing is known of it.
const UNKNOWN_MS: u64 = 1000;

/// What is added to the time of a provider that failed lately.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

/// How long a failure counts.
const LATELY: Duration = Duration::from_secs(300);

/// Providers of services that are remembered; beyond, the one called longest ago is forgotten.
const REMEMBERED: usize = 1024;

/// How long what a provider said of itself is good for. A price that has risen since is refused and asked for anew.
const MOMENT: Duration = Duration::from_secs(5);

/// Such answers that are kept.
const LISTS: usize = 256;

/// What calls of this node came to, by provider and service.
#[derive(Debug, Default)]
pub(super) struct Experience {
    seen: Mutex<HashMap<(PeerId, Name), Seen>>,
    /// What providers said a moment ago: a rush of calls asks once.
    lists: Mutex<HashMap<(PeerId, Name), (Listed, Instant)>>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Instant,
    took_ms: Option<u64>,
    failed: Option<Instant>,
}

impl Experience {
    /// What a provider said a moment ago.
    pub(super) fn listed(&self, peer: &PeerId, name: &Name, now: Instant) -> Option<Listed> {
        let lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let (listed, at) = lists.get(&(*peer, name.clone()))?;
        (now.saturating_duration_since(*at) < MOMENT).then(|| listed.clone())
    }

    /// It says so now.
    pub(super) fn note_list(&self, peer: PeerId, listed: &Listed, now: Instant) {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if lists.len() >= LISTS {
            lists.retain(|_, (_, at)| now.saturating_duration_since(*at) < MOMENT);
        }
        if lists.len() < LISTS {
            lists.insert((peer, listed.name.clone()), (listed.clone(), now));
        }
    }

    /// It is not so any more.
    pub(super) fn forget(&self, peer: &PeerId, name: &Name) {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner).remove(&(*peer, name.clone()));
    }

    /// A call there took so long, or failed.
    pub(super) fn note(&self, peer: PeerId, name: &Name, took: Option<Duration>, now: Instant) {
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (peer, name.clone());
        if all.len() >= REMEMBERED && !all.contains_key(&key) {
            let oldest = all.iter().min_by_key(|(_, seen)| seen.at).map(|(key, _)| key.clone());
            oldest.map(|oldest| all.remove(&oldest));
        }
        let seen = all.entry(key).or_insert(Seen { at: now, took_ms: None, failed: None });
        seen.at = now;
        match took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1)) {
            Some(took) => {
                seen.failed = None;
                seen.took_ms = Some(seen.took_ms.map_or(took, |before| (before * 3).saturating_add(took).div_ceil(4)));
            }
            None => seen.failed = Some(now),
        }
    }

    /// What a call there is taken to take, in milliseconds.
    fn expected_ms(&self, peer: &PeerId, listed: &Listed, now: Instant) -> u64 {
        let all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = all.get(&(*peer, listed.name.clone()));
        let claimed = Some(u64::from(listed.took_ms)).filter(|ms| *ms > 0);
        let each = seen.and_then(|seen| seen.took_ms).or(claimed).unwrap_or(UNKNOWN_MS);
        // Those before us take their turns first.
        let before = u64::from(listed.waiting) + u64::from(listed.running >= listed.at_once);
        let turns = before.div_ceil(u64::from(listed.at_once.max(1)));
        let failed = seen.and_then(|seen| seen.failed).is_some_and(|at| now.saturating_duration_since(at) < LATELY);
        let extra = if failed { u64::try_from(AFTER_FAILURE.as_millis()).unwrap_or(0) } else { 0 };
        each.saturating_mul(turns.saturating_add(1)).saturating_add(extra)
    }
}

/// A provider, and what it offers.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) peer: PeerId,
    pub(crate) listed: Listed,
    /// What a call there is taken to take, in milliseconds.
    pub(crate) expected_ms: u64,
    /// Price and time as one number; nothing for who is never called.
    pub(crate) score: Option<u64>,
}

/// Price and time as one number, or nothing for who is never called.
fn score(price: u64, expected_ms: u64, repute: Option<Repute>) -> Option<u64> {
    let risk = match repute {
        Some(Repute::Convicted) => return None,
        Some(repute) => u64::from(repute.risk_ppm()),
        None => 0,
    };
    let cost = price.saturating_add(expected_ms.saturating_mul(SECOND) / 1000);
    // What does not finish is called again elsewhere.
    Some(cost.saturating_add((u128::from(cost) * u128::from(risk) / 1_000_000).try_into().unwrap_or(u64::MAX)))
}

impl Services {
    /// Who offers a service, the best first; those that are never called last.
    pub(crate) async fn offers(&self, name: &Name) -> Vec<Offer> {
        let mut providers = self.handle.find_providers(service_key(name)).await;
        let deadline = tokio::time::Instant::now() + LOOK;
        let mut until = deadline;
        let (mut asking, mut asked, mut offers) = (FuturesUnordered::new(), Vec::new(), Vec::new());
        let mut looking = true;
        loop {
            tokio::select! {
                found = providers.recv(), if looking => match found {
                    Some(peer) if peer != self.local() && !asked.contains(&peer) && asked.len() < ASKED => {
                        asked.push(peer);
                        asking.push(async move { (peer, self.list(peer, Some(name.clone())).await) });
                    }
                    Some(_) => {}
                    None => looking = false,
                },
                Some((peer, listed)) = asking.next() => match listed {
                    Ok(listed) => {
                        let now = Instant::now();
                        for listed in listed.into_iter().filter(|listed| listed.name == *name) {
                            offers.push(self.offer(peer, listed, now));
                            until = until.min(tokio::time::Instant::now() + GRACE);
                        }
                    }
                    Err(error) => tracing::debug!(%peer, %error, "a provider of a service is not reached"),
                },
                () = sleep_until(until) => break,
                else => break,
            }
            if !looking && asking.is_empty() {
                break;
            }
        }
        offers.sort_by_key(|offer| (offer.score.is_none(), offer.score, offer.peer.to_bytes()));
        offers
    }

    fn offer(&self, peer: PeerId, listed: Listed, now: Instant) -> Offer {
        let expected_ms = self.experience.expected_ms(&peer, &listed, now);
        let score = score(listed.price, expected_ms, self.ledger.reputes().of(&peer));
        Offer { peer, listed, expected_ms, score }
    }

    /// Those that may be called, the best first.
    ///
    /// # Errors
    /// When nobody offers it, or all ask more than may be given.
    pub(super) async fn choose(
        &self,
        name: &Name,
        max_price: Option<u64>,
        within: Duration,
    ) -> Result<Vec<Offer>, InferError> {
        let mut offers = timeout(within, self.offers(name)).await.unwrap_or_default();
        offers.retain(|offer| offer.score.is_some());
        if offers.is_empty() {
            return Err(InferError::new(ErrorCode::NotFound, format!("nobody was found who offers {name}"))
                .hint("'--peer' calls one that is known; 'quelea service list --name' shows who is found"));
        }
        let cheapest = offers.iter().map(|offer| offer.listed.price).min().unwrap_or_default();
        let most = max_price.unwrap_or(u64::MAX);
        offers.retain(|offer| offer.listed.price <= most);
        if offers.is_empty() {
            let message =
                format!("{name} costs at least {} credits, and at most {} are given", Credits(cheapest), Credits(most));
            return Err(InferError::new(ErrorCode::PriceTooHigh, message));
        }
        Ok(offers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(price: u64, took_ms: u32) -> Listed {
        Listed {
            name: "echo".parse().unwrap(),
            version: 1,
            price,
            input_max: 1,
            output_max: 1,
            deadline_ms: 1,
            at_once: 2,
            running: 0,
            waiting: 0,
            took_ms,
            about: String::new(),
        }
    }

    #[test]
    fn cheap_fast_and_honest_is_better() {
        assert!(score(1000, 100, None) < score(2000, 100, None));
        assert!(score(1000, 100, None) < score(1000, 500, None));
        assert!(score(1000, 100, None) < score(1000, 100, Some(Repute::Bad(-100_000))));
        assert!(score(1000, 100, Some(Repute::Bad(-100_000))) < score(1000, 100, Some(Repute::Default)));
        assert_eq!(score(0, 0, Some(Repute::Convicted)), None);
        assert_eq!(score(u64::MAX, u64::MAX, Some(Repute::Default)), Some(u64::MAX));
    }

    #[test]
    fn what_was_measured_counts_before_what_is_claimed() {
        let (seen, peer, now) = (Experience::default(), PeerId::random(), Instant::now());
        assert_eq!(seen.expected_ms(&peer, &listed(1, 0), now), UNKNOWN_MS);
        assert_eq!(seen.expected_ms(&peer, &listed(1, 5), now), 5);
        seen.note(peer, &"echo".parse().unwrap(), Some(Duration::from_millis(700)), now);
        assert_eq!(seen.expected_ms(&peer, &listed(1, 5), now), 700);
        // Three before us, two at a time.
        let busy = Listed { running: 2, waiting: 2, ..listed(1, 5) };
        assert_eq!(seen.expected_ms(&peer, &busy, now), 700 * 3);
        seen.note(peer, &"echo".parse().unwrap(), None, now);
        assert_eq!(seen.expected_ms(&peer, &listed(1, 5), now), 10_700);
        assert_eq!(seen.expected_ms(&peer, &listed(1, 5), now + LATELY), 700);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let seen = Experience::default();
        for _ in 0..2 * REMEMBERED {
            seen.note(PeerId::random(), &"echo".parse().unwrap(), None, Instant::now());
        }
        assert!(seen.seen.lock().unwrap().len() <= REMEMBERED);
    }
}
