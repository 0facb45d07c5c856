//! A gossipsub peer written by hand: it says whatever it is told to, and takes note of what it is sent.

use std::{
    collections::VecDeque,
    task::{Context, Poll},
};

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, SwarmBuilder,
    core::{Endpoint, transport::PortUse, upgrade::ReadyUpgrade},
    identity::Keypair,
    noise,
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour, Stream,
        SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
    tcp, yamux,
};
use quelea_wire::NetworkId;
use tokio::{sync::mpsc, task::JoinHandle};

/// What gossipsub signs before the message.
const SIGNING_PREFIX: &[u8] = b"libp2p-pubsub:";

/// One RPC under construction: protobuf by hand.
#[derive(Debug, Default, Clone)]
pub struct Rpc {
    fields: Vec<u8>,
    control: Vec<u8>,
}

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 8);
    varint(number << 3 | 2, &mut out);
    varint(bytes.len() as u64, &mut out);
    out.extend_from_slice(bytes);
    out
}

/// How a message is signed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Signing {
    Right,
    /// By another key than the author's.
    Wrong,
    /// Neither signature nor author.
    None,
}

impl Rpc {
    pub fn subscribe(mut self, topic: &str) -> Self {
        self.fields.extend(field(1, &[&[0x08, 0x01][..], &field(2, topic.as_bytes())].concat()));
        self
    }

    pub fn publish(mut self, key: &Keypair, topic: &str, data: &[u8], seqno: u64, signing: Signing) -> Self {
        let mut message = Vec::new();
        if signing != Signing::None {
            message.extend(field(1, &key.public().to_peer_id().to_bytes()));
        }
        message.extend(field(2, data));
        if signing != Signing::None {
            message.extend(field(3, &seqno.to_be_bytes()));
        }
        message.extend(field(4, topic.as_bytes()));
        let signed = [SIGNING_PREFIX, &message].concat();
        match signing {
            Signing::Right => message.extend(field(5, &key.sign(&signed).unwrap())),
            Signing::Wrong => message.extend(field(5, &Keypair::generate_ed25519().sign(&signed).unwrap())),
            Signing::None => {}
        }
        self.fields.extend(field(2, &message));
        self
    }

    fn control(mut self, number: u64, body: &[u8]) -> Self {
        self.control.extend(field(number, body));
        self
    }

    pub fn ihave(self, topic: &str, ids: &[Vec<u8>]) -> Self {
        let ids: Vec<u8> = ids.iter().flat_map(|id| field(2, id)).collect();
        self.control(1, &[field(1, topic.as_bytes()), ids].concat())
    }

    pub fn iwant(self, id: &[u8]) -> Self {
        self.control(2, &field(1, id))
    }

    pub fn graft(self, topic: &str) -> Self {
        self.control(3, &field(1, topic.as_bytes()))
    }

    pub fn prune(self, topic: &str) -> Self {
        self.control(4, &field(1, topic.as_bytes()))
    }

    pub fn idontwant(self, id: &[u8]) -> Self {
        self.control(5, &field(1, id))
    }

    fn frame(self) -> Vec<u8> {
        let mut rpc = self.fields;
        if !self.control.is_empty() {
            rpc.extend(field(3, &self.control));
        }
        let mut frame = Vec::with_capacity(rpc.len() + 4);
        varint(rpc.len() as u64, &mut frame);
        frame.extend(rpc);
        frame
    }
}

/// What the victim sent in one RPC.
#[derive(Debug, Default)]
pub struct Heard {
    /// Messages.
    pub messages: usize,
    /// PRUNEs.
    pub prunes: usize,
    /// Ids asked for.
    pub asked: usize,
}

/// The fields of a protobuf message that have a length, by number.
fn parse(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut fields = Vec::new();
    while let Some((key, rest)) = read_varint(bytes) {
        let Some((n, rest)) = read_varint(rest) else { break };
        bytes = rest;
        if key & 7 == 2 {
            let Some((body, rest)) = rest.split_at_checked(n as usize) else { break };
            fields.push((key >> 3, body));
            bytes = rest;
        }
    }
    fields
}

fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().position(|byte| byte & 0x80 == 0)?;
    let n = bytes[..=end].iter().rev().fold(0, |n, byte| n << 7 | u64::from(byte & 0x7f));
    Some((n, &bytes[end + 1..]))
}

fn heard(rpc: &[u8]) -> Heard {
    let mut heard = Heard::default();
    for (number, body) in parse(rpc) {
        match number {
            2 => heard.messages += 1,
            3 => {
                for (kind, control) in parse(body) {
                    match kind {
                        2 => heard.asked += parse(control).len(),
                        4 => heard.prunes += 1,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    heard
}

/// One identity, connected to a victim. Everything ends when it is dropped.
pub struct Spammer {
    pub id: PeerId,
    pub key: Keypair,
    out: Stream,
    heard: mpsc::Receiver<Heard>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Spammer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Spammer {
    /// Connects, and opens a stream of its own. The victim has to run meanwhile.
    pub async fn connect(victim: Multiaddr, network: NetworkId) -> Self {
        let key = Keypair::generate_ed25519();
        let protocol = network.protocol("gossip", 1);
        let (streams, mut opened) = mpsc::channel(4);
        let mut swarm = SwarmBuilder::with_existing_identity(key.clone())
            .with_tokio()
            .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_| Behaviour { protocol, streams })
            .unwrap()
            .build();
        swarm.dial(victim).unwrap();
        let mut tasks = vec![tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        })];
        let (mut out, mut inbound) = (None, None);
        while out.is_none() || inbound.is_none() {
            match opened.recv().await.expect("the victim speaks gossip") {
                (true, stream) => out = Some(stream),
                (false, stream) => inbound = Some(stream),
            }
        }
        let (to_us, heard) = mpsc::channel(4096);
        tasks.push(tokio::spawn(listen(inbound.unwrap(), to_us)));
        Self { id: key.public().to_peer_id(), key, out: out.unwrap(), heard, tasks }
    }

    /// Sends an RPC. False when the victim takes no more.
    pub async fn send(&mut self, rpc: Rpc) -> bool {
        self.out.write_all(&rpc.frame()).await.is_ok() && self.out.flush().await.is_ok()
    }

    /// What has been heard since the last call.
    pub fn heard(&mut self) -> Heard {
        let mut all = Heard::default();
        while let Ok(heard) = self.heard.try_recv() {
            all.messages += heard.messages;
            all.prunes += heard.prunes;
            all.asked += heard.asked;
        }
        all
    }
}

/// Reads RPCs until the stream ends.
async fn listen(mut stream: Stream, to_us: mpsc::Sender<Heard>) {
    loop {
        let (mut len, mut shift) = (0_usize, 0);
        loop {
            let mut byte = [0];
            if stream.read_exact(&mut byte).await.is_err() {
                return;
            }
            len |= usize::from(byte[0] & 0x7f) << shift;
            shift += 7;
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        let mut rpc = vec![0; len];
        if stream.read_exact(&mut rpc).await.is_err() || to_us.send(heard(&rpc)).await.is_err() {
            return;
        }
    }
}

struct Behaviour {
    protocol: StreamProtocol,
    streams: mpsc::Sender<(bool, Stream)>,
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = std::convert::Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Err(ConnectionDenied::new("nobody calls here"))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler {
            protocol: self.protocol.clone(),
            streams: self.streams.clone(),
            to_open: VecDeque::from([self.protocol.clone()]),
        })
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, never: THandlerOutEvent<Self>) {
        match never {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

struct Handler {
    protocol: StreamProtocol,
    streams: mpsc::Sender<(bool, Stream)>,
    to_open: VecDeque<StreamProtocol>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = std::convert::Infallible;
    type ToBehaviour = std::convert::Infallible;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(self.protocol.clone()), ())
    }

    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn on_behaviour_event(&mut self, never: Self::FromBehaviour) {
        match never {}
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Self::ToBehaviour>> {
        match self.to_open.pop_front() {
            Some(protocol) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(ReadyUpgrade::new(protocol), ()),
            }),
            None => Poll::Pending,
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), ()>,
    ) {
        let (ours, stream) = match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) => (false, protocol),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, .. }) => (true, protocol),
            _ => return,
        };
        let _ = self.streams.try_send((ours, stream));
    }
}
