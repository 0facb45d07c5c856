//! How prompts begin, by names that say nothing of their tokens.

use std::fmt;

use super::{
    DecodeError, SessionId,
    control::SESSION,
    cursor::{Cursor, put_session},
};

/// Rows of a block. A block has a name and is kept as a whole.
pub const BLOCK_ROWS: u32 = 32;

/// The most blocks of a session that have names: its first 4,096 rows. 2 KiB of keys are a quarter of one row of a
/// model of 2,048 values.
pub const MAX_KEYS: usize = 128;

/// The name of a block and of all before it: the beginning of a keyed hash over them, of which only the coordinator has
/// the key. Stages compare it and nothing else, among the names of the same coordinator. With 128 bits two beginnings of
/// one coordinator share a name by chance after some 2^64 blocks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey(pub [u8; 16]);

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl BlockKey {
    pub(super) const LEN: usize = 16;
}

/// The names of a prompt's whole blocks, from the first on. Without keys it is nothing, on the wire too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefix {
    /// At most [`MAX_KEYS`]; those beyond are not sent.
    pub keys: Vec<BlockKey>,
    /// How many blocks may be taken over, at most as many as there are keys. A prompt's last row is always computed, so a
    /// block that ends the prompt has a name, but is not taken over.
    pub reuse: u8,
}

impl Prefix {
    pub(super) const MAX_LEN: usize = 2 + MAX_KEYS * BlockKey::LEN;

    /// Rows that may be taken over.
    #[must_use]
    pub fn reuse_rows(&self) -> u32 {
        u32::from(self.reuse).saturating_mul(BLOCK_ROWS)
    }

    /// What is empty takes no byte, so that frames without keys are those of before; where another field follows, it is a
    /// count of 0.
    pub(super) fn put(&self, out: &mut Vec<u8>, followed: bool) {
        if self.keys.is_empty() && followed {
            out.push(0);
        } else if !self.keys.is_empty() {
            put_keys(out, &self.keys);
            let count = self.keys.len().min(MAX_KEYS);
            out.push(self.reuse.min(u8::try_from(count).unwrap_or(u8::MAX)));
        }
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        if c.is_empty() {
            return Ok(Self::default());
        }
        let keys = match c.u8()? {
            // Without a field behind it the count would not be there.
            0 if c.is_empty() => return Err(DecodeError::Field("keys")),
            0 => return Ok(Self::default()),
            count => take_keys(c, count)?,
        };
        let reuse = c.u8()?;
        if usize::from(reuse) > keys.len() {
            return Err(DecodeError::Field("reuse"));
        }
        Ok(Self { keys, reuse })
    }
}

/// More names for blocks of a session, once their rows are computed: those of an answer, which will be part of the next
/// prompt. Not answered; a stage that cannot use them passes over them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// The session.
    pub session: SessionId,
    /// Its epoch.
    pub epoch: u32,
    /// The block that the first key names: as many as were named before.
    pub first: u8,
    /// Their names, at least one; only the first [`MAX_KEYS`] are sent.
    pub keys: Vec<BlockKey>,
}

impl Keep {
    pub(super) const MAX_LEN: usize = SESSION + 2 + MAX_KEYS * BlockKey::LEN;

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        put_session(out, self.session, self.epoch);
        out.push(self.first);
        put_keys(out, &self.keys);
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let (session, epoch) = c.session()?;
        let (first, count) = (c.u8()?, c.u8()?);
        Ok(Self { session, epoch, first, keys: take_keys(c, count)? })
    }
}

fn put_keys(out: &mut Vec<u8>, keys: &[BlockKey]) {
    let sent = keys.get(..MAX_KEYS).unwrap_or(keys);
    // MAX_KEYS fits.
    out.push(u8::try_from(sent.len()).unwrap_or(0));
    sent.iter().for_each(|key| out.extend_from_slice(&key.0));
}

fn take_keys(c: &mut Cursor<'_>, count: u8) -> Result<Vec<BlockKey>, DecodeError> {
    let count = usize::from(count);
    if !(1..=MAX_KEYS).contains(&count) {
        return Err(DecodeError::Field("keys"));
    }
    let bytes = c.bytes(count.saturating_mul(BlockKey::LEN))?;
    let (keys, _) = bytes.as_chunks::<{ BlockKey::LEN }>();
    Ok(keys.iter().copied().map(BlockKey).collect())
}
