//! The web front's figures, as it counts them and gauges show them. They stay at zero in a node without one.

use std::{
    array,
    sync::{Arc, atomic::AtomicU64, atomic::Ordering},
};

use opentelemetry::{KeyValue, metrics::Meter};

use super::stats::{Gauge, NodeStats};

/// What a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The page.
    Page,
    /// 404, upgrades on a wrong path included.
    NotFound,
    /// It is the swarm's.
    Upgrade,
    /// 400, 405, 431.
    Refused,
}

impl Request {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Page, "page"), (Self::NotFound, "not_found"), (Self::Upgrade, "upgrade"), (Self::Refused, "refused")];
}

/// Why a connection was closed that had done nothing wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Its host has its share.
    Host,
    /// It was the oldest of too many.
    Crowded,
    /// The swarm did not take it.
    Swarm,
}

impl Closed {
    const ALL: [(Self, &'static str); 3] = [(Self::Host, "host"), (Self::Crowded, "crowded"), (Self::Swarm, "swarm")];
}

/// Whose a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It has not shown the secret path.
    Visitor,
    /// The swarm's.
    Tunnel,
}

impl Line {
    const ALL: [(Self, &'static str); 2] = [(Self::Visitor, "visitor"), (Self::Tunnel, "tunnel")];
}

/// The web front's figures.
#[derive(Debug)]
pub struct FrontStats {
    requests: [Gauge; Request::ALL.len()],
    closed: [Gauge; Closed::ALL.len()],
    lines: [Gauge; Line::ALL.len()],
    /// Connections whose TLS came to nothing.
    pub handshakes_failed: Gauge,
    /// When the certificate ends, Unix seconds; 0 without one.
    certificate_ends: AtomicU64,
}

impl Default for FrontStats {
    fn default() -> Self {
        Self {
            requests: array::from_fn(|_| Gauge::default()),
            closed: array::from_fn(|_| Gauge::default()),
            lines: array::from_fn(|_| Gauge::default()),
            handshakes_failed: Gauge::default(),
            certificate_ends: AtomicU64::default(),
        }
    }
}

/// The figure of one of the kinds there are.
fn of<'a, K: PartialEq>(gauges: &'a [Gauge], all: &[(K, &'static str)], kind: K) -> &'a Gauge {
    let at = all.iter().position(|(other, _)| *other == kind).unwrap_or_default();
    &gauges[at]
}

impl FrontStats {
    /// Requests that came to this.
    pub fn requests(&self, kind: Request) -> &Gauge {
        of(&self.requests, &Request::ALL, kind)
    }

    /// Connections closed for this.
    pub fn closed(&self, why: Closed) -> &Gauge {
        of(&self.closed, &Closed::ALL, why)
    }

    /// Connections open.
    pub fn lines(&self, whose: Line) -> &Gauge {
        of(&self.lines, &Line::ALL, whose)
    }

    /// The certificate ends at this Unix second.
    pub fn set_certificate_ends(&self, unix_s: u64) {
        self.certificate_ends.store(unix_s, Ordering::Relaxed);
    }
}

/// Registers what is read when somebody scrapes.
pub(super) fn observe(meter: &Meter, stats: &Arc<NodeStats>) {
    let requests = Arc::clone(stats);
    meter
        .u64_observable_counter("quelea_front_requests")
        .with_description("Requests to a masked node's web front, by what they came to")
        .with_callback(move |observer| {
            for (kind, name) in Request::ALL {
                observer.observe(requests.front.requests(kind).get(), &[KeyValue::new("kind", name)]);
            }
        })
        .build();
    let closed = Arc::clone(stats);
    meter
        .u64_observable_counter("quelea_front_closed")
        .with_description("Connections that the web front had no place for, by reason")
        .with_callback(move |observer| {
            for (why, name) in Closed::ALL {
                observer.observe(closed.front.closed(why).get(), &[KeyValue::new("reason", name)]);
            }
        })
        .build();
    let failed = Arc::clone(stats);
    meter
        .u64_observable_counter("quelea_front_handshakes_failed")
        .with_description("Connections to the web front whose TLS came to nothing")
        .with_callback(move |observer| observer.observe(failed.front.handshakes_failed.get(), &[]))
        .build();
    let lines = Arc::clone(stats);
    meter
        .u64_observable_gauge("quelea_front_lines")
        .with_description("Connections open at the web front, by whose they are")
        .with_callback(move |observer| {
            for (whose, name) in Line::ALL {
                observer.observe(lines.front.lines(whose).get(), &[KeyValue::new("state", name)]);
            }
        })
        .build();
    let ends = Arc::clone(stats);
    meter
        .u64_observable_gauge("quelea_front_certificate_end")
        .with_unit("s")
        .with_description("When the web front's certificate ends, since the Unix epoch; 0 without one")
        .with_callback(move |observer| {
            observer.observe(ends.front.certificate_ends.load(Ordering::Relaxed), &[]);
        })
        .build();
}
