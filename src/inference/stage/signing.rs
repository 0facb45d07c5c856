//! Commitments of this node's stages, signed beside the stages' threads.

use libp2p::identity::Keypair;
use quelea_ledger::receipt::Part;
use quelea_shard::{
    commitment::{Commitment, Point},
    frame::{Commit, Open, Receipt, SessionId},
    link::ControlSender,
};
use quelea_wire::NetworkId;
use tokio::sync::mpsc;

use crate::telemetry::metrics::Metrics;

/// Commitments that may wait to be signed: those of a few hundred chunks of prompts. One that has no place is not made; the
/// next one of the same session stands for its rows, too.
const QUEUE: usize = 1024;

/// What is to be signed, and who gets it.
struct Unsigned {
    control: ControlSender,
    of: Of,
}

enum Of {
    Commitment(Commitment),
    Part(Box<Part>),
}

/// Takes what stages commit to. Never waits.
#[derive(Clone)]
pub(in crate::inference) struct Signer {
    queue: mpsc::Sender<Unsigned>,
    metrics: Metrics,
    #[cfg(test)]
    pub(super) mood: super::mischief::Mood,
}

impl Signer {
    /// Signs as `keypair` until every clone is gone.
    pub(in crate::inference) fn spawn(keypair: Keypair, network: NetworkId, metrics: Metrics) -> Self {
        let (queue, unsigned) = mpsc::channel(QUEUE);
        let signer = Self {
            queue,
            metrics,
            #[cfg(test)]
            mood: super::mischief::Mood::default(),
        };
        let by = By {
            keypair,
            network,
            metrics: signer.metrics.clone(),
            #[cfg(test)]
            mood: signer.mood.clone(),
        };
        tokio::spawn(sign(by, unsigned));
        signer
    }

    /// Has the session's coordinator told of `points`.
    pub(super) fn commit(&self, control: &ControlSender, open: &Open, points: impl IntoIterator<Item = Point>) {
        for Point { first, rows, in_root, out_root } in points {
            let Open { session, epoch, model, profile, span, .. } = *open;
            let of = Commitment { session, epoch, model, profile, span, first, rows, in_root, out_root };
            self.queue(control, Of::Commitment(of));
        }
    }

    /// Has the session's coordinator told what was done for it.
    pub(super) fn receipt(&self, control: &ControlSender, part: Part) {
        self.queue(control, Of::Part(Box::new(part)));
    }

    fn queue(&self, control: &ControlSender, of: Of) {
        let full = self.queue.try_send(Unsigned { control: control.clone(), of }).is_err();
        self.metrics.channel_full_if(full, "commitments");
    }
}

/// Who signs.
struct By {
    keypair: Keypair,
    network: NetworkId,
    metrics: Metrics,
    #[cfg(test)]
    mood: super::mischief::Mood,
}

impl By {
    fn receipt(&self, control: &ControlSender, part: &Part) {
        match part.seal(&self.keypair, &self.network) {
            Ok(envelope) => {
                // Who does not read has no receipt.
                let _ = control.send(Receipt { session: SessionId(part.session), epoch: part.epoch, envelope });
            }
            Err(error) => tracing::warn!(%error, "nothing can be signed with this node's identity"),
        }
    }
}

async fn sign(by: By, mut unsigned: mpsc::Receiver<Unsigned>) {
    while let Some(Unsigned { control, of }) = unsigned.recv().await {
        let of = match of {
            Of::Commitment(of) => of,
            Of::Part(part) => {
                by.receipt(&control, &part);
                continue;
            }
        };
        let (session, epoch) = (of.session, of.epoch);
        #[cfg(test)]
        let Some((of, epoch)) = by.mood.twist(of, epoch) else { continue };
        match of.seal(&by.keypair, &by.network) {
            Ok(envelope) => {
                let commit = Commit { session, epoch, envelope };
                #[cfg(test)]
                let commit = by.mood.forge(commit);
                // A coordinator that does not read has its sessions end by themselves.
                let sent = control.send(commit).is_ok();
                by.metrics.commitment(if sent { "signed" } else { "unread" });
            }
            Err(error) => tracing::warn!(%error, "nothing can be signed with this node's identity"),
        }
    }
}
