//! When who asked, or the daemon that was asked, dies in the middle of an answer, or nobody takes a dead worker's place: the
//! answer can be gone on with, and is together the one that would have come.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Daemon, Ended, Launch, Process, Swarm, ids, long_model, quelea, swarm, tempdir, until};

const SPANS: [&str; 3] = ["0..2", "2..4", "4..6"];

/// Long enough to be cut off, however busy the machine is.
const TOKENS: &str = "1500";

/// Draws that depend on all that came before.
const DRAWN: [&str; 6] = ["--temperature", "0.8", "--seed", "11", "--repeat-penalty", "1.1"];

fn question<'a>(tokens: &'a str, draw: &[&'a str]) -> Vec<&'a str> {
    let args = ["infer", "--raw", "--ignore-eos", "--timeout", "30s", "--max-tokens", tokens, "--model", long_model()];
    [&args, draw, &["one two three"]].concat()
}

/// The answer that nothing cut off, by the whole model.
async fn uncut(draw: &[&str]) -> Ended {
    quelea(&[&question(TOKENS, draw)[..], &["--route", "local"]].concat()).await.expect(0)
}

/// A directory of one's own for answers.
struct Kept {
    home: TempDir,
}

impl Kept {
    fn new() -> Self {
        Self { home: tempdir() }
    }

    fn dir(&self) -> &str {
        self.home.path().to_str().unwrap()
    }

    fn logs(&self) -> Vec<PathBuf> {
        logs(self.home.path())
    }

    /// The one file of an answer, and the answer's name.
    fn log(&self) -> (PathBuf, String) {
        let [log] = self.logs().try_into().unwrap();
        let name = log.file_stem().unwrap().to_str().unwrap().to_owned();
        (log, name)
    }

    /// `quelea infer --resume`, by this machine alone.
    async fn resume(&self, name: &str) -> Ended {
        quelea(&["infer", "--resume", name, "--route", "local", "--data-dir", self.dir()]).await
    }

    /// An answer of this machine alone is cut off; how much of it was shown.
    async fn cut_off(&self, tokens: &str) -> String {
        let args = [&question(tokens, &[])[..], &["--route", "local", "--data-dir", self.dir()]].concat();
        let mut asking = Process::spawn(&args);
        asking.stdout_until(|text| !text.is_empty()).await;
        // A token is written a moment after it is shown; what was there before it is the answer's beginning, at least.
        let len = || fs::metadata(self.log().0).unwrap().len();
        let before = len();
        until("a token is written", async || (len() > before).then_some(())).await;
        killed(asking).await
    }
}

/// Goes on with an answer until its end; all that was shown of it, and how it ended. A worker that does not get to its rows on a
/// busy machine is taken for lost; nobody else has its layers here, so that the answer is cut off once more.
async fn until_the_end(name: &str, mut shown: String, args: &[&str]) -> (String, Ended) {
    for _ in 0..20 {
        let bytes = shown.len().to_string();
        let rest = quelea(&[&["infer", "--resume", name, "--shown", &bytes, "--timeout", "30s"], args].concat()).await;
        shown += &rest.stdout;
        if rest.code == Some(0) {
            return (shown, rest);
        }
        rest.expect(6).says(&["(layers ", "it goes on with: "]);
    }
    panic!("no end of {name}");
}

fn logs(home: &Path) -> Vec<PathBuf> {
    fs::read_dir(home.join("sessions")).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

/// Kills who shows an answer once something has been shown; what it was.
async fn killed(mut asking: Process) -> String {
    asking.stdout_until(|text| !text.is_empty()).await;
    asking.signal(Signal::KILL);
    let Ended { code, stdout, .. } = asking.end().await;
    assert_eq!(code, None, "it came to its end before it was killed");
    stdout
}

#[tokio::test]
async fn an_answer_goes_on_when_who_asked_was_killed() {
    let whole = uncut(&[]).await.stdout;
    let (swarm, kept) = (swarm(long_model(), &SPANS).await, Kept::new());
    let here = ["--bootstrap", swarm.boot.addr(), "--data-dir", kept.dir()];
    let shown = killed(Process::spawn(&[&question(TOKENS, &[])[..], &here].concat())).await;
    assert!(whole.starts_with(&shown));
    let (shown, _) = until_the_end("last", shown, &here).await;
    assert_eq!(shown, whole);
    assert!(kept.logs().is_empty(), "nothing is kept of an answer that is complete");
    let again = quelea(&[&["infer", "--resume", "last"], &here[..]].concat()).await.expect(5);
    again.says(&["QUE-2101", "kept for a day"]);
}

#[tokio::test]
async fn a_drawn_answer_goes_on_with_the_same_draws_however_often_it_is_cut_off() {
    let whole = uncut(&DRAWN).await.stdout;
    let (swarm, kept) = (swarm(long_model(), &SPANS).await, Kept::new());
    let here = ["--bootstrap", swarm.boot.addr(), "--data-dir", kept.dir()];
    let mut shown = killed(Process::spawn(&[&question(TOKENS, &DRAWN)[..], &here].concat())).await;
    let bytes = shown.len().to_string();
    shown += &killed(Process::spawn(&[&["infer", "--resume", "last", "--shown", &bytes], &here[..]].concat())).await;
    assert!(whole.starts_with(&shown));
    // How it is computed may change; and all of it is shown unless said otherwise.
    let (_, name) = kept.log();
    let (again, last) = until_the_end(&name, String::new(), &[&here[..], &["--speculate", "4"]].concat()).await;
    assert_eq!(again, whole);
    last.says(&[" of them from before"]);
}

#[tokio::test]
async fn an_answer_goes_on_through_a_daemon_that_was_killed_and_started_again() {
    let whole = uncut(&DRAWN).await.stdout;
    let (swarm, kept) = (swarm(long_model(), &SPANS).await, Kept::new());
    let coordinator = Launch::new().home(kept.dir()).bootstrap(&swarm.boot);
    let daemon = coordinator.start().await;
    let mut asking = Process::spawn(&[&question(TOKENS, &DRAWN)[..], &["--data-dir", kept.dir()]].concat());
    asking.stdout_until(|text| !text.is_empty()).await;
    daemon.signal(Signal::KILL);
    let lost = asking.end().await.expect(3).says(&["stopped answering", "QUE-1003"]);
    daemon.end().await;
    let _daemon = coordinator.start().await;
    // As it says.
    let command = lost.stderr.lines().find_map(|line| line.strip_prefix("it goes on with: quelea ")).unwrap();
    let words: Vec<&str> = command.split(' ').collect();
    let ["infer", "--resume", name, "--data-dir", dir, "--shown", bytes] = words[..] else { panic!("{command}") };
    assert_eq!((dir, bytes), (kept.dir(), &*lost.stdout.len().to_string()));
    let (shown, _) = until_the_end(name, lost.stdout.clone(), &["--data-dir", dir]).await;
    assert_eq!(shown, whole);
    assert!(kept.logs().is_empty());
}

async fn rows(worker: &Daemon) -> f64 {
    worker.metric("quelea_stage_rows_total", "").await
}

#[tokio::test]
async fn an_answer_that_nobody_can_go_on_with_is_kept_until_somebody_can() {
    let whole = uncut(&["--json"]).await.json();
    let Swarm { boot, mut workers } = swarm(long_model(), &SPANS).await;
    // The error comes from a daemon, as a line of JSON over HTTP.
    let daemon = Launch::new().bootstrap(&boot).start().await;
    let here = ["--json", "--data-dir", daemon.home()];
    let args = [&["infer", "--raw", "--ignore-eos", "--timeout", "4s", "--max-tokens", TOKENS], &here[..]].concat();
    let asking = Process::spawn(&[&args[..], &["--model", long_model(), "one two three"]].concat());
    until("the answer has begun", async || (rows(&workers[1]).await > 50.0).then_some(())).await;
    workers[1].signal(Signal::KILL);
    let cut = asking.end().await.expect(6);
    drop(workers.remove(1));
    let cut: Value = serde_json::from_str(&cut.stderr).unwrap();
    let error = &cut["error"];
    assert!(error["message"].as_str().unwrap().contains("(layers "), "{error}");
    let text = error["text"].as_str().unwrap();
    assert!(!text.is_empty() && whole["text"].as_str().unwrap().starts_with(text), "{error}");
    let name = error["resume"].as_str().unwrap();

    // Still nobody: nothing is lost.
    let resume = [&["infer", "--resume", name, "--timeout", "4s"], &here[..]].concat();
    let still: Value = serde_json::from_str(&quelea(&resume).await.expect(6).stderr).unwrap();
    assert_eq!((still["error"]["resume"].as_str(), &still["error"]["text"]), (Some(name), &error["text"]));

    workers.push(Launch::new().bootstrap(&boot).serve(long_model(), SPANS[1]).start().await);
    let answer = until("an answer", async || {
        let ended = quelea(&resume).await;
        (ended.code == Some(0)).then(|| ended.json())
    });
    let answer = answer.await;
    assert_eq!((ids(&answer), &answer["text"]), (ids(&whole), &whole["text"]), "another answer than in one piece");
    assert!(answer["resumed_tokens"].as_u64().unwrap() > 0);
    for worker in &workers {
        worker.until_sessions(0).await;
    }
}

#[tokio::test]
async fn nobody_goes_on_with_an_answer_that_somebody_goes_on_with() {
    let kept = Kept::new();
    // Longer than anybody waits here.
    kept.cut_off("12000").await;
    let (_, name) = kept.log();
    let local = ["--route", "local", "--data-dir", kept.dir()];
    let mut first = Process::spawn(&[&["infer", "--resume", &name], &local[..]].concat());
    first.stdout_until(|text| !text.is_empty()).await;
    for second in [&*name, "last"] {
        kept.resume(second).await.expect(6).says(&["QUE-5004", "being answered", &name]);
    }
    // Who is interrupted says how to go on, and is not in the way.
    first.signal(Signal::INT);
    first.end().await.expect(130).says(&["cancelled", &format!("it goes on with: quelea infer --resume {name}")]);
    let mut third = Process::spawn(&[&["infer", "--resume", "last"], &local[..]].concat());
    third.stdout_until(|text| !text.is_empty()).await;
}

#[tokio::test]
async fn answers_that_are_unknown_expired_damaged_or_anothers_are_refused() {
    let whole = uncut(&[]).await.stdout;
    let kept = Kept::new();
    kept.resume("0123456789abcdef").await.expect(5).says(&["QUE-2101", "0123456789abcdef", "kept for a day"]);
    kept.resume("../identity").await.expect(2).says(&["QUE-1001", "16 hex digits"]);
    kept.resume("last").await.expect(5).says(&["QUE-2101"]);
    for flag in ["--temperature=1", "--max-tokens=3", "--system=x", "a prompt"] {
        quelea(&["infer", "--resume", "last", flag]).await.expect(2).says(&["cannot be used with"]);
    }
    quelea(&["infer", "--shown", "3", "hi"]).await.expect(2).says(&["cannot be used with"]);
    quelea(&["infer", "--shown", "3"]).await.expect(2).says(&["--resume"]);

    let shown = kept.cut_off(TOKENS).await;
    let (log, name) = kept.log();
    let bytes = fs::read(&log).unwrap();

    let other = Kept::new();
    fs::create_dir(other.home.path().join("sessions")).unwrap();
    fs::copy(&log, other.home.path().join("sessions").join(log.file_name().unwrap())).unwrap();
    other.resume(&name).await.expect(8).says(&["QUE-5003", "another identity"]);

    let mut damaged = bytes.clone();
    damaged[60] ^= 1;
    fs::write(&log, &damaged).unwrap();
    kept.resume(&name).await.expect(8).says(&["QUE-5003", "damaged"]);

    // Torn off at its end, it is only shorter.
    fs::write(&log, &bytes[..bytes.len() - 1]).unwrap();
    let answer = kept.resume(&name).await.expect(0);
    assert!(answer.stdout.starts_with(&shown));
    assert_eq!(answer.stdout, whole);

    fs::write(&log, &bytes).unwrap();
    let yesterday = SystemTime::now() - Duration::from_secs(25 * 3600);
    File::options().write(true).open(&log).unwrap().set_modified(yesterday).unwrap();
    kept.resume(&name).await.expect(5).says(&["QUE-2101", "kept for a day"]);
    assert!(!log.exists());
}

#[tokio::test]
async fn an_answer_comes_where_none_can_be_kept() {
    let kept = Kept::new();
    fs::write(kept.home.path().join("sessions"), "no folder").unwrap();
    let ask = ["infer", "--route", "local", "--max-tokens", "8", "--ignore-eos", "hi", "--data-dir", kept.dir()];
    let plain = quelea(&ask).await.expect(0).says(&["warning: ", "cannot be gone on with"]);
    let json = quelea(&[&ask[..], &["--json"]].concat()).await.expect(0);
    assert_eq!(json.stderr, "");
    let json = json.json();
    assert_eq!(json["text"].as_str(), plain.stdout.strip_suffix('\n'));
    assert!(json["warnings"][0].as_str().unwrap().contains("cannot be gone on with"), "{json}");
}
