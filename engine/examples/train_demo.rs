//! Trains the small language model that is embedded in `quelea`, and checks what it can do.
//!
//! ```text
//! train_demo --out FILE --seed N (--minutes M | --steps N) [--holdout]   train and write a GGUF
//! train_demo --from FILE --out FILE --seed N (--minutes M | --steps N)   the second stage, on from the first
//! train_demo --eval FILE [--show]                                        greedy answers to the evaluation sets
//! train_demo --ask FILE QUESTION                                         one answer
//! train_demo --check                                                     the text and the evaluation sets
//! ```
//!
//! The text is in `engine/demo` (`--demo DIR` for another), the figures of the committed file in its `README.md`.
//! A run of `--steps` is the same every time on the same kind of processor: text, vocabulary, initial weights and
//! batches come from the seed alone. Not the same everywhere: the matrix products, whose order of additions depends on
//! the instruction set, so that another machine gets a model as good, but not the same bits.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a program for the terminal")]

#[path = "train_demo/corpus.rs"]
mod corpus;
#[path = "train_demo/eval.rs"]
mod eval;
#[path = "train_demo/gguf.rs"]
mod gguf;
#[path = "train_demo/net.rs"]
mod net;
#[path = "train_demo/ops.rs"]
mod ops;
#[path = "train_demo/optim.rs"]
mod optim;
#[path = "train_demo/questions.rs"]
mod questions;
#[path = "train_demo/rng.rs"]
mod rng;
#[path = "train_demo/training.rs"]
mod training;
#[path = "train_demo/vocab.rs"]
mod vocab;

use std::path::{Path, PathBuf};
use std::time::Duration;

use corpus::Corpus;
use training::{Length, Plan};

/// What goes wrong here is told to whoever typed the command.
type Res<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The seed of the committed file.
const DEFAULT_SEED: u64 = 8468;
/// An hour of two cores is what the model is meant to cost at most.
const DEFAULT_MINUTES: u64 = 40;

#[derive(Default)]
struct Args {
    demo: Option<PathBuf>,
    out: Option<PathBuf>,
    from: Option<PathBuf>,
    eval: Option<PathBuf>,
    ask: Option<(PathBuf, String)>,
    seed: Option<u64>,
    minutes: Option<u64>,
    steps: Option<usize>,
    check: bool,
    holdout: bool,
    show: bool,
}

fn parse() -> Res<Args> {
    let mut args = Args::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--demo" => args.demo = Some(value()?.into()),
            "--out" => args.out = Some(value()?.into()),
            "--from" => args.from = Some(value()?.into()),
            "--eval" => args.eval = Some(value()?.into()),
            "--ask" => args.ask = Some((value()?.into(), value()?)),
            "--seed" => args.seed = Some(value()?.parse()?),
            "--minutes" => args.minutes = Some(value()?.parse()?),
            "--steps" => args.steps = Some(value()?.parse()?),
            "--check" => args.check = true,
            "--holdout" => args.holdout = true,
            "--show" => args.show = true,
            _ => return Err(format!("unknown argument {word}; see the top of train_demo.rs").into()),
        }
    }
    Ok(args)
}

fn evaluate(file: &Path, dir: &Path, corpus: &Corpus, show: bool) -> Res<()> {
    let (net, vocab) = gguf::read(file)?;
    for name in eval::SETS {
        let set = corpus::read_asked(&dir.join("eval").join(name))?;
        let score = eval::score(&net, &vocab, corpus, &set)?;
        println!("{name}: {} of {} right", score.right, score.asked);
        if show {
            score.wrong.iter().for_each(|line| println!("  {line}"));
        }
    }
    Ok(())
}

fn main() -> Res<()> {
    let args = parse()?;
    let dir = args.demo.unwrap_or_else(corpus::default_dir);
    let corpus = Corpus::read(&dir, args.check || args.from.is_some())?;
    if args.check {
        let complaints = eval::check(&dir, &corpus)?;
        complaints.iter().for_each(|line| println!("{line}"));
        if !complaints.is_empty() {
            return Err(format!("{} complaints", complaints.len()).into());
        }
        println!("{} topics; the evaluation sets hold no training question", corpus.topics.len());
    }
    if let Some(out) = args.out {
        let minutes = Length::Time(Duration::from_secs(60 * args.minutes.unwrap_or(DEFAULT_MINUTES)));
        let length = args.steps.map_or(minutes, Length::Steps);
        std::fs::write(dir.join("answers.jsonl"), corpus.answers_jsonl())?;
        let seed = args.seed.unwrap_or(DEFAULT_SEED);
        let plan = Plan { out: &out, from: args.from.as_deref(), seed, length, holdout: args.holdout };
        training::train(&corpus, &plan)?;
    }
    if let Some(file) = args.eval {
        evaluate(&file, &dir, &corpus, args.show)?;
    }
    if let Some((file, question)) = args.ask {
        let (net, vocab) = gguf::read(&file)?;
        eval::answers(&net, &vocab, &[&question])?.iter().for_each(|answer| println!("{answer}"));
    }
    Ok(())
}
