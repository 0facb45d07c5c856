//! The process' own figures, read from `/proc/self` when somebody scrapes. Where there is no such file there is no figure.

use std::fs;

/// Clock ticks per second in `/proc/*/stat`. The kernel fixes it at 100 for user space on every architecture we build for,
/// whatever rate it ticks at itself.
const USER_HZ: f64 = 100.0;

/// Processor time used, user and system, in seconds.
pub(super) fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    Some((stat_field(&stat, 14)? + stat_field(&stat, 15)?) / USER_HZ)
}

/// Memory in RAM, in bytes.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Open file descriptors.
pub(super) fn open_fds() -> Option<u64> {
    let entries = fs::read_dir("/proc/self/fd").ok()?.count();
    // One of them is the directory being read.
    u64::try_from(entries).ok()?.checked_sub(1)
}

/// The most file descriptors allowed. `None` when there is no limit.
pub(super) fn max_fds() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// When the process started, in seconds since the Unix epoch.
pub(super) fn start_time_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let kernel = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = kernel.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + stat_field(&stat, 22)? / USER_HZ)
}

/// A field of `/proc/self/stat`, counted from 1 as in its manual page. The second, the name, may hold spaces and brackets.
fn stat_field(stat: &str, n: usize) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(n.checked_sub(3)?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_does_not_shift_fields() {
        let stat = "42 (a ) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 13 14 15 16 17 18 777 20";
        assert_eq!(stat_field(stat, 14), Some(250.0));
        assert_eq!(stat_field(stat, 15), Some(50.0));
        assert_eq!(stat_field(stat, 22), Some(777.0));
        assert_eq!(stat_field(stat, 99), None);
        assert_eq!(stat_field("", 14), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_has_plausible_figures() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let started = start_time_seconds().unwrap();
        assert!(started <= now + 2.0 && started > now - 86_400.0, "{started} {now}");
        assert!(cpu_seconds().unwrap() < 86_400.0);
        assert!((1 << 20..1 << 40).contains(&resident_bytes().unwrap()));
        let before = open_fds().unwrap();
        assert!(before >= 3);
        assert!(max_fds().is_none_or(|max| max >= before));
    }
}
