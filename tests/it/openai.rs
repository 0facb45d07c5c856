//! The OpenAI API, as its official clients and as bare HTTP meet it.

mod clients;
mod http;
mod malformed;
mod rules;
mod ways;
mod widths;

pub use self::clients::{python, token};
