//! The same things by other ways: the command for embeddings, answers that are JSON at the terminal, a request's ids in the log.

use serde_json::{Value, json};

use super::http::{Client, chat, error};
use crate::harness::{DEMO, Launch, tempdir};

#[tokio::test]
async fn embeddings_are_the_same_at_the_terminal() {
    let daemon = Launch::new().serve(DEMO, "all").start().await;
    let body = json!({ "model": DEMO, "input": ["What is a relay?", "hello"] });
    let answer = Client::of(&daemon).answer("/v1/embeddings", &body).await;
    let shown = daemon.command(&["embed", DEMO, "What is a relay?", "hello", "--json"]).await.expect(0).json();
    assert_eq!(shown["schema"], "quelea.embed/v1");
    assert_eq!(shown["prompt_tokens"], answer["usage"]["prompt_tokens"]);
    for at in 0..2 {
        assert_eq!(shown["items"][at]["embedding"], answer["data"][at]["embedding"]);
    }
    let lines = daemon.command(&["embed", DEMO, "hello"]).await.expect(0).stdout;
    let vector: Vec<f64> = lines.split_whitespace().map(|value| value.parse().unwrap()).collect();
    assert_eq!(vector.len(), answer["data"][1]["embedding"].as_array().unwrap().len());
    let length: f64 = vector.iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-4, "{length}");

    daemon.command(&["embed", "no-such-model", "hello"]).await.expect(5).says(&["no-such-model"]);
    daemon.command(&["embed", DEMO, ""]).await.expect(2).says(&["input"]);
    daemon.command(&["embed", DEMO]).await.expect(2).says(&["TEXT"]);
}

#[tokio::test]
async fn answers_at_the_terminal_are_json_where_that_is_asked_for() {
    let daemon = Launch::new().serve(DEMO, "all").start().await;
    let room = tempdir();
    let schema = room.path().join("schema.json");
    let text = json!({
        "type": "object", "additionalProperties": false, "required": ["n"],
        "properties": { "n": { "type": "integer", "minimum": 0, "maximum": 9 } },
    });
    std::fs::write(&schema, text.to_string()).unwrap();
    let schema = schema.to_str().unwrap();
    for command in [
        &["infer", "How many?", "--format", schema][..],
        &["chat", DEMO, "How many?", "--temperature", "0", "--format", schema],
    ] {
        let said = daemon.command(command).await.expect(0).stdout;
        let value: Value = serde_json::from_str(said.trim()).unwrap_or_else(|_| panic!("{said}"));
        assert!(value["n"].as_u64().is_some_and(|n| n < 10), "{said}");
    }
    daemon.command(&["infer", "hi", "--format", "yaml"]).await.expect(2).says(&["json"]);
}

#[tokio::test]
async fn a_requests_log_lines_have_its_ids() {
    let daemon = Launch::new().serve(DEMO, "all").start().await;
    let client = Client::of(&daemon);
    let body = chat(json!({ "messages": [{ "role": "user", "content": "heron ".repeat(2000) }] }));
    let request = client.request("/v1/chat/completions", body.to_string()).header("x-request-id", "mine-17");
    assert_eq!(error(request.send().await.unwrap()).await.2["code"], "context_length_exceeded");
    let trace = daemon.command(&["trace", "ls", "--json"]).await.expect(0).json()["items"][0]["trace_id"].clone();
    let logged = daemon.command(&["logs", "--json"]).await.expect(0).stdout;
    let lines: Vec<Value> = logged.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = lines.iter().find(|line| line["request_id"] == "mine-17").unwrap_or_else(|| panic!("{logged}"));
    assert!(line["message"].as_str().unwrap().contains("request failed"), "{line}");
    assert_eq!(line["trace_id"], trace);
    assert!(lines.iter().any(|line| line.get("trace_id").is_none()), "lines of no request have none: {logged}");
}
