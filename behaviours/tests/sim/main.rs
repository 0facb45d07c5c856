//! The pure cores under a deterministic event simulator: thousands of nodes in one thread, with seeds, churn and loss.
//!
//! | module | drives | asks |
//! |---|---|---|
//! | `engine` | – | time, chance, and who is how far from whom |
//! | `flock` | the gate of gossip (dedup, exact identities, limits) over a model of gossipsub's mesh | how many hears a line, when, after how many hops, how often |
//! | `lookup` | Kademlia's table with our insertion filter | how many hops a lookup takes, and whether it finds whom it looks for |
//!
//! Quick variants run in the suite. The larger ones are ignored there and print figures:
//!
//! ```sh
//! cargo test --release -p quelea-behaviours --test sim -- --ignored --nocapture --test-threads 1
//! ```

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by failing loudly, helpers too")]
#![allow(clippy::print_stdout, reason = "what was measured is the point")]

mod engine;
mod flock;
mod lookup;
