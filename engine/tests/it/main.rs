//! The engine from outside: against other engines' numbers, against hostile files, and under load.

mod demo;
mod gguf;
mod manifest;
mod models;
mod reference;
mod runner;
mod split;
mod support;
