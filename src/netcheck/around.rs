//! What stands around the node besides the swarm: IPv6, and whether the router gives ports by PCP or NAT-PMP.
//!
//! The router is asked by one packet of each, which change nothing: PCP's ANNOUNCE (RFC 6887, section 14.1) and NAT-PMP's
//! question for the external address (RFC 6886, section 3.2). A masked node asks nobody.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

/// Where routers answer both protocols.
const PORT: u16 = 5351;

/// Waits between repetitions: as both RFCs begin, 250 ms and then twice as long; 1.75 s in all.
const WAITS: [Duration; 3] = [Duration::from_millis(250), Duration::from_millis(500), Duration::from_millis(1000)];

/// The longest packet of PCP.
const MAX_PACKET: usize = 1100;

/// The header of PCP, request and response.
const PCP_HEADER: usize = 24;

/// What a router says to a protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// Nobody was asked: the node is masked.
    #[default]
    NotAsked,
    /// There is no router, or it does not answer.
    No,
    /// It speaks it.
    Yes,
    /// It speaks it, and has it turned off or out of order.
    Refused,
}

impl Spoken {
    fn as_str(self) -> &'static str {
        match self {
            Self::NotAsked => "not-asked",
            Self::No => "no",
            Self::Yes => "yes",
            Self::Refused => "refused",
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Around {
    /// Whether the system has IPv6.
    pub(crate) ipv6: bool,
    /// The address of the internet from which it would speak IPv6.
    pub(crate) global: Option<Ipv6Addr>,
    pub(crate) gateway: Option<Ipv4Addr>,
    pub(crate) pcp: Spoken,
    pub(crate) nat_pmp: Spoken,
    /// The router's own address outside, as NAT-PMP tells it.
    pub(crate) outside: Option<Ipv4Addr>,
}

impl Around {
    /// Looks, and asks the router unless the node is to be `quiet`. Takes at most the sum of [`WAITS`].
    pub(crate) async fn look(quiet: bool) -> Self {
        let ipv6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
        let around = Self { ipv6, global: global_ipv6(), ..Self::default() };
        if quiet {
            return around;
        }
        let around = Self { pcp: Spoken::No, nat_pmp: Spoken::No, ..around };
        // Linux only; elsewhere no router is found.
        let routes = tokio::fs::read_to_string("/proc/net/route").await.unwrap_or_default();
        match default_gateway(&routes) {
            Some(gateway) => around.asked(SocketAddr::new(gateway.into(), PORT), gateway).await,
            None => around,
        }
    }

    /// Asks at `addr`.
    async fn asked(mut self, addr: SocketAddr, gateway: Ipv4Addr) -> Self {
        self.gateway = Some(gateway);
        // What cannot be sent or comes back as unreachable is no answer.
        let _ = self.ask(addr).await;
        self
    }

    async fn ask(&mut self, addr: SocketAddr) -> std::io::Result<()> {
        let socket = tokio::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.connect(addr).await?;
        let announce = announce(socket.local_addr()?.ip());
        let mut packet = [0; MAX_PACKET];
        for wait in WAITS {
            socket.send(&[0, 0]).await?;
            socket.send(&announce).await?;
            let until = Instant::now() + wait;
            while let Ok(length) = timeout_at(until, socket.recv(&mut packet)).await {
                self.heard(packet.get(..length?).unwrap_or_default());
                if self.pcp != Spoken::No && self.nat_pmp != Spoken::No {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// A packet from the router.
    fn heard(&mut self, packet: &[u8]) {
        match packet {
            // A response of PCP, if only to say that it does not know NAT-PMP (UNSUPP_VERSION).
            [2, 0x80, _, code, ..] if packet.len() >= PCP_HEADER => {
                self.pcp = if matches!(code, 0 | 1) { Spoken::Yes } else { Spoken::Refused };
            }
            // NAT-PMP does not know PCP's version: the answer to the other question.
            [0, _, 0, 1, ..] => {}
            [0, 0x80, 0, 0, _, _, _, _, a, b, c, d] => {
                self.nat_pmp = Spoken::Yes;
                self.outside = Some(Ipv4Addr::new(*a, *b, *c, *d)).filter(|ip| !ip.is_unspecified());
            }
            [0, 0x80, _, _, ..] if packet.len() >= 8 => self.nat_pmp = Spoken::Refused,
            _ => {}
        }
    }

    /// Whether the router's own address is one that a provider shares among customers (RFC 6598), or of a LAN.
    pub(crate) fn shared_outside(&self) -> bool {
        self.outside.is_some_and(is_shared)
    }

    /// As netcheck tells it.
    pub(crate) fn to_json(&self, reachable_by_ipv6: bool) -> (Value, Value) {
        let global = self.global.map(|ip| ip.to_string());
        (
            json!({ "os": self.ipv6, "global": global, "reachable": reachable_by_ipv6 }),
            json!({
                "gateway": self.gateway.map(|ip| ip.to_string()),
                "pcp": self.pcp.as_str(),
                "nat_pmp": self.nat_pmp.as_str(),
                "external": self.outside.map(|ip| ip.to_string()),
            }),
        )
    }

    /// What to do about what is bad; `public` when anybody can dial the node already.
    pub(crate) fn advice(&self, public: bool, reachable_by_ipv6: bool) -> Vec<&'static str> {
        let mut all = Vec::new();
        if public {
            return all;
        }
        if self.shared_outside() {
            all.push(
                "the router's own address is one of 100.64.0.0/10 (CGNAT): forwarding a port there will not help; ask the provider for an address of your own, or use IPv6",
            );
        } else if self.outside.is_some_and(|ip| ip.is_private()) {
            all.push("the router's own address is a private one: it is behind another NAT; forward the port at both, or put one of them into bridge mode");
        } else if self.pcp == Spoken::Yes || self.nat_pmp == Spoken::Yes {
            all.push(
                "the router opens ports by PCP or NAT-PMP, which this node does not ask for: turn on UPnP there and use --upnp, or forward the port by hand",
            );
        }
        if self.global.is_some() && !reachable_by_ipv6 {
            all.push(
                "this machine has a global IPv6 address that nobody has reached: listen on it (--listen /ip6/::/tcp/8468 and /ip6/::/udp/8468/quic-v1 beside IPv4's), and let it through the router's firewall",
            );
        }
        all
    }
}

/// 100.64.0.0/10.
pub(crate) fn is_shared(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    a == 100 && (64..128).contains(&b)
}

/// The address from which this machine would speak to the internet by IPv6. Nothing is sent: only the route is looked up.
fn global_ipv6() -> Option<Ipv6Addr> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok()?;
    // 2001:db8::/32 is for documentation; no route of its own leads there.
    socket.connect((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V6(ip) if ip.segments()[0] & 0xe000 == 0x2000 => Some(ip),
        _ => None,
    }
}

/// The first default route's gateway, in the form of `/proc/net/route`.
fn default_gateway(routes: &str) -> Option<Ipv4Addr> {
    const GATEWAY: u32 = 2;
    routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (to, via, flags) = (fields.next()?, fields.next()?, fields.next()?);
        let is_default = to == "00000000" && u32::from_str_radix(flags, 16).ok()? & GATEWAY != 0;
        // The kernel prints the address as the machine has it in memory.
        let address = Ipv4Addr::from(u32::from_str_radix(via, 16).ok()?.to_ne_bytes());
        is_default.then_some(address)
    })
}

/// PCP's ANNOUNCE from this address.
fn announce(from: IpAddr) -> [u8; PCP_HEADER] {
    let from = match from {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut request = [0; PCP_HEADER];
    request[0] = 2;
    request[8..].copy_from_slice(&from.octets());
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A router on loopback that answers each packet so.
    async fn router(answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> SocketAddr {
        let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut packet = [0; MAX_PACKET];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                if let Some(answer) = answer(&packet[..length]) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        addr
    }

    async fn around(addr: SocketAddr) -> Around {
        let here = Around { pcp: Spoken::No, nat_pmp: Spoken::No, ..Around::default() };
        here.asked(addr, Ipv4Addr::LOCALHOST).await
    }

    fn pcp(code: u8) -> Vec<u8> {
        [vec![2, 0x80, 0, code], vec![0; 20]].concat()
    }

    #[tokio::test]
    async fn a_router_s_protocols_are_told_apart() {
        let both = router(|asked| match asked {
            [0, 0] => Some(vec![0, 0x80, 0, 0, 0, 0, 0, 9, 100, 64, 3, 4]),
            [2, 0, ..] if asked.len() == PCP_HEADER => Some(pcp(0)),
            _ => None,
        });
        let seen = around(both.await).await;
        assert_eq!((seen.pcp, seen.nat_pmp, seen.outside), (Spoken::Yes, Spoken::Yes, "100.64.3.4".parse().ok()));
        assert!(seen.shared_outside() && seen.advice(false, false)[0].contains("CGNAT"));
        // One that knows NAT-PMP only, and has it turned off.
        let old = router(|asked| {
            let code = if asked[0] == 0 { 2 } else { 1 };
            Some(vec![0, 0x80, 0, code, 0, 0, 0, 9])
        });
        let seen = around(old.await).await;
        assert_eq!((seen.pcp, seen.nat_pmp, seen.outside), (Spoken::No, Spoken::Refused, None));
        // One that knows PCP only.
        let seen = around(router(|asked| Some(pcp(u8::from(asked[0] == 0)))).await).await;
        assert_eq!((seen.pcp, seen.nat_pmp), (Spoken::Yes, Spoken::No));
        assert!(seen.advice(false, false)[0].contains("--upnp") && seen.advice(true, false).is_empty());
    }

    #[tokio::test]
    async fn silence_and_garbage_are_no_answer() {
        let seen = around(router(|_| None).await).await;
        assert_eq!((seen.pcp, seen.nat_pmp), (Spoken::No, Spoken::No));
        for garbage in [vec![], vec![2], vec![2, 0x80, 0, 0], vec![0, 0x80, 0, 0, 1], vec![9; 40]] {
            let mut seen = Around::default();
            seen.heard(&garbage);
            assert_eq!(seen, Around::default(), "{garbage:?}");
        }
    }

    #[tokio::test]
    async fn a_masked_node_asks_nobody() {
        let seen = Around::look(true).await;
        assert_eq!((seen.pcp, seen.nat_pmp, seen.gateway), (Spoken::NotAsked, Spoken::NotAsked, None));
    }

    #[test]
    fn the_default_route_is_read() {
        let hex = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let routes = format!(
            "Iface\tDestination\tGateway\tFlags\nlan\t{}\t00000000\t0001\nlan\t00000000\t{}\t0003\n",
            hex([192, 168, 1, 0]),
            hex([192, 168, 1, 1])
        );
        assert_eq!(default_gateway(&routes), "192.168.1.1".parse().ok());
        assert_eq!(default_gateway("Iface\n"), None);
        assert!(is_shared("100.127.255.255".parse().unwrap()) && !is_shared("100.128.0.0".parse().unwrap()));
    }
}
