//! Where a trace goes on: W3C's `traceparent`, version 00, and nothing looser.

use std::{fmt, str::FromStr};

/// A span of somebody's trace: `00-<trace id>-<span id>-<flags>`, 55 bytes of lower-case hex.
///
/// It says nothing that is true: whoever sends one chooses all of it. It is read strictly, as there is one writer for each of our
/// wires: another version, upper case, ids of zeros and anything behind the flags are refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    /// Whether the sender keeps this trace. No other flag is carried.
    pub sampled: bool,
}

/// Why bytes are no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent: 00-<32 hex digits>-<16 hex digits>-<2 hex digits>, in lower case, is wanted")]
pub struct NotATraceParent;

impl TraceParent {
    /// Its length as text, in bytes.
    pub const LEN: usize = 55;

    /// The flag of what is kept.
    const SAMPLED: u8 = 1;

    /// A span, unless one of its ids is all zeros.
    #[must_use]
    pub fn new(trace_id: [u8; 16], span_id: [u8; 8], sampled: bool) -> Option<Self> {
        (trace_id != [0; 16] && span_id != [0; 8]).then_some(Self { trace_id, span_id, sampled })
    }

    /// The trace.
    #[must_use]
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// The span in it.
    #[must_use]
    pub fn span_id(&self) -> [u8; 8] {
        self.span_id
    }

    /// As it is sent.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        let text = self.to_string();
        // Both have LEN bytes.
        out.iter_mut().zip(text.bytes()).for_each(|(slot, byte)| *slot = byte);
        out
    }

    /// Reads what is sent. Flags besides *sampled* are passed over, as W3C has it.
    ///
    /// # Errors
    /// When it is anything else than [`Self::to_bytes`] gives, other flags aside.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotATraceParent> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().map_err(|_| NotATraceParent)?;
        let (version, rest) = bytes.split_at(3);
        let (trace_id, rest) = rest.split_at(32);
        let (dash, rest) = rest.split_at(1);
        let (span_id, rest) = rest.split_at(16);
        let (other_dash, flags) = rest.split_at(1);
        if version != b"00-" || dash != b"-" || other_dash != b"-" {
            return Err(NotATraceParent);
        }
        let [flags] = lower_hex(flags)?;
        Self::new(lower_hex(trace_id)?, lower_hex(span_id)?, flags & Self::SAMPLED != 0).ok_or(NotATraceParent)
    }
}

/// Hex in lower case.
fn lower_hex<const N: usize>(digits: &[u8]) -> Result<[u8; N], NotATraceParent> {
    if digits.iter().any(u8::is_ascii_uppercase) {
        return Err(NotATraceParent);
    }
    let mut out = [0; N];
    hex::decode_to_slice(digits, &mut out).map_err(|_| NotATraceParent)?;
    Ok(out)
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = if self.sampled { Self::SAMPLED } else { 0 };
        write!(f, "00-{}-{}-{flags:02x}", hex::encode(self.trace_id), hex::encode(self.span_id))
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TraceParent {
    type Err = NotATraceParent;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_bytes(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// The example of W3C's recommendation.
    const W3C: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_recommendation_is_read_and_written() {
        let parent: TraceParent = W3C.parse().unwrap();
        assert!(parent.sampled);
        assert_eq!(parent.trace_id()[..2], [0x4b, 0xf9]);
        assert_eq!(parent.span_id()[6..], [0x02, 0xb7]);
        assert_eq!(parent.to_string(), W3C);
        assert_eq!(&parent.to_bytes()[..], W3C.as_bytes());
        let random: TraceParent = W3C.replace("-01", "-02").parse().unwrap();
        assert!(!random.sampled && random.to_string().ends_with("-00"), "a flag of others is not carried on");
    }

    #[test]
    fn what_is_nearly_one_is_none() {
        let none = [
            W3C.to_uppercase(),
            W3C.replacen("00", "ff", 1),
            W3C.replacen("00", "01", 1),
            format!("{W3C}-"),
            format!("{W3C}\0"),
            format!(" {W3C}"),
            W3C[..54].to_owned(),
            W3C.replace('-', "_"),
            W3C.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            W3C.replace("00f067aa0ba902b7", &"0".repeat(16)),
            W3C.replace("4bf9", "4bg9"),
            W3C.replace("4bf9", "+bf9"),
            W3C.replace("4bf9", "4\u{e4}f"),
            String::new(),
        ];
        for text in none {
            assert_eq!(text.parse::<TraceParent>(), Err(NotATraceParent), "{text:?}");
        }
    }

    fn almost() -> impl Strategy<Value = Vec<u8>> {
        (vec(any::<(prop::sample::Index, u8)>(), 0..4), 0..60_usize).prop_map(|(changes, len)| {
            let mut bytes = W3C.as_bytes().to_vec();
            changes.iter().for_each(|(at, to)| bytes[at.index(TraceParent::LEN)] = *to);
            if len < 8 {
                bytes.truncate(TraceParent::LEN - len);
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn all_that_is_written_is_read(trace in any::<[u8; 16]>(), span in any::<[u8; 8]>(), sampled in any::<bool>()) {
            match TraceParent::new(trace, span, sampled) {
                Some(parent) => prop_assert_eq!(TraceParent::from_bytes(&parent.to_bytes()), Ok(parent)),
                None => prop_assert!(trace == [0; 16] || span == [0; 8]),
            }
        }

        #[test]
        fn hostile_bytes_are_refused_or_are_exactly_one(bytes in prop_oneof![vec(any::<u8>(), 0..80), almost()]) {
            if let Ok(parent) = TraceParent::from_bytes(&bytes) {
                // Its flags aside, which only hold one bit of ours.
                prop_assert_eq!(&parent.to_bytes()[..53], &bytes[..53]);
                prop_assert_eq!(bytes.len(), TraceParent::LEN);
                prop_assert!(parent.trace_id() != [0; 16] && parent.span_id() != [0; 8]);
            }
        }
    }
}
