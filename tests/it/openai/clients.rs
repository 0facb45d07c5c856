//! Other people's clients (`tests/sdk`) against three nodes that hold the demo model between them. They say that they skipped
//! where they are not installed: `.ci/run` does that.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{process::Command, time::timeout};

use crate::harness::{DEMO, Daemon, PATIENCE, Swarm, swarm, tempdir, until};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk");

/// A program of the environment in which the Python clients are installed.
pub fn python(program: &str) -> Option<PathBuf> {
    let environment =
        std::env::var_os("QUELEA_SDK_VENV").map_or_else(|| Path::new(FOLDER).join(".venv"), PathBuf::from);
    let program = environment.join("bin").join(program);
    if program.is_file() {
        return Some(program);
    }
    println!("skipped: no {} (pip install -r tests/sdk/requirements.txt in a virtual environment)", program.display());
    None
}

/// A swarm, and a daemon in it that serves nothing: whoever asks it is answered by three others.
async fn three() -> Swarm {
    let swarm = swarm(DEMO, &["0..2", "2..4", "4..6"]).await;
    for worker in &swarm.workers {
        swarm.boot.until_connected_to(worker.peer()).await;
    }
    swarm
}

fn base_url(daemon: &Daemon) -> String {
    format!("{}/v1", daemon.told("api")[0])
}

pub fn token(daemon: &Daemon) -> String {
    fs::read_to_string(Path::new(daemon.home()).join("api.token")).unwrap().trim().to_owned()
}

/// Runs a client to its end; what it printed.
async fn run(mut client: Command, daemon: &Daemon) -> String {
    let home = tempdir();
    client.env("BASE_URL", base_url(daemon)).env("API_KEY", token(daemon)).env("LLM_USER_PATH", home.path());
    client.env("NO_PROXY", "*").current_dir(FOLDER).stdin(Stdio::null()).kill_on_drop(true);
    let ended = timeout(PATIENCE * 2, client.output()).await.expect("the client does not end").unwrap();
    let stdout = String::from_utf8_lossy(&ended.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{client:?}: {stdout}\n{stderr}");
    stdout
}

#[tokio::test]
async fn the_official_python_client() {
    let Some(python) = python("python") else { return };
    let swarm = three().await;
    let mut client = Command::new(python);
    client.arg("check.py");
    let said = run(client, &swarm.boot).await;
    assert!(said.ends_with("done\n"), "{said}");
}

#[tokio::test]
async fn the_official_node_client() {
    if !Path::new(FOLDER).join("node_modules/openai").is_dir() {
        println!("skipped: no openai for Node (npm ci in tests/sdk)");
        return;
    }
    let swarm = three().await;
    let mut client = Command::new("node");
    client.arg("check.mjs");
    let said = run(client, &swarm.boot).await;
    assert!(said.ends_with("done\n"), "{said}");
}

#[tokio::test]
async fn llm() {
    let Some(llm) = python("llm") else { return };
    let swarm = three().await;
    let (url, key) = (base_url(&swarm.boot), token(&swarm.boot));
    let endpoint = |args: &[&str]| {
        let mut client = Command::new(&llm);
        client.args(["openai", "endpoint", &url, "--key", &key]).args(args);
        client
    };
    until("the model is listed", async || {
        let listed = run(endpoint(&["--models"]), &swarm.boot).await;
        listed.lines().any(|line| line.trim() == DEMO).then_some(())
    })
    .await;
    let ask = ["-m", DEMO, "-o", "temperature", "0", "What is a relay?"];
    let answer = run(endpoint(&ask), &swarm.boot).await;
    let whole = run(endpoint(&[&["--no-stream"], &ask[..]].concat()), &swarm.boot).await;
    assert!(answer.contains("relay") && answer == whole, "{answer:?} {whole:?}");
}
