//! The engine from outside: against other engines' numbers, against hostile files, and under load.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "helpers of tests fail loudly, as tests do")]

mod batching;
mod bf16;
mod demo;
mod families;
mod folders;
mod gguf;
mod golden;
mod huggingface;
mod manifest;
mod models;
mod quantize;
mod reference;
mod runner;
mod shapes;
mod split;
mod support;
mod variants;
mod write;
