//! Frames of the control stream by which a session goes on when a stage is lost. All of them need
//! [`FAILOVER`](crate::protocol::FAILOVER).

use libp2p::{Multiaddr, PeerId};
use quelea_wire::ErrorCode;

use super::{
    DecodeError, SessionId,
    control::SESSION,
    cursor::{Cursor, MAX_PEER, put_code, put_peer, put_session},
    open::{MAX_ADDRS_LEN, put_addrs, take_addrs},
};

/// The longest signed commitment, in bytes.
pub const MAX_COMMITMENT: usize = 256;

/// The stage cannot hand rows on: the next peer is lost to it. It keeps what it has, and goes on computing, for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stalled {
    /// The session.
    pub session: SessionId,
    /// Its epoch at the stage.
    pub epoch: u32,
    /// What the stage met.
    pub code: ErrorCode,
    /// The next peer.
    pub about: PeerId,
}

impl Stalled {
    pub(super) const MAX_LEN: usize = SESSION + 2 + 1 + MAX_PEER;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        put_code(out, self.code);
        put_peer(out, Some(&self.about));
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        Ok(Self { session, epoch, code: c.code()?, about: c.peer("about")?.ok_or(DecodeError::Field("about"))? })
    }
}

/// The session goes on in a higher epoch, between other neighbours: the stage keeps its rows, finishes those that it is
/// computing, reaches `next`, and answers with [`Rerouted`]. Until [`Resume`] it hands nothing on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reroute {
    /// The session.
    pub session: SessionId,
    /// The new epoch.
    pub epoch: u32,
    /// Whom rows are taken from; the coordinator itself at the first stage.
    pub prev: PeerId,
    /// Whom rows are sent to; the coordinator itself at the last stage.
    pub next: PeerId,
    /// Where `next` can be dialled, as in [`Open`](super::Open).
    pub next_addrs: Vec<Multiaddr>,
}

impl Reroute {
    pub(super) const MAX_LEN: usize = SESSION + 2 * (1 + MAX_PEER) + MAX_ADDRS_LEN;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        put_peer(out, Some(&self.prev));
        put_peer(out, Some(&self.next));
        put_addrs(out, &self.next_addrs);
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        let prev = c.peer("prev")?.ok_or(DecodeError::Field("prev"))?;
        let next = c.peer("next")?.ok_or(DecodeError::Field("next"))?;
        Ok(Self { session, epoch, prev, next, next_addrs: take_addrs(c)? })
    }
}

/// The stage is between its new neighbours, and computes nothing of the old epoch any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rerouted {
    /// The session.
    pub session: SessionId,
    /// The new epoch.
    pub epoch: u32,
    /// The position that the next row must have.
    pub pos: u32,
    /// The first row of which the stage still has what it computed, at most `pos`.
    pub log_from: u32,
}

impl Rerouted {
    pub(super) const LEN: usize = SESSION + 4 + 4;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        out.extend_from_slice(&self.pos.to_le_bytes());
        out.extend_from_slice(&self.log_from.to_le_bytes());
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        let (pos, log_from) = (c.u32()?, c.u32()?);
        if log_from > pos {
            return Err(DecodeError::Field("log_from"));
        }
        Ok(Self { session, epoch, pos, log_from })
    }
}

/// Hand on rows from `from` to `until`: first what was computed before, then what is computed from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// The session.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: u32,
    /// What the next peer has no row of: where handing on begins. Of no account once the stage hands on.
    pub from: u32,
    /// Where it stops until another Resume, so that a replay does not overrun who computes it; `u32::MAX`: nowhere.
    pub until: u32,
    /// The row that commitments begin with.
    pub roots_from: u32,
}

impl Resume {
    pub(super) const LEN: usize = SESSION + 3 * 4;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        for n in [self.from, self.until, self.roots_from] {
            out.extend_from_slice(&n.to_le_bytes());
        }
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        let [from, until, roots_from] = [c.u32()?, c.u32()?, c.u32()?];
        if until < from {
            return Err(DecodeError::Field("until"));
        }
        Ok(Self { session, epoch, from, until, roots_from })
    }
}

/// What the stage took in and gave out so far, signed. Its content is opaque to this crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The session.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: u32,
    /// The signed envelope, 1 to [`MAX_COMMITMENT`] bytes.
    pub envelope: Vec<u8>,
}

impl Commit {
    pub(super) const MAX_LEN: usize = SESSION + 2 + MAX_COMMITMENT;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        let sent = self.envelope.get(..MAX_COMMITMENT).unwrap_or(&self.envelope);
        // MAX_COMMITMENT fits.
        out.extend_from_slice(&u16::try_from(sent.len()).unwrap_or(0).to_le_bytes());
        out.extend_from_slice(sent);
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        let len = usize::from(c.u16()?);
        if !(1..=MAX_COMMITMENT).contains(&len) {
            return Err(DecodeError::Field("envelope"));
        }
        Ok(Self { session, epoch, envelope: c.bytes(len)?.to_vec() })
    }
}
