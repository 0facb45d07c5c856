//! `llm_distributed`: asks the swarm for whoever has no model and no plan of his own. This node pays the chain, at most what it is
//! paid itself.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use quelea_service::Fault;
use quelea_wire::ErrorCode;
use tokio::sync::mpsc;

use super::{
    MILLI,
    prompt::{INPUT, OUTPUT, Prompt},
};
use crate::{
    inference::{Asker, EVENT_QUEUE, InferError, InferEvent, InferRequest},
    services::service::{About, Done, Job, Progress, Service, fault},
};

/// How long one step of a chain may take.
const STEP_MS: u64 = 20_000;

pub(super) struct Distributed {
    pub(super) asker: Arc<Asker>,
    /// `demo`, a file of this machine, or a model id.
    pub(super) model: String,
}

impl Service for Distributed {
    fn about(&self) -> About {
        About {
            version: 1,
            price: 20 * MILLI,
            input_max: INPUT,
            output_max: OUTPUT,
            deadline: Duration::from_secs(300),
            at_once: 4,
            queue: 16,
            about: "Asks the swarm's model; a prompt as text, or JSON with 'prompt'",
        }
    }

    fn call<'a>(&'a self, job: Job, progress: &'a Progress) -> BoxFuture<'a, Result<Done, Fault>> {
        Box::pin(async move {
            let prompt = Prompt::parse(&job.input)?;
            let mut request = InferRequest::new(self.model.clone(), prompt.prompt.clone());
            request.system.clone_from(&prompt.system);
            request.max_tokens = prompt.max_tokens;
            request.temperature = prompt.temperature;
            // Sampling is not repeated: whoever wants the same answer twice asks at temperature 0.
            request.seed = rand::random();
            request.step_timeout_ms = u64::try_from(job.remaining.as_millis()).unwrap_or(STEP_MS).min(STEP_MS);
            request.max_price = Some(job.most);
            let (events, mut happened) = mpsc::channel(EVENT_QUEUE);
            let asker = self.asker.clone();
            // It ends when nobody listens any more, which is when this call is given up.
            let _asking = tokio::spawn(async move { asker.infer(request, events).await });
            while let Some(event) = happened.recv().await {
                match event {
                    InferEvent::Text { text, .. } if !text.is_empty() => progress.say(text.as_bytes()).await,
                    InferEvent::Done { summary } => {
                        let tokens = u64::try_from(summary.ids.len()).ok();
                        return Ok(prompt.answer(&summary.model, &summary.text, tokens));
                    }
                    InferEvent::Error { error } => return Err(told(&error)),
                    _ => {}
                }
            }
            Err(fault(ErrorCode::ServiceFailed, "the swarm's answer stopped before its end"))
        })
    }
}

/// What a caller is told: what concerns the question as it is, and of the rest that the swarm could not. Peers of this node are
/// its own affair.
fn told(error: &InferError) -> Fault {
    let code = error.error_code();
    match code {
        ErrorCode::ContextFull | ErrorCode::Usage => fault(ErrorCode::ServiceInput, code.meaning()),
        _ => Fault {
            retry_ms: error.retry_after_ms.unwrap_or_default(),
            ..fault(ErrorCode::UpstreamFailed, format!("the swarm gave no answer: {}", code.meaning()))
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_not_told_of_others() {
        let error = InferError::new(ErrorCode::HopLost, "peer 12D3KooWsecret was lost at 10.0.0.7");
        let fault = told(&error);
        assert_eq!(fault.code, ErrorCode::UpstreamFailed);
        assert!(!fault.message.contains("12D3KooW") && fault.amount == 0, "{}", fault.message);
        assert_eq!(told(&InferError::new(ErrorCode::ContextFull, "x")).code, ErrorCode::ServiceInput);
    }
}
