//! Follows what happens in a swarm: who comes and goes, and which layers are announced.
//!
//! ```text
//! cargo run --example events -- /ip4/127.0.0.1/tcp/…/p2p/12D3…
//! ```

#![allow(clippy::print_stdout, reason = "what a program on a terminal does")]

use quelea::{Address, EventKind, Followed, Node};

/// Anything that can go wrong here has a message for people.
type Error = Box<dyn std::error::Error>;

/// Joins the swarm of `bootstrap` and shows what happens, for as long as `enough` says no to all that has happened.
pub async fn run(bootstrap: &str, mut enough: impl FnMut(&EventKind) -> bool) -> Result<(), Error> {
    let node = Node::builder().listen("/ip4/127.0.0.1/tcp/0")?.bootstrap(bootstrap)?.start().await?;
    node.connect(&bootstrap.parse::<Address>()?).await?;
    // Who has which layers already, and who announces some from now on.
    node.follow("demo").await?;
    let mut events = node.events();
    loop {
        let event = match events.next().await {
            Followed::Event(event) => event,
            Followed::Missed(count) => {
                println!("{count} events went by");
                continue;
            }
            _ => continue,
        };
        match &event.kind {
            EventKind::Peer { peer, connected: true } => println!("{peer} is here"),
            EventKind::Peer { peer, connected: false } => println!("{peer} is gone"),
            EventKind::Model { peer, change, offers } => println!("{peer} {change}: {offers:?}"),
            other => println!("{other:?}"),
        }
        if enough(&event.kind) {
            return Ok(());
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let bootstrap = std::env::args().nth(1).ok_or("usage: events ADDRESS")?;
    run(&bootstrap, |_| false).await
}
