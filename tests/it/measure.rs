//! `quelea bench model`, and the same logits on every path.

use serde_json::Value;

use crate::harness::{DEMO, numbers, quelea};

#[tokio::test]
async fn a_model_is_measured_beside_its_limits() {
    let tests = ["--pp", "16,70", "--tg", "4", "--sessions", "1,3", "--repeat", "2", "--threads", "2"];
    let report = quelea(&[&["bench", "model", DEMO, "--json"], &tests[..]].concat()).await.expect(0).json();
    assert_eq!((&report["schema"], &report["threads"]), (&"quelea.bench-model/v1".into(), &Value::from(2)));
    let results = report["results"].as_array().unwrap();
    let names: Vec<&str> = results.iter().map(|result| result["test"].as_str().unwrap()).collect();
    assert_eq!(names, ["pp16", "pp70", "tg4", "tg4x1", "tg4x3"]);
    for result in results {
        let rates = &result["tokens_per_second"];
        assert_eq!(rates["samples"].as_array().unwrap().len(), 2);
        assert!(rates["median"].as_f64().unwrap() > 0.0 && rates["best"].as_f64() >= rates["median"].as_f64());
    }
    for field in ["load_seconds", "first_token_seconds", "memory_bytes_per_second", "product_operations_per_second"] {
        assert!(report[field].as_f64().unwrap() > 0.0, "{field}");
    }
    assert!(report["resident_bytes"].as_u64().unwrap() > report["weight_bytes"].as_u64().unwrap());

    let shown = quelea(&["bench", "model", DEMO, "--pp", "8", "--tg", "2", "--repeat", "1"]).await.expect(0);
    for part in ["GB/s", "GOP/s", "thread(s)", "median", "pp8", "tg2"] {
        assert!(shown.stdout.contains(part), "{part}: {}", shown.stdout);
    }
}

#[tokio::test]
async fn logits_are_the_same_on_every_path() {
    let ask = ["model", "logits", DEMO, "--text", "What is a relay?", "--json"];
    let plain = quelea(&ask).await.expect(0).stdout;
    let ways: [&[&str]; 4] = [
        &["--isa", "scalar", "--threads", "1", "--chunk", "1"],
        &["--isa", "scalar", "--threads", "2", "--chunk", "3", "--split", "1,4"],
        &["--threads", "1", "--chunk", "128"],
        &["--chunk", "2", "--split", "2,3"],
    ];
    for way in ways {
        assert_eq!(quelea(&[&ask, way].concat()).await.expect(0).stdout, plain, "{way:?}");
    }
    // Others are other functions, and say so in other digits; the token they favour is the same.
    let best = |out: &str| -> u64 {
        let answer: Value = serde_json::from_str(out).unwrap();
        let pairs = answer["logprobs"].as_array().unwrap();
        let likeliest = pairs.iter().max_by(|a, b| a[1].as_f64().unwrap().total_cmp(&b[1].as_f64().unwrap()));
        numbers(&Value::Array(vec![likeliest.unwrap()[0].clone()]))[0]
    };
    for way in [["--device", "candle"], ["--kv", "f16"], ["--kv", "q8"]] {
        let other = quelea(&[&ask[..], &way].concat()).await.expect(0).stdout;
        assert!(other != plain && best(&other) == best(&plain), "{way:?}");
    }
}

#[tokio::test]
async fn a_chain_of_worker_processes_is_measured_beside_plain_ways() {
    let how = ["--stages", "2", "--sessions", "2", "--prompt-tokens", "130", "--tokens", "6", "--turns", "1"];
    let far = ["--delay", "10ms", "--threads", "1", "--json"];
    let report = quelea(&[&["bench", "chain", DEMO], &how[..], &far[..]].concat()).await.expect(0).json();
    assert_eq!((&report["schema"], &report["delay_ms"]), (&"quelea.bench.chain/v1".into(), &Value::from(10)));
    let results = report["results"].as_array().unwrap();
    let names: Vec<&str> = results.iter().map(|result| result["test"].as_str().unwrap()).collect();
    assert_eq!(names, ["decode", "sessions", "prefill", "speculation", "paid"]);
    for result in results {
        assert_eq!(result["stages"], 2);
        assert!(result["ratio"].as_f64().unwrap() > 0.0);
        for side in ["plain", "measured"] {
            assert_eq!(result[side]["samples"].as_array().unwrap().len(), 1);
        }
    }
    // A token comes back after the way to the first worker, to the second, and back.
    let split = results[0]["measured"]["best"].as_f64().unwrap();
    assert!(split <= 1000.0 / 30.0, "{split} tokens per second at 10 ms one way");
}

#[tokio::test]
async fn chains_that_cannot_be_are_refused() {
    let refused = quelea(&["bench", "chain", DEMO, "--stages", "60"]).await.expect(2);
    assert!(refused.stderr.contains("layers cannot be shared by 60 workers"), "{}", refused.stderr);
    let refused = quelea(&["bench", "chain", DEMO, "--prompt-tokens", "1000000"]).await.expect(2);
    assert!(refused.stderr.contains("do not fit the model's context"), "{}", refused.stderr);
}

/// The figures of a debug build say nothing; that all accounts come back, the command itself looks at.
#[tokio::test]
async fn the_ledger_is_measured_beside_its_disk() {
    let home = crate::harness::tempdir();
    let dir = home.path().to_str().unwrap();
    let few = ["--notes", "40", "--debtors", "3", "--accounts", "50", "--in-flight", "8", "--data-dir", dir];
    let report = quelea(&[&["bench", "ledger", "--json"], &few[..]].concat()).await.expect(0).json();
    assert_eq!(report["schema"], "quelea.bench.ledger/v1");
    assert_eq!((&report["start"]["accounts"], &report["start"]["holds"]), (&50.into(), &5.into()));
    assert_eq!((&report["durable"]["notes"], &report["durable"]["in_flight"]), (&40.into(), &8.into()));
    for (part, field) in [
        ("memory", "notes_per_second"),
        ("memory", "opened_per_second"),
        ("memory", "signed_per_second"),
        ("disk", "syncs_per_second"),
        ("durable", "notes_per_second"),
        ("durable", "commit_median_ms"),
        ("start", "load_seconds"),
    ] {
        assert!(report[part][field].as_f64().unwrap() > 0.0, "{part}.{field}");
    }
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "what was made is gone");

    let shown = quelea(&[&["bench", "ledger"], &few[..]].concat()).await.expect(0);
    for part in ["notes/s", "syncs/s", "8 in flight", "50 accounts"] {
        assert!(shown.stdout.contains(part), "{part}: {}", shown.stdout);
    }
}
