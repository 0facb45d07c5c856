//! The program among others: its socket, its limits, its end.

use std::{
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{DEMO, ENDLESS, Sidecar, chat, file, until};

#[test]
fn the_socket_is_for_this_user_and_for_one_process() {
    let sidecar = Sidecar::start(DEMO, &[]);
    assert_eq!(sidecar.socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let started = |socket: &std::path::Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_quelea-local-llm"));
        command.arg("--model").arg(file(DEMO)).arg("--socket").arg(socket);
        command.output().unwrap()
    };
    let second = started(&sidecar.socket);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another process serves it"));
    let open = tempfile::tempdir().unwrap();
    std::fs::set_permissions(open.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let refused = started(&open.path().join("llm.sock"));
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("open to others (mode 755)"));
    assert_eq!(sidecar.health()["status"], "ok");
}

#[test]
fn a_model_that_cannot_be_run_is_named_with_the_reason() {
    for (name, wanted) in [
        ("demo/topics.txt", "not a GGUF file"),
        ("tests/data/models/gemma2-Q4_K_M.gguf", "family 'gemma2'"),
        ("tests/data/models/phi3-long-F32.gguf", "the engine cannot run this model"),
        ("none.gguf", "No such file"),
    ] {
        let mut sidecar = Sidecar::begin(&file(name), &[]);
        let (status, said) = sidecar.ended();
        assert_eq!(status.code(), Some(3), "{name}: {said}");
        assert!(said.contains(wanted), "{name}: {said}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_process_has_given_up_the_internet_and_more_memory_than_it_may_have() {
    let sidecar = Sidecar::start(DEMO, &["--memory", "1073741824"]);
    let about = |what: &str| std::fs::read_to_string(format!("/proc/{}/{what}", sidecar.child.id())).unwrap();
    let status = about("status");
    let says = |line: &str| status.lines().any(|have| have.split_whitespace().eq(line.split_whitespace()));
    assert!(says("Seccomp: 2") && says("NoNewPrivs: 1"), "{status}");
    let limits = about("limits");
    assert!(limits.lines().any(|line| line.starts_with("Max data size") && line.contains("1073741824")), "{limits}");
    // Not enough for the weights, nor for what comes after them: it ends, and says so.
    for memory in ["8388608", "40000000"] {
        let (status, said) = Sidecar::begin(&file(DEMO), &["--memory", memory]).ended();
        // An allocation, or a thread: whichever finds no room first.
        assert!(!status.success() && !said.is_empty(), "{status} {said}");
    }
}

#[test]
fn told_to_stop_it_finishes_what_is_under_way() {
    let mut sidecar = Sidecar::start(ENDLESS, &[]);
    let mut running = sidecar.begin_stream(&chat("hi", json!({ "temperature": 0, "max_tokens": 300 })));
    sidecar.signal(Signal::TERM);
    let mut rest = String::new();
    running.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("[DONE]"), "{rest}");
    let (status, said) = sidecar.ended();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(!sidecar.socket.exists());
}

#[test]
fn told_to_stop_while_it_loads_it_stops() {
    let mut sidecar = Sidecar::begin(&file(DEMO), &[]);
    until("there", || sidecar.socket.exists());
    sidecar.signal(Signal::TERM);
    let (status, said) = sidecar.ended();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(!sidecar.socket.exists());
}

#[test]
fn it_does_not_outlive_whoever_started_it() {
    let mut sidecar = Sidecar::start(ENDLESS, &["--until-stdin-closes"]);
    let running = sidecar.begin_stream(&chat("hi", json!({ "temperature": 0, "max_tokens": 450 })));
    let began = Instant::now();
    drop(sidecar.child.stdin.take());
    let (status, said) = sidecar.ended();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
    assert!(!sidecar.socket.exists());
    drop(running);
}
