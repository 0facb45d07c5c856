//! A peer that speaks the weights protocol and nothing else, in a manner of its own.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use futures::StreamExt;
use libp2p::{Multiaddr, SwarmBuilder, noise, swarm::SwarmEvent, tcp, yamux};
use quelea_engine::Outline;
use quelea_weights::{Answer, Behaviour, Bitmap, Event, Question};
use quelea_wire::NetworkId;
use tokio::task::JoinHandle;

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It says that it has everything, and gives zeros.
    Corrupt,
    /// It gives the outline, says that it has everything, and gives zeros.
    CorruptOutlined,
    /// It says that it has everything, and gives nothing.
    Silent,
    /// Its outline says that the tokenizer is shorter than it is.
    WrongOutline,
}

/// A running one.
pub struct Fake {
    pub addr: String,
    asked: Arc<AtomicU32>,
    outlines: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub async fn new(outline: &Outline, manner: Manner) -> Self {
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_| Behaviour::new(NetworkId::from_name("main")))
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(std::time::Duration::from_secs(600)))
            .build();
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse::<Multiaddr>().unwrap()).unwrap();
        let addr = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                break format!("{address}/p2p/{}", swarm.local_peer_id());
            }
        };
        let (asked, outlines) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (count, told, outline) = (asked.clone(), outlines.clone(), outline.clone());
        let task = tokio::spawn(async move {
            let mut unanswered = Vec::new();
            loop {
                let event = swarm.select_next_some().await;
                let SwarmEvent::Behaviour(Event::Asked { id, request, .. }) = event else { continue };
                let answer = match (request.question, manner) {
                    (Question::Outline { .. }, Manner::WrongOutline) => {
                        told.fetch_add(1, Ordering::Relaxed);
                        let bytes = shortened(&outline);
                        Some(Answer::Outline { total: u32::try_from(bytes.len()).unwrap(), bytes })
                    }
                    (Question::Outline { offset: 0 }, Manner::CorruptOutlined) => {
                        told.fetch_add(1, Ordering::Relaxed);
                        let bytes = outline.encode();
                        Some(Answer::Outline { total: u32::try_from(bytes.len()).unwrap(), bytes })
                    }
                    (Question::Have, Manner::WrongOutline) => Some(Answer::Unknown),
                    // The outline is for the honest to give.
                    (Question::Outline { .. }, _) => Some(Answer::Unknown),
                    (Question::Have, _) => Some(Answer::Have(Bitmap::full(outline.chunks()))),
                    (Question::Chunks { first, count: run }, _) => {
                        count.fetch_add(1, Ordering::Relaxed);
                        let chunks = first..first + u32::from(run);
                        let len: u64 = chunks.map(|chunk| outline.chunk_len(chunk)).sum();
                        matches!(manner, Manner::Corrupt | Manner::CorruptOutlined)
                            .then(|| Answer::Chunks(vec![0; usize::try_from(len).unwrap()]))
                    }
                };
                match answer {
                    Some(answer) => drop(swarm.behaviour_mut().reply(id, answer)),
                    None => unanswered.push(id),
                }
            }
        });
        Self { addr, asked, outlines, task }
    }

    /// How often it gave an outline of its own.
    pub fn outlines(&self) -> u32 {
        self.outlines.load(Ordering::Relaxed)
    }

    /// How often it was asked for chunks.
    pub fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }
}

/// The outline with one byte less of the tokenizer, of which everything else is right: below a chunk, any length goes with a hash.
fn shortened(outline: &Outline) -> Vec<u8> {
    let (hash, len) = (outline.tokenizer().hash(), outline.tokenizer().bytes());
    let mut bytes = outline.encode();
    let at = bytes.windows(hash.len()).position(|window| window == hash).unwrap();
    // The length stands before the hash's own head of two bytes, in CBOR's form of two bytes.
    let place = at - 4..at - 2;
    assert_eq!(bytes[place.clone()], u16::try_from(len).unwrap().to_be_bytes());
    bytes[place].copy_from_slice(&u16::try_from(len - 1).unwrap().to_be_bytes());
    Outline::decode(&bytes).unwrap();
    bytes
}
