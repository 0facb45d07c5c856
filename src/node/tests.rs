//! Whole nodes in one process: what a coordinator believes of workers whose insides the test holds.

mod audit;
mod commitments;
mod debts;
mod honest;
mod ledger;
mod others;
mod paying;
mod withheld;

use std::time::Duration;

use quelea_engine::runner::{SessionId, SessionSpec};

use super::*;
use crate::{
    address::{PeerAddress, parse_multiaddr, parse_peer_address},
    events::{Event, EventKind},
    inference::{
        PlanReport, Summary,
        models::{DEMO, ModelFile},
        serve::{LayerChoice, ServeEnds},
    },
    node::settings::ServeSpec,
};

/// How long anything may take on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of keys and values beside the demo's weights: a few dozen sessions.
const MEMORY: u64 = 8 << 20;

async fn node(bootstrap: &[PeerAddress], layers: Option<LayerChoice>) -> Node {
    let mut settings = Settings::passing("node-tests", bootstrap.to_vec());
    settings.listen = vec![parse_multiaddr("/ip4/127.0.0.1/tcp/0").unwrap()];
    settings.kad_mode = quelea_behaviours::KadMode::Server;
    settings.serve =
        layers.map(|layers| ServeSpec { model: DEMO.into(), layers, memory: Some(MEMORY), ends: ServeEnds::default() });
    Node::start(settings).await.unwrap()
}

/// A node to start from, workers with all layers, and one that asks.
async fn swarm(workers: usize) -> (Node, Vec<Node>, Node) {
    let boot = node(&[], None).await;
    let first: Vec<PeerAddress> =
        boot.addresses().await.iter().filter_map(|addr| parse_peer_address(addr).ok()).collect();
    let mut all = Vec::new();
    for _ in 0..workers {
        all.push(node(&first, Some(LayerChoice::All)).await);
    }
    let asker = Node::start(Settings::passing("node-tests", first.clone())).await.unwrap();
    asker.wait_for_bootstrap(&first).await.unwrap();
    (boot, all, asker)
}

async fn stop(nodes: impl IntoIterator<Item = Node>) {
    futures::future::join_all(nodes.into_iter().map(|node| node.shutdown(GRACE))).await;
}

/// Takes all memory of a worker that no session has.
fn fill(worker: &Node) -> Vec<SessionId> {
    /// Half of the demo's context.
    const PAGES: u32 = 8;
    let served = &worker.plane.served()[0];
    let mut taken = Vec::new();
    loop {
        let pages = served.runner.load().kv_pages_free.min(PAGES);
        if pages == 0 {
            return taken;
        }
        let max_rows = pages * u32::try_from(quelea_engine::KV_PAGE_ROWS).unwrap();
        let spec = SessionSpec { layers: served.local_layers(&served.span), max_rows, ..SessionSpec::default() };
        taken.push(served.runner.open_with(spec).unwrap().session);
    }
}

fn empty(worker: &Node, sessions: Vec<SessionId>) {
    for session in sessions {
        worker.plane.served()[0].runner.close(session);
    }
}

async fn ask(asker: &Node) -> Result<Summary, InferError> {
    let mut request = InferRequest::new(DEMO, "Who are you?");
    request.max_tokens = 8;
    asker.answer(request, |_| {}).await
}

async fn plan(asker: &Node) -> PlanReport {
    let request = format!(r#"{{"model":"{DEMO}","prompt_tokens":8,"max_tokens":8}}"#);
    asker.plan(&serde_json::from_str(&request).unwrap()).await.unwrap()
}

/// Looks again and again until there is something to see.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let seen = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("in vain: {what}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_known_to_be_full_and_to_have_room_again() {
    let (boot, workers, asker) = swarm(1).await;
    until("the worker is found", async || plan(&asker).await.chosen).await;
    let filled = fill(&workers[0]);
    let missing = until("that it is full is known", async || plan(&asker).await.missing).await;
    assert!(missing.message.contains("has 0 KV pages free, and the session needs 1"), "{}", missing.message);
    // It is asked nevertheless, for it might let somebody else's session go: and says so itself.
    let refused = ask(&asker).await.unwrap_err();
    assert_eq!(refused.error_code(), ErrorCode::NoKvPages, "{refused}");
    assert!(refused.retryable && refused.message.contains("refuses the session"), "{refused}");
    let wait = refused.retry_after_ms.unwrap();
    assert!(wait >= 200 && refused.hint.as_ref().unwrap().starts_with("ask again in "), "{wait}: {refused:?}");
    empty(&workers[0], filled);
    until("that it has room is known", async || plan(&asker).await.chosen).await;
    until("it answers", async || ask(&asker).await.ok()).await;
    stop(workers.into_iter().chain([asker, boot])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_room_answers_and_nobody_hears_of_a_refusal() {
    let (boot, workers, asker) = swarm(2).await;
    until("both are found", async || plan(&asker).await.spare).await;
    for (full, roomy) in [(0, 1), (1, 0), (0, 1)] {
        let filled = fill(&workers[full]);
        for _ in 0..3 {
            let summary = ask(&asker).await.unwrap();
            assert_eq!(summary.hops[0].peer, workers[roomy].peer_id());
        }
        empty(&workers[full], filled);
    }
    stop(workers.into_iter().chain([asker, boot])).await;
}

/// What one node after another serves.
fn spans(workers: &[Node]) -> Vec<String> {
    workers.iter().flat_map(Node::serves).map(|served| served.layers).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_gone_leaves_the_routing_table() {
    let (boot, mut workers, asker) = swarm(2).await;
    let in_table =
        async || asker.handle.dht_stats().await.unwrap().buckets.iter().map(|(_, peers)| peers).sum::<usize>();
    until("all are in its table", async || {
        plan(&asker).await;
        (in_table().await == 3).then_some(())
    })
    .await;
    // Without a goodbye to the table: its providers' records stay for a while, and whoever looks dials it.
    workers.remove(0).shutdown(Duration::ZERO).await;
    until("one is not there any more", async || {
        asker.coverage(DEMO).await.ok()?;
        (in_table().await == 2).then_some(())
    })
    .await;
    // Cut off from everybody it forgets nobody.
    workers.remove(0).shutdown(Duration::ZERO).await;
    boot.shutdown(Duration::ZERO).await;
    until("nobody is connected", async || asker.handle.snapshot().await.unwrap().peers.is_empty().then_some(())).await;
    let _ = asker.coverage(DEMO).await;
    assert!(in_table().await >= 1);
    stop([asker]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_choose_at_the_same_moment_end_side_by_side() {
    let (boot, none, asker) = swarm(0).await;
    let first: Vec<PeerAddress> =
        boot.addresses().await.iter().filter_map(|addr| parse_peer_address(addr).ok()).collect();
    let sizes: Vec<u64> = ModelFile::open(DEMO).unwrap().manifest.layers.iter().map(|part| part.bytes).collect();
    // A quarter is kept for keys and values: room for half of the layers, and not for one more.
    let memory = (sizes.iter().take(sizes.len() / 2).sum::<u64>() + sizes[0] / 2) * 4 / 3;
    let auto = || async {
        let mut settings = Settings::passing("node-tests", first.clone());
        settings.listen = vec![parse_multiaddr("/ip4/127.0.0.1/tcp/0").unwrap()];
        settings.kad_mode = quelea_behaviours::KadMode::Server;
        settings.serve = Some(ServeSpec {
            model: DEMO.into(),
            layers: LayerChoice::Auto,
            memory: Some(memory),
            ends: ServeEnds::default(),
        });
        Node::start(settings).await.unwrap()
    };
    let (one, other) = tokio::join!(auto(), auto());
    let workers = [one, other];
    let covered = async || {
        let spans = spans(&workers);
        let side_by_side = spans == ["0..3", "3..6"] || spans == ["3..6", "0..3"];
        side_by_side.then_some(())
    };
    until("both halves are held, by one each", covered).await;
    let report =
        until("that is known", async || asker.coverage(DEMO).await.ok().filter(|report| report.missing.is_empty()))
            .await;
    assert_eq!(report.replicas, [1; 6]);
    until("they answer together", async || ask(&asker).await.ok()).await;
    stop(none.into_iter().chain(workers).chain([asker, boot])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_before_a_goodbye_changes_nothing_after_it() {
    let (boot, mut workers, asker) = swarm(2).await;
    let (gone, stays) = (workers.remove(0), workers.remove(0));
    let old = until("it has announced", async || gone.asker.own.read().unwrap().clone()).await;
    let peer = old.peer();
    // Everybody listens to the model, and has heard of both.
    until("both are found", async || plan(&asker).await.spare).await;
    let model = gone.plane.served()[0].file.id;
    until("it is heard of", async || {
        stays.handle.connect(peer, old.announcement().addrs.clone()).await.ok()?;
        stays.handle.fetch_announcement(peer).await.ok()?
    })
    .await;
    gone.shutdown(GRACE).await;
    until("its goodbye is heard", async || stays.handle.heard(model).await.left.contains(&peer).then_some(())).await;
    // Somebody else says its words again, by gossip and to those who ask.
    boot.handle.announce(old.clone(), true).await;
    // What is said later on the same lines is heard later.
    let before = stays.telemetry.events.newest();
    for text in ["one", "two", "three"] {
        until("a line is said", async || boot.handle.broadcast(text.into()).await.ok()).await;
    }
    let heard = async || {
        let events = stays.telemetry.events.after(before, &[]).events;
        let of = |event: &&Event| matches!(&event.kind, EventKind::Message { text, .. } if text == "three");
        events.iter().any(|event| of(&event)).then_some(events)
    };
    let events = until("and heard", heard).await;
    let back = |event: &Event| matches!(&event.kind, EventKind::Model { peer: said, .. } if *said == peer.to_string());
    assert!(!events.iter().any(back), "{events:?}");
    let known = stays.handle.heard(model).await;
    assert!(known.left.contains(&peer) && known.issued_ms.iter().all(|(said, _)| *said != peer));
    for _ in 0..3 {
        assert_eq!(ask(&asker).await.unwrap().hops[0].peer, stays.peer_id());
    }
    assert!(asker.handle.fetch_announcement(boot.handle.local()).await.is_err(), "it speaks for somebody else");
    stop([stays, asker, boot]).await;
}
