//! Models from peer to peer: what was pulled is the model, a pull that was killed goes on where it stopped, and peers that lie or
//! fall silent cost nothing but themselves.

mod download;
pub mod fake;
mod web;

use std::{fs, path::Path};

use quelea_engine::{
    Gguf, Outline,
    quantize::Mix,
    synth::{ModelShape, SHAPES, Synth},
};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use self::fake::{Fake, Manner};
use crate::harness::{Daemon, Launch, Process, ids, quelea, tempdir, until};

/// Forty chunks and some small tensors, in four layers.
const SHAPE: ModelShape = ModelShape {
    name: "pulled",
    layers: 4,
    hidden: 512,
    feed_forward: 1024,
    heads: 8,
    kv_heads: 4,
    head_dim: 64,
    vocab: 512,
    ..SHAPES[0]
};

/// A model's file.
struct Model {
    path: String,
    id: String,
    outline: Outline,
    _dir: TempDir,
}

impl Model {
    fn new(seed: u64) -> Self {
        let dir = tempdir();
        let path = dir.path().join("model.gguf");
        Synth::new(&SHAPE, Mix::F32, seed).unwrap().write_file(&path, false, |_| Ok(())).unwrap();
        let outline = Outline::of(&Gguf::open(&path).unwrap()).unwrap();
        let id = hex::encode(outline.manifest().unwrap().id());
        Self { path: path.to_str().unwrap().to_owned(), id, outline, _dir: dir }
    }

    async fn given(&self, args: &[&str]) -> Daemon {
        Launch::new().serve(&self.path, "all").args(args).start().await
    }

    /// A short answer, computed by this daemon alone.
    async fn answer(&self, daemon: &Daemon) -> Vec<u64> {
        let args = ["infer", "--json", "--route", "local", "--model", &self.path];
        ids(&daemon.command(&[&args[..], &ASK].concat()).await.expect(0).json())
    }
}

const ASK: [&str; 5] = ["--raw", "--ignore-eos", "--max-tokens", "6", "Once"];

/// Arguments of a pull without a daemon.
fn pull<'a>(what: &'a str, bootstrap: &'a str, home: &'a TempDir) -> Vec<&'a str> {
    vec!["model", "pull", what, "--json", "--bootstrap", bootstrap, "--data-dir", home.path().to_str().unwrap()]
}

fn part(home: &TempDir, model: &Model, name: &str) -> std::path::PathBuf {
    home.path().join("models").join(&model.id).join(name)
}

/// Chunks that a killed pull would find again.
fn noted(have: &Path) -> u32 {
    fs::read(have).unwrap_or_default().iter().map(|byte| byte.count_ones()).sum()
}

fn number(progress: &Value, key: &str) -> u64 {
    progress[key].as_u64().unwrap_or_else(|| panic!("no {key} in {progress}"))
}

#[tokio::test]
async fn a_model_goes_from_peer_to_peer_and_answers_the_same() {
    let model = Model::new(1);
    let first = model.given(&[]).await;
    let expected = model.answer(&first).await;
    let second = Launch::new().bootstrap(&first).start().await;
    second.until_connected_to(first.peer()).await;
    let pulled = second.command(&["model", "pull", &model.id, "--json"]).await.expect(0).json();
    assert_eq!((&pulled["schema"], &pulled["model"]["whole"]), (&"quelea.pull/v1".into(), &true.into()));
    assert_eq!(number(&pulled["model"]["progress"], "fetched"), u64::from(model.outline.chunks()));
    first.stop().await;
    // With nobody else there, from what was pulled.
    let asked = ["infer", "--json", "--route", "local", "--model", &model.id];
    let answer = second.command(&[&asked[..], &ASK].concat()).await.expect(0).json();
    assert_eq!(ids(&answer), expected);

    // And on from there, to somebody who has no daemon.
    let home = tempdir();
    let pulled = quelea(&pull(&model.id, second.addr(), &home)).await.expect(0).json();
    let path = pulled["model"]["path"].as_str().unwrap();
    let shown = quelea(&["model", "show", path, "--json"]).await.expect(0).json();
    assert_eq!(shown["id"], model.id.as_str());
    let again = quelea(&pull(&model.id, second.addr(), &home)).await.expect(0).json();
    assert_eq!(number(&again["model"]["progress"], "fetched"), 0, "nothing is fetched twice");
}

#[tokio::test]
async fn a_pull_that_is_killed_goes_on_where_it_stopped() {
    let model = Model::new(2);
    // Twenty seconds for all of it.
    let giver = model.given(&["--upload-limit", "2M"]).await;
    let home = tempdir();
    let pulling = Process::spawn(&pull(&model.id, giver.addr(), &home));
    let have = part(&home, &model, "have");
    until("some chunks on the disk", async || (noted(&have) >= 16).then_some(())).await;
    pulling.signal(Signal::KILL);
    assert_eq!(pulling.end().await.code, None);
    let there = noted(&have);
    assert!(there < model.outline.chunks(), "killed too late");
    let faster = model.given(&[]).await;
    let done = quelea(&pull(&model.id, faster.addr(), &home)).await.expect(0).json();
    let progress = &done["model"]["progress"];
    assert_eq!(number(progress, "kept"), u64::from(there));
    assert_eq!(number(progress, "fetched"), u64::from(model.outline.chunks() - there));
    assert_eq!(done["model"]["whole"], true);
    assert!(!have.exists() && part(&home, &model, "model.gguf").is_file());
}

#[tokio::test]
async fn several_peers_give_and_one_that_lies_is_asked_no_more() {
    let model = Model::new(3);
    let (one, two) = (model.given(&["--upload-limit", "2M"]).await, model.given(&["--upload-limit", "2M"]).await);
    let liar = Fake::new(&model.outline, Manner::Corrupt).await;
    let home = tempdir();
    let all = format!("{},{},{}", liar.addr, one.addr(), two.addr());
    let done = quelea(&pull(&model.id, &all, &home)).await.expect(0).says(&["corrupt"]).json();
    assert_eq!(done["model"]["whole"], true);
    assert!(number(&done["model"]["progress"], "refused") >= 1);
    // As many as were on their way when the first answer came.
    assert!((1..=2).contains(&liar.asked()), "asked {} times", liar.asked());
    for giver in [&one, &two] {
        let given = giver.metric("quelea_rpc_requests_total", "protocol=\"weights\"").await;
        assert!(given >= 3.0, "only {given} questions");
    }
    let gguf = Gguf::open(part(&home, &model, "model.gguf")).unwrap();
    assert_eq!(Outline::of(&gguf).unwrap(), model.outline);
}

#[tokio::test]
async fn a_peer_that_falls_silent_does_not_stall_a_pull() {
    let model = Model::new(4);
    let giver = model.given(&["--upload-limit", "4M"]).await;
    let silent = Fake::new(&model.outline, Manner::Silent).await;
    let home = tempdir();
    let both = format!("{},{}", silent.addr, giver.addr());
    let pulled = quelea(&pull(&model.id, &both, &home)).await.expect(0);
    assert_eq!(pulled.json()["model"]["whole"], true);
    assert!(silent.asked() >= 1);
}

#[tokio::test]
async fn an_outline_with_another_tokenizers_length_blames_nobody_else() {
    let model = Model::new(5);
    let giver = model.given(&[]).await;
    let liar = Fake::new(&model.outline, Manner::WrongOutline).await;
    let home = tempdir();
    let both = format!("{},{}", liar.addr, giver.addr());
    // Nobody else answers until the liar has.
    giver.signal(Signal::STOP);
    let pulling = Process::spawn(&pull(&model.id, &both, &home));
    until("the liar is asked for the outline", async || (liar.outlines() > 0).then_some(())).await;
    giver.signal(Signal::CONT);
    let done = pulling.end().await.expect(0).json();
    assert_eq!(done["model"]["whole"], true);
    assert_eq!(number(&done["model"]["progress"], "refused"), 0);
    assert!(liar.asked() == 0, "it has nothing to give of the real model");
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_it_is_fetched() {
    let model = Model::new(6);
    let giver = model.given(&[]).await;
    let home = tempdir();
    let small = [&pull(&model.id, giver.addr(), &home)[..], &["--models-quota", "4M"]].concat();
    quelea(&small).await.expect(1).says(&["quota of 4 MiB", "--models-quota"]);
    // A span may fit where the whole does not.
    let layers = [&pull(&model.id, giver.addr(), &home)[..], &["--models-quota", "16M", "--layers", "1..2"]].concat();
    let done = quelea(&layers).await.expect(0).json();
    assert_eq!((&done["model"]["layers"], &done["model"]["whole"]), (&serde_json::json!(["1..2"]), &false.into()));
    let kept = number(&done["model"], "bytes");
    let rest = [&pull(&model.id, giver.addr(), &home)[..], &["--models-quota", "16M"]].concat();
    quelea(&rest).await.expect(1).says(&["quota"]);
    let listed =
        quelea(&["model", "list", "--json", "--data-dir", home.path().to_str().unwrap()]).await.expect(0).json();
    assert_eq!(number(&listed["items"][0], "bytes"), kept, "nothing is lost");
}

#[tokio::test]
async fn a_worker_without_a_file_pulls_its_layers_and_gives_them_on() {
    let model = Model::new(7);
    let first = model.given(&["--upload-limit", "8M"]).await;
    let expected = model.answer(&first).await;
    let worker = Launch::new().bootstrap(&first).serve(&model.id, "0..2").start().await;
    // Somebody who knows the worker alone gets of it what it has, before it has all.
    let home = tempdir();
    let mut args = pull(&model.id, worker.addr(), &home);
    args.extend(["--layers", "0..2"]);
    let early = Process::spawn(&args);
    let loaded = async || worker.status().await["serves"].as_array().is_some_and(|all| !all.is_empty()).then_some(());
    until("the worker serves its layers", loaded).await;
    early.end().await.expect(0);
    let of_worker = worker.command(&["model", "list", "--json"]).await.expect(0).json();
    assert_eq!(of_worker["items"][0]["layers"], serde_json::json!(["0..2"]), "its own layers and no others");
    drop(first);
    let late = tempdir();
    let late = [&pull(&model.id, worker.addr(), &late)[..], &["--layers", "0..2"]].concat();
    let late = quelea(&late).await.expect(0).json();
    assert_eq!(late["model"]["layers"], serde_json::json!(["0..2"]), "of the worker alone");

    let other = Launch::new().bootstrap(&worker).serve(&model.path, "2..4").start().await;
    let asked = ["infer", "--json", "--bootstrap", other.addr(), "--model", &model.path];
    let answer = until("an answer of both", async || {
        let ended = quelea(&[&asked[..], &ASK].concat()).await;
        (ended.code == Some(0)).then_some(ended)
    });
    let answer = answer.await.json();
    assert_eq!(ids(&answer), expected);
}

#[tokio::test]
async fn what_is_on_the_disk_is_listed_and_what_is_in_use_is_not_removed() {
    let model = Model::new(8);
    let home = tempdir();
    let dir = home.path().to_str().unwrap();
    let at = async |args: &[&str]| quelea(&[&["model"], args, &["--data-dir", dir]].concat()).await;
    at(&["import", "nothing.gguf"]).await.expect(5).says(&["there is no file", "hf:OWNER/REPO"]);
    at(&["import", &model.path, "--models-quota", "1M"]).await.expect(1).says(&["quota of 1 MiB"]);
    let imported = at(&["import", &model.path, "--json"]).await.expect(0).json();
    assert_eq!((&imported["model"]["model"], &imported["model"]["whole"]), (&model.id.as_str().into(), &true.into()));
    let listed = at(&["list", "--json"]).await.expect(0).json();
    assert_eq!(listed["schema"], "quelea.models/v1");
    assert!(listed["generated_at"].is_string() && listed["items"][0]["model"] == model.id.as_str());
    assert!(at(&["list"]).await.expect(0).stdout.contains(&model.id));
    let shown = at(&["show", &model.id[..12], "--json"]).await.expect(0).json();
    assert_eq!(shown["id"], model.id.as_str());

    let daemon = Launch::new().home(home.path()).serve(&model.id, "1..3").start().await;
    let loaded = until("the layers are loaded", async || {
        let all = daemon.command(&["model", "ps", "--json"]).await.expect(0).json();
        all["items"][0].is_object().then_some(all)
    });
    let loaded = loaded.await;
    assert_eq!((&loaded["schema"], &loaded["items"][0]["layers"]), (&"quelea.model_ps/v1".into(), &"1..3".into()));
    assert!(number(&loaded["items"][0], "weight_bytes") > 0);
    assert!(daemon.command(&["model", "ps"]).await.expect(0).stdout.contains("1..3"));
    at(&["rm", &model.id[..8]]).await.expect(2).says(&["are served at present"]);
    daemon.stop().await;
    at(&["rm", &model.id[..8], "--json"]).await.expect(0);
    at(&["rm", &model.id]).await.expect(5).says(&["no model on this disk"]);
    assert_eq!(at(&["list", "--json"]).await.expect(0).json()["items"], serde_json::json!([]));
}

/// Look-ups of providers that have ended at a node.
async fn lookups(daemon: &Daemon) -> u64 {
    let stats = daemon.command(&["dht", "stats", "--json"]).await.expect(0).json();
    let counted = &stats["queries"]["providers"];
    counted["ok"].as_u64().unwrap_or_else(|| panic!("{stats}")) + counted["failed"].as_u64().unwrap()
}

#[tokio::test]
async fn a_model_that_nobody_has_is_refused_as_soon_as_that_is_sure() {
    let boot = Launch::new().start().await;
    let other = Launch::new().bootstrap(&boot).start().await;
    let mut asker = Launch::new().bootstrap(&boot).start().await;
    asker.until_connected_to(other.peer()).await;
    let unknown = "5eed".repeat(16);
    let refused = asker.command(&["infer", "--model", &unknown, "Once"]).await.expect(5);
    refused.says(&["known by its id only", "--model path/to/model.gguf"]);
    // Not because the patience was over.
    asker.logs("nobody provides the model").await;
    assert!(lookups(&asker).await >= 4);
}

#[tokio::test]
async fn a_model_whose_only_giver_is_slow_to_answer_is_not_refused() {
    let model = Model::new(9);
    let boot = Launch::new().start().await;
    let giver = Launch::new().bootstrap(&boot).serve(&model.path, "all").start().await;
    let expected = model.answer(&giver).await;
    let asker = Launch::new().bootstrap(&boot).start().await;
    asker.until_connected_to(giver.peer()).await;
    until("the giver's record is out", async || {
        let found = asker.command(&["model", "coverage", &model.path, "--json"]).await.expect(0).json();
        found["missing"].as_array().is_some_and(Vec::is_empty).then_some(())
    })
    .await;
    giver.signal(Signal::STOP);
    let before = lookups(&asker).await;
    let args = [&["infer", "--json", "--model", &model.id, "--data-dir", asker.home()], &ASK[..]].concat();
    let asking = Process::spawn(&args);
    until("look-ups", async || (lookups(&asker).await >= before + 2).then_some(())).await;
    giver.signal(Signal::CONT);
    assert_eq!(ids(&asking.end().await.expect(0).json()), expected);
}
