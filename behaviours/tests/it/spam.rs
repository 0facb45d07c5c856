//! Gossip under attack by a peer written by hand: the six spam tests that go-libp2p-pubsub has, and messages that must not be
//! passed on. Beside every attack honest nodes are served.
//!
//! Heartbeats are shortened to a fifth of a second. Figures are in heartbeats.

use std::time::{Duration, Instant};

use libp2p::PeerId;
use quelea_behaviours::{
    Config,
    gossip::{Topic, id_of},
};
use quelea_broadcast::SignedLine;
use quelea_wire::time::unix_ms;

use crate::{
    harness::{Node, config, connect, during, until_state},
    spammer::{Rpc, Signing, Spammer},
};

const HEARTBEAT: Duration = Duration::from_millis(200);

/// Below this nothing is read of a peer.
const GRAYLIST: f64 = -80.0;

/// Heartbeats after the first spam within which the spammer has left the mesh, and within which nothing of it is read.
const PRUNED: f64 = 10.0;
const GRAYLISTED: f64 = 60.0;

fn fast() -> Config {
    let mut config = config();
    config.gossip_heartbeat = HEARTBEAT;
    config
}

/// A victim and an honest node, in each other's mesh, and a spammer in the victim's.
struct Scene {
    nodes: [Node; 2],
    topic: String,
    spammer: Spammer,
}

impl Scene {
    async fn start() -> Self {
        let mut nodes = [Node::start(fast()).await, Node::start(fast()).await];
        let ident = Topic::Broadcast.ident(&nodes[0].network);
        for node in &mut nodes {
            node.swarm.behaviour_mut().gossipsub.subscribe(&ident).unwrap();
        }
        connect(&mut nodes, 1, 0).await;
        let (addr, network, topic) = (nodes[0].addr.clone(), nodes[0].network, ident.to_string());
        let spammer = during(&mut nodes, "the spammer", async {
            let mut spammer = Spammer::connect(addr, network).await;
            assert!(spammer.send(Rpc::default().subscribe(&topic).graft(&topic)).await);
            spammer
        })
        .await;
        let mut scene = Self { nodes, topic, spammer };
        let (honest, spammer) = (scene.nodes[1].id, scene.spammer.id);
        until_state(&mut scene.nodes, "a mesh", |nodes| {
            let mesh = mesh(&nodes[0]);
            mesh.contains(&honest) && mesh.contains(&spammer)
        })
        .await;
        scene
    }

    fn score(&self) -> f64 {
        score(&self.nodes[0], &self.spammer.id)
    }

    /// Sends what `spam` makes until nothing is read any more, and checks how long that took.
    async fn until_graylisted(&mut self, mut spam: impl FnMut(u64) -> Rpc) {
        let start = Instant::now();
        let beats = |since: Instant| since.elapsed().as_secs_f64() / HEARTBEAT.as_secs_f64();
        let (mut pruned, mut sent) = (None, 0_u64);
        let id = self.spammer.id;
        loop {
            let rpc = spam(sent);
            let (nodes, spammer) = (&mut self.nodes, &mut self.spammer);
            during(nodes, "the victim to read", spammer.send(rpc)).await;
            sent += 1;
            // Some time for the victim between two RPCs.
            during(nodes, "a moment", tokio::time::sleep(HEARTBEAT / 20)).await;
            if pruned.is_none() && !mesh(&nodes[0]).contains(&id) {
                pruned = Some(beats(start));
            }
            if pruned.is_some() && score(&nodes[0], &id) < GRAYLIST {
                break;
            }
            assert!(beats(start) < GRAYLISTED * 5.0, "never graylisted: {}", score(&nodes[0], &id));
        }
        let (pruned, graylisted) = (pruned.unwrap(), beats(start));
        println!("pruned after {pruned:.1} heartbeats, graylisted after {graylisted:.1}, {sent} RPCs");
        assert!(pruned <= PRUNED, "{pruned} heartbeats in the mesh");
        assert!(graylisted <= GRAYLISTED, "{graylisted} heartbeats");
    }

    /// Honest nodes still hear each other, and nothing of the spammer.
    async fn honest_are_served(&mut self) {
        let own = SignedLine::sign(&self.spammer.key, &self.nodes[0].network, unix_ms(), "buy").unwrap();
        let rpc = Rpc::default().publish(&self.spammer.key, &self.topic, own.raw(), 900_000, Signing::Right);
        let (nodes, spammer) = (&mut self.nodes, &mut self.spammer);
        during(nodes, "the victim to read", spammer.send(rpc)).await;
        for (from, to) in [(0, 1), (1, 0)] {
            let text = format!("from {from}");
            say(&mut nodes[from], &text);
            until_state(nodes, "an honest line", |nodes| nodes[to].lines.iter().any(|line| line.text() == text)).await;
        }
        for node in nodes {
            assert!(node.lines.iter().all(|line| line.text() != "buy"), "the spammer is heard");
        }
    }
}

fn mesh(node: &Node) -> Vec<PeerId> {
    let topic = Topic::Broadcast.ident(&node.network).hash();
    node.swarm.behaviour().gossipsub.mesh_peers(&topic).copied().collect()
}

fn score(node: &Node, peer: &PeerId) -> f64 {
    node.swarm.behaviour().gossipsub.peer_score(peer).unwrap_or(0.0)
}

/// Says a line; its bytes.
fn say(node: &mut Node, text: &str) -> Vec<u8> {
    let line = SignedLine::sign(&node.keypair, &node.network, unix_ms(), text).unwrap();
    let ident = Topic::Broadcast.ident(&node.network);
    node.swarm.behaviour_mut().gossipsub.publish(ident, line.raw().to_vec()).unwrap();
    line.raw().to_vec()
}

/// An id that nobody has.
fn nobodys(n: u64) -> Vec<u8> {
    id_of("nothing", &n.to_le_bytes()).to_vec()
}

/// As many of one control message as one RPC may hold.
fn many(mut rpc: Rpc, add: impl Fn(Rpc, u64) -> Rpc) -> Rpc {
    for n in 0..400 {
        rpc = add(rpc, n);
    }
    rpc
}

#[tokio::test]
async fn iwant_spam() {
    let mut scene = Box::pin(Scene::start()).await;
    let raw = say(&mut scene.nodes[0], "wanted");
    let id = id_of(&scene.topic, &raw);
    scene.until_graylisted(|_| many(Rpc::default(), |rpc, _| rpc.iwant(&id))).await;
    let heard = scene.spammer.heard();
    // Once through the mesh, and then three times on demand.
    assert!((1..=4).contains(&heard.messages), "sent {} times", heard.messages);
    scene.honest_are_served().await;
}

#[tokio::test]
async fn ihave_spam() {
    let mut scene = Box::pin(Scene::start()).await;
    let topic = scene.topic.clone();
    scene
        .until_graylisted(|sent| {
            let ids: Vec<Vec<u8>> = (0..600).map(|n| nobodys(sent * 1000 + n)).collect();
            Rpc::default().ihave(&topic, &ids)
        })
        .await;
    let asked = scene.spammer.heard().asked;
    // Five hundred a heartbeat, until the first promises are broken.
    assert!((1..=500 * 15).contains(&asked), "asked for {asked}");
    scene.honest_are_served().await;
}

#[tokio::test]
async fn graft_of_topics_that_nobody_has() {
    let mut scene = Box::pin(Scene::start()).await;
    scene.spammer.heard();
    scene.until_graylisted(|sent| many(Rpc::default(), |rpc, n| rpc.graft(&format!("/none/{sent}/{n}")))).await;
    // The answer would be as long as the question: there is none, but the one that ends its place in the mesh.
    assert!(scene.spammer.heard().prunes <= 1);
    assert_eq!(scene.nodes[0].swarm.behaviour().gossipsub.topics().count(), 1);
    scene.honest_are_served().await;
}

#[tokio::test]
async fn graft_during_the_backoff() {
    let mut scene = Box::pin(Scene::start()).await;
    let (topic, id) = (scene.topic.clone(), scene.spammer.id);
    let pruning = Rpc::default().prune(&topic);
    during(&mut scene.nodes, "the victim to read", scene.spammer.send(pruning)).await;
    until_state(&mut scene.nodes, "the end of the mesh", |nodes| !mesh(&nodes[0]).contains(&id)).await;
    scene.until_graylisted(|_| Rpc::default().graft(&topic)).await;
    assert!(!mesh(&scene.nodes[0]).contains(&id));
    scene.honest_are_served().await;
}

#[tokio::test]
async fn invalid_messages() {
    let mut scene = Box::pin(Scene::start()).await;
    let (topic, key) = (scene.topic.clone(), scene.spammer.key.clone());
    scene.until_graylisted(|n| Rpc::default().publish(&key, &topic, &n.to_le_bytes(), n, Signing::Wrong)).await;
    assert!(scene.nodes.iter().all(|node| node.lines.is_empty()));
    scene.honest_are_served().await;
}

#[tokio::test]
async fn idontwant_spam() {
    let mut scene = Box::pin(Scene::start()).await;
    scene.until_graylisted(|sent| many(Rpc::default(), |rpc, n| rpc.idontwant(&nobodys(sent * 1000 + n)))).await;
    scene.honest_are_served().await;
}

#[tokio::test]
async fn an_honest_peer_written_by_hand_is_heard_and_keeps_its_score() {
    let mut scene = Box::pin(Scene::start()).await;
    let line = SignedLine::sign(&scene.spammer.key, &scene.nodes[0].network, unix_ms(), "hello").unwrap();
    let rpc = Rpc::default().publish(&scene.spammer.key, &scene.topic, line.raw(), 1, Signing::Right);
    during(&mut scene.nodes, "the victim to read", scene.spammer.send(rpc)).await;
    until_state(&mut scene.nodes, "the line at the far end", |nodes| nodes[1].lines == [line.clone()]).await;
    assert!(scene.score() >= 0.0);
}

#[tokio::test]
async fn what_is_unsigned_wrongly_signed_foreign_or_too_long_is_not_passed_on() {
    let mut scene = Box::pin(Scene::start()).await;
    let (network, topic) = (scene.nodes[0].network, scene.topic.clone());
    let line = SignedLine::sign(&scene.spammer.key, &network, unix_ms(), "bad").unwrap();
    let announce = Topic::Announce(3).ident(&network).to_string();
    let long = [line.raw(), &[b'x'; 2000]].concat();
    let key = scene.spammer.key.clone();
    let publish = |topic: &str, data: &[u8], signing| Rpc::default().publish(&key, topic, data, 7, signing);
    let bad = [
        ("unsigned", publish(&topic, line.raw(), Signing::None)),
        ("wrongly signed", publish(&topic, line.raw(), Signing::Wrong)),
        ("of a topic that nobody has", publish("/none", line.raw(), Signing::Right)),
        ("of a topic that the victim does not listen to", publish(&announce, line.raw(), Signing::Right)),
        ("too long", publish(&topic, &long, Signing::Right)),
        ("no line", publish(&topic, b"not an envelope", Signing::Right)),
    ];
    for (what, rpc) in bad {
        let before = scene.score();
        during(&mut scene.nodes, "the victim to read", scene.spammer.send(rpc)).await;
        // A line of the honest node to the victim and one back: whatever was passed on has arrived before.
        for from in [1, 0] {
            let text = format!("after {what} from {from}");
            say(&mut scene.nodes[from], &text);
            until_state(&mut scene.nodes, "an honest line", |nodes| {
                nodes[1 - from].lines.iter().any(|line| line.text() == text)
            })
            .await;
        }
        assert!(scene.nodes.iter().all(|node| node.lines.iter().all(|line| line.text() != "bad")), "{what} was heard");
        let foreign = what.contains("topic");
        assert!(foreign || scene.score() < before, "{what}: {} after {before}", scene.score());
    }
}
