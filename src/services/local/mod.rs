//! `llm_local` with a model of this machine: a process of its own (`sidecars/local-llm`, docs/adr/0053) that is started when
//! somebody calls, watched, started again when it fails, and unloaded when nobody calls any more.
//!
//! | file | holds |
//! |---|---|
//! | `machine` | when what is done, as rules |
//! | `keeper` | the task that follows them |
//! | `process` | the process itself |
//!
//! Calls wait for it to be ready, as long as their time lasts; while it rests after a failure they are told when to try again.

mod keeper;
mod machine;
mod process;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use quelea_service::Fault;
use quelea_wire::ErrorCode;

use self::{keeper::Keeper, machine::State, process::Order};
use super::{
    builtin::upstream::{Offer, Remote, Upstream},
    service::{About, Done, Job, Progress, Service, fault},
};
use crate::{inference::InferError, telemetry::Telemetry};

/// Without a call for so long, the model is unloaded.
pub(crate) const IDLE: Duration = Duration::from_secs(600);

/// A model of this machine.
#[derive(Debug, Clone)]
pub(crate) struct LocalModel {
    /// A GGUF file, or a folder as Hugging Face lays it out.
    pub(crate) model: PathBuf,
    /// The program that runs it; looked for, without.
    pub(crate) program: Option<PathBuf>,
    /// Bytes of memory that it may have; three quarters of what is free when it is started, without.
    pub(crate) memory: Option<u64>,
    pub(crate) idle: Duration,
}

/// The service, and what keeps the process behind it.
pub(crate) struct Local {
    remote: Arc<Remote>,
    keeper: Keeper,
}

impl Local {
    /// Nothing is started before somebody calls.
    ///
    /// # Errors
    /// When the model or the program is not there.
    pub(super) fn new(
        settings: &LocalModel,
        socket: PathBuf,
        offer: Offer,
        telemetry: &Telemetry,
    ) -> Result<Arc<Self>, InferError> {
        let model = std::path::absolute(&settings.model).and_then(|path| path.metadata().map(|_| path));
        let model = model.map_err(|error| {
            let what = format!("--llm-local-path {}: {error}", settings.model.display());
            InferError::new(ErrorCode::Usage, what).hint("name a GGUF file, or a folder as Hugging Face lays it out")
        })?;
        let program = process::find(settings.program.clone())?;
        // What stands for the host is not looked at: everything goes to the socket.
        let upstream = Upstream::new("http://localhost/v1", None, None)?;
        let remote = Arc::new(Remote::over(upstream, offer, Some(&socket))?);
        let order = Order { program, model, socket, memory: settings.memory };
        let keeper = Keeper::start(order, settings.idle, remote.clone(), telemetry.clone());
        Ok(Arc::new(Self { remote, keeper }))
    }

    /// Stops the process; what is under way has a moment to finish.
    pub(crate) async fn stop(&self) {
        self.keeper.stop().await;
    }

    /// Waits until it is ready, for so long at most.
    async fn ready(&self, most: Duration) -> Result<(), Fault> {
        let mut state = self.keeper.state();
        let waiting = async {
            loop {
                let now = *state.borrow_and_update();
                let rest = match now {
                    State::Ready => return Ok(()),
                    State::Resting(until) => until.saturating_duration_since(Instant::now()),
                    State::Off | State::Starting | State::Stopping => Duration::ZERO,
                };
                if !rest.is_zero() {
                    let retry_ms = u32::try_from(rest.as_millis()).unwrap_or(u32::MAX).clamp(100, 30_000);
                    let message = "the provider's model has failed and is started again in a moment";
                    return Err(Fault { retry_ms, ..fault(ErrorCode::Overloaded, message) });
                }
                if state.changed().await.is_err() {
                    return Err(fault(ErrorCode::ShuttingDown, "the provider is stopping"));
                }
            }
        };
        let late = |_| fault(ErrorCode::DeadlineExceeded, "the provider's model was not loaded in time");
        tokio::time::timeout(most, waiting).await.map_err(late)?
    }
}

impl Service for Local {
    fn about(&self) -> About {
        self.remote.about()
    }

    fn call<'a>(&'a self, job: Job, progress: &'a Progress) -> BoxFuture<'a, Result<Done, Fault>> {
        Box::pin(async move {
            let _wanted = self.keeper.want();
            self.ready(job.remaining).await?;
            self.remote.call(job, progress).await
        })
    }
}
