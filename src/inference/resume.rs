//! Going on with an answer that was cut off: because who coordinated it died, or because nobody took a lost stage's place.
//!
//! Prompt and tokens are run again (what stages have kept of them is not), the sampler counts as many draws as there were,
//! and the next token is the one that would have come.

use std::{sync::Arc, time::Duration};

use quelea_wire::{ErrorCode, ModelId};
use tokio::time::{Instant, sleep};

use super::{
    Asked, Asker,
    models::Ends,
    pipeline::Pipeline,
    sampling::Text,
    session_log::{Earlier, Header, LAST, SessionLog},
    types::{CutOff, InferError, InferEvent, InferRequest, Prediction, Summary},
};
use crate::weights::fetch::blocking;

/// How long is waited for somebody who is answering: who was cut off may just be noticing it.
const BUSY: Duration = Duration::from_secs(2);

/// Between two looks at its lock, of which nobody tells.
const LOOK: Duration = Duration::from_millis(50);

/// For how long stages may take a peer that died for alive, and try connections to it that are none: QUIC gives one up after
/// ten seconds, and a stage that was in vain is asked again after five, then ten more. A node that comes back goes by the same
/// id.
const NOTICED: Duration = Duration::from_secs(30);

/// Between two attempts to open a chain until then.
const AGAIN: Duration = Duration::from_millis(500);

/// An answer, as far as it has come.
pub(crate) struct Begun {
    /// The prompt's token ids.
    pub(crate) prompt: Vec<u32>,
    /// Those of the answer so far.
    pub(crate) said: Vec<u32>,
    /// Where they are kept, if they are.
    pub(crate) log: Option<SessionLog>,
    /// What is gone on with, until there is a log of it again.
    earlier: Option<Earlier>,
    /// By what name it could be gone on with when this began.
    name: Option<String>,
}

impl Begun {
    /// An answer without a token.
    pub(crate) fn new(prompt: Vec<u32>) -> Self {
        Self { prompt, said: Vec::new(), log: None, earlier: None, name: None }
    }

    /// An answer that was cut off, if it was by this model.
    pub(crate) fn again(earlier: Earlier, model: &ModelId) -> Result<Self, InferError> {
        let (prompt, said) = (earlier.prompt_to(model)?, earlier.said.clone());
        let name = Some(earlier.id.clone());
        Ok(Self { prompt, said, log: None, earlier: Some(earlier), name })
    }

    /// All token ids so far.
    pub(crate) fn whole(&self) -> Vec<u32> {
        [self.prompt.as_slice(), &self.said].concat()
    }

    /// By what name it can be gone on with if this process dies.
    pub(crate) fn id(&self) -> Option<String> {
        self.log.as_ref().map(|log| log.id().to_owned())
    }

    /// The answer is complete, or it was cut off: then the error says what there is of it, and how to go on.
    pub(crate) async fn end(
        self,
        ends: &Ends,
        request: &InferRequest,
        answered: Result<Summary, InferError>,
    ) -> Result<Summary, InferError> {
        let mut error = match (answered, self.log) {
            (Ok(summary), log) => {
                if let Some(log) = log {
                    log.over().await;
                }
                return Ok(summary);
            }
            (Err(error), None) => InferError { cut: cut(String::new(), self.name), ..error },
            (Err(error), Some(log)) => InferError { cut: cut(String::new(), log.cut().await), ..error },
        };
        if !self.said.is_empty() {
            let mut text = Text::new(&ends.tokenizer, &request.stop)?;
            self.said.iter().for_each(|id| drop(text.push(*id)));
            error.cut.get_or_insert_default().text = text.shown;
        }
        Err(error)
    }
}

fn cut(text: String, resume: Option<String>) -> Option<Box<CutOff>> {
    resume.is_some().then(|| Box::new(CutOff { text, resume }))
}

impl Asker {
    /// What the request goes on with, if anything.
    pub(super) async fn earlier(&self, request: &InferRequest) -> Result<Option<Earlier>, InferError> {
        let Some(name) = &request.resume else { return Ok(None) };
        let Some(logs) = &self.logs else {
            let error = InferError::new(ErrorCode::NotFound, "no answers are kept here: there is no data directory");
            return Err(error.not_retryable());
        };
        let deadline = Instant::now() + BUSY;
        loop {
            let waited = Instant::now() >= deadline;
            let busy = |error: &InferError| error.error_code() == ErrorCode::AnswerBusy;
            let (logs, name) = (logs.clone(), name.clone());
            let read = blocking(move || match logs.earlier(&name) {
                // The latest is somebody else's, then.
                Err(error) if busy(&error) && waited && name == LAST => logs.last_idle().or(Err(error)),
                read => read,
            });
            match read.await? {
                Err(error) if busy(&error) && !waited => sleep(LOOK).await,
                read => return read.map(Some),
            }
        }
    }

    /// Opens the layers for an answer as far as it has come. Stages that were in one with this node before it died, and do
    /// not reach it, are asked again until they have noticed.
    pub(super) async fn open_again(
        &self,
        ends: &Arc<Ends>,
        asked: &Asked<'_>,
        begun: &Begun,
        max_rows: u32,
    ) -> Result<(Pipeline, Option<Prediction>), InferError> {
        let (rows, deadline) = (begun.whole(), Instant::now() + NOTICED);
        let mut unreached = None;
        loop {
            let error = match self.open(ends, asked.request, &rows, max_rows, &asked.trace).await {
                Ok(opened) => return Ok(opened),
                Err(error) => error,
            };
            match error.error_code() {
                ErrorCode::NextUnreachable if begun.earlier.is_some() => unreached = Some(error),
                // It is left out for a while.
                ErrorCode::NoRoute if unreached.is_some() => {}
                _ => return Err(error),
            }
            if Instant::now() >= deadline {
                return Err(
                    unreached.unwrap_or_else(|| InferError::new(ErrorCode::NoRoute, "no chain could be opened"))
                );
            }
            sleep(AGAIN).await;
        }
    }

    /// Begins to keep the answer, where this node does; what to tell its caller if that fails.
    pub(super) async fn keep(
        &self,
        ends: &Ends,
        request: &InferRequest,
        profile: &str,
        begun: &mut Begun,
    ) -> Result<Option<InferEvent>, InferError> {
        if let Some(earlier) = &begun.earlier {
            earlier.computed_with(profile)?;
        }
        let Some(logs) = &self.logs else { return Ok(None) };
        let header = Header {
            model: ends.file.id.to_string(),
            profile: profile.into(),
            request: InferRequest { resume: None, ..request.clone() },
            prompt: begun.prompt.clone(),
        };
        match SessionLog::begin(logs, header, begun.earlier.take()).await {
            Ok(log) => {
                begun.log = Some(log);
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(%error, "an answer cannot be kept to be gone on with");
                let message = format!("if this answer is cut off, it cannot be gone on with: {error}");
                Ok(Some(InferEvent::Warning { message }))
            }
        }
    }
}
