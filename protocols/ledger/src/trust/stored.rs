//! What is kept of trust, with its one encoding.
//!
//! Integers little-endian, one field after the other as they are declared; a yes or no is one byte, 0 or 1; what was lost is a
//! u8 count and so many days, each u64 day and u64 micro-credits, oldest first. Nothing follows the last field.

use super::{LEAST, Losses, MOST, Row};
use crate::fields::{DecodeError, Field, List, decode, encode, record};

/// Days of which losses are remembered; see [`Losses`].
const LOSS_DAYS: usize = 31;

record! {
    struct Day {
        day: u64,
        lost: u64,
    }
}

impl Row {
    /// The bytes to keep.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// What was kept.
    ///
    /// # Errors
    /// When these are not the bytes of a row.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let row: Self = decode(bytes)?;
        if (LEAST..=MOST).contains(&row.commerce) { Ok(row) } else { Err(DecodeError::Field("commerce")) }
    }
}

impl Losses {
    /// The bytes to keep.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(&List::<Day, LOSS_DAYS>(self.days.iter().map(|&(day, lost)| Day { day, lost }).collect()))
    }

    /// What was kept.
    ///
    /// # Errors
    /// When these are not the bytes of losses: another form, more days than are remembered, or days out of order.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let List(days): List<Day, LOSS_DAYS> = decode(bytes)?;
        if days.iter().zip(days.iter().skip(1)).any(|(earlier, later)| earlier.day >= later.day) {
            return Err(DecodeError::Field("day"));
        }
        Ok(Self { days: days.into_iter().map(|Day { day, lost }| (day, lost)).collect() })
    }
}

/// Strict: a byte that is neither is an error, not a yes.
impl Field for bool {
    fn put(&self, out: &mut Vec<u8>) {
        u8::from(*self).put(out);
    }

    fn take(input: &mut &[u8]) -> Result<Self, DecodeError> {
        match u8::take(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Field("yes or no")),
        }
    }
}
