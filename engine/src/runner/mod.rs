//! The stage loop: one thread owns a span and all its sessions.
//!
//! **Order of a tick.** Sessions belong to groups: those of one coordinator. The thread runs as many decode jobs as there
//! are sessions whose next job is one. Then it runs *one* prefill job (a chunk of at most [`MAX_ROWS`] rows). Then it
//! looks at the queues again. In both, the groups have turns, whatever the number of their sessions; within a group
//! decodes run in the order they came, and sessions with prefill work have turns. So a token waits for one chunk of
//! somebody's long prompt and one job of each other group, and a prompt never for more than one token of each session.
//! Within a session jobs and trims happen in the order they were submitted. Each job is computed by itself: the candle
//! backend's numbers depend on the batch.
//!
//! **Bounds**, and what happens there:
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | jobs accepted and not answered | [`RunnerConfig::queue`] | [`SubmitError::QueueFull`] |
//! | rows of a job | [`MAX_ROWS`] | [`SubmitError::Rows`] |
//! | sessions | [`RunnerConfig::max_sessions`] | [`AdmissionError::Sessions`] |
//! | KV pages | [`RunnerConfig::kv_pages`] | [`AdmissionError::Pages`] |
//! | rows of a session | what it was opened for | [`StageError::Context`] in [`JobError::Stage`] |
//! | trims waiting | one between two jobs of a session | they are merged |
//!
//! Pages are taken when a session is opened, for all the rows it may ever hold, so that none is stopped half way; they
//! are given back when it is closed. A job whose deadline has passed when its turn comes is answered, not computed.
//! Nothing here waits for the thread: a handle's calls take a lock that is never held while something is computed.

// Rows, positions and sessions come from other peers.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod state;
mod tick;

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use state::Shared;

use crate::{KV_PAGE_ROWS, MAX_ROWS, Stage, StageError};

/// Bounds of a stage loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunnerConfig {
    /// KV pages of [`KV_PAGE_ROWS`] tokens that all sessions share; a page takes that many times
    /// [`Stage::kv_bytes_per_row`].
    pub kv_pages: u32,
    /// Most sessions at once.
    pub max_sessions: usize,
    /// Most jobs accepted and not yet answered.
    pub queue: usize,
}

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

/// Hears a job's outcome, on the runner's thread: must not block.
pub type Reply = Box<dyn FnOnce(Result<Output, JobError>) + Send>;

/// Rows to run through the stage.
pub struct Job {
    /// The session.
    pub session: SessionId,
    /// Position of the first row: the session's length when the job's turn comes.
    pub pos: u32,
    /// `[n, hidden]`, at most [`MAX_ROWS`] rows.
    pub rows: Vec<f32>,
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
    /// As many rows as went in.
    pub rows: Vec<f32>,
    /// Time spent computing.
    pub compute: Duration,
    /// Time between submission and the start of computing.
    pub queued: Duration,
}

/// How busy a runner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Jobs accepted and not yet answered.
    pub queued: usize,
    /// Pages that no session has taken.
    pub kv_pages_free: u32,
    /// All pages.
    pub kv_pages_total: u32,
    /// Open sessions.
    pub sessions: usize,
}

/// Why a session was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdmissionError {
    /// Not enough KV pages are free.
    #[error("the session needs {needed_pages} KV pages, {free_pages} are free")]
    Pages {
        /// Pages for the rows asked for.
        needed_pages: u32,
        /// Pages free now.
        free_pages: u32,
    },
    /// As many sessions as allowed are open.
    #[error("all {max} sessions are taken")]
    Sessions {
        /// The bound.
        max: usize,
    },
    /// More rows than the model's context holds.
    #[error("{max_rows} rows do not fit the model's context of {context}")]
    Context {
        /// Rows asked for.
        max_rows: u32,
        /// Tokens of context.
        context: usize,
    },
    /// The runner's thread has ended.
    #[error("the stage has stopped")]
    Stopped,
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
    #[error("{values} values are not 1 to {} rows of {hidden}", MAX_ROWS)]
    Rows {
        /// Values given.
        values: usize,
        /// Values per row.
        hidden: usize,
    },
    /// The runner's thread has ended.
    #[error("the stage has stopped")]
    Stopped,
}

/// Why a job has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The job was for another position than the session's end.
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

/// A handle to a stage loop. Clones share it; the thread ends when the last one is dropped.
#[derive(Clone)]
pub struct Runner {
    shared: Arc<Shared>,
    _stop: Arc<StopOnDrop>,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("load", &self.load()).finish_non_exhaustive()
    }
}

struct StopOnDrop(Arc<Shared>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Runner {
    /// Starts the thread that owns `stage`.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn spawn(stage: Stage, config: RunnerConfig) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new(stage, config));
        let thread = Arc::clone(&shared);
        std::thread::Builder::new().name("quelea-stage".to_owned()).spawn(move || tick::run(&thread))?;
        Ok(Self { _stop: Arc::new(StopOnDrop(Arc::clone(&shared))), shared })
    }

    /// The stage that the thread runs.
    pub fn stage(&self) -> &Stage {
        &self.shared.stage
    }

    /// Opens a session that will hold at most `max_rows` rows and takes its pages.
    ///
    /// # Errors
    /// [`AdmissionError`].
    pub fn open(&self, max_rows: u32) -> Result<SessionId, AdmissionError> {
        self.open_layers(0..self.stage().span().layers.len(), max_rows)
    }

    /// As [`Runner::open`], for a session that runs only some of the stage's layers, counted from its first. Its pages
    /// count in full.
    ///
    /// # Errors
    /// [`AdmissionError`].
    pub fn open_layers(&self, layers: Range<usize>, max_rows: u32) -> Result<SessionId, AdmissionError> {
        self.open_in(0, layers, max_rows)
    }

    /// As [`Runner::open_layers`], for a session of this group; the others open sessions of group 0.
    ///
    /// # Errors
    /// [`AdmissionError`].
    pub fn open_in(&self, group: u64, layers: Range<usize>, max_rows: u32) -> Result<SessionId, AdmissionError> {
        self.shared.open(group, layers, max_rows)
    }

    /// Queues a job. Does not wait.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub fn submit(&self, job: Job) -> Result<(), SubmitError> {
        self.shared.submit(job)
    }

    /// Forgets all rows of a session from `keep_rows` on, after the jobs submitted before. A session that is not open
    /// is ignored.
    pub fn trim(&self, session: SessionId, keep_rows: u32) {
        self.shared.trim(session, keep_rows);
    }

    /// Ends a session: its jobs are answered with [`JobError::Closed`], its pages are free at once, or when the job
    /// that is being computed is done. A session that is not open is ignored.
    pub fn close(&self, session: SessionId) {
        self.shared.close(session);
    }

    /// How busy the stage is.
    pub fn load(&self) -> Load {
        self.shared.load()
    }
}

/// Pages that `rows` rows take; at least one.
pub fn pages_for(rows: u32) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "a small constant")]
    rows.div_ceil(KV_PAGE_ROWS as u32).max(1)
}
