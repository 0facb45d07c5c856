//! What Linux's control groups leave of the memory, in both of their versions.
//!
//! A group's limit holds for all groups inside it, so that every group from the process's own up to the root counts. In a
//! container the process sees its groups under the names that they have outside, or under `/`: folders that are not there
//! are passed over, and the root of the hierarchy, which is the container's own group then, is always asked.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use super::field;

/// Bytes that the tightest group of this process leaves; `None` where no group has a limit.
pub(super) fn left(root: &Path) -> Option<u64> {
    let own = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    own.lines().filter_map(|line| left_in_hierarchy(root, line)).min()
}

/// What the hierarchy of a line of `/proc/self/cgroup` leaves: `0::PATH` in version 2, `N:CONTROLLERS:PATH` in version 1.
fn left_in_hierarchy(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let mounts = root.join("sys/fs/cgroup");
    if controllers.split(',').any(|name| name == "memory") {
        return tightest(&mounts.join("memory"), path, first_version);
    }
    if number != "0" || !controllers.is_empty() {
        return None;
    }
    // Beside version 1, version 2 is mounted in a folder of its own.
    let both = mounts.join("unified");
    tightest(if both.is_dir() { &both } else { &mounts }, path, second_version)
}

/// The least of what the groups from `path` up to the top of the hierarchy leave.
fn tightest(top: &Path, path: &str, left_in: fn(&Path) -> Option<u64>) -> Option<u64> {
    // A group outside of this process's view is shown with `..`; of such a path only the top can be looked at.
    let names = Path::new(path).components().filter(|part| !matches!(part, Component::RootDir));
    let inside: Option<PathBuf> = names.map(|part| matches!(part, Component::Normal(_)).then_some(part)).collect();
    let folder = top.join(inside.unwrap_or_default());
    folder.ancestors().take_while(|folder| folder.starts_with(top)).filter_map(left_in).min()
}

/// A group of version 2. From `memory.high` on a process is throttled until it hardly runs, so that is a limit as well.
fn second_version(folder: &Path) -> Option<u64> {
    let limits = [number(folder, "memory.max"), number(folder, "memory.high")];
    left_of(folder, limits.into_iter().flatten().min()?, "memory.current", "inactive_file")
}

/// A group of version 1, where no limit is a number near the largest there is.
fn first_version(folder: &Path) -> Option<u64> {
    left_of(folder, number(folder, "memory.limit_in_bytes")?, "memory.usage_in_bytes", "total_inactive_file")
}

fn left_of(folder: &Path, limit: u64, used: &str, cache: &str) -> Option<u64> {
    let used = number(folder, used)?;
    // Pages of files that nobody uses right now go when memory is asked for.
    let cache = fs::read_to_string(folder.join("memory.stat")).ok().and_then(|text| field(&text, cache)).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

/// The number that a file consists of; none in a file that says `max`, or that is not there.
fn number(folder: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A root with these files in it.
    fn root(files: &[(&str, &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn left_with(files: &[(&str, &str)]) -> Option<u64> {
        left(root(files).path())
    }

    #[test]
    fn no_groups_and_no_limits() {
        assert_eq!(left_with(&[]), None);
        assert_eq!(left_with(&[("proc/self/cgroup", "0::/\n")]), None);
        assert_eq!(left_with(&[("proc/self/cgroup", "nonsense\n::\n1:memory\n")]), None);
        let unlimited = [
            ("proc/self/cgroup", "0::/user\n"),
            ("sys/fs/cgroup/user/memory.max", "max\n"),
            ("sys/fs/cgroup/user/memory.current", "1000\n"),
        ];
        assert_eq!(left_with(&unlimited), None);
    }

    #[test]
    fn the_tightest_of_nested_groups_counts() {
        let nested = |inner: &str, outer: &str| {
            left_with(&[
                ("proc/self/cgroup", "0::/a/b\n"),
                ("sys/fs/cgroup/a/b/memory.max", inner),
                ("sys/fs/cgroup/a/b/memory.current", "100\n"),
                ("sys/fs/cgroup/a/memory.max", outer),
                ("sys/fs/cgroup/a/memory.current", "400\n"),
                ("sys/fs/cgroup/a/memory.stat", "active_file 7\ninactive_file 50\n"),
            ])
        };
        assert_eq!(nested("1000\n", "2000\n"), Some(900));
        assert_eq!(nested("1000\n", "1200\n"), Some(850));
        assert_eq!(nested("max\n", "360\n"), Some(10));
        assert_eq!(nested("50\n", "max\n"), Some(0), "more is used than the limit that was just lowered");
    }

    #[test]
    fn a_group_that_is_throttled_is_limited() {
        let files = [
            ("proc/self/cgroup", "0::/a\n"),
            ("sys/fs/cgroup/a/memory.max", "1000\n"),
            ("sys/fs/cgroup/a/memory.high", "700\n"),
            ("sys/fs/cgroup/a/memory.current", "100\n"),
        ];
        assert_eq!(left_with(&files), Some(600));
    }

    #[test]
    fn the_first_version() {
        let with = |own: &str, limit: &str| {
            left_with(&[
                ("proc/self/cgroup", &format!("12:cpu,cpuacct:/\n{own}\n1:name=systemd:/x\n0::/x\n")),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "5000\n"),
                ("sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes", limit),
                ("sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes", "600\n"),
                ("sys/fs/cgroup/memory/docker/x/memory.stat", "inactive_file 1\ntotal_inactive_file 200\n"),
            ])
        };
        assert_eq!(with("5:memory:/docker/x", "1000\n"), Some(600));
        assert_eq!(with("5:hugetlb,memory:/docker/x/inner", "1000\n"), Some(600));
        assert!(with("5:memory:/docker/x", "9223372036854771712\n").unwrap() > 1 << 60, "as good as none");
        assert!(with("5:memory:/elsewhere", "1000\n").unwrap() > 1 << 60, "another's limit");
        assert_eq!(with("5:pids:/docker/x", "1000\n"), None);
    }

    /// The container's own group is the top of what it sees, whatever its path is called outside.
    #[test]
    fn in_a_container_the_top_is_asked() {
        for own in ["0::/", "0::/../../machine.slice/box", "0::/system.slice/docker-1234.scope"] {
            let files = [
                ("proc/self/cgroup", own),
                ("sys/fs/cgroup/memory.max", "1000"),
                ("sys/fs/cgroup/memory.current", "300"),
            ];
            assert_eq!(left_with(&files), Some(700), "{own}");
        }
        let first = [
            ("proc/self/cgroup", "9:memory:/docker/1234\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "300"),
        ];
        assert_eq!(left_with(&first), Some(700));
    }

    #[test]
    fn both_versions_at_once() {
        let files = [
            ("proc/self/cgroup", "4:memory:/a\n0::/a\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "100"),
            ("sys/fs/cgroup/unified/a/memory.max", "800"),
            ("sys/fs/cgroup/unified/a/memory.current", "100"),
        ];
        assert_eq!(left_with(&files), Some(700));
    }

    #[test]
    fn the_system_may_have_less_than_the_groups_leave() {
        let meminfo = |kib: u64| format!("MemTotal: 99 kB\nMemAvailable:   {kib} kB\n");
        let with = |kib: u64| {
            let root = root(&[
                ("proc/meminfo", &meminfo(kib)),
                ("proc/self/cgroup", "0::/\n"),
                ("sys/fs/cgroup/memory.max", "4096"),
                ("sys/fs/cgroup/memory.current", "0"),
            ]);
            super::super::available_under(root.path())
        };
        assert_eq!((with(3), with(5)), (Some(3072), Some(4096)));
    }
}
