//! Every service that ships, called by one node at another, and what both books say of it.

use serde_json::{Value, json};

use super::{caller, model::Model};
use crate::{
    harness::{DEMO, Launch, tempdir, until},
    paid::market::{at_rest, settled_once},
};

const KEY: &str = "sk-of-the-test";

#[tokio::test]
async fn one_node_calls_every_service_of_another_and_the_books_agree() {
    let (model, secrets) = (Model::start().await, tempdir());
    let key = secrets.path().join("key");
    std::fs::write(&key, format!("{KEY}\n")).unwrap();
    let launch =
        Launch::new().serve(DEMO, "all").args(&["--service", "echo,compute,llm_distributed,llm_local,llm_prompt"]);
    let launch = launch.args(&["--llm-local-url", &model.url, "--llm-local-model", "tiny"]);
    let launch = launch.args(&["--llm-prompt-url", &model.url, "--llm-prompt-key-file", key.to_str().unwrap()]);
    let provider = launch.start().await;
    let caller = caller(&provider).await;
    let peer = provider.peer().to_owned();
    let call = async |name: &str, input: &str| -> Value {
        let args = ["service", "call", name, input, "--peer", &peer, "--json"];
        caller.command(&args).await.expect(0).json()
    };
    let output = |answer: &Value| answer["output"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();

    assert_eq!(output(&call("echo", "hello").await), "hello");
    let hash = call("compute", r#"{"op":"hash","algorithm":"sha2-256","data":"abc"}"#).await;
    assert!(output(&hash).contains("ba7816bf8f01cfea"), "{hash}");
    let value = call("compute", r#"{"op":"eval","expression":"2*(3+4)^2"}"#).await;
    assert!(output(&value).contains(r#""value":98.0"#), "{value}");
    // A contract that nobody has seen before, priced by what it took.
    let contract = json!({ "op": "run", "module_hex": hex::encode(crate::agents::shout()), "input": "quelea" });
    let contract = call("compute", &contract.to_string()).await;
    assert!(output(&contract).contains(r#""output":"QUELEA""#), "{contract}");
    let fuel = i128::from(contract["paid"].as_i64().unwrap());
    assert!((1..1000).contains(&fuel), "{contract}");
    let local = call("llm_local", "hi").await;
    assert_eq!((output(&local), &local["paid"]), ("You said: hi".into(), &json!(30_000)));
    let prompt = call("llm_prompt", r#"{"prompt":"hi","max_tokens":9}"#).await;
    let answer: Value = serde_json::from_str(&output(&prompt)).unwrap();
    assert_eq!((&answer["text"], &answer["model"]), (&json!("You said: hi"), &json!("tiny")));
    assert!(model.keys().iter().all(|shown| *shown == format!("Bearer {KEY}")) && !model.keys().is_empty());
    let swarm = call("llm_distributed", r#"{"prompt":"What is a relay?","max_tokens":12}"#).await;
    let answer: Value = serde_json::from_str(&output(&swarm)).unwrap();
    let asked = ["infer", "--json", "--route", "swarm", "--max-tokens", "12", "What is a relay?"];
    let direct = caller.command(&asked).await.expect(0).json();
    assert_eq!(answer["text"], direct["text"], "the swarm's own words");

    let all = 1000 + 2 * 1000 + fuel + 30_000 + 50_000 + 20_000;
    assert_eq!(at_rest(&[&provider, &caller]).await, [all, -all]);
    assert_eq!(settled_once(&caller).await, 7);
    let listed = provider.command(&["service", "list", "--json"]).await.expect(0).json();
    let earned: i64 = listed["items"].as_array().unwrap().iter().map(|item| item["earned"].as_i64().unwrap()).sum();
    assert_eq!(i128::from(earned), all, "{listed}");

    // What goes wrong costs nothing.
    let failing =
        async |input: &str| caller.command(&["service", "call", "compute", input, "--peer", provider.peer()]).await;
    failing("nonsense").await.expect(2).says(&["QUE-8002", "not JSON"]);
    failing(r#"{"op":"eval","expression":"1/0"}"#).await.expect(2).says(&["no finite value"]);
    failing(r#"{"op":"run","module_hex":"00"}"#).await.expect(2).says(&["QUE-8002"]);
    drop(model);
    let gone = caller.command(&["service", "call", "llm_local", "hi", "--peer", provider.peer()]).await;
    gone.expect(1).says(&["QUE-8005", "cannot be reached"]);
    assert_eq!(at_rest(&[&provider, &caller]).await, [all, -all]);

    let info = caller.command(&["service", "info", "compute", "--peer", provider.peer()]).await.expect(0).stdout;
    assert!(info.contains("0.001000 credits a call"), "{info}");
    provider.stop().await;
    caller.stop().await;
}

#[tokio::test]
async fn what_is_offered_is_found_and_the_best_is_called() {
    let dear = Launch::new().start().await;
    let cheap = Launch::new().bootstrap(&dear).start().await;
    let caller = caller(&dear).await;
    cheap.until_connected_to(dear.peer()).await;
    caller.command(&["service", "call", "echo", "hi"]).await.expect(5).says(&["nobody was found"]);
    dear.command(&["service", "enable", "echo", "--price", "0.05"]).await.expect(0);
    cheap.command(&["service", "enable", "echo"]).await.expect(0);
    let offers = async || {
        let found = caller.command(&["service", "list", "--name", "echo", "--json"]).await.expect(0).json();
        let items = found["items"].as_array().unwrap().clone();
        (items.len() == 2).then_some(items)
    };
    let found = until("both providers", offers).await;
    assert_eq!((&found[0]["peer_id"], &found[1]["peer_id"]), (&json!(cheap.peer()), &json!(dear.peer())), "{found:?}");
    let called = async |more: &[&str]| {
        let args = [&["service", "call", "echo", "hi", "--json"], more].concat();
        caller.command(&args).await
    };
    let answer = called(&[]).await.expect(0).json();
    assert_eq!((&answer["peer_id"], &answer["paid"]), (&json!(cheap.peer()), &json!(1000)));
    called(&["--max-price", "0.0005"]).await.expect(7).says(&["at least 0.001000"]);
    // Without it the other one is called, for more.
    cheap.signal(rustix::process::Signal::KILL);
    cheap.end().await;
    let answer = called(&[]).await.expect(0).json();
    assert_eq!((&answer["peer_id"], &answer["paid"]), (&json!(dear.peer()), &json!(50_000)));
    // As a passing peer, without a daemon; the price is what it was.
    let passing = ["service", "call", "echo", "passing", "--bootstrap", dear.addr(), "--json"];
    let answer = crate::harness::quelea(&passing).await.expect(0).json();
    assert_eq!((&answer["output"], &answer["paid"]), (&json!("passing"), &json!(50_000)));
    let paid = async || {
        let ledger = dear.command(&["ledger", "balance", "--json"]).await.expect(0).json();
        let owed = ledger["items"].as_array().unwrap().iter().map(|account| account["owed"].as_i64().unwrap());
        (owed.sum::<i64>() == 100_000).then_some(())
    };
    until("the passing peer's note", paid).await;
}

#[tokio::test]
async fn what_a_node_offers_it_calls_itself_and_nobody_pays() {
    let node = super::provider(&["echo=0.5,compute"]).await;
    let call = async |input: &str, more: &[&str]| {
        let args = [&["service", "call", "echo", input, "--json"], more].concat();
        node.command(&args).await
    };
    // Where nobody else offers it, and where it is named, however little may be paid.
    let id = "00112233445566778899aabbccddeeff";
    for more in [&["--call-id", id][..], &["--peer", node.peer(), "--call-id", id, "--max-price", "0"]] {
        let answer = call("hello", more).await.expect(0).json();
        assert_eq!(
            (&answer["output"], &answer["paid"], &answer["peer_id"]),
            (&json!("hello"), &json!(0), &json!(node.peer()))
        );
    }
    call("something else", &["--call-id", id]).await.expect(1).says(&["this id was used"]);
    let failed = ["service", "call", "compute", r#"{"op":"eval","expression":"1/0"}"#];
    node.command(&failed).await.expect(2).says(&["no finite value"]);
    node.command(&["service", "call", "llm_prompt", "hi"]).await.expect(5).says(&["nobody was found"]);
    node.command(&["service", "call", "llm_prompt", "hi", "--peer", node.peer()])
        .await
        .expect(5)
        .says(&["not offered"]);
    assert!(crate::paid::market::accounts(&node).await.is_empty());
}

#[tokio::test]
async fn what_is_set_is_kept_unless_the_flags_say_otherwise() {
    let home = tempdir();
    let launch = |args: &[&str]| Launch::new().home(home.path()).args(args);
    let set = async |args: &[&str]| -> Vec<String> {
        let daemon = launch(args).start().await;
        let listed = daemon.command(&["service", "list", "--json"]).await.expect(0).json();
        daemon.stop().await;
        let items = listed["items"].as_array().unwrap().iter();
        // The seeds of echo and compute, of a page, and of the swarm.
        let seeds = [1000, 10_000, 20_000];
        let changed = |item: &&Value| item["enabled"] == true || seeds.iter().all(|seed| item["price"] != *seed);
        items.filter(changed).map(|i| format!("{} {} {}", i["name"], i["enabled"], i["price"])).collect()
    };
    assert!(set(&[]).await.is_empty(), "nothing is offered by itself");
    let daemon = launch(&[]).start().await;
    daemon.command(&["service", "enable", "echo", "--price", "0.002"]).await.expect(0);
    daemon.command(&["service", "price", "compute", "0.003"]).await.expect(0);
    daemon.command(&["service", "enable", "llm_local"]).await.expect(5).says(&["--llm-local-url"]);
    daemon.command(&["service", "enable", "nothing"]).await.expect(5).says(&["it has compute, echo"]);
    daemon.stop().await;
    assert_eq!(set(&[]).await, [r#""compute" false 3000"#, r#""echo" true 2000"#]);
    assert_eq!(set(&["--service", "echo=0.004"]).await, [r#""compute" false 3000"#, r#""echo" true 4000"#]);
    launch(&["--service", "llm_prompt"]).fails().await.expect(5).says(&["--llm-prompt-url"]);
    launch(&["--service", "echo=1.0000001"]).fails().await.expect(2).says(&["six decimals"]);
    launch(&["--service", "llm_local", "--llm-local-url", "file:///etc"]).fails().await.expect(2).says(&["not http"]);
}
