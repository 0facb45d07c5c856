//! Multiaddrs that people type: what is wrong with one is named part by part.

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use quelea_behaviours::scope::{self, Scope};

/// What a right one looks like.
const EXAMPLE: &str = "/ip4/203.0.113.7/tcp/8468/p2p/12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS";

/// Why a typed address cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("{given:?} is not a multiaddr: it must start with '/'; a right one looks like {EXAMPLE}")]
    NoSlash { given: String },
    #[error("in {given:?} the part {part:?} is wrong ({reason}); a right address looks like {EXAMPLE}")]
    Part { given: String, part: String, reason: String },
    #[error(
        "{given:?} does not say which peer it leads to: '/p2p/<peer id>' is missing at the end; a right one looks like {EXAMPLE}"
    )]
    NoPeer { given: String },
    #[error("{given:?} has nothing to dial before '/p2p/…'; a right one looks like {EXAMPLE}")]
    NoTransport { given: String },
}

/// A peer and where to dial it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerAddress {
    pub(crate) peer: PeerId,
    /// Without the final `/p2p/…`.
    pub(crate) addr: Multiaddr,
}

impl std::fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/p2p/{}", self.addr, self.peer)
    }
}

/// Reads a multiaddr and names the part that is wrong.
pub(crate) fn parse_multiaddr(given: &str) -> Result<Multiaddr, AddressError> {
    let given = given.trim();
    if !given.starts_with('/') {
        return Err(AddressError::NoSlash { given: given.into() });
    }
    given.parse::<Multiaddr>().map_err(|error| {
        // The longest beginning that is a multiaddr ends where the trouble starts.
        let segments: Vec<&str> = given.split('/').skip(1).collect();
        let good = (0..=segments.len())
            .rev()
            .find(|&n| n == 0 || format!("/{}", segments[..n].join("/")).parse::<Multiaddr>().is_ok())
            .unwrap_or(0);
        let part = segments[good..].iter().take(2).copied().collect::<Vec<_>>().join("/");
        AddressError::Part { given: given.into(), part: format!("/{part}"), reason: error.to_string() }
    })
}

/// Reads a full address, ending in the peer's id.
pub(crate) fn parse_peer_address(given: &str) -> Result<PeerAddress, AddressError> {
    let mut addr = parse_multiaddr(given)?;
    let Some(Protocol::P2p(peer)) = addr.iter().last() else {
        return Err(AddressError::NoPeer { given: given.trim().into() });
    };
    addr.pop();
    if addr.is_empty() {
        return Err(AddressError::NoTransport { given: given.trim().into() });
    }
    Ok(PeerAddress { peer, addr })
}

/// Whether an address can only lead to this machine or its own networks.
pub(crate) fn is_private(addr: &Multiaddr) -> bool {
    match addr.iter().next() {
        Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) => {
            // A bare host name (a container, "localhost") resolves only inside its own network.
            !name.contains('.') || name.ends_with(".local") || name.ends_with(".internal")
        }
        Some(Protocol::Dnsaddr(_)) => false,
        _ => scope::of(addr) != Some(Scope::World),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS";

    #[test]
    fn the_example_is_right() {
        let parsed = parse_peer_address(EXAMPLE).unwrap();
        assert_eq!(parsed.to_string(), EXAMPLE);
        assert_eq!(parsed.addr.to_string(), "/ip4/203.0.113.7/tcp/8468");
    }

    #[test]
    fn the_offending_part_is_named() {
        for (given, part) in [
            (format!("/ip4/10.0.0.300/tcp/8468/p2p/{PEER}"), "/ip4/10.0.0.300"),
            (format!("/ip4/10.0.0.3/tcp/99999/p2p/{PEER}"), "/tcp/99999"),
            (format!("/ip4/10.0.0.3/tpc/8468/p2p/{PEER}"), "/tpc/8468"),
            ("/ip4/10.0.0.3/tcp/8468/p2p/nonsense".into(), "/p2p/nonsense"),
        ] {
            let error = parse_peer_address(&given).unwrap_err();
            assert!(matches!(&error, AddressError::Part { part: p, .. } if p == part), "{given}: {error}");
            assert!(error.to_string().contains(EXAMPLE));
        }
    }

    #[test]
    fn an_address_without_a_peer_says_so() {
        assert!(matches!(parse_peer_address("/ip4/10.0.0.3/tcp/8468"), Err(AddressError::NoPeer { .. })));
        assert!(matches!(parse_peer_address("10.0.0.3:8468"), Err(AddressError::NoSlash { .. })));
        assert!(matches!(parse_peer_address(&format!("/p2p/{PEER}")), Err(AddressError::NoTransport { .. })));
    }

    #[test]
    fn private_addresses_are_told_apart() {
        for addr in
            ["/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.4/udp/1/quic-v1", "/dns4/bootstrap/tcp/8468", "/ip6/::1/tcp/1"]
        {
            assert!(is_private(&addr.parse().unwrap()), "{addr}");
        }
        for addr in ["/ip4/203.0.113.7/tcp/1", "/dns4/node.example.org/tcp/1", "/ip6/2001:db8::1/tcp/1"] {
            assert!(!is_private(&addr.parse().unwrap()), "{addr}");
        }
    }
}
