//! Real nodes in one process, over its memory: whole swarms, encryption included, each in a task of its own.
//!
//! What is printed is for `docs/performance.md`; what is asserted is success. A hundred nodes are a step of their own in
//! `.ci/run`, in a profile with some optimisation: each of them is connected to all others, and without it what the
//! connections and lookups cost a processor is minutes.
//!
//! ```sh
//! cargo test --profile swarm -p quelea-behaviours --test it -- --ignored --nocapture scale::a_hundred
//! ```

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::join_all};
use libp2p::{
    PeerId,
    kad::{self as libkad, GetClosestPeersError, QueryId, QueryResult},
    swarm::{SwarmEvent, dial_opts::DialOpts},
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use quelea_behaviours::{
    BehaviourEvent,
    gossip::Topic,
    peers::{dialler::OUTBOUND, lines},
};
use quelea_broadcast::SignedLine;
use quelea_wire::time::unix_ms;
use tokio::sync::{mpsc, oneshot};

use crate::harness::{Event, Node, config};

/// Between two looks at what no event tells.
const LOOK: Duration = Duration::from_millis(50);

/// A swarm of a hundred comes together in a minute; a loaded machine may be ten times slower.
const PATIENCE: Duration = Duration::from_secs(600);

/// How long few lines may be unused, once they are looked at.
const UNUSED: Duration = Duration::from_secs(1);

/// Nodes that each node dials when it joins.
const DIALS: usize = 6;

type Work = Box<dyn FnOnce(&mut Runner) + Send>;

/// A node in its task.
struct Runner {
    node: Node,
    registry: Registry,
    lookups: HashMap<QueryId, (PeerId, oneshot::Sender<(bool, u32)>)>,
    bootstraps: usize,
    /// Whether it closes lines that nobody uses.
    trims: bool,
}

/// What others hold of it.
struct Remote {
    id: PeerId,
    addr: libp2p::Multiaddr,
    work: mpsc::Sender<Work>,
}

impl Remote {
    async fn start() -> Self {
        let mut registry = Registry::default();
        let mut config = config();
        // Nobody is behind a NAT here; probing all the time would be all that is measured.
        config.autonat_probe_interval = Duration::from_secs(3600);
        config.idle_timeout = UNUSED;
        let node = Node::in_memory(config, &mut registry).await;
        let (id, addr) = (node.id, node.addr.clone());
        let (work, todo) = mpsc::channel(64);
        let mut runner = Box::new(Runner { node, registry, lookups: HashMap::new(), bootstraps: 0, trims: false });
        let topic = Topic::Broadcast.ident(&runner.node.network);
        runner.node.swarm.behaviour_mut().gossipsub.subscribe(&topic).unwrap();
        tokio::spawn(run(runner, todo));
        Self { id, addr, work }
    }

    /// Does something on the node's task.
    async fn on<T: Send + 'static>(&self, work: impl FnOnce(&mut Runner) -> T + Send + 'static) -> T {
        let (reply, answer) = oneshot::channel();
        let work: Work = Box::new(move |runner| drop(reply.send(work(runner))));
        self.work.send(work).await.expect("the node runs");
        answer.await.expect("the node runs")
    }

    /// Looks for a peer: whether it was found, and how many nodes were asked.
    async fn look_for(&self, target: PeerId) -> (bool, u32) {
        let (reply, answer) = oneshot::channel();
        self.on(move |runner| {
            let id = runner.node.swarm.behaviour_mut().kad.get_closest_peers(target);
            runner.lookups.insert(id, (target, reply));
        })
        .await;
        answer.await.expect("every query ends")
    }
}

async fn run(mut runner: Box<Runner>, mut todo: mpsc::Receiver<Work>) {
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    loop {
        tokio::select! {
            work = todo.recv() => match work {
                Some(work) => work(&mut runner),
                None => return,
            },
            event = runner.node.swarm.select_next_some() => {
                runner.look_at(&event);
                runner.node.act(event);
            }
            now = tick.tick() => {
                runner.node.gate.tick(now.into_std());
                runner.node.swarm.behaviour_mut().gossipsub.tick(now.into_std());
                if runner.trims {
                    lines::trim(runner.node.swarm.behaviour_mut(), |_| false);
                }
            }
        }
    }
}

impl Runner {
    fn look_at(&mut self, event: &Event) {
        let SwarmEvent::Behaviour(BehaviourEvent::Kad(libkad::Event::OutboundQueryProgressed {
            id,
            result,
            stats,
            step,
        })) = event
        else {
            return;
        };
        match result {
            QueryResult::Bootstrap(_) if step.last => self.bootstraps += 1,
            QueryResult::GetClosestPeers(result) if step.last => {
                let peers = match result {
                    Ok(found) => &found.peers,
                    Err(GetClosestPeersError::Timeout { peers, .. }) => peers,
                };
                if let Some((target, reply)) = self.lookups.remove(id) {
                    let found = peers.iter().any(|peer| peer.peer_id == target);
                    let _ = reply.send((found, stats.num_requests()));
                }
            }
            _ => {}
        }
    }

    fn mesh(&self) -> usize {
        let topic = Topic::Broadcast.ident(&self.node.network).hash();
        self.node.swarm.behaviour().gossipsub.mesh_peers(&topic).count()
    }

    /// A counter of gossipsub's, over all topics.
    fn counted(&self, name: &str) -> f64 {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

/// Waits until all nodes are as wanted.
async fn until(nodes: &[Remote], what: &str, wanted: impl Fn(&mut Runner) -> bool + Copy + Send + 'static) {
    let all = async {
        while !join_all(nodes.iter().map(|node| node.on(wanted))).await.into_iter().all(|is| is) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

/// Pages in memory, and clock ticks of processor time used.
fn used() -> (u64, u64) {
    let read = |path| std::fs::read_to_string(path).unwrap();
    let pages = read("/proc/self/statm").split(' ').nth(1).unwrap().parse().unwrap();
    let stat = read("/proc/self/stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (pages, fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap())
}

/// Random enough: which nodes are dialled and looked for does not matter.
fn other(n: usize, i: usize, count: usize) -> usize {
    (n * 7919 + i * 104_729 + i * i * 31) % count
}

async fn swarm(count: usize, lookups: usize, lines: usize) {
    let (pages, _) = used();
    let started = Instant::now();
    let nodes = join_all((0..count).map(|_| Remote::start())).await;
    for (n, node) in nodes.iter().enumerate().skip(1) {
        for i in 0..DIALS {
            let target = &nodes[other(n, i, n)];
            let dial = DialOpts::peer_id(target.id).addresses(vec![target.addr.clone()]).build();
            // One that is connected, or being dialled, already.
            node.on(move |runner| drop(runner.node.swarm.dial(dial))).await;
        }
    }
    until(&nodes, "neighbours", |runner| runner.mesh() >= 3).await;
    for node in &nodes {
        node.on(|runner| drop(runner.node.swarm.behaviour_mut().kad.bootstrap())).await;
    }
    until(&nodes, "the tables", |runner| runner.bootstraps > 0).await;
    let together = started.elapsed();

    let asking = (0..lookups).map(|i| {
        let (from, to) = (other(i, 1, count), other(i, 2, count));
        let to = if from == to { (to + 1) % count } else { to };
        nodes[from].look_for(nodes[to].id)
    });
    // Eight at a time: a hundred nodes share two cores.
    let answers: Vec<(bool, u32)> = futures::stream::iter(asking).buffer_unordered(8).collect().await;
    let found = answers.iter().filter(|(found, _)| *found).count();
    let asked: u32 = answers.iter().map(|(_, asked)| asked).sum();

    let before: Vec<f64> = counters(&nodes).await;
    let mut times = Vec::new();
    for line in 1..=lines {
        let said = Instant::now();
        let text = format!("line {line}");
        nodes[other(line, 3, count)]
            .on(move |runner| {
                let node = &mut runner.node;
                let line = SignedLine::sign(&node.keypair, &node.network, unix_ms(), &text).unwrap();
                let topic = Topic::Broadcast.ident(&node.network);
                node.swarm.behaviour_mut().gossipsub.publish(topic, line.raw().to_vec()).unwrap();
                node.lines.push(line);
            })
            .await;
        until(&nodes, "a line everywhere", move |runner| runner.node.lines.len() >= line).await;
        times.push(said.elapsed());
    }
    times.sort_unstable();
    let after = counters(&nodes).await;
    let once = nodes.iter().map(|node| node.on(move |runner| runner.node.lines.len() == lines));
    assert!(join_all(once).await.into_iter().all(|once| once), "a line was heard twice");

    let (_, ticks) = used();
    let idle = Duration::from_secs(3);
    tokio::time::sleep(idle).await;
    let (full, busy) = used();
    let memory = (full.saturating_sub(pages) * 4) as f64 / count as f64;
    let cpu = (busy - ticks) as f64 / idle.as_secs_f64() / count as f64;
    let connections = neighbours(&nodes).await;
    let fewer = settled(&nodes).await;
    println!(
        "{count} nodes, {:.1} neighbours each, {:.1} once lines that nobody uses are closed: together after {:.1} s; {found} of {lookups} lookups found, {:.1} asked each; \
         {lines} lines heard once by all, all at the latest after {:?} (half of the lines {:?}), {:.2} copies each; \
         {memory:.0} KiB and {cpu:.2} % of a core each",
        connections as f64 / count as f64,
        fewer as f64 / count as f64,
        together.as_secs_f64(),
        f64::from(asked) / lookups as f64,
        times.last().unwrap(),
        times[times.len() / 2],
        (after[0] - before[0]) / (after[1] - before[1]),
    );
    assert!(fewer <= connections && fewer / count <= 3 * OUTBOUND, "{fewer} of {connections} are left");
    assert!(found * 100 >= lookups * 99, "{found} of {lookups} lookups found their peer");
}

/// Peers connected, of all nodes together.
async fn neighbours(nodes: &[Remote]) -> usize {
    let counts = nodes.iter().map(|node| node.on(|runner| runner.node.swarm.network_info().num_peers()));
    join_all(counts).await.into_iter().sum()
}

/// Has all nodes close lines that nobody uses, and waits until there are no more of them: how many neighbours all have then.
async fn settled(nodes: &[Remote]) -> usize {
    join_all(nodes.iter().map(|node| node.on(|runner| runner.trims = true))).await;
    until(nodes, "lines to end", |runner| {
        let peers = &runner.node.swarm.behaviour().peers;
        // What is left is in a mesh that has no others.
        let mesh = Topic::Broadcast.ident(&runner.node.network).hash();
        let mesh: Vec<&PeerId> = runner.node.swarm.behaviour().gossipsub.mesh_peers(&mesh).collect();
        peers.spare().iter().all(|(peer, _)| mesh.contains(&peer))
    })
    .await;
    neighbours(nodes).await
}

/// Messages received, and of these the ones that were new, by all nodes.
async fn counters(nodes: &[Remote]) -> Vec<f64> {
    let mut sums = Vec::new();
    for name in
        ["libp2p_gossipsub_topic_msg_recv_counts_unfiltered_total", "libp2p_gossipsub_topic_msg_recv_counts_total"]
    {
        let all = join_all(nodes.iter().map(|node| node.on(move |runner| runner.counted(name)))).await;
        sums.push(all.iter().sum());
    }
    sums
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_find_each_other_and_hear_a_line_once() {
    Box::pin(swarm(24, 100, 3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "two minutes with some optimisation; a step of its own"]
async fn a_hundred_nodes_find_each_other_and_hear_a_line_once() {
    Box::pin(swarm(100, 200, 5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes; prints figures"]
async fn how_it_grows() {
    for count in [25, 50] {
        Box::pin(swarm(count, 300, 10)).await;
    }
}
