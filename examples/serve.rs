//! Serves some layers of the embedded model to a swarm, until interrupted.
//!
//! ```text
//! cargo run --example serve -- 0..3
//! cargo run --example serve -- 3..6 /ip4/127.0.0.1/tcp/…/p2p/12D3…     what the first one prints
//! ```

#![allow(clippy::print_stdout, reason = "what a program on a terminal does")]

use std::time::Duration;

use quelea::Node;

/// Anything that can go wrong here has a message for people.
type Error = Box<dyn std::error::Error>;

/// A node that serves these layers, on loopback, and joins the swarm of `bootstrap`.
pub async fn run(layers: &str, bootstrap: Option<&str>) -> Result<Node, Error> {
    let mut builder = Node::builder().listen("/ip4/127.0.0.1/tcp/0")?.serve("demo", layers)?.memory(64 << 20);
    if let Some(address) = bootstrap {
        builder = builder.bootstrap(address)?;
    }
    let node = builder.start().await?;
    for address in node.addresses().await {
        println!("layers {layers} at {address}");
    }
    Ok(node)
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let layers = arguments.first().map_or("all", String::as_str);
    let node = run(layers, arguments.get(1).map(String::as_str)).await?;
    tokio::signal::ctrl_c().await?;
    // What is under way is finished, and others are told before it goes.
    node.shutdown(Duration::from_secs(20)).await;
    Ok(())
}
