//! Embeddings, calls of tools, answers with a format, and what is charged.

use std::{fs, time::Duration};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::http::{Client, chat, error, events, long, read_until, three};
use crate::harness::{DEMO, Launch, swarm, tempdir, until};

const CHAT: &str = "/v1/chat/completions";

fn vector(embedding: &Value) -> Vec<f64> {
    embedding.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

#[tokio::test]
async fn vectors_are_the_same_however_the_layers_are_cut() {
    let (swarm, alone) = (three().await, Launch::new().serve(DEMO, "all").start().await);
    let (client, alone) = (Client::of(&swarm.boot), Client::of(&alone));
    // Longer than a chunk of a prompt, too.
    let body = json!({ "model": DEMO, "input": ["What is a relay?", "relay ".repeat(150), "A peer"] });
    let (one, other) = (client.answer("/v1/embeddings", &body).await, alone.answer("/v1/embeddings", &body).await);
    assert_eq!((&one["data"], &one["usage"]), (&other["data"], &other["usage"]));
    for (index, embedding) in one["data"].as_array().unwrap().iter().enumerate() {
        assert_eq!((&embedding["index"], &embedding["object"]), (&json!(index), &json!("embedding")));
        let length: f64 = vector(&embedding["embedding"]).iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-4, "{length}");
    }
    let dot = |a: usize, b: usize| -> f64 {
        let [a, b] = [a, b].map(|at| vector(&one["data"][at]["embedding"]));
        a.iter().zip(&b).map(|(a, b)| a * b).sum()
    };
    assert!(dot(0, 1) < 0.9999 && dot(0, 2) < 0.9999, "different texts have different vectors");
    // Asked again, it is computed again, whatever stages have kept of it.
    assert_eq!(client.answer("/v1/embeddings", &body).await["data"], one["data"]);
    let mut in_bytes = body.clone();
    in_bytes["encoding_format"] = json!("base64");
    let in_bytes = client.answer("/v1/embeddings", &in_bytes).await;
    let bytes = data_encoding::BASE64.decode(in_bytes["data"][0]["embedding"].as_str().unwrap().as_bytes()).unwrap();
    let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
    let expected: Vec<f32> = serde_json::from_value(one["data"][0]["embedding"].clone()).unwrap();
    assert_eq!(values, expected);
    // Ids instead of texts.
    let ids = client.answer("/v1/embeddings", &json!({ "model": DEMO, "input": [[5, 6, 7], [8]] })).await;
    assert_eq!(ids["usage"], json!({ "prompt_tokens": 4, "total_tokens": 4 }));
    for (wrong, param) in [
        (json!({ "input": "a", "dimensions": 3 }), "dimensions"),
        (json!({ "input": "a", "encoding_format": "int8" }), "encoding_format"),
        (json!({ "input": [] }), "input"),
        (json!({ "input": [[]] }), "input"),
    ] {
        let mut body = wrong.clone();
        body["model"] = json!(DEMO);
        let (status, _, error) = error(client.post("/v1/embeddings", &body).await).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{wrong}");
    }
    let (status, ..) =
        error(client.post("/v1/embeddings", &json!({ "model": DEMO, "input": [[9_999_999]] })).await).await;
    assert_eq!(status, 400);
    for worker in &swarm.workers {
        worker.until_sessions(0).await;
    }
}

#[tokio::test]
async fn an_answer_with_a_format_is_what_it_has_to_be() {
    let swarm = three().await;
    let client = Client::of(&swarm.boot);
    let schema = json!({
        "type": "object",
        "properties": {
            "kind": { "enum": ["relay", "peer"] },
            "hops": { "type": "integer", "minimum": 0, "maximum": 9 },
            "tags": { "type": "array", "items": { "type": "boolean" }, "minItems": 1, "maxItems": 3 },
        },
        "required": ["kind", "hops", "tags"],
        "additionalProperties": false,
    });
    for seed in 0..6 {
        let format = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema, "strict": true } });
        let more = json!({ "response_format": format, "temperature": 2, "seed": seed, "max_tokens": 120 });
        let answer = client.answer(CHAT, &chat(more)).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "stop");
        let found: Value = serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
        assert!(["relay", "peer"].contains(&found["kind"].as_str().unwrap()), "{found}");
        assert!(found["hops"].as_u64().unwrap() < 10 && found.as_object().unwrap().len() == 3, "{found}");
        let tags = found["tags"].as_array().unwrap();
        assert!((1..=3).contains(&tags.len()) && tags.iter().all(Value::is_boolean), "{found}");
    }
    // Any object, until there is no room: what there is of it is the beginning of one.
    let more = json!({ "response_format": { "type": "json_object" }, "max_tokens": 12 });
    let any = client.answer(CHAT, &chat(more)).await;
    let text = any["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with('{'), "{text:?}");
    let bad = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": { "type": "nonsense" } } });
    let (status, _, error) = error(client.chat(json!({ "response_format": bad })).await).await;
    assert_eq!(status, 400, "{error}");
    for worker in &swarm.workers {
        worker.until_sessions(0).await;
    }
}

/// The demo model with a chat template that has a place for tools, as a file.
fn with_tools(dir: &std::path::Path) -> String {
    const DEMO_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/engine/demo/quelea-demo-q8_0.gguf");
    const KEY: &[u8] = b"tokenizer.chat_template";
    let mut file = fs::read(DEMO_FILE).unwrap();
    let at = file.windows(KEY.len()).position(|bytes| bytes == KEY).unwrap() + KEY.len() + 4;
    let length = usize::try_from(u64::from_le_bytes(file[at..at + 8].try_into().unwrap())).unwrap();
    let template = "{%if tools%}<tool_call>{%endif%}{%for m in messages%}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n\
                    {%endfor%}<|im_start|>assistant\n";
    // Of the same length, so that everything else stays where it is.
    let template = format!("{template}{{#{}#}}", " ".repeat(length - template.len() - 4));
    file[at + 8..at + 8 + length].copy_from_slice(template.as_bytes());
    let path = dir.join("tools.gguf");
    fs::write(&path, file).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_tool_is_called_when_it_has_to_be() {
    let dir = tempdir();
    let model = with_tools(dir.path());
    let swarm = swarm(&model, &["0..3", "3..6"]).await;
    let client = Client::of(&swarm.workers[0]);
    let name = until("the model is listed", async || {
        let listed: Value = client.get("/v1/models").await.json().await.unwrap();
        Some(listed["data"][0]["id"].as_str()?.to_owned())
    })
    .await;
    let function = |name: &str| {
        let parameters = json!({
            "type": "object",
            "properties": { "unit": { "enum": ["C", "F"] }, "day": { "type": "integer", "minimum": 0, "maximum": 6 } },
            "required": ["unit", "day"],
            "additionalProperties": false,
        });
        json!({ "type": "function", "function": { "name": name, "parameters": parameters } })
    };
    let tools = json!([function("weather"), function("moon")]);
    let ask = |choice: Value, stream: bool| {
        chat(json!({ "model": name, "tools": tools, "tool_choice": choice, "max_tokens": 200, "stream": stream }))
    };
    let moon = json!({ "type": "function", "function": { "name": "moon" } });
    for (choice, names) in [(moon, &["moon"][..]), (json!("required"), &["moon", "weather"])] {
        let answer = client.answer(CHAT, &ask(choice.clone(), false)).await;
        let (message, reason) = (&answer["choices"][0]["message"], &answer["choices"][0]["finish_reason"]);
        assert_eq!((reason, &message["content"]), (&json!("tool_calls"), &Value::Null), "{answer}");
        let [call] = message["tool_calls"].as_array().unwrap().as_slice() else { panic!("{answer}") };
        assert!(call["id"].as_str().unwrap().starts_with("call_") && call["type"] == "function");
        assert!(names.contains(&call["function"]["name"].as_str().unwrap()), "{call}");
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(["C", "F"].contains(&arguments["unit"].as_str().unwrap()) && arguments["day"].as_u64().unwrap() < 7);
        // The same in pieces.
        let events = events(&client.post(CHAT, &ask(choice, true)).await.text().await.unwrap());
        let deltas: Vec<&Value> =
            events.iter().filter_map(|event| event["choices"][0]["delta"]["tool_calls"].get(0)).collect();
        assert!(deltas[0]["index"] == 0 && deltas[0]["id"].is_string(), "{deltas:?}");
        assert_eq!(deltas[0]["function"]["name"], call["function"]["name"]);
        let joined: String = deltas.iter().map(|delta| delta["function"]["arguments"].as_str().unwrap()).collect();
        assert_eq!(joined, call["function"]["arguments"].as_str().unwrap());
        let reasons: Vec<&Value> = events.iter().map(|event| &event["choices"][0]["finish_reason"]).collect();
        assert!(reasons.contains(&&json!("tool_calls")), "{reasons:?}");
    }
    // A conversation that had a call, and a question that needs none.
    let said = json!([
        { "role": "user", "content": "What is the weather?" },
        { "role": "assistant", "content": null, "tool_calls": [
            { "id": "call_1", "type": "function", "function": { "name": "weather", "arguments": "{\"unit\":\"C\",\"day\":0}" } },
        ] },
        { "role": "tool", "tool_call_id": "call_1", "content": "mild" },
    ]);
    let more = json!({ "model": name, "tools": tools, "messages": said, "max_tokens": 8 });
    let answer = client.answer(CHAT, &chat(more)).await;
    assert!(answer["choices"][0]["message"]["content"].is_string(), "{answer}");
    let free = client.answer(CHAT, &ask(json!("none"), false)).await;
    assert!(free["choices"][0]["message"].get("tool_calls").is_none(), "{free}");
}

#[tokio::test]
async fn what_was_charged_is_said_and_not_asked_for_again() {
    let first = Launch::new().serve(DEMO, "0..3").args(&["--price", "2000", "--price-prefill", "500"]).start().await;
    let second = Launch::new().bootstrap(&first).serve(DEMO, "3..6").start().await;
    let payer = Launch::new().bootstrap(&first).start().await;
    let client = Client::of(&payer);
    let answer =
        client.request(CHAT, chat(json!({})).to_string()).header("x-quelea-receipt", "true").send().await.unwrap();
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    let (cost, receipt) = (header("x-quelea-cost"), header("x-quelea-receipt"));
    let body: Value = answer.json().await.unwrap();
    let count = |name: &str| body["usage"][name].as_u64().unwrap();
    // Three layers; of the answer all rows but the last, but also the one from which the end was drawn.
    let (prompt, answered) = (count("prompt_tokens"), count("completion_tokens"));
    let micro = (3 * (prompt * 500 + answered * 2000)).div_ceil(1000);
    assert_eq!(cost, format!("0.{micro:06}"));
    let path = tempdir();
    let file = path.path().join("a.receipt");
    fs::write(&file, hex::decode(receipt).unwrap()).unwrap();
    crate::harness::quelea(&["receipt", "verify", file.to_str().unwrap()]).await.expect(0);
    // A stream says it in a comment.
    let streamed = client.chat(json!({ "stream": true })).await.text().await.unwrap();
    let said = streamed.lines().find(|line| line.starts_with(": {")).unwrap();
    let said: Value = serde_json::from_str(&said[2..]).unwrap();
    assert!(said["x-quelea-cost"].as_str().unwrap() > "0.000000", "{said}");
    // Too dear, and nothing was asked of anybody.
    let dear = client.request(CHAT, chat(json!({})).to_string()).header("x-quelea-max-price", "0.000001");
    let (status, headers, refused) = error(dear.send().await.unwrap()).await;
    assert_eq!((status, &refused["code"]), (402, &json!("insufficient_credit")));
    assert!(!headers.contains_key("x-should-retry"));
    // Who had begun to work for pay is lost: asking again would cost again.
    let signed = async || first.metric("quelea_commitments_total", "").await;
    let before = signed().await;
    let asking = client.clone();
    let lost = tokio::spawn(async move { error(asking.post(CHAT, &long(json!({}))).await).await });
    until("some of it is done", async || (signed().await > before).then_some(())).await;
    second.signal(Signal::KILL);
    let (status, headers, failed) = tokio::time::timeout(Duration::from_secs(60), lost).await.unwrap().unwrap();
    assert!(status >= 500, "{failed}");
    assert_eq!(headers["x-should-retry"], "false", "{failed}");
    // In a stream it is an event.
    let second = Launch::new().bootstrap(&first).serve(DEMO, "3..6").start().await;
    payer.until_connected_to(second.peer()).await;
    let mut response = until("it can be asked again", async || {
        let response = client.post(CHAT, &long(json!({ "stream": true }))).await;
        response.status().is_success().then_some(response)
    })
    .await;
    read_until(&mut response, |text| text.contains("data: ")).await;
}
