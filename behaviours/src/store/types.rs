//! What the store is told, and what it tells.

use std::time::Duration;

/// How much is held. The defaults take at most 4,096 x (1 KiB + 128 B) = 4.5 MiB of values and 16,384 x some 0.9 KiB =
/// 14 MiB of provider records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreLimits {
    /// Bytes of a key. Ours have 49 at most, a file's hash 34.
    pub key_bytes: usize,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Values of others in all.
    pub values: usize,
    /// Values of one peer.
    pub values_per_peer: usize,
    /// How long a value is kept; its publisher renews it.
    pub value_ttl: Duration,
    /// New values a peer may put per ten seconds.
    pub values_per_10_s: u32,
    /// Values, and keys provided, of our own.
    pub own: usize,
    /// Provider records of others in all.
    pub providers: usize,
    /// Provider records of one peer: seven models of 128 layers, one key a model and one for 8 layers.
    pub providers_per_peer: usize,
    /// Providers of one key. All are sent in one answer: see [`MAX_PACKET`](crate::kad::MAX_PACKET).
    pub providers_per_key: usize,
    /// How long a provider record is kept at most.
    pub provider_ttl: Duration,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            key_bytes: 128,
            value_bytes: 1024,
            values: 4096,
            values_per_peer: 64,
            value_ttl: Duration::from_secs(24 * 3600),
            values_per_10_s: 10,
            own: 1024,
            providers: 16_384,
            providers_per_peer: 128,
            providers_per_key: 32,
            provider_ttl: crate::config::PROVIDER_TTL,
        }
    }
}

/// Why a record of another peer is not held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The key is longer than [`StoreLimits::key_bytes`].
    #[error("the key is too long")]
    KeyTooLong,
    /// The value is longer than [`StoreLimits::value_bytes`].
    #[error("the value is too long")]
    ValueTooLong,
    /// Nothing is held that nobody vouches for, but for the user namespace.
    #[error("not a namespace for values")]
    Namespace,
    /// Not signed by whom the key names, or malformed.
    #[error("not validly signed by the peer that the key names")]
    Invalid,
    /// A newer value of the same signer is held.
    #[error("older than what is held")]
    Stale,
    /// We publish this key ourselves.
    #[error("a key of our own")]
    Own,
    /// The peer puts too fast.
    #[error("too many values in too short a time")]
    Rate,
    /// The peer has its share, or everything is taken by peers that hold less.
    #[error("no room left for this peer")]
    Quota,
    /// Already expired.
    #[error("expired")]
    Expired,
}

impl Refusal {
    /// Every reason, for metrics that show zeros.
    pub const ALL: [Self; 9] = [
        Self::KeyTooLong,
        Self::ValueTooLong,
        Self::Namespace,
        Self::Invalid,
        Self::Stale,
        Self::Own,
        Self::Rate,
        Self::Quota,
        Self::Expired,
    ];

    /// The reason as a label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::KeyTooLong => "key_too_long",
            Self::ValueTooLong => "value_too_long",
            Self::Namespace => "namespace",
            Self::Invalid => "invalid",
            Self::Stale => "stale",
            Self::Own => "own",
            Self::Rate => "rate",
            Self::Quota => "quota",
            Self::Expired => "expired",
        }
    }
}

/// What the store holds and has done, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Values of others.
    pub values: usize,
    /// Bytes of those values.
    pub value_bytes: usize,
    /// Values of our own.
    pub own_values: usize,
    /// Provider records of others.
    pub providers: usize,
    /// Keys those are for.
    pub provider_keys: usize,
    /// Keys we provide.
    pub own_providers: usize,
    /// Peers that hold a place here.
    pub peers: usize,
    /// Records refused since the start.
    pub refused: u64,
    /// Records that gave way to others since the start.
    pub replaced: u64,
    /// Records that expired since the start.
    pub expired: u64,
    /// Peers and addresses that were kept out of the routing table since the start, because their group has its share.
    pub crowded: u64,
}
