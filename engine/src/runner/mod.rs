//! The stage loop: one thread owns a span and all its sessions.
//!
//! **Order of a tick.** The thread takes the decode jobs that are ready, at most one of each session, and *one* prefill
//! job (a chunk of at most [`MAX_ROWS`](crate::MAX_ROWS) rows), computes them as one batch, answers, and looks at the
//! queues again. So the weights are read once for all of them, a token waits for one chunk of somebody's long prompt,
//! and a prompt never for more than one token of each session.
//!
//! Sessions belong to groups: those of one coordinator, or of one tenant. The groups that have decodes ready have equal
//! shares of a batch, whatever the number of their sessions; what one has no decodes for goes to the others, so that
//! batches are full. Prefills go in turns. Within a group decodes run in the order they came, and sessions with prefill work have turns. Within a session jobs and trims happen in the
//! order they were submitted. A job for a position before the session's end takes rows back: what was guessed and was
//! wrong goes without a word of its own.
//!
//! Where a backend's numbers depend on the batch ([`Stage::is_exact`] says no), the jobs of a tick are computed one by
//! one in the same order. Where they do not, the thread waits a moment (a quarter of the last batch's time at most; more
//! where cores are short, see `pace`) for sessions that came back so quickly the last time, or came together with one that
//! is there, so that sessions share batches instead of taking turns.
//!
//! A job may give token ids where the stage holds the embedding, and ask for logits where it holds the head: the head's
//! product is shared, too. A session over no layers does only that.
//!
//! A job that fails fails alone: what was computed together with it is computed again without it.
//!
//! **Bounds**, and what happens there:
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | jobs accepted and not answered | [`RunnerConfig::queue`] | [`SubmitError::QueueFull`] |
//! | rows of a job | [`MAX_ROWS`](crate::MAX_ROWS) | [`SubmitError::Rows`] |
//! | rows of a batch | [`MAX_BATCH_ROWS`](crate::MAX_BATCH_ROWS) | the rest waits for the next tick |
//! | sessions | [`RunnerConfig::max_sessions`] | as above, or [`AdmissionError::Sessions`] |
//! | KV pages | [`RunnerConfig::kv_pages`] | idle sessions give way, or [`AdmissionError::Pages`] |
//! | pages kept for prompts that begin alike | what sessions leave of the KV pages, and an hour or two without use | the least recently used goes |
//! | keys of a prompt | [`MAX_PREFIX_BLOCKS`] | the rest is left out |
//! | rows of a session | what it was opened for | [`StageError::Context`](crate::StageError::Context) in [`JobError::Stage`] |
//! | trims waiting | one between two jobs of a session | they are merged |
//!
//! **Pages.** A session's pages are taken when it is opened, for all the rows it may ever hold, so that none is stopped
//! half way; they are given back when it is closed. Where numbers do not depend on the batch, the whole pages of a prompt
//! that [`PrefixKeys`] name are kept: a session of the same group whose prompt begins alike takes them over instead of
//! computing them, and they count once. Pages that no session uses go, least recently used first, when a session needs
//! them. When pages or places run out, sessions that have been idle for [`RunnerConfig::grace`] and that hear of it
//! ([`SessionEvent::Evicted`]) are closed, the longest idle first: of the newcomer's group, or of one that holds more
//! than the newcomer's would. A session that goes back behind a page that others use, too, needs one of its own; if
//! there is none, it is closed with the same notice.
//!
//! A job whose deadline has passed when its turn comes is answered, not computed. Nothing here waits for the thread: a
//! handle's calls take a lock that is never held while something is computed.

// Rows, positions and sessions come from other peers.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod gather;
mod job;
mod pace;
mod pages;
mod prefix;
mod session;
mod sessions;
#[cfg(test)]
mod sim;
mod state;
mod tick;
mod turns;

use std::{ops::Range, sync::Arc, time::Duration};

pub use job::{Input, Job, JobError, Output, Phase, Reply, SessionId, SubmitError, Want};
pub use prefix::{MAX_PREFIX_BLOCKS, PrefixKey, PrefixKeys};
use state::Shared;

use crate::{KV_PAGE_ROWS, Stage};

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
    /// How long a session must have been idle before it may have to give way to another.
    pub grace: Duration,
}

/// What happens to a session unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEvent {
    /// It was closed: it was idle, and others needed its pages or its place.
    Evicted,
}

/// Hears what happens to a session; called at most once, on any thread: must not block, nor call the runner.
pub type OnEvent = Box<dyn FnOnce(SessionEvent) + Send>;

/// What a session is opened with.
#[derive(Default)]
pub struct SessionSpec {
    /// Whose it is: groups share the stage evenly and never see each other's prompts.
    pub group: u64,
    /// Which of the stage's layers it runs, counted from its first. Its pages count in full, unless it has no layers.
    pub layers: Range<usize>,
    /// Most rows it will ever hold.
    pub max_rows: u32,
    /// Whether it is of the profile `exact-bf16`; see [`bf16`](crate::bf16). Prompts' names tell profiles apart.
    pub bf16: bool,
    /// How its prompt begins: pages that are known by these keys are taken over, and others kept for those to come. Of
    /// no effect where numbers depend on the batch ([`Stage::is_exact`]), nor in a session that hears of nothing.
    pub prefix: PrefixKeys,
    /// Without it, the session is never closed unasked.
    pub on_event: Option<OnEvent>,
}

impl std::fmt::Debug for SessionSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionSpec")
            .field("group", &self.group)
            .field("layers", &self.layers)
            .field("max_rows", &self.max_rows)
            .finish_non_exhaustive()
    }
}

/// A session that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Its name.
    pub session: SessionId,
    /// The rows that it holds already: the first job is for this position.
    pub reused_rows: u32,
}

/// How busy a runner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Jobs accepted and not yet answered.
    pub queued: usize,
    /// Pages that a session could have: those that no session has taken or uses.
    pub kv_pages_free: u32,
    /// Pages kept for prompts that begin alike, in use or not.
    pub kv_pages_cached: u32,
    /// All pages.
    pub kv_pages_total: u32,
    /// Open sessions.
    pub sessions: usize,
    /// What was done since the start.
    pub totals: Totals,
}

/// What a runner has done since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Batches computed.
    pub batches: u64,
    /// Jobs answered in them.
    pub jobs: u64,
    /// Rows computed in them.
    pub rows: u64,
    /// Rows that sessions took over instead of computing them.
    pub reused_rows: u64,
    /// Blocks of prompts that were looked up, and those of them that were there.
    pub prefix_lookups: u64,
    /// See [`Totals::prefix_lookups`].
    pub prefix_hits: u64,
    /// Sessions that had to give way.
    pub evicted: u64,
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
    /// count in full; without layers it takes none.
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
        let spec = SessionSpec { group, layers, max_rows, ..SessionSpec::default() };
        self.open_with(spec).map(|opened| opened.session)
    }

    /// Opens a session: over which layers, for whom, how its prompt begins, and who hears when it has to give way.
    ///
    /// # Errors
    /// [`AdmissionError`].
    pub fn open_with(&self, spec: SessionSpec) -> Result<Opened, AdmissionError> {
        self.shared.open(spec)
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

    /// Names blocks of a session beyond the `first` ones that have names, for sessions to come: `keys` are those of the rows
    /// that it holds by now, or will. Keys past [`MAX_PREFIX_BLOCKS`] or the session's pages are left out. Of no effect where
    /// [`SessionSpec::prefix`] has none, nor when other blocks than the `first` ones have names: rows were taken back.
    pub fn keep(&self, session: SessionId, first: usize, keys: Vec<PrefixKey>) {
        self.shared.keep(session, first, keys);
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
