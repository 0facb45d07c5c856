//! A thousand of everything that can be begun and left: streams, greetings, sessions, connections.

use std::{future::pending, time::Duration};

use futures::future::join_all;
use libp2p::{Multiaddr, PeerId, swarm::Stream};
use quelea_shard::frame::{Frame, StreamKind};
use tokio::{net::TcpStream, sync::oneshot};

use super::{attacker::write, network, target::Target};

/// How many, of each kind.
const MANY: usize = 1000;

/// Identities that share them, where more than one does.
const IDENTITIES: usize = 20;

/// Identities that take every stream a peer may have, and with them every stream the victim allows.
const CROWD: usize = 130;
const STREAMS_EACH: usize = 8;

async fn hold<T>(swing: oneshot::Sender<()>, held: T) {
    swing.send(()).unwrap();
    pending::<()>().await;
    drop(held);
}

/// Streams on which nothing is said.
pub async fn never_greeted(target: Target, swing: oneshot::Sender<()>) {
    let attackers = target.attackers(IDENTITIES).await;
    let mut held = Vec::new();
    for attacker in attackers.iter().cycle().take(MANY) {
        held.push(attacker.open(&quelea_shard::protocol_id(&network())).await);
    }
    hold(swing, (attackers, held)).await;
}

/// Greeted streams of every kind without a session: more than there are places, so that the honest need one of these.
pub async fn greeted_and_left(target: Target, swing: oneshot::Sender<()>) {
    let attackers = target.attackers(CROWD).await;
    let mut held = Vec::new();
    let network = network();
    for kind in [StreamKind::Control, StreamKind::Decode, StreamKind::Bulk].into_iter().cycle().take(STREAMS_EACH) {
        held.extend(join_all(attackers.iter().map(|attacker| attacker.greeted(&network, kind))).await);
    }
    hold(swing, (attackers, held)).await;
}

/// Nobody answers there: an address of documentation.
fn nowhere() -> Multiaddr {
    format!("/ip4/192.0.2.{}/tcp/9", rand::random::<u8>()).parse().unwrap()
}

/// Sessions of so many identities, opened again and again and never used. `lost` ones go on to peers that are not there.
async fn sessions(target: Target, identities: usize, lost: bool, swing: oneshot::Sender<()>) {
    let attackers = target.attackers(identities).await;
    let mut controls: Vec<(PeerId, Stream)> = Vec::new();
    for attacker in &attackers {
        let stream = attacker.greeted(&network(), StreamKind::Control).await;
        controls.push((attacker.peer, stream.unwrap()));
    }
    let mut swing = Some(swing);
    loop {
        for (peer, stream) in &mut controls {
            let open = || {
                let mut open = target.open(*peer, if lost { PeerId::random() } else { *peer });
                if lost {
                    open.next_addrs = (0..4).map(|_| nowhere()).collect();
                }
                Frame::from(open)
            };
            let opens: Vec<Frame> = (0..MANY / identities).map(|_| open()).collect();
            // Sooner or later the victim gives up a coordinator that reads no answer.
            write(stream, &opens).await;
        }
        if let Some(swing) = swing.take() {
            swing.send(()).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// By one identity.
pub async fn sessions_of_one(target: Target, swing: oneshot::Sender<()>) {
    sessions(target, 1, false, swing).await;
}

/// By many.
pub async fn sessions_of_many(target: Target, swing: oneshot::Sender<()>) {
    sessions(target, IDENTITIES, false, swing).await;
}

/// With a next peer that cannot be dialled.
pub async fn sessions_to_nowhere(target: Target, swing: oneshot::Sender<()>) {
    sessions(target, IDENTITIES, true, swing).await;
}

/// TCP connections on which nothing is said, opened anew again and again.
pub async fn silent_connections(target: Target, swing: oneshot::Sender<()>) {
    let connect = || TcpStream::connect(("127.0.0.1", target.tcp_port()));
    let mut held = Vec::new();
    for _ in 0..MANY {
        held.push(connect().await);
    }
    swing.send(()).unwrap();
    for at in (0..MANY).cycle() {
        held[at] = connect().await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
