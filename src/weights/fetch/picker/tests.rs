//! Which chunk is asked of whom.

use super::*;
use crate::inference::models::{DEMO, ModelFile};

fn outline() -> std::sync::Arc<Outline> {
    ModelFile::open(DEMO).unwrap().outline
}

fn all(outline: &Outline) -> BTreeSet<u32> {
    (0..outline.chunks()).collect()
}

fn having(outline: &Outline, chunks: std::ops::Range<u32>) -> Bitmap {
    let mut have = Bitmap::new(outline.chunks());
    chunks.for_each(|chunk| have.set(chunk, true));
    have
}

#[test]
fn everything_is_asked_for_once_and_what_fails_is_asked_elsewhere() {
    let outline = outline();
    let mut now = Instant::now();
    let mut picker = Picker::new(all(&outline));
    let (good, bad) = (PeerId::random(), PeerId::random());
    picker.learn(bad, Bitmap::full(outline.chunks()), now);
    let (_, run) = picker.next(&outline, now).unwrap();
    assert_eq!(picker.ended(bad, run, Outcome::Corrupt, now), 0);
    picker.learn(good, Bitmap::full(outline.chunks()), now);
    picker.learn(bad, Bitmap::full(outline.chunks()), now);
    let mut stored = BTreeSet::new();
    while let Some((peer, run)) = picker.next(&outline, now) {
        let bytes: u64 = run.chunks().map(|chunk| outline.chunk_len(chunk)).sum();
        assert!(bytes <= u64::from(MAX_BYTES) && run.count >= 1);
        assert_eq!(peer, good, "the other is not asked again");
        run.chunks().for_each(|chunk| assert!(stored.insert(chunk)));
        picker.ended(good, run, Outcome::Stored, now);
        now += PACE;
    }
    assert_eq!(stored, all(&outline));
    assert!(picker.is_done() && picker.sources() == 1);
}

#[test]
fn what_few_have_comes_first_and_nobody_is_asked_too_much_at_once() {
    let outline = outline();
    let now = Instant::now();
    let mut picker = Picker::new(all(&outline));
    let (common, rare) = (PeerId::random(), PeerId::random());
    let last = outline.chunks() - 1;
    picker.learn(common, having(&outline, 0..last), now);
    picker.learn(rare, Bitmap::full(outline.chunks()), now);
    assert_eq!(picker.next(&outline, now), Some((rare, Run { first: last, count: 1 })));
    let mut asked = 1;
    while picker.next(&outline, now).is_some() {
        asked += 1;
    }
    assert!(asked <= 2 * usize::from(PER_PEER));
}

#[test]
fn who_is_busy_or_silent_is_left_alone_for_a_while() {
    let outline = outline();
    let now = Instant::now();
    let mut picker = Picker::new(all(&outline));
    let peer = PeerId::random();
    picker.learn(peer, Bitmap::full(outline.chunks()), now);
    let (_, run) = picker.next(&outline, now).unwrap();
    picker.ended(peer, run, Outcome::Busy(Duration::from_secs(1)), now);
    assert_eq!(picker.next(&outline, now), None);
    let mut later = now + Duration::from_secs(1);
    for _ in 0..FAULTS {
        let (_, run) = picker.next(&outline, later).unwrap();
        picker.ended(peer, run, Outcome::Failed, later);
        assert_eq!(picker.next(&outline, later), None);
        later += Duration::from_secs(60);
    }
    assert!(!picker.wants(&peer) && !picker.has_hope() && !picker.is_done());
}

#[test]
fn what_a_peer_no_longer_has_is_not_asked_of_it_again() {
    let outline = outline();
    let now = Instant::now();
    let mut picker = Picker::new([3].into());
    let peer = PeerId::random();
    picker.learn(peer, Bitmap::full(outline.chunks()), now);
    let (_, run) = picker.next(&outline, now).unwrap();
    picker.ended(peer, run, Outcome::Missing, now);
    assert!(picker.next(&outline, now).is_none() && !picker.has_hope() && picker.wants(&peer));
}

#[test]
fn who_is_silent_is_not_waited_for_alone() {
    let outline = outline();
    let now = Instant::now();
    let mut picker = Picker::new([3].into());
    let (silent, other) = (PeerId::random(), PeerId::random());
    picker.learn(silent, Bitmap::full(outline.chunks()), now);
    let (_, run) = picker.next(&outline, now).unwrap();
    picker.learn(other, Bitmap::full(outline.chunks()), now);
    assert_eq!(picker.next(&outline, now), None, "not while it may still come");
    let later = now + SLOW;
    assert_eq!(picker.next(&outline, later), Some((other, run)));
    assert_eq!(picker.next(&outline, later + SLOW), None, "two are enough");
    assert_eq!(picker.ended(other, run, Outcome::Stored, later), 1);
    assert!(picker.is_done());
    assert_eq!(picker.ended(silent, run, Outcome::Stored, later), 0, "it counts once");
}

#[test]
fn nobody_is_asked_faster_than_it_answers() {
    let outline = outline();
    let start = Instant::now();
    let mut picker = Picker::new(BTreeSet::new());
    let peer = PeerId::random();
    picker.learn(peer, Bitmap::full(outline.chunks()), start);
    let mut asked = 0;
    for millis in 0..1000 {
        let now = start + Duration::from_millis(millis);
        picker.add([3].into());
        while let Some((_, run)) = picker.next(&outline, now) {
            picker.ended(peer, run, Outcome::Stored, now);
            asked += 1;
        }
    }
    assert!((40..=quelea_weights::PEER_RATE).contains(&asked), "{asked} in a second");
}

#[test]
fn peers_that_have_nothing_for_us_make_room() {
    let outline = outline();
    let now = Instant::now();
    let mut picker = Picker::new([3].into());
    for _ in 0..MAX_PEERS {
        picker.learn(PeerId::random(), Bitmap::new(outline.chunks()), now);
    }
    let useful = PeerId::random();
    assert!(picker.wants(&useful));
    picker.learn(useful, Bitmap::full(outline.chunks()), now);
    assert_eq!(picker.sources(), MAX_PEERS);
    assert_eq!(picker.next(&outline, now).map(|(peer, _)| peer), Some(useful));
}

/// Whatever peers have and however questions end, every chunk that somebody honest has comes once, and nobody is asked for
/// what it does not have.
fn a_pull_ends(seed: u64) {
    let mut seed = seed;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let outline = outline();
    let mut now = Instant::now();
    let mut picker = Picker::new(all(&outline));
    let honest = PeerId::random();
    let mut peers: HashMap<PeerId, Bitmap> = HashMap::from([(honest, Bitmap::full(outline.chunks()))]);
    for _ in 0..random(6) {
        let mut have = Bitmap::new(outline.chunks());
        (0..outline.chunks()).filter(|_| random(2) == 0).for_each(|chunk| have.set(chunk, true));
        peers.insert(PeerId::random(), have);
    }
    let mut asked: Vec<(PeerId, Run)> = Vec::new();
    let (mut stored, mut turns) = (0, 0);
    while !picker.is_done() {
        turns += 1;
        assert!(turns < 100_000, "it does not end");
        for (peer, have) in &peers {
            picker.learn(*peer, have.clone(), now);
        }
        while let Some((peer, run)) = picker.next(&outline, now) {
            assert!(run.chunks().all(|chunk| peers[&peer].has(chunk)));
            asked.push((peer, run));
            let of_it = asked.iter().filter(|(of, _)| *of == peer).count();
            assert!(of_it <= usize::from(PER_PEER));
        }
        if !asked.is_empty() {
            let at = usize::try_from(random(asked.len() as u64)).unwrap();
            let (peer, run) = asked.swap_remove(at);
            let outcome = match random(6) {
                _ if peer == honest => Outcome::Stored,
                0 => Outcome::Corrupt,
                1 => Outcome::Missing,
                2 => Outcome::Busy(Duration::from_secs(1)),
                3 => Outcome::Failed,
                _ => Outcome::Stored,
            };
            stored += picker.ended(peer, run, outcome, now);
        }
        now += Duration::from_millis(random(3000));
    }
    assert_eq!(stored, outline.chunks());
}

proptest::proptest! {
    #[test]
    fn a_pull_ends_whatever_happens(seed: u64) {
        a_pull_ends(seed);
    }
}
