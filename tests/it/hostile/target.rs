//! What the attacks know of the victim.

use futures::{StreamExt, stream};
use libp2p::PeerId;
use quelea_shard::frame::{Ends, Open, Prefix, SessionId};
use quelea_wire::{ModelId, Profile, SpanRange};

use super::attacker::Attacker;
use crate::harness::Daemon;

/// The victim, seen from outside.
#[derive(Clone)]
pub struct Target {
    pub addrs: Vec<String>,
    pub model: ModelId,
    pub span: SpanRange,
}

/// Values per row of the demo model.
pub const WIDTH: u32 = 192;

/// The context of the demo model.
pub const CONTEXT: u32 = 512;

impl Target {
    pub fn of(victim: &Daemon) -> Self {
        let addrs = victim.told("listen").into_iter().map(str::to_owned).collect();
        let serving: Vec<&str> = victim.told("serving")[0].split_whitespace().collect();
        Self { addrs, model: serving[3].parse().unwrap(), span: serving[1].parse().unwrap() }
    }

    /// The victim's own name.
    pub fn peer(&self) -> PeerId {
        self.addrs[0].rsplit('/').next().unwrap().parse().unwrap()
    }

    /// Where the victim listens for TCP.
    pub fn tcp_port(&self) -> u16 {
        Self::tcp_port_of(self.addrs.iter().find(|addr| addr.contains("/tcp/")).unwrap())
    }

    /// The port of an address like `/ip4/127.0.0.1/tcp/1/…`.
    pub fn tcp_port_of(addr: &str) -> u16 {
        addr.split('/').nth(4).unwrap().parse().unwrap()
    }

    /// This many identities, over TCP and QUIC in turn; those that the victim lets in.
    pub async fn attackers(&self, count: usize) -> Vec<Attacker> {
        let connecting = (0..count).map(|n| Attacker::connect(&self.addrs[n % self.addrs.len()]));
        stream::iter(connecting).buffer_unordered(16).filter_map(async |attacker| attacker).collect().await
    }

    /// A frame that opens a session which the victim can serve.
    pub fn open(&self, prev: PeerId, next: PeerId) -> Open {
        Open {
            session: SessionId(rand::random()),
            epoch: 1,
            model: self.model,
            profile: Profile::Exact,
            span: self.span,
            width: WIDTH,
            max_rows: CONTEXT,
            step_deadline_ms: u32::MAX,
            idle_ms: u32::MAX,
            prev,
            next,
            next_addrs: Vec::new(),
            prefix: Prefix::default(),
            ends: Ends::default(),
            pay: None,
            trace: None,
        }
    }
}
