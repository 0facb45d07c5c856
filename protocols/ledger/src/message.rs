//! What peers sign. The table of kinds and fields is in the crate's documentation.

use libp2p::{PeerId, identity::Keypair};
use quelea_wire::{
    NetworkId,
    envelope::{self, EnvelopeError, Signed, Signer},
};

use crate::fields::{DecodeError, Hash, HoldId, Raw, Unit, decode, encode, record};

/// What the signatures cover besides the body.
pub const DOMAIN: &str = "quelea/ledger/1";

/// The longest body.
pub const MAX_BODY: usize = 1024;

/// The longest envelope.
pub const MAX_ENVELOPE: usize = envelope::OVERHEAD + MAX_BODY;

record! {
    /// How much the creditor lets a debtor owe. Information; what counts is what the creditor does.
    pub struct Grant {
        /// What is counted.
        pub unit: Unit,
        /// Who may owe.
        pub debtor: PeerId,
        /// Higher is newer.
        pub gseq: u64,
        /// Micro-credits.
        pub limit: u64,
        /// Until when.
        pub not_after: u64,
    }

    /// The debtor reserves at most `max` of its limit for one job.
    pub struct Hold {
        /// What is counted.
        pub unit: Unit,
        /// Who works.
        pub creditor: PeerId,
        /// The hold's name.
        pub hold: HoldId,
        /// The most that the job may cost, in micro-credits.
        pub max: u64,
        /// What is to be done.
        pub job_hash: Hash,
        /// From then on it reserves nothing.
        pub expires_at: u64,
        /// Days after its note at which the debt is due.
        pub due_days: u16,
    }

    /// The job is done.
    pub struct JobResult {
        /// Whose.
        pub hold: HoldId,
        /// What it costs, in micro-credits: at most the hold's `max`.
        pub price: u64,
        /// What came out.
        pub result_hash: Hash,
        /// SHA-256 of the key that opens the result, where it is locked until it is paid.
        pub lock: Option<Hash>,
    }

    /// A step of the debtor's counter: from now on it has promised `issued` in all.
    pub struct Note {
        /// What is counted.
        pub unit: Unit,
        /// To whom it is promised.
        pub creditor: PeerId,
        /// `max(previous + 1, now)`.
        pub seq: u64,
        /// The note before; [`Hash::ZERO`] at first.
        pub prev: Hash,
        /// Micro-credits promised so far.
        pub issued: u64,
        /// By how much this note raised it.
        pub delta: u64,
        /// The hold that it settles, or [`HoldId::NONE`].
        pub hold: HoldId,
        /// The hold's job.
        pub job_hash: Hash,
        /// The job's result.
        pub result_hash: Hash,
        /// When `delta` is due.
        pub due_at: u64,
        /// The lock of a locked result: the note counts together with the key.
        pub lock: Option<Hash>,
    }

    /// The creditor has a note. With it the note is signed by both.
    pub struct Ack {
        /// The note's [`SignedMessage::id`].
        pub note: Hash,
        /// Its number.
        pub seq: u64,
        /// The key of a locked result.
        pub preimage: Option<Hash>,
    }

    /// The hold reserves nothing any more.
    pub struct Void {
        /// Whose.
        pub hold: HoldId,
        /// Why; 0 = not wanted any more, 1 = not accepted.
        pub reason: u8,
    }

    /// A step of the creditor's counter: of the debtor's promises `redeemed` in all are discharged.
    pub struct Redeem {
        /// What is counted.
        pub unit: Unit,
        /// Whose promises.
        pub debtor: PeerId,
        /// `max(previous + 1, now)`.
        pub seq: u64,
        /// The redeem before; [`Hash::ZERO`] at first.
        pub prev: Hash,
        /// Micro-credits discharged so far.
        pub redeemed: u64,
        /// By how much this raised it.
        pub delta: u64,
        /// The newest note of the debtor that the creditor had.
        pub note_seq_seen: u64,
        /// How: 0 = paid outside, 1 = forgiven, 2 = a cycle of debts.
        pub method: u8,
        /// What it refers to.
        pub reference: Hash,
    }

    /// The creditor would like to be paid.
    pub struct RedeemRequest {
        /// What is counted.
        pub unit: Unit,
        /// By whom.
        pub debtor: PeerId,
        /// Micro-credits.
        pub amount: u64,
        /// Until when.
        pub deadline: u64,
        /// Tells requests apart.
        pub nonce: u64,
    }

    /// Two envelopes of one signer that contradict each other; see [`crate::evidence`].
    pub struct Evidence {
        /// One.
        pub a: Raw,
        /// The other.
        pub b: Raw,
    }

    /// The creditor says that the debtor does not pay. An opinion, refutable by a redeem that it had signed.
    pub struct DefaultClaim {
        /// What is counted.
        pub unit: Unit,
        /// Who does not pay.
        pub debtor: PeerId,
        /// Micro-credits.
        pub overdue: u64,
        /// When that was so.
        pub as_of: u64,
        /// The creditor's newest redeem then.
        pub redeem_seq_seen: u64,
        /// The debtor's newest note.
        pub note: Raw,
        /// The creditor's acknowledgement of it.
        pub ack: Raw,
    }

    /// How much of a hold is spent by now. The largest counts; two of them never contradict each other.
    pub struct Voucher {
        /// Which hold.
        pub hold: HoldId,
        /// The epoch of the session that it pays for.
        pub epoch: u32,
        /// Micro-credits, at most the hold's `max`.
        pub cumulative: u64,
    }
}

macro_rules! messages {
    ($($kind:literal $name:ident($body:ident),)*) => {
        /// Any message.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[non_exhaustive]
        #[expect(missing_docs, reason = "each is its body's name")]
        pub enum Message { $($name($body),)* }

        $(impl From<$body> for Message {
            fn from(body: $body) -> Self {
                Self::$name(body)
            }
        })*

        impl Message {
            /// The kind in the envelope.
            #[must_use]
            pub fn kind(&self) -> u8 {
                match self { $(Self::$name(_) => $kind,)* }
            }

            fn body(&self) -> Vec<u8> {
                match self { $(Self::$name(body) => encode(body),)* }
            }

            fn decode(kind: u8, body: &[u8]) -> Result<Self, DecodeError> {
                match kind {
                    $($kind => decode::<$body>(body).map(Self::$name),)*
                    other => Err(DecodeError::Kind(other)),
                }
            }
        }
    };
}

messages! {
    1 Grant(Grant),
    2 Hold(Hold),
    3 Result(JobResult),
    4 Note(Note),
    5 Ack(Ack),
    6 Void(Void),
    7 Redeem(Redeem),
    8 RedeemRequest(RedeemRequest),
    9 Evidence(Evidence),
    10 DefaultClaim(DefaultClaim),
    11 Voucher(Voucher),
}

/// Why a message is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Its envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// Its body.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It is about the signer itself.
    #[error("nobody has an account with himself")]
    OwnAccount,
}

/// A message whose signature has been checked, or was made here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedMessage {
    /// Who signed.
    pub signer: PeerId,
    /// What.
    pub message: Message,
    id: Hash,
    raw: Vec<u8>,
}

impl SignedMessage {
    /// Signs a message.
    ///
    /// # Errors
    /// When the identity is not Ed25519, or the message does not fit.
    pub fn sign(keypair: &Keypair, network: &NetworkId, message: impl Into<Message>) -> Result<Self, MessageError> {
        let message = message.into();
        let body = message.body();
        if body.len() > MAX_BODY {
            let (len, max) = (body.len(), MAX_BODY);
            return Err(EnvelopeError::TooLarge { len, max }.into());
        }
        #[cfg(test)]
        if let Some(signed) = crate::sim::signatures::made(keypair, network, &message, &body) {
            return Ok(signed);
        }
        let signed = Signed::seal(keypair, network, DOMAIN, message.kind(), &body)?;
        Self::of((signed.signer, signed.raw(), &body), network, message)
    }

    /// Opens what somebody sent.
    ///
    /// # Errors
    /// When it is too long, not signed as it says, or not in its one form.
    pub fn open(raw: &[u8], network: &NetworkId) -> Result<Self, MessageError> {
        #[cfg(test)]
        if let Some(signed) = crate::sim::signatures::known(raw) {
            return Ok(signed);
        }
        Self::opened(&Signed::open(raw, network, DOMAIN, MAX_ENVELOPE)?, network)
    }

    /// Opens what one signer must have signed.
    ///
    /// # Errors
    /// As [`SignedMessage::open`], and when somebody else has signed it.
    pub fn open_by(raw: &[u8], network: &NetworkId, signer: &Signer) -> Result<Self, MessageError> {
        #[cfg(test)]
        if let Some(signed) = crate::sim::signatures::known(raw) {
            return Ok(signed);
        }
        Self::opened(&Signed::open_by(raw, network, DOMAIN, MAX_ENVELOPE, signer)?, network)
    }

    fn opened(signed: &Signed, network: &NetworkId) -> Result<Self, MessageError> {
        let message = Message::decode(signed.kind, signed.body())?;
        Self::of((signed.signer, signed.raw(), signed.body()), network, message)
    }

    pub(crate) fn of(
        (signer, raw, body): (PeerId, &[u8], &[u8]),
        network: &NetworkId,
        message: Message,
    ) -> Result<Self, MessageError> {
        let about = match &message {
            Message::Grant(m) => Some(m.debtor),
            Message::Hold(m) => Some(m.creditor),
            Message::Note(m) => Some(m.creditor),
            Message::Redeem(m) => Some(m.debtor),
            Message::RedeemRequest(m) => Some(m.debtor),
            Message::DefaultClaim(m) => Some(m.debtor),
            _ => None,
        };
        if about == Some(signer) {
            return Err(MessageError::OwnAccount);
        }
        // Of the content and not of the envelope: one content can have many signatures, and is still one note.
        let mut hasher = blake3::Hasher::new();
        hasher.update(DOMAIN.as_bytes());
        hasher.update(&network.0);
        hasher.update(&signer.to_bytes());
        hasher.update(&[message.kind()]);
        hasher.update(body);
        let id = Hash(*hasher.finalize().as_bytes());
        Ok(Self { signer, message, id, raw: raw.to_vec() })
    }

    /// The hash of who said what: the name of the message.
    #[must_use]
    pub fn id(&self) -> Hash {
        self.id
    }

    /// The bytes that were signed and travel; never encoded again.
    #[must_use]
    pub fn raw(&self) -> Raw {
        Raw(self.raw.clone())
    }
}
