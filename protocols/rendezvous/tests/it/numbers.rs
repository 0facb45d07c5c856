//! Every number that a message has, at its ends: read, and acted upon.

use std::time::Duration;

use libp2p::PeerId;
use quelea_rendezvous::{Answer, Listed, MAX_LISTED, MAX_TTL, Point, Points, Registry, Request, Status};

use crate::{key, said};

const ENDS: [u64; 9] =
    [0, 1, 0x7f, 0x80, u32::MAX as u64, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX - 1, u64::MAX];

fn inner(framed: &[u8]) -> &[u8] {
    let head = framed.iter().position(|byte| byte & 0x80 == 0).unwrap();
    &framed[head + 1..]
}

#[test]
fn what_a_client_asks_for() {
    let record = said(&key(1), 1);
    for now in [Duration::ZERO, Duration::from_secs(1 << 40), Duration::MAX] {
        for first in ENDS {
            for ttl in ENDS {
                let asked = Request::Register { namespace: "a".into(), record: record.raw().to_vec(), ttl: Some(ttl) };
                assert_eq!(Request::decode(inner(&asked.encode())), Ok(asked));
                let mut registry = Registry::new(first);
                let kept = registry.register("a", record.clone(), Some(ttl), None, now);
                let expected = if ttl == 0 { Err(Status::InvalidTtl) } else { Ok(ttl.min(MAX_TTL.as_secs())) };
                assert_eq!(kept, expected, "{ttl}");
                for limit in ENDS {
                    for cookie in ENDS {
                        let cookie = [&cookie.to_be_bytes()[..], b"a"].concat();
                        let asked = Request::Discover {
                            namespace: Some("a".into()),
                            cookie: Some(cookie.clone()),
                            limit: Some(limit),
                        };
                        assert_eq!(Request::decode(inner(&asked.encode())), Ok(asked));
                        let page = registry.discover(Some("a"), Some(&cookie), Some(limit), now, |_| true);
                        assert!(page.is_ok_and(|page| page.records.len() <= 1) || cookie[..8] != first.to_be_bytes());
                    }
                }
            }
        }
    }
}

#[test]
fn what_a_point_answers() {
    let point = Point { peer: PeerId::random(), addr: "/ip4/203.0.113.7/tcp/1".parse().unwrap() };
    for ttl in ENDS {
        let answer = Answer::Register(Ok(ttl));
        assert_eq!(Answer::decode(inner(&answer.encode())), Ok(answer));
        let listed = Listed { namespace: "a".into(), record: vec![1], ttl };
        let answer = Answer::Discover(Ok((vec![listed; MAX_LISTED], vec![0; 8])));
        assert_eq!(Answer::decode(inner(&answer.encode())), Ok(answer));
        for now in [Duration::ZERO, Duration::MAX] {
            let mut points = Points::new([point.clone()], ttl);
            points.registered(&point.peer, ttl, now);
            points.discovered(&point.peer, ttl.to_be_bytes().to_vec(), usize::try_from(ttl).unwrap(), now);
            for _ in 0..70 {
                points.failed(&point.peer, now);
                points.not_registered(&point.peer, Status::Unavailable, now);
            }
            assert!(points.next_at().is_some_and(|at| at >= now));
        }
    }
    // One more than may be listed is refused, whatever the rest says.
    let listed = Listed { namespace: "a".into(), record: vec![1], ttl: u64::MAX };
    let long = Answer::Discover(Ok((vec![listed; MAX_LISTED + 1], vec![0; 8])));
    assert!(Answer::decode(inner(&long.encode())).is_err());
}

#[test]
fn a_status_that_nobody_knows_is_a_no() {
    for status in [1, 99, 101, 404, u64::from(u32::MAX), u64::MAX] {
        let mut part = vec![8];
        let mut number = status;
        while number > 0x7f {
            part.push(number as u8 | 0x80);
            number >>= 7;
        }
        part.push(number as u8);
        let message = [vec![8, 1, 0x1a, u8::try_from(part.len()).unwrap()], part].concat();
        assert!(matches!(Answer::decode(&message), Ok(Answer::Register(Err(_)))), "{status}");
    }
}
