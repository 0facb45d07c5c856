//! Answers that are audited without being asked: a few of a hundred, drawn when all that their stages say is signed.

use std::sync::Arc;

use libp2p::PeerId;
use quelea_behaviours::conduct::Deed;
use quelea_engine::StageOptions;
use tokio::sync::Semaphore;

use super::{
    audit::{Claim, Verdict, again},
    models::Ends,
    plane::Plane,
    serve::profile_named,
    types::{HopReport, InferError, Summary},
};

/// What a share is in.
const WHOLE: u32 = 100;

/// Draws answers and has them computed again, one at a time.
pub(crate) struct Auditor {
    plane: Arc<Plane>,
    /// Of a hundred answers.
    share: u32,
    compute: StageOptions,
    one: Arc<Semaphore>,
}

/// What a stage has signed for, with whose claim it is.
struct Signed {
    peer: PeerId,
    claim: Claim,
}

impl Auditor {
    /// Of a hundred answers over peers so many are audited, with one thread: it must be in nobody's way.
    pub(crate) fn new(plane: Arc<Plane>, share: u8, compute: StageOptions) -> Self {
        let compute = StageOptions { threads: std::num::NonZeroUsize::new(1), ..compute };
        Self { plane, share: u32::from(share), compute, one: Arc::new(Semaphore::new(1)) }
    }

    /// An answer is complete. Nobody knew before now whether it would be drawn.
    pub(crate) fn consider(&self, ends: &Arc<Ends>, summary: &Summary) {
        if self.share == 0 || summary.hops.is_empty() || rand::random_range(0..WHOLE) >= self.share {
            return;
        }
        let count = |outcome| self.plane.telemetry.metrics.audit(outcome);
        let signed: Vec<Signed> = summary.hops.iter().filter_map(|hop| claim(hop, summary)).collect();
        if signed.is_empty() || !ends.has_layers() {
            return count("skipped");
        }
        let Ok(turn) = self.one.clone().try_acquire_owned() else { return count("skipped") };
        let ids = [summary.prompt_ids.as_slice(), summary.ids.as_slice()].concat();
        let profile = profile_named(&summary.profile);
        let (plane, ends, compute) = (self.plane.clone(), ends.clone(), self.compute);
        tokio::spawn(async move {
            let claims: Vec<Claim> = signed.iter().map(|signed| signed.claim.clone()).collect();
            let verdicts = again(&ends.file, profile, compute, &claims, &ids, |_| {}).await;
            judge(&plane, &signed, verdicts).await;
            drop(turn);
        });
    }
}

fn claim(hop: &HopReport, summary: &Summary) -> Option<Signed> {
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

/// This node has seen it with its own eyes: it is certain, and nobody else's opinion.
async fn judge(plane: &Plane, signed: &[Signed], verdicts: Result<Vec<Verdict>, InferError>) {
    let verdicts = match verdicts {
        Ok(verdicts) => verdicts,
        Err(error) => {
            tracing::warn!(%error, "an answer could not be audited");
            return plane.telemetry.metrics.audit("failed");
        }
    };
    for (signed, verdict) in signed.iter().zip(verdicts) {
        let (peer, layers) = (signed.peer, signed.claim.span);
        plane.telemetry.metrics.audit(match verdict {
            Verdict::Right => "right",
            Verdict::GivenOthers => "given_others",
            Verdict::Wrong => "wrong",
        });
        if verdict == Verdict::Wrong {
            tracing::warn!(%peer, %layers, "an audit shows that it gave on other rows than the model's, and signed for them");
            plane.experience.failed(peer, "an audit shows that it computes wrongly");
            plane.handle.deed(peer, Deed::Fraud);
            plane.ledger().convict(peer).await;
        }
    }
}
