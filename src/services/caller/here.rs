//! Calls of this node at itself: the service works as it does for others, and nobody pays.

use std::sync::Arc;

use quelea_service::{Call, Name};
use quelea_wire::ErrorCode;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{CallDone, CallEvent, CallRequest, refused};
use crate::{
    inference::InferError,
    services::{Services, provider::Outcome, service::fault},
};

impl Services {
    /// Whether this node offers a service itself.
    pub(super) fn has(&self, name: &Name) -> bool {
        self.registry.get(name).is_some_and(|offered| offered.enabled())
    }

    /// Calls a service of this node.
    pub(super) async fn call_here(
        self: &Arc<Self>,
        request: &CallRequest,
        deadline: Instant,
        events: &mpsc::Sender<CallEvent>,
    ) -> Result<CallDone, InferError> {
        let peer = self.local();
        let failed = |fault| refused(peer, &fault);
        let remaining = deadline.saturating_duration_since(Instant::now()).as_millis();
        let call = Call {
            id: request.id,
            hold: None,
            price: 0,
            remaining_ms: u32::try_from(remaining).unwrap_or(u32::MAX),
            version: 0,
            name: request.name.clone(),
            input: request.input.clone(),
        };
        let worked = async {
            let mut taken = match self.take(peer, call).await.map_err(failed)? {
                Outcome::Kept { version, kept, .. } => return Ok((version, kept.output.clone())),
                Outcome::Taken(taken) => taken,
            };
            let version = taken.version;
            let _ = events.send(CallEvent::Accepted { peer, version, price: 0 }).await;
            while let Some(piece) = taken.progress.recv().await {
                let _ = events.send(CallEvent::Progress(piece)).await;
            }
            let kept = taken.end().await.map_err(failed)?;
            Ok((version, kept.output.clone()))
        };
        let (version, output) = timeout_at(deadline, worked).await.unwrap_or_else(|_late| {
            let why = format!("{} took longer than the call may take", request.name);
            Err(failed(fault(ErrorCode::DeadlineExceeded, why)))
        })?;
        Ok(CallDone { peer, version, output, paid: 0, note: None })
    }
}
