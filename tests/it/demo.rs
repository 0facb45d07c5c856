//! `quelea demo`: no file, no network, no flag needed.

use crate::harness::quelea;

#[tokio::test]
async fn three_nodes_answer_as_one_model_would() {
    let answer = quelea(&["demo", "--json", "What is a relay?"]).await.expect(0).json();
    assert_eq!(answer["schema"], "quelea.demo/v1");
    assert_eq!(answer["same_as_unsplit"], true);
    assert_eq!(answer["text"], answer["unsplit_text"]);
    let hops = answer["hops"].as_array().unwrap();
    assert_eq!(hops.len(), 3, "{answer}");
    let peers: std::collections::BTreeSet<_> = hops.iter().map(|hop| hop["peer"].as_str().unwrap()).collect();
    assert_eq!(peers.len(), 3, "each has an identity of its own: {answer}");
    assert!(hops.iter().all(|hop| hop["rows"].as_u64().unwrap() > 0), "{answer}");
}

#[tokio::test]
async fn the_table_says_who_did_what_and_that_it_was_checked() {
    let shown = quelea(&["demo", "--max-tokens", "8"]).await.expect(0);
    assert!(!shown.stdout.trim().is_empty());
    shown.says(&["peer", "layers", "ms per token", "0..2", "2..4", "4..6", "the same text, token for token"]);
}
