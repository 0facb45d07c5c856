//! What clients rely on, by bare HTTP: a test for each rule.

use std::time::Duration;

use reqwest::StatusCode;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::http::{Client, SPANS, chat, error, events, long, read_until, three};
use crate::harness::{DEMO, Launch, http_client, swarm, until};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_stream_is_data_lines_and_comments() {
    let swarm = three().await;
    let client = Client::of(&swarm.boot);
    let whole = client.answer(CHAT, &chat(json!({}))).await;
    let response = client.chat(json!({ "stream": true, "stream_options": { "include_usage": true } })).await;
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!((header("content-type").as_str(), header("cache-control").as_str()), ("text/event-stream", "no-cache"));
    assert_eq!(header("x-accel-buffering"), "no");
    let route = header("x-quelea-route");
    for (worker, span) in swarm.workers.iter().zip(SPANS) {
        assert!(route.contains(&format!("{}={span}", worker.peer())), "{route}");
    }
    let text = response.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n") && text.starts_with(": "), "{text}");
    assert!(text.contains("\n: {\"x-quelea-cost\":\"0.000000\""), "{text}");
    let mut events = events(&text);
    assert_eq!(events.pop(), Some(json!("[DONE]")));
    let usage = events.pop().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &whole["usage"]));
    let first = &events[0]["choices"][0];
    assert_eq!(first["delta"], json!({ "role": "assistant", "content": "" }));
    let last = events.last().unwrap();
    assert_eq!(last["choices"][0], json!({ "index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop" }));
    let mut said = String::new();
    for event in &events {
        assert_eq!(event["id"], events[0]["id"]);
        assert_eq!((&event["object"], &event["usage"]), (&json!("chat.completion.chunk"), &Value::Null));
        assert!(event["created"].is_u64() && event["model"] == DEMO, "{event}");
        said.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
    }
    assert!(events[1..].iter().all(|event| event["choices"][0]["delta"].get("role").is_none()));
    assert_eq!(said, whole["choices"][0]["message"]["content"].as_str().unwrap());
    // Nobody asked for it.
    let plain = client.chat(json!({ "stream": true })).await.text().await.unwrap();
    assert!(!plain.contains("\"usage\""), "{plain}");
}

#[tokio::test]
async fn who_has_no_token_learns_it_in_openais_words() {
    let daemon = Launch::new().serve(DEMO, "all").start().await;
    let client = Client::of(&daemon);
    let http = http_client().build().unwrap();
    let url = |path: &str| format!("{}{path}", client.url);
    for request in [http.get(url("/v1/models")), http.post(url(CHAT)).bearer_auth("wrong"), http.get(url("/v1/none"))] {
        let (status, _, error) = error(request.send().await.unwrap()).await;
        assert_eq!(
            (status, &error["code"], &error["type"]),
            (401, &json!("invalid_api_key"), &json!("authentication_error"))
        );
    }
    let keyed = http.get(url("/v1/models")).header("x-api-key", &client.token).send().await.unwrap();
    assert_eq!(keyed.status(), StatusCode::OK);
    for (path, status) in
        [("/v1/none", 404), ("/v1", 404), ("/v1/models/a/b", 404), ("/v1/models/a%2Fb", 404), (CHAT, 405)]
    {
        assert_eq!(error(client.get(path).await).await.0, status, "{path}");
    }
    let listed: Value = client.get("/v1/models").await.json().await.unwrap();
    assert_eq!((&listed["data"][0]["id"], &listed["data"][0]["status"]), (&json!(DEMO), &json!("loaded")));
    let given = client.request(CHAT, "{").header("x-request-id", "mine").send().await.unwrap();
    assert_eq!(given.headers()["x-request-id"], "mine");
    let made = client.request(CHAT, "{").header("x-request-id", "a b").send().await.unwrap();
    assert!(made.headers()["x-request-id"].to_str().unwrap().starts_with("req_"));
}

#[tokio::test]
async fn what_fails_before_the_first_byte_is_a_status() {
    let swarm = swarm(DEMO, &["0..2"]).await;
    let client = Client::of(&swarm.boot);
    for stream in [false, true] {
        let (status, headers, error) = error(client.chat(json!({ "stream": stream })).await).await;
        assert_eq!((status, &error["code"]), (503, &json!("no_route")), "{error}");
        assert_eq!(headers["x-should-retry"], "true");
        assert!(headers.contains_key("retry-after"));
    }
    let long = "relay ".repeat(4000);
    let body = json!({ "messages": [{ "role": "user", "content": long }], "stream": true });
    let (status, headers, error) = error(client.chat(body).await).await;
    assert_eq!((status, &error["code"]), (400, &json!("context_length_exceeded")));
    assert!(!headers.contains_key("x-should-retry"));
    let known: Value = client.get("/v1/models").await.json().await.unwrap();
    assert_eq!(known["data"], json!([]));
    until("the model is known", async || {
        let known: Value = client.get("/v1/models?all=true").await.json().await.unwrap();
        (known["data"][0]["status"] == "unavailable" && known["data"][0]["meta"]["peers"] == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused_and_what_is_unknown_is_not() {
    let daemon = Launch::new().serve(DEMO, "all").start().await;
    let client = Client::of(&daemon);
    let tool = json!([{ "type": "function", "function": { "name": "f" } }]);
    for (more, param, code) in [
        (json!({ "tools": tool }), "tools", "unsupported_parameter"),
        (json!({ "functions": [] }), "functions", "unsupported_parameter"),
        (json!({ "audio": {} }), "audio", "unsupported_parameter"),
        (json!({ "n": 17 }), "n", "invalid_value"),
        (json!({ "temperature": "hot" }), "temperature", "invalid_value"),
        (json!({ "response_format": { "type": "xml" } }), "response_format", "invalid_value"),
        (json!({ "top_logprobs": 2 }), "top_logprobs", "invalid_value"),
        (json!({ "stream_options": {} }), "stream_options", "invalid_value"),
        (json!({ "logit_bias": { "1": 101 } }), "logit_bias", "invalid_value"),
        (json!({ "stop": ["a", "b", "c", "d", "e"] }), "stop", "invalid_value"),
    ] {
        let (status, _, error) = error(client.chat(more.clone()).await).await;
        assert_eq!((status, &error["param"], &error["code"]), (400, &json!(param), &json!(code)), "{more}");
    }
    let odd = json!({ "max_tokens": 2, "user": "u", "store": true, "unheard_of": [1, { "a": null }], "n": null, "tools": [] });
    client.answer(CHAT, &chat(odd)).await;
    // What only looks at a prompt, and several ways to say how long the answer may be.
    for more in [json!({ "max_tokens": 2 }), json!({ "max_completion_tokens": 2 })] {
        assert_eq!(client.answer(CHAT, &chat(more)).await["usage"]["completion_tokens"], 2);
    }
    let developer = json!({ "max_tokens": 4, "messages": [
        { "role": "developer", "content": "Be brief." }, { "role": "user", "content": [{ "type": "text", "text": "Hi" }] },
        { "role": "assistant", "content": null }, { "role": "user", "content": "What is a relay?" },
    ] });
    let system = developer.to_string().replace("developer", "system");
    let answers = [developer, serde_json::from_str(&system).unwrap()].map(chat);
    let [one, other] = [client.answer(CHAT, &answers[0]).await, client.answer(CHAT, &answers[1]).await];
    assert_eq!(one["choices"], other["choices"]);
}

#[tokio::test]
async fn a_worker_that_dies_ends_a_stream_with_an_error_and_nothing_else() {
    let swarm = three().await;
    let client = Client::of(&swarm.boot);
    let mut response = client.post(CHAT, &long(json!({ "stream": true }))).await;
    assert_eq!(response.status(), StatusCode::OK);
    let begun = read_until(&mut response, |text| text.matches("data: ").count() > 3).await;
    swarm.workers[1].signal(Signal::KILL);
    let rest = tokio::time::timeout(Duration::from_secs(60), response.text()).await.unwrap().unwrap();
    let events = events(&format!("{begun}{rest}"));
    let (last, before) = events.split_last().unwrap();
    let message = last["error"]["message"].as_str().unwrap();
    assert!(message.contains(swarm.workers[1].peer()), "{message}");
    assert!(before.iter().all(|event| event["choices"][0]["finish_reason"].is_null() && event.get("error").is_none()));
    // Nothing was charged.
    let (status, headers, _) = error(client.chat(json!({})).await).await;
    assert_eq!((status, headers["x-should-retry"].to_str().unwrap()), (503, "true"));
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_sessions_everywhere() {
    let swarm = three().await;
    let client = Client::of(&swarm.boot);
    for stream in [true, false] {
        let (asking, body) = (client.clone(), long(json!({ "stream": stream })));
        let asked = tokio::spawn(async move {
            let mut response = asking.post(CHAT, &body).await;
            read_until(&mut response, |_| false).await
        });
        for worker in &swarm.workers {
            worker.until_sessions(1).await;
        }
        asked.abort();
        assert!(asked.await.unwrap_err().is_cancelled());
        for worker in &swarm.workers {
            worker.until_sessions(0).await;
        }
    }
    let cancelled = swarm.boot.metric("quelea_inference_requests_total", "outcome=\"cancelled\"").await;
    assert!((cancelled - 2.0).abs() < 0.1, "{cancelled}");
}

#[tokio::test]
async fn a_request_with_a_key_is_answered_once() {
    let swarm = three().await;
    let client = Client::of(&swarm.boot);
    let asked = async |key: &str, body: &Value| {
        client.request(CHAT, body.to_string()).header("idempotency-key", key).send().await.unwrap()
    };
    let warm = json!({ "temperature": 1.5, "max_tokens": 32, "ignore_eos": true });
    let body = chat(warm.clone());
    // Both at once: the second joins the first.
    let (one, other) = tokio::join!(asked("a", &body), asked("a", &body));
    let replayed = [&one, &other].map(|response| response.headers().contains_key("x-quelea-replayed"));
    assert!(replayed[0] != replayed[1], "{replayed:?}");
    let (one, other): (Value, Value) = (one.json().await.unwrap(), other.json().await.unwrap());
    assert_eq!(one, other);
    // Later: it is the same still, and another key or another body is another answer.
    assert_eq!(asked("a", &body).await.json::<Value>().await.unwrap(), one);
    assert_ne!(asked("b", &body).await.json::<Value>().await.unwrap()["id"], one["id"]);
    let (status, _, wrong) = error(asked("a", &chat(json!({}))).await).await;
    assert_eq!((status, &wrong["code"]), (422, &json!("idempotency_key_reused")));
    // A stream, too; and a client that lost it comes back for all of it.
    let mut streamed = chat(warm);
    streamed["stream"] = json!(true);
    let mut lost = asked("c", &streamed).await;
    let begun = read_until(&mut lost, |text| text.matches("data: ").count() > 3).await;
    drop(lost);
    let again = asked("c", &streamed).await.text().await.unwrap();
    assert!(again.starts_with(&begun) && again.ends_with("data: [DONE]\n\n"), "{again}");
    assert_eq!(asked("c", &streamed).await.text().await.unwrap(), again);
    let requests = swarm.boot.metric("quelea_inference_requests_total", "").await;
    assert!((requests - 3.0).abs() < 0.1, "{requests}");
    // What failed and cost nothing is asked anew.
    swarm.workers[0].signal(Signal::KILL);
    until("it cannot be asked", async || (error_or_none(asked("d", &body).await).await == Some(503)).then_some(()))
        .await;
    let worker = Launch::new().bootstrap(&swarm.boot).serve(DEMO, SPANS[0]).start().await;
    swarm.boot.until_connected_to(worker.peer()).await;
    until("it can be asked again", async || error_or_none(asked("d", &body).await).await.is_none().then_some(())).await;
}

/// An error's status, if it is one.
async fn error_or_none(response: reqwest::Response) -> Option<u16> {
    let status = response.status();
    response.bytes().await.unwrap();
    (!status.is_success()).then(|| status.as_u16())
}

#[tokio::test]
async fn too_many_at_once_are_told_to_come_back() {
    let swarm = three().await;
    let client = Client::of(&swarm.boot);
    // Readers that do not read: their answers stay under way, or wait for their turn.
    client.answer(CHAT, &chat(json!({ "max_tokens": 1 }))).await;
    let body = long(json!({ "stream": true, "n": 16 }));
    let open: Vec<_> = (0..8)
        .map(|_| {
            let (client, body) = (client.clone(), body.clone());
            tokio::spawn(async move {
                let response = client.post(CHAT, &body).await;
                std::future::pending::<()>().await;
                drop(response);
            })
        })
        .collect();
    until("all are there", async || {
        let label = "http_route=\"/v1/chat/completions\"";
        (swarm.boot.metric("quelea_http_requests_in_flight", label).await > 7.5).then_some(())
    })
    .await;
    until("there is no place left", async || {
        let response = client.chat(json!({ "max_tokens": 1 })).await;
        (response.status() == StatusCode::TOO_MANY_REQUESTS).then_some(())
    })
    .await;
    let (status, headers, error) = error(client.chat(json!({})).await).await;
    assert_eq!((status, &error["code"]), (429, &json!("rate_limit_exceeded")));
    assert!(headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1);
    assert_eq!(headers["x-should-retry"], "true");
    open.iter().for_each(tokio::task::JoinHandle::abort);
    for worker in &swarm.workers {
        worker.until_sessions(0).await;
    }
    client.answer(CHAT, &chat(json!({}))).await;
}

#[tokio::test]
async fn more_than_peers_take_at_once_wait_for_their_turn() {
    // A worker takes 32 sessions of a coordinator.
    const STREAMS: usize = 40;
    let swarm = three().await;
    let client = Client::of(&swarm.boot);
    let body = long(json!({ "stream": true, "max_tokens": 40 }));
    let asked = (0..STREAMS).map(|_| async { client.post(CHAT, &body).await.text().await.unwrap() });
    let texts = futures::future::join_all(asked).await;
    let finished = texts.iter().filter(|text| text.ends_with("data: [DONE]\n\n")).count();
    assert_eq!(finished, STREAMS, "{:?}", texts.iter().find(|text| !text.ends_with("data: [DONE]\n\n")));
}
