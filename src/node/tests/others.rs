//! Audits by others, where who asks has not got the model's layers.

use std::sync::atomic::Ordering;

use libp2p::PeerId;
use quelea_wire::{Price, SpanRange};

use super::{
    paying::id,
    withheld::{audits, convicted},
    *,
};
use crate::inference::{InferEvent, Mischief, Objective, RequestProfile, Route, Speculate, Stint};

/// Layers of three stages, and of two.
const THIRDS: [(u16, u16); 3] = [(0, 2), (2, 4), (4, 6)];
const HALVES: [(u16, u16); 2] = [(0, 3), (3, 6)];

/// So little that no stage minds when nobody signs vouchers, and a whole answer still costs something.
const LITTLE: Price = Price { decode: 20, prefill: 20 };

/// Tokens of an answer.
const TOKENS: u32 = 32;

struct Swarm {
    boot: Node,
    workers: Vec<Node>,
    asker: Node,
}

/// Workers for these layers, and one that asks, has every answer audited, and has not got the layers.
async fn swarm_of(spans: &[(u16, u16)], price: Price, audit_price: u16) -> Swarm {
    let boot = node(&[], None).await;
    let first: Vec<PeerAddress> =
        boot.addresses().await.iter().filter_map(|addr| parse_peer_address(addr).ok()).collect();
    let mut workers = Vec::new();
    for (n, (start, end)) in spans.iter().enumerate() {
        let layers = LayerChoice::Exactly(SpanRange::new(*start, *end).unwrap());
        let mut settings = Settings::passing("node-tests", first.clone());
        settings.listen = vec![parse_multiaddr("/ip4/127.0.0.1/tcp/0").unwrap()];
        settings.kad_mode = quelea_behaviours::KadMode::Server;
        settings.serve = Some(ServeSpec { model: DEMO.into(), layers, memory: Some(MEMORY), ends: ServeEnds::Always });
        // Who is there besides is a little dearer, so that it is known who has part in an answer.
        let dearer = |price: u64| if spans[..n].contains(&(*start, *end)) { price + price.div_ceil(4) } else { price };
        settings.price = Price { decode: dearer(price.decode), prefill: dearer(price.prefill) };
        workers.push(Node::start(settings).await.unwrap());
    }
    let mut settings = Settings::passing("node-tests", first.clone());
    (settings.audit, settings.audit_price) = (100, audit_price);
    let asker = Node::start(settings).await.unwrap();
    asker.plane.lacks_layers.store(true, Ordering::Relaxed);
    asker.wait_for_bootstrap(&first).await.unwrap();
    let all: u64 = spans.iter().map(|(start, end)| u64::from(end - start)).sum();
    let known = async || {
        let report = asker.coverage(DEMO).await.ok()?;
        (report.replicas.iter().sum::<u64>() == all).then_some(())
    };
    until("all workers are known", known).await;
    Swarm { boot, workers, asker }
}

impl Swarm {
    fn request(&self) -> InferRequest {
        let mut request = InferRequest::new(DEMO, "Who are you? And what is a relay? ".repeat(3));
        (request.max_tokens, request.ignore_eos, request.route) = (TOKENS, true, Route::Swarm);
        (request.step_timeout_ms, request.objective) = (60_000, Objective::Price);
        request
    }

    /// One of whose rows none are there from before, so that the first ones are computed and signed for.
    fn other_request(&self) -> InferRequest {
        let request = self.request();
        InferRequest { prompt: format!("{:x} {}", rand::random::<u32>(), request.prompt), ..request }
    }

    async fn ask(&self, request: InferRequest) -> Summary {
        self.asker.answer(request, |_| {}).await.unwrap()
    }

    /// How often an audit ended so.
    async fn counted(&self, outcome: &str) -> u64 {
        audits(&self.asker, outcome).await
    }

    /// How often none was made for this reason.
    fn skipped(&self, reason: &str) -> u64 {
        let text = self.asker.telemetry.metrics.scrape();
        let reason = format!(r#"reason="{reason}""#);
        let of = |line: &&str| line.starts_with("quelea_audits_skipped_total{") && line.contains(&reason);
        let found = text.lines().find(of);
        found.map_or(0, |found| found.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64)
    }

    /// All audits that have come to an end.
    async fn ended(&self) -> u64 {
        let mut all = 0;
        for outcome in ["right", "given_others", "undecided", "against", "skipped", "failed"] {
            all += self.counted(outcome).await;
        }
        all
    }

    /// Asks, and waits for the audit of what came.
    async fn audited(&self, request: InferRequest) -> Summary {
        let before = self.ended().await;
        let answer = self.ask(request).await;
        until("it is audited", async || (self.ended().await > before).then_some(())).await;
        answer
    }

    fn suspected(&self) -> Vec<PeerId> {
        let peers = self.workers.iter().map(id);
        peers.filter(|peer| self.asker.plane.experience.suspected(peer).is_some()).collect()
    }

    /// Everything that was ever promised to a worker.
    async fn issued(&self, worker: usize) -> u64 {
        let account = self.asker.plane.ledger().account(id(&self.workers[worker])).await.unwrap();
        account.map_or(0, |account| account.issued)
    }

    /// What a worker was promised, once no hold of it is open.
    async fn settled(&self, worker: usize) -> u64 {
        let ledger = self.workers[worker].plane.ledger();
        let look = async || match ledger.account(id(&self.asker)).await.unwrap() {
            Some(account) => (account.held == 0).then_some(account.received),
            None => Some(0),
        };
        until("all holds have ended", look).await
    }

    async fn stop(self) {
        stop(self.workers.into_iter().chain([self.asker, self.boot])).await;
    }
}

/// What an answer says that a worker gets.
fn due(answer: &Summary, worker: &Node) -> u64 {
    let stages = &answer.cost.as_ref().unwrap().stages;
    let stage = stages.iter().find(|stage| stage.peer == worker.peer_id());
    stage.map_or(0, |stage| stage.credits.parse::<quelea_wire::Credits>().unwrap().0)
}

/// Tries again with other nodes where who was to have part in an answer had none: who answers late is left out.
async fn once(what: &str, mut attempt: impl AsyncFnMut() -> bool) {
    for _ in 0..20 {
        if attempt().await {
            return;
        }
    }
    panic!("never in twenty times: {what}");
}

/// Asks until somebody is suspect; what the worker at `liar` had got before, unless it has no part in an answer.
async fn caught(swarm: &Swarm, liar: usize) -> Option<u64> {
    swarm.workers[liar].plane.misbehave(Mischief::Computes(1));
    // What a stage gets that is not suspect has nothing to do with vouchers.
    swarm.asker.plane.stint.store(Stint::Vouchers as u8, Ordering::Relaxed);
    loop {
        let before = swarm.settled(liar).await;
        let answer = swarm.audited(swarm.other_request()).await;
        let due = due(&answer, &swarm.workers[liar]);
        if due == 0 {
            return None;
        }
        if !swarm.suspected().is_empty() {
            return Some(before);
        }
        // Another stage was drawn, and the rows that went into it may have been computed by this one, too.
        assert!(swarm.settled(liar).await >= before + due);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_anywhere_in_the_chain_is_suspect_once_two_others_contradict_it() {
    for (at, of) in THIRDS.into_iter().enumerate() {
        once("the liar has part in an answer", async || {
            let swarm = swarm_of(&[&THIRDS[..], &[of, of]].concat(), LITTLE, 200).await;
            let found = tokio::time::timeout(PATIENCE, caught(&swarm, at)).await.expect("the liar is found");
            if let Some(before) = found {
                let peer = id(&swarm.workers[at]);
                assert_eq!((swarm.suspected(), swarm.counted("against").await), (vec![peer], 1));
                assert!(!convicted(&swarm.asker, peer).await, "nobody is convicted by what others say");
                // It is not in the next chain, and has been paid what vouchers say, which is nothing.
                let answer = swarm.audited(swarm.request()).await;
                assert!(answer.hops.iter().all(|hop| hop.peer != peer.to_string()), "{:?}", answer.hops);
                assert_eq!((swarm.settled(at).await, swarm.suspected()), (before, vec![peer]));
            }
            swarm.stop().await;
            found.is_some()
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_stages_are_right_and_paid() {
    // What stages have kept is computed again: such an answer costs less than its audit.
    let swarm = swarm_of(&[&THIRDS[..], &THIRDS[..]].concat(), LITTLE, 1000).await;
    let mut answers = Vec::new();
    for n in 0..6 {
        let mut request = swarm.request();
        // The same beginning again, which stages have kept; guesses that are taken back; ends that are computed elsewhere.
        request.speculate = if n == 2 { Speculate::Tokens(7) } else { Speculate::Off };
        request.thin = (n > 3).then_some(true);
        request.profile = if n == 3 { RequestProfile::ExactBf16 } else { RequestProfile::Own };
        answers.push(swarm.audited(request).await);
    }
    assert!(answers.iter().any(|answer| answer.cached_tokens > 0) && answers[5].thin);
    // Rounded between layers it may be another one.
    assert!(answers.iter().enumerate().all(|(n, answer)| n == 3 || answer.ids == answers[0].ids));
    assert_eq!((swarm.counted("right").await, swarm.suspected()), (6, vec![]));
    for (n, worker) in swarm.workers.iter().enumerate() {
        let all: u64 = answers.iter().map(|answer| due(answer, worker)).sum();
        until("it is paid", async || (swarm.issued(n).await >= all).then_some(())).await;
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_stage_that_takes_tokens_is_audited_as_well() {
    once("the liar has part in the answer", async || {
        let swarm = swarm_of(&[HALVES[0], HALVES[1], HALVES[0], HALVES[0]], LITTLE, 200).await;
        swarm.workers[0].plane.misbehave(Mischief::Computes(1));
        let answer = swarm.audited(InferRequest { thin: Some(true), ..swarm.request() }).await;
        let used = answer.hops[0].peer == swarm.workers[0].peer_id();
        if used {
            // The last one gives logits, signs for nothing, and is never drawn.
            assert!(answer.thin && answer.hops[1].committed.is_none());
            assert_eq!((swarm.counted("against").await, swarm.suspected()), (1, vec![id(&swarm.workers[0])]));
        }
        swarm.stop().await;
        used
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_auditor_is_suspect_and_no_honest_stage_is() {
    once("the liar has no part in the answers", async || {
        let swarm = swarm_of(&[(0, 6), (0, 6), (0, 6)], LITTLE, 300).await;
        swarm.workers[1].plane.misbehave(Mischief::Computes(1));
        let found = async {
            let mut honest = true;
            while honest && swarm.suspected().is_empty() {
                honest = swarm.audited(swarm.other_request()).await.hops[0].peer != swarm.workers[1].peer_id();
            }
            honest
        };
        let honest = tokio::time::timeout(PATIENCE, found).await.expect("the auditor is found");
        if honest {
            assert_eq!(swarm.suspected(), [id(&swarm.workers[1])]);
            assert_eq!(swarm.counted("against").await + swarm.counted("undecided").await, 0);
        }
        swarm.stop().await;
        honest
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn auditors_without_a_word_that_counts_have_none() {
    for mischief in [Mischief::Silent, Mischief::Gives(1), Mischief::Forges] {
        let swarm = swarm_of(&[(0, 6), (0, 6)], LITTLE, 200).await;
        let first = |event: &InferEvent| {
            // Whoever has no part in the answer.
            if let InferEvent::Route { hops, .. } = event {
                let others = swarm.workers.iter().filter(|worker| worker.peer_id() != hops[0].peer);
                others.for_each(|worker| worker.plane.misbehave(mischief));
            }
        };
        swarm.asker.answer(swarm.request(), first).await.unwrap();
        until("it is audited", async || (swarm.ended().await == 1).then_some(())).await;
        let reasons = (swarm.skipped("no_answer"), swarm.counted("right").await, swarm.suspected());
        assert_eq!(reasons, (1, 0, vec![]), "{mischief:?}");
        swarm.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_three_differ_nobody_is_suspect() {
    let swarm = swarm_of(&[(0, 6), (0, 6), (0, 6)], LITTLE, 300).await;
    for (n, row) in [(0, 1), (1, 2)] {
        swarm.workers[n].plane.misbehave(Mischief::Computes(row));
    }
    swarm.audited(swarm.request()).await;
    assert_eq!((swarm.counted("undecided").await, swarm.suspected()), (1, vec![]));
    swarm.stop().await;
}

/// One answer whose first stage takes no session any more once it has its part; whether it was asked to compute rows again.
async fn withheld() -> bool {
    let swarm = swarm_of(&[HALVES[0], HALVES[1], HALVES[1]], LITTLE, 200).await;
    let first = |event: &InferEvent| {
        if matches!(event, InferEvent::Text { .. }) {
            swarm.workers[0].plane.drain();
        }
    };
    let answer = swarm.asker.answer(swarm.request(), first).await.unwrap();
    until("it is not audited", async || (swarm.counted("skipped").await == 1).then_some(())).await;
    for (n, worker) in swarm.workers.iter().enumerate() {
        let due = due(&answer, worker);
        until("it is paid", async || (swarm.issued(n).await == due).then_some(())).await;
    }
    assert!(swarm.suspected().is_empty());
    let withheld = swarm.skipped("no_rows");
    // Or the first stage itself was drawn.
    assert_eq!(swarm.skipped("no_auditor") + withheld, 1);
    swarm.stop().await;
    withheld == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_compute_rows_again_keeps_an_audit_away_and_is_nobodys_proof() {
    once("the second stage is drawn", withheld).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_can_be_asked_or_paid_notes_are_signed() {
    for (spans, audit_price, reason) in
        [(vec![(0, 3), (3, 6)], 200, "no_auditor"), (vec![(0, 6), (0, 6)], 0, "price"), (vec![(0, 6), (0, 6)], 200, "")]
    {
        let price = Price { decode: 1000, prefill: 1000 };
        let swarm = swarm_of(&spans, price, audit_price).await;
        let answer = swarm.audited(swarm.request()).await;
        let (mut promised, mut said) = (0, 0);
        for (n, worker) in swarm.workers.iter().enumerate() {
            let due = due(&answer, worker);
            until("it is paid", async || (swarm.issued(n).await >= due).then_some(())).await;
            (promised, said) = (promised + swarm.issued(n).await, said + due);
        }
        if reason.is_empty() {
            // Only the auditor has had more, and no more than may be.
            assert!(promised > said && promised <= said * 3, "{promised} {said}");
            assert_eq!(swarm.counted("right").await, 1);
        } else {
            assert_eq!((promised, swarm.skipped(reason)), (said, 1), "{reason}");
        }
        swarm.stop().await;
    }
}
