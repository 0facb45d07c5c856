//! A peer that speaks the ledger's protocol by hand. Its book is the real one, and does what an honest peer's would; besides,
//! it says whatever it is told to, and opens streams of sessions that it does not mean to pay for.

use std::collections::{BTreeMap, VecDeque};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, SwarmBuilder,
    identity::Keypair,
    noise,
    swarm::{NetworkBehaviour, Stream, SwarmEvent, dial_opts::DialOpts},
    tcp, yamux,
};
use quelea_ledger::{
    Hash, HoldId, Unit,
    behaviour::{Answer, Behaviour, Event as Heard, MAX_QUEUED},
    book::{Book, Event, Key, Outcome, Rules, Write},
    message::{Hold, Message, Note, SignedMessage},
    packet::{Content, Packet},
};
use quelea_wire::{NetworkId, time::unix_ms};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::NETWORK;
use crate::{
    harness::{Daemon, PATIENCE},
    hostile::attacker::{self, Opening},
};

pub const UNIT: Unit = Unit::CREDIT;

type Saying = (Vec<u8>, oneshot::Sender<bool>);

#[derive(NetworkBehaviour)]
struct Node {
    ledger: Behaviour,
    service: quelea_service::Behaviour,
    shard: attacker::Behaviour,
}

/// A connection to the victim. It ends when it is dropped.
struct Line {
    says: mpsc::Sender<Saying>,
    hears: mpsc::Receiver<Vec<u8>>,
    opens: mpsc::Sender<Opening>,
    /// Streams on which the victim calls.
    called: mpsc::Receiver<quelea_service::ServiceStream>,
}

pub struct Cheat {
    pub key: Keypair,
    pub id: PeerId,
    pub network: NetworkId,
    pub victim: PeerId,
    addr: Multiaddr,
    book: Book,
    disk: BTreeMap<Key, Vec<u8>>,
    events: Vec<Event>,
    line: Option<Line>,
    /// Every packet of its book, in this order.
    pub said: Vec<Vec<u8>>,
}

impl Cheat {
    pub fn new(victim: &Daemon) -> Self {
        Self::of(victim, Keypair::generate_ed25519())
    }

    /// One of this name.
    pub fn of(victim: &Daemon, key: Keypair) -> Self {
        let network = NetworkId::from_name(NETWORK);
        Self {
            id: key.public().to_peer_id(),
            book: Book::new(key.clone(), network, Rules::default(), rand::random()),
            key,
            network,
            victim: victim.peer().parse().unwrap(),
            addr: victim.addr().parse().unwrap(),
            disk: BTreeMap::new(),
            events: Vec::new(),
            line: None,
            said: Vec::new(),
        }
    }

    /// One that is connected and synced.
    pub async fn synced(victim: &Daemon) -> Self {
        let mut cheat = Self::new(victim);
        assert!(cheat.connect().await, "a stranger is let in");
        cheat.sync().await;
        cheat
    }

    /// Whether the victim lets it in.
    pub async fn connect(&mut self) -> bool {
        let mut swarm = SwarmBuilder::with_existing_identity(self.key.clone())
            .with_tokio()
            .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_| Node {
                ledger: Behaviour::new(self.network),
                service: quelea_service::Behaviour::new(self.network),
                shard: attacker::Behaviour::new(mpsc::channel(1).0),
            })
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(2 * PATIENCE))
            .build();
        let (says, mut to_say) = mpsc::channel::<Saying>(MAX_QUEUED);
        let (to_hear, hears) = mpsc::channel(1024);
        let (opens, mut to_open) = mpsc::channel::<Opening>(8);
        let (to_call, called) = mpsc::channel(64);
        let (stands, standing) = oneshot::channel();
        swarm.dial(DialOpts::peer_id(self.victim).addresses(vec![self.addr.clone()]).build()).unwrap();
        let victim = self.victim;
        tokio::spawn(async move {
            let (mut stands, mut waiting) = (Some(stands), VecDeque::new());
            loop {
                let event = tokio::select! {
                    saying = to_say.recv() => {
                        let Some((packet, said)) = saying else { return };
                        match swarm.behaviour_mut().ledger.send(victim, packet) {
                            Ok(()) => waiting.push_back(said),
                            Err(_) => {
                                let _ = said.send(false);
                            }
                        }
                        continue;
                    }
                    Some(opening) = to_open.recv() => {
                        swarm.behaviour_mut().shard.open(victim, opening);
                        continue;
                    }
                    event = swarm.select_next_some() => event,
                };
                match event {
                    SwarmEvent::ConnectionEstablished { .. } => {
                        stands.take().map(|stands| stands.send(()));
                    }
                    SwarmEvent::OutgoingConnectionError { .. } | SwarmEvent::ConnectionClosed { .. } => return,
                    SwarmEvent::Behaviour(NodeEvent::Ledger(Heard::Received { packet, reply, .. })) => {
                        let _ = to_hear.try_send(packet);
                        swarm.behaviour_mut().ledger.reply(reply, Answer::Taken);
                    }
                    SwarmEvent::Behaviour(NodeEvent::Service(quelea_service::Event::Inbound { stream, .. })) => {
                        let _ = to_call.try_send(stream);
                    }
                    SwarmEvent::Behaviour(NodeEvent::Ledger(Heard::Sent { .. })) => {
                        waiting.pop_front().map(|said: oneshot::Sender<bool>| said.send(true));
                    }
                    SwarmEvent::Behaviour(NodeEvent::Ledger(Heard::NotSent { packets, .. })) => {
                        for said in waiting.drain(..packets) {
                            let _ = said.send(false);
                        }
                    }
                    _ => {}
                }
            }
        });
        self.line = timeout(PATIENCE, standing).await.unwrap().ok().map(|()| Line { says, hears, opens, called });
        self.line.is_some()
    }

    /// Ends its connection, and waits until the victim has seen it.
    pub async fn leave(&mut self, victim: &Daemon) {
        self.line = None;
        self.book.disconnected(self.victim);
        let me = self.id.to_string();
        let gone = async || {
            let status = victim.status().await;
            let there = status["peers"].as_array().unwrap().iter().any(|peer| peer["peer_id"] == me.as_str());
            (!there).then_some(())
        };
        crate::harness::until("the peer to be gone", gone).await;
    }

    /// Says a packet; whether the victim took it.
    pub async fn say(&self, packet: Vec<u8>) -> bool {
        let Some(said) = self.begin_to_say(packet).await else { return false };
        timeout(PATIENCE, said).await.unwrap().unwrap_or(false)
    }

    /// Says packets all at once; how many were taken.
    pub async fn say_all(&self, packets: Vec<Vec<u8>>) -> usize {
        let mut waiting = Vec::new();
        for packet in packets {
            waiting.extend(self.begin_to_say(packet).await);
        }
        let mut taken = 0;
        for said in waiting {
            taken += usize::from(timeout(PATIENCE, said).await.unwrap().unwrap_or(false));
        }
        taken
    }

    async fn begin_to_say(&self, packet: Vec<u8>) -> Option<oneshot::Receiver<bool>> {
        let (said, taken) = oneshot::channel();
        self.line.as_ref().unwrap().says.send((packet, said)).await.ok()?;
        Some(taken)
    }

    /// Waits until the victim has ended the connection.
    pub async fn until_cut_off(&mut self) {
        timeout(PATIENCE, self.line.as_mut().unwrap().says.closed()).await.expect("it is still connected");
        self.line = None;
    }

    /// Tries to come back. Who a connection is from is known when it stands, and one that is banned is cut off then.
    pub async fn is_shut_out(&mut self) {
        if self.connect().await {
            self.until_cut_off().await;
        }
    }

    // What an honest peer does.

    /// Does what the book asks for.
    async fn act(&mut self, out: Outcome) {
        for write in out.writes {
            match write {
                Write::Put(key, value) => drop(self.disk.insert(key, value)),
                Write::Delete(key) => drop(self.disk.remove(&key)),
                Write::Prune(..) => {}
            }
        }
        self.events.extend(out.events.into_iter().map(|(_, _, event)| event));
        for send in out.sends {
            let packet = send.render(|key| self.disk.get(key).cloned()).unwrap();
            self.said.push(packet.clone());
            // What is lost comes again with the next sync.
            self.say(packet).await;
        }
    }

    /// Listens to the victim until something is so.
    pub async fn until(&mut self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let listening = async {
            while !so(self) {
                let Some(packet) = self.line.as_mut().unwrap().hears.recv().await else { panic!("cut off: {what}") };
                if let Ok(out) = self.book.receive(unix_ms(), self.victim, &packet) {
                    self.act(out).await;
                }
            }
        };
        timeout(PATIENCE, listening).await.unwrap_or_else(|_| panic!("in vain: {what}"));
    }

    /// Begins a session.
    pub async fn sync(&mut self) {
        let out = self.book.connected(self.victim, UNIT);
        self.act(out).await;
        self.until("a session", |cheat| cheat.book.account(&cheat.victim, UNIT).unwrap().live).await;
    }

    /// Promises something, and waits until it is acknowledged: everything that was said before has been taken in then.
    pub async fn promise(&mut self, amount: u64) {
        let out = self.book.promise(unix_ms(), self.victim, UNIT, amount, u64::MAX).unwrap();
        let acknowledged =
            |cheat: &Self| cheat.events.iter().filter(|event| matches!(event, Event::Acknowledged { .. })).count();
        let before = acknowledged(self);
        self.act(out).await;
        self.until("an acknowledgement", |cheat| acknowledged(cheat) > before).await;
    }

    /// Opens a stream of sessions.
    pub async fn stream(&self) -> Stream {
        self.stream_of(quelea_shard::protocol_id(&self.network)).await
    }

    /// The next stream on which the victim calls.
    pub async fn called(&mut self) -> quelea_service::ServiceStream {
        let called = self.line.as_mut().unwrap().called.recv();
        timeout(PATIENCE, called).await.unwrap().expect("a connection")
    }

    /// Tries to open a stream of this protocol.
    pub async fn try_stream(&self, protocol: libp2p::StreamProtocol) -> Option<Stream> {
        let (reply, opened) = oneshot::channel();
        self.line.as_ref().unwrap().opens.send((protocol, reply)).await.ok()?;
        timeout(PATIENCE, opened).await.ok()?.ok()?
    }

    /// Opens a stream of this protocol.
    pub async fn stream_of(&self, protocol: libp2p::StreamProtocol) -> Stream {
        let (reply, opened) = oneshot::channel();
        let opening = (protocol, reply);
        self.line.as_ref().unwrap().opens.send(opening).await.expect("a connection");
        timeout(PATIENCE, opened).await.unwrap().unwrap().expect("a stream")
    }

    // What it would not.

    /// An envelope in a packet of the session.
    pub fn framed(&self, envelope: Vec<u8>) -> Vec<u8> {
        let newest = Packet::decode(self.said.last().expect("a session")).unwrap();
        Packet { content: Content::Signed(quelea_ledger::Raw(envelope)), ..newest }.encode()
    }

    /// An envelope of its own.
    pub fn signed(&self, message: impl Into<Message>) -> Vec<u8> {
        SignedMessage::sign(&self.key, &self.network, message).unwrap().raw().0
    }

    /// A note over `issued` in all, and so many more.
    pub fn note(&self, seq: u64, issued: u64, delta: u64) -> Note {
        Note {
            unit: UNIT,
            creditor: self.victim,
            seq,
            prev: Hash::ZERO,
            issued,
            delta,
            hold: HoldId::NONE,
            job_hash: Hash::ZERO,
            result_hash: Hash::ZERO,
            due_at: u64::MAX,
            lock: None,
        }
    }

    /// A hold of this name.
    pub fn hold(&self, n: u8, max: u64) -> Hold {
        Hold {
            unit: UNIT,
            creditor: self.victim,
            hold: HoldId([n; 16]),
            max,
            job_hash: Hash([1; 32]),
            expires_at: unix_ms() + 600_000,
            due_days: 14,
        }
    }
}
