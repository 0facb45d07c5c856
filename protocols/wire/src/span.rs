//! Half-open ranges of layers.

use std::{fmt, ops::Range, str::FromStr};

/// The most layers a model may have. The largest published models have some 130; 4,096 leaves room and keeps every
/// product of layers and rows far from overflow.
pub const MAX_LAYERS: u16 = 4096;

/// Layers `start..end`, half-open and never empty: `0..8` is eight layers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanRange {
    start: u16,
    end: u16,
}

/// A range of layers that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpanError {
    /// `start >= end`.
    #[error("layers {start}..{end} hold nothing: the range is half-open, so 0..8 means layers 0 to 7")]
    Empty {
        /// First layer.
        start: u16,
        /// One past the last layer.
        end: u16,
    },
    /// Ends past [`MAX_LAYERS`].
    #[error("layers {start}..{end} end past {MAX_LAYERS}, more than any model has")]
    TooLong {
        /// First layer.
        start: u16,
        /// One past the last layer.
        end: u16,
    },
    /// Not of the form `A..B`.
    #[error("{found:?} is not a range of layers; write it half-open, like 0..8")]
    Syntax {
        /// What was given.
        found: String,
    },
}

impl SpanRange {
    /// Layers `start..end`.
    ///
    /// # Errors
    /// When the range is empty or longer than any model.
    pub fn new(start: u16, end: u16) -> Result<Self, SpanError> {
        if start >= end {
            Err(SpanError::Empty { start, end })
        } else if end > MAX_LAYERS {
            Err(SpanError::TooLong { start, end })
        } else {
            Ok(Self { start, end })
        }
    }

    /// First layer.
    #[must_use]
    pub fn start(&self) -> u16 {
        self.start
    }

    /// One past the last layer.
    #[must_use]
    pub fn end(&self) -> u16 {
        self.end
    }

    /// How many layers; never zero.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.end.saturating_sub(self.start)
    }

    /// Whether `layer` lies inside.
    #[must_use]
    pub fn contains(&self, layer: u16) -> bool {
        self.start <= layer && layer < self.end
    }

    /// Whether all of `other` lies inside.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// As the indices the engine uses.
    #[must_use]
    pub fn as_usize(&self) -> Range<usize> {
        usize::from(self.start)..usize::from(self.end)
    }
}

impl fmt::Display for SpanRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

impl fmt::Debug for SpanRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SpanRange {
    type Err = SpanError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let syntax = || SpanError::Syntax { found: s.chars().take(40).collect() };
        let (start, end) = s.split_once("..").ok_or_else(syntax)?;
        let parse = |n: &str| n.trim().parse::<u16>().map_err(|_| syntax());
        Self::new(parse(start)?, parse(end)?)
    }
}

impl<C> minicbor::Encode<C> for SpanRange {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.array(2)?.u16(self.start)?.u16(self.end)?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for SpanRange {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        if d.array()? != Some(2) {
            return Err(minicbor::decode::Error::message("a span is an array of two"));
        }
        Self::new(d.u16()?, d.u16()?).map_err(|_| minicbor::decode::Error::message("empty or overlong span"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_half_open_ranges() {
        let span: SpanRange = "0..8".parse().unwrap();
        assert_eq!((span.start(), span.end(), span.count()), (0, 8, 8));
        assert_eq!(span.to_string(), "0..8");
        assert!(span.contains(7) && !span.contains(8));
    }

    #[test]
    fn refuses_what_is_no_range() {
        for (text, says) in [("8..8", "half-open"), ("0-8", "like 0..8"), ("0..9999", "more than any"), ("..", "like")]
        {
            let error = text.parse::<SpanRange>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(minicbor::decode::<SpanRange>(&[0x82, 5, 5]).is_err());
    }
}
