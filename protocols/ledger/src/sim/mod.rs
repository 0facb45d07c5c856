//! A simulator of the whole ledger: honest nodes, a hostile network, crashes at every storage operation, disks that fail,
//! and old backups put back. The invariants are checked after every step; a run is a function of its seed.

mod invariants;
pub(crate) mod signatures;
mod world;

use self::world::{Faults, World};

/// Runs `seeds` worlds; the first that breaks an invariant, with what it broke.
fn broken(seeds: u64, faults: Faults) -> Vec<(u64, String)> {
    (0..seeds).filter_map(|seed| World::run(seed, faults).err().map(|what| (seed, what))).collect()
}

/// Seeds of the suite; `QUELEA_SEEDS` sets another number.
fn seeds(default: u64) -> u64 {
    std::env::var("QUELEA_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(default)
}

#[test]
fn crashes_break_nothing() {
    let broken = broken(seeds(6_000), Faults { crashes: true, ..Faults::default() });
    assert!(broken.is_empty(), "{} runs: {:?}", broken.len(), broken.first());
}

#[test]
fn one_old_backup_breaks_nothing() {
    let broken = broken(seeds(4_000), Faults { crashes: true, restores: true, ..Faults::default() });
    assert!(broken.is_empty(), "{} runs: {:?}", broken.len(), broken.first());
}

#[test]
fn sending_before_it_is_durable_is_found_out() {
    let faults = Faults { crashes: true, send_first: true, plain_seq: true, ..Faults::default() };
    assert!(!broken(300, faults).is_empty());
}

#[test]
fn numbers_without_the_clock_are_found_out() {
    let faults = Faults { crashes: true, restores: true, plain_seq: true, no_gate: true, ..Faults::default() };
    assert!(!broken(300, faults).is_empty());
}

#[test]
fn signing_before_the_sync_is_found_out() {
    let faults = Faults { crashes: true, restores: true, no_gate: true, ..Faults::default() };
    assert!(!broken(600, faults).is_empty());
}

#[test]
fn packets_of_older_sessions_are_found_out() {
    let faults = Faults { crashes: true, restores: true, no_binding: true, ..Faults::default() };
    assert!(!broken(2_000, faults).is_empty());
}

#[test]
fn every_kind_of_fault_happens() {
    let mut seen = world::Seen::default();
    for seed in 0..400 {
        seen.add(World::seen(seed, Faults { crashes: true, restores: true, ..Faults::default() }));
    }
    println!("{seen:?}");
    let world::Seen { before_commit, after_commit, disk_errors, restored, lost, repeated, recovered, notes, redeems } =
        seen;
    for (what, count) in [
        ("crashes before the commit", before_commit),
        ("crashes after it", after_commit),
        ("disk errors", disk_errors),
        ("restores", restored),
        ("lost packets", lost),
        ("repeated packets", repeated),
        ("self-recoveries", recovered),
        ("notes", notes),
        ("redeems", redeems),
    ] {
        assert!(count > 20, "{count} {what}");
    }
}
