//! Weights: questions of ours and of others. Their bytes only pass through.

use libp2p::PeerId;
use quelea_weights::{Answer, AskError, Event, ReplyId, Request, TIMEOUT};
use std::time::Duration;
use tokio::sync::oneshot;

use crate::{
    swarm::{driver::Driver, handle::WeightsError},
    telemetry::metrics::{Direction, RpcResult},
};

/// The behaviour answers within its own time; this is the second net.
const DUE: Duration = TIMEOUT.saturating_add(Duration::from_secs(5));

/// What a peer is told while the librarian has more questions than it takes.
const RETRY: Duration = Duration::from_secs(1);

pub(crate) fn ask(
    driver: &mut Driver,
    peer: PeerId,
    request: Request,
    reply: oneshot::Sender<Result<Answer, WeightsError>>,
) {
    if !driver.state.weights.has_room() {
        let _ = reply.send(Err(WeightsError::Busy));
        return;
    }
    let id = driver.swarm.behaviour_mut().weights.ask(peer, request);
    driver.state.weights.insert(id, reply, DUE, Err(WeightsError::Timeout { peer }));
}

pub(crate) fn answer(driver: &mut Driver, id: ReplyId, answer: Answer) {
    let result = if matches!(answer, Answer::Busy { .. }) { RpcResult::Refused } else { RpcResult::Ok };
    driver.swarm.behaviour_mut().weights.reply(id, answer);
    driver.config.telemetry.metrics.rpc("weights", Direction::Inbound, result);
}

pub(crate) fn event(driver: &mut Driver, event: Event) {
    match event {
        Event::Answered { id, peer, result } => {
            let outcome = match &result {
                Ok(Answer::Busy { .. }) => RpcResult::Refused,
                Ok(_) => RpcResult::Ok,
                Err(AskError::Timeout) => RpcResult::Timeout,
                Err(_) => RpcResult::Error,
            };
            driver.config.telemetry.metrics.rpc("weights", Direction::Outbound, outcome);
            let result = result.map_err(|error| WeightsError::Failed { peer, reason: error.to_string() });
            driver.state.weights.answer(&id, result);
        }
        Event::Asked { id, peer, request } => {
            let full = driver.config.weights.try_send((peer, request, id)).is_err();
            driver.config.telemetry.metrics.channel_full_if(full, "weights");
            if full {
                answer(driver, id, Answer::Busy { retry: RETRY });
            }
        }
        Event::Limited { peer, scope } => {
            super::conduct::limited(driver, peer, scope);
            driver.config.telemetry.metrics.rpc("weights", Direction::Inbound, RpcResult::Refused);
        }
        Event::Failed { peer, error } => {
            tracing::debug!(%peer, %error, "a question for weights was not answered");
            driver.config.telemetry.metrics.rpc("weights", Direction::Inbound, RpcResult::Error);
        }
        _ => {}
    }
}
