//! What calls cost, as both sides have it.

use serde_json::json;

use super::{caller, provider};
use crate::paid::market::{at_rest, settled_once};

#[tokio::test]
async fn a_call_is_answered_and_paid_and_both_books_say_so() {
    let provider = provider(&["echo"]).await;
    let caller = caller(&provider).await;
    let peer = provider.peer();
    let listed = caller.command(&["service", "list", "--peer", peer, "--json"]).await.expect(0).json();
    assert_eq!((&listed["items"][0]["name"], &listed["items"][0]["price"]), (&json!("echo"), &json!(1000)), "{listed}");
    let said = caller.command(&["service", "call", "echo", "hello, flock", "--peer", peer]).await.expect(0);
    assert_eq!(said.stdout, "hello, flock");
    assert_eq!(at_rest(&[&provider, &caller]).await, [1000, -1000]);

    // The same call again is answered, and paid for once.
    let once = ["service", "call", "echo", "again", "--peer", peer, "--json", "--call-id"];
    let id = "000102030405060708090a0b0c0d0e0f";
    let first = caller.command(&[&once[..], &[id]].concat()).await.expect(0).json();
    assert_eq!((&first["output"], &first["paid"]), (&json!("again"), &json!(1000)), "{first}");
    let second = caller.command(&[&once[..], &[id]].concat()).await.expect(0).json();
    assert_eq!((&second["output"], &second["paid"]), (&json!("again"), &json!(0)), "{second}");
    assert_eq!(at_rest(&[&provider, &caller]).await, [2000, -2000]);
    assert_eq!(settled_once(&caller).await, 2);
    let other = ["service", "call", "echo", "else", "--peer", peer, "--call-id", id];
    caller.command(&other).await.expect(1).says(&["QUE-8006"]);

    // What costs nothing needs no hold.
    let free = provider.command(&["service", "price", "echo", "0"]).await.expect(0).stdout;
    assert!(free.contains("echo costs 0.000000"), "{free}");
    let free = caller.command(&["service", "call", "echo", "free", "--peer", peer, "--json"]).await.expect(0).json();
    assert_eq!((&free["output"], &free["paid"]), (&json!("free"), &json!(0)), "{free}");

    // Mistakes.
    fn call<'a>(name: &'a str, peer: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&["service", "call", name, "x", "--peer", peer], more].concat()
    }
    provider.command(&["service", "price", "echo", "0.5"]).await.expect(0);
    caller.command(&call("echo", peer, &["--max-price", "0.01"])).await.expect(7).says(&["QUE-7001", "0.500000"]);
    caller.command(&call("echo", peer, &[])).await.expect(7).says(&["QUE-7003"]);
    caller.command(&call("nothing", peer, &[])).await.expect(5).says(&["offers no service nothing"]);
    caller.command(&call("Echo", peer, &[])).await.expect(2).says(&["a letter first"]);
    provider.command(&["service", "disable", "echo"]).await.expect(0);
    caller.command(&call("echo", peer, &[])).await.expect(5).says(&["QUE-8001"]);
    assert_eq!(at_rest(&[&provider, &caller]).await, [2000, -2000]);
    assert_eq!(provider.metric("quelea_service_calls_total", r#"outcome="ok",service="echo""#).await, 3.0);
    provider.stop().await;
    caller.stop().await;
}
