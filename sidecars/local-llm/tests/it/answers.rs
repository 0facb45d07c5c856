//! What is answered.

use std::{io::Read as _, time::Instant};

use serde_json::{Value, json};

use crate::harness::{DEMO, ENDLESS, Sidecar, chat, file, posted, until};

const ASKED: &str = "What is a relay?";

fn streamed(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
}

#[test]
fn a_question_is_answered_whole_and_as_a_stream() {
    let sidecar = Sidecar::start(DEMO, &[]);
    let models = sidecar.get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], "quelea-demo");
    let whole = sidecar.post(&chat(ASKED, json!({ "temperature": 0, "model": "quelea-demo" })));
    assert!(whole.text().contains("peer"), "{}", whole.text());
    let document = whole.json();
    assert_eq!(document["choices"][0]["finish_reason"], "stop");
    let usage = &document["usage"];
    assert!(usage["completion_tokens"].as_u64().unwrap() > 5 && usage["prompt_tokens"].as_u64().unwrap() > 5);
    let wanted = json!({ "temperature": 0, "stream": true, "stream_options": { "include_usage": true } });
    let reply = sidecar.post(&chat(ASKED, wanted));
    assert!(reply.head.contains("content-type: text/event-stream"));
    let events = reply.events();
    assert_eq!(streamed(&events), whole.text());
    assert!(events.len() > 5, "it came in {} pieces", events.len());
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "stop");
    assert_eq!(&events[events.len() - 1]["usage"], usage);
    assert_eq!(sidecar.health()["answered"], 2);
}

#[test]
fn a_seed_gives_the_same_answer_and_another_gives_another() {
    let sidecar = Sidecar::start(ENDLESS, &[]);
    let warm = |seed: u64| chat(ASKED, json!({ "temperature": 1.5, "top_p": 0.9, "seed": seed, "max_tokens": 40 }));
    let first = sidecar.post(&warm(7)).text();
    assert_eq!(sidecar.post(&warm(7)).text(), first);
    assert_ne!(sidecar.post(&warm(8)).text(), first);
}

#[test]
fn two_callers_do_not_hear_each_other() {
    const QUESTIONS: [&str; 4] = [ASKED, "What is a swarm?", "Who are you?", "What is the ledger?"];
    let sidecar = Sidecar::start(DEMO, &[]);
    let asked = &|text: &str| sidecar.post(&chat(text, json!({ "temperature": 0, "max_tokens": 40 }))).text();
    let alone = QUESTIONS.map(asked);
    // Whoever hangs up leaves nothing behind either.
    drop(sidecar.begin_stream(&chat("Tell me a story", json!({ "temperature": 2, "seed": 1 }))));
    let together = std::thread::scope(|scope| {
        QUESTIONS.map(|text| scope.spawn(move || asked(text))).map(|asking| asking.join().unwrap())
    });
    assert_eq!(together, alone);
}

#[test]
fn an_answer_ends_where_it_is_told_to() {
    let sidecar = Sidecar::start(DEMO, &["--max-tokens", "6"]);
    let asked = |more: Value| sidecar.post(&chat(ASKED, more));
    let reason = |reply: &Value| reply["choices"][0]["finish_reason"].as_str().unwrap().to_owned();
    let short = asked(json!({ "temperature": 0, "max_tokens": 3 })).json();
    assert_eq!((short["usage"]["completion_tokens"].as_u64(), reason(&short)), (Some(3), "length".into()));
    // The program's own bound holds whatever is asked.
    let most = asked(json!({ "temperature": 0, "max_completion_tokens": 400 }));
    assert_eq!(most.json()["usage"]["completion_tokens"], 6);
    let text = most.text();
    let word = text.split(' ').nth(2).unwrap();
    let stopped = asked(json!({ "temperature": 0, "stop": [word, "never said"] }));
    assert_eq!(stopped.text(), text[..text.find(word).unwrap()]);
    assert_eq!(reason(&stopped.json()), "stop");
    let streamed_stop = asked(json!({ "temperature": 0, "stop": word, "stream": true })).events();
    assert_eq!(streamed(&streamed_stop), stopped.text());
}

#[test]
fn what_cannot_be_answered_is_refused_in_the_same_words_as_elsewhere() {
    let sidecar = Sidecar::start(DEMO, &[]);
    let refused = |reply: crate::harness::Reply, status: u16, code: &str| {
        assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (status, Some(code)));
    };
    refused(sidecar.get("/v1/none"), 404, "not_found");
    refused(sidecar.get("/v1/chat/completions"), 405, "method_not_allowed");
    refused(sidecar.request(&posted("{")), 400, "invalid_request");
    refused(sidecar.post(&chat(ASKED, json!({ "model": "gpt-x" }))), 404, "model_not_found");
    refused(sidecar.post(&chat(&"word ".repeat(600), json!({}))), 400, "context_length_exceeded");
    refused(sidecar.request(&posted(&" ".repeat((1 << 20) + 1))), 413, "request_too_large");
    // The model has room for 512 tokens: an answer ends where there is no more.
    let long = sidecar.post(&chat(&"word ".repeat(200), json!({ "temperature": 2, "seed": 1, "max_tokens": 4000 })));
    let usage = long.json()["usage"].clone();
    assert!(usage["total_tokens"].as_u64().unwrap() <= 512, "{usage}");
    assert_eq!(sidecar.health()["status"], "ok");
}

#[test]
fn an_answer_that_nobody_waits_for_is_given_up() {
    let sidecar = Sidecar::start(ENDLESS, &[]);
    // The engine has one place: were the long answer not given up, the short one would wait for all of it.
    let long = chat("hi", json!({ "temperature": 0, "max_tokens": 450 }));
    let short = chat(ASKED, json!({ "temperature": 0, "max_tokens": 1 }));
    let began = Instant::now();
    assert_eq!(sidecar.post(&long).json()["usage"]["completion_tokens"], 450);
    let all = began.elapsed();
    for whole in [false, true] {
        let connection = if whole {
            let mut stream = sidecar.connect().unwrap();
            std::io::Write::write_all(&mut stream, posted(&long.to_string()).as_bytes()).unwrap();
            until("begun", || sidecar.health()["running"] == 1);
            std::io::BufReader::new(stream)
        } else {
            sidecar.begin_stream(&long)
        };
        let began = Instant::now();
        drop(connection);
        assert_eq!(sidecar.post(&short).json()["usage"]["completion_tokens"], 1);
        let took = began.elapsed();
        assert!(took < all / 2, "the next answer came after {took:?}; the one given up takes {all:?}");
    }
}

#[test]
fn as_many_wait_as_may_and_no_more() {
    let sidecar = Sidecar::start(ENDLESS, &["--queue", "1"]);
    let long = chat("hi", json!({ "temperature": 0, "max_tokens": 450 }));
    let mut running = sidecar.begin_stream(&long);
    let short = chat(ASKED, json!({ "temperature": 0, "max_tokens": 2 }));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| sidecar.post(&short));
        until("waiting", || sidecar.health()["waiting"] == 1);
        let refused = sidecar.post(&short);
        assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (429, Some("overloaded")));
        assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
        let mut rest = String::new();
        running.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("[DONE]"));
        assert_eq!(waiting.join().unwrap().status, 200);
    });
    assert_eq!(sidecar.health()["waiting"], 0);
}

#[test]
fn each_family_that_is_said_to_work_does() {
    for name in ["llama-Q4_K_M", "llama-half-F16", "mistral-F32", "phi3-Q4_K_M", "qwen2-Q4_0", "qwen3-F32"] {
        let sidecar = Sidecar::start(&format!("tests/data/models/{name}.gguf"), &[]);
        let answer = sidecar.post(&chat(ASKED, json!({ "temperature": 0, "max_tokens": 4 }))).json();
        assert_eq!(answer["usage"]["completion_tokens"], 4, "{name}: {answer}");
    }
    assert!(file(DEMO).is_file());
}
