//! Swarms: asking at once, answering, and everything that can come back instead.

use std::{io, time::Duration};

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder,
    identity::Keypair,
    noise,
    request_response::{self, ProtocolSupport},
    swarm::{NetworkBehaviour, SwarmEvent, dummy},
    tcp, yamux,
};
use quelea_exchange::{Answer, Behaviour, Config, Event, RawEntry, Reach, Request, SilentReason, VerifyError};
use quelea_wire::time::unix_ms;

use crate::{net, said};

const PATIENCE: Duration = Duration::from_secs(20);

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

fn node(may_name: fn(&Multiaddr, &Multiaddr) -> bool) -> Swarm<Behaviour> {
    let key = Keypair::generate_ed25519();
    let reach = Reach { may_tell: |_, _| true, may_name };
    let config = Config { network: net(), agent: "quelea/0.1.0".into(), reach, seed: 1 };
    swarm(&key.clone(), Behaviour::new(key, config))
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
async fn first<T>(swarm: &mut Swarm<Behaviour>, mut pick: impl FnMut(Event) -> Option<T>) -> T {
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

#[tokio::test]
async fn two_that_meet_know_each_other_and_a_third_hears_of_the_first() {
    let (mut hub, mut first_in, mut second_in) = (node(|_, _| true), node(|_, _| true), node(|_, _| true));
    let addr = listen(&mut hub).await;
    let (hub_id, early) = (*hub.local_peer_id(), *first_in.local_peer_id());
    let early_addr = listen(&mut first_in).await;
    let mut served = run(hub);
    first_in.dial(addr.clone()).unwrap();
    let learnt = first(&mut first_in, |event| match event {
        Event::Received { learnt, .. } => Some(learnt),
        _ => None,
    })
    .await;
    assert_eq!(learnt.iter().map(|r| r.peer()).collect::<Vec<_>>(), [hub_id]);
    assert_eq!(learnt[0].record().addrs, std::slice::from_ref(&addr));
    run(first_in);
    // The hub has the first one's record from its request.
    let met = async {
        loop {
            if let Some(Event::Served { learnt: Some(record), .. }) = served.recv().await {
                return record.peer();
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, met).await.unwrap(), early);
    second_in.dial(addr).unwrap();
    let told = first(&mut second_in, |event| match event {
        Event::Received { learnt, .. } => Some(learnt),
        _ => None,
    })
    .await;
    let of_early = told.iter().find(|record| record.peer() == early).unwrap();
    assert_eq!(of_early.record().addrs, [early_addr]);
}

#[tokio::test]
async fn what_a_peer_may_not_name_is_not_taken() {
    let (mut hub, mut asker) = (node(|_, _| true), node(|_, _| false));
    let addr = listen(&mut hub).await;
    run(hub);
    asker.dial(addr).unwrap();
    let (records, learnt) = first(&mut asker, |event| match event {
        Event::Received { records, learnt, .. } => Some((records, learnt)),
        _ => None,
    })
    .await;
    assert_eq!((records, learnt.len(), asker.behaviour().exchanger().known()), (1, 0, 0));
}

#[tokio::test]
async fn a_peer_without_the_protocol_is_silent() {
    let (mut other, mut asker) = (swarm(&Keypair::generate_ed25519(), dummy::Behaviour), node(|_, _| true));
    let addr = listen(&mut other).await;
    tokio::spawn(async move {
        loop {
            other.select_next_some().await;
        }
    });
    asker.dial(addr).unwrap();
    let reason = first(&mut asker, |event| match event {
        Event::Silent { reason, .. } => Some(reason),
        _ => None,
    })
    .await;
    assert!(matches!(reason, SilentReason::Unsupported | SilentReason::Failed(_)), "{reason}");
    assert_eq!(asker.behaviour().exchanger().sizes()[1], 1);
}

/// Answers every request with the bytes it was made with.
#[derive(Clone)]
struct Fixed(Vec<u8>);

impl request_response::Codec for Fixed {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: futures::AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        Request::read(io).await.map(|request| request.encode())
    }

    async fn read_response<T: futures::AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        io.read_to_end(&mut bytes).await.map(|_| bytes)
    }

    async fn write_request<T: futures::AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        io.write_all(&bytes).await
    }

    async fn write_response<T: futures::AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        _: Vec<u8>,
    ) -> io::Result<()> {
        io.write_all(&self.0.clone()).await
    }
}

fn stranger(answer: Vec<u8>) -> Swarm<request_response::Behaviour<Fixed>> {
    let protocol = net().protocol("exchange", 1);
    let behaviour = request_response::Behaviour::with_codec(
        Fixed(answer),
        [(protocol, ProtocolSupport::Full)],
        request_response::Config::default(),
    );
    swarm(&Keypair::generate_ed25519(), behaviour)
}

/// What an asker makes of an answer of these bytes.
async fn answered_with(bytes: Vec<u8>) -> Event {
    let (mut other, mut asker) = (stranger(bytes), node(|_, _| true));
    let addr = listen(&mut other).await;
    tokio::spawn(async move {
        loop {
            if let SwarmEvent::Behaviour(request_response::Event::Message {
                message: request_response::Message::Request { channel, .. },
                ..
            }) = other.select_next_some().await
            {
                let _ = other.behaviour_mut().send_response(channel, Vec::new());
            }
        }
    });
    asker.dial(addr).unwrap();
    first(&mut asker, Some).await
}

#[tokio::test]
async fn lies_are_told_from_age() {
    let fresh = said(&Keypair::generate_ed25519(), 1, unix_ms(), 1);
    let entry = |raw: &[u8]| RawEntry { ttl: 2, raw: raw.to_vec() };
    let twice = Answer::Records(vec![entry(fresh.raw()), entry(fresh.raw())]).encode();
    assert!(matches!(answered_with(twice).await, Event::Misbehaved { error: None, .. }));
    let mut forged = fresh.raw().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let forged = Answer::Records(vec![entry(&forged)]).encode();
    assert!(matches!(answered_with(forged).await, Event::Misbehaved { error: Some(VerifyError::Envelope(_)), .. }));
    let old = said(&Keypair::generate_ed25519(), 1, 1_000, 1);
    let old = Answer::Records(vec![entry(old.raw()), entry(fresh.raw())]).encode();
    let event = answered_with(old).await;
    assert!(matches!(&event, Event::Received { records: 2, learnt, .. } if learnt.len() == 1), "{event:?}");
    assert!(matches!(answered_with(vec![1]).await, Event::Silent { reason: SilentReason::Busy, .. }));
    assert!(matches!(answered_with(vec![9]).await, Event::Silent { reason: SilentReason::Failed(_), .. }));
}

#[tokio::test]
async fn who_asks_too_often_is_told_so_and_who_forges_its_own_record_is_seen() {
    let mut server = node(|_, _| true);
    let addr = listen(&mut server).await;
    let id = *server.local_peer_id();
    let mut events = run(server);
    let (flooder, mut alien) = (PeerId::random(), said(&Keypair::generate_ed25519(), 1, unix_ms(), 1).raw().to_vec());
    let mut asker = stranger(Vec::new());
    asker.dial(addr).unwrap();
    while !matches!(asker.select_next_some().await, SwarmEvent::ConnectionEstablished { .. }) {}
    let mut filter = quelea_exchange::Filter::new(1, 1);
    filter.insert(&flooder);
    let forged = alien.clone();
    alien[40] ^= 1;
    let owns = [Some(forged), Some(alien)].into_iter().chain(std::iter::repeat_n(None, 12));
    tokio::spawn(async move {
        // One at a time: streams are limited, too.
        for own in owns {
            let request = Request { want: 64, own, filter: filter.clone() };
            asker.behaviour_mut().send_request(&id, request.encode());
            let answered = |event: &SwarmEvent<request_response::Event<_, _>>| {
                matches!(event, SwarmEvent::Behaviour(request_response::Event::Message { .. }))
            };
            while !answered(&asker.select_next_some().await) {}
        }
        loop {
            asker.select_next_some().await;
        }
    });
    let (mut forged, mut served, mut limited) = (0, 0, 0);
    let all = async {
        while forged + served + limited < 14 {
            match events.recv().await.unwrap() {
                Event::Misbehaved { .. } => forged += 1,
                Event::Served { .. } => served += 1,
                Event::Limited { .. } => limited += 1,
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
    assert_eq!((forged, served, limited), (2, 8, 4));
}
