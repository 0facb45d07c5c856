//! What the attacker's process does until it is killed.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use futures::future::join_all;
use libp2p::{StreamProtocol, identity::Keypair};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket},
    time::sleep,
};

use crate::{
    advisories::{raw::Raw, yamux},
    hostile::{
        attacker::{Attacker, write_raw},
        floods, network,
        pb::{field, prefixed},
        target::Target,
    },
};

/// Attempts to connect: five hundred a second, if the attacker's core can do that.
const PACE: Duration = Duration::from_millis(2);

/// Handshakes and connections held at once, at most.
const HELD: usize = 1000;

fn in_full_swing() {
    println!("in full swing");
}

/// Loopback has sixteen million addresses; honest peers here have the first.
fn source(n: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(0x7f42_0000 + n), 0).into()
}

pub async fn run(name: &str, victim: String) {
    let port = ([127, 0, 0, 1], Target::tcp_port_of(&victim)).into();
    match name {
        "connections of one address" => connections(port, 1).await,
        "connections of a thousand addresses" => connections(port, 1000).await,
        "stalled handshakes of a thousand addresses" => stalled(port).await,
        "streams that nobody reads" => unread(port).await,
        "requests of ten peers" => requests(&victim).await,
        "bad signatures of four peers" => signatures(&victim).await,
        "names that strangers choose" => names(&victim).await,
        other => panic!("no attack is called {other}"),
    }
}

/// Fresh identities connect, and stay.
async fn connections(victim: SocketAddr, addresses: u32) {
    let mut held: std::collections::VecDeque<_> = std::collections::VecDeque::new();
    for n in 0.. {
        held.push_back(tokio::spawn(async move {
            let raw = Raw::connect(victim, Some(source(n % addresses))).await;
            sleep(Duration::from_secs(60)).await;
            drop(raw);
        }));
        if held.len() > HELD {
            held.pop_front().unwrap().abort();
        }
        if n == 250 {
            in_full_swing();
        }
        sleep(PACE).await;
    }
}

/// TCP connections on which nothing is said.
async fn stalled(victim: SocketAddr) {
    let mut held = std::collections::VecDeque::new();
    for n in 0_u32.. {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(source(n % 1000)).unwrap();
        held.push_back(socket.connect(victim).await);
        if held.len() > HELD {
            held.pop_front();
        }
        if n == 1000 {
            in_full_swing();
        }
        sleep(PACE).await;
    }
}

/// A hundred connections with as many streams as there may be, each with pings whose answers are never read.
async fn unread(victim: SocketAddr) {
    let connecting = (0..100).map(|n| Raw::connect(victim, Some(source(n))));
    let mut all: Vec<Raw> = join_all(connecting).await.into_iter().flatten().collect();
    assert!(all.len() > 50, "only {} were let in", all.len());
    for raw in &mut all {
        for stream in (1..128).step_by(2) {
            raw.write(&yamux::ping_please(stream)).await;
        }
    }
    in_full_swing();
    let frames: Vec<u8> = (1..128).step_by(2).flat_map(|stream| yamux::data(0, stream, &[7; 32 * 64])).collect();
    let flooding = all.iter_mut().map(async |raw| {
        loop {
            raw.write(&frames).await;
            sleep(PACE).await;
        }
    });
    join_all(flooding).await;
}

/// Requests as fast as they go; who is banned comes back under another name.
async fn requests(victim: &str) {
    let victim = &disguised(victim).await;
    let peers = (0..10).map(async |_| {
        loop {
            if let Some(attacker) = Attacker::connect(victim).await {
                floods::send(&attacker, "announce", || vec![1]).await;
            }
            sleep(PACE).await;
        }
    });
    tokio::join!(join_all(peers), begun());
}

async fn begun() {
    sleep(Duration::from_secs(1)).await;
    in_full_swing();
}

/// An address of the victim that leads there from one loopback address after the other, a new one for each connection.
async fn disguised(victim: &str) -> String {
    let (port, peer) = (Target::tcp_port_of(victim), victim.rsplit('/').next().unwrap().to_owned());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let here = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for n in 0.. {
            let Ok((mut near, _)) = listener.accept().await else { continue };
            tokio::spawn(async move {
                let socket = TcpSocket::new_v4().unwrap();
                socket.set_reuseaddr(true).unwrap();
                socket.bind(source(n % 1000)).unwrap();
                if let Ok(mut far) = socket.connect(([127, 0, 0, 1], port).into()).await {
                    let _ = far.set_nodelay(true);
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    format!("/ip4/127.0.0.1/tcp/{here}/p2p/{peer}")
}

/// Gossip whose signatures take all the work of checking and are wrong: sixteen to a packet, the most that is read.
async fn signatures(victim: &str) {
    let victim = &disguised(victim).await;
    let author = Keypair::generate_ed25519().public().to_peer_id().to_bytes();
    let topic = format!("/quelea/{}/announce/3", network().short());
    let packet = || {
        let message = || {
            let seqno: [u8; 8] = rand::random();
            let body = [field(1, &author), field(2, &[7; 64]), field(3, &seqno), field(4, topic.as_bytes())].concat();
            field(2, &[body, field(5, &[9; 64])].concat())
        };
        prefixed(&(0..16).flat_map(|_| message()).collect::<Vec<u8>>())
    };
    let peers = (0..4).map(async |_| {
        loop {
            if let Some(attacker) = Attacker::connect(victim).await
                && let Some(mut stream) = attacker.open(&network().protocol("gossip", 1)).await
            {
                while write_raw(&mut stream, &packet()).await {}
            }
            sleep(PACE).await;
        }
    });
    tokio::join!(join_all(peers), begun());
}

/// Agents, protocols and pages of names that nobody ever heard.
async fn names(victim: &str) {
    let name = || format!("chosen-by-a-stranger-{}", rand::random::<u64>());
    let push = StreamProtocol::new("/ipfs/id/push/1.0.0");
    let peers = (0..4).map(async |_| {
        loop {
            let Some(attacker) = Attacker::connect(victim).await else { continue };
            for _ in 0..100 {
                let Some(mut stream) = attacker.open(&push).await else { break };
                let protocols: Vec<u8> = (0..40).flat_map(|_| field(3, format!("/{}", name()).as_bytes())).collect();
                let agent = field(6, name().as_bytes());
                write_raw(&mut stream, &prefixed(&[protocols, agent, field(5, name().as_bytes())].concat())).await;
            }
        }
    });
    tokio::join!(join_all(peers), begun());
}
