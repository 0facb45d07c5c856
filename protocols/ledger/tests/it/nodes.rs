//! Swarms on loopback: those that speak the protocol, and those that only know its name.

use std::{io, time::Duration};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt, future::Either};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, noise,
    request_response::{self, ProtocolSupport},
    swarm::{ConnectionId, NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use quelea_ledger::{
    Nonce, Raw,
    behaviour::{Behaviour, Event, PROTOCOL_NAME},
    packet::{Content, Packet},
};

use crate::samples::network;

/// Nothing here takes more than seconds; a loaded machine may be ten times slower.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A packet, another one for each number.
pub fn packet(n: u16) -> Vec<u8> {
    let content = Content::Signed(Raw([&n.to_le_bytes()[..], &[7; 300]].concat()));
    Packet { from: Nonce([1; 16]), to: Nonce([2; 16]), content }.encode()
}

pub fn swarm<B: NetworkBehaviour>(behaviour: B) -> Swarm<B> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_| behaviour)
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(2 * PATIENCE))
        .build()
}

pub fn node() -> Swarm<Behaviour> {
    swarm(Behaviour::new(network()))
}

/// Runs both until `pick` finds what it looks for among the events of either.
pub async fn until<A: NetworkBehaviour, B: NetworkBehaviour, T>(
    a: &mut Swarm<A>,
    b: &mut Swarm<B>,
    mut pick: impl FnMut(&mut Swarm<A>, &mut Swarm<B>, Either<SwarmEvent<A::ToSwarm>, SwarmEvent<B::ToSwarm>>) -> Option<T>,
) -> T {
    let search = async {
        loop {
            let event = tokio::select! {
                event = a.select_next_some() => Either::Left(event),
                event = b.select_next_some() => Either::Right(event),
            };
            if let Some(found) = pick(a, b, event) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.unwrap()
}

/// One more connection, and where it leads.
pub async fn connect<A: NetworkBehaviour, B: NetworkBehaviour>(client: &mut Swarm<A>, server: &mut Swarm<B>) -> PeerId {
    connection(client, server).await;
    *server.local_peer_id()
}

/// One more connection, by the client's name for it.
pub async fn connection<A: NetworkBehaviour, B: NetworkBehaviour>(
    client: &mut Swarm<A>,
    server: &mut Swarm<B>,
) -> ConnectionId {
    let known = server.listeners().next().cloned();
    let addr = match known {
        Some(addr) => addr,
        None => listening(server).await,
    };
    client.dial(addr).unwrap();
    let (mut here, mut there) = (None, false);
    until(client, server, |_, _, event| {
        match event {
            Either::Left(SwarmEvent::ConnectionEstablished { connection_id, .. }) => here = Some(connection_id),
            Either::Right(SwarmEvent::ConnectionEstablished { .. }) => there = true,
            _ => {}
        }
        here.filter(|_| there)
    })
    .await
}

async fn listening<B: NetworkBehaviour>(server: &mut Swarm<B>) -> Multiaddr {
    server.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = server.select_next_some().await {
            return address;
        }
    }
}

/// What a swarm of the protocol told, if this is it.
pub fn told(event: SwarmEvent<Event>) -> Option<Event> {
    match event {
        SwarmEvent::Behaviour(event) => Some(event),
        _ => None,
    }
}

/// Opens streams of the protocol's name and says what it is told to, byte by byte.
#[derive(Debug, Clone)]
pub struct Bare;

/// What a hostile peer writes on a stream.
#[derive(Debug, Clone)]
pub struct Say {
    pub bytes: Vec<u8>,
    /// Whether it then neither ends the stream nor reads.
    pub silent: bool,
}

pub type Hostile = request_response::Behaviour<Bare>;

/// A peer that keeps no rule.
pub fn hostile() -> Swarm<Hostile> {
    let protocol = network().protocol(PROTOCOL_NAME, 1);
    let config =
        request_response::Config::default().with_request_timeout(2 * PATIENCE).with_max_concurrent_streams(1000);
    swarm(Hostile::with_codec(Bare, [(protocol, ProtocolSupport::Full)], config))
}

async fn write<T: AsyncWrite + Unpin>(io: &mut T, say: Say) -> io::Result<()> {
    io.write_all(&say.bytes).await?;
    io.flush().await?;
    if say.silent { futures::future::pending().await } else { Ok(()) }
}

impl request_response::Codec for Bare {
    type Protocol = StreamProtocol;
    type Request = Say;
    type Response = Say;

    async fn read_request<T: AsyncRead + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Say> {
        let mut bytes = Vec::new();
        io.take(8192).read_to_end(&mut bytes).await?;
        Ok(Say { bytes, silent: false })
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Say> {
        let mut bytes = Vec::new();
        io.take(64).read_to_end(&mut bytes).await?;
        Ok(Say { bytes, silent: false })
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        say: Say,
    ) -> io::Result<()> {
        write(io, say).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        say: Say,
    ) -> io::Result<()> {
        write(io, say).await
    }
}
