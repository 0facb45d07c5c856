//! What goes into a stage loop and what comes out of it.

use std::time::{Duration, Instant};

use crate::{MAX_ROWS, StageError};

/// A session in one runner. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What a job is part of; decides its place in a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// New tokens of a running answer.
    Decode,
    /// A chunk of a prompt, or of a replay.
    Prefill,
}

/// What a job computes with; 1 to [`MAX_ROWS`] rows.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// `[n, hidden]`.
    Rows(Vec<f32>),
    /// Token ids, a row each; the stage must hold the embedding.
    Tokens(Vec<u32>),
}

/// What a job is to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// As many rows as went in.
    Rows,
    /// The logits after the last row; the stage must hold the head.
    Logits,
    /// The logits after every row, `[n, vocab]`: bit for bit those that the rows would give one by one, where numbers do
    /// not depend on the batch. The stage must hold the head.
    AllLogits,
}

/// Hears a job's outcome, on the runner's thread: must not block.
pub type Reply = Box<dyn FnOnce(Result<Output, JobError>) + Send>;

/// Rows to run through the stage.
pub struct Job {
    /// The session.
    pub session: SessionId,
    /// Position of the first row: the session's length when the job's turn comes, or less: then what the session holds
    /// from there on is forgotten first, as by [`Runner::trim`](super::Runner::trim), whatever becomes of the job. Means
    /// nothing in a session without layers, whose rows only pass the embedding or the head.
    pub pos: u32,
    /// The rows.
    pub input: Input,
    /// What to give back.
    pub want: Want,
    /// Decode or prefill.
    pub phase: Phase,
    /// When the answer is of no use any more.
    pub deadline: Instant,
    /// Called once, unless the runner's thread dies: then it is dropped.
    pub reply: Reply,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job")
            .field("session", &self.session)
            .field("pos", &self.pos)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// A job's result.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// What was wanted: `[n, hidden]`, `[vocab]` or `[n, vocab]`.
    pub rows: Vec<f32>,
    /// The job's part of the time spent computing, by its share of the batch's rows.
    pub compute: Duration,
    /// Time between submission and the start of computing.
    pub queued: Duration,
}

/// Why a job was not accepted. The job's reply was dropped without being called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// As many jobs as allowed wait.
    #[error("the stage's queue of {bound} jobs is full")]
    QueueFull {
        /// The bound.
        bound: usize,
    },
    /// The session is not open.
    #[error("session {} is not open", session.0)]
    UnknownSession {
        /// The session.
        session: SessionId,
    },
    /// Not a whole number of rows, none, or too many.
    #[error("{values} values are not 1 to {} rows of {width}", MAX_ROWS)]
    Rows {
        /// Values given.
        values: usize,
        /// Values per row; 1 for token ids.
        width: usize,
    },
    /// The stage was loaded without what the job needs.
    #[error("this stage was loaded without the {part}")]
    NotLoaded {
        /// `embedding` or `head`.
        part: &'static str,
    },
    /// The runner's thread has ended.
    #[error("the stage has stopped")]
    Stopped,
}

/// Why a job has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The job was for a position past the session's end.
    #[error("rows are for position {found}, the session ends at {expected}")]
    Position {
        /// The session's length.
        expected: u32,
        /// The job's position.
        found: u32,
    },
    /// Its turn came after its deadline.
    #[error("the deadline passed before the stage came to the job")]
    DeadlinePassed,
    /// The session was closed, or the stage is stopping.
    #[error("the session was closed")]
    Closed,
    /// The stage refused or failed.
    #[error(transparent)]
    Stage(#[from] StageError),
}
