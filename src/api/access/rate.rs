//! Rates: a bucket for each address that asks.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Addresses that have a bucket of their own. Further ones share one, until others are full again and forgotten.
const ADDRESSES_MAX: usize = 512;

/// Buckets of `burst` that fill at `per_s`.
pub(super) struct Rate {
    burst: f64,
    per_s: f64,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    own: HashMap<IpAddr, Bucket>,
    shared: Option<Bucket>,
}

#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Rate {
    pub(super) fn new(burst: u32, per_s: u32) -> Self {
        Self { burst: f64::from(burst), per_s: f64::from(per_s), kept: Mutex::default() }
    }

    /// Whether there is one for this address, and takes it.
    pub(super) fn take(&self, from: IpAddr, now: Instant) -> bool {
        let (burst, per_s) = (self.burst, self.per_s);
        let now_left = |bucket: &Bucket| {
            let since = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.left + since * per_s).min(burst)
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let from = whole(from);
        if !kept.own.contains_key(&from) && kept.own.len() >= ADDRESSES_MAX {
            kept.own.retain(|_, bucket| now_left(bucket) < burst);
        }
        let full = Bucket { left: burst, at: now };
        let bucket = if kept.own.contains_key(&from) || kept.own.len() < ADDRESSES_MAX {
            kept.own.entry(from).or_insert(full)
        } else {
            kept.shared.get_or_insert(full)
        };
        *bucket = Bucket { left: now_left(bucket), at: now.max(bucket.at) };
        let there = bucket.left >= 1.0;
        if there {
            bucket.left -= 1.0;
        }
        there
    }
}

/// Who has an IPv6 address has all of its /64.
fn whole(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or_else(
            || IpAddr::V6(std::net::Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
            IpAddr::V4,
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_empties_and_fills_for_each_address() {
        let (rate, now) = (Rate::new(3, 2), Instant::now());
        let (a, b): (IpAddr, IpAddr) = ("127.0.0.1".parse().unwrap(), "::1".parse().unwrap());
        assert!((0..3).all(|_| rate.take(a, now)) && !rate.take(a, now));
        assert!(rate.take(b, now), "another's");
        let later = now + Duration::from_millis(1000);
        assert!(rate.take(a, later) && rate.take(a, later) && !rate.take(a, later));
    }

    #[test]
    fn many_addresses_are_bounded_and_share_what_is_left() {
        let (rate, now) = (Rate::new(1, 1), Instant::now());
        let from = |n: u32| IpAddr::from(n.to_be_bytes());
        let most = u32::try_from(ADDRESSES_MAX).unwrap();
        assert!((0..most).all(|n| rate.take(from(n), now)));
        assert!(rate.take(from(most), now) && !rate.take(from(most + 1), now));
        assert_eq!(rate.kept.lock().unwrap().own.len(), ADDRESSES_MAX);
        // Those that are full again are forgotten.
        assert!(rate.take(from(most + 1), now + Duration::from_secs(1)));
        assert!(rate.kept.lock().unwrap().own.len() <= 1);
        let net = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, last]);
        assert_eq!(whole(net(1)), whole(net(2)));
    }
}
