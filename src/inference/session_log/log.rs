//! The log of an answer that is being given.
//!
//! A token is written, not synced, soon after it was drawn: the end of the process loses next to nothing, a power cut what
//! the system had not written. Either costs time alone, since a token that is missing is drawn again, the same one. Nobody
//! waits for the disk: where it does not keep up, or has no room, the log ends, and the answer goes on.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use super::{Earlier, Header, SessionLogs, file::Writer};

/// Tokens that may wait to be written: seconds of a small model, for a disk that is busy.
const QUEUE: usize = 4096;

/// How long an answer that was cut off waits for the disk, so that it can be gone on with at once.
const CLOSE: Duration = Duration::from_secs(2);

/// The log of an answer that is being given. Dropped before the answer is over, it stays.
#[derive(Debug)]
pub(in crate::inference) struct SessionLog {
    id: String,
    path: PathBuf,
    tokens: Option<mpsc::Sender<u32>>,
    writer: JoinHandle<()>,
    over: Arc<AtomicBool>,
}

impl SessionLog {
    /// Begins a log, or goes on with that of `earlier`.
    pub(in crate::inference) async fn begin(
        logs: &SessionLogs,
        header: Header,
        earlier: Option<Earlier>,
    ) -> io::Result<Self> {
        let logs = logs.clone();
        let created = tokio::task::spawn_blocking(move || logs.create(&header, earlier));
        let (id, path, writer) = created.await.map_err(io::Error::other)??;
        Ok(Self::of(id, path, writer))
    }

    pub(super) fn of(id: String, path: PathBuf, writer: Writer) -> Self {
        let (tokens, queue) = mpsc::channel(QUEUE);
        let over = Arc::new(AtomicBool::new(false));
        // Ends with the answer: the sender goes away.
        let writer = tokio::spawn(write(writer, queue, over.clone()));
        Self { id, path, tokens: Some(tokens), writer, over }
    }

    /// The name by which the answer can be gone on with.
    pub(in crate::inference) fn id(&self) -> &str {
        &self.id
    }

    /// A token was drawn. False once, when it and those to come are not kept. Never waits.
    #[must_use]
    pub(in crate::inference) fn push(&mut self, id: u32) -> bool {
        let lost = self.tokens.as_ref().is_some_and(|tokens| tokens.try_send(id).is_err());
        if lost {
            // None may follow one that is missing.
            self.tokens = None;
        }
        !lost
    }

    /// The answer is complete: nothing of it stays.
    pub(in crate::inference) async fn over(self) {
        self.over.store(true, Ordering::Relaxed);
        if let Err(error) = tokio::fs::remove_file(&self.path).await
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "what was kept of a complete answer is not removed");
        }
    }

    /// The answer was cut off: the name by which it can be gone on with from now on, unless its file has had to go.
    pub(in crate::inference) async fn cut(mut self) -> Option<String> {
        self.tokens = None;
        // Who is told the name must find the lock free.
        let _ = timeout(CLOSE, &mut self.writer).await;
        let there = tokio::fs::try_exists(&self.path).await.unwrap_or(false);
        there.then_some(self.id)
    }
}

/// Writes tokens until the answer ends or the disk fails. What was written before stays whole.
async fn write(mut writer: Writer, mut queue: mpsc::Receiver<u32>, over: Arc<AtomicBool>) {
    let mut ids = Vec::new();
    let mut synced = false;
    while queue.recv_many(&mut ids, QUEUE).await > 0 && !over.load(Ordering::Relaxed) {
        let batch = bytes_of(&ids);
        ids.clear();
        let append = move || {
            let wrote = writer.append(&batch);
            // The beginning, once: without it nothing that follows is of use.
            let wrote = if synced { wrote } else { wrote.and_then(|()| writer.sync()) };
            wrote.map(|()| writer)
        };
        match tokio::task::spawn_blocking(append).await {
            Ok(Ok(back)) => (writer, synced) = (back, true),
            Ok(Err(error)) => {
                tracing::warn!(%error, "an answer cannot be kept to be gone on with");
                return;
            }
            // The runtime ends.
            Err(_) => return,
        }
    }
}

/// Token ids as a record.
pub(super) fn bytes_of(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}
