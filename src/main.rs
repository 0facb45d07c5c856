//! The `quelea` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    // A process for one agent: before anything else is set up.
    if arguments.next().as_deref() == Some("agent-worker") {
        close_inherited();
        return quelea::agents::worker::main(&arguments.collect::<Vec<_>>());
    }
    quelea::cli::run()
}

/// Closes every descriptor but stdin, stdout and stderr, whatever the parent left open.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "the system call has no safe form")]
fn close_inherited() {
    // SAFETY: nothing has been opened yet that could be closed under its owner's feet.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

#[cfg(not(target_os = "linux"))]
fn close_inherited() {}
