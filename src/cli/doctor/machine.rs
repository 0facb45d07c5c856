//! What can be seen without a daemon: files, limits, the clock.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::process::{Resource, getrlimit};

use super::Finding;
use crate::{
    home::{Home, LockError},
    identity,
};

/// A disk with less than this is full soon: the database alone grows by megabytes a day.
const SPACE_FAILED: u64 = 100 << 20;
const SPACE_WARNING: u64 = 2 << 30;

/// A node with some hundreds of peers has as many sockets, and models and streams besides.
const DESCRIPTORS: u64 = 4096;

/// No release of this program is older than this: a clock before it was never set.
const YEAR: u64 = 2026;

pub(super) fn of_directory(home: &Home) -> Vec<Finding> {
    let dir = home.dir();
    let Ok(meta) = std::fs::metadata(dir) else {
        let message = format!("{} is not there", dir.display());
        return vec![Finding::warning("directory", message, "'quelea init' makes it; the first start does, too")];
    };
    if !meta.is_dir() {
        let message = format!("{} is no directory", dir.display());
        return vec![Finding::failed("directory", message, "name another with --data-dir")];
    }
    let mut findings = vec![writable(dir, meta.permissions().mode())];
    findings.push(space(dir));
    if home.identity_key().exists() {
        findings.push(match identity::load(&home.identity_key()) {
            Ok(keypair) => Finding::ok("identity", keypair.public().to_peer_id().to_string()),
            Err(error) => Finding::failed("identity", error.to_string(), "put your copy of the file back"),
        });
    }
    if home.api_token().exists() {
        findings.push(match identity::load_token(&home.api_token()) {
            Ok(_) => Finding::ok("token", "only its owner reads it"),
            Err(error) => Finding::failed("token", error.to_string(), "remove it; the next start makes another"),
        });
    }
    findings
}

fn writable(dir: &Path, mode: u32) -> Finding {
    // Tried, because permissions alone do not tell of read-only disks and mounts.
    match tempfile::Builder::new().prefix(".doctor-").tempfile_in(dir) {
        Err(error) => Finding::failed(
            "directory",
            format!("{} cannot be written to: {error}", dir.display()),
            "give this user the directory, or name another with --data-dir",
        ),
        Ok(_) if mode & 0o022 != 0 => Finding::warning(
            "directory",
            format!("{} can be written to by others", dir.display()),
            format!("chmod go-w {}", dir.display()),
        ),
        Ok(_) => Finding::ok("directory", dir.display().to_string()),
    }
}

fn space(dir: &Path) -> Finding {
    let Ok(disk) = rustix::fs::statvfs(dir) else {
        return Finding::ok("disk", "this system does not say what is free");
    };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let message = format!("{} MB free", free / 1_000_000);
    match free {
        0..SPACE_FAILED => Finding::failed("disk", message, "free some space: a node whose disk is full signs nothing"),
        SPACE_FAILED..SPACE_WARNING => Finding::warning("disk", message, "free some space, or set --models-quota"),
        _ => Finding::ok("disk", message),
    }
}

pub(super) fn of_limits() -> Vec<Finding> {
    let limit = getrlimit(Resource::Nofile).current;
    vec![match limit {
        Some(most) if most < DESCRIPTORS => Finding::warning(
            "files",
            format!("{most} may be open at once"),
            format!("ulimit -n {DESCRIPTORS}, or LimitNOFILE={DESCRIPTORS} in the unit: each connection is one"),
        ),
        Some(most) => Finding::ok("files", format!("{most} may be open at once")),
        None => Finding::ok("files", "as many as wanted may be open"),
    }]
}

/// Whether the clock was ever set; else the year it shows.
pub(super) fn of_year() -> Result<Finding, u64> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let year = 1970 + seconds / 31_556_952;
    if year < YEAR {
        return Err(year);
    }
    Ok(Finding::ok("clock", "set; there is no peer to compare it with"))
}

/// Whether a process holds the directory.
pub(in crate::cli) fn is_locked(home: &Home) -> bool {
    home.dir().is_dir() && matches!(home.lock(), Err(LockError::Held { .. } | LockError::HeldByUnknown(_)))
}

#[cfg(test)]
mod tests {
    use super::{super::Level, *};

    #[test]
    fn a_directory_others_write_to_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(writable(dir.path(), 0o700).level, Level::Ok);
        assert_eq!(writable(dir.path(), 0o777).level, Level::Warning);
        assert_eq!(writable(Path::new("/proc"), 0o555).level, Level::Failed);
    }
}
