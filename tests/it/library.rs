//! The examples of the library, as programs that embed a node use it.

#![allow(dead_code, reason = "each example has a main function of its own")]

#[path = "../../examples/ask.rs"]
mod ask;
#[path = "../../examples/embed.rs"]
mod embed;
#[path = "../../examples/events.rs"]
mod events;
#[path = "../../examples/serve.rs"]
mod serve;

use std::time::Duration;

use quelea::{Address, EventKind, InferRequest, Node, PlanRequest};

use crate::harness::{DEMO, PATIENCE, quelea};

const QUESTION: &str = "What is a relay?";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_in_a_program_answers_as_the_program_does() {
    let said = embed::run(QUESTION).await.unwrap();
    let asked = ["infer", "--json", "--route", "local", "--max-tokens", "48", QUESTION];
    assert_eq!(said, quelea(&asked).await.expect(0).json()["text"].as_str().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_serve_one_asks_and_one_follows() {
    let first = serve::run("0..3", None).await.unwrap();
    let address = first.addresses().await.remove(0);
    assert_eq!(address.peer(), Some(first.peer_id()));
    assert_eq!(first.serves()[0].layers, "0..3");

    // Follows until it has seen the first, and heard of its layers.
    let heard = {
        let (address, first) = (address.clone(), first.peer_id().to_string());
        async move {
            let (mut here, mut offered) = (false, false);
            let enough = |kind: &EventKind| {
                match kind {
                    EventKind::Peer { peer, connected: true } => here |= *peer == first,
                    EventKind::Model { peer, offers, .. } => {
                        offered |= *peer == first && offers.iter().any(|offer| offer.layers == "0..3");
                    }
                    _ => {}
                }
                here && offered
            };
            events::run(&address, enough).await.map_err(|e| e.to_string())
        }
    };
    let heard = async { tokio::time::timeout(PATIENCE, heard).await.expect("events in time").unwrap() };
    let asked = async {
        let second = serve::run("3..6", Some(&address)).await.unwrap();
        let summary = ask::run(&address, QUESTION).await.unwrap();
        (second, summary)
    };
    let ((second, summary), ()) = tokio::join!(asked, heard);
    let peers: Vec<&str> = summary.hops.iter().map(|hop| hop.peer.as_str()).collect();
    assert_eq!(peers, [first.peer_id().as_str(), second.peer_id().as_str()]);
    assert_eq!(summary.text, embed::run(QUESTION).await.unwrap());
    second.shutdown(Duration::from_secs(5)).await;
    first.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said() {
    let wrong = Node::builder().listen("127.0.0.1:1").unwrap_err();
    assert!(wrong.message.contains("multiaddr") && wrong.code().starts_with("QUE-"), "{wrong}");
    assert!(Node::builder().serve("demo", "5..2").is_err());
    let node = Node::builder().start().await.unwrap();
    // Nobody is there: a port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nobody = format!("/ip4/127.0.0.1/tcp/{port}/p2p/12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS");
    node.connect(&nobody.parse::<Address>().unwrap()).await.unwrap_err();
    let nameless: Address = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
    assert!(node.connect(&nameless).await.unwrap_err().to_string().contains("/p2p/"));
    assert!(node.peers().await.is_empty());
    let mut request = InferRequest::new(DEMO, QUESTION);
    request.max_tokens = 0;
    assert_eq!(node.infer(request).finish().await.unwrap_err().code, "QUE-1001");
    assert!(node.plan(&PlanRequest::new(DEMO)).await.is_ok());
    assert_eq!(node.coverage(DEMO).await.unwrap().missing.len(), 1);
    node.shutdown(Duration::from_secs(1)).await;
}
