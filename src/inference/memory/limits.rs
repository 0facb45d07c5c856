//! What the process's own limits leave of the memory (`ulimit -d`, `ulimit -v`): what goes beyond them is refused to the
//! allocator, which ends the process.

use std::{fs, path::Path};

use super::field;

/// The limits that count, with what is taken of each: lines of `/proc/self/limits` and `/proc/self/status`.
const LIMITS: [(&str, &str); 2] = [("Max data size", "VmData:"), ("Max address space", "VmSize:")];

/// Bytes that the tightest limit leaves; `None` where there is none.
pub(super) fn left(root: &Path) -> Option<u64> {
    let limits = fs::read_to_string(root.join("proc/self/limits")).ok()?;
    let status = fs::read_to_string(root.join("proc/self/status")).ok()?;
    let left = |(name, taken): (&str, &str)| {
        let limit = soft(&limits, name)?;
        Some(limit.saturating_sub(field(&status, taken)?.saturating_mul(1 << 10)))
    };
    LIMITS.into_iter().filter_map(left).min()
}

/// The limit that is in force, of the two on a line; none where it says `unlimited`.
fn soft(limits: &str, name: &str) -> Option<u64> {
    limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tighter_limit_counts() {
        let left_with = |data: &str, space: &str| {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("proc/self")).unwrap();
            let limits = format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max data size             {data}            unlimited            bytes     \n\
                 Max stack size            8388608              unlimited            bytes     \n\
                 Max address space         {space}            unlimited            bytes     \n"
            );
            fs::write(root.path().join("proc/self/limits"), limits).unwrap();
            fs::write(root.path().join("proc/self/status"), "VmSize:\t    9 kB\nVmData:\t    4 kB\n").unwrap();
            left(root.path())
        };
        assert_eq!(left_with("unlimited", "unlimited"), None);
        assert_eq!(left_with("10240", "unlimited"), Some(6 << 10));
        assert_eq!(left_with("10240", "10240"), Some(1 << 10));
        assert_eq!(left_with("4095", "unlimited"), Some(0));
        assert_eq!(left(tempfile::tempdir().unwrap().path()), None, "a system that does not say");
    }
}
