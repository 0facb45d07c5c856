//! Ranges of IP addresses: whom limits and bans mean when they do not mean one peer.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use libp2p::{Multiaddr, multiaddr::Protocol};

/// What one subscriber usually has: an IPv4 address, or an IPv6 /56.
pub const HOST: (u8, u8) = (32, 56);
/// What one site usually has: an IPv4 address again, or an IPv6 /48.
pub const SITE: (u8, u8) = (32, 48);
/// What one operator usually has: an IPv4 /16 or an IPv6 /32, as Bitcoin Core groups them.
pub const OPERATOR: (u8, u8) = (16, 32);

/// A range of addresses, written `10.0.0.0/8`. An IPv4 address in IPv6's clothes (`::ffff:1.2.3.4`) is the IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    first: IpAddr,
    bits: u8,
}

/// Why a text is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no range of addresses; write it like 203.0.113.0/24 or 2001:db8::/48")]
pub struct ParsePrefixError(String);

impl Prefix {
    /// The range of this many leading bits around `ip`; more bits than the address has are all of them.
    #[must_use]
    pub fn new(ip: IpAddr, bits: u8) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let bits = bits.min(32);
                let mask = u32::MAX.checked_shl(32_u32.saturating_sub(bits.into())).unwrap_or(0);
                Self { first: IpAddr::V4(Ipv4Addr::from_bits(ip.to_bits() & mask)), bits }
            }
            IpAddr::V6(ip) => {
                let bits = bits.min(128);
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits.into())).unwrap_or(0);
                Self { first: IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & mask)), bits }
            }
        }
    }

    /// The range around `ip` of so many bits for IPv4 and for IPv6, like [`HOST`].
    #[must_use]
    pub fn around(ip: IpAddr, (v4, v6): (u8, u8)) -> Self {
        let ip = ip.to_canonical();
        Self::new(ip, if ip.is_ipv4() { v4 } else { v6 })
    }

    /// Whether `ip` lies in it.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_ipv4() == self.first.is_ipv4() && Self::new(ip, self.bits) == *self
    }

    /// Its first address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Its leading bits that are fixed.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.bits
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

impl FromStr for Prefix {
    type Err = ParsePrefixError;

    /// Reads `203.0.113.0/24`; an address alone is the range of that address. Bits past the length must be zero, so that
    /// nobody means one range and writes another.
    fn from_str(text: &str) -> Result<Self, ParsePrefixError> {
        let bad = || ParsePrefixError(text.chars().take(64).collect());
        let (ip, bits) = match text.split_once('/') {
            Some((ip, bits)) => (ip, Some(bits.parse::<u8>().map_err(|_| bad())?)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| bad())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        let mapped = ip.to_canonical() != ip;
        let prefix = Self::new(ip, if mapped { bits.saturating_sub(96) } else { bits });
        if bits > most || (mapped && bits < 96) || prefix.first != ip.to_canonical() {
            return Err(bad());
        }
        Ok(prefix)
    }
}

/// The IP address at the head of a multiaddr, IPv4 where IPv6 only wraps it.
#[must_use]
pub fn ip_of(addr: &Multiaddr) -> Option<IpAddr> {
    let ip = match addr.iter().next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    Some(ip.to_canonical())
}

/// Whether limits per range leave this address alone: many machines of one home, lab or test share a private or loopback
/// range, and nobody on the internet can pretend to be in one.
#[must_use]
pub fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_are_read_and_written_alike() {
        for text in ["203.0.113.0/24", "0.0.0.0/0", "10.1.2.3/32", "2001:db8::/48", "::/0", "::1/128"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        assert_eq!("10.1.2.3".parse::<Prefix>().unwrap().to_string(), "10.1.2.3/32");
        assert_eq!("::ffff:10.1.0.0/112".parse::<Prefix>().unwrap().to_string(), "10.1.0.0/16");
        for bad in ["", "10.0.0.0/33", "10.0.0.1/8", "::/129", "10.0.0.0/-1", "10.0.0.0/8/8", "host/8", "::ffff:0:0/8"]
        {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn one_subscriber_is_one_range_however_it_writes_itself() {
        let host = |text: &str| Prefix::around(ip(text), HOST);
        assert_eq!(host("203.0.113.7"), host("::ffff:203.0.113.7"));
        assert_ne!(host("203.0.113.7"), host("203.0.113.8"));
        assert_eq!(host("2001:db8:0:100::1"), host("2001:db8:0:1ff:ffff::"));
        assert_ne!(host("2001:db8:0:100::1"), host("2001:db8:0:200::1"));
        assert!(!"::/0".parse::<Prefix>().unwrap().contains(ip("::ffff:1.2.3.4")), "that is an IPv4 address");
        assert!(is_local(ip("::ffff:192.168.1.1")) && !is_local(ip("203.0.113.7")));
        assert_eq!(ip_of(&"/ip6/::ffff:1.2.3.4/tcp/1".parse().unwrap()), Some(ip("1.2.3.4")));
        assert_eq!(ip_of(&"/dns4/a.example/tcp/1".parse().unwrap()), None);
    }

    proptest! {
        #[test]
        fn a_range_holds_what_it_was_made_around(bits: u128, v4: bool, length in 0_u8..=140) {
            let ip = if v4 { IpAddr::V4((bits as u32).into()) } else { IpAddr::V6(bits.into()) };
            let prefix = Prefix::new(ip, length);
            prop_assert!(prefix.contains(ip) && prefix.contains(prefix.first()));
            prop_assert_eq!(prefix.to_string().parse::<Prefix>().unwrap(), prefix);
        }
    }
}
