//! The walls around a worker.

use quelea::agents::{End, Limits};
use serde_json::Value;

use super::{compute, module};
use crate::harness::quelea;

/// Threat 31: a worker that was taken over can open neither a file nor a socket.
#[tokio::test]
async fn a_locked_worker_can_open_nothing() {
    let checked = quelea(&["agent-worker", "--check"]).await.expect(0).json();
    assert_eq!(checked["schema"], "quelea.agent_walls/v1");
    let items = checked["items"].as_array().unwrap();
    assert!(items.len() >= 15);
    for item in items {
        assert_eq!(item["refused"], Value::Bool(true), "{item}");
    }
    assert!(!std::path::Path::new("/tmp/quelea-agent-worker-was-here").exists());
}

#[tokio::test]
async fn a_worker_started_by_hand_says_what_it_is_and_ends_with_its_pipe() {
    quelea(&["agent-worker", "--nonsense"]).await.expect(1).says(&["the daemon starts it"]);
    // Its stdin is at its end: there is no job.
    let ended = quelea(&["agent-worker"]).await.expect(1);
    assert_eq!(ended.stdout.as_bytes(), b"\x01\0\0\0\x10", "it says that it is ready, and nothing else");
}

/// Threat 32: nothing of a module is found by those that come after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_in_memory_for_the_next() {
    let limits = Limits::default();
    let leave = module(
        r#"(module (memory 64) (func (export "run") (local $p i32)
            (loop $l (i64.store (local.get $p) (i64.const 0x5e1ea5ed5ec2e75a))
              (local.set $p (i32.add (local.get $p) (i32.const 8)))
              (br_if $l (i32.lt_u (local.get $p) (i32.const 4194304))))))"#,
    );
    // Looks through its own memory, also what it grows by, and through blocks of the host: all must be zero.
    let look = module(
        r#"(module
            (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
            (import "extism:host/env" "load_u64" (func $load_u64 (param i64) (result i64)))
            (memory 32) (func (export "run") (result i32) (local $p i32) (local $b i64) (local $i i64)
            (drop (memory.grow (i32.const 32)))
            (loop $l (if (i64.ne (i64.load (local.get $p)) (i64.const 0)) (then (return (i32.const 1))))
              (local.set $p (i32.add (local.get $p) (i32.const 8)))
              (br_if $l (i32.lt_u (local.get $p) (i32.const 4194304))))
            (local.set $b (call $alloc (i64.const 65536)))
            (loop $m (if (i64.ne (call $load_u64 (i64.add (local.get $b) (local.get $i))) (i64.const 0))
                (then (return (i32.const 2))))
              (local.set $i (i64.add (local.get $i) (i64.const 8)))
              (br_if $m (i64.lt_u (local.get $i) (i64.const 65536))))
            (i32.const 0)))"#,
    );
    let successors: u32 = std::env::var("QUELEA_CANARY_RUNS").map_or(8, |runs| runs.parse().unwrap());
    for n in 0..successors {
        if n % 4 == 0 {
            assert_eq!(compute(leave.clone(), b"", limits).await.end, End::Ok);
        }
        assert_eq!(compute(look.clone(), b"", limits).await.end, End::Ok, "run {n}");
    }
}

/// Threat 32: one module's deadline ends no other's run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_of_one_ends_nobody_else() {
    let endless = module(r#"(module (func (export "run") (loop $l (br $l))))"#);
    let short = Limits { deadline_ms: 100, ..Limits::default() };
    let long = Limits { deadline_ms: 1_500, ..Limits::default() };
    let (one, two, three) = tokio::join!(
        compute(endless.clone(), b"", short),
        compute(endless.clone(), b"", long),
        compute(endless, b"", short),
    );
    for run in [&one, &two, &three] {
        assert_eq!(run.end, End::Timeout);
    }
    assert!(two.took.as_millis() >= 1_500, "{:?}", two.took);
    assert!(one.took.as_millis() < 1_500 && three.took.as_millis() < 1_500);
}
