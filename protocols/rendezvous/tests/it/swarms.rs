//! Swarms: with ourselves, with libp2p's own point and client, and with points and clients that mean no good.

use std::{io, time::Duration};

use futures::{AsyncRead, AsyncWrite, AsyncWriteExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder,
    identity::Keypair,
    noise, rendezvous,
    request_response::{self, ProtocolSupport},
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use quelea_rendezvous::{
    Answer, Behaviour, Config, Event, Failure, Listed, MAX_PER_PEER, PROTOCOL, Point, Reach, Request, Served, Status,
    namespace,
};
use quelea_wire::NetworkId;

use crate::said;

const PATIENCE: Duration = Duration::from_secs(60);
/// Of a flood. The registry's own tests have more; here it is the way to it that is flooded.
const REQUESTS: u32 = 2_000;

fn net() -> NetworkId {
    NetworkId::from_name("main")
}

fn swarm<B: NetworkBehaviour>(key: &Keypair, behaviour: B) -> Swarm<B> {
    SwarmBuilder::with_existing_identity(key.clone())
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| behaviour)
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build()
}

fn node(points: &[(PeerId, Multiaddr)], server: bool) -> Swarm<Behaviour> {
    let key = Keypair::generate_ed25519();
    let reach = Reach { may_tell: |_, _| true, may_name: |_, _| true };
    let points = points.iter().map(|(peer, addr)| Point { peer: *peer, addr: addr.clone() }).collect();
    swarm(&key.clone(), Behaviour::new(key, Config { network: net(), points, server, reach, seed: 1 }))
}

async fn listen<B: NetworkBehaviour>(swarm: &mut Swarm<B>) -> Multiaddr {
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return address;
        }
    }
}

/// Lets a swarm run by itself; its events come out.
fn run<B>(mut swarm: Swarm<B>) -> tokio::sync::mpsc::Receiver<B::ToSwarm>
where
    B: NetworkBehaviour + Send,
    B::ToSwarm: Send + 'static,
{
    let (out, events) = tokio::sync::mpsc::channel(256);
    tokio::spawn(async move {
        loop {
            if let SwarmEvent::Behaviour(event) = swarm.select_next_some().await {
                let _ = out.try_send(event);
            }
        }
    });
    events
}

/// The first event of `swarm` that is looked for.
async fn first<B: NetworkBehaviour, T>(swarm: &mut Swarm<B>, mut pick: impl FnMut(B::ToSwarm) -> Option<T>) -> T {
    let search = async {
        loop {
            if let SwarmEvent::Behaviour(event) = swarm.select_next_some().await
                && let Some(found) = pick(event)
            {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.unwrap()
}

fn registered(event: Event) -> Option<u64> {
    match event {
        Event::Registered { ttl, .. } => Some(ttl),
        _ => None,
    }
}

/// Who was told of, where, and how many others could not be believed.
type Found = (Vec<(PeerId, Vec<Multiaddr>)>, usize);

fn discovered(event: Event) -> Option<Found> {
    match event {
        Event::Discovered { peers, invalid, .. } => Some((peers, invalid)),
        _ => None,
    }
}

fn failed(event: Event) -> Option<Failure> {
    match event {
        Event::Failed { reason, .. } => Some(reason),
        _ => None,
    }
}

#[tokio::test]
async fn two_that_know_only_the_point_hear_of_each_other() {
    let mut point = node(&[], true);
    let at = (*point.local_peer_id(), listen(&mut point).await);
    let mut served = run(point);
    let (mut early, mut late) = (node(std::slice::from_ref(&at), false), node(&[at], false));
    let (early_id, early_addr) = (*early.local_peer_id(), listen(&mut early).await);
    assert_eq!(first(&mut early, registered).await, 7200);
    listen(&mut late).await;
    let (peers, invalid) = first(&mut late, |event| discovered(event).filter(|(peers, _)| !peers.is_empty())).await;
    assert_eq!((peers, invalid), (vec![(early_id, vec![early_addr])], 0));
    let mut what = Vec::new();
    while !what.contains(&Served::Told(1)) {
        if let Event::Served { what: one, .. } = served.recv().await.unwrap() {
            what.push(one);
        }
    }
    assert!(what.contains(&Served::Registered), "{what:?}");
}

#[tokio::test]
async fn our_client_at_libp2p_s_point() {
    let theirs = Keypair::generate_ed25519();
    let config = rendezvous::server::Config::default();
    let mut point = swarm(&theirs, rendezvous::server::Behaviour::new(config));
    let at = (*point.local_peer_id(), listen(&mut point).await);
    let _events = run(point);
    let (mut early, mut late) = (node(std::slice::from_ref(&at), false), node(&[at], false));
    let early_id = *early.local_peer_id();
    listen(&mut early).await;
    assert_eq!(first(&mut early, registered).await, 7200);
    let _early = run(early);
    listen(&mut late).await;
    let found = first(&mut late, |event| {
        discovered(event).filter(|(peers, _)| peers.iter().any(|(peer, _)| *peer == early_id))
    });
    assert_eq!(found.await.1, 0);
}

#[tokio::test]
async fn libp2p_s_client_at_our_point() {
    let mut point = node(&[], true);
    let at = (*point.local_peer_id(), listen(&mut point).await);
    let mut _events = run(point);
    let client = |key: &Keypair| swarm(key, rendezvous::client::Behaviour::new(key.clone()));
    let keys = [Keypair::generate_ed25519(), Keypair::generate_ed25519()];
    let name = || rendezvous::Namespace::new("anything".into()).unwrap();
    let mut early = client(&keys[0]);
    early.add_external_address("/ip4/127.0.0.1/tcp/7".parse().unwrap());
    early.dial(at.1.clone()).unwrap();
    until_connected(&mut early).await;
    early.behaviour_mut().register(name(), at.0, None).unwrap();
    first(&mut early, |event| matches!(event, rendezvous::client::Event::Registered { ttl: 7200, .. }).then_some(()))
        .await;
    let mut late = client(&keys[1]);
    late.dial(at.1.clone()).unwrap();
    until_connected(&mut late).await;
    let mut cookie = None;
    // Twice: the second time only what is new.
    for expected in [1, 0] {
        late.behaviour_mut().discover(Some(name()), cookie.take(), None, at.0);
        let (found, next) = first(&mut late, |event| match event {
            rendezvous::client::Event::Discovered { registrations, cookie, .. } => Some((registrations.len(), cookie)),
            _ => None,
        })
        .await;
        assert_eq!(found, expected);
        cookie = Some(next);
    }
}

async fn until_connected<B: NetworkBehaviour>(swarm: &mut Swarm<B>) {
    let wait = async { while !matches!(swarm.select_next_some().await, SwarmEvent::ConnectionEstablished { .. }) {} };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}

/// Speaks the protocol's bytes, whatever they are.
#[derive(Clone, Default)]
struct Bytes;

impl request_response::Codec for Bytes {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        Ok(Request::read(io).await?.encode())
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        Ok(Answer::read(io).await?.encode())
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        io.write_all(&bytes).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        io.write_all(&bytes).await
    }
}

fn raw(key: &Keypair) -> Swarm<request_response::Behaviour<Bytes>> {
    let protocols = [(PROTOCOL, ProtocolSupport::Full)];
    swarm(key, request_response::Behaviour::with_codec(Bytes, protocols, request_response::Config::default()))
}

/// A point that answers what it is told to.
async fn liar(answers: impl Fn(Request) -> Vec<u8> + Send + 'static) -> (PeerId, Multiaddr) {
    let mut swarm = raw(&Keypair::generate_ed25519());
    let at = (*swarm.local_peer_id(), listen(&mut swarm).await);
    tokio::spawn(async move {
        loop {
            if let SwarmEvent::Behaviour(request_response::Event::Message {
                message: request_response::Message::Request { request, channel, .. },
                ..
            }) = swarm.select_next_some().await
            {
                let head = request.iter().position(|byte| byte & 0x80 == 0).unwrap();
                let answer = answers(Request::decode(&request[head + 1..]).unwrap());
                let _ = swarm.behaviour_mut().send_response(channel, answer);
            }
        }
    });
    at
}

/// libp2p's own client panics at a registration that is to last for 2^64 seconds.
#[tokio::test]
async fn a_point_that_names_endless_times_and_strange_peers() {
    let honest = crate::key(5);
    let (at_peer, at_addr) = liar(move |request| {
        let listed = |namespace: &str, record: Vec<u8>| Listed { namespace: namespace.into(), record, ttl: u64::MAX };
        let good = said(&honest, 1).raw().to_vec();
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        match request {
            Request::Register { .. } => Answer::Register(Ok(u64::MAX)),
            _ => {
                let ours = namespace(&net());
                let all = vec![listed(&ours, good.clone()), listed(&ours, forged), listed("other", good)];
                Answer::Discover(Ok((all, vec![0xff; 512])))
            }
        }
        .encode()
    })
    .await;
    let mut client = node(&[(at_peer, at_addr)], false);
    listen(&mut client).await;
    assert_eq!(first(&mut client, registered).await, u64::MAX);
    let (peers, invalid) = first(&mut client, discovered).await;
    let honest = crate::key(5).public().to_peer_id();
    assert_eq!((peers.len(), peers[0].0, invalid), (1, honest, 2));
}

#[tokio::test]
async fn a_point_that_answers_nonsense_fails_and_is_asked_again() {
    for nonsense in [vec![], vec![0xff; 64], vec![2, 8, 4], Answer::Register(Err(Status::Unavailable)).encode()] {
        let refuses = nonsense.len() > 4 && nonsense[0] != 0xff;
        let at = liar(move |_| nonsense.clone()).await;
        let mut client = node(&[at], false);
        listen(&mut client).await;
        let mut reasons = vec![first(&mut client, failed).await, first(&mut client, failed).await];
        reasons.retain(|reason| !matches!(reason, Failure::Failed(_)));
        assert_eq!(reasons.is_empty(), !refuses, "{reasons:?}");
    }
}

#[tokio::test]
async fn a_peer_that_is_no_point_is_told_apart_and_so_is_one_that_is_not_there() {
    let mut other = node(&[], false);
    let at = (*other.local_peer_id(), listen(&mut other).await);
    let _events = run(other);
    let mut client = node(std::slice::from_ref(&at), false);
    assert_eq!(first(&mut client, failed).await, Failure::Unsupported);
    let mut client = node(&[(at.0, "/ip4/127.0.0.1/tcp/1".parse().unwrap())], false);
    assert!(matches!(first(&mut client, failed).await, Failure::Unreachable(_)));
}

/// GHSA-cqfx-gf56-8x59 and GHSA-v5hw-cv9c-rpg7: a namespace for each request, the same one again and again, cookies without end.
#[tokio::test]
async fn a_client_that_registers_and_asks_without_end() {
    let mut point = node(&[], true);
    let at = (*point.local_peer_id(), listen(&mut point).await);
    let key = crate::key(9);
    let record = said(&key, 8).raw().to_vec();
    let mut hostile = raw(&key);
    hostile.dial(at.1.clone()).unwrap();
    let mut honest = node(std::slice::from_ref(&at), false);
    listen(&mut honest).await;
    let (mut sent, mut answered, mut limited, mut kept) = (0_u32, 0_u32, 0_u32, false);
    let ask = |n: u32| match n % 4 {
        0 | 1 => Request::Register { namespace: format!("{n}"), record: record.clone(), ttl: Some(72 * 3600) },
        2 => Request::Register { namespace: "same".into(), record: record.clone(), ttl: Some(u64::MAX) },
        _ => Request::Discover { namespace: None, cookie: Some(n.to_be_bytes().repeat(2)), limit: Some(u64::MAX) },
    };
    let attack = async {
        while answered < REQUESTS || !kept {
            tokio::select! {
                event = point.select_next_some() => {
                    limited += u32::from(matches!(event, SwarmEvent::Behaviour(Event::Limited { .. })));
                }
                event = hostile.select_next_some() => {
                    if matches!(event, SwarmEvent::Behaviour(request_response::Event::Message { .. } | request_response::Event::OutboundFailure { .. })) {
                        answered += 1;
                    }
                    while hostile.is_connected(&at.0) && sent < answered + 4 {
                        hostile.behaviour_mut().send_request(&at.0, ask(sent).encode());
                        sent += 1;
                    }
                }
                event = honest.select_next_some() => {
                    kept |= matches!(event, SwarmEvent::Behaviour(Event::Registered { .. }));
                }
            }
        }
    };
    tokio::time::timeout(2 * PATIENCE, attack).await.unwrap();
    assert!(limited > REQUESTS * 9 / 10, "{limited}");
    let registry = point.behaviour().registry().unwrap();
    assert!(registry.len() <= MAX_PER_PEER + 1, "{}", registry.len());
    assert!(registry.sizes().iter().chain(&point.behaviour().sizes()).all(|size| *size <= MAX_PER_PEER + 1));
}
