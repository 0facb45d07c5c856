//! Asking a peer what it serves.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream::FuturesUnordered};
use libp2p::PeerId;
use quelea_announce::SignedAnnouncement;

use super::experience::{Experience, Said};
use crate::swarm::{AnnouncementError, ConnectError, Handle};

/// For how long what one request was told does for others: those that come together ask each peer once, so that no peer
/// takes a busy coordinator for a nuisance.
const SHARED: Duration = Duration::from_millis(500);

/// How long an answer may take before a peer that has other connections is asked once more, over the next of them. A process
/// that was killed and started again is connected twice for ten seconds, and on one of the two nobody answers.
const AGAIN: Duration = Duration::from_millis(400);

/// How often one peer is asked at most, all connections together.
const TIMES: usize = 3;

/// Why a peer has said nothing; in words.
pub(super) enum Unheard {
    /// It is there, and may say something later.
    Busy(String),
    /// It cannot be reached, or serves nothing.
    Gone(String),
}

/// [`ask`], with whom.
pub(super) async fn ask_named(
    handle: &Handle,
    experience: &Experience,
    peer: PeerId,
) -> (PeerId, Result<Said, Unheard>) {
    (peer, ask(handle, experience, peer).await)
}

/// What a peer says now; what it said before, where another request has just asked, or it is there and does not answer.
async fn ask(handle: &Handle, experience: &Experience, peer: PeerId) -> Result<Said, Unheard> {
    if let Some(said) = experience.last_said(&peer).filter(|said| said.at.elapsed() < SHARED) {
        return Ok(said);
    }
    if let Err(error) = handle.connect(peer, Vec::new()).await {
        let reason = error.to_string();
        // Only what was dialled has failed.
        if let ConnectError::Dial { .. } | ConnectError::Timeout { .. } = error {
            experience.failed(peer, &reason);
        }
        return Err(Unheard::Gone(reason));
    }
    match fetch(handle, peer).await {
        Ok(Some(announcement)) => {
            let said = Said { announcement, at: Instant::now() };
            experience.has_said(peer, said.clone());
            Ok(said)
        }
        Ok(None) => Err(Unheard::Gone("it serves nothing at present".into())),
        Err(error) => experience.last_said(&peer).ok_or_else(|| Unheard::Busy(error.to_string())),
    }
}

/// The first answer of a peer, over whichever of its connections it comes.
async fn fetch(handle: &Handle, peer: PeerId) -> Result<Option<SignedAnnouncement>, AnnouncementError> {
    let mut asked = FuturesUnordered::new();
    asked.push(handle.fetch_announcement(peer));
    let mut times = 1;
    loop {
        tokio::select! {
            Some(answer) = asked.next() => match answer {
                Err(_) if !asked.is_empty() => {}
                answer => return answer,
            },
            () = tokio::time::sleep(AGAIN), if times < TIMES => {
                times += 1;
                let snapshot = handle.snapshot().await;
                let view = snapshot.iter().flat_map(|s| &s.peers).find(|view| view.peer == peer);
                if view.is_some_and(|view| view.addrs.len() > 1) {
                    asked.push(handle.fetch_announcement(peer));
                }
            }
        }
    }
}
