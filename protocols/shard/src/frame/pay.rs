//! Being paid for a session's rows. All of it needs [`PAY`](crate::protocol::PAY); what is signed is opaque to this crate.

use super::{
    DecodeError, SessionId,
    control::SESSION,
    cursor::{Cursor, put_session},
};

/// The longest signed voucher or part of a receipt, in bytes: the ledger's longest envelope.
pub const MAX_SIGNED: usize = 1124;

/// What the coordinator pays the stage by: a hold at the stage, and the prices that it goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pay {
    /// The hold in the ledger of the two, not all zeros.
    pub hold: [u8; 16],
    /// Micro-credits for 1,000 layer-rows of answers.
    pub price_decode: u64,
    /// The same of prompts.
    pub price_prefill: u64,
}

impl Pay {
    pub(super) const LEN: usize = 16 + 8 + 8;

    /// Nothing where nothing is paid, unless another field follows: then all zeros, which are no hold.
    pub(super) fn put(of: Option<&Self>, out: &mut Vec<u8>, followed: bool) {
        if of.is_none() && followed {
            out.extend_from_slice(&[0; Self::LEN]);
        }
        if let Some(Self { hold, price_decode, price_prefill }) = of {
            out.extend_from_slice(hold);
            out.extend_from_slice(&price_decode.to_le_bytes());
            out.extend_from_slice(&price_prefill.to_le_bytes());
        }
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Option<Self>, DecodeError> {
        if c.is_empty() {
            return Ok(None);
        }
        let pay = Self { hold: c.array()?, price_decode: c.u64()?, price_prefill: c.u64()? };
        if pay.hold != [0; 16] {
            return Ok(Some(pay));
        }
        // Without a field behind it nothing would not be there.
        if c.is_empty() || pay.price_decode != 0 || pay.price_prefill != 0 {
            return Err(DecodeError::Field("hold"));
        }
        Ok(None)
    }
}

macro_rules! signed {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            /// The session.
            pub session: SessionId,
            /// Its epoch.
            pub epoch: u32,
            /// The signed envelope, 1 to [`MAX_SIGNED`] bytes.
            pub envelope: Vec<u8>,
        }

        impl $name {
            pub(super) const MAX_LEN: usize = SESSION + 2 + MAX_SIGNED;

            pub(super) fn put(&self, out: &mut Vec<u8>) {
                put_session(out, self.session, self.epoch);
                let sent = self.envelope.get(..MAX_SIGNED).unwrap_or(&self.envelope);
                // MAX_SIGNED fits.
                out.extend_from_slice(&u16::try_from(sent.len()).unwrap_or(0).to_le_bytes());
                out.extend_from_slice(sent);
            }

            pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
                let (session, epoch) = c.session()?;
                let len = usize::from(c.u16()?);
                if !(1..=MAX_SIGNED).contains(&len) {
                    return Err(DecodeError::Field("envelope"));
                }
                Ok(Self { session, epoch, envelope: c.bytes(len)?.to_vec() })
            }
        }
    };
}

signed! {
    /// The coordinator owes so much for the session by now. Not answered.
    Voucher
}

signed! {
    /// What the stage has done for the session, and what that costs. Comes before [`Closed`](super::Closed) or after it.
    Receipt
}
