//! The model's ends, where whoever asks does not have them: the first stage embeds, the last one has the head.

use std::cmp::Ordering;

use quelea_wire::ErrorCode;

use super::{DecodeError, cursor::Cursor};

/// The most logits that a last stage gives for a row: 8 KiB, as much as a row of 2,048 values.
pub const MAX_TOP_LOGITS: u16 = 1024;

/// Values before the logits of a row: the sum, in three parts.
const SUM_VALUES: u32 = 3;

/// Bits of a part of the sum: no value of so few is NaN or infinite, whatever it is taken for.
const SUM_BITS: u32 = 22;

/// What a stage computes beside its layers. Nothing, unless the coordinator has no embedding or head of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ends {
    /// It is given token ids, and embeds them: it sees them. Only at the first stage.
    pub takes_tokens: bool,
    /// So many of the likeliest logits it gives for each row, at most [`MAX_TOP_LOGITS`]; 0 where it gives rows. Only at the
    /// last stage.
    pub gives_logits: u16,
}

impl Ends {
    pub(super) const LEN: usize = 1 + 2;

    /// Values of a row that the stage gives, where it gives logits.
    #[must_use]
    pub fn logits_width(&self) -> Option<u32> {
        (self.gives_logits > 0).then(|| TopLogits::width(self.gives_logits))
    }

    /// What is nothing takes no byte, unless another field follows.
    pub(super) fn put(self, out: &mut Vec<u8>, followed: bool) {
        if self != Self::default() || followed {
            out.push(u8::from(self.takes_tokens));
            out.extend_from_slice(&self.gives_logits.min(MAX_TOP_LOGITS).to_le_bytes());
        }
    }

    pub(super) fn take(c: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        if c.is_empty() {
            return Ok(Self::default());
        }
        let takes_tokens = match c.u8()? {
            0 => false,
            1 => true,
            _ => return Err(DecodeError::Field("takes_tokens")),
        };
        let gives_logits = c.u16()?;
        let ends = Self { takes_tokens, gives_logits };
        // Without a field behind it nothing would not be there.
        if gives_logits > MAX_TOP_LOGITS || (ends == Self::default() && c.is_empty()) {
            return Err(DecodeError::Field("gives_logits"));
        }
        Ok(ends)
    }
}

/// The likeliest logits of one row, enough to draw the same token as from all of them.
///
/// As values of a batch: the sum's lowest 22 bits, the next 22, the rest; then of each logit the token's id and the logit.
/// Whole numbers are the bits of their value.
#[derive(Debug, Clone, PartialEq)]
pub struct TopLogits {
    /// The sum of all tokens' weights, in units of 2⁻⁴⁰ of the likeliest one's: what log-probabilities are made of.
    pub sum: u64,
    /// The tokens of the highest logits, the highest first, of those that are the same the lowest id.
    pub top: Vec<(u32, f32)>,
}

impl TopLogits {
    /// Values of a row of so many logits.
    #[must_use]
    pub fn width(logits: u16) -> u32 {
        SUM_VALUES.saturating_add(2_u32.saturating_mul(u32::from(logits)))
    }

    /// Appends the values of the row.
    pub fn put(&self, values: &mut Vec<f32>) {
        let part = |shift: u32| u32::try_from((self.sum >> shift) & ((1 << SUM_BITS) - 1)).unwrap_or_default();
        let sum = [part(0), part(SUM_BITS), part(2 * SUM_BITS)];
        values.extend(sum.map(f32::from_bits));
        values.extend(self.top.iter().flat_map(|(id, logit)| [f32::from_bits(*id), *logit]));
    }

    /// Reads the values of one row of a model of `vocab` tokens.
    ///
    /// # Errors
    /// [`ErrorCode::BadShape`] when they are not a sum and pairs, or a token is not the model's, is there twice or out of
    /// order; [`ErrorCode::NotFinite`] when a logit is no number.
    pub fn take(values: &[f32], vocab: usize) -> Result<Self, ErrorCode> {
        let Some((parts, rest)) = values.split_first_chunk::<{ SUM_VALUES as usize }>() else {
            return Err(ErrorCode::BadShape);
        };
        let mut sum = 0_u64;
        for (part, shift) in parts.iter().zip([0, SUM_BITS, 2 * SUM_BITS]) {
            let part = u64::from(part.to_bits());
            // The last part has the 20 bits that are left of 64.
            let bits = SUM_BITS.min(64_u32.saturating_sub(shift));
            if part >> bits != 0 {
                return Err(ErrorCode::BadShape);
            }
            sum |= part << shift;
        }
        let (pairs, odd) = rest.as_chunks::<2>();
        if !odd.is_empty() || pairs.is_empty() || pairs.len() > usize::from(MAX_TOP_LOGITS) {
            return Err(ErrorCode::BadShape);
        }
        let top: Vec<(u32, f32)> = pairs.iter().map(|[id, logit]| (id.to_bits(), *logit)).collect();
        if top.iter().any(|(_, logit)| !logit.is_finite()) {
            return Err(ErrorCode::NotFinite);
        }
        let mut ids: Vec<u32> = top.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        let known = ids.last().is_some_and(|id| usize::try_from(*id).is_ok_and(|id| id < vocab));
        let twice = ids.windows(2).any(|pair| matches!(pair, [a, b] if a == b));
        if !known || twice || !top.is_sorted_by(in_order) {
            return Err(ErrorCode::BadShape);
        }
        Ok(Self { sum, top })
    }
}

/// Whether `a` stands before `b`: it is higher, or as high with the lower id.
fn in_order(a: &(u32, f32), b: &(u32, f32)) -> bool {
    match a.1.partial_cmp(&b.1) {
        Some(Ordering::Greater) => true,
        Some(Ordering::Equal) => a.0 < b.0,
        _ => false,
    }
}
