//! The daemon's configuration: a flag wins over the environment, that over the file, that over the profile, that over what
//! is built in.
//!
//! There is one list of settings, the flags of `quelea daemon`: a key of the file is a flag's long name, a variable is
//! `QUELEA_DAEMON_` and the name in capitals, and all values are read by the same parsers (docs/adr/0047).

mod commands;
mod edit;
mod file;
mod layers;
mod live;
mod profile;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub(super) use self::{
    commands::{init, run},
    layers::{Setting, Unparsed, effective, items, parse, shown},
    live::Live,
};
use super::args::Global;
use crate::home::Home;

/// The file's name in the data directory.
const NAME: &str = "config.toml";

/// Where the file is, or would be.
pub(super) fn path_of(global: &Global, home: &Home) -> PathBuf {
    global.config.clone().unwrap_or_else(|| home.dir().join(NAME))
}
