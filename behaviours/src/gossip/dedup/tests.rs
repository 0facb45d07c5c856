//! What the dedup stage promises, measured.

use proptest::prelude::*;

use super::*;

const KEY: [u8; 16] = *b"a key of one run";

/// The n-th of many distinct ids, as spread as a hash.
fn id(n: u64) -> Id {
    let mut id = [0; 20];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut id);
    id
}

/// The n-th id of an adversary who counts instead: ids need not look like hashes.
fn plain(n: u64) -> Id {
    let mut id = [0; 20];
    id[..8].copy_from_slice(&n.to_le_bytes());
    id
}

/// False positives among `probes` ids that were never put in.
fn false_positives(dedup: &Dedup, probes: u64) -> u64 {
    (0..probes).filter(|n| dedup.contains(&plain(u64::MAX - n))).count() as u64
}

#[test]
fn small_is_exact_and_takes_little() {
    let mut dedup = Dedup::new(KEY);
    for n in 0..EXACT_IDS as u64 {
        assert!(!dedup.contains(&id(n)));
        dedup.insert(id(n));
    }
    let figures = dedup.figures();
    assert_eq!((figures.exact_ids, figures.bloom_ids, figures.false_positives), (EXACT_IDS, 0, 0.0));
    assert_eq!(figures.bytes, 256 << 10);
    dedup.insert(id(u64::MAX));
    let figures = dedup.figures();
    assert_eq!((figures.exact_ids, figures.bloom_ids), (EXACT_IDS, 1));
    assert!(dedup.contains(&id(0)), "what leaves the exact part is in the filter");
}

/// Sends ids until both filters have been full, then measures. `ids` is 10⁶ in the suite and 10⁷ in the ignored test.
fn adversary(ids: u64, generation: usize, probes: u64, tolerated: u64) {
    let mut dedup = Dedup::with_sizes(KEY, EXACT_IDS, generation);
    let (mut worst, mut most) = (0.0_f64, 0);
    for n in 0..ids {
        dedup.insert(plain(n));
        if n % 10_007 == 0 {
            let figures = dedup.figures();
            (worst, most) = (worst.max(figures.false_positives), most.max(figures.bytes));
        }
    }
    let figures = dedup.figures();
    println!("{ids} ids: {figures:?}, at worst {worst:e}");
    assert!(worst <= 2e-6, "{worst:e}");
    let ceiling = EXACT_IDS * 64 + 2 * (generation * 28_756 / 8000 + 8);
    assert!(most <= ceiling, "{most} bytes, but {ceiling} at most");
    // Everything of the last generation is still known.
    assert!((ids - generation as u64..ids).step_by(997).all(|n| dedup.contains(&plain(n))));
    let found = false_positives(&dedup, probes);
    println!("{found} false positives among {probes}");
    assert!(found <= tolerated, "{found} of {probes}");
}

#[test]
fn an_adversary_with_a_million_ids_cannot_raise_the_error() {
    // Filters of a tenth of the size are filled ten times over. At 2×10⁻⁶, 4 of 2×10⁶ probes are expected at most; more than
    // 14 would come once in 30,000 runs of a filter that keeps its word, and the key is fixed.
    adversary(1_000_000, 100_000, 2_000_000, 14);
}

#[test]
#[ignore = "a minute; run with --release"]
fn an_adversary_with_ten_million_ids_cannot_raise_the_error() {
    // 40 expected at most; 65 is four standard deviations more.
    adversary(10_000_000, GENERATION_IDS, 20_000_000, 65);
}

#[test]
fn a_full_filter_is_half_full_and_says_how_often_it_errs() {
    let mut dedup = Dedup::with_sizes(KEY, 1, 50_000);
    for n in 0..=50_000 {
        dedup.insert(id(n));
    }
    let figures = dedup.figures();
    assert_eq!(figures.bloom_ids, 50_000);
    assert!((0.49..0.51).contains(&figures.fill), "{figures:?}");
    assert!((0.5e-6..1.2e-6).contains(&figures.false_positives), "{figures:?}");
}

#[test]
fn time_forgets() {
    let mut dedup = Dedup::with_sizes(KEY, 4, 100);
    for n in 0..10 {
        dedup.insert(id(n));
    }
    dedup.rotate();
    assert!((0..10).all(|n| dedup.contains(&id(n))), "remembered for one period at least");
    dedup.rotate();
    assert_eq!(dedup.figures(), DedupFigures::default());
    dedup.insert(id(10));
    dedup.rotate();
    assert!(dedup.contains(&id(10)));
}

#[derive(Debug, Clone)]
enum Step {
    Put(u16),
    Rotate,
}

proptest! {
    /// What was put in is known for as long as was promised, whatever happens meanwhile.
    #[test]
    fn prop_nothing_is_forgotten_early(
        steps in proptest::collection::vec(prop_oneof![30 => any::<u16>().prop_map(Step::Put), 1 => Just(Step::Rotate)], 1..600),
        key in any::<[u8; 16]>(),
    ) {
        let mut dedup = Dedup::with_sizes(key, 8, 64);
        // Ids in order of their first appearance, with the number of rotations before.
        let (mut order, mut rotations) = (Vec::<(u16, u32)>::new(), 0);
        for step in steps {
            match step {
                Step::Rotate => {
                    dedup.rotate();
                    rotations += 1;
                }
                Step::Put(n) => {
                    if !dedup.contains(&id(n.into())) {
                        dedup.insert(id(n.into()));
                        order.push((n, rotations));
                    }
                }
            }
            for (n, at) in order.iter().rev().take(64) {
                prop_assert!(*at + 1 < rotations || dedup.contains(&id((*n).into())), "{n} is forgotten");
            }
            let figures = dedup.figures();
            prop_assert!(figures.exact_ids <= 8 && figures.bloom_ids <= 128 && (0.0..=1.0).contains(&figures.fill));
        }
    }

    #[test]
    fn prop_contains_is_insert_or_rare(known in proptest::collection::hash_set(any::<u32>(), 0..300), key in any::<[u8; 16]>()) {
        let mut dedup = Dedup::with_sizes(key, 16, 1000);
        known.iter().for_each(|n| dedup.insert(id((*n).into())));
        prop_assert!(known.iter().all(|n| dedup.contains(&id((*n).into()))));
        let strangers = (0..100).filter(|n| dedup.contains(&id((1 << 40) + n))).count();
        prop_assert_eq!(strangers, 0);
    }
}
