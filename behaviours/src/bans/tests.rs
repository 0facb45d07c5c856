use quelea_wire::prefix::HOST;

use super::*;

const NOW: u64 = 1_800_000_000_000;
const HOUR: Duration = Duration::from_secs(3600);

fn peer() -> Subject {
    Subject::Peer(PeerId::random())
}

#[test]
fn a_ban_holds_until_it_ends_or_is_lifted() {
    let mut bans = Bans::default();
    let (subject, other) = (peer(), peer());
    let (ban, _) = bans.ban(subject, HOUR, "noise\x1b[2J\n", NOW).unwrap();
    assert_eq!((ban.reason.as_str(), ban.until_ms, ban.by), ("noise[2J", NOW + 3_600_000, By::Operator));
    assert!(bans.holds(&subject, NOW + 3_599_999) && !bans.holds(&subject, NOW + 3_600_000));
    assert!(bans.unban(&subject, NOW) && !bans.unban(&subject, NOW));
    let (ban, _) = bans.ban(other, Duration::MAX, &"ä".repeat(1000), NOW).unwrap();
    assert_eq!(ban.until_ms, NOW + ms(MAX_DURATION));
    assert!(ban.reason.len() <= MAX_REASON && !ban.reason.is_empty());
    bans.ban(peer(), Duration::MAX, "", u64::MAX).unwrap();
}

#[test]
fn conduct_is_banned_longer_each_time_and_forgotten_after_a_week() {
    let mut bans = Bans::default();
    let who = PeerId::random();
    let mut now = NOW;
    let mut lasted = Vec::new();
    for _ in 0..6 {
        let made = bans.misbehaved(who, None, "invalid messages", now);
        assert_eq!(made.len(), 1);
        assert!(bans.misbehaved(who, None, "again", now).is_empty(), "it is banned already");
        lasted.push((made[0].0.until_ms - now) / 60_000);
        now = made[0].0.until_ms;
        let (ended, forgotten) = bans.sweep(now - 1000, now);
        assert_eq!((ended, forgotten), (vec![Subject::Peer(who)], vec![]));
    }
    assert_eq!(lasted, [10, 60, 360, 2160, 7 * 24 * 60, 7 * 24 * 60]);
    let (ended, forgotten) = bans.sweep(now, now + ms(MEMORY));
    assert_eq!((ended, forgotten), (vec![], vec![Subject::Peer(who)]));
    assert!(bans.is_empty());
}

#[test]
fn a_host_with_many_banned_peers_is_banned() {
    let mut bans = Bans::default();
    let host = Prefix::around("203.0.113.7".parse().unwrap(), HOST);
    let made: Vec<_> = (0..6).flat_map(|_| bans.misbehaved(PeerId::random(), Some(host), "", NOW)).collect();
    assert_eq!(made.iter().filter(|(ban, _)| ban.subject == Subject::Range(host)).count(), 1);
    assert!(bans.holds(&Subject::Range(host), NOW));
}

#[test]
fn the_list_is_bounded_and_the_operators_bans_stay() {
    let mut bans = Bans::default();
    let by_hand: Vec<Subject> = (0..10).map(|_| peer()).collect();
    by_hand.iter().for_each(|subject| drop(bans.ban(*subject, HOUR, "", NOW).unwrap()));
    for n in 0..3 * MAX_BANS as u64 {
        let made = bans.misbehaved(PeerId::random(), None, "", NOW + n);
        assert_eq!(made[0].1.is_some(), n + 10 >= MAX_BANS as u64, "whoever is displaced is told");
    }
    assert_eq!(bans.len(), MAX_BANS);
    assert!(by_hand.iter().all(|subject| bans.holds(subject, NOW + 4000)));
    let all: Vec<Ban> = bans.in_force(NOW).cloned().collect();
    let (again, left_out) = Bans::load(all.clone(), NOW);
    assert_eq!((again.len(), left_out.len()), (MAX_BANS, 0));
    let (later, left_out) = Bans::load(all, NOW + ms(MEMORY) + 3_600_000);
    assert_eq!((later.len(), left_out.len()), (0, MAX_BANS));

    let mut full = Bans::default();
    (0..MAX_BANS).for_each(|_| drop(full.ban(peer(), HOUR, "", NOW).unwrap()));
    assert_eq!(full.ban(peer(), HOUR, "", NOW).unwrap_err(), Full);
    assert!(full.misbehaved(PeerId::random(), None, "", NOW).is_empty());
}

#[test]
fn subjects_are_peers_or_ranges() {
    let one = peer();
    for subject in [one, Subject::Range("203.0.113.0/24".parse().unwrap())] {
        assert_eq!(subject.to_string().parse(), Ok(subject));
    }
    assert!("nobody".parse::<Subject>().is_err() && "203.0.113.1/24".parse::<Subject>().is_err());
}

#[test]
fn fraud_is_banned_for_ninety_days_whatever_ban_there_is() {
    let mut bans = Bans::default();
    let (who, now) = (PeerId::random(), NOW + 5);
    assert_eq!(bans.misbehaved(who, None, "broken protocols", NOW).len(), 1);
    let made = bans.defrauded(who, None, "fraud", now);
    assert_eq!(made.len(), 1);
    let ban = &made[0].0;
    assert_eq!((ban.by, ban.until_ms - now, ban.times), (By::Fraud, 90 * 24 * 3_600_000, 2));
    assert!(bans.defrauded(who, None, "fraud", now + 1).is_empty(), "it is banned for that already");
    assert!(bans.misbehaved(who, None, "floods", now + 1).is_empty());
    // It is there after a restart, and after as long.
    let kept = bans.in_force(now).cloned().collect();
    let (again, _) = Bans::load(kept, now + 89 * 24 * 3_600_000);
    assert!(again.holds(&Subject::Peer(who), now + 89 * 24 * 3_600_000));
    // The operator's longer ban stays the operator's.
    let by_hand = PeerId::random();
    bans.ban(Subject::Peer(by_hand), MAX_DURATION, "", NOW).unwrap();
    assert!(bans.defrauded(by_hand, None, "fraud", now).is_empty());
}

#[test]
fn five_frauds_of_a_range_make_this_node_wary_of_it_for_a_day() {
    for (addresses, range, other) in [
        (
            ["203.0.113.1", "203.0.113.2", "203.0.113.77", "203.0.113.9", "203.0.113.255"],
            "203.0.113.0/24",
            "203.0.114.0/24",
        ),
        (
            ["2001:db8:1::1", "2001:db8:1:2::1", "2001:db8:1:3::1", "2001:db8:1:4::1", "2001:db8:1:ffff::1"],
            "2001:db8:1::/48",
            "2001:db8:2::/48",
        ),
    ] {
        let (range, other): (Prefix, Prefix) = (range.parse().unwrap(), other.parse().unwrap());
        let mut bans = Bans::default();
        for (n, address) in (0_u64..).zip(addresses) {
            assert_eq!(bans.wary_of(range, NOW + n), None, "{n} are not enough");
            let host = Prefix::around(address.parse().unwrap(), HOST);
            bans.defrauded(PeerId::random(), Some(host), "fraud", NOW + n);
            // Other faults, and other ranges, do not count.
            bans.misbehaved(PeerId::random(), Some(host), "floods", NOW + n);
        }
        let until = NOW + 4 + ms(WARY);
        assert_eq!((bans.wary_of(range, NOW + 5), bans.wary_of(range, until - 1)), (Some(until), Some(until)));
        assert_eq!((bans.wary_of(range, until), bans.wary_of(other, NOW + 5)), (None, None));
    }
}
