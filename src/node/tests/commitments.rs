//! Stages that sign for what they compute, and such as do it wrongly.

use super::*;
use crate::inference::{HopReport, Mischief, Route, RouteHop, Speculate};

/// Layers of the first and of the second stage.
const HALVES: [(u16, u16); 2] = [(0, 3), (3, 6)];

/// Tokens of an answer: enough that all stages sign several times.
const TOKENS: u32 = 48;

pub(super) struct Swarm {
    boot: Node,
    pub(super) workers: Vec<Node>,
    pub(super) asker: Node,
}

/// Workers for both [`HALVES`] in this order, and more for some of them; all are known to who asks.
pub(super) async fn halves(more: &[usize]) -> Swarm {
    let boot = node(&[], None).await;
    let first: Vec<PeerAddress> =
        boot.addresses().await.iter().filter_map(|addr| parse_peer_address(addr).ok()).collect();
    let mut workers = Vec::new();
    for half in [0, 1].iter().chain(more) {
        let (start, end) = HALVES[*half];
        let span = quelea_wire::SpanRange::new(start, end).unwrap();
        workers.push(node(&first, Some(LayerChoice::Exactly(span))).await);
    }
    let asker = Node::start(Settings::passing("node-tests", first.clone())).await.unwrap();
    asker.wait_for_bootstrap(&first).await.unwrap();
    let all = async || {
        let report = asker.coverage(DEMO).await.ok()?;
        (report.replicas.iter().sum::<u64>() == 3 * workers.len() as u64).then_some(())
    };
    until("all workers are known", all).await;
    Swarm { boot, workers, asker }
}

impl Swarm {
    /// Somebody else asks, who has every answer computed again.
    pub(super) async fn audit_all(&mut self) {
        let first: Vec<PeerAddress> =
            self.boot.addresses().await.iter().filter_map(|addr| parse_peer_address(addr).ok()).collect();
        let mut settings = Settings::passing("node-tests", first.clone());
        settings.audit = 100;
        let asker = Node::start(settings).await.unwrap();
        asker.wait_for_bootstrap(&first).await.unwrap();
        stop([std::mem::replace(&mut self.asker, asker)]).await;
    }

    pub(super) fn request(&self, prompt: &str) -> InferRequest {
        let mut request = InferRequest::new(DEMO, prompt);
        (request.max_tokens, request.ignore_eos, request.route) = (TOKENS, true, Route::Swarm);
        request
    }

    pub(super) async fn ask(&self, prompt: &str) -> Result<Summary, InferError> {
        self.asker.answer(self.request(prompt), |_| {}).await
    }

    async fn unsplit(&self, prompt: &str) -> Summary {
        let mut request = self.request(prompt);
        request.route = Route::Local;
        self.asker.answer(request, |_| {}).await.unwrap()
    }

    /// Which of `workers` is used, and which not.
    pub(super) async fn in_use(&self, one: usize, other: usize) -> (usize, usize) {
        let hops = self.ask("Who are you?").await.unwrap().hops;
        let used = |n: usize| hops.iter().any(|hop| hop.peer == self.workers[n].peer_id());
        if used(one) { (one, other) } else { (other, one) }
    }

    async fn count(&self, outcome: &str) -> u64 {
        let text = self.asker.telemetry.metrics.scrape();
        let line = format!(r#"quelea_commitments_total{{outcome="{outcome}""#);
        let found = text.lines().find(|found| found.starts_with(&line));
        found.map_or(0, |found| found.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64)
    }

    pub(super) async fn stop(self) {
        stop(self.workers.into_iter().chain([self.asker, self.boot])).await;
    }
}

/// All stages have signed for all rows, and what one gave the next one took.
fn fit(hops: &[HopReport], rows: usize) {
    let of = |hop: &HopReport| hop.committed.clone().unwrap_or_else(|| panic!("{hop:?}"));
    for hop in hops {
        assert_eq!(of(hop).rows as usize, rows, "{hop:?}");
    }
    for pair in hops.windows(2) {
        assert_eq!(of(&pair[0]).out_root, of(&pair[1]).in_root);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn honest_stages_sign_for_every_row() {
    let swarm = halves(&[]).await;
    for prompt in ["Who are you?", "one two three one two three one two three one", "Who are you? And what is a relay?"]
    {
        let whole = swarm.unsplit(prompt).await;
        for speculate in [Speculate::Off, Speculate::Auto, Speculate::Tokens(7)] {
            let mut request = swarm.request(prompt);
            request.speculate = speculate;
            let answer = swarm.asker.answer(request, |_| {}).await.unwrap();
            assert_eq!(answer.ids, whole.ids);
            // Of rows that were taken over nobody signs; the position is the same.
            let rows = answer.hops[0].committed.as_ref().unwrap().rows as usize;
            assert!(rows >= answer.prompt_ids.len() + answer.ids.len() - 1, "{speculate:?}: {rows}");
            fit(&answer.hops, rows);
        }
    }
    for fault in ["invalid", "lie", "differ", "withheld"] {
        assert_eq!(swarm.count(fault).await, 0, "{fault}");
    }
    swarm.stop().await;
}

/// A worker does wrong and nobody could take its place: the error names all of `named`.
async fn ends_in(worker: usize, mischief: Mischief, code: ErrorCode, named: &[usize], counted: &str) {
    let swarm = halves(&[]).await;
    swarm.workers[worker].plane.misbehave(mischief);
    let error = swarm.ask("Who are you?").await.unwrap_err();
    assert_eq!(error.error_code(), code, "{mischief:?}: {error}");
    for n in 0..2 {
        let named_here = error.message.contains(swarm.workers[n].peer_id().as_str());
        assert_eq!(named_here, named.contains(&n), "{mischief:?}: {error}");
    }
    assert!(swarm.count(counted).await > 0, "{mischief:?}");
    swarm.stop().await;
}

/// The row in whose place something else comes, of the answer's; and the prompt's last, of which the first token is made.
async fn rows_that_matter() -> [u32; 2] {
    let asker = node(&[], None).await;
    let mut request = InferRequest::new(DEMO, "Who are you?");
    (request.max_tokens, request.route) = (1, Route::Local);
    let prompt = asker.answer(request, |_| {}).await.unwrap().prompt_ids.len();
    stop([asker]).await;
    [u32::try_from(prompt).unwrap() + 20, u32::try_from(prompt).unwrap() - 1]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_gives_on_what_it_does_not_sign_for_is_found() {
    for row in rows_that_matter().await {
        ends_in(0, Mischief::Gives(row), ErrorCode::RootsDiffer, &[0, 1], "differ").await;
        ends_in(1, Mischief::Gives(row), ErrorCode::RootsDiffer, &[1], "lie").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_signs_for_what_it_does_not_give_on_is_found() {
    for row in rows_that_matter().await {
        ends_in(0, Mischief::Signs(row), ErrorCode::RootsDiffer, &[0, 1], "differ").await;
        ends_in(1, Mischief::Signs(row), ErrorCode::RootsDiffer, &[1], "lie").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_that_are_worth_nothing_end_a_session_that_nobody_can_go_on_with() {
    for worker in [0, 1] {
        ends_in(worker, Mischief::Forges, ErrorCode::BadCommitment, &[worker], "invalid").await;
        ends_in(worker, Mischief::OtherSession, ErrorCode::BadCommitment, &[worker], "invalid").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_takes_the_place_of_who_forges() {
    for half in [0, 1] {
        let swarm = halves(&[half]).await;
        let (used, spare) = swarm.in_use(half, 2).await;
        swarm.workers[used].plane.misbehave(Mischief::Forges);
        let whole = swarm.unsplit("What is a relay?").await;
        let answer = match swarm.ask("What is a relay?").await {
            Ok(answer) => answer,
            // Where nobody came to check a signature before the answer was complete, it is too late for another.
            Err(error) => {
                assert_eq!(error.error_code(), ErrorCode::BadCommitment, "{error}");
                swarm.ask("What is a relay?").await.unwrap()
            }
        };
        assert_eq!(answer.ids, whole.ids);
        let names = |hops: &[RouteHop]| hops.iter().map(|hop| hop.peer.clone()).collect::<Vec<_>>();
        if let [recovery] = answer.recoveries.as_slice() {
            assert_eq!(recovery.lost, [swarm.workers[used].peer_id()]);
            assert_eq!(names(&recovery.taken_over_by), [swarm.workers[spare].peer_id()]);
        }
        fit(&answer.hops, answer.prompt_ids.len() + answer.ids.len() - 1);
        assert!(answer.hops.iter().all(|hop| hop.peer != swarm.workers[used].peer_id()));
        swarm.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_does_not_sign_is_told_of_and_answers() {
    for mischief in [Mischief::Silent, Mischief::OldEpoch] {
        for worker in [0, 1] {
            let swarm = halves(&[]).await;
            swarm.workers[worker].plane.misbehave(mischief);
            let answer = swarm.ask("Who are you?").await.unwrap();
            assert_eq!(answer.ids, swarm.unsplit("Who are you?").await.ids);
            for (n, hop) in answer.hops.iter().enumerate() {
                assert_eq!(hop.committed.is_none(), n == worker, "{mischief:?}: {hop:?}");
            }
            assert_eq!(swarm.count("withheld").await, 1, "{mischief:?}");
            swarm.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_takes_over_and_does_not_sign_is_not_waited_for_as_long_as_for_rows() {
    let swarm = halves(&[1]).await;
    let (used, spare) = swarm.in_use(1, 2).await;
    swarm.workers[spare].plane.misbehave(Mischief::Silent);
    let mut request = swarm.request("What is a relay?");
    // More than wait for whoever asked while the stage is stopped.
    request.max_tokens = 300;
    let patience = request.step_timeout();
    let (mut events, mut seen, mut summary) = (swarm.asker.ask(request), 0, None);
    let Swarm { boot, mut workers, asker } = swarm;
    let mut lost = Some(workers.remove(used));
    while let Some(event) = events.recv().await {
        seen += 1;
        match event {
            _ if seen == 40 => lost.take().unwrap().shutdown(Duration::ZERO).await,
            InferEvent::Done { summary: all } => summary = Some(all),
            InferEvent::Error { error } => panic!("{error}"),
            _ => {}
        }
    }
    let summary = summary.unwrap();
    let [recovery] = summary.recoveries.as_slice() else { panic!("{:?}", summary.recoveries) };
    assert!(recovery.recovery_s < patience.as_secs_f64() / 2.0, "{recovery:?}");
    let told = asker.telemetry.metrics.scrape();
    assert!(told.contains(r#"quelea_commitments_total{outcome="withheld"} 1"#), "{told}");
    stop(workers.into_iter().chain([asker, boot])).await;
}
