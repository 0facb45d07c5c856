//! Answers that are audited without being asked: a few of a hundred, drawn when all that their stages say is signed and
//! nothing is paid yet.
//!
//! The notes of a drawn answer wait for what is found, the answer does not. At most [`PLACES`] answers wait, each at most
//! [`PATIENCE`]; beyond that, where nobody can compute them, and when this node stops, notes are signed at once.
//!
//! A node that has the model's layers computes all of an answer; one that has not asks [others] about one stage of it.

mod others;

use std::{sync::Arc, time::Duration};

use libp2p::PeerId;
use quelea_engine::StageOptions;
use quelea_wire::time::unix_ms;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};

use self::others::{Opinion, Skipped};
use super::{
    audit::{Claim, Verdict, again},
    claims::Claims,
    coordinator::{paying::Held, trail::Trail},
    models::Ends,
    plane::Plane,
    serve::profile_named,
    types::{HopReport, InferError, Summary},
};
use crate::{node::Life, telemetry::metrics::Metrics};

/// What a share is in.
pub(super) const WHOLE: u32 = 100;

/// Answers that are computed again or wait for it. Their tokens are in memory, and with each more of them notes come later.
const PLACES: usize = 4;

/// How long notes wait. Stages wait for them longer than that before they think less of who owes them.
const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// How long before a hold ends its note is signed at the latest: clocks differ by two minutes, and lines break.
const SPARE: Duration = Duration::from_secs(10 * 60);

/// How many answers are audited, and what that may cost where others do it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    /// Of a hundred.
    pub(crate) answers: u8,
    /// In hundredths of an answer's price.
    pub(crate) price: u16,
}

/// Who computes an answer again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// This node.
    Here,
    /// Others, as far as they do for pay.
    Others,
    /// Nobody comes to the same bits.
    Nobody,
}

/// Which answers are computed again.
#[derive(Clone)]
pub(crate) struct Draws {
    /// Of a hundred.
    share: u32,
    by: By,
    places: Arc<Semaphore>,
    metrics: Metrics,
}

/// Whether this number of [`WHOLE`] is one of a share's.
pub(super) fn falls(share: u32, drawn: u32) -> bool {
    drawn < share
}

/// An answer that is to be computed again.
pub(crate) struct Drawn {
    place: OwnedSemaphorePermit,
    /// The notes that wait for it.
    pub(crate) held: Option<Held>,
    /// What each stage has signed last, as it came.
    pub(crate) envelopes: Vec<(PeerId, Vec<u8>)>,
    /// What others need to compute it, where they do.
    pub(crate) trail: Option<Box<Trail>>,
}

impl Draws {
    /// An answer is complete, and these stages have signed for what they did.
    pub(crate) fn draw(&self, signed: &[PeerId]) -> Option<Drawn> {
        if !falls(self.share, rand::random_range(0..WHOLE)) {
            return None;
        }
        let place = if signed.is_empty() {
            Err(Skipped::Unsigned)
        } else if self.by == By::Nobody {
            Err(Skipped::Profile)
        } else {
            self.places.clone().try_acquire_owned().map_err(|_| Skipped::Busy)
        };
        if let Err(why) = &place {
            self.metrics.audit_skipped(why.name());
        }
        Some(Drawn { place: place.ok()?, held: None, envelopes: Vec::new(), trail: None })
    }

    /// Whether others compute what is drawn.
    pub(crate) fn by_others(&self) -> bool {
        self.by == By::Others
    }

    /// Draws nothing, in `this` one's place.
    pub(crate) fn none(this: &Self) -> Self {
        Self { share: 0, ..this.clone() }
    }
}

/// Has answers that were drawn computed again, one at a time.
pub(crate) struct Auditor {
    plane: Arc<Plane>,
    share: Share,
    compute: StageOptions,
    places: Arc<Semaphore>,
    one: Arc<Semaphore>,
    life: watch::Receiver<Life>,
    /// Where it is kept who was found, where anything is.
    claims: Option<Claims>,
}

/// What a stage has signed for, with whose claim it is.
pub(crate) struct Signed {
    peer: PeerId,
    pub(crate) claim: Claim,
}

impl Auditor {
    /// Of answers over peers such a `share` is audited, with one thread: it must be in nobody's way.
    pub(crate) fn new(
        plane: Arc<Plane>,
        share: Share,
        compute: StageOptions,
        life: watch::Receiver<Life>,
        claims: Option<Claims>,
    ) -> Self {
        let compute = StageOptions { threads: std::num::NonZeroUsize::new(1), ..compute };
        let (places, one) = (Arc::new(Semaphore::new(PLACES)), Arc::new(Semaphore::new(1)));
        Self { plane, share, compute, places, one, life, claims }
    }

    /// Who decides for a session over `ends`.
    pub(crate) fn draws(&self, ends: &Ends) -> Draws {
        let has_layers = ends.has_layers();
        #[cfg(test)]
        let has_layers = has_layers && !self.plane.lacks_layers.load(std::sync::atomic::Ordering::Relaxed);
        let by = match (has_layers, ends.is_exact()) {
            (true, _) => By::Here,
            (false, true) => By::Others,
            (false, false) => By::Nobody,
        };
        let (share, places) = (u32::from(self.share.answers), self.places.clone());
        Draws { share, by, places, metrics: self.plane.telemetry.metrics.clone() }
    }

    /// Computes an answer again, beside everything else.
    pub(crate) fn audit(&self, ends: &Arc<Ends>, summary: &Summary, drawn: Drawn) {
        let signed: Vec<Signed> = summary.hops.iter().filter_map(|hop| claim(hop, summary)).collect();
        if signed.is_empty() {
            return self.plane.telemetry.metrics.audit_skipped(Skipped::Unsigned.name());
        }
        let ids = [summary.prompt_ids.as_slice(), summary.ids.as_slice()].concat();
        let profile = profile_named(&summary.profile);
        let (plane, ends, compute, one) = (self.plane.clone(), ends.clone(), self.compute, self.one.clone());
        let Drawn { place, mut held, envelopes, trail } = drawn;
        let reports = summary.hops.clone();
        let most = most(summary.cost.as_ref().map_or(0, |cost| cost.micro_credits), self.share.price);
        let keeper = self.claims.clone();
        let computed = async move {
            #[cfg(test)]
            if is(&plane, super::Stint::Verdicts) {
                std::future::pending::<()>().await;
            }
            // Closed never: whoever holds it is here.
            let _turn = one.acquire_owned().await;
            let (mut liars, mut suspects) = (Vec::new(), Vec::new());
            match trail {
                Some(trail) => suspects = heard(&plane, others::ask(&plane, &trail, &signed, &reports, most).await),
                None => {
                    let claims: Vec<Claim> = signed.iter().map(|signed| signed.claim.clone()).collect();
                    let verdicts = again(&ends.file, profile, compute, &claims, &ids, |_| {}).await;
                    liars = judge(&plane, &signed, verdicts).await;
                }
            }
            let named = |peer: &PeerId| liars.contains(peer) || suspects.contains(peer);
            let against: Vec<_> = envelopes.into_iter().filter(|(peer, _)| named(peer)).collect();
            if let Some(keeper) = keeper.filter(|_| !against.is_empty()) {
                // The disk's affair, and nobody waits for it.
                tokio::task::spawn_blocking(move || keep(&keeper, against, &ids));
            }
            (liars, suspects)
        };
        let (metrics, mut life) = (self.plane.telemetry.metrics.clone(), self.life.clone());
        let until = Instant::now() + patience(unix_ms(), held.as_ref().map_or(u64::MAX, Held::expires_at));
        #[cfg(test)]
        let until = if is(&self.plane, super::Stint::InTime) { Instant::now() } else { until };
        #[cfg(test)]
        let stays = is(&self.plane, super::Stint::Verdicts);
        #[cfg(not(test))]
        let stays = false;
        tokio::spawn(async move {
            tokio::pin!(computed);
            let (liars, suspects) = loop {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(until), if held.is_some() => {
                        // Who lies is found all the same.
                        metrics.audit("late");
                        held = None;
                    }
                    _ = life.wait_for(|life| *life != Life::Running), if !stays => return,
                    found = &mut computed => break found,
                }
            };
            if let Some(held) = held {
                held.pay_but(&liars, &suspects);
            }
            drop(place);
        });
    }
}

/// What an audit by others may cost whose answer cost `price`.
fn most(price: u64, percent: u16) -> u64 {
    u64::try_from(u128::from(price) * u128::from(percent) / 100).unwrap_or(u64::MAX)
}

/// Keeps what there is against liars, and against suspects: whoever has the model's layers can see for himself.
fn keep(keeper: &Claims, against: Vec<(PeerId, Vec<u8>)>, ids: &[u32]) {
    for (peer, commitment) in against {
        match keeper.keep(&peer, &commitment, ids) {
            Ok(Some(path)) => {
                tracing::warn!(%peer, path = %path.display(), "what shows it is kept; see 'quelea verify'");
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%peer, %error, "what shows it cannot be kept for others"),
        }
    }
}

#[cfg(test)]
fn is(plane: &Plane, stint: super::Stint) -> bool {
    plane.stint.load(std::sync::atomic::Ordering::Relaxed) == stint as u8
}

/// How long notes may wait whose first hold ends then.
fn patience(now: u64, expires_at: u64) -> Duration {
    Duration::from_millis(expires_at.saturating_sub(now)).saturating_sub(SPARE).min(PATIENCE)
}

pub(crate) fn claim(hop: &HopReport, summary: &Summary) -> Option<Signed> {
    let committed = hop.committed.as_ref()?;
    let root = |text: &str| <[u8; 32]>::try_from(hex::decode(text).ok()?).ok();
    let first = u32::try_from(summary.cached_tokens).ok()?;
    let claim = Claim {
        span: hop.layers.parse().ok()?,
        rows: first..committed.rows,
        in_root: root(&committed.in_root)?,
        out_root: root(&committed.out_root)?,
    };
    Some(Signed { peer: hop.peer.parse().ok()?, claim })
}

/// What others say: who is suspect.
fn heard(plane: &Plane, found: Result<others::Found, Skipped>) -> Vec<PeerId> {
    let found = match found {
        Ok(found) => found,
        Err(why) => {
            tracing::info!(reason = why.name(), "an answer that was drawn is not audited");
            plane.telemetry.metrics.audit_skipped(why.name());
            return Vec::new();
        }
    };
    let opinion = match found.opinion {
        Opinion::Right => "right",
        Opinion::GivenOthers => "given_others",
        Opinion::Undecided => "undecided",
        Opinion::Against => "against",
    };
    tracing::debug!(stage = %found.stage, opinion, "others have computed a stage's rows");
    plane.telemetry.metrics.audit(opinion);
    for (peer, why) in &found.suspects {
        plane.suspect(*peer, why);
    }
    found.suspects.into_iter().map(|(peer, _)| peer).collect()
}

/// Who has lied. This node has seen it with its own eyes: it is certain, and nobody else's opinion.
async fn judge(plane: &Plane, signed: &[Signed], verdicts: Result<Vec<Verdict>, InferError>) -> Vec<PeerId> {
    let verdicts = match verdicts {
        Ok(verdicts) => verdicts,
        Err(error) => {
            tracing::warn!(%error, "an answer could not be audited");
            plane.telemetry.metrics.audit("failed");
            return Vec::new();
        }
    };
    let mut liars = Vec::new();
    for (signed, verdict) in signed.iter().zip(verdicts) {
        let (peer, layers) = (signed.peer, signed.claim.span);
        plane.telemetry.metrics.audit(match verdict {
            Verdict::Right => "right",
            Verdict::GivenOthers => "given_others",
            Verdict::Wrong => "wrong",
        });
        if verdict == Verdict::Wrong {
            tracing::warn!(%peer, %layers, "an audit shows that it gave on other rows than the model's, and signed for them");
            plane.convict(peer, "an audit shows that it computes wrongly").await;
            liars.push(peer);
        }
    }
    liars
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_costs_such_a_share_of_the_answer_at_most() {
        assert_eq!((most(1000, 200), most(999, 50), most(1000, 0), most(0, 1000)), (2000, 499, 0, 0));
        assert_eq!(most(u64::MAX, 1000), u64::MAX);
    }

    #[test]
    fn notes_are_signed_well_before_their_holds_end() {
        let minutes = |n: u64| n * 60_000;
        assert_eq!(patience(minutes(5), minutes(64)), PATIENCE);
        assert_eq!(patience(minutes(5), minutes(17)), Duration::from_secs(120));
        assert_eq!(patience(minutes(5), minutes(15)), Duration::ZERO);
        assert_eq!(patience(minutes(5), minutes(1)), Duration::ZERO);
        assert_eq!(patience(minutes(5), u64::MAX), PATIENCE);
    }
}
