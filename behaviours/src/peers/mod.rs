//! Which peers are remembered, and whom to dial.
//!
//! | module | what |
//! |---|---|
//! | [`book`] | the peers known: bounded, the worst forgotten first |
//! | [`dialler`] | whom to dial: a pure function |
//! | [`policy`] | both as one machine, without a clock |
//! | `behaviour` | the machine on a swarm |
//! | `keep` | which connections are kept though nobody uses them |
//! | [`uses`] | when each connection was used last |
//! | [`trim`] | which of those that nobody needs are closed: a pure function |
//! | [`lines`] | what counts as need, seen from the composite |

mod behaviour;
pub mod book;
pub mod dialler;
mod keep;
pub mod lines;
pub mod policy;
pub mod trim;
pub mod uses;

use libp2p::{identity::Keypair, swarm::behaviour::toggle::Toggle};
use quelea_exchange::Reach;

pub use self::{
    behaviour::{Behaviour, Hold},
    book::{Book, Known, Source, Told},
    policy::Policy,
    uses::Watched,
};
use crate::{Config, scope};

/// How this node exchanges peers: addresses go only where they lead somewhere, and are believed only from where they could.
pub(crate) fn exchange_config(config: &Config) -> quelea_exchange::Config {
    let reach = Reach { may_tell: scope::may_tell, may_name: scope::may_record };
    quelea_exchange::Config { network: config.network, agent: config.agent.clone(), reach, seed: rand::random() }
}

/// Both sides of rendezvous, as far as the operator wants them; addresses go, and are believed, as in the exchange.
pub(crate) fn rendezvous(keypair: &Keypair, config: &Config) -> Toggle<quelea_rendezvous::Behaviour> {
    let wanted = config.rendezvous_server || !config.rendezvous.is_empty();
    Toggle::from(wanted.then(|| {
        let reach = quelea_rendezvous::Reach { may_tell: scope::may_tell, may_name: scope::may_record };
        let config = quelea_rendezvous::Config {
            network: config.network,
            points: config.rendezvous.clone(),
            server: config.rendezvous_server,
            reach,
            seed: rand::random(),
        };
        quelea_rendezvous::Behaviour::new(keypair.clone(), config)
    }))
}
