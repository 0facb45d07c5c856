//! The data directory: where a node's files lie, and the lock that keeps a second daemon out of it.
//!
//! | file           | what                                                                  |
//! |----------------|-----------------------------------------------------------------------|
//! | `identity.key` | the Ed25519 key, mode 0600 (see [`crate::identity`])                  |
//! | `quelea.redb`  | the database (see [`crate::storage`])                                 |
//! | `quelea.sock`  | the daemon's unix socket, for companion commands                      |
//! | `api.token`    | the token for loopback HTTP, mode 0600                                |
//! | `tokens.json`  | hashes of the tokens that were made, mode 0600                      |
//! | `daemon.json`  | where the running daemon listens, for companion commands              |
//! | `models/`      | models that were pulled or imported (see `weights`)                   |
//! | `sessions/`    | answers that can be gone on with, for a day, encrypted                |
//! | `llm/`         | the socket of the process behind the service `llm_local`             |
//! | `daemon.lock`  | held by the running daemon; says which process, since when, as what   |

use std::{
    ffi::OsString,
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// The longest path that fits a unix socket address: `sun_path` has 108 bytes, one of them the closing zero.
const SOCKET_PATH_MAX: usize = 107;

/// How much of the holder's command line is kept in the lock file: enough to recognise it, small enough for one page.
const COMMAND_MAX: usize = 512;

/// The most that is read of a lock file. Ours stay far below; anything longer was not written by a node.
const LOCK_FILE_MAX: u64 = 4096;

/// A node's data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    dir: PathBuf,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HomeError {
    /// Neither `XDG_DATA_HOME` nor `HOME` is set, so there is no default.
    #[error("cannot tell where to keep data: neither XDG_DATA_HOME nor HOME is set; name a directory with --data-dir")]
    NoDefault,
    /// The path exists and is something else.
    #[error("the data directory {0} is not a directory; name another with --data-dir")]
    NotADirectory(PathBuf),
    /// The directory cannot be made or looked at.
    #[error("cannot use the data directory {path}: {source}; check its permissions, or name another with --data-dir")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path of the unix socket would not fit a socket address.
    #[error(
        "the path {0} is too long for a unix socket ({len} bytes, at most {SOCKET_PATH_MAX} fit); \
         name a shorter directory with --data-dir",
        len = .0.as_os_str().len()
    )]
    SocketPathTooLong(PathBuf),
}

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another daemon runs on this directory.
    #[error(
        "another node is using {dir}: {holder}; stop it (kill {pid}), or give this one a directory of its own with --data-dir",
        pid = .holder.pid,
        dir = .dir.display()
    )]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Who holds it.
        holder: Holder,
    },
    /// Somebody holds the lock and the file does not say who (it is just being written, or was not written by a node).
    #[error("another process is using {dir}; stop it, or give this node a directory of its own with --data-dir", dir = .0.display())]
    HeldByUnknown(PathBuf),
    /// The lock file cannot be made, locked or written.
    #[error(
        "cannot lock {path}: {source}; check that the directory is writable and that its file system has locks, or name another with --data-dir"
    )]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The process that holds a lock, as it wrote itself down.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// When it took the lock, in Unix milliseconds.
    pub since_ms: u64,
    /// Its command line, cut at 512 bytes.
    pub command: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let age = Duration::from_millis(unix_ms().saturating_sub(self.since_ms));
        write!(f, "process {}, running for {}, started as `{}`", self.pid, Age(age), self.command)
    }
}

/// A duration in the two largest units that say something: `3 d 4 h`, `2 h 5 min`, `41 s`.
struct Age(Duration);

impl std::fmt::Display for Age {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let s = self.0.as_secs();
        match (s / 86_400, s / 3_600 % 24, s / 60 % 60, s % 60) {
            (0, 0, 0, s) => write!(f, "{s} s"),
            (0, 0, min, s) => write!(f, "{min} min {s} s"),
            (0, h, min, _) => write!(f, "{h} h {min} min"),
            (d, h, _, _) => write!(f, "{d} d {h} h"),
        }
    }
}

impl Home {
    /// Opens the data directory, making it (mode 0700) where there is none. Without `dir` it is `$XDG_DATA_HOME/quelea`,
    /// else `~/.local/share/quelea`. An existing directory keeps its mode: the files that matter have their own.
    ///
    /// # Errors
    /// When there is no default, the path is not a directory, or the system refuses.
    pub fn new(dir: Option<PathBuf>) -> Result<Self, HomeError> {
        let home = Self::locate(dir)?;
        let dir = home.dir;
        let io = |source| HomeError::Io { path: dir.clone(), source };
        match std::fs::metadata(&dir) {
            Ok(meta) if !meta.is_dir() => return Err(HomeError::NotADirectory(dir)),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(io)?;
            }
            Err(e) => return Err(io(e)),
        }
        // Absolute, so that what is printed and written to daemon.json holds from any working directory.
        let dir = dir.canonicalize().map_err(io)?;
        Ok(Self { dir })
    }

    /// Says where the data directory is, whether or not it exists: for those who only want to talk to its daemon.
    ///
    /// # Errors
    /// When there is no default.
    pub fn locate(dir: Option<PathBuf>) -> Result<Self, HomeError> {
        let default = || default_dir(std::env::var_os("XDG_DATA_HOME"), std::env::var_os("HOME"));
        dir.or_else(default).map(|dir| Self { dir }).ok_or(HomeError::NoDefault)
    }

    /// The directory itself, absolute.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The identity key.
    pub fn identity_key(&self) -> PathBuf {
        self.dir.join("identity.key")
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.dir.join("quelea.redb")
    }

    /// The daemon's unix socket.
    ///
    /// # Errors
    /// [`HomeError::SocketPathTooLong`] when the system could not bind it.
    pub fn socket(&self) -> Result<PathBuf, HomeError> {
        let path = self.dir.join("quelea.sock");
        if path.as_os_str().as_bytes().len() > SOCKET_PATH_MAX {
            return Err(HomeError::SocketPathTooLong(path));
        }
        Ok(path)
    }

    /// The socket of the process behind the service `llm_local`, in a directory of its own. No longer than the daemon's.
    pub(crate) fn local_llm_socket(&self) -> PathBuf {
        self.dir.join("llm").join("l.sock")
    }

    /// The token for loopback HTTP.
    pub fn api_token(&self) -> PathBuf {
        self.dir.join("api.token")
    }

    /// The tokens that were made, as hashes.
    pub fn tokens(&self) -> PathBuf {
        self.dir.join("tokens.json")
    }

    /// The folder of models that were pulled or imported.
    pub fn models(&self) -> PathBuf {
        self.dir.join("models")
    }

    /// The folder of answers that are under way or were cut off.
    pub fn sessions(&self) -> PathBuf {
        self.dir.join("sessions")
    }

    /// The folder of rows that stages have no memory for; its files have no names.
    pub fn rows(&self) -> PathBuf {
        self.dir.join("rows")
    }

    /// The folder of what stages have signed for that lied.
    pub fn claims(&self) -> PathBuf {
        self.dir.join("claims")
    }

    /// The secret from which the path of masked connections comes.
    pub fn masking_secret(&self) -> PathBuf {
        self.dir.join("masking.secret")
    }

    /// Where the running daemon says how to reach it.
    pub fn daemon_json(&self) -> PathBuf {
        self.dir.join("daemon.json")
    }

    /// Takes the directory for this process, until the returned guard is dropped or the process ends. The lock is the
    /// operating system's, so a file left behind by a dead process blocks nobody.
    ///
    /// # Errors
    /// [`LockError::Held`] names the process that has it.
    pub fn lock(&self) -> Result<HomeLock, LockError> {
        let path = self.dir.join("daemon.lock");
        let io = |source| LockError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false) // what the holder wrote must survive our attempt
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(match read_holder(&mut file) {
                    Some(holder) => LockError::Held { dir: self.dir.clone(), holder },
                    None => LockError::HeldByUnknown(self.dir.clone()),
                });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let holder = Holder { pid: std::process::id(), since_ms: unix_ms(), command: command_line() };
        write_holder(&mut file, &holder).map_err(io)?;
        Ok(HomeLock { file })
    }
}

/// Held while a daemon runs on a data directory. Dropping it gives the directory up.
#[derive(Debug)]
pub struct HomeLock {
    file: File,
}

impl Drop for HomeLock {
    fn drop(&mut self) {
        // The file stays (removing it would let two later processes lock two different files) but names nobody any more.
        // Unlocked by name: a child process that another thread is just starting shares the file until it executes, and
        // closing ours would leave the lock with it for that moment.
        if let Err(error) = self.file.set_len(0).and_then(|()| self.file.unlock()) {
            tracing::debug!(%error, "could not give up the lock file cleanly");
        }
    }
}

fn read_holder(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    file.take(LOCK_FILE_MAX).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn write_holder(file: &mut File, holder: &Holder) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    let mut line = serde_json::to_vec(holder)?;
    line.push(b'\n');
    file.write_all(&line)?;
    file.sync_data()
}

fn command_line() -> String {
    let args: Vec<_> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let mut line = args.join(" ");
    line.truncate(line.floor_char_boundary(COMMAND_MAX));
    line
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The XDG base directory rules: relative or empty values count as unset.
fn default_dir(xdg_data_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |value: Option<OsString>| value.map(PathBuf::from).filter(|p| p.is_absolute());
    absolute(xdg_data_home)
        .or_else(|| absolute(home).map(|home| home.join(".local").join("share")))
        .map(|base| base.join("quelea"))
}

#[cfg(test)]
mod tests;
