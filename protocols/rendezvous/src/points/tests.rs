use super::*;

fn point() -> Point {
    Point { peer: PeerId::random(), addr: "/ip4/203.0.113.7/tcp/8468".parse().unwrap() }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn one() -> (Points, PeerId) {
    let point = point();
    (Points::new([point.clone()], 7), point.peer)
}

fn about(wait: Duration, expected: Duration) -> bool {
    (expected * 3 / 4..=expected * 5 / 4).contains(&wait)
}

#[test]
fn a_visit_registers_and_asks_and_the_next_only_asks() {
    let (mut points, peer) = one();
    assert_eq!(points.due(at(0)).len(), 1);
    points.dialling(&peer);
    assert_eq!((points.due(at(1)).len(), points.next_at()), (0, None));
    points.connected(&peer, at(1));
    assert_eq!(points.begin(&peer, |_| true, at(1)), Some(Ask::Register(Form::Rust)));
    points.registered(&peer, 7_200, at(1));
    assert_eq!(points.begin(&peer, |_| true, at(1)), Some(Ask::Discover(None)));
    points.discovered(&peer, vec![1], 3, at(1));
    let next = points.next_at().unwrap();
    assert!(about(next - at(1), ROUND), "{next:?}");
    assert_eq!(points.begin(&peer, |_| true, next), Some(Ask::Discover(Some(vec![1]))));
    points.discovered(&peer, vec![2], 0, next);
    let renew = at(1 + 7_200 * 5 / 8);
    assert_eq!(points.begin(&peer, |_| true, renew), Some(Ask::Register(Form::Rust)));
}

#[test]
fn who_has_no_address_asks_only_and_registers_once_it_has_one() {
    let (mut points, peer) = one();
    assert_eq!(points.begin(&peer, |_| false, at(0)), Some(Ask::Discover(None)));
    points.discovered(&peer, vec![], 0, at(0));
    points.moved(at(1));
    assert_eq!(points.next_at(), Some(at(1) + SETTLE));
    assert_eq!(points.begin(&peer, |_| true, at(11)), Some(Ask::Register(Form::Rust)));
}

#[test]
fn full_pages_are_followed_to_a_bound() {
    let (mut points, peer) = one();
    for page in 0..MAX_PAGES {
        assert_eq!(points.next_at(), Some(at(0)), "page {page}");
        assert!(points.begin(&peer, |_| false, at(0)).is_some());
        points.discovered(&peer, vec![0; 9], MAX_LISTED, at(0));
    }
    assert!(about(points.next_at().unwrap(), ROUND));
}

#[test]
fn a_silent_point_is_asked_ever_less_often_and_one_that_answers_again_as_before() {
    let (mut points, peer) = one();
    let (mut now, mut visits) = (at(0), 0);
    while now < at(24 * 3600) {
        assert!(points.begin(&peer, |_| true, now).is_some());
        points.failed(&peer, now);
        now = points.next_at().unwrap();
        visits += 1;
    }
    assert!((48..90).contains(&visits), "{visits}");
    points.discovered(&peer, vec![], 0, now);
    assert!(about(points.next_at().unwrap() - now, ROUND));
    points.failed(&peer, now);
    assert!(about(points.next_at().unwrap() - now, RETRY));
}

#[test]
fn whatever_time_a_point_names_is_clamped() {
    for ttl in [0, 1, u64::from(u32::MAX), i64::MAX as u64, u64::MAX - 1, u64::MAX] {
        let (mut points, peer) = one();
        points.registered(&peer, ttl, at(0));
        let again = points.states[0].register_at;
        assert!((MIN_TTL / 2 * 3 / 4..=MAX_TTL / 2 * 5 / 4).contains(&again), "{ttl}: {again:?}");
        points.registered(&peer, ttl, Duration::MAX);
        assert_eq!(points.states[0].register_at, Duration::MAX);
    }
}

#[test]
fn a_point_that_wants_the_other_form_gets_it_once() {
    let (mut points, peer) = one();
    points.not_registered(&peer, Status::InvalidRecord, at(0));
    assert_eq!(points.begin(&peer, |_| true, at(0)), Some(Ask::Register(Form::Standard)));
    points.not_registered(&peer, Status::InvalidRecord, at(0));
    assert_eq!(points.begin(&peer, |_| true, at(0)), Some(Ask::Discover(None)), "it may still tell of others");
    points.discovered(&peer, vec![], 0, at(0));
    assert_eq!(points.begin(&peer, |_| true, at(3600)), Some(Ask::Register(Form::Standard)));
}

#[test]
fn a_cookie_that_is_refused_is_dropped_and_twice_in_a_row_is_a_failure() {
    let (mut points, peer) = one();
    points.discovered(&peer, vec![5], 0, at(0));
    points.not_discovered(&peer, Status::InvalidCookie, at(9));
    assert_eq!(points.next_at(), Some(at(9)));
    assert_eq!(points.begin(&peer, |_| false, at(9)), Some(Ask::Discover(None)));
    points.not_discovered(&peer, Status::InvalidCookie, at(9));
    assert!(points.next_at().unwrap() > at(9));
}

#[test]
fn no_more_points_than_the_limit_and_none_twice() {
    let (a, many) = (point(), (0..20).map(|_| point()));
    let points = Points::new([a.clone(), a.clone()].into_iter().chain(many), 1);
    assert_eq!(points.states.len(), MAX_POINTS);
    assert!(points.contains(&a.peer) && !points.contains(&PeerId::random()));
}
