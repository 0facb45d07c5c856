//! How many connections that have not shown the secret path may stand, and from whom. Those that have are the swarm's, and
//! its limits hold for them.

use std::{collections::VecDeque, net::IpAddr, time::Instant};

use quelea_wire::{
    prefix::{HOST, Prefix, is_local},
    rate::{Buckets, MAX_KEYS, Quota},
};
use tokio::task::AbortHandle;

/// Connections without a tunnel at once: each holds a socket, a task and at most some 40 KiB. When one more comes, the oldest
/// is closed: an honest one is done within a few round trips.
pub(super) const MAX_GUESTS: usize = 256;
/// Of these, from one IPv4 address or IPv6 /56: two browsers' worth (six each), and peers that connect.
pub(super) const PER_HOST: usize = 16;
/// Connections taken from one host per second, as the swarm takes.
const ACCEPTED_PER_SECOND: u32 = 20;

/// Those who have not shown the secret path.
pub(super) struct Guests {
    /// Oldest first.
    inside: VecDeque<(IpAddr, AbortHandle)>,
    accepted: Buckets<Prefix>,
}

impl Guests {
    pub(super) fn new() -> Self {
        let accepted = Buckets::with_capacity(Quota::per_second(ACCEPTED_PER_SECOND), MAX_KEYS);
        Self { inside: VecDeque::new(), accepted }
    }

    /// Whether one more from `ip` may come in. Loopback and private ranges are left alone, as by the swarm.
    pub(super) fn admit(&mut self, ip: IpAddr, now: Instant) -> bool {
        self.inside.retain(|(_, task)| !task.is_finished());
        if is_local(ip) {
            return true;
        }
        let host = Prefix::around(ip, HOST);
        let there = self.inside.iter().filter(|(other, _)| host.contains(*other)).count();
        there < PER_HOST && self.accepted.admit(host, now)
    }

    /// It is served by this task, which ends when the connection closes or is the swarm's. How many gave way to it.
    pub(super) fn enter(&mut self, ip: IpAddr, task: AbortHandle) -> u64 {
        let mut gone = 0;
        while self.inside.len() >= MAX_GUESTS {
            if let Some((_, oldest)) = self.inside.pop_front() {
                oldest.abort();
                gone += 1;
            }
        }
        self.inside.push_back((ip, task));
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_host_gets_its_share_and_the_oldest_gives_way() {
        let (mut guests, now) = (Guests::new(), Instant::now());
        let mut tasks = Vec::new();
        let mut come = |guests: &mut Guests, ip: IpAddr| {
            let let_in = guests.admit(ip, now);
            if let_in {
                let task = tokio::spawn(std::future::pending::<()>());
                guests.enter(ip, task.abort_handle());
                tasks.push(task);
            }
            let_in
        };
        let one: IpAddr = "203.0.113.7".parse().unwrap();
        assert_eq!((0..100).filter(|_| come(&mut guests, one)).count(), PER_HOST);
        let here = IpAddr::from([127, 0, 0, 1]);
        assert_eq!((0..2 * MAX_GUESTS).filter(|_| come(&mut guests, here)).count(), 2 * MAX_GUESTS);
        assert_eq!(guests.inside.len(), MAX_GUESTS);
        assert!(tasks.remove(0).await.is_err_and(|e| e.is_cancelled()), "the first one has given way");
        assert!(!tasks.last().unwrap().is_finished());
    }

    #[tokio::test]
    async fn a_host_comes_twenty_times_a_second() {
        let (mut guests, now) = (Guests::new(), Instant::now());
        let ip = "203.0.113.7".parse().unwrap();
        assert_eq!((0..100).filter(|_| guests.admit(ip, now)).count(), 20, "all of them are gone again");
    }
}
