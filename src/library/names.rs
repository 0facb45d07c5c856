//! Names of peers, and ways to them.

use std::{fmt, ops::Deref, str::FromStr};

use crate::address::{parse_multiaddr, parse_peer_address};

macro_rules! text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// As it is written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl PartialEq<$name> for String {
            fn eq(&self, other: &$name) -> bool {
                *self == other.0
            }
        }

        impl PartialEq<String> for $name {
            fn eq(&self, other: &String) -> bool {
                self.0 == *other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                self.0 == *other
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.0 == other
            }
        }
    };
}

text! {
    /// A peer's id: the hash of its public key in base 58, such as `12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS`. It is also
    /// the number of its account.
    PeerId
}

text! {
    /// A multiaddr: where a node listens, such as `/ip4/0.0.0.0/tcp/8468`, or with `/p2p/` and a peer id at its end, how a peer
    /// is reached.
    Address
}

/// Why a text is no peer id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a peer id; one looks like 12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS")]
pub struct NotAPeerId {
    given: String,
}

/// Why a text is no address: it names the part that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotAnAddress(String);

impl FromStr for PeerId {
    type Err = NotAPeerId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = text.trim().parse::<libp2p::PeerId>().map_err(|_| NotAPeerId { given: text.into() })?;
        Ok(Self::of(&id))
    }
}

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_multiaddr(text).map(|addr| Self(addr.to_string())).map_err(|e| NotAnAddress(e.to_string()))
    }
}

impl PeerId {
    pub(crate) fn of(id: &libp2p::PeerId) -> Self {
        Self(id.to_string())
    }
}

impl Address {
    /// One that this program has made.
    pub(crate) fn made(text: String) -> Self {
        Self(text)
    }

    /// The peer that it leads to, where it says so.
    #[must_use]
    pub fn peer(&self) -> Option<PeerId> {
        parse_peer_address(&self.0).ok().map(|to| PeerId::of(&to.peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS";

    #[test]
    fn names_are_read_as_they_are_written() {
        let peer: PeerId = PEER.parse().unwrap();
        assert_eq!(peer.to_string(), PEER);
        assert_eq!(format!("{peer:.4}…{:>4}", "x"), "12D3…   x");
        let full: Address = format!(" /ip4/127.0.0.1/tcp/1/p2p/{PEER}").parse().unwrap();
        assert_eq!(full.peer(), Some(peer));
        assert_eq!("/ip4/0.0.0.0/tcp/0".parse::<Address>().unwrap().peer(), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!("me".parse::<PeerId>().unwrap_err().to_string().contains("\"me\""));
        assert!("/ip4/300.0.0.1/tcp/1".parse::<Address>().unwrap_err().to_string().contains("/ip4/300.0.0.1"));
    }
}
