//! What `quelea netcheck` reports: how this node can be reached, and what to do about what stands in the way.

mod around;

use std::fmt::Write as _;

use libp2p::{Multiaddr, multiaddr::Protocol};
use quelea_behaviours::nat::{
    is_relayed,
    kind::{Double, Filtering, Kind, Mapping},
};
use serde_json::{Value, json};

pub(crate) use self::around::Around;
use crate::swarm::{NatView, Upnp};

/// Up to so many seconds, a peer's clock that seems behind may just be gossip that came late: who joins is told what was said
/// in the last five heartbeats.
const TRAVEL_S: f64 = 10.0;

/// Clocks further apart than this have signed records refused: they count as dated for 120 s around now.
const SKEW_BAD_MS: i64 = 60_000;

/// Hole punches after which a bad score means something.
const PUNCHES_ENOUGH: usize = 4;

/// The report as JSON, `quelea.netcheck/v1`.
pub(crate) fn report(view: &NatView, around: &Around) -> Value {
    let mapping = match view.nat.mapping {
        Mapping::None => "none",
        Mapping::Same => "endpoint-independent",
        Mapping::Differs => "endpoint-dependent",
        _ => "unknown",
    };
    let filtering = match view.nat.filtering {
        Filtering::Open => "endpoint-independent",
        Filtering::Address => "address-dependent",
        Filtering::AddressAndPort => "address-and-port-dependent",
        _ => "unknown",
    };
    let double = view.nat.double.map(|double| match double {
        Double::CarrierGrade => "carrier-grade",
        _ => "gateway-behind-nat",
    });
    let addresses: Vec<Value> = view
        .tested
        .iter()
        .map(|tested| {
            let state = if tested.arrived > 0 { "reachable" } else { "unreachable" };
            json!({
                "address": tested.addr.to_string(),
                "state": state,
                "dial_backs": tested.arrived,
                "failures": tested.failed,
                "reason": tested.reason,
            })
        })
        .collect();
    let relays: Vec<Value> = view
        .relays
        .iter()
        .map(|relay| {
            json!({
                "peer_id": relay.peer.to_string(),
                "address": relay.addr.to_string(),
                "rtt_s": relay.rtt.map(|rtt| rtt.as_secs_f64()),
                "reserved": relay.reserved,
            })
        })
        .collect();
    let upnp = match &view.upnp {
        Upnp::Off => "off",
        Upnp::Searching => "searching",
        Upnp::NoGateway => "no-gateway",
        Upnp::NonRoutable => "gateway-behind-nat",
        Upnp::Mapped(_) => "mapped",
    };
    let mapped = if let Upnp::Mapped(addrs) = &view.upnp { addrs.as_slice() } else { &[] };
    let all = |addrs: &[libp2p::Multiaddr]| addrs.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (tried, successful) = view.punches;
    let by_ipv6 = reached_by_ipv6(view);
    let (ipv6, port_mapping) = around.to_json(by_ipv6);
    let mut advised = advice(view);
    let cgnat = view.nat.double == Some(Double::CarrierGrade) || around.shared_outside();
    if view.nat.double.is_none() {
        advised.extend(around.advice(view.public, by_ipv6));
    }
    json!({
        "schema": "quelea.netcheck/v1",
        "reachability": reachability(view),
        "nat": {
            "kind": view.nat.kind.name(),
            "mapping": mapping,
            "filtering": filtering,
            "double": double,
        },
        "observed": view.observed.iter().map(|o| json!({
            "address": o.seen.to_string(),
            "transport": if o.quic { "quic" } else { "tcp" },
            "by": o.by.to_string(),
        })).collect::<Vec<_>>(),
        "addresses": addresses,
        "external": all(&view.external),
        "listen": all(&view.listeners),
        "upnp": { "state": upnp, "addresses": all(mapped) },
        "ipv6": ipv6,
        "port_mapping": port_mapping,
        "cgnat": cgnat,
        "relays": relays,
        "hole_punching": { "attempts": tried, "successes": successful },
        "clock": view.clock.map(|(ahead, peers)| {
            // Peers' clocks ahead of ours mean that ours is behind.
            json!({ "skew_s": seconds(ahead), "peers": peers })
        }),
        "peers": { "connected": view.peers, "relayed": view.relayed_peers },
        "advice": advised,
    })
}

#[allow(clippy::cast_precision_loss, reason = "2^53 ms are 285,000 years")]
fn seconds(ms: i64) -> f64 {
    ms as f64 / 1e3
}

/// Whether somebody has reached this node by IPv6.
fn reached_by_ipv6(view: &NatView) -> bool {
    let is_ipv6 = |addr: &Multiaddr| matches!(addr.iter().next(), Some(Protocol::Ip6(_)));
    view.tested.iter().any(|tested| tested.arrived > 0 && is_ipv6(&tested.addr)) || view.external.iter().any(is_ipv6)
}

fn reachability(view: &NatView) -> &'static str {
    let confirmed = view.external.iter().any(|addr| !is_relayed(addr));
    let relayed = view.listeners.iter().any(is_relayed);
    if view.public {
        "public"
    } else if confirmed {
        "confirmed-by-contacts"
    } else if relayed {
        "relayed"
    } else if view.tested.is_empty() {
        "unknown"
    } else {
        "private"
    }
}

/// What to do about each bad finding, in the order of importance.
pub(crate) fn advice(view: &NatView) -> Vec<&'static str> {
    let mut all = Vec::new();
    let reserved = view.relays.iter().filter(|relay| relay.reserved).count();
    if view.peers == 0 {
        all.push("no peer is connected: start with --bootstrap, and check that this machine may open connections");
        return all;
    }
    if view.wants_relays && view.relays.is_empty() {
        all.push(
            "no connected peer relays: nobody behind another NAT can reach this node; join through a node that runs with --relay-server",
        );
    } else if view.wants_relays && reserved == 0 {
        all.push("no relay keeps a place for this node yet: look again in a minute; relays may be full");
    } else if view.wants_relays && reserved == 1 {
        all.push("only one relay keeps a place for this node: if it goes away, so does the way in; a second relay would help");
    }
    match (view.nat.kind, view.nat.double) {
        (_, Some(Double::CarrierGrade)) => all.push(
            "the provider shares one address among customers (CGNAT): forwarding a port at the router will not help; ask for an address of your own, or use IPv6",
        ),
        (_, Some(_)) => {
            all.push("the router is itself behind another NAT: forward the port at both, or put one of them into bridge mode");
        }
        (Kind::Symmetric, None) => all.push(
            "a symmetric NAT: hole punching fails with port-restricted and symmetric peers; forward port 8468 (TCP and UDP) and start with --external, or turn on UPnP at the router and use --upnp",
        ),
        (Kind::PortRestricted | Kind::RestrictedCone, None) if !view.public => all.push(
            "peers reach this node by hole punching or relay; forward port 8468 (TCP and UDP) and start with --external, or use --upnp, and anybody can",
        ),
        (Kind::Firewall, None) => {
            all.push("a firewall drops what comes in: let TCP and UDP through to the port that this node listens on");
        }
        _ => {}
    }
    match view.upnp {
        Upnp::NoGateway => all.push("no router answers UPnP: turn it on at the router, or forward the port by hand"),
        Upnp::NonRoutable => all.push("UPnP opened nothing: the router's own address is not one of the internet"),
        _ => {}
    }
    if view.punches.0 >= PUNCHES_ENOUGH && view.punches.1 * 2 < view.punches.0 {
        all.push("most hole punches fail: see the kind of NAT on both sides; TCP and UDP must both be allowed out");
    }
    if view.clock.is_some_and(|(ahead, _)| ahead.abs() >= SKEW_BAD_MS) {
        all.push("this machine's clock is wrong by a minute or more: signed records of others will look stale; set it by NTP");
    }
    all
}

/// A report for people.
pub(crate) fn text(report: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut out = String::new();
    let nat = &report["nat"];
    let double = nat["double"].as_str().map(|double| format!("; double: {double}")).unwrap_or_default();
    let _ = writeln!(
        out,
        "NAT            {} (mapping {}, filtering {}{double})",
        word(&nat["kind"]),
        word(&nat["mapping"]),
        word(&nat["filtering"])
    );
    let _ = writeln!(out, "reachability   {}", word(&report["reachability"]));
    for address in list(&report["addresses"]) {
        let _ = writeln!(out, "  {:<12} {}", word(&address["state"]), word(&address["address"]));
    }
    for seen in list(&report["observed"]) {
        let _ = writeln!(
            out,
            "  seen at      {} ({}) by {}",
            word(&seen["address"]),
            word(&seen["transport"]),
            word(&seen["by"])
        );
    }
    let (ipv6, mapping) = (&report["ipv6"], &report["port_mapping"]);
    let has = match (ipv6["os"].as_bool(), ipv6["global"].as_str()) {
        (Some(true), Some(global)) if ipv6["reachable"] == true => format!("yes {global}, reached by others"),
        (Some(true), Some(global)) => format!("yes {global}, not reached by others yet"),
        (Some(true), None) => "no global address (the system has support)".to_owned(),
        _ => "no (the system has no support)".to_owned(),
    };
    let _ = writeln!(out, "IPv6           {has}");
    let _ = writeln!(
        out,
        "ports          UPnP {}, PCP {}, NAT-PMP {}",
        word(&report["upnp"]["state"]),
        word(&mapping["pcp"]),
        word(&mapping["nat_pmp"])
    );
    let _ = writeln!(out, "CGNAT          {}", if report["cgnat"] == true { "yes" } else { "not seen" });
    let relays = list(&report["relays"]);
    if relays.is_empty() {
        let _ = writeln!(out, "relays         none known");
    }
    for (n, relay) in relays.iter().enumerate() {
        let head = if n == 0 { "relays" } else { "" };
        let rtt = relay["rtt_s"].as_f64().map_or_else(|| "-".to_owned(), |s| format!("{:.0}ms", s * 1e3));
        let reserved = if relay["reserved"] == true { " (reserved)" } else { "" };
        let _ = writeln!(out, "{head:<14} {} {rtt}{reserved}", word(&relay["peer_id"]));
    }
    let punches = &report["hole_punching"];
    let _ = writeln!(out, "hole punching  {}/{} succeeded in the last hour", punches["successes"], punches["attempts"]);
    match report["clock"]["skew_s"].as_f64() {
        Some(skew) if (-TRAVEL_S..=0.0).contains(&skew) => {
            let (peers, late) = (&report["clock"]["peers"], -skew);
            let _ =
                writeln!(out, "clock skew     none seen: what {peers} peer(s) signed came {late:.1}s later (median)");
        }
        Some(skew) => {
            let _ = writeln!(out, "clock skew     {skew:+.3}s, median of {} peer(s)", report["clock"]["peers"]);
        }
        None => {
            let _ = writeln!(out, "clock skew     unknown");
        }
    }
    for line in list(&report["advice"]) {
        let _ = writeln!(out, "advice         {}", word(&line));
    }
    out.truncate(out.trim_end().len());
    out
}
