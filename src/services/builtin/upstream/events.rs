//! The stream of an answer: server-sent events, each `data:` a JSON object, the last `[DONE]`.

use quelea_service::Fault;
use serde_json::Value;

use super::foreign;

/// Bytes of one line. A chunk of an answer has a few hundred.
const LINE: usize = 64 << 10;

/// What an event brings.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    /// Tokens of the answer.
    Tokens(u64),
    End,
    /// Whatever it says: it may quote what it was sent.
    Error,
}

/// What is not a whole line yet.
#[derive(Debug, Default)]
pub(super) struct Events {
    line: Vec<u8>,
}

impl Events {
    /// Takes bytes as they come, and gives what is whole.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Vec<Piece>, Fault> {
        let mut pieces = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len().saturating_add(part.len()) > LINE {
                return Err(foreign("it sent a line without end"));
            }
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                read(line.trim_ascii(), &mut pieces)?;
            }
        }
        Ok(pieces)
    }
}

fn read(line: &[u8], pieces: &mut Vec<Piece>) -> Result<(), Fault> {
    // Comments, names of events and empty lines say nothing here.
    let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { return Ok(()) };
    if data == b"[DONE]" {
        pieces.push(Piece::End);
        return Ok(());
    }
    let chunk: Value = serde_json::from_slice(data).map_err(|_| foreign("it sent an event that is not JSON"))?;
    if chunk.get("error").is_some_and(|error| !error.is_null()) {
        pieces.push(Piece::Error);
        return Ok(());
    }
    if let Some(text) = chunk["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
        pieces.push(Piece::Text(text.to_owned()));
    }
    if let Some(tokens) = chunk["usage"]["completion_tokens"].as_u64() {
        pieces.push(Piece::Tokens(tokens));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": ping\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"Hö\"}}],\"usage\":null}\r\n\r\n\
        event: more\ndata:{\"choices\":[{\"delta\":{\"content\":\"p.\"}}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";

    #[test]
    fn a_stream_is_read_the_same_however_it_is_cut() {
        let wanted = [Piece::Text("Hö".into()), Piece::Text("p.".into()), Piece::Tokens(2), Piece::End];
        for size in 1..STREAM.len() {
            let mut events = Events::default();
            let pieces: Vec<Piece> =
                STREAM.as_bytes().chunks(size).flat_map(|part| events.take(part).unwrap()).collect();
            assert_eq!(pieces, wanted, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_event_is_refused() {
        assert!(Events::default().take(b"data: {no}\n").is_err());
        assert!(Events::default().take(&[b'x'; LINE + 1]).is_err());
        let error = Events::default().take(b"data: {\"error\":{\"message\":\"key sk-1\"}}\n").unwrap();
        assert_eq!(error, [Piece::Error]);
    }
}
