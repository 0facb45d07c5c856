//! What stands between this node and the internet, by its usual name: a pure function of what others saw.
//!
//! Two properties make a NAT (RFC 4787). **Mapping**: does one local port look the same to everybody? Several peers that we
//! dialled from it tell us where they saw us. **Filtering**: who may answer on that port? AutoNAT's dial-backs come from
//! another port of an address that we are in touch with; an inbound connection from an address that we never sent anything
//! to shows that anybody may.
//!
//! | mapping | filtering | name |
//! |---|---|---|
//! | none: peers see an address of ours | anybody | none |
//! | none | not anybody | firewall |
//! | the same for all | anybody | full cone |
//! | the same for all | those we sent to, from any port | restricted cone |
//! | the same for all | those we sent to, from that port only | port-restricted cone |
//! | another for each | – | symmetric |
//!
//! QUIC decides where it can: all its packets leave from the listening socket. TCP connections leave from the listening port
//! when the system lets them, else from another one, and what is observed does not say which; so a port that changes proves
//! nothing there, while one that stays the same proves as much as for QUIC.

use std::net::{IpAddr, SocketAddr};

use crate::scope::{self, Scope};

/// Where a peer that we dialled sees us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Whether over QUIC; else over TCP.
    pub quic: bool,
    /// Our address as it sees it.
    pub seen: SocketAddr,
    /// Its own address: two observers behind one address are one.
    pub by: IpAddr,
}

/// What is known about reaching us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Addresses of our interfaces that we listen on.
    pub listeners: Vec<IpAddr>,
    /// What peers saw.
    pub observations: Vec<Observation>,
    /// AutoNAT's dial-backs of direct addresses that arrived, and that did not.
    pub dial_backs: (usize, usize),
    /// Whether somebody came in from an address that we never sent anything to.
    pub stranger_came_in: bool,
    /// The external address of the router, by UPnP.
    pub gateway: Option<IpAddr>,
}

/// How a local port maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mapping {
    /// Not at all: peers see an address of ours.
    None,
    /// The same for all peers.
    Same,
    /// Another for each peer.
    Differs,
    /// Fewer than two peers told.
    Unknown,
}

/// Who may send to a mapped port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Filtering {
    /// Anybody.
    Open,
    /// At least those we sent to, from any port; nobody else has tried, or got through.
    Address,
    /// Only those we sent to, from the very port.
    AddressAndPort,
    /// Nobody has dialled back.
    Unknown,
}

/// The usual name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// No NAT, and reachable.
    None,
    /// No NAT, but something drops what comes in unasked.
    Firewall,
    /// Anybody may answer on a mapped port.
    FullCone,
    /// Those we sent to may.
    RestrictedCone,
    /// Those we sent to may, from the port we sent to.
    PortRestricted,
    /// Every peer sees another port.
    Symmetric,
    /// A NAT; which one is not clear yet.
    Unclear,
    /// Too little is known.
    Unknown,
}

impl Kind {
    /// As people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Firewall => "firewall",
            Self::FullCone => "full cone",
            Self::RestrictedCone => "restricted cone",
            Self::PortRestricted => "port-restricted cone",
            Self::Symmetric => "symmetric",
            Self::Unclear => "unclear",
            Self::Unknown => "unknown",
        }
    }
}

/// What stands between this node and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nat {
    /// By its usual name.
    pub kind: Kind,
    /// How ports map.
    pub mapping: Mapping,
    /// Who may answer.
    pub filtering: Filtering,
    /// Signs of a second NAT behind the first.
    pub double: Option<Double>,
}

/// Why there seems to be more than one NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Double {
    /// An interface or the router has an address of 100.64.0.0/10: the provider's.
    CarrierGrade,
    /// The router's own external address is not the one that peers see.
    GatewayBehindNat,
}

/// Names what stands between this node and the internet.
#[must_use]
pub fn classify(evidence: &Evidence) -> Nat {
    let mapping = mapping(evidence);
    let filtering = filtering(evidence);
    let kind = match (mapping, filtering) {
        (Mapping::None, Filtering::Open | Filtering::Address) => Kind::None,
        (Mapping::None, Filtering::AddressAndPort) => Kind::Firewall,
        (Mapping::None | Mapping::Unknown, Filtering::Unknown) => Kind::Unknown,
        (Mapping::Differs, _) => Kind::Symmetric,
        (Mapping::Same, Filtering::Open) => Kind::FullCone,
        (Mapping::Same, Filtering::Address) => Kind::RestrictedCone,
        (Mapping::Same, Filtering::AddressAndPort) => Kind::PortRestricted,
        (Mapping::Same, Filtering::Unknown) | (Mapping::Unknown, _) => Kind::Unclear,
    };
    Nat { kind, mapping, filtering, double: double(evidence) }
}

fn mapping(evidence: &Evidence) -> Mapping {
    let outside = || evidence.observations.iter().filter(|o| scope_of(o.by) == Some(Scope::World));
    if outside().any(|o| evidence.listeners.contains(&o.seen.ip())) {
        return Mapping::None;
    }
    match spread(outside().filter(|o| o.quic)) {
        Spread::One => Mapping::Same,
        Spread::Many => Mapping::Differs,
        Spread::TooFew => match spread(outside().filter(|o| !o.quic)) {
            Spread::One => Mapping::Same,
            Spread::Many | Spread::TooFew => Mapping::Unknown,
        },
    }
}

/// In how many ways several observers see one port.
enum Spread {
    One,
    Many,
    TooFew,
}

fn spread<'a>(observations: impl Iterator<Item = &'a Observation>) -> Spread {
    let all: Vec<&Observation> = observations.collect();
    let Some(first) = all.first() else { return Spread::TooFew };
    if all.iter().all(|o| o.by == first.by) {
        Spread::TooFew
    } else if all.iter().any(|o| all.iter().any(|other| other.seen == o.seen && other.by != o.by)) {
        // Where two agree, a third that differs met a port that was taken; a symmetric NAT shows no two peers the same.
        Spread::One
    } else {
        Spread::Many
    }
}

fn filtering(evidence: &Evidence) -> Filtering {
    match evidence.dial_backs {
        _ if evidence.stranger_came_in => Filtering::Open,
        (0, 0) => Filtering::Unknown,
        (0, _) => Filtering::AddressAndPort,
        _ => Filtering::Address,
    }
}

fn double(evidence: &Evidence) -> Option<Double> {
    let shared =
        |ip: &IpAddr| matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 100 && (64..128).contains(&v4.octets()[1]));
    if evidence.listeners.iter().chain(&evidence.gateway).any(shared) {
        return Some(Double::CarrierGrade);
    }
    let gateway = evidence.gateway?;
    let elsewhere =
        evidence.observations.iter().any(|o| scope_of(o.by) == Some(Scope::World) && o.seen.ip() != gateway);
    (scope_of(gateway) != Some(Scope::World) || elsewhere).then_some(Double::GatewayBehindNat)
}

fn scope_of(ip: IpAddr) -> Option<Scope> {
    scope::of(&ip.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "192.168.1.7";
    const SEEN: &str = "45.70.1.1";

    fn see(quic: bool, seen: &str, by: &str) -> Observation {
        Observation { quic, seen: seen.parse().unwrap(), by: by.parse().unwrap() }
    }

    fn evidence(observations: &[Observation], dial_backs: (usize, usize), stranger: bool) -> Evidence {
        Evidence {
            listeners: vec![OURS.parse().unwrap(), "127.0.0.1".parse().unwrap()],
            observations: observations.to_vec(),
            dial_backs,
            stranger_came_in: stranger,
            gateway: None,
        }
    }

    #[test]
    fn every_kind_by_its_name() {
        let same = [see(true, "45.70.1.1:8468", "45.65.1.1"), see(true, "45.70.1.1:8468", "45.66.1.1")];
        let other = [see(true, "45.70.1.1:8468", "45.65.1.1"), see(true, "45.70.1.1:9000", "45.66.1.1")];
        let pooled = [see(true, "45.70.1.1:8468", "45.65.1.1"), see(true, "45.70.1.2:8468", "45.66.1.1")];
        for (observations, dial_backs, stranger, kind) in [
            (&same, (1, 0), true, Kind::FullCone),
            (&same, (0, 2), true, Kind::FullCone),
            (&same, (2, 0), false, Kind::RestrictedCone),
            (&same, (1, 3), false, Kind::RestrictedCone),
            (&same, (0, 1), false, Kind::PortRestricted),
            (&same, (0, 0), false, Kind::Unclear),
            (&other, (0, 1), false, Kind::Symmetric),
            (&other, (0, 0), false, Kind::Symmetric),
            (&pooled, (0, 0), false, Kind::Symmetric),
        ] {
            let nat = classify(&evidence(observations, dial_backs, stranger));
            assert_eq!(nat.kind, kind, "{dial_backs:?} {stranger} {observations:?}");
            assert_eq!(nat.double, None);
        }
        assert_eq!(classify(&Evidence::default()).kind, Kind::Unknown);
    }

    #[test]
    fn an_address_of_our_own_is_no_nat() {
        let mut public = evidence(&[see(true, "45.70.1.1:8468", "45.65.1.1")], (1, 0), false);
        public.listeners = vec![SEEN.parse().unwrap()];
        assert_eq!(classify(&public).kind, Kind::None);
        public.dial_backs = (0, 1);
        assert_eq!(classify(&public).kind, Kind::Firewall);
        public.dial_backs = (0, 0);
        assert_eq!(classify(&public).kind, Kind::Unknown);
    }

    #[test]
    fn one_observer_or_neighbours_prove_nothing() {
        let one = [see(true, "45.70.1.1:8468", "45.65.1.1"), see(true, "45.70.1.1:9000", "45.65.1.1")];
        assert_eq!(classify(&evidence(&one, (0, 1), false)).mapping, Mapping::Unknown);
        let near = [see(true, "192.168.1.7:1", "192.168.1.8"), see(true, "192.168.1.7:2", "192.168.1.9")];
        assert_eq!(classify(&evidence(&near, (0, 0), false)).kind, Kind::Unknown);
    }

    #[test]
    fn tcp_says_what_stays_the_same_never_what_changes() {
        let changing = [see(false, "45.70.1.1:8468", "45.65.1.1"), see(false, "45.70.1.1:51234", "45.66.1.1")];
        assert_eq!(classify(&evidence(&changing, (0, 1), false)).mapping, Mapping::Unknown);
        let staying = [see(false, "45.70.1.1:8468", "45.65.1.1"), see(false, "45.70.1.1:8468", "45.66.1.1")];
        assert_eq!(classify(&evidence(&staying, (0, 1), false)).kind, Kind::PortRestricted);
        let both =
            [staying[0], staying[1], see(true, "45.70.1.1:1", "45.65.1.1"), see(true, "45.70.1.1:2", "45.66.1.1")];
        assert_eq!(classify(&evidence(&both, (0, 1), false)).kind, Kind::Symmetric, "QUIC decides");
    }

    #[test]
    fn a_second_nat_shows_in_addresses() {
        let seen = [see(true, "45.70.1.1:8468", "45.65.1.1")];
        let mut behind = evidence(&seen, (0, 0), false);
        for (gateway, double) in [
            ("45.70.1.1", None),
            ("45.70.9.9", Some(Double::GatewayBehindNat)),
            ("10.0.0.2", Some(Double::GatewayBehindNat)),
            ("100.64.3.2", Some(Double::CarrierGrade)),
        ] {
            behind.gateway = Some(gateway.parse().unwrap());
            assert_eq!(classify(&behind).double, double, "{gateway}");
        }
        behind.gateway = None;
        behind.listeners = vec!["100.100.1.1".parse().unwrap()];
        assert_eq!(classify(&behind).double, Some(Double::CarrierGrade));
    }
}
