//! Models from the web: whatever a server does on the way, what is kept is the file, and the token goes nowhere else.

use std::fs;

use rustix::process::Signal;
use tempfile::TempDir;

use super::{
    Model, number,
    web::{Step, Web, etag},
};
use crate::harness::{Ended, Process, tempdir, until};

const TOKEN: &str = "hf_a-token-that-nobody-else-may-see";
const HALF: usize = 20 << 20;

fn pull<'a>(what: &'a str, home: &'a TempDir) -> Vec<&'a str> {
    vec!["model", "pull", what, "--json", "--data-dir", home.path().to_str().unwrap()]
}

async fn from_hub(hub: &Web, what: &str, home: &TempDir) -> Ended {
    let env = [("HF_ENDPOINT", hub.url.as_str()), ("HF_TOKEN", TOKEN)];
    Process::spawn_with(&pull(what, home), &env).end().await
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes))
}

/// Every file below a folder.
fn contents(dir: &std::path::Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(
            |entry| if entry.path().is_dir() { contents(&entry.path()) } else { vec![fs::read(entry.path()).unwrap()] },
        )
        .collect()
}

#[tokio::test]
async fn a_repositorys_file_comes_whole_through_a_bad_line_and_the_token_stays_with_the_hub() {
    let model = Model::new(11);
    let file = fs::read(&model.path).unwrap();
    let slow_down = Step::Only(429, "retry-after: 1\r\n".into());
    let steps = [Step::Cut(HALF), slow_down, Step::Cut(1 << 20), Step::Only(503, String::new())];
    let cdn = Web::of(file.clone(), steps).await;
    let hub = Web::hub(&cdn, &sha256(&file), TOKEN).await;
    let home = tempdir();
    let ended = from_hub(&hub, "hf:o/r", &home).await.expect(0);
    let pulled = ended.json();
    assert_eq!((&pulled["model"]["model"], &pulled["model"]["whole"]), (&model.id.as_str().into(), &true.into()));
    let (at_hub, at_cdn) = (hub.seen(), cdn.seen());
    assert_eq!(at_hub[0].path, "/api/models/o/r");
    assert!(at_hub.iter().all(|seen| seen.token.as_deref() == Some(&format!("Bearer {TOKEN}"))));
    assert!(at_cdn.iter().all(|seen| seen.token.is_none()), "the token left the hub");
    assert_eq!(at_cdn[0].range, None);
    let from = |n: usize| at_cdn[n].range.as_deref().map(|range| range[6..range.len() - 1].parse::<usize>().unwrap());
    assert!((1..=HALF).contains(&from(1).unwrap()) && from(2) == from(1));
    assert!(from(3) > from(2), "what has come is not fetched again");
    assert!(!ended.stderr.contains(TOKEN) && !ended.stdout.contains(TOKEN));
    assert!(contents(home.path()).iter().all(|file| !file.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes())));
}

#[tokio::test]
async fn a_file_that_changes_on_the_way_is_begun_again() {
    let (before, after) = (Model::new(12), Model::new(13));
    let new = fs::read(&after.path).unwrap();
    let web = Web::of(fs::read(&before.path).unwrap(), [Step::Cut(HALF), Step::Become(new)]).await;
    let home = tempdir();
    let what = format!("{}/model.gguf", web.url);
    let pulled = Process::spawn(&pull(&what, &home)).end().await.expect(0).json();
    assert_eq!(pulled["model"]["model"], after.id.as_str());
}

#[tokio::test]
async fn a_server_without_ranges_and_one_that_cuts_off_nothing_are_both_fine() {
    let model = Model::new(14);
    let file = fs::read(&model.path).unwrap();
    // The first gives all again after a cut; the second has nothing more to give when all is there.
    let web = Web::of(file.clone(), [Step::Cut(HALF), Step::Whole]).await;
    let home = tempdir();
    let what = format!("{}/model.gguf", web.url);
    let pulled = Process::spawn(&pull(&what, &home)).end().await.expect(0).json();
    assert_eq!(number(&pulled["model"], "bytes"), model.outline.bytes());
}

#[tokio::test]
async fn a_download_that_is_killed_goes_on_where_it_stopped() {
    let model = Model::new(15);
    let file = fs::read(&model.path).unwrap();
    // After half of it the server is not there for a while.
    let wait = Step::Only(429, "retry-after: 60\r\n".into());
    let web = Web::of(file, [Step::Cut(HALF), wait]).await;
    let home = tempdir();
    let what = format!("{}/model.gguf", web.url);
    let first = Process::spawn(&pull(&what, &home));
    until("the server's second answer", async || (web.seen().len() == 2).then_some(())).await;
    first.signal(Signal::KILL);
    first.end().await;
    Process::spawn(&pull(&what, &home)).end().await.expect(0);
    let seen = web.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen[2].range.is_some() && seen[2].range == seen[1].range);
}

#[tokio::test]
async fn what_cannot_be_had_is_said_and_what_is_wrong_is_thrown_away() {
    let model = Model::new(16);
    let file = fs::read(&model.path).unwrap();
    let cdn = Web::of(file.clone(), []).await;
    let home = tempdir();
    // A checksum of something else.
    let hub = Web::hub(&cdn, &sha256(b"something else"), TOKEN).await;
    from_hub(&hub, "hf:o/r:m.gguf", &home).await.expect(1).says(&["checksum", "thrown away"]);
    assert!(contents(home.path()).iter().all(|kept| kept.len() < 1024));
    from_hub(&hub, "hf:o/r:nothing.gguf", &home).await.expect(5).says(&["has no /o/r/resolve/main/nothing.gguf"]);
    let env = [("HF_ENDPOINT", hub.url.as_str()), ("HF_TOKEN", "")];
    let refused = Process::spawn_with(&pull("hf:o/r", &home), &env).end().await;
    refused.expect(4).says(&["401", "HF_TOKEN"]);
    // Bytes that are no model.
    let web = Web::of(b"<html>not here</html>".to_vec(), []).await;
    let what = format!("{}/model.gguf", web.url);
    Process::spawn(&pull(&what, &home)).end().await.expect(1).says(&["cannot be used"]);
    assert!(contents(home.path()).iter().all(|kept| kept.len() < 1024));
    let small = [&pull(&what, &home)[..], &["--models-quota", "1M"]].concat();
    let big = Web::of(file, []).await;
    let what = format!("{}/model.gguf", big.url);
    let small: Vec<&str> =
        small.into_iter().map(|arg| if arg.starts_with("http") { what.as_str() } else { arg }).collect();
    Process::spawn(&small).end().await.expect(1).says(&["quota of 1 MiB"]);
}

#[tokio::test]
async fn a_download_that_was_whole_already_is_only_stored() {
    let model = Model::new(17);
    let file = fs::read(&model.path).unwrap();
    let (len, etag) = (file.len(), etag(&file));
    let web = Web::of(file.clone(), []).await;
    let home = tempdir();
    let what = format!("{}/model.gguf", web.url);
    // As a process leaves it that is killed between the last byte and the next step.
    let downloads = home.path().join("models/downloads");
    fs::create_dir_all(&downloads).unwrap();
    let name = blake3::hash(what.as_bytes()).to_hex();
    fs::write(downloads.join(format!("{name}.part")), file).unwrap();
    let note = serde_json::json!({ "url": what, "etag": etag, "bytes": len, "sha256": null });
    fs::write(downloads.join(format!("{name}.json")), note.to_string()).unwrap();
    let pulled = Process::spawn(&pull(&what, &home)).end().await.expect(0).json();
    assert_eq!(pulled["model"]["model"], model.id.as_str());
    let seen = web.seen();
    assert_eq!(
        (seen.len(), seen[0].range.as_deref()),
        (1, Some(format!("bytes={len}-").as_str())),
        "416 is all it says"
    );
}
