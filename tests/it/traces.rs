//! Traces: one over all parts of a request, at a collector that reads OTLP as it is specified.

mod collector;

use std::collections::HashSet;

use rustix::process::Signal;
use serde_json::{Value, json};

use self::collector::{Collector, Seen, nobody};
use crate::harness::{DEMO, Daemon, Launch, http_client, streaming, until};

const STAGE: &str = "pipeline.stage session";
const PROMPT: &str = "What does a heron say?";

/// W3C's example.
const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A coordinator with no layers, and two that have the model between them.
async fn three(
    coordinator: &Collector,
    of_first: &[&str],
    of_second: impl FnOnce(&Daemon) -> Vec<String>,
) -> [Daemon; 3] {
    let boot = Launch::new().args(&[&coordinator.flag()]).start().await;
    let first = Launch::new().bootstrap(&boot).serve(DEMO, "0..3").args(of_first);
    let more = of_second(&boot);
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let second = Launch::new().bootstrap(&boot).serve(DEMO, "3..6").args(&more);
    let (first, second) = tokio::join!(first.start(), second.start());
    [boot, first, second]
}

fn ids(spans: &[Seen]) -> HashSet<Vec<u8>> {
    spans.iter().map(|seen| seen.span.trace_id.clone()).collect()
}

#[tokio::test]
async fn one_trace_over_all_stages_linked_for_strangers_and_continued_for_friends() {
    let collector = Collector::start().await;
    let flag = collector.flag();
    let friend = |boot: &Daemon| vec![flag.clone(), format!("--trace-parents-from={}", boot.peer())];
    let [boot, first, second] = three(&collector, &[&flag], friend).await;
    let asked = ["infer", "--json", "--ignore-eos", "--max-tokens", "5", "--route", "swarm", PROMPT];
    let answer = boot.command(&asked).await.expect(0).json();

    // The request, and its parts.
    let request = collector.of(boot.peer(), "chat demo", 1).await.remove(0);
    assert_eq!(request.service, "quelea");
    assert!(request.span.parent_span_id.is_empty(), "{request:?}");
    assert_eq!(request.text("gen_ai.operation.name").as_deref(), Some("chat"));
    assert_eq!(request.text("gen_ai.request.model").as_deref(), Some("demo"));
    assert_eq!(request.number("gen_ai.usage.output_tokens"), Some(5));
    let prompt = answer["prompt_ids"].as_array().unwrap().len();
    assert_eq!(request.number("gen_ai.usage.input_tokens"), Some(i64::try_from(prompt).unwrap()));
    let stages = collector.of(boot.peer(), STAGE, 2).await;
    let mut parts = stages.clone();
    for name in ["pipeline.plan", "pipeline.open", "pipeline.prefill", "pipeline.decode", "pipeline.close"] {
        parts.extend(collector.of(boot.peer(), name, 1).await);
    }
    for part in &parts {
        assert_eq!(part.span.parent_span_id, request.span.span_id, "{}", part.span.name);
        assert!(part.span.start_time_unix_nano >= request.span.start_time_unix_nano, "{}", part.span.name);
        assert!(part.span.end_time_unix_nano <= request.span.end_time_unix_nano, "{}", part.span.name);
    }
    parts.push(request.clone());
    assert_eq!(ids(&parts), HashSet::from([request.span.trace_id.clone()]));

    // Each stage's own span: a trace of its own with a link, and where parents are taken the same trace.
    let span_for = |peer: &str| {
        let of = stages.iter().find(|seen| seen.text("quelea.peer.id").as_deref() == Some(peer));
        of.unwrap_or_else(|| panic!("no span for {peer}")).span.clone()
    };
    let linked = collector.of(first.peer(), STAGE, 1).await.remove(0);
    assert_ne!(linked.span.trace_id, request.span.trace_id);
    assert!(linked.span.parent_span_id.is_empty());
    let [link] = &linked.span.links[..] else { panic!("one link: {linked:?}") };
    let at_coordinator = span_for(first.peer());
    assert_eq!((&link.trace_id, &link.span_id), (&request.span.trace_id, &at_coordinator.span_id));
    for peer in [first.peer(), second.peer()] {
        let hop = stages.iter().find(|seen| seen.text("quelea.peer.id").as_deref() == Some(peer)).unwrap();
        assert!(["tcp", "quic"].contains(&hop.text("network.transport").unwrap().as_str()), "{hop:?}");
        assert_eq!(hop.text("quelea.path").as_deref(), Some("direct"));
    }
    assert_eq!(linked.text("quelea.peer.id").as_deref(), Some(boot.peer()));
    assert_eq!(linked.text("quelea.layers").as_deref(), Some("0..3"));
    let rows = linked.number("quelea.rows").unwrap();
    assert!(rows >= i64::try_from(prompt).unwrap(), "{rows}");

    let continued = collector.of(second.peer(), STAGE, 1).await.remove(0);
    assert_eq!(continued.span.trace_id, request.span.trace_id);
    assert_eq!(continued.span.parent_span_id, span_for(second.peer()).span_id);
    assert!(continued.span.links.is_empty());

    // Nobody was told what was said, and names are of a fixed set.
    let all = format!("{:?}", collector.spans());
    let said = answer["text"].as_str().unwrap();
    assert!(!all.contains("heron") && !all.contains(said), "{all}");
    let names: HashSet<String> = collector.spans().into_iter().map(|seen| seen.span.name).collect();
    assert!(names.iter().all(|name| name == "chat demo" || name.starts_with("pipeline.")), "{names:?}");
    // It counts when the collector has said that it took them.
    until("all counted", async || (boot.metric("quelea_trace_spans_exported_total", "").await >= 8.0).then_some(()))
        .await;
    assert_eq!(boot.metric("quelea_trace_spans_dropped_total", "").await, 0.0);

    // The same without a collector.
    let list = boot.command(&["trace", "ls", "--json"]).await.expect(0).json();
    assert_eq!(list["schema"], "quelea.traces/v1");
    let id = list["items"][0]["trace_id"].as_str().unwrap().to_owned();
    assert_eq!(hex::decode(&id).unwrap(), request.span.trace_id);
    let shown = boot.command(&["trace", "show", &id[..8], "--json"]).await.expect(0).json();
    assert_eq!(shown["schema"], "quelea.trace/v1");
    assert_eq!(shown["spans"].as_array().unwrap().len(), parts.len());
    let drawn = boot.command(&["trace", "show"]).await.expect(0).stdout;
    assert!(drawn.contains("pipeline.prefill") && drawn.contains("[3..6]"), "{drawn}");
    boot.command(&["trace", "show", "ffffffffffff"]).await.expect(5);
}

#[tokio::test]
async fn a_stage_that_is_lost_shows_with_who_took_over() {
    let boot = Launch::new().start().await;
    let launch = |layers| Launch::new().bootstrap(&boot).serve(DEMO, layers);
    let (first, a, b) = (launch("0..3"), launch("3..6"), launch("3..6"));
    let (_first, a, b) = tokio::join!(first.start(), a.start(), b.start());
    let asking = streaming(&["--data-dir", boot.home(), "--route", "swarm", "--timeout", "20s"]).await;
    let used = until("one of two is used", async || match (a.sessions().await, b.sessions().await) {
        (1, 0) => Some(true),
        (0, 1) => Some(false),
        _ => None,
    });
    let (lost, spare) = if used.await { (a, b) } else { (b, a) };
    let gone = lost.peer().to_owned();
    lost.signal(Signal::KILL);
    asking.end().await.expect(0);

    let trace = boot.command(&["trace", "show", "--json"]).await.expect(0).json();
    let named = |name: &str| -> Vec<&Value> {
        trace["spans"].as_array().unwrap().iter().filter(|span| span["name"] == name).collect()
    };
    let [failover] = named("pipeline.failover")[..] else { panic!("one failover: {trace}") };
    assert_eq!(failover["attributes"]["quelea.lost"], json!([gone]));
    assert_eq!(failover["attributes"]["quelea.taken_over_by"], json!([spare.peer()]));
    let stages = named(STAGE);
    let failed: Vec<_> = stages.iter().filter(|span| !span["error"].is_null()).collect();
    assert_eq!((stages.len(), failed.len()), (3, 1), "{trace}");
    assert_eq!(failed[0]["attributes"]["quelea.peer.id"], json!(gone));
    assert!(failed[0]["attributes"]["error.type"].as_str().unwrap().starts_with("QUE-"));
    assert!(named("chat demo").iter().chain(&named("text_completion demo")).all(|span| span["error"].is_null()));
}

#[tokio::test]
async fn a_callers_trace_goes_on_in_the_swarm() {
    let collector = Collector::start().await;
    let flag = collector.flag();
    let daemon = Launch::new().serve(DEMO, "all").args(&[&flag]).start().await;
    let token = std::fs::read_to_string(format!("{}/api.token", daemon.home())).unwrap();
    let body = json!({ "model": "demo", "max_tokens": 2, "messages": [{ "role": "user", "content": "hi" }] });
    let ask = async |parents: &[&str]| {
        let url = format!("{}/v1/chat/completions", daemon.told("api")[0]);
        let mut request = http_client().build().unwrap().post(url).bearer_auth(token.trim()).json(&body);
        for parent in parents {
            request = request.header("traceparent", *parent);
        }
        assert!(request.send().await.unwrap().status().is_success());
    };
    ask(&[CALLER]).await;
    let request = collector.of(daemon.peer(), "chat demo", 1).await.remove(0);
    assert_eq!(hex::encode(&request.span.trace_id), &CALLER[3..35]);
    assert_eq!(hex::encode(&request.span.parent_span_id), &CALLER[36..52]);

    // One that is not wanted, and what is none: the answer comes all the same.
    ask(&[&CALLER.replace("-01", "-00")]).await;
    let hostile = [&CALLER[..54], "00-zz", &CALLER.to_uppercase(), "", &"0".repeat(4000)];
    for parent in hostile {
        ask(&[parent]).await;
    }
    ask(&[CALLER, CALLER]).await;
    let wanted = 1 + hostile.len() + 1;
    let requests = collector.of(daemon.peer(), "chat demo", wanted).await;
    assert_eq!(requests.len(), wanted, "the one that is not wanted stays here");
    let of_caller = requests.iter().filter(|seen| hex::encode(&seen.span.trace_id) == CALLER[3..35]).count();
    assert_eq!(of_caller, 1);
    let listed = daemon.command(&["trace", "ls", "--json"]).await.expect(0).json();
    assert_eq!(listed["items"].as_array().unwrap().len(), wanted, "two of the same trace are one");
}

#[tokio::test]
async fn requests_go_on_without_the_collector_and_what_is_lost_is_counted() {
    let addr = nobody();
    let endpoint = format!("--otlp-endpoint=http://{addr}/v1/traces");
    let mut daemon = Launch::new().serve(DEMO, "all").args(&[&endpoint]).start().await;
    let ask = async |daemon: &Daemon| {
        daemon.command(&["infer", "--json", "--max-tokens", "2", "hi"]).await.expect(0);
    };
    let dropped = async |daemon: &Daemon| daemon.metric("quelea_trace_spans_dropped_total", "export_failed").await;
    ask(&daemon).await;
    daemon.logs("the collector does not take them").await;
    let before = until("dropped spans", async || Some(dropped(&daemon).await).filter(|n| *n >= 4.0)).await;
    ask(&daemon).await;
    until("more of them", async || (dropped(&daemon).await > before).then_some(())).await;
    assert_eq!(daemon.metric("quelea_trace_spans_exported_total", "").await, 0.0);

    // It comes back, and gets what is new.
    let collector = Collector::at(addr).await;
    ask(&daemon).await;
    collector.of(daemon.peer(), "chat demo", 1).await;
    daemon.logs("takes traces again").await;
    // What waits when the node ends is sent.
    ask(&daemon).await;
    let peer = daemon.peer().to_owned();
    daemon.stop().await;
    collector.of(&peer, "chat demo", 2).await;
}

#[tokio::test]
async fn what_is_wrong_with_the_flags_is_said_before_anything_starts() {
    for (args, words) in [
        (&["--otlp-endpoint=collector"][..], "not a URL"),
        (&["--otlp-endpoint=http://me:secret@collector:4318"], "OTEL_EXPORTER_OTLP_HEADERS"),
        (&["--trace-parents-from=12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS"], "--otlp-endpoint"),
        (&["--otlp-endpoint", "--trace-parents-from=me"], "not a peer id"),
    ] {
        let ended = Launch::new().args(args).fails().await;
        assert!(ended.stderr.contains(words), "{args:?}: {}", ended.stderr);
        assert!(!ended.stderr.contains("secret"), "{}", ended.stderr);
        ended.expect(2);
    }
}
