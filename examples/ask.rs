//! Asks a swarm as a passing peer: it holds no layers, listens nowhere and keeps nothing. The answer is shown as it comes.
//!
//! ```text
//! cargo run --example ask -- /ip4/127.0.0.1/tcp/…/p2p/12D3… "What is a layer?"
//! ```

#![allow(clippy::print_stdout, reason = "what a program on a terminal does")]

use std::{io::Write as _, time::Duration};

use quelea::{Address, InferEvent, InferRequest, Node, Route, Summary};

/// Anything that can go wrong here has a message for people.
type Error = Box<dyn std::error::Error>;

/// Asks the swarm of `bootstrap`.
pub async fn run(bootstrap: &str, question: &str) -> Result<Summary, Error> {
    let node = Node::builder().bootstrap(bootstrap)?.start().await?;
    // It dials by itself; this waits for it, and says why if it fails.
    node.connect(&bootstrap.parse::<Address>()?).await?;

    let mut request = InferRequest::new("demo", question);
    request.max_tokens = 48;
    request.route = Route::Swarm;
    let mut answer = node.infer(request);
    let mut end = None;
    while let Some(event) = answer.next().await {
        match event {
            InferEvent::Route { hops, .. } => {
                for hop in hops {
                    println!("layers {} by {}", hop.layers, hop.peer);
                }
            }
            InferEvent::Text { text, .. } => {
                print!("{text}");
                std::io::stdout().flush()?;
            }
            InferEvent::Warning { message } => println!("\n({message})"),
            InferEvent::Done { summary } => end = Some(Ok(*summary)),
            InferEvent::Error { error } => end = Some(Err(error)),
            // There may be more kinds one day.
            _ => {}
        }
    }
    println!();
    node.shutdown(Duration::from_secs(5)).await;
    Ok(end.ok_or("the answer has no end")??)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, question] = &arguments[..] else { return Err("usage: ask ADDRESS QUESTION".into()) };
    let summary = run(bootstrap, question).await?;
    if let Some(rate) = summary.tokens_per_s {
        println!("{rate:.1} tokens/s over {} peers", summary.hops.len());
    }
    Ok(())
}
