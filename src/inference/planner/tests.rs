//! The planner against an exhaustive search, and against a worker that lies.

use std::{collections::HashSet, time::Duration};

use libp2p::PeerId;
use proptest::prelude::*;
use quelea_announce::Ends;
use quelea_wire::{ModelId, SpanRange};

use super::{
    Candidate, LeftOut, Links, Local, Objective, Plan, Query, Source,
    cost::{Cost, Costs},
    explain::uncovered,
    observed::{Observed, StageSaid, Took},
    plan,
    search::{Part, shortest},
};

fn peer(n: u8) -> PeerId {
    libp2p::identity::Keypair::ed25519_from_bytes([n; 32]).unwrap().public().to_peer_id()
}

const HERE: u8 = 200;

fn span(start: u16, end: u16) -> SpanRange {
    SpanRange::new(start, end).unwrap()
}

fn candidate(n: u8, range: &str, rtt_ms: u64) -> Candidate {
    Candidate {
        peer: peer(n),
        span: range.parse().unwrap(),
        addrs: Vec::new(),
        rtt: Some(Duration::from_millis(rtt_ms)),
        decode_ns: 1_000_000,
        prefill_ns: 200_000,
        source: Source::Claimed,
        queue_ns: 0,
        bytes_per_s: 12_500_000,
        risk_ppm: 10_000,
        price_decode: 0,
        price_prefill: 0,
        kv_pages_free: 100,
        kv_is_old: false,
        shunned: false,
        ends: Ends::default(),
    }
}

fn links(candidates: &[Candidate]) -> Links {
    let mut links = Links::new(peer(HERE));
    for c in candidates {
        links.set_rtt(c.peer, c.rtt.unwrap());
    }
    links
}

fn query(layers: u16) -> Query {
    let mut query = Query::new(peer(HERE), span(0, layers), 8192);
    (query.prompt_rows, query.answer_rows) = (100, 64);
    query.layer_bytes = vec![1_000_000; usize::from(layers)];
    query
}

fn route(plan: &Plan) -> Vec<(PeerId, String)> {
    plan.hops.iter().map(|planned| (planned.hop.peer, planned.hop.span.to_string())).collect()
}

fn planned(query: &Query, all: &[Candidate]) -> super::Planned {
    plan(query, all, &links(all), None, Vec::new(), true).unwrap()
}

#[test]
fn one_slow_peer_is_worth_less_than_two_fast_ones() {
    let near = [candidate(1, "0..2", 1), candidate(2, "2..4", 1), candidate(3, "0..4", 90)];
    assert_eq!(route(&planned(&query(4), &near).chosen).len(), 2);
    // Where the trips are alike, fewer of them win.
    let alike = [candidate(1, "0..2", 30), candidate(2, "2..4", 30), candidate(3, "0..4", 30)];
    assert_eq!(route(&planned(&query(4), &alike).chosen), [(peer(3), "0..4".into())]);
}

#[test]
fn spans_are_entered_and_left_inside_and_the_first_goes_as_far_as_it_can() {
    let mut query = query(6);
    query.prompt_rows = 1;
    let all = [candidate(1, "0..3", 1), candidate(2, "1..9", 1)];
    assert_eq!(route(&planned(&query, &all).chosen), [(peer(1), "0..3".into()), (peer(2), "3..6".into())]);
    // A prompt of many chunks wants stages that take equally long; the slower one then gets less.
    query.prompt_rows = 10_000;
    let mut all = [candidate(1, "0..6", 1), candidate(2, "0..6", 1)];
    all[0].kv_pages_free = 100;
    let balanced = planned(&query, &all).chosen;
    assert_eq!(balanced.hops.iter().map(|hop| hop.hop.span.count()).collect::<Vec<_>>(), [3, 3]);
}

#[test]
fn memory_is_a_hard_limit_and_the_reason_is_told() {
    let mut all = [candidate(1, "0..4", 1), candidate(2, "0..4", 80)];
    all[0].kv_pages_free = 3;
    let mut query = query(4);
    query.kv_pages = 4;
    let found = planned(&query, &all);
    assert_eq!(route(&found.chosen), [(peer(2), "0..4".into())]);
    assert!(found.left_out[0].to_string().contains("has 3 KV pages free, and the session needs 4"));
    // What was said of it some time ago may be over. It is asked where the other one would cost more than asking in vain.
    all[0].kv_is_old = true;
    assert_eq!(route(&planned(&query, &all).chosen), [(peer(1), "0..4".into())]);
    all[1].rtt = Some(Duration::from_millis(20));
    assert_eq!(route(&planned(&query, &all).chosen), [(peer(2), "0..4".into())]);
    all[0].kv_is_old = false;
    query.kv_pages = 101;
    let none = plan(&query, &all, &links(&all), None, Vec::new(), false).unwrap_err();
    assert!(none.full && none.to_string().contains("the session needs 101"), "{none}");
}

#[test]
fn what_is_missing_is_told_with_its_bytes_and_who_was_counted() {
    let all = [candidate(1, "0..2", 1), candidate(2, "3..4", 1)];
    let out = vec![LeftOut::new(peer(3), Some(span(2, 6)), "draining")];
    let error = plan(&query(6), &all, &links(&all), None, out, false).unwrap_err();
    assert_eq!(error.missing, [span(2, 3), span(4, 6)]);
    assert_eq!(error.missing_bytes, 3_000_000);
    let text = error.to_string();
    for part in
        ["2..3, 4..6 (3.0 MB)", &peer(1).to_string(), &peer(2).to_string(), &peer(3).to_string(), "2..6: draining"]
    {
        assert!(text.contains(part), "{part} not in {text}");
    }
}

#[test]
fn who_failed_lately_is_the_last_resort() {
    let mut all = [candidate(1, "0..4", 1), candidate(2, "0..4", 80)];
    all[0].shunned = true;
    let found = planned(&query(4), &all);
    assert_eq!(route(&found.chosen), [(peer(2), "0..4".into())]);
    assert_eq!(found.spare, None);
    all[1].span = span(0, 3);
    assert_eq!(route(&planned(&query(4), &all).chosen)[0].0, peer(1));
}

#[test]
fn objectives_choose_differently() {
    let mut fast = candidate(1, "0..4", 5);
    (fast.price_decode, fast.price_prefill) = (100, 10);
    let mut cheap = candidate(2, "0..4", 80);
    (cheap.price_decode, cheap.price_prefill) = (1, 1);
    // Two peers that each do half at once: more sessions, more trips, and two that see the prompt.
    let mut halves = [candidate(3, "0..2", 15), candidate(4, "2..4", 15)];
    for half in &mut halves {
        (half.decode_ns, half.price_decode) = (900_000, 50);
    }
    let all = [fast, cheap, halves[0].clone(), halves[1].clone()];
    let by = |objective| route(&planned(&Query { objective, ..query(4) }, &all).chosen);
    assert_eq!(by(Objective::Latency), [(peer(1), "0..4".into())]);
    assert_eq!(by(Objective::Price), [(peer(2), "0..4".into())]);
    assert!(by(Objective::Throughput).len() > 1, "{:?}", by(Objective::Throughput));
    assert_eq!(by(Objective::Private).len(), 1);
    // Prices are rounded up once for each stage.
    let price = planned(&Query { objective: Objective::Price, ..query(4) }, &all).chosen.price;
    assert_eq!(price, (4 * (100 + 64) as u64).div_ceil(1000));
}

#[test]
fn callers_spread_over_plans_that_are_as_good_and_each_keeps_its_own() {
    let all: Vec<Candidate> = (1..=6).map(|n| candidate(n, if n % 2 == 1 { "0..4" } else { "4..8" }, 20)).collect();
    let by = |seed| route(&planned(&Query { seed, ..query(8) }, &all).chosen);
    let different: HashSet<_> = (0..32).map(by).collect();
    assert!(different.len() >= 3, "{different:?}");
    assert!((0..32).all(|seed| by(seed) == by(seed)));
    // One that is clearly worse is not among them.
    let mut worse = all.clone();
    for c in worse.iter_mut().filter(|c| c.peer == peer(1) || c.peer == peer(2)) {
        c.decode_ns *= 10;
    }
    let by = |seed| route(&planned(&Query { seed, ..query(8) }, &worse).chosen);
    assert!((0..32).all(|seed| by(seed).iter().all(|(p, _)| *p != peer(1) && *p != peer(2))));
}

#[test]
fn the_spare_shares_nobody_and_staying_at_home_is_priced() {
    let all = [candidate(1, "0..4", 10), candidate(2, "0..4", 30)];
    let local = Local { decode_ns: 100_000, prefill_ns: 20_000, source: Source::Measured };
    let query = query(4);
    let found = plan(&query, &all, &links(&all), Some(local), Vec::new(), true).unwrap();
    assert_eq!(route(found.spare.as_ref().unwrap()), [(peer(2), "0..4".into())]);
    assert!(found.local_is_faster(&query));
    assert_eq!(found.local.as_ref().unwrap().token_ns, 400_000);
    assert_eq!(found.passed_over.len(), 1);
    assert!(found.passed_over[0].reason.contains("% more"), "{:?}", found.passed_over);
    let slow = Local { decode_ns: 1_000_000_000, ..local };
    assert!(!plan(&query, &all, &links(&all), Some(slow), Vec::new(), false).unwrap().local_is_faster(&query));
}

#[test]
fn a_span_in_the_middle_is_replaced_by_others_than_those_in_the_chain() {
    let all = [candidate(1, "0..8", 1), candidate(2, "2..5", 10), candidate(3, "4..8", 10), candidate(4, "0..8", 500)];
    let mut query = query(8);
    query.span = span(3, 6);
    (query.from, query.to) = (peer(1), peer(5));
    query.exclude = HashSet::from([peer(1)]);
    let found = planned(&query, &all);
    assert_eq!(route(&found.chosen), [(peer(2), "3..5".into()), (peer(3), "5..6".into())]);
    assert!(found.left_out.iter().any(|out| out.peer == peer(1)));
}

#[test]
fn what_others_say_of_distances_stays_within_the_triangle() {
    let mut links = Links::new(peer(HERE));
    links.set_rtt(peer(1), Duration::from_millis(100));
    links.set_rtt(peer(2), Duration::from_millis(20));
    let ms = |ns: u64| ns / 1_000_000;
    assert_eq!(ms(links.one_way(peer(1), peer(2))), 40, "no nearer than the difference");
    links.set_attested(peer(1), peer(2), Duration::ZERO);
    assert_eq!(ms(links.one_way(peer(1), peer(2))), 40);
    links.set_attested(peer(2), peer(1), Duration::from_secs(60));
    assert_eq!(ms(links.one_way(peer(1), peer(2))), 60, "no farther than by way of us");
    links.set_attested(peer(1), peer(2), Duration::from_millis(90));
    assert_eq!(ms(links.one_way(peer(2), peer(1))), 45);
    links.set_measured(peer(2), peer(1), 7_000_000);
    assert_eq!((ms(links.one_way(peer(2), peer(1))), ms(links.one_way(peer(1), peer(2)))), (7, 45));
}

#[test]
fn a_worker_that_lies_is_left_out_after_three_requests() {
    const MODEL: ModelId = ModelId([7; 32]);
    // Both claim the same, or the liar even more; it takes twenty times as long, and reports nothing of it.
    let (honest, liar) = (candidate(1, "0..4", 10), candidate(2, "0..4", 10));
    let real = |p: PeerId| if p == liar.peer { 20_000_000_u64 } else { 1_000_000 };
    let mut observed = Observed::default();
    let mut asked = Vec::new();
    for seed in 0..12 {
        let all: Vec<Candidate> = [&honest, &liar]
            .map(|c| {
                let seen = observed.speed(c.peer, MODEL);
                let claimed = if c.peer == liar.peer { 500_000 } else { 1_000_000 };
                Candidate { decode_ns: seen.decode_ns.unwrap_or(claimed), ..c.clone() }
            })
            .to_vec();
        let chosen = planned(&Query { seed, ..query(4) }, &all).chosen;
        let used = chosen.hops[0].hop.peer;
        asked.push(used);
        let pass = real(used) * 4 + 10_000_000;
        let said = StageSaid {
            peer: used,
            span: span(0, 4),
            compute_ns: if used == liar.peer { 64 * 1000 } else { 64 * 4_000_000 },
            queue_ns: 0,
            hop_ns: None,
        };
        let took = Took { prompt_rows: 0, prompt_ns: 0, answer_rows: 64, passes: 64, answer_ns: 64 * pass };
        observed.answered(MODEL, &[said], took, 10_000_000);
    }
    let to_liar = asked.iter().filter(|p| **p == liar.peer).count();
    assert_eq!(to_liar, 3, "its claim is believed until three requests are measured: {asked:?}");
    assert!(asked[3..].iter().all(|p| *p == honest.peer));
    let seen = observed.speed(liar.peer, MODEL).decode_ns.unwrap();
    assert!((19_000_000..=21_000_000).contains(&seen), "{seen}");
}

#[test]
fn unexplained_time_is_shared_and_an_honest_peer_loses_it_again() {
    const MODEL: ModelId = ModelId([7; 32]);
    let mut observed = Observed::default();
    let said = |n, start, end, compute_ns| StageSaid {
        peer: peer(n),
        span: span(start, end),
        compute_ns,
        queue_ns: 0,
        hop_ns: Some(1_000_000),
    };
    let took = |pass: u64| Took { answer_rows: 10, passes: 10, answer_ns: 10 * pass, ..Took::default() };
    for _ in 0..3 {
        // 4 ms each of which one reports its own, and the other nothing of its 40.
        let stages = [said(1, 0, 4, 40_000_000), said(2, 4, 8, 0)];
        observed.answered(MODEL, &stages, took(44_000_000), 0);
    }
    assert_eq!(observed.speed(peer(1), MODEL).decode_ns, Some(6_000_000), "4 of its own, and half of 40, for 4 layers");
    assert_eq!(observed.hops().collect::<Vec<_>>(), [(peer(1), peer(2), 1_000_000)]);
    for _ in 0..12 {
        observed.answered(MODEL, &[said(1, 0, 4, 40_000_000)], took(4_000_000), 0);
    }
    let cleared = observed.speed(peer(1), MODEL).decode_ns.unwrap();
    assert!((1_000_000..1_100_000).contains(&cleared), "{cleared}");
    assert!(observed.speed(peer(2), MODEL).decode_ns.unwrap() > 4_000_000);
}

#[test]
fn reports_of_more_time_than_there_was_are_scaled() {
    const MODEL: ModelId = ModelId([7; 32]);
    let mut observed = Observed::default();
    let stage = StageSaid {
        peer: peer(1),
        span: span(0, 1),
        compute_ns: u64::MAX / 2,
        queue_ns: u64::MAX / 2,
        hop_ns: Some(u64::MAX),
    };
    let took = Took { answer_rows: 1, passes: 1, answer_ns: 1_000_000, prompt_rows: 5, prompt_ns: 2_000_000 };
    for _ in 0..5 {
        observed.answered(MODEL, &[stage], took, 0);
    }
    let seen = observed.speed(peer(1), MODEL);
    assert!(seen.decode_ns.unwrap() + seen.queue_ns.unwrap() <= 1_000_001, "{seen:?}");
}

#[test]
fn what_is_remembered_is_bounded_and_failures_raise_the_risk() {
    let mut observed = Observed::default();
    let stranger = observed.risk_ppm(peer(1));
    observed.ended(peer(1), false);
    assert!(observed.risk_ppm(peer(1)) > stranger);
    for _ in 0..1000 {
        observed.ended(peer(1), true);
    }
    assert!(observed.risk_ppm(peer(1)) < stranger / 3);
    let took = Took { answer_rows: 1, passes: 1, answer_ns: 1000, ..Took::default() };
    for _ in 0..5000 {
        let p = PeerId::random();
        let stage = StageSaid { peer: p, span: span(0, 1), compute_ns: 1, queue_ns: 1, hop_ns: None };
        observed.answered(ModelId([1; 32]), &[stage], took, 0);
        observed.ended(p, true);
        observed.carried(p, 1_000_000);
    }
    assert!(observed.sizes().iter().all(|n| *n <= 1024), "{:?}", observed.sizes());
}

/// All chains, by trying everything.
fn brute(query: &Query, all: &[Candidate], costs: &Costs<'_>) -> Option<u128> {
    fn go(
        query: &Query,
        all: &[Candidate],
        costs: &Costs<'_>,
        at: u16,
        cost: Cost,
        used: &mut Vec<Part>,
        best: &mut Option<u128>,
    ) {
        if at == query.span.end() {
            let score = cost.score(costs.peaks);
            *best = Some(best.map_or(score, |b| b.min(score)));
            return;
        }
        for (index, c) in all.iter().enumerate() {
            let again = used.iter().any(|(i, ..)| all[*i].peer == c.peer);
            if again || !c.span.contains(at) || !c.has_ends(query, at, at) || c.kv_pages_free < query.kv_pages {
                continue;
            }
            for end in at + 1..=c.span.end().min(query.span.end()) {
                if !c.has_ends(query, at, end) {
                    continue;
                }
                let before = used.last().map(|(i, ..)| *i);
                let mut next = cost.plus(costs.link(before, index)).plus(costs.stage(index, end - at));
                if end == query.span.end() {
                    next = next.plus(costs.back(index));
                }
                used.push((index, at, end));
                go(query, all, costs, end, next, used, best);
                used.pop();
            }
        }
    }
    let mut best = None;
    go(query, all, costs, query.span.start(), Cost::default(), &mut Vec::new(), &mut best);
    best
}

prop_compose! {
    fn any_candidate()(
        n in 1_u8..6, start in 0_u16..6, len in 1_u16..6, rtt in 0_u64..60, decode in 1_u64..3000,
        prefill in 1_u64..500, queue in 0_u64..20, price in 0_u64..50, pages in 0_u32..8, risk in 0_u32..300_000,
        rate in 1_u64..50, ends in proptest::array::uniform2(0_u8..4),
    ) -> Candidate {
        Candidate {
            decode_ns: decode * 1000,
            prefill_ns: prefill * 1000,
            queue_ns: queue * 100_000,
            price_decode: price,
            price_prefill: price / 2,
            kv_pages_free: pages,
            kv_is_old: false,
            risk_ppm: risk,
            bytes_per_s: rate * 1_000_000,
            ends: Ends { embedding: ends[0] > 0, head: ends[1] > 0 },
            ..candidate(n, &format!("{start}..{}", start + len), rtt)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_search_finds_what_trying_everything_finds(
        all in proptest::collection::vec(any_candidate(), 0..7),
        measured in proptest::collection::vec((1_u8..6, 1_u8..6, 0_u64..40_000_000), 0..6),
        prompt in 1_u64..600, answer in 1_u64..200,
        (embedding, head) in any::<(bool, bool)>(),
        objective in prop_oneof![
            Just(Objective::Latency), Just(Objective::Throughput), Just(Objective::Price), Just(Objective::Private)
        ],
    ) {
        let mut links = links(&all);
        for (a, b, ns) in measured {
            links.set_measured(peer(a), peer(b), ns);
        }
        let query =
            Query {
                prompt_rows: prompt, answer_rows: answer, objective, kv_pages: 1,
                ends: Ends { embedding, head }, logits_bytes: 20, ..query(6)
            };
        let costs = Costs::new(&query, &all, &links);
        let found = shortest(&query, &all, &costs, &HashSet::new(), None);
        prop_assert_eq!(found.as_ref().map(|(_, cost)| cost.score(costs.peaks)), brute(&query, &all, &costs));
        let Some((parts, _)) = found else { return Ok(()) };
        let mut at = 0;
        let mut peers = HashSet::new();
        for (index, start, end) in parts {
            prop_assert_eq!(start, at);
            prop_assert!(all[index].span.covers(&span(start, end)));
            prop_assert!(peers.insert(all[index].peer), "a peer twice");
            prop_assert!(start > 0 || !embedding || all[index].ends.embedding);
            prop_assert!(end < 6 || !head || all[index].ends.head);
            at = end;
        }
        prop_assert_eq!(at, 6);
    }

    #[test]
    fn a_plan_is_gapless_or_its_absence_is_explained(all in proptest::collection::vec(any_candidate(), 0..9), seed: u64) {
        let query = Query { seed, kv_pages: 2, ..query(6) };
        match plan(&query, &all, &links(&all), None, Vec::new(), true) {
            Ok(found) => {
                let layers: u32 = found.chosen.hops.iter().map(|h| u32::from(h.hop.span.count())).sum();
                prop_assert_eq!(layers, 6);
                if let Some(spare) = &found.spare {
                    prop_assert!(spare.hops.iter().all(|s| found.chosen.hops.iter().all(|c| c.hop.peer != s.hop.peer)));
                }
                let full = all.iter().filter(|c| c.kv_pages_free < 2).count();
                prop_assert_eq!(found.left_out.len(), full);
            }
            Err(none) => {
                let roomy: Vec<SpanRange> = all.iter().filter(|c| c.kv_pages_free >= 2).map(|c| c.span).collect();
                prop_assert_eq!(&none.missing, &uncovered(query.span, &roomy));
                prop_assert!(!none.to_string().is_empty());
            }
        }
    }
}

#[test]
fn ends_that_are_wanted_are_with_the_layers_next_to_them() {
    let both = Ends { embedding: true, head: true };
    let thin = Query { ends: both, logits_bytes: 20, ..query(4) };
    let with = |n, range, embedding, head| Candidate { ends: Ends { embedding, head }, ..candidate(n, range, 1) };
    // The quick ones have no ends.
    let quick = [candidate(1, "0..2", 0), candidate(2, "2..4", 0)];
    let all = [&quick[..], &[with(3, "0..3", true, false), with(4, "1..4", false, true)]].concat();
    let found = planned(&thin, &all);
    let ends: Vec<PeerId> = [0, found.chosen.hops.len() - 1].map(|i| found.chosen.hops[i].hop.peer).into();
    assert_eq!(ends, [peer(3), peer(4)]);
    let out: Vec<&str> = found.left_out.iter().map(|out| out.reason.as_str()).collect();
    assert!(out.iter().any(|why| why.contains("does not compute the embedding")), "{out:?}");
    // Four bytes in, twenty out, whole rows between.
    assert_eq!((found.chosen.hops[0].row_bytes, found.chosen.hops[1].row_bytes), (4, 8192));
    assert_eq!(planned(&query(4), &all).left_out, []);

    let none = |all: &[Candidate]| plan(&thin, all, &links(all), None, Vec::new(), true).unwrap_err();
    let lacks = none(&quick);
    assert_eq!((lacks.lacks, lacks.missing.is_empty()), (both, true));
    assert!(
        lacks.to_string().contains("no peer holds the embedding with layer 0, nor the head with layer 3"),
        "{lacks}"
    );
    let lacks = none(&all[1..3]);
    assert_eq!(lacks.lacks, Ends { embedding: false, head: true });
    assert!(lacks.to_string().contains("no peer holds the head with layer 3"), "{lacks}");
}

#[test]
fn hundreds_of_peers_are_planned_over_at_once() {
    // 70B: eighty layers, three hundred peers with spans of their own, each near some and far from others.
    let mut all = Vec::new();
    for n in 0..300_u16 {
        let start = (n * 7) % 76;
        let mut c = candidate(1, &format!("{start}..{}", (start + 4 + n % 13).min(80)), u64::from(n % 37) + 1);
        c.peer = PeerId::random();
        c.decode_ns = 500_000 + u64::from(n % 11) * 300_000;
        all.push(c);
    }
    let found = plan(&query(80), &all, &links(&all), None, Vec::new(), false).unwrap();
    let layers: u32 = found.chosen.hops.iter().map(|h| u32::from(h.hop.span.count())).sum();
    assert_eq!(layers, 80);
    assert!(found.spare.is_some());
}
