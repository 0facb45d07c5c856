//! Choosing who runs which layers: a pure function over what peers announce and what was measured here.
//!
//! | file | holds |
//! |---|---|
//! | `cost` | what a stage and a link cost, in nanoseconds, for each objective |
//! | `search` | the shortest path over (boundary, peer) |
//! | `choose` | the best plan, those as good as it, a spare, and the one that stays at home |
//! | `explain` | who was left out and why; what is missing when there is no plan |
//! | `beside` | what requests take beside their chains |
//! | `observed` | how fast peers turned out to be |
//! | `imagine` | plans over peers that are not there |
//! | `placement` | which layers a node should hold |
//! | `report` | a plan as people and programs see it |
//! | `marks` | peers that are not asked for a while, because they died |
//! | `refusals` | peers that have just refused a session for want of room |
//! | `suspects` | peers that get no work for a while, because others have contradicted them |
//!
//! A chain covers its layers without gaps, each peer used once. A peer may be entered and left inside its span, and needs
//! free KV pages for the whole session, unless what it says of them is old: then to ask in vain is part of its cost. Times are integers, nanoseconds in `u64`: two plans that cost the same compare
//! as equal, whatever the order of the sums. Nothing here knows a clock, a socket or a random source.

pub(crate) mod beside;
mod choose;
mod cost;
mod explain;
pub(crate) mod imagine;
pub(crate) mod marks;
pub(crate) mod observed;
pub(crate) mod placement;
pub(crate) mod refusals;
pub(crate) mod report;
mod search;
pub(crate) mod suspects;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use libp2p::{Multiaddr, PeerId};
use quelea_announce::Ends;
use quelea_wire::{Price, SpanRange};

pub(crate) use self::{
    choose::{Local, Plan, Planned, plan},
    cost::{Links, nanos, transfer as nanos_for},
    explain::{LeftOut, NoPlan, lacking, size, uncovered},
    report::PlanReport,
};

/// What makes a plan good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// The whole answer soonest.
    #[default]
    Latency,
    /// The most sessions at once: the slowest stage decides.
    Throughput,
    /// The cheapest; among those, the soonest.
    Price,
    /// The fewest peers that see anything of the request; among those, the soonest.
    Private,
}

/// One stage of a chain: `peer` runs exactly `span`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) peer: PeerId,
    pub(crate) span: SpanRange,
    /// Round trip between it and us, as far as it is known.
    pub(crate) rtt: Option<std::time::Duration>,
    pub(crate) addrs: Vec<Multiaddr>,
    /// What it asks for its work.
    pub(crate) price: Price,
}

/// Where a figure comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// From requests that went through here.
    Measured,
    /// The peer says so.
    Claimed,
    /// Nobody knows; a cautious guess.
    Assumed,
}

/// A peer that offers layers of the model, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) peer: PeerId,
    pub(crate) span: SpanRange,
    pub(crate) addrs: Vec<Multiaddr>,
    pub(crate) rtt: Option<std::time::Duration>,
    /// Nanoseconds for one row of an answer through one layer.
    pub(crate) decode_ns: u64,
    /// Nanoseconds for one row of a prompt through one layer.
    pub(crate) prefill_ns: u64,
    pub(crate) source: Source,
    /// Nanoseconds that a batch waits for its turn.
    pub(crate) queue_ns: u64,
    /// Bytes per second to and from it.
    pub(crate) bytes_per_s: u64,
    /// Of a million sessions, those that it does not finish.
    pub(crate) risk_ppm: u32,
    /// Micro-credits per 1,000 layer-rows.
    pub(crate) price_decode: u64,
    pub(crate) price_prefill: u64,
    pub(crate) kv_pages_free: u32,
    /// That figure was asked for some time ago: who was full may have room by now.
    pub(crate) kv_is_old: bool,
    /// It has failed lately: of use only where nobody else has the layers.
    pub(crate) shunned: bool,
    /// What it computes besides layers.
    pub(crate) ends: Ends,
}

/// Whether a session fits into a peer's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// By its own figure.
    Enough,
    /// Not by its own figure, which is old.
    Perhaps,
    /// It is full.
    None,
}

impl Candidate {
    /// What it asks for its work.
    pub(crate) fn price(&self) -> Price {
        Price { decode: self.price_decode, prefill: self.price_prefill }
    }

    pub(crate) fn room(&self, query: &Query) -> Room {
        match self.kv_pages_free >= query.kv_pages {
            true => Room::Enough,
            false if self.kv_is_old => Room::Perhaps,
            false => Room::None,
        }
    }

    /// Whether it has what the query wants besides these layers of it: the embedding with the first, the head with the last.
    pub(crate) fn has_ends(&self, query: &Query, start: u16, end: u16) -> bool {
        let embeds = start != query.span.start() || !query.ends.embedding || self.ends.embedding;
        embeds && (end != query.span.end() || !query.ends.head || self.ends.head)
    }

    /// Whether it is of any use to a query: it is allowed, and not full.
    pub(crate) fn is_usable(&self, query: &Query) -> bool {
        self.room(query) != Room::None && !query.exclude.contains(&self.peer)
    }
}

/// What a plan is for.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    /// The layers to run: all of a model, or those of a stage that died.
    pub(crate) span: SpanRange,
    /// Who gives the rows, and who takes them: this node, but for a stage in the middle of a chain.
    pub(crate) from: PeerId,
    pub(crate) to: PeerId,
    /// This node.
    pub(crate) here: PeerId,
    /// Bytes of one row on the wire.
    pub(crate) row_bytes: u64,
    /// Rows of the prompt, and of the answer.
    pub(crate) prompt_rows: u64,
    pub(crate) answer_rows: u64,
    /// KV pages that a session takes at each stage.
    pub(crate) kv_pages: u32,
    pub(crate) objective: Objective,
    /// Peers that are not to be used: those in the chain already, those that are dead.
    pub(crate) exclude: HashSet<PeerId>,
    /// Chooses among plans that are about as good. A caller that keeps its seed keeps its chain, and what stages have of its
    /// prompts; callers with seeds of their own do not all run to the same peer.
    pub(crate) seed: u64,
    /// Bytes of weights, by layer of the model; tells how much is missing.
    pub(crate) layer_bytes: Vec<u64>,
    /// What the first and the last stage compute besides their layers.
    pub(crate) ends: Ends,
    /// Bytes of one row's logits, where the last stage has the head.
    pub(crate) logits_bytes: u64,
}

/// Bytes of a token's id on the wire.
const TOKEN_BYTES: u64 = size_of::<u32>() as u64;

impl Query {
    /// A request to a whole model from this node.
    pub(crate) fn new(here: PeerId, span: SpanRange, row_bytes: u64) -> Self {
        Self {
            span,
            from: here,
            to: here,
            here,
            row_bytes,
            prompt_rows: 1,
            answer_rows: 1,
            kv_pages: 1,
            objective: Objective::default(),
            exclude: HashSet::new(),
            seed: 0,
            layer_bytes: Vec::new(),
            ends: Ends::default(),
            logits_bytes: 0,
        }
    }

    /// Bytes of a row on its way into the first stage.
    pub(crate) fn bytes_in(&self) -> u64 {
        if self.ends.embedding { TOKEN_BYTES } else { self.row_bytes }
    }

    /// Bytes of a row on its way out of the last stage.
    pub(crate) fn bytes_out(&self) -> u64 {
        if self.ends.head { self.logits_bytes } else { self.row_bytes }
    }
}
