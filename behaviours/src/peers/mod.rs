//! Which peers are remembered, and whom to dial.

use quelea_exchange::Reach;

use crate::{Config, scope};

/// How this node exchanges peers: addresses go only where they lead somewhere, and are believed only from where they could.
pub(crate) fn exchange_config(config: &Config) -> quelea_exchange::Config {
    let reach = Reach { may_tell: scope::may_tell, may_name: scope::may_record };
    quelea_exchange::Config { network: config.network, agent: config.agent.clone(), reach, seed: rand::random() }
}
