//! The protocol from outside: frozen bytes, bytes at random, memory, and two swarms.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by failing loudly, helpers too")]

mod exchange;
mod numbers;
mod preallocate;
mod prop;
mod vectors;

use futures::{executor::block_on, io::Cursor};
use quelea_weights::{Answer, Request};

fn request(bytes: &[u8]) -> std::io::Result<Request> {
    block_on(Request::read(&mut Cursor::new(bytes)))
}

fn answer(bytes: &[u8]) -> std::io::Result<Answer> {
    block_on(Answer::read(&mut Cursor::new(bytes)))
}
