//! What stages sign for, checked beside the session: signatures by a task of its own, roots against each other and against what
//! went to the first stage and came from the last ([`Witness`]).
//!
//! Roots that do not fit end the session: rows that have been computed since may be wrong, and so may text that its caller
//! has read. Who sends a commitment that is none for this session is left out like a stage that is lost; the roots of those
//! who got its rows are then compared with those of its successor. Who sends none is told of and counted.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use libp2p::PeerId;
use quelea_behaviours::conduct::Deed;
use quelea_shard::{
    commitment::{Commitment, Digest, Finding, Heard, Terms, Witness, digests},
    frame::{Commit, Frame},
};
use quelea_wire::{ErrorCode, Profile, SpanRange};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout_at},
};
use tracing::Instrument as _;

use super::{
    ChainSession,
    replay::computed_by,
    wait::{PROBE_TIMEOUT, Trouble},
};
use crate::inference::{
    links::FromStage,
    plane::Plane,
    types::{CommittedRows, InferError},
};

/// Commitments that may wait to be checked: those to all rows that may be on their way through a long chain at once.
pub(super) const UNCHECKED: usize = 1024;

/// Between two looks whether who came in anew has committed: it does so as it computes.
const LOOK: Duration = Duration::from_millis(5);

/// Between two times that it is asked how far it has computed.
const ASK: Duration = Duration::from_millis(200);

/// How long its commitment may take from then on, that it has computed all rows: others' wait to be signed, too.
const SIGNING: Duration = Duration::from_secs(2);

/// A session's [`Witness`], and what it has found.
pub(super) struct Trust {
    plane: Arc<Plane>,
    state: Mutex<State>,
    /// Told when a commitment was checked.
    checked: Notify,
}

struct State {
    witness: Witness,
    found: Option<Trouble>,
    /// Since when a commitment is overdue.
    owing: Option<Instant>,
    /// Peers that were told of because of that.
    withheld: HashSet<PeerId>,
    /// Peers that the session has left out already: what they still send is no trouble.
    left_out: HashSet<PeerId>,
}

impl Trust {
    /// For a session whose stages have accepted; `commits` are theirs, `wake` is told where something does not fit.
    pub(super) fn begin(
        plane: Arc<Plane>,
        terms: Terms,
        commits: mpsc::Receiver<(PeerId, Commit)>,
        wake: mpsc::Sender<(PeerId, FromStage)>,
    ) -> Arc<Self> {
        let witness = Witness::new(terms);
        let state = State { witness, found: None, owing: None, withheld: HashSet::new(), left_out: HashSet::new() };
        let trust = Arc::new(Self { plane, state: Mutex::new(state), checked: Notify::new() });
        tokio::spawn(check(trust.clone(), commits, wake).in_current_span());
        trust
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, in `epoch`, these are the stages.
    pub(super) fn arrange(&self, epoch: u32, stages: &[(PeerId, SpanRange)]) {
        let mut state = self.lock();
        state.owing = None;
        state.witness.arrange(epoch, stages);
    }

    /// The session leaves `peer` out. More of the kind that it was left out for may lie in the queue.
    pub(super) fn leave_out(&self, peer: PeerId) {
        let mut state = self.lock();
        state.left_out.insert(peer);
        if matches!(&state.found, Some(Trouble::Peer { peer: of, .. }) if *of == peer) {
            state.found = None;
        }
    }

    /// So many rows, or tokens, go to the first stage.
    pub(super) fn sent(&self, pos: u32, goes_back: bool, rows: u16, values: &[f32]) {
        let digests = of_rows(rows, values);
        self.lock().witness.sent(pos, goes_back, &digests);
    }

    /// So many rows came from the last stage.
    pub(super) fn received(&self, pos: u32, rows: u16, values: &[f32]) {
        let digests = of_rows(rows, values);
        let mut state = self.lock();
        if let Some(finding) = state.witness.received(pos, &digests) {
            self.found(&mut state, &finding);
        }
    }

    /// What does not fit, once.
    pub(super) fn trouble(&self) -> Result<(), Trouble> {
        self.lock().found.take().map_or(Ok(()), Err)
    }

    /// All stages have computed rows up to `end`. Who should have committed to them for longer than `limit` is told of.
    pub(super) fn computed(&self, end: u32, limit: Duration) {
        let mut state = self.lock();
        let owing = state.witness.owing(end);
        if owing.is_empty() {
            state.owing = None;
        } else if state.owing.get_or_insert_with(Instant::now).elapsed() >= limit {
            owing.into_iter().for_each(|peer| self.withholds(&mut state, peer));
        }
    }

    /// Who has taken a place and has still to sign, of those that were not told of because they do not.
    fn unproven(&self, end: u32) -> Option<PeerId> {
        let state = self.lock();
        state.witness.unproven(end).find(|peer| !state.withheld.contains(peer))
    }

    fn withholds(&self, state: &mut State, peer: PeerId) {
        if state.withheld.insert(peer) {
            tracing::warn!(%peer, "it does not sign for what it computes");
            self.plane.handle.deed(peer, Deed::Withheld);
            self.plane.telemetry.metrics.commitment("withheld");
        }
    }

    /// Waits until all have signed for all rows up to `end`, or until `deadline`.
    pub(super) async fn settled(&self, end: u32, deadline: Instant) {
        loop {
            let checked = self.checked.notified();
            let lacking = {
                let state = self.lock();
                if state.found.is_some() { Vec::new() } else { state.witness.lacking(end) }
            };
            if lacking.is_empty() {
                return;
            }
            if timeout_at(deadline, checked).await.is_err() {
                let mut state = self.lock();
                return lacking.into_iter().for_each(|peer| self.withholds(&mut state, peer));
            }
        }
    }

    /// What a peer has signed for at last.
    pub(super) fn report(&self, peer: &PeerId) -> Option<CommittedRows> {
        let state = self.lock();
        let latest = state.witness.latest(peer)?;
        let (in_root, out_root) = (hex::encode(latest.in_root), hex::encode(latest.out_root));
        Some(CommittedRows { rows: latest.rows, in_root, out_root })
    }

    /// What it has signed last, as it did.
    pub(super) fn envelope(&self, peer: &PeerId) -> Option<Vec<u8>> {
        Some(self.lock().witness.latest(peer)?.envelope.clone())
    }

    /// Judges one commitment. The signature is checked without the lock.
    fn judge(&self, peer: PeerId, frame: &Commit) {
        let signed = Commitment::open(&frame.envelope, &self.plane.network);
        let mut state = self.lock();
        let judged = match signed {
            Ok((signer, of)) if signer == peer && (of.session, of.epoch) == (frame.session, frame.epoch) => {
                state.witness.claim(peer, &of, &frame.envelope)
            }
            Ok(_) => {
                let why = "sends a commitment that is another's, or of another time";
                Err(Box::new(Finding::Invalid { peer, why }))
            }
            Err(error) => {
                tracing::debug!(%peer, %error, "not a commitment");
                Err(Box::new(Finding::Invalid { peer, why: "sends a commitment that it has not signed" }))
            }
        };
        match judged {
            Ok(heard) => {
                self.plane.telemetry.metrics.commitment(if heard == Heard::Kept { "kept" } else { "late" });
            }
            Err(finding) => self.found(&mut state, &finding),
        }
    }

    /// Notes what does not fit. What comes first counts.
    fn found(&self, state: &mut State, finding: &Finding) {
        let name = |peer: &PeerId| match state.witness.span(peer) {
            Some(span) => format!("peer {peer} (layers {span})"),
            None => format!("peer {peer}"),
        };
        let distrust = |peer: &PeerId| self.plane.experience.failed(*peer, "what it signs does not fit");
        let (outcome, trouble) = match finding {
            Finding::Invalid { peer, .. } if state.left_out.contains(peer) => return,
            Finding::Invalid { peer, why } => {
                self.plane.handle.deed(*peer, Deed::Invalid);
                distrust(peer);
                let error = InferError::new(ErrorCode::BadCommitment, format!("{} {why}", name(peer))).about(*peer);
                ("invalid", Trouble::Peer { peer: *peer, error: Box::new(error) })
            }
            Finding::Lie { peer, rows, why } => {
                self.plane.handle.deed(*peer, Deed::Lie);
                distrust(peer);
                let message = format!("{} {why}, within the first {rows} rows", name(peer));
                ("lie", Trouble::Fatal(InferError::new(ErrorCode::RootsDiffer, message).about(*peer).hint(WRONG)))
            }
            Finding::Differ { peers: [one, other], rows, layer } => {
                [one, other].into_iter().for_each(distrust);
                let (one, other) = (name(one), name(other));
                let message = format!(
                    "{one} and {other} have signed for different rows before layer {layer}, within the first {rows}: one of them lies"
                );
                ("differ", Trouble::Fatal(InferError::new(ErrorCode::RootsDiffer, message).hint(WRONG)))
            }
        };
        self.plane.telemetry.metrics.commitment(outcome);
        if state.found.is_none() {
            tracing::warn!(?finding, "what a stage has signed for does not fit");
            state.found = Some(trouble);
        }
    }
}

fn of_rows(rows: u16, values: &[f32]) -> Vec<Digest> {
    digests(values, values.len() / usize::from(rows).max(1))
}

/// What whoever asked has to know.
const WRONG: &str = "the text so far may be wrong; ask again: these peers are left out for a while";

/// Checks commitments until the session is over.
async fn check(
    trust: Arc<Trust>,
    mut commits: mpsc::Receiver<(PeerId, Commit)>,
    wake: mpsc::Sender<(PeerId, FromStage)>,
) {
    while let Some((peer, frame)) = commits.recv().await {
        trust.judge(peer, &frame);
        trust.checked.notify_one();
        if trust.lock().found.is_some() {
            // Where there is no place, the session looks for itself with the next result.
            let _ = wake.try_send((peer, FromStage::Judged));
        }
    }
}

impl ChainSession {
    /// What commitments of this session are about.
    pub(super) fn terms(&self) -> Terms {
        let exact =
            matches!(self.spec.profile, Profile::Exact | Profile::ExactKvF16 | Profile::ExactKvQ8 | Profile::ExactBf16);
        let (model, profile, max_rows) = (self.spec.model, self.spec.profile, self.spec.max_rows);
        Terms { session: self.id, model, profile, exact, first: self.kept_rows, max_rows }
    }

    /// Who has which layers, as [`Trust::arrange`] takes it. A last stage that gives logits signs for nothing: they are not
    /// there for every row.
    pub(super) fn arrangement(&self) -> Vec<(PeerId, SpanRange)> {
        let signing = self.stages.len() - usize::from(self.spec.ends.gives_logits > 0).min(self.stages.len());
        self.stages.iter().take(signing).map(|stage| (stage.hop.peer, stage.hop.span)).collect()
    }

    /// Waits until who has taken a place has signed for as many rows as the one before it had: so that it is known, before
    /// anything is made of its rows, that they are the same. Who does not sign in time is told of.
    pub(super) async fn vouched(&mut self) -> Result<(), Trouble> {
        let Some(trust) = self.trust.clone() else { return Ok(()) };
        let mut asked = Instant::now();
        // Who is waited for, until when at most, and when it was last heard.
        let mut waited: Option<(PeerId, Instant, Instant)> = None;
        loop {
            trust.trouble()?;
            let Some(new) = trust.unproven(self.sent) else { return Ok(()) };
            let now = Instant::now();
            let (peer, deadline, heard) =
                waited.filter(|(peer, ..)| *peer == new).unwrap_or_else(|| (new, now + self.spec.step_timeout, now));
            waited = Some((peer, deadline, heard));
            if now >= deadline {
                trust.withholds(&mut trust.lock(), new);
                continue;
            }
            if now >= heard + ASK + PROBE_TIMEOUT {
                return Err(self.lost(new, ErrorCode::HopSilent, "does not answer"));
            }
            if asked.elapsed() >= ASK {
                asked = now;
                self.probe();
            }
            match self.heard(deadline.min(now + LOOK)).await? {
                Some((peer, Frame::State(state))) if peer == new && state.epoch == self.epoch => {
                    let now = Instant::now();
                    let done = computed_by(&state) >= self.sent;
                    waited = Some((new, if done { deadline.min(now + SIGNING) } else { deadline }, now));
                }
                Some((peer, frame)) => self.event(peer, FromStage::Frame(Box::new(frame)))?,
                None => {}
            }
        }
    }
}
