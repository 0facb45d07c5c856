//! The stage loop on the exact kernels: a session's bits are the same alone, among strangers, and on pages that others
//! have computed.

use std::{
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use quelea_engine::{
    KV_PAGE_ROWS, Runner, Span, Stage, StageError,
    runner::{
        AdmissionError, Input, Job, JobError, OnEvent, Output, Phase, PrefixKeys, RunnerConfig, SessionEvent,
        SessionId, SessionSpec, SubmitError, Want,
    },
};

use crate::support::{HIDDEN, LAYERS, ids, model};

const CONFIG: RunnerConfig = RunnerConfig { kv_pages: 32, max_sessions: 16, queue: 64, grace: Duration::ZERO };
/// Longer than any test computes.
const PATIENCE: Duration = Duration::from_secs(60);

fn stage() -> Stage {
    let stage = Stage::load(&model("llama").open(), Span::whole(LAYERS)).unwrap();
    assert!(stage.is_exact(), "the default device");
    stage
}

fn runner() -> Runner {
    Runner::spawn(stage(), CONFIG).unwrap()
}

/// The logits after each of `ids`, one at a time.
fn alone(prompt: &[u32]) -> Vec<Vec<f32>> {
    let stage = stage();
    let mut cache = stage.new_cache();
    let step = |(pos, id): (usize, &u32)| {
        let row = stage.forward(&mut cache, pos, &stage.embed(&[*id]).unwrap()).unwrap();
        stage.logits(&row).unwrap()
    };
    prompt.iter().enumerate().map(step).collect()
}

type Answer = Result<Output, JobError>;

fn submit(runner: &Runner, session: SessionId, pos: usize, input: Input, want: Want) -> Receiver<Answer> {
    let (tx, rx) = sync_channel(1);
    let long = matches!(&input, Input::Tokens(ids) if ids.len() > 1);
    let phase = if long { Phase::Prefill } else { Phase::Decode };
    let reply = Box::new(move |answer| tx.send(answer).unwrap());
    let deadline = Instant::now() + PATIENCE;
    runner.submit(Job { session, pos: pos as u32, input, want, phase, deadline, reply }).unwrap();
    rx
}

fn logits(runner: &Runner, session: SessionId, pos: usize, ids: &[u32]) -> Vec<f32> {
    let answer = submit(runner, session, pos, Input::Tokens(ids.to_vec()), Want::Logits);
    answer.recv_timeout(PATIENCE).unwrap().unwrap().rows
}

fn deaf() -> OnEvent {
    Box::new(|_| ())
}

fn open(runner: &Runner, group: u64, prompt: &[u32], max_rows: u32) -> (SessionId, usize) {
    let prefix = PrefixKeys::new(&[9; 32], &[1; 32], runner.stage().profile(), prompt);
    let spec =
        SessionSpec { group, layers: 0..LAYERS, max_rows, prefix, on_event: Some(deaf()), ..SessionSpec::default() };
    let opened = runner.open_with(spec).unwrap();
    (opened.session, opened.reused_rows as usize)
}

/// Holds the runner's thread inside a reply until the sender is dropped.
fn hold(runner: &Runner) -> SyncSender<()> {
    let session = runner.open(1).unwrap();
    let release = hold_session(runner, session);
    runner.close(session);
    release
}

#[test]
fn among_strangers_a_session_has_the_bits_it_has_alone() {
    let runner = runner();
    let prompts: Vec<Vec<u32>> = (0..6).map(|i| ids(40 + 3 * i)[i..].to_vec()).collect();
    let expected: Vec<_> = prompts.iter().map(|prompt| alone(prompt)).collect();
    let sessions: Vec<SessionId> = prompts.iter().map(|_| runner.open(64).unwrap()).collect();
    // Everybody's prompt but for the last eight tokens, each in other pieces.
    for (i, (session, prompt)) in sessions.iter().zip(&prompts).enumerate() {
        let mut pos = 0;
        for chunk in prompt[..prompt.len() - 8].chunks(7 + 5 * i) {
            let last = pos + chunk.len() - 1;
            assert_eq!(logits(&runner, *session, pos, chunk), expected[i][last]);
            pos += chunk.len();
        }
    }
    // Five decode together, while the sixth runs its last eight tokens as a chunk.
    for step in 0..8 {
        let before = runner.load().totals;
        let release = hold(&runner);
        let mut answers = Vec::new();
        for (i, (session, prompt)) in sessions.iter().zip(&prompts).enumerate() {
            let pos = prompt.len() - 8 + step;
            let input = match (i, step) {
                (5, 0) => Input::Tokens(prompt[pos..].to_vec()),
                (5, _) => continue,
                _ => Input::Tokens(vec![prompt[pos]]),
            };
            let last = if i == 5 { prompt.len() - 1 } else { pos };
            answers.push((submit(&runner, *session, pos, input, Want::Logits), &expected[i][last]));
        }
        drop(release);
        let jobs = answers.len() as u64;
        for (answer, expected) in answers {
            assert_eq!(answer.recv_timeout(PATIENCE).unwrap().unwrap().rows, *expected);
        }
        let after = runner.load().totals;
        assert_eq!(
            (after.batches - before.batches, after.jobs - before.jobs),
            (2, 1 + jobs),
            "the blocker's, and ours"
        );
    }
}

/// What speculation rests on: guesses are verified in one pass, and those that were wrong go when the next pass begins
/// before them.
#[test]
fn guesses_verified_in_one_pass_have_the_bits_of_single_steps() {
    let runner = runner();
    let text = ids(80);
    let expected = alone(&text);
    let (session, _) = open(&runner, 1, &text, 128);
    logits(&runner, session, 0, &text[..50]);
    let verify = |pos: usize, ids: &[u32]| -> Vec<Vec<f32>> {
        let answer = submit(&runner, session, pos, Input::Tokens(ids.to_vec()), Want::AllLogits);
        let rows = answer.recv_timeout(PATIENCE).unwrap().unwrap().rows;
        rows.chunks(expected[0].len()).map(<[f32]>::to_vec).collect()
    };
    let wrong = text[53] ^ 1;
    let rows = verify(50, &[text[50], text[51], text[52], wrong, wrong]);
    assert_eq!(rows[..3], expected[50..53]);
    assert_ne!(rows[3], expected[53]);
    assert_eq!(verify(53, &text[53..70]), expected[53..70], "over a page's end");
    assert_eq!(verify(70, &[text[70], wrong])[0], expected[70]);
    assert_eq!(logits(&runner, session, 71, &text[71..]), expected[79]);
    // Of the page in which it went back nobody else may have anything.
    let (other, reused) = open(&runner, 1, &text, 128);
    assert_eq!(reused, KV_PAGE_ROWS);
    assert_eq!(logits(&runner, other, reused, &text[reused..]), expected[79]);
}

#[test]
fn a_prompt_that_begins_alike_takes_pages_over_and_has_the_same_bits() {
    let runner = runner();
    let prompt = ids(110);
    let expected = alone(&prompt);
    let run = |group: u64, prompt: &[u32]| {
        let (session, reused) = open(&runner, group, prompt, 128);
        let last = logits(&runner, session, reused, &prompt[reused..]);
        (session, reused, last)
    };
    let (first, reused, last) = run(1, &prompt);
    assert_eq!((reused, &last), (0, expected.last().unwrap()));
    assert_eq!((runner.load().kv_pages_free, runner.load().kv_pages_cached), (28, 3));

    // While the first is there, and after it has gone.
    let (second, reused, last) = run(1, &prompt);
    assert_eq!((reused, &last), (96, expected.last().unwrap()));
    assert_eq!(runner.load().kv_pages_free, 27, "three of its four pages are the first's");
    runner.close(first);
    runner.close(second);
    assert_eq!((runner.load().kv_pages_free, runner.load().kv_pages_cached), (32, 3));
    let (_, reused, last) = run(1, &prompt[..96]);
    assert_eq!((reused, &last), (64, &expected[95]), "the last row is computed");

    let mut other = prompt.clone();
    other[40] = (other[40] + 1) % 48;
    let (_, reused, last) = run(1, &other);
    assert_eq!((reused, &last), (32, alone(&other).last().unwrap()));
    assert_eq!(run(2, &prompt).1, 0, "nobody sees the pages of another group");
    assert_eq!(runner.load().totals.reused_rows, 96 + 64 + 32);
}

/// A chat's second turn: the answer's rows, computed one by one, are the next prompt's.
#[test]
fn rows_of_an_answer_are_taken_over_once_they_have_names() {
    let runner = runner();
    let both = ids(120);
    let (prompt, answer) = both[..70].split_at(40);
    let names = |ids: &[u32]| PrefixKeys::new(&[9; 32], &[1; 32], runner.stage().profile(), ids).keys().to_vec();
    let (first, _) = open(&runner, 1, prompt, 96);
    logits(&runner, first, 0, prompt);
    for (i, id) in answer.iter().enumerate() {
        logits(&runner, first, prompt.len() + i, &[*id]);
    }
    assert_eq!(runner.load().kv_pages_cached, 1, "the answer's pages have no names yet");
    runner.keep(first, 0, names(&both[..70]));
    assert_eq!(runner.load().kv_pages_cached, 1, "one block is named already");
    runner.keep(first, 1, names(&both)[1..].to_vec());
    assert_eq!(runner.load().kv_pages_cached, 2, "the third is not whole");
    runner.close(first);
    let (second, reused) = open(&runner, 1, &both, 128);
    assert_eq!(reused, 64);
    assert_eq!(logits(&runner, second, reused, &both[reused..]), *alone(&both).last().unwrap());
    assert_eq!((runner.load().totals.prefix_lookups, runner.load().totals.prefix_hits), (1 + 3, 2));
}

/// What is written behind shared pages stays one's own, and the pages stay as they were.
#[test]
fn going_back_behind_a_shared_page_changes_nobody_elses() {
    let runner = runner();
    let prompt = ids(100);
    let (first, _) = open(&runner, 1, &prompt, 128);
    logits(&runner, first, 0, &prompt);
    let (second, reused) = open(&runner, 1, &prompt, 128);
    assert_eq!(reused, 96);
    runner.trim(second, 40);
    let branch: Vec<u32> = prompt[..40].iter().chain(&ids(20)).copied().collect();
    assert_eq!(logits(&runner, second, 40, &branch[40..]), *alone(&branch).last().unwrap());
    let more: Vec<u32> = prompt.iter().chain(&[7]).copied().collect();
    assert_eq!(logits(&runner, first, 100, &[7]), *alone(&more).last().unwrap());
    let (third, reused) = open(&runner, 1, &prompt, 128);
    assert_eq!(logits(&runner, third, reused, &prompt[reused..]), *alone(&prompt).last().unwrap());
}

#[test]
fn a_bad_row_fails_alone() {
    let runner = runner();
    let [good, bad, late] = [0; 3].map(|_| runner.open(8).unwrap());
    let release = hold(&runner);
    let good_answer = submit(&runner, good, 0, Input::Tokens(vec![3]), Want::Logits);
    let mut row = vec![0.5; HIDDEN];
    row[4] = f32::NAN;
    let bad_answer = submit(&runner, bad, 0, Input::Rows(row), Want::Rows);
    let misplaced = submit(&runner, late, 3, Input::Tokens(vec![3]), Want::Rows);
    drop(release);
    assert_eq!(good_answer.recv_timeout(PATIENCE).unwrap().unwrap().rows, alone(&[3])[0]);
    let error = bad_answer.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert!(matches!(error, JobError::Stage(StageError::NotFinite { row: 0, column: 4 })), "{error}");
    let error = misplaced.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert!(matches!(error, JobError::Position { expected: 0, found: 3 }), "{error}");
    let token = submit(&runner, good, 1, Input::Tokens(vec![4000]), Want::Rows);
    let error = token.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert!(matches!(error, JobError::Stage(StageError::Token { id: 4000, .. })), "{error}");
}

#[test]
fn a_session_without_layers_passes_embedding_and_head_and_takes_no_pages() {
    let runner = runner();
    let session = runner.open_layers(0..0, 1).unwrap();
    assert_eq!(runner.load().kv_pages_free, 32);
    let row = runner.stage().embed(&[5]).unwrap();
    let expected = runner.stage().logits(&row).unwrap();
    for input in [Input::Rows(row), Input::Tokens(vec![5])] {
        let answer = submit(&runner, session, 77, input, Want::Logits);
        assert_eq!(answer.recv_timeout(PATIENCE).unwrap().unwrap().rows, expected);
    }
    let middle = Runner::spawn(Stage::load(&model("llama").open(), Span::layers(0..1)).unwrap(), CONFIG).unwrap();
    let session = middle.open(1).unwrap();
    let refused = |input: Input, want| {
        let (phase, deadline, reply) = (Phase::Decode, Instant::now() + PATIENCE, Box::new(|_| ()));
        middle.submit(Job { session, pos: 0, input, want, phase, deadline, reply }).unwrap_err()
    };
    assert_eq!(refused(Input::Tokens(vec![1]), Want::Rows), SubmitError::NotLoaded { part: "embedding" });
    assert_eq!(refused(Input::Rows(vec![0.0; HIDDEN]), Want::Logits), SubmitError::NotLoaded { part: "head" });
}

#[test]
fn idle_sessions_give_way_with_notice_the_longest_idle_first() {
    let runner = Runner::spawn(stage(), RunnerConfig { kv_pages: 3, ..CONFIG }).unwrap();
    let (tx, rx) = sync_channel(4);
    let open = |group, name: Option<&'static str>| {
        let tx = tx.clone();
        let hears = move |name| -> OnEvent { Box::new(move |event| tx.send((name, event)).unwrap()) };
        let spec =
            SessionSpec { group, layers: 0..LAYERS, max_rows: 32, on_event: name.map(hears), ..Default::default() };
        runner.open_with(spec).map(|opened| opened.session)
    };
    let [a, b] = ["a", "b"].map(|name| open(1, Some(name)).unwrap());
    let deaf = open(1, None).unwrap();
    logits(&runner, a, 0, &[1]);
    let release = hold_session(&runner, deaf);
    let c = open(1, Some("c")).unwrap();
    assert_eq!(rx.try_recv().unwrap(), ("b", SessionEvent::Evicted), "a was used since");
    assert!(matches!(runner.load().totals.evicted, 1));
    let waiting = submit(&runner, c, 0, Input::Tokens(vec![1]), Want::Rows);
    open(1, Some("d")).unwrap();
    assert_eq!(rx.try_recv().unwrap().0, "a", "c has a job that waits, and who hears nothing is left alone");
    let gone = Job {
        session: b,
        pos: 0,
        input: Input::Tokens(vec![1]),
        want: Want::Rows,
        phase: Phase::Decode,
        deadline: Instant::now(),
        reply: Box::new(|_| ()),
    };
    assert_eq!(runner.submit(gone).unwrap_err(), SubmitError::UnknownSession { session: b });
    drop(release);
    waiting.recv_timeout(PATIENCE).unwrap().unwrap();
    // Group 1 holds three pages; a newcomer of another group would hold one.
    let e = open(2, Some("e")).unwrap();
    assert_eq!(rx.try_recv().unwrap().0, "d");
    runner.close(e);
    let patient = Runner::spawn(stage(), RunnerConfig { kv_pages: 1, grace: PATIENCE, ..CONFIG }).unwrap();
    let spec = || SessionSpec { layers: 0..LAYERS, max_rows: 1, on_event: Some(self::deaf()), ..Default::default() };
    patient.open_with(spec()).unwrap();
    assert_eq!(patient.open_with(spec()).unwrap_err(), AdmissionError::Pages { needed_pages: 1, free_pages: 0 });
}

/// As [`hold`], in a session that is there.
fn hold_session(runner: &Runner, session: SessionId) -> SyncSender<()> {
    let (release, wait) = sync_channel::<()>(0);
    let (reached, there) = sync_channel(1);
    let reply = Box::new(move |_| {
        reached.send(()).unwrap();
        wait.recv().unwrap_err();
    });
    let (input, deadline) = (Input::Tokens(vec![0]), Instant::now() + PATIENCE);
    runner.submit(Job { session, pos: 0, input, want: Want::Rows, phase: Phase::Prefill, deadline, reply }).unwrap();
    there.recv_timeout(PATIENCE).unwrap();
    release
}
