//! An answer, as it comes.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures::Stream;
use quelea_wire::ErrorCode;
use tokio::sync::mpsc;

use crate::inference::{InferError, InferEvent, Summary};

/// What happens while a request is answered: a route, text as it comes, warnings, and at the end exactly one
/// [`InferEvent::Done`] or [`InferEvent::Error`]. Dropping it cancels the request at every peer. Who leaves it unread for a minute
/// loses it.
///
/// It is a [`Stream`], and [`next`](Self::next) needs no trait for it.
#[derive(Debug)]
#[must_use = "an answer that is dropped is cancelled"]
pub struct Answer {
    events: mpsc::Receiver<InferEvent>,
}

impl Answer {
    pub(crate) fn new(events: mpsc::Receiver<InferEvent>) -> Self {
        Self { events }
    }

    /// What comes next; nothing after the end. Nothing is lost when the future is dropped before it is ready.
    pub async fn next(&mut self) -> Option<InferEvent> {
        self.events.recv().await
    }

    /// Waits for the end; the whole text is in the summary.
    ///
    /// # Errors
    /// Why the request failed, with what there is of the text where it was cut off.
    pub async fn finish(mut self) -> Result<Summary, InferError> {
        while let Some(event) = self.next().await {
            match event {
                InferEvent::Done { summary } => return Ok(*summary),
                InferEvent::Error { error } => return Err(error),
                _ => {}
            }
        }
        Err(InferError::new(ErrorCode::Internal, "the answer stopped before its end"))
    }
}

impl Stream for Answer {
    type Item = InferEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<InferEvent>> {
        self.events.poll_recv(cx)
    }
}
