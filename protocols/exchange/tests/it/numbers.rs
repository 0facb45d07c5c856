//! Every number of every message at its ends: read, and acted upon by the machine behind it.

use std::time::Duration;

use futures::{executor::block_on, io::Cursor};
use quelea_exchange::{
    Answer, DOMAIN, Entry, Exchanger, Filter, MAX_AGE_MS, MAX_BITS, MAX_RECORDS, Now, PeerRecord, RawEntry, Request,
    SignedRecord,
};
use quelea_wire::envelope::Signed;

use crate::{key, net, said};

const ENDS: [u64; 9] =
    [0, 1, 255, u32::MAX as u64, MAX_AGE_MS, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX - 1, u64::MAX];

/// The bytes with each end, in each width, at each place: the numbers are at fixed ones.
fn each(bytes: &[u8], mut f: impl FnMut(&[u8])) {
    let mut changed = bytes.to_vec();
    for width in [1, 2, 4, 8] {
        let max = u64::MAX >> (64 - 8 * width);
        for at in 0..(bytes.len() + 1).saturating_sub(width) {
            for end in [0, 1, max >> 1, (max >> 1) + 1, max - 1, max] {
                changed[at..at + width].copy_from_slice(&end.to_le_bytes()[..width]);
                f(&changed);
            }
            changed[at..at + width].copy_from_slice(&bytes[at..at + width]);
        }
    }
}

fn machine(now: Now) -> Exchanger {
    let mut machine = Exchanger::new(key(9).public().to_peer_id(), 3);
    machine.connected(key(2).public().to_peer_id());
    let _ = machine.poll(now);
    machine
}

#[test]
fn what_is_asked() {
    let now = Now { at: Duration::from_secs(1), unix_ms: 2_000 };
    let mut machine = machine(now);
    machine.met(said(&key(1), 1, 1_000, 1));
    let mut filter = Filter::new(3, 7);
    filter.insert(&key(3).public().to_peer_id());
    let (asker, mut read) = (key(2).public().to_peer_id(), 0);
    each(&Request { want: 3, own: None, filter }.encode(), |changed| {
        let mut request = None;
        let taken = allocation_counter::measure(|| request = block_on(Request::read(&mut Cursor::new(changed))).ok());
        assert!(taken.bytes_max <= 4 * changed.len() as u64 + 1024, "{changed:?}");
        let Some(request) = request else { return };
        read += 1;
        assert!((1..=MAX_RECORDS).contains(&request.want) && request.filter.bits() <= MAX_BITS);
        let told = machine.answer(&asker, &request.filter, request.want, None, now, |_| true);
        assert!(told.len() <= usize::from(request.want));
    });
    assert!(read > 50, "{read}");
}

#[test]
fn what_is_answered() {
    let raw = said(&key(1), 1, 1_000, 1).raw().to_vec();
    let answer = Answer::Records(vec![RawEntry { ttl: 1, raw }]);
    each(&answer.encode(), |changed| {
        let mut read = None;
        let taken = allocation_counter::measure(|| read = block_on(Answer::read(&mut Cursor::new(changed))).ok());
        assert!(taken.bytes_max <= 4 * changed.len() as u64 + 4096, "{changed:?}");
        if let Some(Answer::Records(entries)) = read {
            for entry in entries {
                let _ = SignedRecord::verify(&entry.raw, &net(), 2_000);
            }
        }
    });
}

#[test]
fn what_a_record_says() {
    let (signer, teller) = (key(1), key(2).public().to_peer_id());
    let mut believed = 0;
    for seq in ENDS {
        for signed_ms in ENDS {
            let record = PeerRecord {
                peer: signer.public().to_peer_id(),
                seq,
                signed_ms,
                addrs: vec!["/ip4/192.0.2.1/tcp/65535".parse().unwrap()],
                agent: "quelea".into(),
            };
            // As a peer would that signs whatever it likes.
            let raw = Signed::seal(&signer, &net(), DOMAIN, 1, &record.encode()).unwrap();
            for unix_ms in ENDS {
                let Ok(signed) = SignedRecord::verify(raw.raw(), &net(), unix_ms) else { continue };
                believed += 1;
                for at in [Duration::ZERO, Duration::MAX] {
                    let now = Now { at, unix_ms };
                    for ttl in [0, 1, 3, 254, 255] {
                        let mut machine = machine(now);
                        machine.answered(teller, vec![Entry { ttl, record: signed.clone() }]);
                        machine.met(signed.clone());
                        machine.set_trust(&signed.peer(), u32::MAX);
                        for _ in 0..70 {
                            machine.silent(teller, now);
                        }
                        let _ = (machine.poll(now), machine.next_at(now));
                        let told = machine.answer(&teller, &Filter::new(1, u64::MAX), 64, None, now, |_| true);
                        assert!(told.len() <= 1);
                    }
                }
            }
        }
    }
    assert!(believed > 20, "{believed}");
}
