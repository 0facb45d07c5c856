//! The frame that opens a session at a stage.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId};
use quelea_wire::{ModelId, Profile, SpanRange, TraceParent};

use super::{
    DecodeError, MAX_DEADLINE_MS, SessionId,
    control::SESSION,
    cursor::{Cursor, MAX_PEER, put_peer, put_session},
    data::Form,
    ends::Ends,
    pay::Pay,
    prefix::Prefix,
};

/// The most addresses of the next peer that Open carries.
pub const MAX_ADDRS: usize = 4;

/// The longest of them, in bytes; a relayed address with certificate hashes takes some 200.
pub const MAX_ADDR: usize = 256;

/// The most bytes of a list of addresses.
pub(super) const MAX_ADDRS_LEN: usize = 1 + MAX_ADDRS * (2 + MAX_ADDR);

/// The widest row, in f32s: twice the widest published model.
pub const MAX_WIDTH: u32 = 32 * 1024;

/// Opens a session at a stage, or opens it anew with a higher epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The session, unique among those of this coordinator.
    pub session: SessionId,
    /// Raised by the coordinator alone.
    pub epoch: u32,
    /// Which model.
    pub model: ModelId,
    /// With which arithmetic.
    pub profile: Profile,
    /// Which of its layers this stage computes.
    pub span: SpanRange,
    /// Values per row, 1 to [`MAX_WIDTH`].
    pub width: u32,
    /// The most rows that the session will ever hold: the length of prompt and answer. At least 1.
    pub max_rows: u32,
    /// Milliseconds within which a batch must leave the stage again. At least 1.
    pub step_deadline_ms: u32,
    /// Milliseconds without rows after which the stage drops the session. At least 1.
    pub idle_ms: u32,
    /// Whom rows are taken from; the coordinator itself at the first stage.
    pub prev: PeerId,
    /// Whom rows are sent to; the coordinator itself at the last stage.
    pub next: PeerId,
    /// Where `next` can be dialled; only the first [`MAX_ADDRS`] of at most [`MAX_ADDR`] bytes are sent.
    pub next_addrs: Vec<Multiaddr>,
    /// How the prompt begins: blocks that the stage has kept are taken over, the others kept for sessions to come. Only
    /// with [`PREFIX`](crate::protocol::PREFIX).
    pub prefix: Prefix,
    /// What of the model's ends the stage computes besides its layers. Only with [`THIN`](crate::protocol::THIN).
    pub ends: Ends,
    /// What its rows are paid by, if they are. Only with [`PAY`](crate::protocol::PAY).
    pub pay: Option<Pay>,
    /// The coordinator's span that this session is part of, where it traces the request. Only with
    /// [`TRACE`](crate::protocol::TRACE). It is the coordinator's word, and says nothing of the session.
    pub trace: Option<TraceParent>,
}

impl Open {
    pub(super) const MAX_LEN: usize = SESSION
        + 32
        + 2
        + 2 * 2
        + 4 * 4
        + 2 * (1 + MAX_PEER)
        + MAX_ADDRS_LEN
        + Prefix::MAX_LEN
        + Ends::LEN
        + Pay::LEN
        + TraceParent::LEN;

    /// The form of rows of the residual stream in this session.
    #[must_use]
    pub fn rows(&self) -> Form {
        Form::of_rows(self.profile)
    }

    /// [`Self::step_deadline_ms`], at most an hour.
    #[must_use]
    pub fn step_deadline(&self) -> Duration {
        Duration::from_millis(u64::from(self.step_deadline_ms.min(MAX_DEADLINE_MS)))
    }

    /// [`Self::idle_ms`], at most an hour.
    #[must_use]
    pub fn idle(&self) -> Duration {
        Duration::from_millis(u64::from(self.idle_ms.min(MAX_DEADLINE_MS)))
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        out.extend_from_slice(&self.model.0);
        for n in [self.profile.to_u16(), self.span.start(), self.span.end()] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        for n in [self.width, self.max_rows, self.step_deadline_ms, self.idle_ms] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        put_peer(out, Some(&self.prev));
        put_peer(out, Some(&self.next));
        put_addrs(out, &self.next_addrs);
        let (paid, traced) = (self.pay.is_some(), self.trace.is_some());
        self.prefix.put(out, self.ends != Ends::default() || paid || traced);
        self.ends.put(out, paid || traced);
        Pay::put(self.pay.as_ref(), out, traced);
        if let Some(trace) = &self.trace {
            out.extend_from_slice(&trace.to_bytes());
        }
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        let model = ModelId(c.array()?);
        let profile = Profile::from_u16(c.u16()?);
        let span = SpanRange::new(c.u16()?, c.u16()?).map_err(|_| DecodeError::Field("span"))?;
        let [width, max_rows, step_deadline_ms, idle_ms] = [c.u32()?, c.u32()?, c.u32()?, c.u32()?];
        if width == 0 || width > MAX_WIDTH {
            return Err(DecodeError::Field("width"));
        }
        if max_rows == 0 {
            return Err(DecodeError::Field("max_rows"));
        }
        if step_deadline_ms == 0 || idle_ms == 0 {
            return Err(DecodeError::Field("deadline"));
        }
        let prev = c.peer("prev")?.ok_or(DecodeError::Field("prev"))?;
        let next = c.peer("next")?.ok_or(DecodeError::Field("next"))?;
        let next_addrs = take_addrs(c)?;
        Ok(Self {
            session,
            epoch,
            model,
            profile,
            span,
            width,
            max_rows,
            step_deadline_ms,
            idle_ms,
            prev,
            next,
            next_addrs,
            prefix: Prefix::take(c)?,
            ends: Ends::take(c)?,
            pay: Pay::take(c)?,
            trace: take_trace(c)?,
        })
    }
}

/// The last field of Open, where there is one.
fn take_trace(c: &mut Cursor<'_>) -> Result<Option<TraceParent>, DecodeError> {
    if c.is_empty() {
        return Ok(None);
    }
    TraceParent::from_bytes(c.bytes(TraceParent::LEN)?).map(Some).map_err(|_| DecodeError::Field("trace"))
}

/// Writes those of `addrs` that may be sent.
pub(super) fn put_addrs(out: &mut Vec<u8>, addrs: &[Multiaddr]) {
    let sendable = || addrs.iter().filter(|a| a.len() <= MAX_ADDR).take(MAX_ADDRS);
    out.push(u8::try_from(sendable().count()).unwrap_or(0));
    for addr in sendable() {
        out.extend_from_slice(&u16::try_from(addr.len()).unwrap_or(0).to_le_bytes());
        out.extend_from_slice(addr.as_ref());
    }
}

pub(super) fn take_addrs(c: &mut Cursor<'_>) -> Result<Vec<Multiaddr>, DecodeError> {
    let count = usize::from(c.u8()?);
    if count > MAX_ADDRS {
        return Err(DecodeError::Field("next_addrs"));
    }
    let mut addrs = Vec::with_capacity(count);
    for _ in 0..count {
        let len = usize::from(c.u16()?);
        if len > MAX_ADDR {
            return Err(DecodeError::Field("next_addrs"));
        }
        let bytes = c.bytes(len)?.to_vec();
        addrs.push(Multiaddr::try_from(bytes).map_err(|_| DecodeError::Field("next_addrs"))?);
    }
    Ok(addrs)
}
