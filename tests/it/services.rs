//! Services between daemons: called, paid once, and refused, whoever goes away.

mod cheats;
mod losses;
mod many;
mod model;
mod paid;
mod shipped;

use crate::harness::{Daemon, Launch};

/// A node that offers these services, at these prices.
pub async fn provider(offered: &[&str]) -> Daemon {
    let args: Vec<&str> = offered.iter().flat_map(|offered| ["--service", offered]).collect();
    Launch::new().args(&args).start().await
}

/// Somebody who calls, and offers nothing.
pub async fn caller(provider: &Daemon) -> Daemon {
    let caller = Launch::new().bootstrap(provider).start().await;
    caller.until_connected_to(provider.peer()).await;
    caller
}
