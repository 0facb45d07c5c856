//! The OpenAPI document against a running node: schemathesis (`tests/sdk`) asks every route, with requests that are right and
//! such as are wrong, and compares what comes with what the document says. It says that it skipped where it is not installed.

use std::{fs, path::Path, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use crate::harness::{DEMO, Launch, http_client, tempdir};
use crate::openai::{python, token};

/// How long the whole of it may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is not asked: the first ends the node.
const LEFT_OUT: [&str; 1] = ["/api/v1/shutdown"];

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk");

#[tokio::test]
async fn answers_are_as_the_document_says() {
    let Some(schemathesis) = python("schemathesis") else { return };
    let room = tempdir();
    let boot = Launch::new().serve(DEMO, "0..3").args(&["--service", "echo"]).start().await;
    let node = Launch::new().bootstrap(&boot).serve(DEMO, "all").args(&["--service", "echo,compute"]).start().await;
    node.until_connected_to(boot.peer()).await;
    // So that lists have items.
    node.command(&["infer", "--max-tokens", "4", "hi"]).await.expect(0);
    node.command(&["ledger", "iou", "create", boot.peer(), "0.5"]).await.expect(0);
    node.command(&["peers", "ban", "203.0.113.0/24"]).await.expect(0);
    node.command(&["bootstrap", "add", boot.addr()]).await.expect(0);
    node.command(&["dht", "put", "greeting", "hello"]).await.expect(0);
    let agent = concat!(env!("CARGO_MANIFEST_DIR"), "/agents/hello/hello.wasm");
    node.command(&["agent", "install", agent]).await.expect(0);
    node.command(&["token", "create", "reader", "--scope", "read"]).await.expect(0);
    let base = node.told("api")[0].to_owned();
    let url = format!("{base}/api/v1/openapi.json");
    let served = http_client().build().unwrap().get(&url).send().await.unwrap();
    assert_eq!(served.status(), 200);
    let served: serde_json::Value = served.json().await.unwrap();
    let committed = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json")).unwrap();
    assert_eq!(served, serde_json::from_str::<serde_json::Value>(&committed).unwrap(), "docs/openapi.json is served");
    let mut run = Command::new(schemathesis);
    run.args(["--config-file", "schemathesis.toml", "run", &url]);
    for path in LEFT_OUT {
        run.args(["--exclude-path", path]);
    }
    run.env("BASE_URL", &base).env("API_KEY", token(&node)).env("FUZZ_HOOKS", Path::new(FOLDER).join("fuzz.py"));
    run.env("PEER", boot.peer()).env("PEER_ADDR", boot.addr()).env("FOLDER", room.path()).env("NO_PROXY", "*");
    run.current_dir(FOLDER).stdin(Stdio::null()).kill_on_drop(true);
    let ended = timeout(PATIENCE, run.output()).await.expect("schemathesis does not end").unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "{said}\n{wrong}");
    println!("{said}");
    node.command(&["health"]).await.expect(0);
}
