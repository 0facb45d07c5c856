//! Receipts: what a session's stages did for their coordinator, and what it cost.
//!
//! Each stage signs a [`Part`] when the session closes; the coordinator signs a [`Receipt`] over all of them. A receipt can be
//! checked by anybody, offline: who did what, that the amounts follow from rows and prices and add up, that the layers are
//! whole, and that each stage took in what the one before it gave out. That the rows are right it does not say; for that the
//! layers are computed again from the inputs, and their roots compared.
//!
//! ```text
//! file:     "quelea receipt 1\n" | network id [32] | envelope, kind 2, of the coordinator
//! receipt:  session [16] | model [32] | profile u16 | layers u16 | span u16 u16 | prompt rows u32 | answer rows u32 | total u64 |
//!           unix ms u64 | u8 count of entries | u8 count of lost ones
//! entry:    part (u16 length, envelope) | commitment (u16 length, envelope or nothing) | note hash [32] (zeros: not paid)
//! lost:     stage | span u16 u16 | work | hold id [16] | note hash [32]
//! part, in an envelope of kind 1 of the stage:
//!           session [16] | coordinator | model [32] | profile u16 | span u16 u16 | epoch u32 | work | hold id [16] (zeros: free) |
//!           first row u32 | rows u32 | in-root [32] | out-root [32] | unix ms u64
//! work:     prefill rows u64 | decode rows u64 | decode price u64 | prefill price u64 | amount u64
//! ```
//!
//! Envelopes are those of [`quelea_wire::envelope`] in the domain [`DOMAIN`]; numbers little-endian, peers 38 bytes, nothing
//! behind the last field. A *lost* stage did not live to sign: what it is said to have done is the coordinator's word alone.
//! The commitment is the stage's last one (`quelea_shard::commitment`, domain `quelea/commitment/1`), whose body is made of
//! fields of the part.

mod check;

use libp2p::{PeerId, identity::Keypair};
use quelea_wire::{
    ModelId, NetworkId, Price, Profile, SpanRange, WorkedRows,
    envelope::{self, EnvelopeError, Signed},
};

pub use self::check::{PartReport, Report};
use crate::fields::{DecodeError, Field, Hash, HoldId, List, Raw, decode, encode, record};

/// What separates receipts from everything else that a node signs.
pub const DOMAIN: &str = "quelea/receipt/1";

/// The kinds of envelopes in that domain.
const PART: u8 = 1;
const WHOLE: u8 = 2;

/// What a file begins with.
const MAGIC: &[u8] = b"quelea receipt 1\n";

/// Stages of one receipt, and as many that were lost, at most: all of them fit into an envelope's 65,535 bytes.
pub const MAX_PARTS: usize = 64;

/// The longest envelope of a part, in bytes.
pub const MAX_PART: usize = envelope::OVERHEAD + 300;

/// The longest file, in bytes.
pub const MAX_FILE: usize = MAGIC.len() + 32 + envelope::OVERHEAD + u16::MAX as usize;

impl<const N: usize> Field for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn take(input: &mut &[u8]) -> Result<Self, DecodeError> {
        let (head, rest) = input.split_first_chunk::<N>().ok_or(DecodeError::Short)?;
        *input = rest;
        Ok(*head)
    }
}

/// Numbers of the wire that this crate's fields have no type for.
macro_rules! as_numbers {
    ($name:ident, $put:expr, $take:expr) => {
        impl Field for $name {
            fn put(&self, out: &mut Vec<u8>) {
                let put: fn(&Self, &mut Vec<u8>) = $put;
                put(self, out);
            }

            fn take(input: &mut &[u8]) -> Result<Self, DecodeError> {
                let take: fn(&mut &[u8]) -> Result<Self, DecodeError> = $take;
                take(input)
            }
        }
    };
}

as_numbers!(ModelId, |id, out| id.0.put(out), |input| Ok(ModelId(Field::take(input)?)));
as_numbers!(Profile, |profile, out| profile.to_u16().put(out), |input| Ok(Profile::from_u16(Field::take(input)?)));
as_numbers!(
    SpanRange,
    |span, out| {
        span.start().put(out);
        span.end().put(out);
    },
    |input| SpanRange::new(Field::take(input)?, Field::take(input)?).map_err(|_| DecodeError::Field("span"))
);

record! {
    /// What was computed, and what that costs.
    #[derive(Copy)]
    pub struct Work {
        /// Rows of the prompt.
        pub prefill: u64,
        /// Rows of the answer.
        pub decode: u64,
        /// Micro-credits for 1,000 layer-rows of answers.
        pub price_decode: u64,
        /// Micro-credits for 1,000 layer-rows of prompts.
        pub price_prefill: u64,
        /// Micro-credits for all of it.
        pub amount: u64,
    }

    /// What one stage says that it did.
    pub struct Part {
        /// The session.
        pub session: [u8; 16],
        /// For whom.
        pub coordinator: PeerId,
        /// Of which model.
        pub model: ModelId,
        /// With which arithmetic.
        pub profile: Profile,
        /// Which layers.
        pub span: SpanRange,
        /// The epoch in which it ended.
        pub epoch: u32,
        /// How much.
        pub work: Work,
        /// What it is paid by; none where it is free.
        pub hold: HoldId,
        /// Position of the first row that the roots are over.
        pub first: u32,
        /// The position behind the last one; 0 where the stage signs for no rows.
        pub rows: u32,
        /// Root over the rows that came in.
        pub in_root: [u8; 32],
        /// Root over the rows that went out.
        pub out_root: [u8; 32],
        /// When, in Unix milliseconds of the stage's clock.
        pub at: u64,
    }

    /// A stage that signed, as it stands in a receipt.
    pub struct Entry {
        /// The signed [`Part`].
        pub part: Raw,
        /// The stage's last commitment, or nothing.
        pub commitment: Raw,
        /// The note that paid it, or [`Hash::ZERO`].
        pub note: Hash,
    }

    /// A stage that was lost, by the coordinator's word.
    pub struct Lost {
        /// Who.
        pub stage: PeerId,
        /// Its layers.
        pub span: SpanRange,
        /// What came of it, and was paid.
        pub work: Work,
        /// What it is paid by.
        pub hold: HoldId,
        /// The note that paid it, or [`Hash::ZERO`].
        pub note: Hash,
    }

    /// A session's end, as its coordinator tells it.
    struct Whole {
        session: [u8; 16],
        model: ModelId,
        profile: Profile,
        layers: u16,
        span: SpanRange,
        prompt_rows: u32,
        answer_rows: u32,
        total: u64,
        at: u64,
        entries: List<Entry, MAX_PARTS>,
        lost: List<Lost, MAX_PARTS>,
    }
}

impl Work {
    /// What so many rows through so many layers cost; nothing where no counter holds it.
    #[must_use]
    pub fn of(layers: u16, rows: WorkedRows, price: Price) -> Option<Self> {
        let amount = price.amount(layers, rows)?;
        let WorkedRows { prefill, decode } = rows;
        Some(Self { prefill, decode, price_decode: price.decode, price_prefill: price.prefill, amount })
    }

    /// Whether the amount follows from the rest.
    fn adds_up(&self, layers: u16) -> bool {
        let price = Price { decode: self.price_decode, prefill: self.price_prefill };
        Self::of(layers, WorkedRows { prefill: self.prefill, decode: self.decode }, price) == Some(*self)
    }
}

/// Why bytes are not a receipt, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// The file begins differently.
    #[error("this is not a receipt")]
    Magic,
    /// An envelope.
    #[error("{0}")]
    Envelope(#[from] EnvelopeError),
    /// Another kind of envelope.
    #[error("kind {0} is not known here")]
    Kind(u8),
    /// The fields.
    #[error("{0}")]
    Fields(#[from] DecodeError),
    /// More stages than a receipt holds.
    #[error("a receipt holds at most {MAX_PARTS} stages")]
    TooMany,
}

/// What a hold of a session is for: the same for whoever pays and whoever is paid.
#[must_use]
pub fn job_hash(session: &[u8; 16], model: &ModelId, span: &SpanRange) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key("quelea session job v1");
    hasher.update(session);
    hasher.update(&model.0);
    hasher.update(&encode(span));
    Hash(*hasher.finalize().as_bytes())
}

impl Part {
    /// Signs it.
    ///
    /// # Errors
    /// When the key is not Ed25519.
    pub fn seal(&self, keypair: &Keypair, network: &NetworkId) -> Result<Vec<u8>, EnvelopeError> {
        Ok(Signed::seal(keypair, network, DOMAIN, PART, &encode(self))?.raw().to_vec())
    }

    /// Checks an envelope's signature and reads it: which stage says what.
    ///
    /// # Errors
    /// When it is too long, not signed as it says, or not in its one form.
    pub fn open(raw: &[u8], network: &NetworkId) -> Result<(PeerId, Self), ReceiptError> {
        let signed = Signed::open(raw, network, DOMAIN, MAX_PART)?;
        if signed.kind != PART {
            return Err(ReceiptError::Kind(signed.kind));
        }
        Ok((signed.signer, decode(signed.body())?))
    }

    /// The hash that the note's result names.
    #[must_use]
    pub fn hash(raw: &[u8]) -> Hash {
        Hash(*blake3::hash(raw).as_bytes())
    }

    /// The body of the commitment with these roots.
    fn commitment(&self) -> Vec<u8> {
        let mut body = encode(&self.session);
        self.epoch.put(&mut body);
        self.model.put(&mut body);
        self.profile.put(&mut body);
        self.span.put(&mut body);
        self.first.put(&mut body);
        self.rows.put(&mut body);
        self.in_root.put(&mut body);
        self.out_root.put(&mut body);
        body
    }
}

/// What a session was, for its receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// The session.
    pub session: [u8; 16],
    /// The model.
    pub model: ModelId,
    /// The numeric profile.
    pub profile: Profile,
    /// Layers of the model.
    pub layers: u16,
    /// Those that were computed by the stages.
    pub span: SpanRange,
    /// Tokens of the prompt.
    pub prompt_rows: u32,
    /// Tokens of the answer.
    pub answer_rows: u32,
    /// When it ended, in Unix milliseconds of the coordinator's clock.
    pub at: u64,
}

/// A receipt whose outer signature is right. What it says has yet to be [checked](Receipt::verify).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The network that its signatures are for.
    pub network: NetworkId,
    /// Who signed it.
    pub coordinator: PeerId,
    /// What the session was.
    pub about: About,
    /// What all stages get together, in micro-credits.
    pub total: u64,
    /// The stages that signed.
    pub entries: Vec<Entry>,
    /// Those that were lost.
    pub lost: Vec<Lost>,
}

impl Receipt {
    /// Signs a receipt; the file's bytes. Its total is the sum of all amounts.
    ///
    /// # Errors
    /// When there are too many stages, one of them has not signed as it says, the sum is none, or the key is not Ed25519.
    pub fn seal(
        keypair: &Keypair,
        network: &NetworkId,
        about: About,
        entries: Vec<Entry>,
        lost: Vec<Lost>,
    ) -> Result<Vec<u8>, ReceiptError> {
        if entries.len() > MAX_PARTS || lost.len() > MAX_PARTS {
            return Err(ReceiptError::TooMany);
        }
        let mut total = lost.iter().try_fold(0_u64, |sum, lost| sum.checked_add(lost.work.amount));
        for entry in &entries {
            let (_, part) = Part::open(&entry.part.0, network)?;
            total = total.and_then(|sum| sum.checked_add(part.work.amount));
        }
        let total = total.ok_or(DecodeError::Field("total"))?;
        let About { session, model, profile, layers, span, prompt_rows, answer_rows, at } = about;
        let (entries, lost) = (List(entries), List(lost));
        let whole = Whole { session, model, profile, layers, span, prompt_rows, answer_rows, total, at, entries, lost };
        let signed = Signed::seal(keypair, network, DOMAIN, WHOLE, &encode(&whole))?;
        Ok([MAGIC, &network.0, signed.raw()].concat())
    }

    /// Reads a file and checks the coordinator's signature.
    ///
    /// # Errors
    /// When it is not a receipt, or was changed since it was signed.
    pub fn open(file: &[u8]) -> Result<Self, ReceiptError> {
        let rest = file.strip_prefix(MAGIC).ok_or(ReceiptError::Magic)?;
        let (network, raw) = rest.split_first_chunk::<32>().ok_or(DecodeError::Short)?;
        let network = NetworkId(*network);
        let signed = Signed::open(raw, &network, DOMAIN, MAX_FILE)?;
        if signed.kind != WHOLE {
            return Err(ReceiptError::Kind(signed.kind));
        }
        let Whole { session, model, profile, layers, span, prompt_rows, answer_rows, total, at, entries, lost } =
            decode(signed.body())?;
        Ok(Self {
            network,
            coordinator: signed.signer,
            about: About { session, model, profile, layers, span, prompt_rows, answer_rows, at },
            total,
            entries: entries.0,
            lost: lost.0,
        })
    }
}

/// Reads a file and checks all of it. Nothing else is needed: no ledger, no model, no network.
///
/// # Errors
/// When it is not a receipt, or was changed since it was signed. What a sound receipt says that does not fit is in the
/// [`Report`].
pub fn verify(file: &[u8]) -> Result<Report, ReceiptError> {
    Receipt::open(file).map(|receipt| receipt.verify())
}

#[cfg(test)]
mod tests;
