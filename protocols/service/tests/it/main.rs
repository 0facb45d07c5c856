//! The protocol from outside: frozen bytes, bytes at random, memory, and two swarms.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by failing loudly, helpers too")]

mod exchange;
mod preallocate;
mod prop;
mod vectors;

use futures::{executor::block_on, io::Cursor};
use quelea_service::{Answer, Ask, CallId, FrameError, FrameReader, FrameWriter, Listed};

fn ask(bytes: &[u8]) -> Result<Option<Ask>, FrameError> {
    block_on(FrameReader::new(Cursor::new(bytes)).ask())
}

fn answer(bytes: &[u8]) -> Result<Option<Answer>, FrameError> {
    block_on(FrameReader::new(Cursor::new(bytes)).answer())
}

fn asked(ask: &Ask) -> Vec<u8> {
    let mut bytes = Vec::new();
    block_on(FrameWriter::new(&mut bytes).ask(ask)).unwrap();
    bytes
}

fn answered(answer: &Answer) -> Vec<u8> {
    let mut bytes = Vec::new();
    block_on(FrameWriter::new(&mut bytes).answer(answer)).unwrap();
    bytes
}

fn call(input: &[u8]) -> quelea_service::Call {
    quelea_service::Call {
        id: CallId([1; 16]),
        hold: Some([2; 16]),
        price: 1000,
        remaining_ms: 30_000,
        version: 1,
        name: "echo".parse().unwrap(),
        input: input.to_vec(),
    }
}

fn listed(name: &str) -> Listed {
    Listed {
        name: name.parse().unwrap(),
        version: 1,
        price: 1000,
        input_max: 65_536,
        output_max: 65_536,
        deadline_ms: 10_000,
        at_once: 64,
        running: 1,
        waiting: 2,
        took_ms: 3,
        about: "Gives back".into(),
    }
}
