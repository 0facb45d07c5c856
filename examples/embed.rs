//! A node inside a program: it holds the whole embedded model and answers a question. Nothing is kept on disk, nothing leaves
//! the machine.
//!
//! ```text
//! cargo run --example embed -- "What is a relay?"
//! ```

#![allow(clippy::print_stdout, reason = "what a program on a terminal does")]

use std::time::Duration;

use quelea::{InferRequest, Node};

/// Anything that can go wrong here has a message for people.
type Error = Box<dyn std::error::Error>;

/// Asks a node of this process's own; the whole answer.
pub async fn run(question: &str) -> Result<String, Error> {
    let node = Node::builder().serve("demo", "all")?.start().await?;
    println!("{} serves {:?}", node.peer_id(), node.serves());

    let mut request = InferRequest::new("demo", question);
    request.max_tokens = 48;
    let summary = node.infer(request).finish().await?;
    println!("{}", summary.text);
    println!("{} tokens, the first after {:.3} s", summary.ids.len(), summary.ttft_s);

    node.shutdown(Duration::from_secs(5)).await;
    Ok(summary.text)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let question = std::env::args().nth(1).unwrap_or_else(|| "What is a relay?".into());
    run(&question).await.map(drop)
}
