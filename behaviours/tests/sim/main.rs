//! The pure cores under a deterministic event simulator: thousands of nodes in one thread, with seeds, churn, loss, cuts and
//! liars.
//!
//! | module | drives | models |
//! |---|---|---|
//! | `engine` | – | time, chance, and who is how far from whom |
//! | `node` | what each node is made of | what a restart forgets |
//! | `net` | the peer policy: book, dialler, eviction | connections, crashes, cuts |
//! | `exchange` | the exchanger, the scopes of addresses | silent peers, and those who invent others |
//! | `mesh` | the gate of gossip: dedup, exact identities, limits | gossipsub's mesh, with the product's settings |
//! | `routes` | Kademlia's table with our insertion filter | lookups |
//! | `swarms` | all of it | – |
//! | `growth` | all of it | – |
//!
//! `swarms` asserts, in the suite; `growth` is ignored there and prints figures by the number of nodes:
//!
//! ```sh
//! cargo test --release -p quelea-behaviours --test sim -- --ignored --nocapture --test-threads 1
//! ```

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by failing loudly, helpers too")]
#![allow(clippy::print_stdout, reason = "what was measured is the point")]

mod engine;
mod exchange;
mod growth;
mod mesh;
mod net;
mod node;
mod routes;
mod swarms;
