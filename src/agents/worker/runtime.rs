//! What runs modules: small, so that another engine can take its place. Only [`super::engine`] names the one there is.

use super::guest::Guest;
use crate::agents::limits::Limits;

/// An engine.
pub(super) trait Runtime {
    /// Makes a module ready to run. It has been read through before; see [`super::gate`].
    ///
    /// # Errors
    /// When it cannot be compiled, in words.
    fn compile(&self, module: &[u8]) -> Result<Box<dyn Program>, String>;
}

/// A compiled module, good for one run.
pub(super) trait Program {
    /// Calls the export `entry`.
    fn run(self: Box<Self>, entry: &str, limits: Limits, guest: Guest) -> Ran;
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Ended {
    /// The entry returned, and not with an error.
    Ok = 0,
    /// The module itself says that it failed.
    Failed = 1,
    /// It did what no module may: divide by zero, read past an end, recurse without end.
    Trapped = 2,
    /// Its fuel is used up.
    OutOfFuel = 3,
    /// Its time is over.
    Timeout = 4,
    /// It is not run: too large, malformed, asks for what is not there.
    Refused = 5,
}

impl Ended {
    pub(crate) fn from_u8(n: u8) -> Option<Self> {
        [Self::Ok, Self::Failed, Self::Trapped, Self::OutOfFuel, Self::Timeout, Self::Refused]
            .into_iter()
            .find(|ended| *ended as u8 == n)
    }
}

/// What a run came to.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) ended: Ended,
    pub(super) fuel: u64,
    /// Why, unless all went well.
    pub(super) message: String,
    pub(super) output: Vec<u8>,
}

impl Ran {
    /// It was read and compiled, and that was all.
    pub(super) fn looked_at() -> Self {
        Self { ended: Ended::Ok, fuel: 0, message: String::new(), output: Vec::new() }
    }

    /// Nothing was run.
    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self { ended: Ended::Refused, fuel: 0, message: message.into(), output: Vec::new() }
    }
}
