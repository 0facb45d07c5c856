//! Names of services.

use std::{fmt, str::FromStr};

/// Bytes of the longest name.
pub const MAX_NAME: usize = 32;

/// A service's name: 1 to [`MAX_NAME`] of `a-z`, `0-9`, `_`, `-` and `.`, a letter first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// Why a text is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a service's name is 1 to {MAX_NAME} of a-z, 0-9, '_', '-' and '.', a letter first")]
pub struct NameError;

impl Name {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'.');
        let fits = (1..=MAX_NAME).contains(&text.len())
            && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
            && text.bytes().all(inner);
        if fits { Ok(Self(text.to_owned())) } else { Err(NameError) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
