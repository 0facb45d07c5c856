//! What a worker gives up before it looks at a module. The first wall is the engine; this is the second.
//!
//! Order matters: what needs a file or a thread comes first, the filter of system calls last.

use std::{collections::BTreeMap, io};

use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};

use crate::agents::limits::COMPILE_MEMORY;

/// File descriptors: the three that there are, and none besides.
const DESCRIPTORS: u64 = 3;

/// Seconds of processor time in a worker's life: compiling, and the longest deadline.
const CPU_SECONDS: u64 = 70;

/// Room for stacks and for what the allocator rounds up, besides what compiling may use.
const MARGIN: u64 = 32 << 20;

/// Gives everything up that can be while threads may still be started. The daemon has cleared the environment, and `main` has
/// closed what was inherited.
pub(super) fn limit() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::thread::set_no_new_privs(true)?;
    set(Resource::Core, 0)?;
    set(Resource::Cpu, CPU_SECONDS)
}

/// Makes writing to files impossible, whatever stdout is.
pub(super) fn no_files() -> io::Result<()> {
    set(Resource::Fsize, 0)
}

/// Closes the door. No thread can be started after this, and nothing opened.
pub(super) fn close() -> io::Result<()> {
    // Pages that the process has addresses for now: the program, the engine's reservation, two threads.
    let reserved = mapped()?;
    set(Resource::As, reserved.saturating_add(COMPILE_MEMORY as u64).saturating_add(MARGIN))?;
    set(Resource::Nofile, DESCRIPTORS)?;
    // A user's processes are counted, not ours: at the limit already means none more. Root is not bound by it, the filter is.
    set(Resource::Nproc, 0)?;
    filter()
}

fn set(resource: Resource, most: u64) -> io::Result<()> {
    Ok(rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}

/// Bytes of addresses in use.
fn mapped() -> io::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_whitespace().next().and_then(|pages| pages.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| io::Error::other("/proc/self/statm is not understood"))?;
    Ok(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// The system calls that computing needs; everything else is refused with EPERM. There are no descriptors but the three, and
/// none of these makes one.
fn allowed() -> Vec<libc::c_long> {
    vec![
        // The pipe.
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_close,
        // Memory, compiled code among it.
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_membarrier,
        // The clock's thread, and locks.
        libc::SYS_futex,
        libc::SYS_sched_yield,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
        libc::SYS_gettid,
        libc::SYS_getpid,
        // Traps come as signals; an abort is one.
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_tgkill,
        libc::SYS_restart_syscall,
        libc::SYS_getrandom,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ]
}

fn filter() -> io::Result<()> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let refused = |e: &dyn std::fmt::Display| io::Error::other(format!("no filter of system calls: {e}"));
    // A call with an empty list of conditions is allowed whatever its arguments.
    let rules: BTreeMap<i64, _> = allowed().into_iter().map(|call| (call, Vec::new())).collect();
    let eperm = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into().map_err(|e| refused(&e))?;
    let filter = SeccompFilter::new(rules, eperm, SeccompAction::Allow, arch).map_err(|e| refused(&e))?;
    let program: BpfProgram = filter.try_into().map_err(|e: seccompiler::BackendError| refused(&e))?;
    seccompiler::apply_filter_all_threads(&program).map_err(|e| refused(&e))
}
