//! What is needed to go on with an answer that was cut off: the request, its prompt's tokens, and those said so far.
//!
//! One file per answer under `sessions/` in the data directory, written as the answer grows ([`log`]) and removed at its
//! end. Files are encrypted ([`mod@file`]) with a key that comes from the node's identity, and go away after a day; of too
//! many ([`MAX_LOGS`], [`MAX_BYTES`]) the oldest do. Who answers holds the file's lock, so that nobody else goes on with
//! the same answer meanwhile.

mod file;
mod log;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use libp2p::identity::Keypair;
use quelea_wire::{ErrorCode, ModelId};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub(super) use self::log::SessionLog;
use self::{
    file::{Reader, Writer},
    log::bytes_of,
};
use super::types::{InferError, InferRequest};

/// For how long an answer may be gone on with: until the next day.
const EXPIRY: Duration = Duration::from_secs(24 * 3600);

/// Answers kept at once: a few kilobytes each, and more than a person cuts off in a day.
const MAX_LOGS: usize = 256;

/// Bytes that all of them may take: sixteen of the longest prompts that the API takes, as text and as ids.
const MAX_BYTES: u64 = 256 << 20;

/// The name that stands for the answer that was written to last.
pub(crate) const LAST: &str = "last";

/// Hex digits of a name.
const NAME: usize = 16;

/// What files of answers are called, and those that are just being made.
const EXTENSION: &str = "log";
const NEW: &str = "new";

/// What a log begins with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Header {
    /// The model's id: with another, the text would be another.
    pub(super) model: String,
    /// The numeric profile, for the same reason.
    pub(super) profile: String,
    pub(super) request: InferRequest,
    /// The prompt's token ids.
    pub(super) prompt: Vec<u32>,
}

/// An answer that was begun before.
#[derive(Debug)]
pub(super) struct Earlier {
    pub(super) id: String,
    pub(super) header: Header,
    /// Its tokens so far.
    pub(super) said: Vec<u32>,
    /// Locked, so that nobody else goes on with it.
    _file: File,
}

impl Earlier {
    /// What was asked then, to be answered in the way that is asked for now: that changes no token.
    pub(super) fn asked(&self, now: &InferRequest) -> InferRequest {
        InferRequest {
            step_timeout_ms: now.step_timeout_ms,
            route: now.route,
            prefill_window: now.prefill_window,
            speculate: now.speculate,
            draft: now.draft.clone(),
            objective: now.objective,
            max_price: now.max_price,
            receipt: now.receipt,
            ..self.header.request.clone()
        }
    }

    /// The prompt, if it was one to this model.
    pub(super) fn prompt_to(&self, model: &ModelId) -> Result<Vec<u32>, InferError> {
        if self.header.model == model.to_string() {
            return Ok(self.header.prompt.clone());
        }
        let Header { model: then, request, .. } = &self.header;
        let message = format!("the answer was begun with model {then}, and {:?} is {model} now", request.model);
        Err(InferError::new(ErrorCode::ModelUnknown, message))
    }

    /// Refuses arithmetic that would give other tokens.
    pub(super) fn computed_with(&self, profile: &str) -> Result<(), InferError> {
        if self.header.profile == profile {
            return Ok(());
        }
        let then = &self.header.profile;
        let message = format!("the answer was begun with the arithmetic {then}, and {profile} would give another");
        Err(InferError::new(ErrorCode::ProfileMismatch, message))
    }
}

/// The logs of one data directory.
#[derive(Clone)]
pub(crate) struct SessionLogs {
    dir: PathBuf,
    secret: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for SessionLogs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLogs").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl SessionLogs {
    /// Those in `dir`, which is made when there is something to keep, of the node with this identity. Nothing, if its
    /// kind of key has no secrets to give.
    pub(crate) fn new(dir: PathBuf, keypair: &Keypair) -> Option<Self> {
        let secret = keypair.derive_secret(b"quelea.session.log/v1").map(Zeroizing::new)?;
        Some(Self { dir, secret })
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(id).with_extension(EXTENSION)
    }

    /// All files of logs: when they were written to last, the oldest first, and their bytes.
    fn all(&self) -> Vec<(SystemTime, PathBuf, u64)> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let ours = |path: &Path| path.extension().is_some_and(|extension| extension == EXTENSION || extension == NEW);
        let mut all: Vec<_> = entries
            .map(|entry| entry.path())
            .filter(|path| ours(path))
            .filter_map(|path| {
                let meta = fs::metadata(&path).ok()?;
                Some((meta.modified().ok()?, path, meta.len()))
            })
            .collect();
        all.sort();
        all
    }

    /// Removes what has expired, and the oldest beyond the bounds. Blocking.
    pub(crate) fn sweep(&self) {
        self.make_room(MAX_LOGS, MAX_BYTES);
    }

    fn make_room(&self, logs: usize, bytes: u64) {
        let (mut count, mut sum) = (0_usize, 0_u64);
        for (written, path, len) in self.all().into_iter().rev() {
            count += 1;
            sum = sum.saturating_add(len);
            if count > logs || sum > bytes || written.elapsed().is_ok_and(|age| age > EXPIRY) {
                // An answer that is under way goes on without.
                let _ = fs::remove_file(path);
            }
        }
    }

    /// The answer of this name; as `last`, the one that was written to last. [`ErrorCode::AnswerBusy`] while somebody
    /// answers it. Blocking.
    pub(super) fn earlier(&self, id: &str) -> Result<Earlier, InferError> {
        self.sweep();
        if id != LAST {
            return self.read(id);
        }
        let newest = self.names().next().ok_or_else(nothing_left)?;
        self.read(&newest)
    }

    /// The one that was written to last of those that nobody is answering. Blocking.
    pub(super) fn last_idle(&self) -> Result<Earlier, InferError> {
        let read = self.names().map(|id| self.read(&id));
        let busy = |read: &Result<Earlier, InferError>| matches!(read, Err(error) if error.error_code() == ErrorCode::AnswerBusy);
        read.into_iter().find(|read| !busy(read)).unwrap_or_else(|| Err(nothing_left()))
    }

    /// Names of all answers, the one that was written to last first.
    fn names(&self) -> impl Iterator<Item = String> + use<> {
        let is_log = |path: &PathBuf| path.extension().is_some_and(|extension| extension == EXTENSION);
        let paths = self.all().into_iter().rev().map(|(_, path, _)| path).filter(is_log);
        paths.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
    }

    fn read(&self, id: &str) -> Result<Earlier, InferError> {
        if id.len() != NAME || !id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            let message = format!("{id:?} names no answer: a name is {NAME} hex digits, as the error told them");
            return Err(InferError::new(ErrorCode::Usage, message).hint("--resume last takes the latest"));
        }
        let path = self.path(id);
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => unknown(id),
            _ => unreadable(id, &error),
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!("answer {id} is being answered by somebody else");
                let error = InferError::new(ErrorCode::AnswerBusy, message);
                return Err(error.hint("wait for its end, or stop who asked"));
            }
            Err(TryLockError::Error(error)) => return Err(unreadable(id, &error)),
        }
        // Whoever had it before may have put another file in its place, or none: then this lock keeps nobody out.
        let (ours, there) = (file.metadata(), fs::metadata(&path));
        let same = |(a, b): (fs::Metadata, fs::Metadata)| (a.dev(), a.ino()) == (b.dev(), b.ino());
        if !ours.ok().zip(there.ok()).is_some_and(same) {
            return Err(unknown(id));
        }
        let damaged = || unreadable(id, &io::Error::other("it is damaged, or of another identity"));
        let mut reader = Reader::open(&file, &self.secret).map_err(|error| unreadable(id, &error))?;
        let header = reader.next().and_then(|header| serde_json::from_slice(&header).ok()).ok_or_else(damaged)?;
        let mut said = Vec::new();
        while let Some(record) = reader.next() {
            said.extend(record.chunks_exact(4).filter_map(|id| Some(u32::from_le_bytes(*id.first_chunk()?))));
        }
        Ok(Earlier { id: id.to_owned(), header, said, _file: file })
    }

    /// Begins a log, or goes on with that of `earlier`: its name, its path, and what writes it. Blocking.
    fn create(&self, header: &Header, earlier: Option<Earlier>) -> io::Result<(String, PathBuf, Writer)> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        self.make_room(MAX_LOGS - 1, MAX_BYTES);
        let new_name = || hex::encode(rand::random::<[u8; NAME / 2]>());
        let id = earlier.as_ref().map_or_else(new_name, |earlier| earlier.id.clone());
        let path = self.path(&id);
        // Written anew, under a key of its own: what was torn off at the end of an old file must not be followed by anything
        // that was encrypted alike. Locked before it has its name.
        let new = path.with_extension(NEW);
        let made = || {
            let mut writer = Writer::create(&new, &self.secret)?;
            writer.append(&serde_json::to_vec(header)?)?;
            if let Some(earlier) = &earlier {
                writer.append(&bytes_of(&earlier.said))?;
                // The old file is whole; the one in its place has to be, whatever happens now.
                writer.sync()?;
            }
            fs::rename(&new, &path)?;
            Ok(writer)
        };
        let writer = made().inspect_err(|_: &io::Error| drop(fs::remove_file(&new)))?;
        Ok((id, path, writer))
    }
}

fn nothing_left() -> InferError {
    let error = InferError::new(ErrorCode::NotFound, "no answer is kept here to go on with").not_retryable();
    error.hint("answers that were cut off are kept for a day, in the data directory of who asked")
}

fn unknown(id: &str) -> InferError {
    let error = InferError::new(ErrorCode::NotFound, format!("no answer {id} is kept here")).not_retryable();
    error.hint("answers that were cut off are kept for a day, in the data directory of who asked, until they end")
}

fn unreadable(id: &str, error: &io::Error) -> InferError {
    let message = format!("what is kept of answer {id} cannot be read: {error}");
    InferError::new(ErrorCode::AnswerUnreadable, message).hint("ask again")
}
