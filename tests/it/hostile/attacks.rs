//! The attacks. Each tells when it is in full swing and then goes on until it is dropped.

use std::{future::pending, time::Duration};

use futures::{StreamExt, stream};
use libp2p::{PeerId, swarm::Stream};
use quelea_shard::frame::{Frame, Open, SessionId, StreamKind};
use quelea_wire::{ModelId, Profile, SpanRange};
use tokio::{net::TcpStream, sync::oneshot};

use super::{
    attacker::{Attacker, write},
    network,
};
use crate::harness::Daemon;

/// What the attacks know of the victim.
#[derive(Clone)]
pub struct Target {
    pub addrs: Vec<String>,
    pub model: ModelId,
    pub span: SpanRange,
}

/// Values per row of the demo model.
const WIDTH: u32 = 192;

/// The context of the demo model.
const CONTEXT: u32 = 512;

impl Target {
    pub fn of(victim: &Daemon) -> Self {
        let addrs = victim.told("listen").into_iter().map(str::to_owned).collect();
        let serving: Vec<&str> = victim.told("serving")[0].split_whitespace().collect();
        Self { addrs, model: serving[3].parse().unwrap(), span: serving[1].parse().unwrap() }
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
            profile: Profile::CandleCpu,
            span: self.span,
            width: WIDTH,
            max_rows: CONTEXT,
            step_deadline_ms: u32::MAX,
            idle_ms: u32::MAX,
            prev,
            next,
            next_addrs: Vec::new(),
        }
    }
}

async fn hold<T>(swing: oneshot::Sender<()>, held: T) {
    swing.send(()).unwrap();
    pending::<()>().await;
    drop(held);
}

/// A thousand streams on which nothing is said.
pub async fn never_greeted(target: Target, swing: oneshot::Sender<()>) {
    let attackers = target.attackers(40).await;
    let mut held = Vec::new();
    for attacker in &attackers {
        for _ in 0..25 {
            held.push(attacker.open(&quelea_shard::protocol_id(&network())).await);
        }
    }
    println!("{} attackers, {} streams", attackers.len(), held.iter().flatten().count());
    hold(swing, (attackers, held)).await;
}

/// A thousand control streams without a session.
pub async fn greeted_and_left(target: Target, swing: oneshot::Sender<()>) {
    let attackers = target.attackers(40).await;
    let mut held = Vec::new();
    for attacker in &attackers {
        for _ in 0..25 {
            held.push(attacker.greeted(&network(), StreamKind::Control).await);
        }
    }
    println!("{} attackers, {} streams", attackers.len(), held.iter().flatten().count());
    hold(swing, (attackers, held)).await;
}

/// A thousand sessions of `count` identities, opened again and again and never used.
async fn sessions(target: Target, count: usize, nowhere: bool, swing: oneshot::Sender<()>) {
    let attackers = target.attackers(count).await;
    let each = 1000 / count;
    let mut controls: Vec<(PeerId, Stream)> = Vec::new();
    for attacker in &attackers {
        if let Some(stream) = attacker.greeted(&network(), StreamKind::Control).await {
            controls.push((attacker.peer, stream));
        }
    }
    println!("{} attackers, {} control streams", attackers.len(), controls.len());
    let mut swing = Some(swing);
    loop {
        for (peer, stream) in &mut controls {
            let frames: Vec<Frame> = (0..each)
                .map(|_| {
                    let next = if nowhere { PeerId::random() } else { *peer };
                    let mut open = target.open(*peer, next);
                    if nowhere {
                        // Nobody answers there: documentation addresses.
                        open.next_addrs = (0..4)
                            .map(|_| format!("/ip4/192.0.2.{}/tcp/9", rand::random::<u8>()).parse().unwrap())
                            .collect();
                    }
                    open.into()
                })
                .collect();
            write(stream, &frames).await;
        }
        if let Some(swing) = swing.take() {
            swing.send(()).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

pub async fn sessions_from_one(target: Target, swing: oneshot::Sender<()>) {
    sessions(target, 1, false, swing).await;
}

pub async fn sessions_from_many(target: Target, swing: oneshot::Sender<()>) {
    sessions(target, 20, false, swing).await;
}

pub async fn sessions_to_nowhere(target: Target, swing: oneshot::Sender<()>) {
    sessions(target, 20, true, swing).await;
}

/// A thousand TCP connections on which nothing is said, opened anew when they are closed.
pub async fn raw_tcp(target: Target, swing: oneshot::Sender<()>) {
    let addr = target.addrs.iter().find(|addr| addr.contains("/tcp/")).unwrap();
    let port: u16 = addr.split('/').nth(4).unwrap().parse().unwrap();
    let mut held = Vec::new();
    for _ in 0..1000 {
        held.push(TcpStream::connect(("127.0.0.1", port)).await);
    }
    swing.send(()).unwrap();
    let mut at = 0;
    loop {
        at = (at + 1) % held.len();
        held[at] = TcpStream::connect(("127.0.0.1", port)).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
