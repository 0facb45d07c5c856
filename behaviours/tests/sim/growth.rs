//! How everything grows with the number of nodes.

use std::time::Instant;

use crate::net::{MINUTE, Net, Setting};

/// Nodes up to this number also have routing tables: libp2p's take a megabyte each.
const WITH_TABLES: usize = 3000;

/// Resident bytes of this process.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn grows(nodes: usize, loss: f64, churn: f64) {
    let (before, began) = (resident(), Instant::now());
    let mut net = Net::new(Setting { loss, churn, ..Setting::calm(nodes) });
    net.run_until(2 * MINUTE);
    let joined = began.elapsed();
    let sent = |net: &Net| net.nodes.iter().fold((0, 0), |sum, n| (sum.0 + n.sent.messages, sum.1 + n.sent.bytes));
    let first = sent(&net);
    let minutes = 3;
    net.run_until(net.queue.now + minutes * MINUTE);
    let last = sent(&net);
    let memory = resident().saturating_sub(before) / nodes as u64 / 1024;
    let cpu = began.elapsed();
    let known: usize = net.nodes.iter().map(|node| node.policy.book().len()).sum();
    let held: usize = net.nodes.iter().map(|node| node.exchanger.known()).sum();
    let lines = net.say_lines(10);
    let each = |value: u64| value as f64 / nodes as f64 / minutes as f64;
    println!(
        "| {nodes} | {loss} | {churn} | {:.3} % | {} | {}, {} ms | {:.1} | {:.1} | {:.1} KiB | {:.0} | {:.0} | {memory} KiB | \
         {:.1} ms | {:.1} s, {:.1} s |",
        lines.delivered * 100.0,
        lines.hops_99,
        lines.p50_ms,
        lines.p99_ms,
        lines.redundancy,
        each(last.0 - first.0),
        each(last.1 - first.1) / 1024.0,
        known as f64 / nodes as f64,
        held as f64 / nodes as f64,
        (cpu - joined).as_secs_f64() * 1000.0 / nodes as f64 / minutes as f64,
        joined.as_secs_f64(),
        began.elapsed().as_secs_f64(),
    );
    assert!(lines.delivered >= 0.99, "{lines:?}");
    if nodes <= 1000 && loss == 0.0 {
        assert!(lines.hops_99 <= 6, "{lines:?}");
    }
}

/// The numbers of nodes up to `QUELEA_SIM_NODES`, 10,000 where it is not set.
fn sizes() -> Vec<usize> {
    let most = std::env::var("QUELEA_SIM_NODES").map_or(10_000, |most| most.parse().unwrap());
    [100, 300, 1000, 3000, 10_000].into_iter().filter(|nodes| *nodes <= most).collect()
}

#[test]
#[ignore = "minutes, and some 10 GB; with --release, prints figures"]
fn lines_and_exchange() {
    println!(
        "| nodes | loss | goes an hour | heard it | hops for 99 % | half, 99 % of nodes after | copies each | exchange: \
         messages a minute | bytes a minute | in the book | records held | memory | processor a minute | took |"
    );
    for nodes in sizes() {
        for (loss, churn) in [(0.0, 0.0), (0.05, 1.0)] {
            grows(nodes, loss, churn);
        }
    }
}

#[test]
#[ignore = "minutes; with --release, prints figures"]
fn lookups() {
    println!("| nodes | goes an hour | found | hops: half, 99 % | after | asked each | peers in a table | took |");
    for nodes in sizes().into_iter().filter(|nodes| *nodes <= WITH_TABLES) {
        for churn in [0.0, 6.0] {
            let began = Instant::now();
            let mut net = Net::new(Setting { tables: true, churn, ..Setting::calm(nodes) });
            net.run_until(3 * MINUTE);
            let found = net.look_around(500);
            println!(
                "| {nodes} | {churn} | {:.1} % | {}, {} | {}, {} ms | {:.1} | {:.0} | {:.1} s |",
                found.success * 100.0,
                found.hops_50,
                found.hops_99,
                found.p50_ms,
                found.p99_ms,
                found.asked,
                found.table,
                began.elapsed().as_secs_f64(),
            );
            assert!(found.success >= if churn > 0.0 { 0.9 } else { 0.99 }, "{found:?}");
        }
    }
}

#[test]
#[ignore = "a minute; with --release, prints figures"]
fn six_hops_whatever_the_seed() {
    for seed in 2..12 {
        let mut net = Net::new(Setting { seed, ..Setting::calm(1000) });
        net.run_until(2 * MINUTE);
        let lines = net.say_lines(10);
        println!("seed {seed}: {lines:?}");
        assert!(lines.delivered >= 0.99 && lines.hops_99 <= 6, "{lines:?}");
    }
}
