//! Token ids back to text, all at once or as they come.

use std::sync::Arc;

use super::vocab::Vocab;

/// Turns a stream of token ids into text, never giving half a code point: bytes that may still become one wait for
/// the next token. Owns what it needs, so that it can move into the task that streams.
#[derive(Clone, Debug)]
pub struct Decoder {
    vocab: Arc<Vocab>,
    /// Bytes of a code point that is not complete; fewer than four between calls.
    pending: Vec<u8>,
}

impl Decoder {
    pub(super) fn new(vocab: Arc<Vocab>) -> Self {
        Self { vocab, pending: Vec::new() }
    }

    /// The text that `id` completes, perhaps none. Control tokens and ids outside the vocabulary have no text; bytes
    /// that can no longer become a code point come as U+FFFD.
    pub fn push(&mut self, id: u32) -> String {
        self.pending.extend_from_slice(&self.vocab.bytes(id));
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        while let Some(chunk) = rest.utf8_chunks().next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            rest = &rest[chunk.valid().len()..];
            if invalid.len() == rest.len() && may_continue(invalid) {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            rest = &rest[invalid.len()..];
        }
        self.pending = rest.to_vec();
        text
    }

    /// What is left at the end of the stream: U+FFFD when a code point was not completed.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// Whether more bytes could make a code point of these.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::vocab::tests::byte_level;

    /// In this vocabulary an id is a byte.
    fn stream(bytes: &[u8]) -> (Vec<String>, String) {
        let mut decoder = Decoder::new(Arc::new(byte_level(&[])));
        let parts = bytes.iter().map(|byte| decoder.push(u32::from(*byte))).collect();
        (parts, decoder.finish())
    }

    #[test]
    fn code_points_come_whole() {
        let (parts, rest) = stream("a€𝄞".as_bytes());
        assert_eq!(parts, ["a", "", "", "€", "", "", "", "𝄞"]);
        assert_eq!(rest, "");
    }

    #[test]
    fn rubbish_is_replaced_as_soon_as_it_is_known() {
        let (parts, rest) = stream(b"\xffa\xe2\x82b\xf0\x9d");
        assert_eq!(parts, ["\u{fffd}", "a", "", "", "\u{fffd}b", "", ""]);
        assert_eq!(rest, "\u{fffd}");
        assert_eq!(stream(b"").1, "");
    }

    #[test]
    fn the_stream_is_what_lossy_decoding_gives() {
        for bytes in [&b"\xf0\x28\x8c\x28"[..], b"\xe2\x28\xa1", b"\xc3\xc3\xa9", b"\xed\xa0\x80x", b"ok\xe2\x82"] {
            let (parts, rest) = stream(bytes);
            assert_eq!(parts.concat() + &rest, String::from_utf8_lossy(bytes));
        }
    }
}
