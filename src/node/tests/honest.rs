//! Stages that compute what the model does are not accused, whatever is asked and however it is split, cut and gone on with.

use std::num::NonZeroUsize;

use quelea_engine::StageOptions;
use quelea_wire::SpanRange;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::sync::Mutex;

use super::*;
use crate::inference::{
    RequestProfile, Route, Speculate,
    audit::{Verdict, again},
    auditor::claim,
    serve::profile_named,
    session_log::SessionLogs,
};

/// How many are asked for in a run of the whole suite; `QUELEA_HONEST` says how many otherwise.
const USUAL: u32 = 60;

/// Layers of the stages of each swarm, and the threads of each.
const SPLITS: [&[(u16, u16, usize)]; 3] =
    [&[(0, 3, 1), (3, 6, 2), (3, 6, 1)], &[(0, 1, 2), (1, 4, 1), (4, 6, 3)], &[(0, 6, 2)]];

/// Of the first swarm, which has two for one half: the one in use is stopped in the middle of one answer of so many, which
/// are asked for in one swarm.
const LOST_EVERY: u32 = 150;

const WORDS: [&str; 16] = [
    "who", "are", "you", "what", "is", "a", "relay", "one", "two", "three", "and", "the", "bird", "peer", "layer?",
    "Why",
];

struct Swarm {
    boot: Node,
    first: Vec<PeerAddress>,
    split: &'static [(u16, u16, usize)],
    workers: Mutex<Vec<Node>>,
    asker: Node,
    _home: tempfile::TempDir,
}

async fn worker(first: &[PeerAddress], (start, end, threads): (u16, u16, usize)) -> Node {
    let mut settings = Settings::passing("node-tests", first.to_vec());
    settings.listen = vec![parse_multiaddr("/ip4/127.0.0.1/tcp/0").unwrap()];
    settings.kad_mode = quelea_behaviours::KadMode::Server;
    settings.compute = StageOptions { threads: NonZeroUsize::new(threads), ..StageOptions::default() };
    let layers = LayerChoice::Exactly(SpanRange::new(start, end).unwrap());
    settings.serve = Some(ServeSpec { model: DEMO.into(), layers, memory: Some(MEMORY), ends: ServeEnds::default() });
    Node::start(settings).await.unwrap()
}

impl Swarm {
    async fn start(split: &'static [(u16, u16, usize)]) -> Self {
        let boot = node(&[], None).await;
        let first: Vec<PeerAddress> =
            boot.addresses().await.iter().filter_map(|addr| parse_peer_address(addr).ok()).collect();
        let mut workers = Vec::new();
        for part in split {
            workers.push(worker(&first, *part).await);
        }
        let home = tempfile::tempdir().unwrap();
        let mut settings = Settings::passing("node-tests", first.clone());
        settings.sessions = SessionLogs::new(home.path().into(), &libp2p::identity::Keypair::generate_ed25519());
        let asker = Node::start(settings).await.unwrap();
        asker.wait_for_bootstrap(&first).await.unwrap();
        let swarm = Self { boot, first, split, workers: Mutex::new(workers), asker, _home: home };
        swarm.known().await;
        swarm
    }

    async fn known(&self) {
        let layers: u64 = self.split.iter().map(|(start, end, _)| u64::from(end - start)).sum();
        let all = async || {
            let report = self.asker.coverage(DEMO).await.ok()?;
            (report.replicas.iter().sum::<u64>() >= layers).then_some(())
        };
        until("all workers are known", all).await;
    }

    /// Asks; where the answer is to be cut off after so many tokens it is gone on with, and where the last worker is to be
    /// lost after so many it is.
    async fn answer(&self, request: &InferRequest, cut: Option<u32>, lost: Option<u32>) -> Summary {
        let mut request = request.clone();
        let (mut cut, mut lost) = (cut, lost);
        loop {
            let (mut events, mut seen) = (self.asker.ask(request.clone()), 0);
            let (mut name, mut last) = (None, String::new());
            let ended = loop {
                match events.recv().await {
                    Some(InferEvent::Route { resume, hops, .. }) => {
                        (name, last) = (resume, hops.last().map(|hop| hop.peer.clone()).unwrap_or_default());
                    }
                    Some(InferEvent::Text { .. }) => seen += 1,
                    Some(InferEvent::Done { summary }) => break Some(Ok(*summary)),
                    Some(InferEvent::Error { error }) => break Some(Err(error)),
                    Some(_) => {}
                    None => break None,
                }
                if cut.is_some_and(|after| seen >= after) {
                    cut = None;
                    break None;
                }
                if lost.is_some_and(|after| seen >= after) {
                    lost = None;
                    self.lose(&last).await;
                }
            };
            match ended {
                Some(Ok(summary)) => return summary,
                // On a machine that is busy, or where a peer was lost: asked again, as whoever asked would do.
                Some(Err(error)) => {
                    assert!(error.retryable, "{error}");
                    println!("asked again: {error}");
                    until("there is a chain again", async || plan(&self.asker).await.chosen).await;
                    request.resume = error.cut.and_then(|cut| cut.resume).or(request.resume);
                }
                None => request.resume = name,
            }
        }
    }

    /// The one in use of two that hold the same layers is gone, and another comes.
    async fn lose(&self, used: &str) {
        let mut workers = self.workers.lock().await;
        let at = workers.iter().position(|worker| worker.peer_id() == used).unwrap();
        workers.remove(at).shutdown(Duration::ZERO).await;
        workers.push(worker(&self.first, self.split[1]).await);
    }

    async fn stop(self) {
        stop(self.workers.into_inner().into_iter().chain([self.asker, self.boot])).await;
    }
}

/// What is asked for the `n`th time; with it, after how many tokens the answer is cut off.
fn request(rng: &mut StdRng) -> (InferRequest, Option<u32>) {
    let words = if rng.random_range(0..8) == 0 { 120 } else { rng.random_range(1..30) };
    // Of few beginnings, so that some of it was computed before.
    let mut prompt = WORDS[rng.random_range(0..4)].repeat(1 + rng.random_range(0..2) * 40);
    for _ in 0..words {
        prompt += " ";
        prompt += WORDS[rng.random_range(0..WORDS.len())];
    }
    let mut request = InferRequest::new(DEMO, &prompt);
    (request.route, request.ignore_eos, request.step_timeout_ms) = (Route::Swarm, true, 60_000);
    request.max_tokens = rng.random_range(1..32);
    request.prefill_window = rng.random_range(1..=4);
    request.speculate = [Speculate::Off, Speculate::Auto, Speculate::Tokens(7)][rng.random_range(0..3)];
    request.profile = [RequestProfile::Own, RequestProfile::ExactBf16][usize::from(rng.random_range(0..4) == 0)];
    request.temperature = [0.0, 1.0][rng.random_range(0..2)];
    request.seed = rng.random();
    let cut = (rng.random_range(0..10) == 0 && request.max_tokens > 8).then(|| rng.random_range(1..8));
    (request, cut)
}

#[derive(Default)]
struct Seen {
    sessions: u32,
    stages: usize,
    rows: usize,
    kept: usize,
    resumed: u32,
    lost: usize,
    guessed: u32,
}

impl Seen {
    fn add(&mut self, of: &Self) {
        self.sessions += of.sessions;
        self.stages += of.stages;
        self.rows += of.rows;
        self.kept += of.kept;
        self.resumed += of.resumed;
        self.lost += of.lost;
        self.guessed += of.guessed;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn honest_stages_are_never_accused_however_they_are_asked() {
    let wanted = std::env::var("QUELEA_HONEST").ok().map_or(USUAL, |text| text.parse().unwrap());
    let file = tokio::task::spawn_blocking(|| ModelFile::open(DEMO)).await.unwrap().unwrap();
    let began = std::time::Instant::now();
    let each = wanted.div_ceil(u32::try_from(SPLITS.len()).unwrap());
    // Every so many in a swarm of its own.
    let of_swarm = async |seed: u64, split: &'static [(u16, u16, usize)], many: u32| {
        let swarm = Swarm::start(split).await;
        let (mut rng, mut seen) = (StdRng::seed_from_u64(seed), Seen::default());
        for n in 0..many {
            let (mut request, cut) = request(&mut rng);
            let lost = (split.len() == 3 && split[1].0 == split[2].0 && n % LOST_EVERY == 5).then_some(3);
            if lost.is_some() {
                // More than wait for whoever asked while the stage is stopped.
                (request.max_tokens, request.speculate) = (200, Speculate::Off);
            }
            let answer = swarm.answer(&request, cut.filter(|_| lost.is_none()), lost).await;
            let claims: Vec<_> = answer.hops.iter().filter_map(|hop| Some(claim(hop, &answer)?.claim)).collect();
            assert!(!claims.is_empty(), "{answer:?}");
            let ids = [answer.prompt_ids.as_slice(), answer.ids.as_slice()].concat();
            let profile = profile_named(&answer.profile);
            let options = StageOptions { threads: NonZeroUsize::new(1), ..StageOptions::default() };
            let verdicts = again(&file, profile, options, &claims, &ids, |_| {}).await.unwrap();
            assert!(
                verdicts.iter().all(|verdict| *verdict == Verdict::Right),
                "{n} of {seed}: {verdicts:?} {request:?}"
            );
            seen.sessions += 1;
            seen.stages += claims.len();
            seen.rows += claims.iter().map(|claim| claim.rows.len()).sum::<usize>();
            seen.kept += usize::from(answer.cached_tokens > 0);
            seen.resumed += u32::from(answer.resumed_tokens > 0);
            seen.lost += answer.recoveries.len();
            seen.guessed += u32::from(request.speculate != Speculate::Off);
        }
        let metrics = swarm.asker.telemetry.metrics.scrape();
        for fault in ["invalid", "lie", "differ"] {
            assert!(!metrics.contains(&format!(r#"quelea_commitments_total{{outcome="{fault}""#)), "{fault}");
        }
        swarm.stop().await;
        seen
    };
    let of_split = async |seed: u64, split: &'static [(u16, u16, usize)]| {
        let (mut sum, mut left) = (Seen::default(), each);
        for round in 0..each.div_ceil(LOST_EVERY) {
            let many = left.min(LOST_EVERY);
            left -= many;
            sum.add(&of_swarm(seed + 10 * u64::from(round), split, many).await);
            println!("split {seed}: {} honest sessions, {:.0} s", sum.sessions, began.elapsed().as_secs_f64());
        }
        sum
    };
    let (a, b, c) = tokio::join!(of_split(1, SPLITS[0]), of_split(2, SPLITS[1]), of_split(3, SPLITS[2]));
    let mut all = a;
    [b, c].iter().for_each(|of| all.add(of));
    let Seen { sessions, stages, rows, kept, resumed, lost, guessed } = all;
    println!(
        "{sessions} honest sessions, {stages} stages, {rows} rows signed for: nobody accused; {kept} took over a kept \
         beginning, {resumed} were gone on with, {lost} lost a stage, {guessed} guessed; {:.0} s",
        began.elapsed().as_secs_f64()
    );
    assert!(sessions >= wanted && kept > 0 && resumed > 0 && lost > 0);
}
