//! Who is killed in the middle of a call, or after it: the other is told, and nothing is paid for nothing, or twice.

use rustix::process::Signal;
use serde_json::json;

use super::{
    caller,
    model::{Model, NEVER},
};
use crate::{
    harness::{Launch, tempdir},
    paid::market::{at_rest, settled_once},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_is_killed_in_the_middle_is_not_paid() {
    let (model, home) = (Model::start().await, tempdir());
    let launch = Launch::new().home(home.path()).args(&["--service", "llm_local", "--llm-local-url", &model.url]);
    let provider = launch.start().await;
    let caller = caller(&provider).await;
    let (peer, addr) = (provider.peer().to_owned(), provider.addr().rsplit_once("/p2p/").unwrap().0.to_owned());
    let call = ["service", "call", "llm_local", NEVER, "--peer", &peer, "--timeout", "30s"];
    let killing = async {
        model.until_asked(1).await;
        provider.signal(Signal::KILL);
        provider.end().await;
    };
    let (ended, ()) = tokio::join!(caller.command(&call), killing);
    ended.expect(6).says(&["QUE-2006", "was lost during a call", "--call-id"]);
    let provider = launch.listen(&addr).start().await;
    caller.command(&["peers", "connect", provider.addr()]).await.expect(0);
    // As good as new.
    let again = ["service", "call", "llm_local", "hi", "--peer", &peer, "--json"];
    assert_eq!(caller.command(&again).await.expect(0).json()["paid"], 30_000);
    assert_eq!(at_rest(&[&provider, &caller]).await, [30_000, -30_000]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_is_killed_is_not_worked_for_and_owes_nothing() {
    let (model, home) = (Model::start().await, tempdir());
    let args = ["--service", "llm_local", "--llm-local-url", &model.url];
    let provider = Launch::new().args(&args).start().await;
    let launch = Launch::new().home(home.path()).bootstrap(&provider);
    let caller = launch.start().await;
    caller.until_connected_to(provider.peer()).await;
    let call = ["service", "call", "llm_local", NEVER, "--peer", provider.peer(), "--timeout", "60s"];
    let killing = async {
        model.until_asked(1).await;
        caller.signal(Signal::KILL);
    };
    let (ended, ()) = tokio::join!(caller.command(&call), killing);
    ended.expect(3);
    caller.end().await;
    // Nobody waits for it any more, and so nobody works on it.
    model.until_hung_up(1).await;
    let caller = launch.start().await;
    caller.until_connected_to(provider.peer()).await;
    assert_eq!(at_rest(&[&provider, &caller]).await, [0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_repeated_after_both_were_killed_is_paid_once() {
    let homes = [tempdir(), tempdir()];
    let offering = Launch::new().home(homes[0].path()).args(&["--service", "echo"]);
    let provider = offering.start().await;
    let calling = Launch::new().home(homes[1].path()).bootstrap(&provider);
    let caller = calling.start().await;
    caller.until_connected_to(provider.peer()).await;
    let (peer, addr) = (provider.peer().to_owned(), provider.addr().rsplit_once("/p2p/").unwrap().0.to_owned());
    let id = "0f0e0d0c0b0a09080706050403020100";
    let call = ["service", "call", "echo", "once", "--peer", &peer, "--json", "--call-id", id];
    let first = caller.command(&call).await.expect(0).json();
    assert_eq!((&first["output"], &first["paid"]), (&json!("once"), &json!(1000)));
    for daemon in [provider, caller] {
        daemon.signal(Signal::KILL);
        daemon.end().await;
    }
    let provider = offering.listen(&addr).start().await;
    let caller = calling.start().await;
    caller.until_connected_to(&peer).await;
    let second = caller.command(&call).await.expect(0).json();
    assert_eq!((&second["output"], &second["paid"]), (&json!("once"), &json!(0)), "{second}");
    assert_eq!(at_rest(&[&provider, &caller]).await, [1000, -1000]);
    assert_eq!(settled_once(&caller).await, 1);
}
