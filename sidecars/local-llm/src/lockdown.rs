//! What the process gives up before it looks at the model, which may come from anywhere.

/// Bounds the memory of this process, and closes its way to the internet.
///
/// The bound is `RLIMIT_DATA`: memory that is the process's own, written to or not. Addresses that are merely reserved
/// (`RLIMIT_AS`), and files that are mapped to be read, which the system can drop at any time, do not count.
#[cfg(target_os = "linux")]
pub(crate) fn limit(memory: Option<u64>) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit};
    let set = |resource: Resource, most: u64| {
        // Root may have more than it is allowed now; others may only have less.
        let most = rustix::process::getrlimit(resource).maximum.map_or(most, |allowed| allowed.min(most));
        rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
            .map_err(|e| e.to_string())
    };
    // A core would hold the prompts of others.
    set(Resource::Core, 0)?;
    if let Some(memory) = memory {
        set(Resource::Data, memory)?;
    }
    rustix::thread::set_no_new_privs(true).map_err(|e| e.to_string())?;
    no_internet()
}

/// Elsewhere there is no limit that holds for a process's own memory.
#[cfg(not(target_os = "linux"))]
pub(crate) fn limit(memory: Option<u64>) -> Result<(), String> {
    match memory {
        Some(_) => Err("--memory works on Linux only".into()),
        None => Ok(()),
    }
}

/// Sockets of this machine's file system only, from now on, in every thread.
#[cfg(target_os = "linux")]
fn no_internet() -> Result<(), String> {
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    };
    // The same numbers on every architecture that Linux has had for twenty years.
    const AF_UNIX: u64 = 1;
    const EPERM: u32 = 1;
    let why = |e: &dyn std::fmt::Display| format!("no filter of system calls: {e}");
    let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, AF_UNIX).map_err(|e| why(&e))?;
    let rule = SeccompRule::new(vec![other]).map_err(|e| why(&e))?;
    let (allow, refuse) = (SeccompAction::Allow, SeccompAction::Errno(EPERM));
    let arch = std::env::consts::ARCH.try_into().map_err(|e| why(&e))?;
    // io_uring has a way of its own to make sockets. An empty list of conditions always holds.
    let calls = [(libc::SYS_socket, vec![rule]), (libc::SYS_io_uring_setup, Vec::new())].into_iter().collect();
    let filter = SeccompFilter::new(calls, allow, refuse, arch).map_err(|e| why(&e))?;
    let program: BpfProgram = filter.try_into().map_err(|e: seccompiler::BackendError| why(&e))?;
    seccompiler::apply_filter_all_threads(&program).map_err(|e| why(&e))
}
