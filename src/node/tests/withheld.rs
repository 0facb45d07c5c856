//! Notes that wait for an audit.

use std::{path::Path, sync::atomic::Ordering};

use quelea_ledger::fraud::FraudClaim;

use super::{
    paying::{PRICE, Swarm, amount, id, priced},
    *,
};
use crate::{
    home::Home,
    inference::{
        Mischief, Stint,
        audit::{Claim, Verdict, again},
    },
    node::settings::Keep,
};

impl Swarm {
    /// Somebody else asks, who has every answer computed again and keeps its ledger in `home`, if it has one.
    async fn asked_by(mut self, home: Option<&Path>) -> Self {
        let asker = auditing(&self, home).await;
        stop([std::mem::replace(&mut self.asker, asker)]).await;
        self
    }
}

async fn auditing(swarm: &Swarm, home: Option<&Path>) -> Node {
    let first: Vec<PeerAddress> =
        swarm.boot.addresses().await.iter().filter_map(|addr| parse_peer_address(addr).ok()).collect();
    let mut settings = Settings::passing("node-tests", first.clone());
    if let Some(home) = home {
        settings.listen = vec![parse_multiaddr("/ip4/127.0.0.1/tcp/0").unwrap()];
        settings.keep = Keep::in_home(Home::new(Some(home.into())).unwrap());
    }
    settings.audit = 100;
    let asker = Node::start(settings).await.unwrap();
    asker.wait_for_bootstrap(&first).await.unwrap();
    asker
}

pub(super) async fn audits(node: &Node, outcome: &str) -> u64 {
    let text = node.telemetry.metrics.scrape();
    let line = format!(r#"quelea_audits_total{{outcome="{outcome}""#);
    let found = text.lines().find(|found| found.starts_with(&line));
    found.map_or(0, |found| found.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64)
}

async fn audited(node: &Node, outcome: &str, times: u64) {
    until("it is audited", async || (audits(node, outcome).await >= times).then_some(())).await;
}

pub(super) async fn convicted(node: &Node, peer: libp2p::PeerId) -> bool {
    let standings = node.plane.ledger().standings().await.unwrap();
    standings.iter().any(|standing| standing.peer == peer && standing.row.convicted && standing.limit == 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_not_paid_and_the_others_are() {
    for liar in [0, 1] {
        let swarm = priced(&[0, 1], PRICE).await.asked_by(None).await;
        swarm.workers[liar].plane.misbehave(Mischief::Computes(1));
        let answer = swarm.ask(swarm.request()).await.unwrap();
        let cost = answer.cost.unwrap();
        assert!(cost.stages.iter().all(|stage| stage.note.is_none()), "nothing is paid before it is known: {cost:?}");
        let each = amount(answer.prompt_ids.len(), answer.ids.len() - 1);
        swarm.account_of(1 - liar, |account| account.owed == i128::from(each)).await;
        let peer = id(&swarm.workers[liar]);
        until("the liar is known", async || convicted(&swarm.asker, peer).await.then_some(())).await;
        assert!(!convicted(&swarm.asker, id(&swarm.workers[1 - liar])).await);
        // Neither book has more than a hold that was ended by one side and will end at the other.
        let account = swarm.asker.plane.ledger().account(peer).await.unwrap().unwrap();
        assert_eq!((account.issued, account.owed), (0, 0));
        let stage = cost.stages.iter().find(|stage| stage.peer == peer.to_string()).unwrap();
        assert!(stage.credits != "0.000000", "{cost:?}");
        let theirs = swarm.account_of(liar, |_| true).await;
        assert_eq!((theirs.received, theirs.owed), (0, 0));
        swarm.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_liar_has_signed_is_kept_for_others_to_see() {
    let home = tempfile::tempdir().unwrap();
    let swarm = priced(&[0, 1], PRICE).await.asked_by(Some(home.path())).await;
    swarm.workers[1].plane.misbehave(Mischief::Computes(1));
    let answer = swarm.ask(swarm.request()).await.unwrap();
    let path = home.path().join("claims").join(format!("{}.fraud", swarm.workers[1].peer_id()));
    let kept = until("the claim is kept", async || std::fs::read(&path).ok()).await;
    let claim = FraudClaim::open(&kept).unwrap();
    assert_eq!((claim.accused, claim.finder), (id(&swarm.workers[1]), id(&swarm.asker)));
    assert_eq!(claim.tokens, [answer.prompt_ids, answer.ids].concat()[..claim.tokens.len()]);
    // Somebody else, with nothing but the file and the model.
    let file = tokio::task::spawn_blocking(|| ModelFile::open(DEMO)).await.unwrap().unwrap();
    let options = quelea_engine::StageOptions::default();
    let of = &claim.committed;
    let said = Claim { span: of.span, rows: 0..of.rows, in_root: of.in_root, out_root: of.out_root };
    let verdicts = again(&file, of.profile, options, std::slice::from_ref(&said), &claim.tokens, |_| {}).await.unwrap();
    assert_eq!(verdicts, [Verdict::Wrong]);
    // With other tokens it says nothing against anybody.
    let others: Vec<u32> = claim.tokens.iter().rev().copied().collect();
    let verdicts = again(&file, of.profile, options, &[said], &others, |_| {}).await.unwrap();
    assert_eq!(verdicts, [Verdict::GivenOthers]);
    assert_eq!(std::fs::read_dir(home.path().join("claims")).unwrap().count(), 1);
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_stages_are_paid_once_they_are_found_right() {
    let swarm = priced(&[0, 1], PRICE).await.asked_by(None).await;
    let answer = swarm.ask(swarm.request()).await.unwrap();
    let each = amount(answer.prompt_ids.len(), answer.ids.len() - 1);
    audited(&swarm.asker, "right", 2).await;
    for worker in [0, 1] {
        let account = swarm.account_of(worker, |account| account.owed == i128::from(each) && account.held == 0).await;
        assert_eq!(account.received, each);
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_found_too_late_is_paid_and_convicted() {
    let swarm = priced(&[0, 1], PRICE).await.asked_by(None).await;
    swarm.workers[1].plane.misbehave(Mischief::Computes(1));
    swarm.asker.plane.stint.store(Stint::InTime as u8, Ordering::Relaxed);
    let answer = swarm.ask(swarm.request()).await.unwrap();
    let each = amount(answer.prompt_ids.len(), answer.ids.len() - 1);
    audited(&swarm.asker, "late", 1).await;
    for worker in [0, 1] {
        swarm.account_of(worker, |account| account.owed == i128::from(each)).await;
    }
    let peer = id(&swarm.workers[1]);
    until("the liar is known", async || convicted(&swarm.asker, peer).await.then_some(())).await;
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_when_a_node_stops_is_paid_once_by_the_next_process_and_no_more_than_a_few_wait() {
    /// Answers that may wait.
    const PLACES: u64 = 4;
    let home = tempfile::tempdir().unwrap();
    let swarm = priced(&[0, 1], PRICE).await.asked_by(Some(home.path())).await;
    swarm.asker.plane.stint.store(Stint::Verdicts as u8, Ordering::Relaxed);
    let (mut waits, mut paid) = (0, 0);
    for n in 0..=PLACES {
        let answer = swarm.ask(swarm.request()).await.unwrap();
        let cost = answer.cost.unwrap();
        let all = cost.micro_credits / 2;
        assert_eq!(cost.stages.iter().all(|stage| stage.note.is_some()), n == PLACES, "{n}: {cost:?}");
        let of = if n < PLACES { &mut waits } else { &mut paid };
        *of += all;
    }
    assert_eq!(audits(&swarm.asker, "skipped").await, 1);
    for worker in [0, 1] {
        swarm.account_of(worker, |account| account.owed == i128::from(paid)).await;
    }
    // One of the workers is found to lie before the node stops: nothing more is for it, in the next process either.
    let liar = id(&swarm.workers[1]);
    swarm.asker.plane.ledger().convict(liar).await;
    until("it is known", async || convicted(&swarm.asker, liar).await.then_some(())).await;
    let Swarm { boot, workers, asker } = swarm;
    stop([asker]).await;
    // Somebody has to ask, for the swarm to be whole, while the node is stopped.
    let mut swarm = Swarm { boot, workers, asker: node(&[], None).await };
    for _ in 0..2 {
        let asker = auditing(&swarm, Some(home.path())).await;
        let idle = std::mem::replace(&mut swarm.asker, asker);
        for worker in &swarm.workers {
            let addresses = worker.addresses().await;
            let addresses = addresses.iter().filter_map(|addr| Some(parse_peer_address(addr).ok()?.addr)).collect();
            swarm.asker.handle.connect(id(worker), addresses).await.unwrap();
        }
        let all = paid + waits;
        swarm.account_of(0, |account| account.owed == i128::from(all) && account.held == 0).await;
        let ledger = swarm.asker.plane.ledger();
        ledger.ready(liar, tokio::time::Instant::now() + PATIENCE).await.unwrap();
        for (worker, issued) in swarm.workers.iter().zip([all, paid]) {
            assert_eq!(ledger.account(id(worker)).await.unwrap().unwrap().issued, issued);
        }
        stop([std::mem::replace(&mut swarm.asker, idle)]).await;
    }
    swarm.stop().await;
}
