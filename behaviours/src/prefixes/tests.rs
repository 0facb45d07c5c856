use libp2p::{core::ConnectedPoint, swarm::ListenError};

use super::*;

fn behaviour() -> Behaviour {
    Behaviour::new(PrefixLimits::default())
}

fn id(n: usize) -> ConnectionId {
    ConnectionId::new_unchecked(n)
}

fn begin(behaviour: &mut Behaviour, n: usize, ip: &str, now: Instant) -> Result<(), Denied> {
    behaviour.admit(id(n), ip.parse().unwrap(), now)
}

fn establish(behaviour: &mut Behaviour, n: usize, ip: &str) {
    let addr = Multiaddr::from(ip.parse::<IpAddr>().unwrap());
    let endpoint = ConnectedPoint::Listener { local_addr: Multiaddr::empty(), send_back_addr: addr };
    behaviour.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
        peer_id: PeerId::random(),
        connection_id: id(n),
        endpoint: &endpoint,
        failed_addresses: &[],
        other_established: 0,
    }));
}

fn close(behaviour: &mut Behaviour, n: usize) {
    let endpoint = ConnectedPoint::Listener { local_addr: Multiaddr::empty(), send_back_addr: Multiaddr::empty() };
    behaviour.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
        peer_id: PeerId::random(),
        connection_id: id(n),
        endpoint: &endpoint,
        cause: None,
        remaining_established: 0,
    }));
}

#[test]
fn a_host_has_eight_connections_and_gets_a_place_back_when_one_ends() {
    let (mut behaviour, now) = (behaviour(), Instant::now());
    for n in 0..4 {
        assert_eq!(begin(&mut behaviour, n, "203.0.113.7", now), Ok(()));
        establish(&mut behaviour, n, "203.0.113.7");
    }
    for n in 4..8 {
        assert_eq!(begin(&mut behaviour, n, "203.0.113.7", now), Ok(()));
    }
    assert!(matches!(begin(&mut behaviour, 8, "203.0.113.7", now), Err(Denied::Full(_))));
    assert_eq!(begin(&mut behaviour, 9, "203.0.113.8", now), Ok(()), "a neighbour is another host");
    close(&mut behaviour, 0);
    assert_eq!(begin(&mut behaviour, 10, "203.0.113.7", now), Ok(()));
    let cut = std::io::Error::other("cut");
    let error = ListenError::Transport(libp2p::TransportError::Other(cut));
    behaviour.on_swarm_event(FromSwarm::ListenFailure(ListenFailure {
        local_addr: &Multiaddr::empty(),
        send_back_addr: &Multiaddr::empty(),
        error: &error,
        connection_id: id(10),
        peer_id: None,
    }));
    assert_eq!(begin(&mut behaviour, 11, "203.0.113.7", now), Ok(()));
    assert!(begin(&mut behaviour, 12, "203.0.113.7", now).is_err());
    assert_eq!(begin(&mut behaviour, 13, "203.0.113.7", now + PENDING_FOR), Ok(()), "handshakes end some time");
}

#[test]
fn a_site_has_sixty_four() {
    let (mut behaviour, now) = (behaviour(), Instant::now());
    let taken =
        (0..200).filter(|n| begin(&mut behaviour, *n, &format!("2001:db8:1:{:x}::1", n * 256), now).is_ok()).count();
    assert_eq!(taken, PER_SITE);
    assert_eq!(begin(&mut behaviour, 201, "2001:db8:2::1", now), Ok(()));
}

#[test]
fn a_host_connects_twenty_times_a_second() {
    let (mut behaviour, now) = (behaviour(), Instant::now());
    let mut attempt = |n: usize, now| {
        let let_in = begin(&mut behaviour, n, "203.0.113.7", now);
        behaviour.ended(id(n));
        let_in.is_ok()
    };
    assert_eq!((0..500).filter(|n| attempt(*n, now)).count(), 20);
    assert!(attempt(501, now + Duration::from_millis(50)));
    assert_eq!(behaviour.denied().rate, 480);
}

#[test]
fn a_range_of_cheats_is_let_in_half_as_fast_for_a_while() {
    let (mut behaviour, now) = (behaviour(), Instant::now());
    let until = now + Duration::from_secs(3600);
    behaviour.be_wary("203.0.113.0/24".parse().unwrap(), until);
    let mut let_in = |ip: &str, now| {
        let attempt = |n: &usize| {
            let let_in = begin(&mut behaviour, *n, ip, now);
            behaviour.ended(id(*n));
            let_in.is_ok()
        };
        (0..500).filter(attempt).count()
    };
    assert_eq!(let_in("203.0.113.7", now), 10);
    assert_eq!(let_in("203.0.113.8", now), 10, "another host of it");
    assert_eq!(let_in("203.0.112.7", now), 20, "another range");
    assert_eq!(let_in("203.0.113.7", until), 20, "it is over");
    for n in 0..2 * MAX_WARY {
        let ip = std::net::Ipv4Addr::from_bits(u32::try_from(n << 8).unwrap());
        behaviour.be_wary(Prefix::new(ip.into(), 24), until + Duration::from_secs(n as u64));
    }
    assert_eq!(behaviour.wary.len(), MAX_WARY);
}

#[test]
fn homes_are_exempt_unless_the_configuration_says_otherwise() {
    let now = Instant::now();
    let mut exempt = behaviour();
    let mut strict = Behaviour::new(PrefixLimits { exempt_local: false, ..PrefixLimits::default() });
    for ip in ["127.0.0.1", "10.1.1.1", "192.168.1.1", "fe80::1", "fd00::1"] {
        assert_eq!((0..100).filter(|n| begin(&mut exempt, *n, ip, now).is_ok()).count(), 100);
        let ip_of_it = ip.parse().unwrap();
        assert!(!exempt.limits_hold_for(ip_of_it) && strict.limits_hold_for(ip_of_it));
        assert_eq!((0..100).filter(|n| begin(&mut strict, *n, ip, now).is_ok()).count(), PER_HOST);
    }
    assert_eq!(exempt.sizes(), Sizes::default(), "nothing to count");
}

#[test]
fn a_ban_closes_what_is_open_and_ends() {
    let (mut behaviour, now) = (behaviour(), Instant::now());
    establish(&mut behaviour, 1, "203.0.113.7");
    establish(&mut behaviour, 2, "198.51.100.1");
    let range: Prefix = "203.0.113.0/24".parse().unwrap();
    assert!(behaviour.ban(range));
    assert_eq!(behaviour.closing.iter().map(|(_, id)| *id).collect::<Vec<_>>(), [id(1)]);
    assert_eq!(begin(&mut behaviour, 3, "203.0.113.200", now), Err(Denied::Banned(range)));
    assert_eq!(begin(&mut behaviour, 4, "198.51.100.1", now), Ok(()));
    assert!(behaviour.unban(&range) && !behaviour.unban(&range));
    assert_eq!(begin(&mut behaviour, 5, "203.0.113.200", now), Ok(()));
    let banned = (0..2 * MAX_BANNED).filter(|n| {
        let ip = std::net::Ipv4Addr::from_bits(u32::try_from(*n).unwrap());
        behaviour.ban(Prefix::new(ip.into(), 32))
    });
    assert_eq!(banned.count(), MAX_BANNED);
}

/// What denied connections with fresh identities leave behind: nothing (row 2 of the threats).
#[test]
fn ten_thousand_denied_connections_leave_every_map_as_it_was() {
    let (mut behaviour, now) = (behaviour(), Instant::now());
    for n in 0..8 {
        assert_eq!(begin(&mut behaviour, n, "203.0.113.7", now), Ok(()));
        establish(&mut behaviour, n, "203.0.113.7");
    }
    let before = behaviour.sizes();
    for n in 0..10_000 {
        assert!(begin(&mut behaviour, 100 + n, "203.0.113.7", now).is_err());
    }
    assert_eq!(behaviour.sizes(), before);
    assert_eq!(behaviour.denied().full, 10_000);
}
