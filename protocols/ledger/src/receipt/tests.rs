use libp2p::identity::Keypair;
use proptest::prelude::*;

use super::*;

fn network() -> NetworkId {
    NetworkId::from_name("main")
}

fn key(n: u8) -> Keypair {
    Keypair::ed25519_from_bytes([n; 32]).unwrap()
}

fn about() -> About {
    About {
        session: [1; 16],
        model: ModelId([3; 32]),
        profile: Profile::Exact,
        layers: 8,
        span: SpanRange::new(0, 8).unwrap(),
        prompt_rows: 12,
        answer_rows: 21,
        at: 1_800_000_000_000,
    }
}

fn work(layers: u16) -> Work {
    Work::of(layers, WorkedRows { prefill: 12, decode: 20 }, Price { decode: 100, prefill: 10 }).unwrap()
}

/// The part of stage `n` (10 and 11, of half the layers each).
fn part(n: u8) -> Part {
    let (start, end) = if n == 10 { (0, 4) } else { (4, 8) };
    Part {
        session: [1; 16],
        coordinator: key(9).public().to_peer_id(),
        model: ModelId([3; 32]),
        profile: Profile::Exact,
        span: SpanRange::new(start, end).unwrap(),
        epoch: 1,
        work: work(4),
        hold: HoldId([n; 16]),
        first: 0,
        rows: 32,
        in_root: [n; 32],
        out_root: [n + 1; 32],
        at: 1_800_000_000_000,
    }
}

fn entry(n: u8, part: &Part) -> Entry {
    let commitment = Signed::seal(&key(n), &network(), "quelea/commitment/1", 1, &part.commitment()).unwrap();
    Entry {
        part: Raw(part.seal(&key(n), &network()).unwrap()),
        commitment: Raw(commitment.raw().to_vec()),
        note: Hash([n; 32]),
    }
}

fn lost() -> Lost {
    let span = SpanRange::new(4, 8).unwrap();
    Lost { stage: key(12).public().to_peer_id(), span, work: work(4), hold: HoldId([12; 16]), note: Hash([12; 32]) }
}

fn file(entries: Vec<Entry>, lost: Vec<Lost>) -> Vec<u8> {
    Receipt::seal(&key(9), &network(), about(), entries, lost).unwrap()
}

fn sample() -> Vec<u8> {
    file(vec![entry(11, &part(11)), entry(10, &part(10))], vec![lost()])
}

/// What is wrong with a receipt of these two parts.
fn problems(first: &Part, second: &Part) -> Vec<String> {
    verify(&file(vec![entry(10, first), entry(11, second)], Vec::new())).unwrap().problems
}

#[test]
fn the_bytes_are_frozen() {
    let file = sample();
    assert_eq!(hex::encode(&file), include_str!("vector.txt").trim());
    assert!(file.len() <= MAX_FILE);
    let report = verify(&file).unwrap();
    assert!(report.holds() && report.remarks.is_empty(), "{report:?}");
    assert_eq!((report.links, report.parts.len(), report.total), (1, 3, 3 * work(4).amount));
    assert_eq!(report.parts[0].stage, key(10).public().to_peer_id());
    assert_eq!(report.parts.iter().map(|part| part.signed).collect::<Vec<_>>(), [true, true, false]);
    let (signer, read) = Part::open(&part(10).seal(&key(10), &network()).unwrap(), &network()).unwrap();
    assert_eq!((signer, read), (key(10).public().to_peer_id(), part(10)));
    assert_eq!(part(10).commitment().len(), 130);
    let span = SpanRange::new(2, 4).unwrap();
    assert_eq!(
        hex::encode(job_hash(&[1; 16], &ModelId([3; 32]), &span).0),
        "99471d775050494deda06680cfdf5c1ff01f4c6d0bf24edf308bc88b83522a59"
    );
}

#[test]
fn the_longest_receipt_fits() {
    let entries = vec![entry(10, &part(10)); MAX_PARTS];
    assert!(entries[0].part.0.len() <= MAX_PART);
    let file = file(entries.clone(), vec![lost(); MAX_PARTS]);
    assert!(file.len() <= MAX_FILE);
    assert_eq!(Receipt::open(&file).unwrap().entries.len(), MAX_PARTS);
    let more = [entries, vec![entry(10, &part(10))]].concat();
    assert_eq!(Receipt::seal(&key(9), &network(), about(), more, Vec::new()), Err(ReceiptError::TooMany));
}

#[test]
fn what_does_not_fit_is_named() {
    let one = |found: Vec<String>, said: &str| {
        assert!(found.len() == 1 && found[0].contains(said), "{said}: {found:?}");
    };
    let (a, b) = (part(10), part(11));
    assert!(problems(&a, &b).is_empty());
    one(problems(&a, &Part { session: [2; 16], ..b.clone() }), "another session");
    one(problems(&a, &Part { coordinator: key(8).public().to_peer_id(), ..b.clone() }), "another coordinator");
    one(problems(&a, &Part { model: ModelId([4; 32]), ..b.clone() }), "another model");
    let dear = Work { amount: work(4).amount + 1, ..work(4) };
    one(problems(&a, &Part { work: dear, ..b.clone() }), "does not follow from rows and prices");
    one(problems(&a, &Part { hold: HoldId::NONE, ..b.clone() }), "without a hold");
    one(problems(&a, &Part { hold: a.hold, ..b.clone() }), "another stage's");
    one(problems(&a, &Part { in_root: [0; 32], ..b.clone() }), "one of them lies");
    let span = |start, end| SpanRange::new(start, end).unwrap();
    let of = |span: SpanRange| Part { span, work: work(span.count()), ..b.clone() };
    one(problems(&a, &of(span(5, 8))), "nobody has signed for layers 4..5");
    one(problems(&a, &of(span(3, 8))), "overlap");
    one(problems(&a, &of(span(4, 7))), "nobody has signed for layers 7..8");
    one(problems(&a, &of(span(4, 9))), "only 0..8");
    // Of other rows they cannot be compared, which is no fault.
    let other_rows = Part { rows: 31, in_root: [0; 32], ..b.clone() };
    let report = verify(&file(vec![entry(10, &a), entry(11, &other_rows)], Vec::new())).unwrap();
    assert!(report.holds() && report.links == 0 && report.remarks.len() == 1);

    let mut swapped = entry(11, &b);
    swapped.commitment = entry(10, &a).commitment;
    let report = verify(&file(vec![entry(10, &a), swapped], Vec::new())).unwrap();
    one(report.problems, "somebody else's");
    let mut other = entry(11, &b);
    other.commitment = entry(11, &Part { out_root: [0; 32], ..b.clone() }).commitment;
    let report = verify(&file(vec![entry(10, &a), other], Vec::new())).unwrap();
    one(report.problems, "other roots");
    let outside = Lost { span: span(7, 9), work: work(2), ..lost() };
    one(verify(&file(vec![entry(10, &a), entry(11, &b)], vec![outside])).unwrap().problems, "not of the session");
}

#[test]
fn a_stage_that_never_signed_takes_nothing_from_the_others() {
    let entries = || vec![entry(10, &part(10))];
    let report = verify(&file(entries(), vec![lost()])).unwrap();
    assert!(report.holds() && report.links == 0, "{report:?}");
    assert_eq!(report.remarks, ["layers 4..8: no stage has signed; this is the coordinator's word"]);
    assert_eq!(report.parts.iter().map(|part| part.signed).collect::<Vec<_>>(), [true, false]);
    // Two of them, one after the other; and one that had only a part of the layers.
    let half = |start, end| Lost { span: SpanRange::new(start, end).unwrap(), work: work(end - start), ..lost() };
    let other = Lost { hold: HoldId([13; 16]), ..half(6, 8) };
    assert!(verify(&file(entries(), vec![half(4, 6), other])).unwrap().holds());
    let report = verify(&file(entries(), vec![half(4, 6)])).unwrap();
    assert_eq!(report.problems, ["nobody has signed for layers 4..8"]);
    // The coordinator's word alone is no receipt.
    let all = [half(0, 4), Lost { hold: HoldId([13; 16]), ..half(4, 8) }];
    assert_eq!(verify(&file(Vec::new(), all.to_vec())).unwrap().problems, ["no stage has signed for anything"]);
}

#[test]
fn a_total_that_is_no_sum_is_refused() {
    let entries = List(vec![entry(10, &part(10)), entry(11, &part(11))]);
    let About { session, model, profile, layers, span, prompt_rows, answer_rows, at } = about();
    let lost = List(Vec::new());
    let whole = Whole { session, model, profile, layers, span, prompt_rows, answer_rows, total: 1, at, entries, lost };
    let signed = Signed::seal(&key(9), &network(), DOMAIN, WHOLE, &encode(&whole)).unwrap();
    let report = verify(&[MAGIC, &network().0, signed.raw()].concat()).unwrap();
    assert_eq!(report.problems, ["the total is not the sum of the amounts"]);
}

#[test]
fn any_flipped_bit_is_refused() {
    let file = sample();
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut flipped = file.clone();
            flipped[at] ^= 1 << bit;
            assert!(verify(&flipped).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn a_length_takes_no_memory_that_was_not_sent() {
    let mut body = encode(&Whole {
        session: [0; 16],
        model: ModelId([0; 32]),
        profile: Profile::Exact,
        layers: 8,
        span: SpanRange::new(0, 8).unwrap(),
        prompt_rows: 0,
        answer_rows: 0,
        total: 0,
        at: 0,
        entries: List(Vec::new()),
        lost: List(Vec::new()),
    });
    let count = body.len() - 2;
    for entries in [1, 64, 65, 255] {
        body[count] = entries;
        assert!(decode::<Whole>(&body).is_err(), "{entries} entries in no bytes");
    }
}

proptest! {
    #[test]
    fn a_body_has_one_form(body in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(part) = decode::<Part>(&body) {
            prop_assert_eq!(encode(&part), body.clone());
        }
        if let Ok(whole) = decode::<Whole>(&body) {
            prop_assert_eq!(encode(&whole), body);
        }
    }

    #[test]
    fn honest_chains_verify(
        cuts in proptest::collection::btree_set(1..8_u16, 0..7),
        decode in 0..10_000_u64, prefill in 0..10_000_u64, price in (0..10_000_u64, 0..10_000_u64),
    ) {
        let edges: Vec<u16> = [0].into_iter().chain(cuts).chain([8]).collect();
        let mut entries = Vec::new();
        for (n, pair) in edges.windows(2).enumerate() {
            let n = u8::try_from(n).unwrap() + 20;
            let span = SpanRange::new(pair[0], pair[1]).unwrap();
            let price = Price { decode: price.0, prefill: price.1 };
            let work = Work::of(span.count(), WorkedRows { prefill, decode }, price).unwrap();
            let part = Part { span, work, hold: HoldId([n; 16]), in_root: [n; 32], out_root: [n + 1; 32], ..part(10) };
            entries.push(entry(n, &part));
        }
        let links = entries.len() - 1;
        let report = verify(&file(entries, Vec::new())).unwrap();
        prop_assert!(report.holds(), "{:?}", report.problems);
        prop_assert_eq!(report.links, links);
    }

    #[test]
    fn a_cut_file_is_refused(keep in any::<prop::sample::Index>()) {
        let file = sample();
        prop_assert!(verify(&file[..keep.index(file.len())]).is_err());
        prop_assert!(verify(&[&file[..], &[0]].concat()).is_err());
    }
}
