//! Health and metrics of a running daemon.

use std::{
    collections::HashSet,
    io::Write as _,
    process::{Command, Stdio},
};

use reqwest::StatusCode;
use serde_json::Value;

use crate::harness::{DEMO, Launch, draining, until};

#[tokio::test]
async fn health_is_told_in_three_ways() {
    let daemon = Launch::new().serve(DEMO, "all").start().await;
    let (status, _, body) = daemon.fetch("/livez").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "ok"));
    let (status, _, body) = daemon.fetch("/readyz").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "ok"));
    let (status, _, body) = daemon.fetch("/readyz?verbose").await;
    assert_eq!(status, StatusCode::OK);
    let (status_of_health, kind, health) = daemon.fetch("/health").await;
    assert_eq!((status_of_health, kind.as_str()), (StatusCode::OK, "application/json"));
    let health: Value = serde_json::from_str(&health).unwrap();
    assert_eq!(health["schema"], "quelea.health/v1");
    assert_eq!(health["status"], "ok");
    for component in ["storage", "swarm", "listeners", "bootstrap", "model"] {
        assert_eq!(health["components"][component]["status"], "ok", "{health}");
        assert!(body.lines().any(|line| line.starts_with("[+]") && line.contains(component)), "{component}: {body}");
    }
    let (status, ..) = daemon.fetch("/nothing").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_draining_node_is_alive_and_not_ready() {
    let (daemon, _asking) = draining().await;
    until("the drain", async || (daemon.fetch("/readyz").await.0 == StatusCode::SERVICE_UNAVAILABLE).then_some(()))
        .await;
    assert_eq!(daemon.fetch("/livez").await.0, StatusCode::OK);
    let (_, _, body) = daemon.fetch("/readyz").await;
    assert!(body.contains("[-]shutdown"), "{body}");
}

#[tokio::test]
async fn an_unreachable_bootstrap_peer_shows() {
    // A port that was free a moment ago, and somebody's id.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nobody = format!("/ip4/127.0.0.1/tcp/{port}/p2p/12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS");
    let daemon = Launch::new().args(&["--bootstrap", &nobody]).start().await;
    let message = until("the failed dial", async || {
        let health: Value = serde_json::from_str(&daemon.fetch("/health").await.2).unwrap();
        let bootstrap = &health["components"]["bootstrap"];
        (bootstrap["status"] == "degraded").then(|| bootstrap["message"].as_str().unwrap().to_owned())
    });
    let message = message.await;
    assert!(message.contains("12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS"), "{message}");
}

#[tokio::test]
async fn metrics_tell_what_happened_and_are_clean() {
    let boot = Launch::new().start().await;
    let coordinator = Launch::new().bootstrap(&boot).serve(DEMO, "0..3").start().await;
    let worker = Launch::new().bootstrap(&boot).serve(DEMO, "3..6").start().await;
    let asked = ["infer", "--json", "--ignore-eos", "--max-tokens", "8", "What is a relay?"];
    let answer = coordinator.command(&asked).await.expect(0).json();
    let prompt = u32::try_from(answer["prompt_ids"].as_array().unwrap().len()).unwrap();

    let (status, kind, scrape) = coordinator.fetch("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    assert_eq!(coordinator.metric("quelea_inference_requests_total", "outcome=\"length\"").await, 1.0);
    assert_eq!(coordinator.metric("quelea_tokens_processed_total", "type=\"output\"").await, 8.0);
    assert_eq!(coordinator.metric("quelea_tokens_processed_total", "type=\"input\"").await, f64::from(prompt));
    assert_eq!(coordinator.metric("gen_ai_server_time_to_first_token_seconds_count", "").await, 1.0);
    assert_eq!(coordinator.metric("quelea_model_layers_hosted", "").await, 3.0);
    assert!(coordinator.metric("quelea_pipeline_stage_duration_seconds_count", "phase=\"decode\"").await >= 7.0);
    // The gauge follows the connections at the loop's own pace.
    until("both peers in the gauge", async || {
        (coordinator.metric("quelea_peers_connected", "").await >= 2.0).then_some(())
    })
    .await;
    assert!(coordinator.metric("libp2p_swarm_connections_established_total", "").await >= 1.0);
    assert_eq!(coordinator.metric("quelea_tasks_panicked_total", "").await, 0.0);
    assert_clean(&scrape);

    let (_, _, scrape) = worker.fetch("/metrics").await;
    assert!(worker.metric("quelea_pipeline_stage_duration_seconds_count", "phase=\"prefill\"").await >= 1.0);
    assert_clean(&scrape);
    assert_clean(&boot.fetch("/metrics").await.2);
}

/// Each family once, each sample once, no peer ids in labels, and nothing that `promtool` minds, where there is one.
fn assert_clean(scrape: &str) {
    let mut families = HashSet::new();
    let mut samples = HashSet::new();
    for line in scrape.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            assert!(families.insert(family.split(' ').next().unwrap()), "twice: {line}");
        } else if !line.starts_with('#') {
            assert!(samples.insert(line.rsplit_once(' ').unwrap().0), "twice: {line}");
            assert!(!line.contains("12D3KooW"), "a peer id: {line}");
        }
    }
    assert!(families.len() > 20, "{scrape}");

    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut promtool) = promtool.spawn() else {
        println!("skipped: promtool is not installed");
        return;
    };
    promtool.stdin.take().unwrap().write_all(scrape.as_bytes()).unwrap();
    let said = promtool.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && words.trim().is_empty(), "promtool: {words}");
}
