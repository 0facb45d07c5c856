//! After how many answers a stage is found that spoils one row of a hundred, measured.
//!
//! The stages are the demo's, in two halves: their layers are computed by the engine, and what they sign for are the roots that
//! stages sign. One of the two spoils each of its rows with the likelihood of one in a hundred, one value of it, by 1 or by the
//! last bit. Answers are drawn by the number that decides in a node, and those that are drawn are computed again by what
//! computes them there; of the others nothing has to be computed, because nobody looks at them.

use std::num::NonZeroUsize;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;
use crate::inference::{
    auditor::{WHOLE, falls},
    models::DEMO,
};

/// Runs of each share in a run of the whole suite; `QUELEA_CAUGHT` says how many otherwise.
const USUAL: u32 = 8;

/// One row of so many is spoilt.
const SPOILT: u32 = 100;

/// Rows of a prompt and of an answer: from a question to a page, and from a line to a few paragraphs.
const PROMPT: Range<usize> = 10..200;
const ANSWER: Range<usize> = 10..100;

/// By how much a value is wrong.
#[derive(Debug, Clone, Copy)]
enum Wrong {
    /// By 1.
    Much,
    /// By the last bit of its mantissa.
    Least,
}

/// The halves of the demo, which are loaded once; what audits load they load themselves.
struct Halves {
    file: ModelFile,
    stages: Vec<(SpanRange, Runner)>,
    options: StageOptions,
}

/// A session: its tokens, and what its stages have signed for.
struct Session {
    ids: Vec<u32>,
    claims: Vec<Claim>,
    /// Rows that were spoilt.
    spoilt: u32,
}

impl Halves {
    async fn load() -> Self {
        let file = tokio::task::spawn_blocking(|| ModelFile::open(DEMO)).await.unwrap().unwrap();
        let options = StageOptions { threads: NonZeroUsize::new(1), ..StageOptions::default() };
        let middle = file.layers() / 2;
        let mut stages = Vec::new();
        for (start, end) in [(0, middle), (middle, file.layers())] {
            let span = SpanRange::new(start, end).unwrap();
            stages.push((span, load(&file, span, options).await.unwrap()));
        }
        Self { file, stages, options }
    }

    /// Tokens of a session.
    fn asked(&self, rng: &mut StdRng) -> Vec<u32> {
        let rows = rng.random_range(PROMPT) + rng.random_range(ANSWER);
        let vocab = u32::try_from(self.stages[0].1.stage().vocab()).unwrap();
        (0..rows).map(|_| rng.random_range(0..vocab)).collect()
    }

    /// Runs a session over both, of which `liar` spoils rows.
    async fn session(&self, ids: Vec<u32>, liar: usize, wrong: Wrong, rng: &mut StdRng) -> Session {
        let mut rows = embedded(&self.stages[0].1, &ids, false).unwrap();
        let (mut claims, mut spoilt) = (Vec::new(), 0);
        let width = rows.len() / ids.len();
        for (n, (span, runner)) in self.stages.iter().enumerate() {
            let mut out = run(runner, *span, &rows, false).await.unwrap();
            if n == liar {
                for row in out.chunks_exact_mut(width) {
                    if rng.random_range(0..SPOILT) == 0 {
                        let value = &mut row[rng.random_range(0..width)];
                        *value = match wrong {
                            Wrong::Much => *value + 1.0,
                            Wrong::Least => f32::from_bits(value.to_bits() ^ 1),
                        };
                        spoilt += 1;
                    }
                }
            }
            let all =
                Claim { span: *span, rows: 0..u32::try_from(ids.len()).unwrap(), in_root: [0; 32], out_root: [0; 32] };
            let of = |values: &[f32]| root(values, ids.len(), &all).unwrap();
            claims.push(Claim { in_root: of(&rows), out_root: of(&out), ..all.clone() });
            rows = out;
        }
        Session { ids, claims, spoilt }
    }

    /// Whether an audit finds the liar; it finds nobody else, and only one that has lied.
    async fn finds(&self, session: &Session, liar: usize) -> bool {
        let verdicts =
            again(&self.file, Profile::Exact, self.options, &session.claims, &session.ids, |_| {}).await.unwrap();
        let found = verdicts[liar] == Verdict::Wrong;
        assert_eq!(found, session.spoilt > 0, "{verdicts:?}, {} rows are spoilt", session.spoilt);
        assert!(
            verdicts.iter().enumerate().all(|(n, verdict)| n == liar || *verdict != Verdict::Wrong),
            "{verdicts:?}"
        );
        found
    }
}

/// Of one share.
#[derive(Default)]
struct Measured {
    audits: u32,
    found: u32,
    /// After how many sessions the liar was found, in each run.
    after: Vec<u32>,
}

#[expect(clippy::cast_precision_loss, reason = "counts, for people")]
fn share_of(part: usize, all: usize) -> f64 {
    part as f64 / all.max(1) as f64
}

/// The sessions after which a liar is known in 99 of 100 cases that is found in one with the likelihood `p`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number, rounded up")]
fn sessions_for(p: f64) -> u32 {
    (0.01_f64.ln() / (1.0 - p).ln()).ceil() as u32
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_spoils_one_row_of_a_hundred_is_found_by_every_audit_of_a_spoilt_answer() {
    let runs = std::env::var("QUELEA_CAUGHT").ok().map_or(USUAL, |text| text.parse().unwrap());
    let halves = Halves::load().await;
    for (share, seed) in [(2, 1), (10, 2), (50, 3)] {
        let mut measured = Measured::default();
        for n in 0..runs {
            let mut rng = StdRng::seed_from_u64(seed * 1_000_000 + u64::from(n));
            let (liar, wrong) = (usize::from(n % 2 == 1), if n % 4 < 2 { Wrong::Much } else { Wrong::Least });
            let mut sessions = 0;
            loop {
                sessions += 1;
                if !falls(share, rng.random_range(0..WHOLE)) {
                    continue;
                }
                measured.audits += 1;
                let ids = halves.asked(&mut rng);
                let session = halves.session(ids, liar, wrong, &mut rng).await;
                if halves.finds(&session, liar).await {
                    break;
                }
            }
            measured.found += 1;
            measured.after.push(sessions);
        }
        let Measured { audits, found, mut after } = measured;
        // Of all sessions, drawn or not.
        let sessions: u32 = after.iter().sum();
        let p = f64::from(found) / f64::from(sessions);
        let n = sessions_for(p);
        let within = after.iter().filter(|after| **after <= n).count();
        after.sort_unstable();
        println!(
            "{share} of 100 audited: {runs} runs, {sessions} sessions, {audits} audits: p = {p:.5}, n = {n}, found by then in \
             {:.2} % of runs; median {}, longest {}",
            100.0 * share_of(within, after.len()),
            after[after.len() / 2],
            after[after.len() - 1],
        );
        assert_eq!(found, runs);
        // With so few runs as the suite has this is far from the likelihood that is measured; the seeds are fixed.
        assert!(share_of(within, after.len()) >= 0.97 || runs < 100, "{within} of {runs} by session {n}");
    }
}
