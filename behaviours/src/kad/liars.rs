//! Threat 12: lookups among 40 nodes of which 12 lie. They answer every question with each other, every key with one and the
//! same lie, acknowledge what they are given, and keep nothing.

use std::{
    borrow::Cow,
    collections::HashMap,
    task::Poll,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::poll_fn};
use libp2p::{
    Multiaddr, PeerId, Swarm, Transport,
    core::{transport::MemoryTransport, upgrade},
    identity::Keypair,
    kad::{
        self, GetRecordOk, Mode, ProviderRecord, QueryId, QueryResult, Record, RecordKey,
        store::{RecordStore, Result as StoreResult},
    },
    noise,
    swarm::{self, NetworkBehaviour, SwarmEvent},
    yamux,
};
use quelea_record::{PeerRecord, peer_key};
use quelea_wire::time::unix_ms;

use super::{Answers, Behaviour, OPEN_QUORUM, SIGNED_QUORUM, new, publish, receive};
use crate::{Config, KadMode, store::StoreLimits};

const HONEST: usize = 28;
const LIARS: usize = 12;

/// Keeps nothing, and answers everything.
struct Lies(Vec<u8>);

impl RecordStore for Lies {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        Some(Cow::Owned(Record::new(key.clone(), self.0.clone())))
    }

    fn put(&mut self, _: Record) -> StoreResult<()> {
        Ok(())
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, _: ProviderRecord) -> StoreResult<()> {
        Ok(())
    }

    fn providers(&self, _: &RecordKey) -> Vec<ProviderRecord> {
        Vec::new()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, _: &RecordKey, _: &PeerId) {}
}

fn config() -> Config {
    Config { kad_mode: KadMode::Server, ..Config::default() }
}

/// A node that listens at `/memory/<port>`.
fn node<B: NetworkBehaviour>(keypair: &Keypair, behaviour: B, port: u64) -> Swarm<B> {
    let transport = MemoryTransport::default()
        .upgrade(upgrade::Version::V1)
        .authenticate(noise::Config::new(keypair).unwrap())
        .multiplex(yamux::Config::default())
        .boxed();
    let local = keypair.public().to_peer_id();
    let mut swarm = Swarm::new(
        transport,
        behaviour,
        local,
        swarm::Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(60)),
    );
    swarm.listen_on(address(port)).unwrap();
    swarm
}

fn address(port: u64) -> Multiaddr {
    format!("/memory/{port}").parse().unwrap()
}

/// Runs the honest ones until each of `queries` has ended; what became of them.
async fn run(nodes: &mut [Swarm<Behaviour>], mut queries: HashMap<(usize, QueryId), Answers>) -> Vec<Answers> {
    let mut done = Vec::new();
    while !queries.is_empty() {
        let (i, event) = poll_fn(|cx| {
            for (i, node) in nodes.iter_mut().enumerate() {
                if let Poll::Ready(Some(event)) = node.poll_next_unpin(cx) {
                    return Poll::Ready((i, event));
                }
            }
            Poll::Pending
        })
        .await;
        match event {
            SwarmEvent::Behaviour(kad::Event::InboundRequest { request }) => {
                receive(nodes[i].behaviour_mut(), request);
            }
            SwarmEvent::Behaviour(kad::Event::OutboundQueryProgressed { id, result, step, .. }) => {
                let Some(answers) = queries.get_mut(&(i, id)) else { continue };
                let mut enough = step.last;
                if let QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))) = result {
                    let signed = found.record.key.as_ref().starts_with(b"/quelea/peer/");
                    let _ = answers.add(found.peer, found.record, unix_ms());
                    enough |= answers.enough(if signed { SIGNED_QUORUM } else { OPEN_QUORUM });
                }
                if enough {
                    done.extend(queries.remove(&(i, id)));
                    if let Some(mut query) = nodes[i].behaviour_mut().query_mut(&id) {
                        query.finish();
                    }
                }
            }
            _ => {}
        }
    }
    done
}

#[tokio::test]
async fn nineteen_of_twenty_lookups_succeed_though_three_of_ten_nodes_lie() {
    let network = config().network;
    let keys: Vec<Keypair> = (0..HONEST + LIARS).map(|_| Keypair::generate_ed25519()).collect();
    let ids: Vec<PeerId> = keys.iter().map(|key| key.public().to_peer_id()).collect();
    let base = rand::random::<u64>() >> 1 | 1;
    let addresses: Vec<Multiaddr> = (0..keys.len() as u64).map(|n| address(base + n)).collect();

    // What a liar says: validly signed, but by itself.
    let (_, lie) = PeerRecord::sign(&keys[HONEST], &network, &[], 0, unix_ms(), 3_600_000).unwrap();
    for (i, key) in keys.iter().enumerate().skip(HONEST) {
        let mut behaviour =
            kad::Behaviour::with_config(ids[i], Lies(lie.clone()), kad::Config::new(network.protocol("kad", 1)));
        behaviour.set_mode(Some(Mode::Server));
        for other in HONEST..keys.len() {
            behaviour.add_address(&ids[other], addresses[other].clone());
        }
        let mut liar = node(key, behaviour, base + i as u64);
        tokio::spawn(async move {
            loop {
                liar.select_next_some().await;
            }
        });
    }
    let mut honest: Vec<Swarm<Behaviour>> = Vec::new();
    for (i, key) in keys.iter().enumerate().take(HONEST) {
        let mut behaviour = new(ids[i], &config());
        // Everybody knows half of all, liars too.
        for other in (0..keys.len()).filter(|other| *other != i && rand::random::<bool>()) {
            super::insert(&mut behaviour, ids[other], std::slice::from_ref(&addresses[other]), None);
        }
        honest.push(node(key, behaviour, base + i as u64));
    }

    let none = || Answers::new(network, &StoreLimits::default());
    let open_key = |n: usize| RecordKey::from(format!("/quelea/user/{n}").into_bytes());
    let mut puts = HashMap::new();
    let mut truths: Vec<(RecordKey, Vec<u8>)> = Vec::new();
    for (i, node) in honest.iter_mut().enumerate() {
        let (_, signed) = PeerRecord::sign(&keys[i], &network, &[], 0, unix_ms(), 3_600_000).unwrap();
        truths.push((open_key(i), format!("the truth about {i}").into_bytes()));
        truths.push((RecordKey::from(peer_key(&ids[i])), signed));
        for (key, value) in truths.iter().skip(2 * i) {
            let id = publish(node.behaviour_mut(), Record::new(key.clone(), value.clone())).unwrap();
            puts.insert((i, id), none());
        }
    }
    let started = Instant::now();
    let put = tokio::time::timeout(Duration::from_secs(180), run(&mut honest, puts)).await.unwrap();
    assert_eq!(put.len(), 2 * HONEST);

    // Each asks for what another has put.
    let mut right = 0;
    for (n, (key, truth)) in truths.iter().enumerate() {
        let asker = (n / 2 + 1 + n % 7) % HONEST;
        let id = honest[asker].behaviour_mut().get_record(key.clone());
        let query = HashMap::from([((asker, id), none())]);
        let answers = tokio::time::timeout(Duration::from_secs(180), run(&mut honest, query)).await.unwrap();
        let best = answers.into_iter().next().unwrap().ranked().into_iter().next();
        let truthful = best.as_ref().is_some_and(|best| best.value == *truth);
        right += usize::from(truthful);
        if !truthful {
            println!("{n}: {best:?}");
        }
    }
    println!("{right} of {} lookups, {:.1} s", truths.len(), started.elapsed().as_secs_f64());
    assert!(right * 100 >= truths.len() * 95, "{right} of {}", truths.len());
}
