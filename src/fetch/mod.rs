//! Fetching what strangers name: addresses that modules, peers or web pages give us to open.
//!
//! Without a rule anybody could have this node open doors for him: of its own machine, of its home network, of a cloud's metadata
//! service. The rule is kept in this order, for the first address and again for every redirect:
//!
//! 1. parse once, with `url`;
//! 2. `https`, or `http` where that is allowed;
//! 3. no user and no password;
//! 4. port 443, or one that is listed;
//! 5. no address in the place of a name, however it is spelt, and no name of a private network;
//! 6. a name on the list, where there is one;
//! 7. resolve it here, once;
//! 8. refuse when *any* answer is not a public address;
//! 9. connect to an address that was checked, with the name in TLS.
//!
//! There is no proxy, no cookie, no pool, and no more than [`Limits`] allow.
//!
//! | file | holds |
//! |---|---|
//! | `address` | which addresses are public |
//! | `guard` | steps 1 to 6 |
//! | `connect` | steps 7 to 9 |
//! | `client` | requests, redirects, bodies |
//! | `robots` | what sites ask of programs |
//! | `read` | readable text of pages |

pub(crate) mod address;
mod client;
mod connect;
mod guard;
mod read;
mod robots;
#[cfg(test)]
mod tests;

pub(crate) use client::{FetchRequest, Web};
pub(crate) use guard::{Hosts, listed};
pub(crate) use read::{PageText, Reader, TEXT};

use std::{io, time::Duration};

use guard::Refused;

/// What a fetch may use.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Bytes of the body, after decompression.
    pub(crate) body: usize,
    /// Whether a body that is longer is cut there; else the fetch fails.
    pub(crate) cut: bool,
    /// From the look-up to the last byte, redirects among it.
    pub(crate) time: Duration,
    /// Whether plain HTTP will do.
    pub(crate) http: bool,
    /// Ports besides 443 (and 80 with `http`).
    pub(crate) ports: Vec<u16>,
    /// Names that may be fetched from.
    pub(crate) hosts: Hosts,
}

/// A body's bytes at most.
pub(crate) const BODY_MAX: usize = 1 << 20;
/// A request's bytes at most: its body and headers.
const REQUEST_MAX: usize = 64 << 10;
/// The longest address.
const URL_MAX: usize = 2_048;
/// Redirects followed.
const HOPS: usize = 3;
/// The longest that a fetch may take.
const TIME_MAX: Duration = Duration::from_secs(10);

impl Default for Limits {
    fn default() -> Self {
        Self { body: BODY_MAX, cut: false, time: TIME_MAX, http: false, ports: Vec::new(), hosts: Hosts::Any }
    }
}

/// Why nothing was fetched. Addresses are not in it: who asks need not learn what a name here leads to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("{host} leads to an address that is not public")]
    NotPublic { host: String },
    #[error("{host} is not found: {source}")]
    Unresolved { host: String, source: io::Error },
    #[error("{host} cannot be connected to: {source}")]
    Unreachable { host: String, source: io::Error },
    #[error("{host} does not answer as HTTP has it: {said}")]
    Http { host: String, said: String },
    #[error("more than {HOPS} redirects")]
    Redirects,
    #[error("the body is longer than {0} bytes")]
    TooLong(usize),
    #[error("the body is compressed as {0}, which was not asked for")]
    Encoding(String),
    #[error("it took longer than {0:?}")]
    Slow(Duration),
    #[error("{host} asks programs not to read {path} (robots.txt)")]
    Robots { host: String, path: String },
    #[error("this is {0}, of which no text can be made")]
    Kind(String),
    #[error("the page cannot be read: {0}")]
    Page(String),
    #[error(transparent)]
    Sandbox(#[from] crate::agents::SandboxError),
}

impl FetchError {
    /// A word of a fixed set, for modules.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Refused(_) | Self::NotPublic { .. } => "refused",
            Self::Unresolved { .. } | Self::Unreachable { .. } => "unreachable",
            Self::Slow(_) => "timeout",
            Self::TooLong(_) => "too_long",
            Self::Robots { .. } => "robots",
            _ => "failed",
        }
    }

    /// The code that commands and the API give.
    pub(crate) fn code(&self) -> quelea_wire::ErrorCode {
        use quelea_wire::ErrorCode;
        match self {
            Self::Refused(_) | Self::NotPublic { .. } | Self::Robots { .. } | Self::Kind(_) => ErrorCode::Usage,
            Self::Unresolved { .. } => ErrorCode::NotFound,
            Self::Slow(_) => ErrorCode::DeadlineExceeded,
            Self::Sandbox(crate::agents::SandboxError::Busy) => ErrorCode::Overloaded,
            Self::Sandbox(_) => ErrorCode::Internal,
            _ => ErrorCode::FetchFailed,
        }
    }
}
