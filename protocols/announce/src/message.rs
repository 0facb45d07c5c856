//! What an announcement says, and its one encoding.
//!
//! ```text
//! announcement = [seq, issued ms, expires ms, tombstone, reach, [* offer], [* address bytes], [* [peer bytes, ms]]]
//! offer        = [model bytes(32), profile, [start, end], layers in the model, state, decode rows/s, prefill rows/s,
//!                 queue, free KV pages, decode price, prefill price, ? ends]
//! ```
//!
//! CBOR arrays in the shortest form; a decoder accepts only what its own encoder would have written. The signer is not in
//! the body: the envelope's key says who speaks.

use libp2p::{Multiaddr, PeerId};
use minicbor::{Decoder, Encoder};
use quelea_wire::{ModelId, Profile, SpanRange};

/// Offers in one announcement. A node serves a span or two; eight keep the message under its size.
pub const MAX_OFFERS: usize = 8;
/// Addresses in one announcement: TCP and QUIC on IPv4 and IPv6, as many through relays.
pub const MAX_ADDRS: usize = 8;
/// Bytes of one address. A relayed one with two peer ids has some 95.
pub const MAX_ADDR_BYTES: usize = 128;
/// Round-trip samples in one announcement: a chain has few neighbours.
pub const MAX_RTT: usize = 8;
/// The longest an announcement may live, in milliseconds: ten minutes. A worker that dies without a word is forgotten then.
pub const MAX_LIFETIME_MS: u64 = 600_000;

/// Whether a span can be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Weights are being read; not yet usable.
    Loading,
    /// Takes new sessions.
    Ready,
    /// Finishes what it has and takes nothing new.
    Draining,
}

/// How a peer says it can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Reach {
    /// It does not know yet.
    #[default]
    Unknown,
    /// Other peers have dialled it directly.
    Direct,
    /// Through a relay, or after a hole punch.
    Relayed,
}

/// One span of layers that a peer serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The model.
    pub model: ModelId,
    /// The arithmetic the peer computes with.
    pub profile: Profile,
    /// The layers it holds, half-open.
    pub span: SpanRange,
    /// Layers in the whole model.
    pub layers_total: u16,
    /// Whether it can be used now.
    pub state: State,
    /// Measured speed of decoding, in layer-rows per second (one row through one layer).
    pub decode_rows_per_s: u32,
    /// Measured speed of prefill, in layer-rows per second.
    pub prefill_rows_per_s: u32,
    /// Sessions waiting or running.
    pub queue: u16,
    /// Free pages of keys and values, 32 tokens each.
    pub kv_pages_free: u32,
    /// Price of decoding, in micro-credits per 1,000 layer-rows.
    pub price_decode: u64,
    /// Price of prefill, in micro-credits per 1,000 layer-rows.
    pub price_prefill: u64,
    /// What it holds, and computes for others, besides the layers.
    pub ends: Ends,
}

/// What a peer computes of a model besides layers, for those who have nothing of the model. On the wire a number: 1 for the
/// embedding, 2 for the head, 3 for both; without either it is not there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Ends {
    /// It embeds token ids, and sees them; of use where the span begins with layer 0.
    pub embedding: bool,
    /// It gives logits; of use where the span ends with the last layer.
    pub head: bool,
}

impl Ends {
    fn number(self) -> u8 {
        match (self.embedding, self.head) {
            (false, false) => 0,
            (true, false) => 1,
            (false, true) => 2,
            (true, true) => 3,
        }
    }
}

/// What a peer says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Who speaks; always the signer.
    pub peer: PeerId,
    /// Grows with every announcement of this peer; see [`next_seq`](crate::next_seq).
    pub seq: u64,
    /// When it was signed, in Unix milliseconds.
    pub issued_ms: u64,
    /// When it stops being true, in Unix milliseconds; at most [`MAX_LIFETIME_MS`] after `issued_ms`.
    pub expires_ms: u64,
    /// What it serves; at most [`MAX_OFFERS`].
    pub offers: Vec<Offer>,
    /// Where it can be dialled; at most [`MAX_ADDRS`] of [`MAX_ADDR_BYTES`] each.
    pub addrs: Vec<Multiaddr>,
    /// Measured round trips to other peers, in milliseconds; at most [`MAX_RTT`].
    pub rtt: Vec<(PeerId, u16)>,
    /// How it can be reached.
    pub reach: Reach,
    /// The peer leaves: forget what it offered. Offers are empty then.
    pub tombstone: bool,
}

/// Why bytes are not an announcement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not the CBOR that an announcement is made of.
    #[error("malformed: {0}")]
    Malformed(String),
    /// A list is longer than allowed; its elements were not read.
    #[error("{len} {what}, but at most {max} are accepted")]
    TooMany {
        /// Elements claimed.
        len: u64,
        /// Elements allowed.
        max: usize,
        /// Of what.
        what: &'static str,
    },
    /// Readable, but not the one encoding of what it says.
    #[error("not in canonical form")]
    NotCanonical,
    /// A span ends past its model, or a tombstone offers something.
    #[error("{0}")]
    Senseless(&'static str),
}

impl From<minicbor::decode::Error> for DecodeError {
    fn from(error: minicbor::decode::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl Announcement {
    /// An announcement without offers that lives as long as one may. Fill in the rest.
    #[must_use]
    pub fn new(peer: PeerId, seq: u64, issued_ms: u64) -> Self {
        Self {
            peer,
            seq,
            issued_ms,
            expires_ms: issued_ms.saturating_add(MAX_LIFETIME_MS),
            offers: Vec::new(),
            addrs: Vec::new(),
            rtt: Vec::new(),
            reach: Reach::Unknown,
            tombstone: false,
        }
    }

    /// The last word of a peer that leaves.
    #[must_use]
    pub fn tombstone(peer: PeerId, seq: u64, issued_ms: u64) -> Self {
        Self { tombstone: true, ..Self::new(peer, seq, issued_ms) }
    }

    /// Drops round-trip samples, then addresses, from the end until the encoding has at most `max` bytes. Offers are never
    /// dropped: what is served must be said.
    pub fn shrink_to(&mut self, max: usize) {
        while self.encode().len() > max && (self.rtt.pop().is_some() || self.addrs.pop().is_some()) {}
    }

    /// Checks what no encoding can express: list lengths, spans within their models, tombstones without offers.
    ///
    /// # Errors
    /// Says which rule is broken.
    pub fn check(&self) -> Result<(), DecodeError> {
        for (len, max, what) in [
            (self.offers.len(), MAX_OFFERS, "offers"),
            (self.addrs.len(), MAX_ADDRS, "addresses"),
            (self.rtt.len(), MAX_RTT, "round-trip samples"),
        ] {
            if len > max {
                return Err(DecodeError::TooMany { len: u64::try_from(len).unwrap_or(u64::MAX), max, what });
            }
        }
        if self.offers.iter().any(|offer| offer.span.end() > offer.layers_total) {
            return Err(DecodeError::Senseless("a span ends past the last layer of its model"));
        }
        if self.addrs.iter().any(|addr| addr.len() > MAX_ADDR_BYTES) {
            return Err(DecodeError::Senseless("an address is longer than any that can be dialled"));
        }
        if self.tombstone && !self.offers.is_empty() {
            return Err(DecodeError::Senseless("a peer that leaves offers nothing"));
        }
        Ok(())
    }

    /// The bytes that are signed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        // Writing to a vector cannot fail: minicbor's error type for it is `Infallible`.
        let _ = self.write(&mut Encoder::new(&mut out));
        out
    }

    fn write(&self, e: &mut Encoder<&mut Vec<u8>>) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        e.array(8)?.u64(self.seq)?.u64(self.issued_ms)?.u64(self.expires_ms)?.bool(self.tombstone)?;
        e.u8(match self.reach {
            Reach::Unknown => 0,
            Reach::Direct => 1,
            Reach::Relayed => 2,
        })?;
        e.array(len(&self.offers))?;
        for offer in &self.offers {
            let ends = offer.ends.number();
            e.array(if ends == 0 { 11 } else { 12 })?
                .encode(offer.model)?
                .encode(offer.profile)?
                .encode(offer.span)?
                .u16(offer.layers_total)?;
            e.u8(match offer.state {
                State::Loading => 0,
                State::Ready => 1,
                State::Draining => 2,
            })?;
            e.u32(offer.decode_rows_per_s)?.u32(offer.prefill_rows_per_s)?.u16(offer.queue)?;
            e.u32(offer.kv_pages_free)?.u64(offer.price_decode)?.u64(offer.price_prefill)?;
            if ends > 0 {
                e.u8(ends)?;
            }
        }
        e.array(len(&self.addrs))?;
        for addr in &self.addrs {
            e.bytes(addr.as_ref())?;
        }
        e.array(len(&self.rtt))?;
        for (peer, ms) in &self.rtt {
            e.array(2)?.bytes(&peer.to_bytes())?.u16(*ms)?;
        }
        Ok(())
    }

    /// Reads what `signer` signed. Nothing is allocated by a length that the bytes only claim.
    ///
    /// # Errors
    /// When the bytes are malformed, not canonical, over a limit, or say what cannot be.
    pub fn decode(signer: PeerId, body: &[u8]) -> Result<Self, DecodeError> {
        let d = &mut Decoder::new(body);
        fixed(d, 8)?;
        let mut read = Self::new(signer, d.u64()?, d.u64()?);
        read.expires_ms = d.u64()?;
        read.tombstone = d.bool()?;
        read.reach = match d.u8()? {
            0 => Reach::Unknown,
            1 => Reach::Direct,
            2 => Reach::Relayed,
            _ => return Err(DecodeError::Malformed("unknown reach".to_owned())),
        };
        for _ in 0..list(d, MAX_OFFERS, "offers")? {
            read.offers.push(offer(d)?);
        }
        for _ in 0..list(d, MAX_ADDRS, "addresses")? {
            let addr = Multiaddr::try_from(d.bytes()?.to_vec());
            read.addrs.push(addr.map_err(|e| DecodeError::Malformed(e.to_string()))?);
        }
        for _ in 0..list(d, MAX_RTT, "round-trip samples")? {
            fixed(d, 2)?;
            let peer = PeerId::from_bytes(d.bytes()?).map_err(|e| DecodeError::Malformed(e.to_string()))?;
            read.rtt.push((peer, d.u16()?));
        }
        read.check()?;
        if read.encode() == body { Ok(read) } else { Err(DecodeError::NotCanonical) }
    }
}

fn offer(d: &mut Decoder<'_>) -> Result<Offer, DecodeError> {
    let fields = d.array()?;
    if !matches!(fields, Some(11 | 12)) {
        return Err(DecodeError::Malformed("expected an array of 11 or 12".to_owned()));
    }
    Ok(Offer {
        model: d.decode()?,
        profile: d.decode()?,
        span: d.decode()?,
        layers_total: d.u16()?,
        state: match d.u8()? {
            0 => State::Loading,
            1 => State::Ready,
            2 => State::Draining,
            _ => return Err(DecodeError::Malformed("unknown state of a span".to_owned())),
        },
        decode_rows_per_s: d.u32()?,
        prefill_rows_per_s: d.u32()?,
        queue: d.u16()?,
        kv_pages_free: d.u32()?,
        price_decode: d.u64()?,
        price_prefill: d.u64()?,
        ends: match fields {
            Some(12) => match d.u8()? {
                n @ 1..=3 => Ends { embedding: n & 1 != 0, head: n & 2 != 0 },
                _ => return Err(DecodeError::Malformed("unknown ends of a model".to_owned())),
            },
            _ => Ends::default(),
        },
    })
}

fn fixed(d: &mut Decoder<'_>, expected: u64) -> Result<(), DecodeError> {
    match d.array()? {
        Some(n) if n == expected => Ok(()),
        _ => Err(DecodeError::Malformed(format!("expected an array of {expected}"))),
    }
}

fn list(d: &mut Decoder<'_>, max: usize, what: &'static str) -> Result<u64, DecodeError> {
    let len = d.array()?.ok_or(DecodeError::NotCanonical)?;
    if usize::try_from(len).is_ok_and(|len| len <= max) {
        Ok(len)
    } else {
        Err(DecodeError::TooMany { len, max, what })
    }
}

fn len<T>(items: &[T]) -> u64 {
    u64::try_from(items.len()).unwrap_or(u64::MAX)
}
