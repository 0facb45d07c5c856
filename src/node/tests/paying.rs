//! Workers that ask a price, and those who pay it or do not.

use std::sync::atomic::Ordering;

use libp2p::PeerId;
use quelea_ledger::{book::Account, receipt};
use quelea_wire::{Credits, Price, SpanRange, WorkedRows};

use super::*;
use crate::inference::{Cost, Route, Speculate, Stint};

/// Micro-credits for 1,000 layer-rows, so that a row through one layer is one of them.
pub(super) const PRICE: Price = Price { decode: 1000, prefill: 100 };

/// Tokens of an answer: more than a stage works for in advance.
const TOKENS: u32 = 48;

/// Layers of each half.
const LAYERS: u16 = 3;

pub(super) struct Swarm {
    pub(super) boot: Node,
    pub(super) workers: Vec<Node>,
    pub(super) asker: Node,
}

/// Workers for the first and the second half of the layers, as `halves` says, all of which ask `price`.
pub(super) async fn priced(halves: &[u16], price: Price) -> Swarm {
    let boot = node(&[], None).await;
    let first: Vec<PeerAddress> =
        boot.addresses().await.iter().filter_map(|addr| parse_peer_address(addr).ok()).collect();
    let mut workers = Vec::new();
    for half in halves {
        let span = SpanRange::new(half * LAYERS, (half + 1) * LAYERS).unwrap();
        let layers = LayerChoice::Exactly(span);
        let mut settings = Settings::passing("node-tests", first.clone());
        settings.listen = vec![parse_multiaddr("/ip4/127.0.0.1/tcp/0").unwrap()];
        settings.kad_mode = quelea_behaviours::KadMode::Server;
        settings.serve =
            Some(ServeSpec { model: DEMO.into(), layers, memory: Some(MEMORY), ends: ServeEnds::default() });
        settings.price = price;
        workers.push(Node::start(settings).await.unwrap());
    }
    let asker = Node::start(Settings::passing("node-tests", first.clone())).await.unwrap();
    asker.wait_for_bootstrap(&first).await.unwrap();
    let all = async || {
        let report = asker.coverage(DEMO).await.ok()?;
        (report.replicas.iter().sum::<u64>() == u64::from(LAYERS) * workers.len() as u64).then_some(())
    };
    until("all workers are known", all).await;
    Swarm { boot, workers, asker }
}

pub(super) fn id(node: &Node) -> PeerId {
    node.peer_id().parse().unwrap()
}

impl Swarm {
    pub(super) fn request(&self) -> InferRequest {
        let mut request = InferRequest::new(DEMO, "Who are you?");
        (request.max_tokens, request.ignore_eos, request.route) = (TOKENS, true, Route::Swarm);
        // A machine that is busy with other tests is no reason to give a stage up.
        (request.step_timeout_ms, request.receipt) = (60_000, true);
        request
    }

    pub(super) async fn ask(&self, request: InferRequest) -> Result<Summary, InferError> {
        self.asker.answer(request, |_| {}).await
    }

    /// What a worker knows of who asks, once it is as `is` says.
    pub(super) async fn account_of(&self, worker: usize, is: impl Fn(&Account) -> bool) -> Account {
        let ledger = self.workers[worker].plane.ledger();
        let look = async || ledger.account(id(&self.asker)).await.unwrap().filter(|account| is(account));
        until("the account is as it is to be", look).await
    }

    pub(super) async fn stop(self) {
        stop(self.workers.into_iter().chain([self.asker, self.boot])).await;
    }
}

/// What a stage gets for an answer of a prompt of so many rows, of which none are kept.
pub(super) fn amount(prompt: usize, decode: usize) -> u64 {
    let rows = WorkedRows { prefill: prompt as u64, decode: decode as u64 };
    PRICE.amount(LAYERS, rows).unwrap()
}

fn of(cost: &Cost, worker: &Node) -> u64 {
    let stage = cost.stages.iter().find(|stage| stage.peer == worker.peer_id()).unwrap();
    assert!(stage.note.is_some(), "{cost:?}");
    stage.credits.parse::<Credits>().unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_paid_for_its_rows_and_both_sides_say_so() {
    let swarm = priced(&[0, 1], PRICE).await;
    let mut request = swarm.request();
    request.route = Route::Local;
    let whole = swarm.ask(request).await.unwrap();
    assert!(whole.cost.is_none() && whole.receipt.is_none());

    let answer = swarm.ask(swarm.request()).await.unwrap();
    assert_eq!(answer.ids, whole.ids);
    let each = amount(answer.prompt_ids.len(), answer.ids.len() - 1);
    let cost = answer.cost.unwrap();
    assert_eq!((cost.stages.len(), cost.micro_credits), (2, 2 * each), "{cost:?}");
    for (n, worker) in swarm.workers.iter().enumerate() {
        assert_eq!(of(&cost, worker), each);
        let account = swarm.account_of(n, |account| account.owed == i128::from(each)).await;
        assert_eq!(account.received, each);
    }
    let report = receipt::verify(&hex::decode(answer.receipt.unwrap()).unwrap()).unwrap();
    assert!(report.holds() && report.remarks.is_empty(), "{report:?}");
    assert_eq!((report.total, report.links, report.parts.len()), (cost.micro_credits, 1, 2));

    // With guesses more rows are computed than stay, and all of them are paid; the prompt's beginning is kept by now.
    let mut request = swarm.request();
    request.speculate = Speculate::Tokens(7);
    let again = swarm.ask(request).await.unwrap();
    assert_eq!(again.ids, whole.ids);
    let cost = again.cost.unwrap();
    let rows = cost.stages[0].decode_rows;
    assert!(rows >= again.ids.len() as u64 - 1, "{cost:?}");
    for (n, stage) in cost.stages.iter().enumerate() {
        let rows = WorkedRows { prefill: stage.prefill_rows, decode: rows };
        assert_eq!(stage.credits, Credits(PRICE.amount(LAYERS, rows).unwrap()).to_string());
        let sum = each + of(&cost, &swarm.workers[n]);
        swarm.account_of(n, |account| account.owed == i128::from(sum)).await;
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_no_vouchers_is_stopped_and_told_why() {
    let price = Price { decode: 1000, prefill: 0 };
    let swarm = priced(&[0, 1], price).await;
    swarm.asker.plane.stint.store(Stint::Vouchers as u8, Ordering::Relaxed);
    let error = swarm.ask(swarm.request()).await.unwrap_err();
    assert_eq!(error.error_code(), ErrorCode::NotCovered, "{error}");
    let most = 2 * u64::from(quelea_shard::commitment::EVERY) * u64::from(LAYERS);
    assert!(error.message.contains(&Credits(most).to_string()), "{error}");
    // What came of it is paid.
    swarm.account_of(0, |account| account.owed == i128::from(most)).await;
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_without_a_note_leaves_a_voucher() {
    let swarm = priced(&[0, 1], PRICE).await;
    swarm.asker.plane.stint.store(Stint::Notes as u8, Ordering::Relaxed);
    let answer = swarm.ask(swarm.request()).await.unwrap();
    assert!(answer.cost.unwrap().stages.iter().all(|stage| stage.note.is_none()));
    let report = receipt::verify(&hex::decode(answer.receipt.unwrap()).unwrap()).unwrap();
    assert!(report.holds() && report.remarks.len() == 2, "{report:?}");
    // All but what a stage works for in advance.
    let all = amount(answer.prompt_ids.len(), answer.ids.len() - 1);
    let least = all - amount(quelea_engine::PREFILL_CHUNK, 2 * quelea_shard::commitment::EVERY as usize);
    for (worker, part) in swarm.workers.iter().zip(&report.parts) {
        let ledger = worker.plane.ledger();
        let kept = async || {
            let hold =
                ledger.opened(id(&swarm.asker), part.hold, tokio::time::Instant::now() + PATIENCE).await.unwrap();
            (hold.vouched >= least.max(1) && hold.vouched <= part.work.amount).then_some(())
        };
        until("the vouchers are kept", kept).await;
        assert_eq!(ledger.account(id(&swarm.asker)).await.unwrap().unwrap().received, 0, "no note has come");
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_credit_is_refused_and_another_is_asked() {
    let swarm = priced(&[0, 1], PRICE).await;
    swarm.workers[1].plane.ledger().limit(id(&swarm.asker), Some(0)).await.unwrap();
    let error = swarm.ask(swarm.request()).await.unwrap_err();
    assert_eq!(error.error_code(), ErrorCode::NoCredit, "{error}");
    assert!(error.message.contains(swarm.workers[1].peer_id().as_str()), "{error}");
    let nothing = |account: &Account| account.owed == 0 && account.held == 0;
    swarm.account_of(0, nothing).await;
    swarm.stop().await;

    let swarm = priced(&[0, 1, 1], PRICE).await;
    swarm.workers[1].plane.ledger().limit(id(&swarm.asker), Some(0)).await.unwrap();
    let answer = swarm.ask(swarm.request()).await.unwrap();
    let each = amount(answer.prompt_ids.len(), answer.ids.len() - 1);
    assert_eq!(answer.cost.unwrap().micro_credits, 2 * each, "paid once, however often it was tried");
    for n in [0, 2] {
        swarm.account_of(n, |account| account.owed == i128::from(each) && account.held == 0).await;
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_costs_too_much_is_not_opened() {
    let swarm = priced(&[0, 1], PRICE).await;
    let mut request = swarm.request();
    request.max_price = Some(2 * u64::from(TOKENS * u32::from(LAYERS)));
    let error = swarm.ask(request.clone()).await.unwrap_err();
    assert_eq!(error.error_code(), ErrorCode::PriceTooHigh, "{error}");
    for worker in &swarm.workers {
        assert!(worker.plane.ledger().account(id(&swarm.asker)).await.unwrap().is_none());
    }
    request.max_price = Some(1_000_000);
    assert!(swarm.ask(request).await.is_ok());
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_free_costs_nothing_and_touches_no_ledger() {
    let swarm = priced(&[0, 1], Price::FREE).await;
    let answer = swarm.ask(swarm.request()).await.unwrap();
    assert!(answer.cost.is_none());
    let report = receipt::verify(&hex::decode(answer.receipt.unwrap()).unwrap()).unwrap();
    assert!(report.holds() && report.total == 0 && report.links == 1, "{report:?}");
    for node in swarm.workers.iter().chain([&swarm.asker]) {
        assert!(node.plane.ledger().standings().await.unwrap().is_empty());
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_over_is_paid_and_who_was_lost_gets_what_it_gave() {
    /// More than wait for whoever asked while a stage is stopped.
    const MANY: u32 = 300;
    let swarm = priced(&[0, 1, 1], PRICE).await;
    let mut request = swarm.request();
    request.max_tokens = 4;
    let hops = swarm.ask(request.clone()).await.unwrap().hops;
    request.max_tokens = MANY;
    let mut events = swarm.asker.ask(request);
    let Swarm { boot, mut workers, asker } = swarm;
    let used = workers.iter().position(|worker| worker.peer_id() == hops.last().unwrap().peer).unwrap();
    let lost = workers.remove(used);
    let (lost_id, mut lost) = (lost.peer_id(), Some(lost));
    let (mut seen, mut answer) = (0, None);
    while let Some(event) = events.recv().await {
        seen += 1;
        match event {
            // It is gone before more events are taken, and the answer does not end without that.
            _ if seen == 40 => lost.take().unwrap().shutdown(Duration::ZERO).await,
            InferEvent::Done { summary } => answer = Some(summary),
            InferEvent::Error { error } => panic!("{error}"),
            _ => {}
        }
    }
    let answer = answer.unwrap();
    assert_eq!(answer.recoveries.len(), 1, "{:?}", answer.recoveries);
    let cost = answer.cost.unwrap();
    assert_eq!(cost.stages.len(), 3, "{cost:?}");
    let credits = |peer: &str| {
        let stage = cost.stages.iter().find(|stage| stage.peer == peer).unwrap();
        stage.credits.parse::<Credits>().unwrap().0
    };
    // The first stage computed every row once; who came in as many, most of them as a prompt's; who was lost a part.
    let all = amount(answer.prompt_ids.len() - answer.cached_tokens, answer.ids.len() - 1);
    assert!(workers.iter().any(|worker| credits(&worker.peer_id()) == all), "{all}: {cost:?}");
    assert!(credits(&lost_id) > 0 && credits(&lost_id) < all, "{cost:?}");
    let report = receipt::verify(&hex::decode(answer.receipt.unwrap()).unwrap()).unwrap();
    assert!(report.holds(), "{report:?}");
    assert_eq!((report.total, report.parts.len()), (cost.micro_credits, 3));
    stop(workers.into_iter().chain([asker, boot])).await;
}
