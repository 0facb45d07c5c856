//! The ways in which a prompt and its answer can be computed.

use std::{
    sync::mpsc::sync_channel,
    time::{Duration, Instant},
};

use quelea_engine::{
    Cache, Gguf, Hparams, Runner, Span, Stage, StageOptions,
    runner::{Input, Job, OnEvent, Phase, PrefixKeys, RunnerConfig, SessionId, SessionSpec, Want, pages_for},
    sampler::{Sampler, SamplerConfig},
};

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(600);

/// In whose company a prompt is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By calling the stages.
    Alone,
    /// In the stages' loops, while other sessions use them.
    AmongStrangers,
    /// In the stages' loops, the beginning taken over from a session before.
    FromPages,
}

/// The logits after each token of the prompt, and after each of `answer` greedy tokens, from stages cut at `cuts`.
#[expect(clippy::too_many_arguments, reason = "each is a dimension of the test")]
pub fn logits(
    gguf: &Gguf,
    options: &StageOptions,
    cuts: &[usize],
    way: Way,
    prompt: &[u32],
    strangers: &[Vec<u32>],
    chunk: usize,
    answer: usize,
) -> Vec<Vec<f32>> {
    let n_layers = Hparams::from_gguf(gguf).unwrap().n_layers;
    let bounds: Vec<usize> = [0].into_iter().chain(cuts.iter().copied()).chain([n_layers]).collect();
    let load = |span| Stage::load_with(gguf, span, options).unwrap();
    let stages: Vec<Stage> = bounds.windows(2).map(|ends| load(Span::layers(ends[0]..ends[1]))).collect();
    let ends = load(Span::ends());
    let run = Run { ends: &ends, chunk, answer };
    if way == Way::Alone {
        let mut caches: Vec<Cache> = stages.iter().map(Stage::new_cache).collect();
        return run.all(prompt, 0, |mut rows, pos| {
            for (stage, cache) in stages.iter().zip(&mut caches) {
                rows = stage.forward(cache, pos, &rows).unwrap();
            }
            rows
        });
    }
    let most = u32::try_from(prompt.len() + answer).unwrap();
    let sessions = 1 + strangers.len();
    let config = RunnerConfig {
        kv_pages: pages_for(most) * (u32::try_from(sessions).unwrap() + 1),
        max_sessions: sessions,
        queue: 4 * sessions,
        grace: PATIENCE,
    };
    let runners: Vec<Runner> = stages.into_iter().map(|stage| Runner::spawn(stage, config).unwrap()).collect();
    if way == Way::AmongStrangers {
        return std::thread::scope(|scope| {
            for (i, stranger) in strangers.iter().enumerate() {
                // Chunks of their own, and an answer that outlasts the other's prompt.
                let run = Run { ends: &ends, chunk: 1 + 12 * i, answer };
                scope.spawn({
                    let runners = &runners;
                    move || in_loops(run, runners, stranger, &PrefixKeys::default(), most)
                });
            }
            in_loops(run, &runners, prompt, &PrefixKeys::default(), most).1
        });
    }
    let keys = PrefixKeys::new(&[7; 32], &[8; 32], ends.profile(), prompt);
    let (reused, mut whole) = in_loops(run, &runners, prompt, &keys, most);
    assert_eq!(reused, 0);
    let (reused, rest) = in_loops(run, &runners, prompt, &keys, most);
    assert!(reused > 0, "the second session takes pages over");
    assert_eq!(whole[reused..], rest[..], "what is computed after pages of another session");
    whole.splice(reused.., rest);
    whole
}

/// Runs a prompt and its answer in a session of each loop; how many rows were taken over, and the logits of the others.
fn in_loops(
    run: Run<'_>,
    runners: &[Runner],
    prompt: &[u32],
    prefix: &PrefixKeys,
    max_rows: u32,
) -> (usize, Vec<Vec<f32>>) {
    let opened: Vec<_> = runners
        .iter()
        .map(|runner| {
            let layers = 0..runner.stage().span().layers.len();
            // Only sessions that may have to go share pages.
            let on_event = Some(Box::new(|_| {}) as OnEvent);
            let spec = SessionSpec { layers, max_rows, prefix: prefix.clone(), on_event, ..SessionSpec::default() };
            runner.open_with(spec).unwrap()
        })
        .collect();
    let reused = opened[0].reused_rows;
    assert!(opened.iter().all(|other| other.reused_rows == reused), "{opened:?}");
    let reused = usize::try_from(reused).unwrap();
    let logits = run.all(prompt, reused, |mut rows, pos| {
        for (runner, opened) in runners.iter().zip(&opened) {
            let phase = if pos < prompt.len() { Phase::Prefill } else { Phase::Decode };
            rows = ask(runner, opened.session, pos, rows, phase);
        }
        rows
    });
    runners.iter().zip(&opened).for_each(|(runner, opened)| runner.close(opened.session));
    (reused, logits)
}

/// Runs rows in a loop and waits for them.
fn ask(runner: &Runner, session: SessionId, pos: usize, rows: Vec<f32>, phase: Phase) -> Vec<f32> {
    let (tx, rx) = sync_channel(1);
    let job = Job {
        session,
        pos: u32::try_from(pos).unwrap(),
        input: Input::Rows(rows),
        want: Want::Rows,
        phase,
        deadline: Instant::now() + PATIENCE,
        reply: Box::new(move |answer| tx.send(answer).unwrap()),
    };
    runner.submit(job).unwrap();
    rx.recv_timeout(PATIENCE).unwrap().unwrap().rows
}

/// Embedding and head, and how much to run.
#[derive(Clone, Copy)]
struct Run<'a> {
    ends: &'a Stage,
    chunk: usize,
    answer: usize,
}

impl Run<'_> {
    /// The logits after each token of `prompt` from number `first` on, and after each token of the answer. `layers` runs
    /// rows at a position through all layers.
    fn all(self, prompt: &[u32], first: usize, mut layers: impl FnMut(Vec<f32>, usize) -> Vec<f32>) -> Vec<Vec<f32>> {
        let Self { ends, chunk, answer } = self;
        let mut step = |ids: &[u32], pos: usize| -> Vec<Vec<f32>> {
            let rows = layers(ends.embed(ids).unwrap(), pos);
            ends.logits(&rows).unwrap().chunks_exact(ends.vocab()).map(<[f32]>::to_vec).collect()
        };
        let mut all = Vec::new();
        for ids in prompt[first..].chunks(chunk) {
            all.extend(step(ids, first + all.len()));
        }
        let mut greedy = Sampler::new(SamplerConfig::default(), &[]).unwrap();
        for pos in prompt.len()..prompt.len() + answer {
            let id = greedy.sample(all.last().unwrap()).unwrap();
            all.extend(step(&[id], pos));
        }
        all
    }
}
