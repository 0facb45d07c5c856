//! A limit on what a process may take of the memory.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

/// How a process is kept from taking more.
pub enum MemoryLimit {
    /// By a control group of its own: everything counts, pages of files too.
    Group { folder: PathBuf, files: &'static Files },
    /// By the limit on a process's data: what it has written to, shared with nobody.
    Data { kib: u64 },
}

/// The files of a control group.
pub struct Files {
    limit: &'static str,
    peak: &'static str,
}

const FIRST_VERSION: Files = Files { limit: "memory.limit_in_bytes", peak: "memory.max_usage_in_bytes" };
const SECOND_VERSION: Files = Files { limit: "memory.max", peak: "memory.peak" };

impl MemoryLimit {
    /// For one process; where this user may not make control groups, by its own limit.
    pub fn new(bytes: u64) -> Self {
        group(bytes).unwrap_or(Self::Data { kib: bytes >> 10 })
    }

    /// What it is.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Group { files, .. } if std::ptr::eq(*files, &SECOND_VERSION) => "control group, version 2",
            Self::Group { .. } => "control group, version 1",
            Self::Data { .. } => "RLIMIT_DATA",
        }
    }

    /// The shell's part before the command.
    pub fn enter(&self) -> String {
        match self {
            Self::Group { folder, .. } => format!("echo $$ > '{}/cgroup.procs' && ", folder.display()),
            Self::Data { kib } => format!("ulimit -d {kib} && "),
        }
    }

    /// The most that was taken at once, where that is known.
    pub fn peak(&self) -> Option<u64> {
        let Self::Group { folder, files } = self else { return None };
        number(&folder.join(files.peak))
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        if let Self::Group { folder, .. } = self {
            // Stays where its process has not quite gone; empty, it costs nothing.
            let _ = fs::remove_dir(folder);
        }
    }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// A new group below the one that this process is in, or below the top, with this limit.
fn group(bytes: u64) -> Option<MemoryLimit> {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let name = format!("quelea-it-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    let path_of = |controllers: &str| {
        own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let of_this = parts.next()?.split(',').any(|one| one == controllers);
            of_this.then(|| parts.next().map(|path| path.trim_start_matches('/').to_owned()))?
        })
    };
    let (top, inner, files) = match path_of("memory") {
        Some(path) => (Path::new("/sys/fs/cgroup/memory"), path, &FIRST_VERSION),
        None => (Path::new("/sys/fs/cgroup"), path_of("")?, &SECOND_VERSION),
    };
    [top.join(inner), top.to_owned()].into_iter().find_map(|parent| {
        if std::ptr::eq(files, &SECOND_VERSION) {
            // Refused where processes are in the parent itself.
            fs::write(parent.join("cgroup.subtree_control"), "+memory").ok()?;
        }
        let folder = parent.join(&name);
        fs::create_dir(&folder).ok()?;
        let made = MemoryLimit::Group { folder: folder.clone(), files };
        fs::write(folder.join(files.limit), bytes.to_string()).ok()?;
        // What does not fit must fail, not be paged out; refused where nothing can be.
        let _ = fs::write(folder.join("memory.swap.max"), "0");
        fs::write(folder.join("cgroup.procs"), "").is_ok().then_some(made)
    })
}
