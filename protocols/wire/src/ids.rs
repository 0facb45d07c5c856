//! Names that are numbers: the network, a model, a numeric profile.

use std::{fmt, str::FromStr};

use libp2p::StreamProtocol;

/// Separates the hash that names a network from every other hash in the project.
const NETWORK_DOMAIN: &str = "quelea network v1";

/// Hex digits of the network id that stand in protocol names: enough to keep networks apart by accident, short in logs.
const SHORT_NETWORK: usize = 8;

/// Hex digits of a model id shown to people.
const SHORT_MODEL: usize = 12;

/// Which swarm a node belongs to. Two nodes with different network ids share no protocol and so never talk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkId(pub [u8; 32]);

impl NetworkId {
    /// The id of the network called `name` (`main` unless the operator says otherwise).
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        Self(blake3::derive_key(NETWORK_DOMAIN, name.as_bytes()))
    }

    /// The first eight hex digits, as they stand in protocol names.
    #[must_use]
    pub fn short(&self) -> String {
        hex::encode(self.0).chars().take(SHORT_NETWORK).collect()
    }

    /// `/quelea/<net>/<name>/<major>`. `name` is a constant of the calling crate, never a peer's input.
    #[must_use]
    pub fn protocol(&self, name: &str, major: u32) -> StreamProtocol {
        let path = format!("/quelea/{}/{name}/{major}", self.short());
        // The only way this fails is a path without a leading slash, and ours has one.
        StreamProtocol::try_from_owned(path).unwrap_or(StreamProtocol::new("/quelea/invalid"))
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkId({})", self.short())
    }
}

/// A model: the BLAKE3 of its manifest's canonical CBOR.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(pub [u8; 32]);

impl ModelId {
    /// The first twelve hex digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        hex::encode(self.0).chars().take(SHORT_MODEL).collect()
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelId({})", self.short())
    }
}

/// A string that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a model id: {found:?} (expected 64 hex digits)")]
pub struct ParseIdError {
    /// What was given, cut to a length that fits a line.
    pub found: String,
}

impl FromStr for ModelId {
    type Err = ParseIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let mut id = [0; 32];
        match hex::decode_to_slice(s, &mut id) {
            Ok(()) => Ok(Self(id)),
            Err(_) => Err(ParseIdError { found: s.chars().take(80).collect() }),
        }
    }
}

impl<C> minicbor::Encode<C> for ModelId {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for ModelId {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let bytes = d.bytes()?;
        <[u8; 32]>::try_from(bytes).map(Self).map_err(|_| minicbor::decode::Error::message("a model id has 32 bytes"))
    }
}

/// Which definition of the arithmetic a peer computes with. Two peers of one profile give the same bits; a chain mixes
/// profiles only if the request allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Profile {
    /// Candle on the CPU, f32 residual stream.
    CandleCpu,
    /// The exact kernels: one function, bit for bit, on every processor. Keys and values are kept as f32.
    Exact,
    /// The exact kernels; keys and values are kept as f16.
    ExactKvF16,
    /// The exact kernels; keys and values are kept in 8 bits.
    ExactKvQ8,
    /// The exact kernels, keys and values kept as f32; the residual stream is rounded to bf16 before the first layer and after
    /// each, for links that carry half the bytes.
    ExactBf16,
    /// Candle on a CUDA device.
    CandleCuda,
    /// Candle on a Metal device.
    CandleMetal,
    /// A profile this version does not know.
    Other(u16),
}

impl Profile {
    /// The number on the wire.
    #[must_use]
    pub fn to_u16(self) -> u16 {
        match self {
            Self::CandleCpu => 1,
            Self::Exact => 2,
            Self::ExactKvF16 => 3,
            Self::ExactKvQ8 => 4,
            Self::CandleCuda => 5,
            Self::CandleMetal => 6,
            Self::ExactBf16 => 7,
            Self::Other(n) => n,
        }
    }

    /// The profile with this number on the wire.
    #[must_use]
    pub fn from_u16(n: u16) -> Self {
        match n {
            1 => Self::CandleCpu,
            2 => Self::Exact,
            3 => Self::ExactKvF16,
            4 => Self::ExactKvQ8,
            5 => Self::CandleCuda,
            6 => Self::CandleMetal,
            7 => Self::ExactBf16,
            n => Self::Other(n),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CandleCpu => f.write_str("candle-cpu"),
            Self::Exact => f.write_str("exact"),
            Self::ExactKvF16 => f.write_str("exact-kv-f16"),
            Self::ExactKvQ8 => f.write_str("exact-kv-q8"),
            Self::CandleCuda => f.write_str("candle-cuda"),
            Self::CandleMetal => f.write_str("candle-metal"),
            Self::ExactBf16 => f.write_str("exact-bf16"),
            Self::Other(n) => write!(f, "profile-{n}"),
        }
    }
}

impl<C> minicbor::Encode<C> for Profile {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.u16(self.to_u16())?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Profile {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        d.u16().map(Self::from_u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_ids_are_frozen() {
        let main = NetworkId::from_name("main");
        assert_eq!(main.protocol("shard", 1).as_ref(), format!("/quelea/{}/shard/1", main.short()));
        assert_eq!(main.short().len(), 8);
        assert_ne!(main, NetworkId::from_name("club"));
        assert_eq!(main.short(), "ca376a87");
    }

    #[test]
    fn a_model_id_survives_text_and_cbor() {
        let id = ModelId([0xa5; 32]);
        assert_eq!(id.to_string().parse::<ModelId>().unwrap(), id);
        let bytes = minicbor::to_vec(id).unwrap();
        assert_eq!(minicbor::decode::<ModelId>(&bytes).unwrap(), id);
        assert!("a5".parse::<ModelId>().unwrap_err().to_string().contains("64 hex digits"));
        assert!(minicbor::decode::<ModelId>(&[0x43, 1, 2, 3]).is_err());
    }

    #[test]
    fn unknown_profiles_keep_their_number() {
        for n in (0..10).chain([u16::MAX]) {
            assert_eq!(Profile::from_u16(n).to_u16(), n);
        }
    }
}
