//! Prices of computing, and amounts of credit as people write them.
//!
//! Amounts are whole micro-credits. What a session costs at one peer is counted in *layer-rows*, a row through a layer:
//!
//! ```text
//! amount = ceil(layers × (prefill rows × prefill price + decode rows × decode price) / 1000)
//! ```
//!
//! Rounded up once, for the whole session: this is the one place that does it, so that both sides come to the same amount.

use std::fmt;

/// Layer-rows that a price is for.
const ROWS_OF_A_PRICE: u128 = 1000;

/// Micro-credits in a credit.
const MICRO: u64 = 1_000_000;

/// Digits of a credit behind its point.
const DIGITS: usize = 6;

/// What a peer asks for its work, in micro-credits per 1,000 layer-rows. Zero is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Price {
    /// For rows of an answer.
    pub decode: u64,
    /// For rows of a prompt.
    pub prefill: u64,
}

/// Rows that were computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct WorkedRows {
    /// Of prompts.
    pub prefill: u64,
    /// Of answers.
    pub decode: u64,
}

impl Price {
    /// Nothing.
    pub const FREE: Self = Self { decode: 0, prefill: 0 };

    /// Whether nothing costs anything.
    #[must_use]
    pub fn is_free(self) -> bool {
        self == Self::FREE
    }

    /// Micro-credits for `rows` through `layers`; `None` beyond what a u64 holds.
    #[must_use]
    pub fn amount(self, layers: u16, rows: WorkedRows) -> Option<u64> {
        let prefill = u128::from(rows.prefill).checked_mul(u128::from(self.prefill))?;
        let decode = u128::from(rows.decode).checked_mul(u128::from(self.decode))?;
        let thousandths = prefill.checked_add(decode)?.checked_mul(u128::from(layers))?;
        u64::try_from(thousandths.div_ceil(ROWS_OF_A_PRICE)).ok()
    }
}

/// An amount of micro-credits, shown in credits with all six decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Credits(pub u64);

impl fmt::Display for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, micro) = (self.0.checked_div(MICRO), self.0.checked_rem(MICRO));
        write!(f, "{}.{:06}", whole.unwrap_or_default(), micro.unwrap_or_default())
    }
}

/// Why a text is no amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write an amount in credits, like 0.5 or 12, with at most six decimals")]
pub struct ParseCreditsError;

impl std::str::FromStr for Credits {
    type Err = ParseCreditsError;

    /// Credits with at most six decimals: `12`, `0.5`, `0.000001`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (whole, micro) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(micro) || micro.len() > DIGITS {
            return Err(ParseCreditsError);
        }
        let micro: u64 = format!("{micro:0<DIGITS$}").parse().map_err(|_| ParseCreditsError)?;
        let whole: u64 = whole.parse().map_err(|_| ParseCreditsError)?;
        let amount = whole.checked_mul(MICRO).and_then(|whole| whole.checked_add(micro));
        amount.map(Self).ok_or(ParseCreditsError)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_rounded_up_once() {
        let price = Price { decode: 100, prefill: 1 };
        assert_eq!(price.amount(4, WorkedRows { prefill: 128, decode: 64 }), Some(27));
        assert_eq!(price.amount(1, WorkedRows { prefill: 1, decode: 0 }), Some(1));
        assert_eq!(price.amount(8, WorkedRows::default()), Some(0));
        assert_eq!(Price::FREE.amount(u16::MAX, WorkedRows { prefill: u64::MAX, decode: u64::MAX }), Some(0));
        let most = Price { decode: u64::MAX, prefill: u64::MAX };
        assert_eq!(most.amount(1, WorkedRows { prefill: u64::MAX, decode: u64::MAX }), None);
        assert!(most.amount(1, WorkedRows { prefill: 1000, decode: 0 }).is_some());
    }

    #[test]
    fn amounts_are_written_with_six_decimals() {
        assert_eq!(Credits(900).to_string(), "0.000900");
        assert_eq!(Credits(u64::MAX).to_string(), "18446744073709.551615");
        assert_eq!("12".parse(), Ok(Credits(12_000_000)));
        assert_eq!("0.5".parse(), Ok(Credits(500_000)));
        for wrong in ["", ".", "1.", ".5", "-1", "+1", "1.0000001", "1e3", "18446744073709.551616", "1 ", "1.-5"] {
            assert_eq!(wrong.parse::<Credits>(), Err(ParseCreditsError), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn credits_are_read_as_they_are_written(amount: u64) {
            prop_assert_eq!(Credits(amount).to_string().parse(), Ok(Credits(amount)));
        }

        #[test]
        fn more_rows_never_cost_less_and_splitting_costs_at_most_one_more_each(
            decode in 0..1_u64 << 40, prefill in 0..1_u64 << 40, layers in 1..500_u16,
            a in (0..1_u64 << 20, 0..1_u64 << 20), b in (0..1_u64 << 20, 0..1_u64 << 20),
        ) {
            let price = Price { decode, prefill };
            let amount = |prefill, decode| price.amount(layers, WorkedRows { prefill, decode });
            let (one, other) = (amount(a.0, a.1), amount(b.0, b.1));
            let both = amount(a.0 + b.0, a.1 + b.1);
            if let (Some(one), Some(other), Some(both)) = (one, other, both) {
                prop_assert!(both >= one.max(other));
                prop_assert!(both <= one + other && one + other <= both + 1);
            }
        }

        #[test]
        fn it_is_the_formula_wherever_that_does_not_overflow(
            decode: u32, prefill: u32, layers: u16, rows in (any::<u32>(), any::<u32>()),
        ) {
            let price = Price { decode: decode.into(), prefill: prefill.into() };
            let worked = WorkedRows { prefill: rows.0.into(), decode: rows.1.into() };
            let sum = u128::from(rows.0) * u128::from(prefill) + u128::from(rows.1) * u128::from(decode);
            let exact = (sum * u128::from(layers)).div_ceil(1000);
            prop_assert_eq!(price.amount(layers, worked).map(u128::from), u64::try_from(exact).ok().map(u128::from));
        }
    }
}
