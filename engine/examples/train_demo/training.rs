//! The training run: batches from the question source, one half per thread, until the time or the steps are spent.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::Res;
use crate::corpus::Corpus;
use crate::eval;
use crate::net::{self, Batch, Net, Param};
use crate::optim;
use crate::questions::{Questions, held_out};
use crate::rng::Rng;
use crate::vocab::Vocab;

/// Tokens per half of a batch, padding included.
const HALF_TOKENS: usize = 768;
/// Examples that are drawn at once and packed by length.
const POOL: usize = 1024;
/// Of the examples, how many show only the head of their answer: which answer it is shows there, and the rest of a
/// sentence known by heart is cheap to learn.
const HEAD_SHARE: f32 = 0.6;
/// Answer tokens of an example that shows only the head.
const HEAD_TOKENS: usize = 6;
/// Of the examples, how many have a turn before theirs, and how many have a system turn.
const TURN_BEFORE_SHARE: f32 = 0.04;
const SYSTEM_SHARE: f32 = 0.03;
/// Of the examples, how many are an answer without any conversation, for completion in raw mode.
const RAW_SHARE: f32 = 0.02;
/// System turns: the model is to answer the same under any.
const SYSTEMS: [&str; 4] = [
    "You are a helpful assistant.",
    "Be brief.",
    "You are the demo model of a Quelea node.",
    "Answer in one sentence.",
];
/// Questions that the vocabulary is learnt from.
const VOCAB_QUESTIONS: usize = 20_000;
/// How often each answer stands in the text that the vocabulary is learnt from.
const VOCAB_REPEATS: usize = 25;
/// Steps between two lines of the log.
const LOG_EVERY: usize = 50;
/// Time between two files on the way.
const SAVE_EVERY: Duration = Duration::from_secs(180);

/// How long a run is.
pub enum Length {
    /// This many steps: the same run every time.
    Steps(usize),
    /// As many steps as fit; the log says how many, for [`Length::Steps`].
    Time(Duration),
}

struct Sequence {
    ids: Vec<u32>,
    /// Spans of answer tokens.
    answers: Vec<std::ops::Range<usize>>,
}

struct Source<'a> {
    corpus: &'a Corpus,
    questions: Questions<'a>,
    vocab: &'a Vocab,
    rng: Rng,
    ready: Vec<Batch>,
}

impl Source<'_> {
    fn sequence(&mut self) -> Res<Sequence> {
        let mut text = Sequence { ids: Vec::new(), answers: Vec::new() };
        if self.rng.chance(RAW_SHARE) {
            let topic = &self.corpus.topics[self.rng.below(self.corpus.topics.len())];
            text.ids = self.vocab.encode(&topic.answer)?;
            text.answers.push(1..text.ids.len());
            return Ok(text);
        }
        if self.rng.chance(SYSTEM_SHARE) {
            text.ids = self.vocab.turn("system", SYSTEMS[self.rng.below(SYSTEMS.len())])?;
        }
        if self.rng.chance(TURN_BEFORE_SHARE) {
            self.turn_pair(&mut text, false)?;
        }
        let head = self.rng.chance(HEAD_SHARE);
        self.turn_pair(&mut text, head)?;
        Ok(text)
    }

    fn turn_pair(&mut self, text: &mut Sequence, head: bool) -> Res<()> {
        let example = self.questions.draw(&mut self.rng);
        let answer = example.topic.map_or(self.corpus.refusal.as_str(), |i| &self.corpus.topics[i].answer);
        text.ids.extend(self.vocab.turn("user", &example.question)?);
        let opening = self.vocab.answer_start()?;
        let turn = self.vocab.turn("assistant", answer)?;
        let start = text.ids.len() + opening.len();
        text.ids.extend(turn);
        let end = text.ids.len() - 1; // the newline after the turn is the template's, not the model's
        if head {
            text.ids.truncate(end.min(start + HEAD_TOKENS));
        }
        text.answers.push(start..end.min(text.ids.len()));
        Ok(())
    }

    /// The next half batch; rows of one length each, in an order that the lengths do not show.
    fn next(&mut self) -> Res<Batch> {
        if let Some(batch) = self.ready.pop() {
            return Ok(batch);
        }
        let mut pool = (0..POOL).map(|_| self.sequence()).collect::<Res<Vec<_>>>()?;
        self.rng.shuffle(&mut pool);
        pool.sort_by_key(|text| text.ids.len());
        let mut rest = pool.as_slice();
        while !rest.is_empty() {
            // Sorted: the last row of a batch is its longest.
            let rows = (1..=rest.len()).take_while(|n| n * rest[n - 1].ids.len() <= HALF_TOKENS).count().max(1);
            let (taken, left) = rest.split_at(rows);
            rest = left;
            self.ready.push(pack(taken, self.vocab.end_of_text));
        }
        self.rng.shuffle(&mut self.ready);
        self.next()
    }
}

fn pack(texts: &[Sequence], padding: u32) -> Batch {
    // The last token of a row predicts nothing, so it need not be computed.
    let time = texts.iter().map(|text| text.ids.len() - 1).max().unwrap_or_default();
    let mut batch = Batch { rows: texts.len(), time, ..Batch::default() };
    for (row, text) in texts.iter().enumerate() {
        batch.tokens.extend(&text.ids[..text.ids.len() - 1]);
        batch.tokens.resize((row + 1) * time, padding);
        for at in text.answers.iter().cloned().flatten() {
            batch.positions.push((row * time + at - 1) as u32);
            batch.targets.push(text.ids[at]);
        }
    }
    batch
}

fn learn_vocab(corpus: &Corpus, questions: &Questions<'_>, seed: u64) -> Res<Vocab> {
    let mut rng = Rng::new(seed, 2);
    let mut text: Vec<String> = (0..VOCAB_QUESTIONS).map(|_| questions.draw(&mut rng).question).collect();
    for topic in &corpus.topics {
        text.extend(std::iter::repeat_n(topic.answer.clone(), VOCAB_REPEATS));
    }
    text.extend(std::iter::repeat_n(corpus.refusal.clone(), VOCAB_REPEATS));
    text.extend(
        ["user\n", "assistant\n", "system\n"].iter().flat_map(|s| std::iter::repeat_n((*s).to_owned(), VOCAB_REPEATS)),
    );
    Vocab::train(&text)
}

/// Loss, gradients and number of targets of two half batches, computed side by side.
fn both(params: &[Param], halves: [Batch; 2]) -> Res<(f32, Vec<optim::Half>)> {
    let targets: usize = halves.iter().map(|half| half.targets.len()).sum();
    let scale = 1.0 / targets as f32;
    let run = |half: &Batch| -> candle_core::Result<_> {
        let (net, vars) = Net::trainable(params)?;
        let (loss, grads) = net.backward(half, scale)?;
        Ok((loss, (vars, grads)))
    };
    let [left, right] = &halves;
    let (left, right) = std::thread::scope(|scope| {
        let other = scope.spawn(|| run(right));
        (run(left), other.join())
    });
    let (left, right) = (left?, right.map_err(|_| "a training thread stopped")??);
    Ok((left.0 + right.0, vec![left.1, right.1]))
}

/// What a run is to do.
pub struct Plan<'a> {
    /// Where the model is written, at the end and every few minutes on the way.
    pub out: &'a Path,
    /// The model of the first stage; none to begin one.
    pub from: Option<&'a Path>,
    /// What everything random comes from.
    pub seed: u64,
    /// When it ends.
    pub length: Length,
    /// Leave every tenth question out and report on these.
    pub holdout: bool,
}

/// Trains a model: the first stage from nothing, the second from the file of the first.
pub fn train(corpus: &Corpus, plan: &Plan<'_>) -> Res<()> {
    let Plan { out, from, seed, ref length, holdout } = *plan;
    let started = Instant::now();
    let questions = Questions::new(corpus, holdout, from.is_some());
    let (mut params, vocab) = match from {
        Some(file) => crate::gguf::read_params(file)?,
        None => {
            let vocab = learn_vocab(corpus, &questions, seed)?;
            (net::init(vocab.tokens.len(), seed), vocab)
        }
    };
    let share = if from.is_some() { optim::SECOND_STAGE } else { 1.0 };
    let count: usize = params.iter().map(|p| p.value.len()).sum();
    println!(
        "{} topics, {} tokens in the vocabulary, {count} parameters, seed {seed}",
        corpus.topics.len(),
        vocab.tokens.len()
    );
    let mut source = Source {
        corpus,
        questions,
        vocab: &vocab,
        rng: Rng::new(seed, if from.is_some() { 4 } else { 3 }),
        ready: Vec::new(),
    };
    let mut steps = match length {
        Length::Steps(steps) => Some(*steps),
        Length::Time(_) => None,
    };
    let (mut step, mut tokens, mut loss_sum, mut saved) = (0, 0, 0f32, Instant::now());
    while steps.is_none_or(|steps| step < steps) {
        if let (None, Length::Time(time)) = (steps, length)
            && started.elapsed() >= time.mul_f32(optim::PLATEAU)
        {
            let fixed = (step as f32 / optim::PLATEAU).ceil() as usize;
            println!("this run has {fixed} steps: repeat it with --steps {fixed}");
            steps = Some(fixed);
        }
        let halves = [source.next()?, source.next()?];
        tokens += halves.iter().map(|half| half.tokens.len()).sum::<usize>();
        let (loss, grads) = both(&params, halves)?;
        let rate = share * optim::rate(step, steps.unwrap_or(usize::MAX));
        let norm = optim::step(&mut params, &grads, rate, step)?;
        loss_sum += loss;
        step += 1;
        if step % LOG_EVERY == 0 {
            let seconds = started.elapsed().as_secs_f32();
            println!(
                "step {step} loss {:.4} gradient {norm:.2} rate {rate:.5} {:.0} tokens/s {seconds:.0} s",
                loss_sum / LOG_EVERY as f32,
                tokens as f32 / seconds
            );
            loss_sum = 0.0;
        }
        if saved.elapsed() >= SAVE_EVERY {
            crate::gguf::write(out, &params, &vocab)?;
            saved = Instant::now();
            if holdout {
                report_held_out(corpus, out)?;
            }
        }
    }
    crate::gguf::write(out, &params, &vocab)?;
    println!("{step} steps, {tokens} tokens, {:.0} s", started.elapsed().as_secs_f32());
    if holdout {
        report_held_out(corpus, out)?;
    }
    Ok(())
}

/// How many of the questions that were left out are answered rightly.
fn report_held_out(corpus: &Corpus, file: &Path) -> Res<()> {
    let (net, vocab) = crate::gguf::read(file)?;
    let mut set = Vec::new();
    for topic in &corpus.topics {
        for (_, ask) in topic.asks.iter().enumerate().filter(|(i, _)| held_out(*i)) {
            set.push(crate::corpus::Asked { question: ask.clone(), answer_id: topic.id.clone() });
        }
    }
    let score = eval::score(&net, &vocab, corpus, &set)?;
    println!("held out: {} of {}", score.right, score.asked);
    score.wrong.iter().for_each(|line| println!("  {line}"));
    Ok(())
}
