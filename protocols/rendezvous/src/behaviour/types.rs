//! What the behaviour needs to know, and what it tells.

use libp2p::{Multiaddr, PeerId, request_response::InboundFailure};
use quelea_wire::{NetworkId, rate::Scope};

use super::TIMEOUT;
use crate::{message::Status, points::Point};

/// Which addresses may be told to whom, and by whom. Both are asked with the address of the connection to the peer first.
#[derive(Debug, Clone, Copy)]
pub struct Reach {
    /// Whether a peer connected at the first address is told the second.
    pub may_tell: fn(&Multiaddr, &Multiaddr) -> bool,
    /// Whether a peer connected at the first address is believed when it names the second.
    pub may_name: fn(&Multiaddr, &Multiaddr) -> bool,
}

/// What the behaviour needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which swarm this is.
    pub network: NetworkId,
    /// The points to go to, at most [`MAX_POINTS`](crate::MAX_POINTS).
    pub points: Vec<Point>,
    /// Whether this node is a point for others.
    pub server: bool,
    /// Which addresses go where.
    pub reach: Reach,
    /// What everything left to chance follows from; to be drawn at random.
    pub seed: u64,
}

/// What a point did for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Served {
    /// It keeps the peer's record, or has renewed it.
    Registered,
    /// It has forgotten the peer's record.
    Unregistered,
    /// It told of so many peers.
    Told(usize),
}

/// Why a point did nothing for us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// It could not be dialled.
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    /// No answer within [`TIMEOUT`].
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// It is no rendezvous point.
    #[error("it is no rendezvous point: is it started with --rendezvous-server?")]
    Unsupported,
    /// It says no.
    #[error("it refuses: {0:?}")]
    Refused(Status),
    /// The connection or the stream broke, or its bytes are no answer.
    #[error("the exchange failed: {0}")]
    Failed(String),
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A point keeps our record.
    Registered {
        /// Which.
        point: PeerId,
        /// For so many seconds, by its word.
        ttl: u64,
    },
    /// A point told of peers of our network.
    Discovered {
        /// Which.
        point: PeerId,
        /// Who, and where; not ourselves. At most [`MAX_LISTED`](crate::MAX_LISTED).
        peers: Vec<(PeerId, Vec<Multiaddr>)>,
        /// Records in the answer that were not signed, or of another namespace.
        invalid: usize,
    },
    /// A point did nothing for us; it is asked again later.
    Failed {
        /// Which.
        point: PeerId,
        /// Why.
        reason: Failure,
    },
    /// A peer was served.
    Served {
        /// Who.
        peer: PeerId,
        /// With what.
        what: Served,
    },
    /// A peer was refused.
    Refused {
        /// Who.
        peer: PeerId,
        /// Why.
        status: Status,
    },
    /// A peer asked too often and was told so.
    Limited {
        /// Who.
        peer: PeerId,
        /// Which limit it met.
        scope: Scope,
    },
    /// A peer's request could not be read or answered.
    Broken {
        /// Who.
        peer: PeerId,
        /// Why.
        error: InboundFailure,
    },
}
