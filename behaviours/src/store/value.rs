//! What may stand under which key.
//!
//! | key | value |
//! |---|---|
//! | `/quelea/user/…` | anything: open to everybody |
//! | `/quelea/peer/<peer id>` | a [`PeerRecord`] that the peer has signed |
//! | everything else | nothing |

use quelea_record::{PEER_PREFIX, PeerRecord, RecordError};
use quelea_wire::NetworkId;

use super::{Refusal, StoreLimits, USER_PREFIX};

/// What decides between two values of one key, and ends a value's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Standing {
    /// Higher is newer; `None` where the last writer wins.
    pub(crate) sequence: Option<u64>,
    /// Until when the value is valid by its own word, in Unix milliseconds.
    pub(crate) expires_ms: Option<u64>,
}

/// The rules of one network.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    network: NetworkId,
    key_bytes: usize,
    value_bytes: usize,
}

impl Rules {
    pub(crate) fn new(network: NetworkId, limits: &StoreLimits) -> Self {
        Self { network, key_bytes: limits.key_bytes, value_bytes: limits.value_bytes }
    }

    /// What costs nothing to find out: lengths and the namespace.
    pub(crate) fn glance(&self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        if key.len() > self.key_bytes {
            Err(Refusal::KeyTooLong)
        } else if value.len() > self.value_bytes {
            Err(Refusal::ValueTooLong)
        } else if key.starts_with(USER_PREFIX) || key.starts_with(PEER_PREFIX.as_bytes()) {
            Ok(())
        } else {
            Err(Refusal::Namespace)
        }
    }

    /// Everything, a signature included, at `now_ms` (Unix).
    pub(crate) fn judge(&self, key: &[u8], value: &[u8], now_ms: u64) -> Result<Standing, Refusal> {
        self.glance(key, value)?;
        if key.starts_with(USER_PREFIX) {
            return Ok(Standing::default());
        }
        match PeerRecord::open(key, value, &self.network, now_ms) {
            Ok(record) => Ok(Standing { sequence: Some(record.seq), expires_ms: Some(record.expires_ms) }),
            Err(RecordError::Expired) => Err(Refusal::Expired),
            Err(_) => Err(Refusal::Invalid),
        }
    }
}
