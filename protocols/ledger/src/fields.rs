//! The fields that messages, packets and rows are made of, each with its one encoding.

use std::fmt;

use libp2p::PeerId;

/// Bytes of an Ed25519 peer id: the identity multihash of the protobuf of a key. Other identities have no account.
pub const PEER_BYTES: usize = 38;

/// The longest envelope inside a message or a sync: a note with its lock has 335 bytes.
pub const MAX_RAW: usize = 480;

/// What is wrong with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// They end before their fields do.
    #[error("ends before its last field")]
    Short,
    /// They go on after the last field.
    #[error("goes on after its last field")]
    Long,
    /// A field has a value that it cannot have.
    #[error("{0} is not in its one form")]
    Field(&'static str),
    /// A kind that this version does not know.
    #[error("kind {0} is not known here")]
    Kind(u8),
}

/// What is counted. Pairs of different units have nothing to do with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unit(pub u32);

impl Unit {
    /// Micro-credits.
    pub const CREDIT: Self = Self(1);
}

/// A BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Of nothing yet: what comes before the first note.
    pub const ZERO: Self = Self([0; 32]);
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(6).try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// A hold's name: 16 random bytes that its debtor chose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HoldId(pub [u8; 16]);

impl HoldId {
    /// Of a note that settles no hold.
    pub const NONE: Self = Self([0; 16]);
}

impl fmt::Debug for HoldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// One side's part of a session's name. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nonce(pub [u8; 16]);

/// An envelope inside a message, packet or row, as it was received.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Raw(pub Vec<u8>);

/// Something with one encoding.
pub(crate) trait Field: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(input: &mut &[u8]) -> Result<Self, DecodeError>;
}

fn split<'a>(input: &mut &'a [u8], n: usize) -> Result<&'a [u8], DecodeError> {
    let (head, rest) = input.split_at_checked(n).ok_or(DecodeError::Short)?;
    *input = rest;
    Ok(head)
}

fn array<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], DecodeError> {
    let (head, rest) = input.split_first_chunk::<N>().ok_or(DecodeError::Short)?;
    *input = rest;
    Ok(*head)
}

macro_rules! number {
    ($($t:ty),*) => {$(
        impl Field for $t {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(input: &mut &[u8]) -> Result<Self, DecodeError> {
                Ok(Self::from_le_bytes(array(input)?))
            }
        }
    )*};
}

number!(u8, u16, u32, u64, i32);

macro_rules! bytes {
    ($($t:ident),*) => {$(
        impl Field for $t {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.0);
            }
            fn take(input: &mut &[u8]) -> Result<Self, DecodeError> {
                Ok(Self(array(input)?))
            }
        }
    )*};
}

bytes!(Hash, HoldId, Nonce);

impl Field for Unit {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
    }

    fn take(input: &mut &[u8]) -> Result<Self, DecodeError> {
        Ok(Self(u32::take(input)?))
    }
}

impl Field for PeerId {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_bytes());
    }

    fn take(input: &mut &[u8]) -> Result<Self, DecodeError> {
        let bytes = split(input, PEER_BYTES)?;
        let peer = Self::from_bytes(bytes).map_err(|_| DecodeError::Field("peer"))?;
        if is_ed25519(&peer) && peer.to_bytes() == bytes { Ok(peer) } else { Err(DecodeError::Field("peer")) }
    }
}

/// Whether a peer can have an account.
pub(crate) fn is_ed25519(peer: &PeerId) -> bool {
    // identity multihash, 36 bytes: protobuf field 1 = key type 1 (Ed25519), field 2 = 32 bytes
    peer.to_bytes().starts_with(&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20])
}

impl<T: Field> Field for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            None => out.push(0),
            Some(value) => {
                out.push(1);
                value.put(out);
            }
        }
    }

    fn take(input: &mut &[u8]) -> Result<Self, DecodeError> {
        match u8::take(input)? {
            0 => Ok(None),
            1 => Ok(Some(T::take(input)?)),
            _ => Err(DecodeError::Field("presence")),
        }
    }
}

impl Field for Raw {
    fn put(&self, out: &mut Vec<u8>) {
        let sent = self.0.get(..MAX_RAW).unwrap_or(&self.0);
        u16::try_from(sent.len()).unwrap_or(0).put(out);
        out.extend_from_slice(sent);
    }

    fn take(input: &mut &[u8]) -> Result<Self, DecodeError> {
        let len = usize::from(u16::take(input)?);
        if len > MAX_RAW {
            return Err(DecodeError::Field("envelope"));
        }
        Ok(Self(split(input, len)?.to_vec()))
    }
}

/// A list of at most `N` elements behind a u8 count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct List<T, const N: usize>(pub(crate) Vec<T>);

impl<T: Field, const N: usize> Field for List<T, N> {
    fn put(&self, out: &mut Vec<u8>) {
        let sent = self.0.get(..N).unwrap_or(&self.0);
        u8::try_from(sent.len()).unwrap_or(0).put(out);
        sent.iter().for_each(|item| item.put(out));
    }

    fn take(input: &mut &[u8]) -> Result<Self, DecodeError> {
        let count = usize::from(u8::take(input)?);
        if count > N {
            return Err(DecodeError::Field("list"));
        }
        let items: Result<Vec<T>, _> = (0..count).map(|_| T::take(input)).collect();
        items.map(Self)
    }
}

/// Structs whose encoding is that of their fields, one after the other.
macro_rules! record {
    ($($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$fmeta:meta])* $fvis:vis $field:ident: $t:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        $vis struct $name { $($(#[$fmeta])* $fvis $field: $t,)* }

        impl $crate::fields::Field for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::fields::Field::put(&self.$field, out);)*
            }
            fn take(input: &mut &[u8]) -> Result<Self, $crate::fields::DecodeError> {
                Ok(Self { $($field: $crate::fields::Field::take(input)?,)* })
            }
        }
    )*};
}
pub(crate) use record;

/// The bytes of a value.
pub(crate) fn encode<T: Field>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    value.put(&mut out);
    out
}

/// A value that takes all of `bytes`.
pub(crate) fn decode<T: Field>(mut bytes: &[u8]) -> Result<T, DecodeError> {
    let value = T::take(&mut bytes)?;
    if bytes.is_empty() { Ok(value) } else { Err(DecodeError::Long) }
}
