//! The line, its only encoding, and what is checked before it is believed.

use libp2p::{PeerId, identity::Keypair};
use quelea_wire::{
    NetworkId,
    envelope::{self, EnvelopeError, Signed},
    time::MAX_SKEW_MS,
};

/// What the signature is bound to besides the network.
pub const DOMAIN: &str = "quelea/broadcast/1";

/// Bytes of text: a few sentences. A line reaches every node of the network, so it is not the place for more.
pub const MAX_TEXT: usize = 512;

/// Bytes of a signed line, envelope included.
pub const MAX_BYTES: usize = MAX_TEXT + TIME_BYTES + envelope::OVERHEAD;

/// How long a line is passed on: as long as an announcement. Gossip needs seconds; the rest is for nodes that were away.
pub const LIFETIME_MS: u64 = 600_000;

/// Bytes before the text.
const TIME_BYTES: usize = 8;

/// The kind of envelope that a line travels in.
const KIND: u8 = 1;

/// Why there is no line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// Too long, malformed, or not signed for this network.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// An envelope of another kind.
    #[error("an envelope of kind {0} is not a line")]
    Kind(u8),
    /// Shorter than the time that it begins with.
    #[error("the line ends before it begins")]
    Short,
    /// There is no text.
    #[error("an empty line says nothing")]
    Empty,
    /// More text than a line has.
    #[error("{0} bytes of text, but a line has at most {MAX_TEXT}")]
    TooLong(usize),
    /// Not UTF-8.
    #[error("the text is not UTF-8")]
    Utf8,
    /// A line break, an escape, or another control character.
    #[error("a line has no control characters, but character {at} is U+{code:04X}")]
    Control {
        /// Which character, counted from 0.
        at: usize,
        /// Its number.
        code: u32,
    },
    /// Sent further in the future than clocks may differ.
    #[error("sent {ahead_ms} ms in the future")]
    Future {
        /// How far.
        ahead_ms: u64,
    },
    /// Too old to pass on.
    #[error("sent {age_ms} ms ago")]
    Expired {
        /// How long ago.
        age_ms: u64,
    },
}

impl LineError {
    /// Whether an honest peer can send this: its clock may be off, or the bytes were long on their way.
    #[must_use]
    pub fn is_honest(&self) -> bool {
        matches!(self, Self::Future { .. } | Self::Expired { .. })
    }
}

/// A line whose signature and content have been checked (or that was made here), with the exact bytes that were signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedLine {
    author: PeerId,
    sent_ms: u64,
    text: String,
    raw: Vec<u8>,
}

impl SignedLine {
    /// Signs `text` as sent at `sent_ms`, Unix milliseconds. Two lines of one author that are sent in one millisecond and say
    /// the same are one line.
    ///
    /// # Errors
    /// When every receiver would refuse the result, or the key cannot sign.
    pub fn sign(keypair: &Keypair, network: &NetworkId, sent_ms: u64, text: &str) -> Result<Self, LineError> {
        check(text)?;
        let body = [&sent_ms.to_le_bytes(), text.as_bytes()].concat();
        let signed = Signed::seal(keypair, network, DOMAIN, KIND, &body)?;
        Ok(Self { author: signed.signer, sent_ms, text: text.to_owned(), raw: signed.raw().to_vec() })
    }

    /// Checks bytes from anywhere, cheapest first.
    ///
    /// # Errors
    /// Says what is wrong; [`LineError::is_honest`] tells whether to hold it against the sender.
    pub fn verify(raw: &[u8], network: &NetworkId, now_ms: u64) -> Result<Self, LineError> {
        let signed = Signed::open(raw, network, DOMAIN, MAX_BYTES)?;
        if signed.kind != KIND {
            return Err(LineError::Kind(signed.kind));
        }
        let (sent, text) = signed.body().split_first_chunk::<TIME_BYTES>().ok_or(LineError::Short)?;
        let sent_ms = u64::from_le_bytes(*sent);
        let text = std::str::from_utf8(text).map_err(|_| LineError::Utf8)?;
        check(text)?;
        let ahead_ms = sent_ms.saturating_sub(now_ms);
        if ahead_ms > MAX_SKEW_MS {
            return Err(LineError::Future { ahead_ms });
        }
        let age_ms = now_ms.saturating_sub(sent_ms);
        if age_ms > LIFETIME_MS {
            return Err(LineError::Expired { age_ms });
        }
        Ok(Self { author: signed.signer, sent_ms, text: text.to_owned(), raw: raw.to_vec() })
    }

    /// Who signed it.
    #[must_use]
    pub fn author(&self) -> PeerId {
        self.author
    }

    /// When its author says that it was sent, Unix milliseconds.
    #[must_use]
    pub fn sent_ms(&self) -> u64 {
        self.sent_ms
    }

    /// What it says. Free of control characters; still a stranger's words.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The exact bytes that were signed; what travels.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }
}

fn check(text: &str) -> Result<(), LineError> {
    if text.is_empty() {
        return Err(LineError::Empty);
    }
    if text.len() > MAX_TEXT {
        return Err(LineError::TooLong(text.len()));
    }
    match text.chars().enumerate().find(|(_, c)| c.is_control()) {
        Some((at, c)) => Err(LineError::Control { at, code: u32::from(c) }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn key() -> Keypair {
        Keypair::ed25519_from_bytes([9; 32]).unwrap()
    }

    fn net() -> NetworkId {
        NetworkId::from_name("main")
    }

    fn forged(kind: u8, body: &[u8]) -> Result<SignedLine, LineError> {
        let raw = Signed::seal(&key(), &net(), DOMAIN, kind, body).unwrap();
        SignedLine::verify(raw.raw(), &net(), NOW)
    }

    #[test]
    fn vectors() {
        let line = SignedLine::sign(&key(), &net(), NOW, "ein Schwarm, hörst du?").unwrap();
        assert_eq!(
            hex::encode(line.raw()),
            "0101fd1724385aa0c75b64fb78cd602fa1d991fdebf76b13c58ed702eac835e9f6181f0000505c18a301000065696e205363687761726d2c2068c3b67273742064753f0f7b291242c7211913ea32d2dcc16a7d104e6c111ceb37a49e800ae0038683f48ed12c4a3746f20e1a37cfcce96364659eeaaf3966347426db32aefec4723507"
        );
        assert_eq!(SignedLine::verify(line.raw(), &net(), NOW).unwrap(), line);
        assert_eq!((line.author(), line.sent_ms()), (key().public().to_peer_id(), NOW));
    }

    #[test]
    fn every_way_to_be_refused() {
        let body = |text: &[u8]| [&NOW.to_le_bytes()[..], text].concat();
        assert_eq!(forged(2, &body(b"x")), Err(LineError::Kind(2)));
        assert_eq!(forged(1, b"1234567"), Err(LineError::Short));
        assert_eq!(forged(1, &body(b"")), Err(LineError::Empty));
        assert_eq!(forged(1, &body(&[0xff])), Err(LineError::Utf8));
        assert_eq!(forged(1, &body(b"ab\x1b[2J")), Err(LineError::Control { at: 2, code: 0x1b }));
        assert_eq!(forged(1, &body("a\u{85}".as_bytes())), Err(LineError::Control { at: 1, code: 0x85 }));
        assert!(forged(1, &body(&[b'x'; MAX_TEXT])).is_ok());
        let len = MAX_BYTES + 1;
        assert_eq!(
            forged(1, &body(&[b'x'; MAX_TEXT + 1])),
            Err(EnvelopeError::TooLarge { len, max: MAX_BYTES }.into()),
            "nothing of it is read"
        );
        for text in ["", "two\nlines", &"x".repeat(MAX_TEXT + 1)] {
            assert!(SignedLine::sign(&key(), &net(), NOW, text).is_err(), "{text:?} would be refused by all");
        }
    }

    #[test]
    fn time_is_checked_on_both_sides() {
        let line = SignedLine::sign(&key(), &net(), NOW, "now").unwrap();
        let at = |now| SignedLine::verify(line.raw(), &net(), now);
        assert!(at(NOW - MAX_SKEW_MS).is_ok() && at(NOW + LIFETIME_MS).is_ok());
        let early = at(NOW - MAX_SKEW_MS - 1).unwrap_err();
        let late = at(NOW + LIFETIME_MS + 1).unwrap_err();
        assert!(early.is_honest() && late.is_honest(), "{early} {late}");
        assert!(at(0).is_err() && at(u64::MAX).is_err());
        assert!(!LineError::Utf8.is_honest());
    }

    #[test]
    fn nobody_speaks_for_another_or_in_another_network() {
        let line = SignedLine::sign(&key(), &net(), NOW, "mine").unwrap();
        assert!(SignedLine::verify(line.raw(), &NetworkId::from_name("club"), NOW).is_err());
        let mut raw = line.raw().to_vec();
        let thief = Keypair::ed25519_from_bytes([8; 32]).unwrap().public().try_into_ed25519().unwrap();
        raw[2..34].copy_from_slice(&thief.to_bytes());
        assert_eq!(SignedLine::verify(&raw, &net(), NOW), Err(EnvelopeError::Signature.into()));
    }

    /// The one number that a line has, at its ends, seen by every clock.
    #[test]
    fn times_at_their_ends() {
        let ends = [0, 1, NOW, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX - 1, u64::MAX];
        for sent in ends {
            let line = SignedLine::sign(&key(), &net(), sent, "now").unwrap();
            for now in ends {
                let read = SignedLine::verify(line.raw(), &net(), now);
                let near = sent <= now.saturating_add(MAX_SKEW_MS) && now.saturating_sub(sent) <= LIFETIME_MS;
                assert_eq!(read.is_ok(), near, "sent {sent}, read {now}");
                assert!(read.map_or_else(|error| error.is_honest(), |read| read.text() == "now"));
            }
        }
    }

    proptest! {
        #[test]
        fn prop_what_is_signed_is_believed_word_for_word(text in "\\PC{1,120}", sent in any::<u64>()) {
            match SignedLine::sign(&key(), &net(), sent, &text) {
                Ok(line) => {
                    let read = SignedLine::verify(line.raw(), &net(), sent).unwrap();
                    prop_assert_eq!(read.text(), text);
                    prop_assert!(line.raw().len() <= MAX_BYTES);
                }
                Err(error) => {
                    let refused = matches!(error, LineError::TooLong(_) | LineError::Control { .. });
                    prop_assert!(refused, "{}", error);
                }
            }
        }

        #[test]
        fn prop_any_body_is_a_line_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(line) = forged(1, &body) {
                prop_assert!(!line.text().chars().any(char::is_control) && !line.text().is_empty());
            }
        }
    }
}
