//! Outgoing shard links, one per neighbour and kind, shared by all sessions.
//!
//! A link is opened when first asked for and kept while it is used. When it ends, whoever uses it is told by its own
//! clone; the next request for it opens a new one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId};
use quelea_shard::{
    frame::{Commit, Frame, SessionId, StreamKind},
    link::{Budget, ControlLink, ControlReceiver, ControlSender, DataSender, LinkEnd, Role, SenderConfig},
    protocol::{self, HandshakeError},
};
use tokio::sync::mpsc;
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::{plane::Plane, stage::MAX_SESSIONS};
use crate::swarm::{ConnectError, OpenStreamError};

/// A link that nobody asked for in so long is closed once its sessions are done with it.
const UNUSED: Duration = Duration::from_secs(120);

/// Links of one kind of map kept or being opened at once: two per neighbour, for as many peers as the node may be
/// connected to, and one for each session that waits for its next peer.
const MAX_LINKS: usize = 2 * 256 + MAX_SESSIONS;

/// Bytes in flight inside the process, when a node is its own neighbour.
const LOOP_BUFFER: usize = 128 * 1024;

/// Bytes of rows that may wait in all outgoing links together. One link may take half: a batch of the largest size.
const WAITING_BYTES: usize = 32 << 20;

/// Frames that one session may have unread from its stages, beside commitments. A stage answers each question once, and
/// faults once.
pub(super) const EVENTS: usize = 64;

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum LinkError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Stream(#[from] OpenStreamError),
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    #[error("too many links are open")]
    Full,
}

/// What a stage tells the coordinator of one session, or what became of it.
#[derive(Debug)]
pub(super) enum FromStage {
    Frame(Box<Frame>),
    Lost(LinkEnd),
    /// Its commitments have been judged, and something does not fit.
    Judged,
}

/// Where to what stages say of one session goes.
#[derive(Debug, Clone)]
pub(super) struct Listener {
    pub(super) events: mpsc::Sender<(PeerId, FromStage)>,
    /// Apart: there are many of them while nobody waits for a result, and whoever judges them does nothing else.
    pub(super) commitments: mpsc::Sender<(PeerId, Commit)>,
}

/// Who listens to the sessions on one control stream.
type Listeners = Arc<Mutex<HashMap<SessionId, Listener>>>;

/// The coordinator's control stream to one stage.
#[derive(Clone)]
pub(super) struct Control {
    pub(super) sender: ControlSender,
    sessions: Listeners,
}

impl Control {
    /// From now on frames of `session` go to `to`.
    pub(super) fn subscribe(&self, session: SessionId, to: Listener) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(session, to);
    }

    /// Nobody listens to `session` any more.
    pub(super) fn unsubscribe(&self, session: &SessionId) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(session);
    }
}

/// The peer at the other end of a link, and how to get there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Far<'a> {
    pub(super) peer: PeerId,
    pub(super) addrs: &'a [Multiaddr],
    /// Who says so. Where a stranger may have us dial is limited.
    pub(super) asker: PeerId,
}

/// A kept link and when it was last asked for. The lock is held while it is being opened, so that two sessions that
/// want it at once share one.
struct Slot<T> {
    link: Arc<tokio::sync::Mutex<Option<T>>>,
    used: Instant,
}

type Slots<K, T> = Mutex<HashMap<K, Slot<T>>>;

/// All outgoing links of this node.
pub(super) struct Links {
    waiting: Budget,
    data: Slots<(PeerId, StreamKind), DataSender>,
    control: Slots<PeerId, Control>,
}

impl Default for Links {
    fn default() -> Self {
        Self { waiting: Budget::new(WAITING_BYTES), data: Slots::default(), control: Slots::default() }
    }
}

impl Links {
    /// The data link to `peer`, opened if need be.
    pub(super) async fn data(
        &self,
        plane: &Arc<Plane>,
        peer: PeerId,
        kind: StreamKind,
        addrs: &[Multiaddr],
    ) -> Result<DataSender, LinkError> {
        self.data_for(plane, Far { peer, addrs, asker: plane.handle.local() }, kind).await
    }

    /// As [`Links::data`], because somebody else wants it.
    pub(super) async fn data_for(
        &self,
        plane: &Arc<Plane>,
        far: Far<'_>,
        kind: StreamKind,
    ) -> Result<DataSender, LinkError> {
        let slot = slot(&self.data, (far.peer, kind))?;
        let mut link = slot.lock().await;
        if let Some(sender) = link.as_ref().filter(|sender| sender.end().is_none()) {
            return Ok(sender.clone());
        }
        let sender = open_data(plane, far, kind).await?;
        *link = Some(sender.clone());
        Ok(sender)
    }

    /// The control link to the stage at `peer`, opened if need be.
    pub(super) async fn control(
        &self,
        plane: &Arc<Plane>,
        peer: PeerId,
        addrs: &[Multiaddr],
    ) -> Result<Control, LinkError> {
        let slot = slot(&self.control, peer)?;
        let mut link = slot.lock().await;
        if let Some(control) = link.as_ref().filter(|control| control.sender.end().is_none()) {
            return Ok(control.clone());
        }
        let (sender, receiver) = open_control(plane, peer, addrs).await?;
        let control = Control { sender, sessions: Arc::default() };
        *link = Some(control.clone());
        tokio::spawn(route_frames(peer, receiver, control.sessions.clone()));
        Ok(control)
    }

    /// Bytes a second that the bulk link to `peer` has carried, if there is one that has carried enough to tell.
    pub(super) fn bytes_per_s(&self, peer: PeerId) -> Option<u64> {
        let links = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        let link = links.get(&(peer, StreamKind::Bulk))?.link.try_lock().ok()?;
        link.as_ref()?.bytes_per_s()
    }

    /// One way to `peer`, by acknowledgements of the tokens that went there, if there is a link.
    pub(super) fn one_way(&self, peer: PeerId) -> Option<Duration> {
        let links = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        let link = links.get(&(peer, StreamKind::Decode))?.link.try_lock().ok()?;
        link.as_ref()?.rtt().map(|rtt| rtt.mean / 2)
    }

    /// Links that are kept, or being opened.
    pub(super) fn len(&self) -> usize {
        let data = self.data.lock().unwrap_or_else(PoisonError::into_inner).len();
        data + self.control.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Has new links opened to `peer`. Sessions that use the old ones keep them: if those lead nowhere any more, they notice,
    /// but nobody else has to.
    pub(super) fn renew(&self, peer: &PeerId) {
        self.data.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _), _| of != peer);
        self.control.lock().unwrap_or_else(PoisonError::into_inner).remove(peer);
    }

    /// Lets go of every link.
    pub(super) fn clear(&self) {
        self.data.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.control.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Lets go of links that have ended or that nobody asked for lately. Sessions that use one keep it alive.
    pub(super) fn sweep(&self) {
        sweep(&self.data, |sender| sender.end().is_some());
        sweep(&self.control, |control| control.sender.end().is_some());
    }
}

fn slot<K: std::hash::Hash + Eq, T>(
    slots: &Slots<K, T>,
    key: K,
) -> Result<Arc<tokio::sync::Mutex<Option<T>>>, LinkError> {
    let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
    if !slots.contains_key(&key) && slots.len() >= MAX_LINKS {
        return Err(LinkError::Full);
    }
    let slot = slots.entry(key).or_insert_with(|| Slot { link: Arc::default(), used: Instant::now() });
    slot.used = Instant::now();
    Ok(slot.link.clone())
}

fn sweep<K, T>(slots: &Slots<K, T>, ended: impl Fn(&T) -> bool) {
    let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
    // A slot that is locked is being opened, and so in use.
    slots.retain(|_, slot| {
        let over = slot.link.try_lock().is_ok_and(|link| link.as_ref().is_none_or(&ended));
        !over && slot.used.elapsed() < UNUSED
    });
}

async fn open_data(plane: &Arc<Plane>, far: Far<'_>, kind: StreamKind) -> Result<DataSender, LinkError> {
    let Far { peer, addrs, asker } = far;
    let (config, waiting) = (SenderConfig::default(), plane.links.waiting.clone());
    if peer == plane.handle.local() {
        return Ok(DataSender::spawn_within(protocol::initiate(loop_back(plane), kind).await?, config, waiting));
    }
    plane.handle.connect_for(asker, peer, addrs.to_vec()).await?;
    let stream = plane.handle.open_stream(peer).await?;
    Ok(DataSender::spawn_within(protocol::initiate(stream, kind).await?, config, waiting))
}

async fn open_control(
    plane: &Arc<Plane>,
    peer: PeerId,
    addrs: &[Multiaddr],
) -> Result<(ControlSender, ControlReceiver), LinkError> {
    if peer == plane.handle.local() {
        let negotiated = protocol::initiate(loop_back(plane), StreamKind::Control).await?;
        return Ok(ControlLink::spawn(negotiated, Role::Coordinator));
    }
    plane.handle.connect(peer, addrs.to_vec()).await?;
    let stream = plane.handle.open_stream(peer).await?;
    Ok(ControlLink::spawn(protocol::initiate(stream, StreamKind::Control).await?, Role::Coordinator))
}

/// A stream to ourselves: a node that asks may hold layers of the model, too.
fn loop_back(plane: &Arc<Plane>) -> tokio_util::compat::Compat<tokio::io::DuplexStream> {
    let (ours, theirs) = tokio::io::duplex(LOOP_BUFFER);
    tokio::spawn(Plane::serve_stream(plane.clone(), plane.handle.local(), theirs.compat()));
    ours.compat()
}

/// Hands frames to the session they belong to, and the link's end to all of them.
async fn route_frames(peer: PeerId, mut receiver: ControlReceiver, sessions: Listeners) {
    while let Some(frame) = receiver.recv().await {
        let Some(session) = session_of(&frame) else { continue };
        let to = sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&session).cloned();
        match (to, frame) {
            (None, _) => {}
            // One that has no place is missed where it is due; the next stands for its rows, too.
            (Some(to), Frame::Commit(commit)) => drop(to.commitments.try_send((peer, commit))),
            // A session that leaves 64 frames unread is stuck; its own deadline ends it.
            (Some(to), frame) => drop(to.events.try_send((peer, FromStage::Frame(Box::new(frame))))),
        }
    }
    let end = receiver.ended().await;
    let listeners: Vec<_> = sessions.lock().unwrap_or_else(PoisonError::into_inner).drain().collect();
    for (_, to) in listeners {
        let _ = to.events.try_send((peer, FromStage::Lost(end.clone())));
    }
}

fn session_of(frame: &Frame) -> Option<SessionId> {
    match frame {
        Frame::Accept(f) => Some(f.session),
        Frame::Refuse(f) => Some(f.session),
        Frame::State(f) => Some(f.session),
        Frame::Closed(f) => Some(f.session),
        Frame::Fault(f) => Some(f.session),
        Frame::Stalled(f) => Some(f.session),
        Frame::Rerouted(f) => Some(f.session),
        Frame::Commit(f) => Some(f.session),
        Frame::Receipt(f) => Some(f.session),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_links_of_one_peer_are_renewed() {
        let (links, back, other) = (Links::default(), PeerId::random(), PeerId::random());
        for peer in [back, other] {
            let _ = slot(&links.control, peer).unwrap();
            for kind in [StreamKind::Decode, StreamKind::Bulk] {
                let _ = slot(&links.data, (peer, kind)).unwrap();
            }
        }
        let used = slot(&links.control, back).unwrap();
        links.renew(&back);
        assert_eq!(links.len(), 3);
        assert!(!Arc::ptr_eq(&used, &slot(&links.control, back).unwrap()), "the next one opens its own");
        assert!(links.data.lock().unwrap().keys().all(|(peer, _)| *peer == other));
    }
}
