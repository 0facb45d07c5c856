//! Many calls, and what is left of them. `QUELEA_CALLS=10000` makes so many; half of them are paid, the others free.

use std::{path::Path, time::Instant};

use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::{caller, provider};
use crate::{
    harness::{Daemon, http_client},
    paid::market::at_rest,
};

/// Calls where nothing else is said.
const FEW: u64 = 240;

/// Calls at once.
const AT_ONCE: usize = 6;

/// How much larger a daemon may be after many calls, in bytes: results of the last minutes, and what the allocator keeps.
const GROWTH: f64 = 64.0 * 1024.0 * 1024.0;

async fn calls(caller: &Daemon, peer: &str, numbers: std::ops::Range<u64>) {
    let client = http_client().unix_socket(Path::new(caller.home()).join("quelea.sock")).build().unwrap();
    let one = async |n: u64| {
        let body = json!({ "name": "echo", "input": format!("call {n}"), "peer": peer });
        loop {
            let answer = client.post("http://quelea/api/v1/services/call").json(&body).send().await.unwrap();
            let text = answer.text().await.unwrap();
            let last: Value = serde_json::from_str(text.trim().lines().last().unwrap()).unwrap();
            if last["event"] == "done" {
                assert_eq!(last["result"]["output"], format!("call {n}"), "{last}");
                return;
            }
            // Faster than may be: the provider resets what is too much.
            let error = if last["error"].is_null() { &last } else { &last["error"] };
            assert_eq!(error["retryable"], true, "{last}");
            assert_eq!(error["code"], "QUE-2006", "{last}");
            tokio::task::yield_now().await;
        }
    };
    stream::iter(numbers).for_each_concurrent(AT_ONCE, one).await;
}

async fn size(daemon: &Daemon) -> (f64, f64) {
    (daemon.metric("process_resident_memory_bytes", "").await, daemon.metric("process_open_fds", "").await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_leave_nothing_behind() {
    let wanted = std::env::var("QUELEA_CALLS").ok().map_or(FEW, |n| n.parse().unwrap());
    let provider = provider(&["echo"]).await;
    let caller = caller(&provider).await;
    provider.command(&["ledger", "grant", caller.peer(), "25"]).await.expect(0);
    calls(&caller, provider.peer(), 0..20).await;
    let before = [size(&provider).await, size(&caller).await];
    let (began, paid) = (Instant::now(), wanted / 2);
    calls(&caller, provider.peer(), 20..20 + paid).await;
    let half = began.elapsed().as_secs_f64();
    provider.command(&["service", "price", "echo", "0"]).await.expect(0);
    calls(&caller, provider.peer(), 20 + paid..20 + wanted).await;
    let took = began.elapsed().as_secs_f64() - half;
    let after = [size(&provider).await, size(&caller).await];
    println!("{paid} paid calls in {half:.2} s, {} free ones in {took:.2} s", wanted - paid);
    for (who, (was, is)) in ["provider", "caller"].into_iter().zip(before.into_iter().zip(after)) {
        println!("{who}: {:.1} to {:.1} MiB, {} to {} descriptors", was.0 / 1048576.0, is.0 / 1048576.0, was.1, is.1);
        assert!(is.0 - was.0 < GROWTH, "{who} has grown by {} bytes", is.0 - was.0);
        assert!(is.1 - was.1 <= 8.0, "{who} has {} descriptors more", is.1 - was.1);
    }
    let owed = i128::from((20 + paid) * 1000);
    assert_eq!(at_rest(&[&provider, &caller]).await, [owed, -owed]);
    let listed = provider.command(&["service", "list", "--json"]).await.expect(0).json();
    let echo = listed["items"].as_array().unwrap().iter().find(|item| item["name"] == "echo").unwrap();
    assert_eq!((&echo["running"], &echo["waiting"]), (&json!(0), &json!(0)), "{echo}");
    assert!(echo["answered"].as_u64().unwrap() >= 20 + wanted, "{echo}");
}
