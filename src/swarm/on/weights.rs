//! Questions about weights. This node gives none yet, and says so at once instead of letting the asker wait.

use quelea_weights::{Answer, Event};

use crate::{
    swarm::driver::Driver,
    telemetry::metrics::{Direction, RpcResult},
};

pub(crate) fn event(driver: &mut Driver, event: Event) {
    let metrics = driver.config.telemetry.metrics.clone();
    match event {
        Event::Asked { id, .. } => {
            driver.swarm.behaviour_mut().weights.reply(id, Answer::Unknown);
            metrics.rpc("weights", Direction::Inbound, RpcResult::Ok);
        }
        Event::Limited { peer, scope } => {
            super::conduct::limited(driver, peer, scope);
            metrics.rpc("weights", Direction::Inbound, RpcResult::Refused);
        }
        _ => {}
    }
}
