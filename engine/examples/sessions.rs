//! How much faster several sessions decode together than one: `sessions FILE [SESSIONS] [TOKENS]`.
//!
//! The whole model runs in one stage loop; each session is a thread that takes the likeliest token and comes back with
//! it, as a request does.

use std::{
    error::Error,
    sync::mpsc::sync_channel,
    time::{Duration, Instant},
};

use quelea_engine::{
    Gguf, Hparams, Runner, Span, Stage,
    runner::{Input, Job, Phase, RunnerConfig, Want},
};

const PATIENCE: Duration = Duration::from_secs(600);

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let file = args.next().ok_or("usage: sessions FILE [SESSIONS] [TOKENS]")?;
    let sessions = args.next().map_or(Ok(8), |n| n.parse())?;
    let tokens = args.next().map_or(Ok(32), |n| n.parse())?;
    let gguf = Gguf::open(&file)?;
    let layers = Hparams::from_gguf(&gguf)?.n_layers;
    let stage = Stage::load(&gguf, Span::whole(layers))?;
    println!("{} of {layers} layers on {}", file, stage.profile());
    let config = RunnerConfig { kv_pages: 4096, max_sessions: 64, queue: 64, grace: PATIENCE };
    let runner = Runner::spawn(stage, config)?;
    decode(&runner, layers, 1, tokens);
    let one = decode(&runner, layers, 1, tokens);
    let before = runner.load().totals;
    let all = decode(&runner, layers, sessions, tokens);
    let after = runner.load().totals;
    println!("1 session: {one:.1} tokens/s");
    println!(
        "{sessions} sessions: {all:.1} tokens/s together, {:.2} times one; {} jobs in {} batches",
        all / one,
        after.jobs - before.jobs,
        after.batches - before.batches
    );
    Ok(())
}

/// Tokens per second of all sessions together.
fn decode(runner: &Runner, layers: usize, sessions: u32, tokens: u32) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for first in 0..sessions {
            scope.spawn(move || {
                let session = runner.open_layers(0..layers, tokens).expect("pages for all sessions");
                let mut id = first + 1;
                for pos in 0..tokens {
                    let (tx, rx) = sync_channel(1);
                    let job = Job {
                        session,
                        pos,
                        input: Input::Tokens(vec![id]),
                        want: Want::Logits,
                        phase: Phase::Decode,
                        deadline: Instant::now() + PATIENCE,
                        reply: Box::new(move |answer| drop(tx.send(answer))),
                    };
                    runner.submit(job).expect("a place in the queue");
                    let logits = rx.recv().expect("an answer").expect("logits").rows;
                    let likeliest = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
                    id = likeliest.and_then(|(id, _)| u32::try_from(id).ok()).unwrap_or(0);
                }
                runner.close(session);
            });
        }
    });
    f64::from(sessions * tokens) / start.elapsed().as_secs_f64()
}
