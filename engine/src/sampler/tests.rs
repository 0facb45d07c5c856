//! Whole samplers, and properties of each stage.

use proptest::prelude::*;

use super::{cut::Candidate, weight::ONE, *};

fn config(temperature: f32, top_k: usize, top_p: f32, seed: u64) -> SamplerConfig {
    SamplerConfig { temperature, top_k, top_p, seed, ..SamplerConfig::default() }
}

/// Logits without a pattern, the same for ever.
fn logits_of(count: u32) -> Vec<f32> {
    (0..count).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1_048_576.0 - 8.0).collect()
}

fn draw(config: SamplerConfig, count: usize) -> Vec<u32> {
    let logits = logits_of(64);
    let mut sampler = Sampler::new(config, &[1, 2, 3]).unwrap();
    (0..count).map(|_| sampler.sample(&logits).unwrap()).collect()
}

fn candidates(config: &SamplerConfig, logits: &[f32]) -> Vec<Candidate> {
    Cut::default().candidates(config, logits, Vocab::of(logits).unwrap()).to_vec()
}

fn ids(config: &SamplerConfig, logits: &[f32]) -> Vec<u32> {
    candidates(config, logits).iter().map(|c| c.id).collect()
}

/// What the cuts should leave, by sorting everything.
fn naive(config: &SamplerConfig, logits: &[f32]) -> Vec<u32> {
    let mut all = candidates(&SamplerConfig { top_k: 0, top_p: 1.0, min_p: 0.0, ..config.clone() }, logits);
    all.sort_by(|a, b| b.logit.partial_cmp(&a.logit).unwrap().then(a.id.cmp(&b.id)));
    if config.top_k > 0 {
        all.truncate(config.top_k);
    }
    if config.top_p < 1.0 {
        let total: u64 = all.iter().map(|c| c.weight).sum();
        let wanted = f64::from(config.top_p) * total as f64;
        let mut reached = 0;
        let last = all.iter().position(|c| {
            reached += c.weight;
            reached as f64 >= wanted
        });
        all.truncate(last.unwrap() + 1);
    }
    all.retain(|c| c.weight as f64 >= f64::from(config.min_p) * ONE as f64);
    let mut ids: Vec<u32> = all.iter().map(|c| c.id).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn vectors_whole_samplers() {
    // Also computed by a separate program from the description at the head of the module.
    assert_eq!(draw(config(0.8, 40, 0.95, 1), 16), [29, 63, 8, 55, 21, 55, 50, 21, 21, 21, 50, 63, 16, 55, 55, 21]);
    assert_eq!(draw(config(1.0, 0, 1.0, 2), 16), [29, 8, 55, 42, 63, 55, 8, 21, 63, 21, 8, 29, 63, 16, 29, 42]);
    assert_eq!(draw(config(2.0, 0, 0.5, 3), 16), [55, 42, 42, 55, 55, 42, 63, 63, 29, 55, 8, 21, 55, 21, 8, 55]);
    assert_eq!(
        draw(SamplerConfig { min_p: 0.2, ..config(1.5, 0, 1.0, 4) }, 16),
        [50, 42, 55, 55, 63, 63, 16, 42, 55, 3, 29, 55, 55, 3, 63, 29]
    );
    let penalised = SamplerConfig {
        repeat_penalty: 1.3,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        repeat_last_n: 8,
        logit_bias: [(5, 9.5), (7, -100.0)].into(),
        ..config(0.7, 12, 0.9, 5)
    };
    assert_eq!(draw(penalised.clone(), 16), [63, 8, 55, 42, 21, 58, 50, 29, 24, 63, 8, 16, 55, 21, 42, 50]);
    assert_eq!(
        draw(SamplerConfig { temperature: 0.0, ..penalised }, 16),
        [55, 21, 42, 8, 63, 29, 50, 16, 37, 55, 21, 42, 8, 63, 29, 50]
    );
}

#[test]
fn greedy_takes_the_lower_of_equals() {
    let greedy = |logits: &[f32]| Sampler::new(SamplerConfig::default(), &[]).unwrap().sample(logits);
    assert_eq!(greedy(&[-1.0, 2.0, 2.0, f32::NEG_INFINITY]), Ok(1));
    assert_eq!(greedy(&[-0.0, 0.0]), Ok(0));
    let mut long = vec![0.0; 1000];
    long[777] = 1.0;
    long[900] = 1.0;
    assert_eq!(greedy(&long), Ok(777));
}

#[test]
fn cuts_keep_what_they_should() {
    let logits = [1.0, 3.0, 3.0, 2.0, f32::NEG_INFINITY];
    let ids = |config: SamplerConfig| ids(&config, &logits);
    assert_eq!(ids(config(1.0, 0, 1.0, 0)), [0, 1, 2, 3]);
    assert_eq!(ids(config(1.0, 2, 1.0, 0)), [1, 2]);
    assert_eq!(ids(config(1.0, 1, 1.0, 0)), [1]);
    assert_eq!(ids(config(1.0, 99, 1.0, 0)), [0, 1, 2, 3]);
    // Probabilities are 0.40, 0.40, 0.15, 0.05.
    assert_eq!(ids(config(1.0, 0, 0.0, 0)), [1]);
    assert_eq!(ids(config(1.0, 0, 0.5, 0)), [1, 2]);
    assert_eq!(ids(config(1.0, 0, 0.9, 0)), [1, 2, 3]);
    // Top-p counts among what top-k left: 0.5 of two equals is one of them.
    assert_eq!(ids(config(1.0, 2, 0.5, 0)), [1]);
    // The others are 1, e⁻¹ = 0.37 and e⁻² = 0.14 times as likely as the first.
    let min_p = |min_p| ids(SamplerConfig { min_p, ..config(1.0, 0, 1.0, 0) });
    assert_eq!(min_p(0.13), [0, 1, 2, 3]);
    assert_eq!(min_p(0.14), [1, 2, 3]);
    assert_eq!(min_p(0.37), [1, 2]);
    assert_eq!(min_p(1.0), [1, 2]);
    // Temperature comes first: twice as hot, the least likely is 0.37 times as likely as the first.
    assert_eq!(ids(SamplerConfig { min_p: 0.36, ..config(2.0, 0, 1.0, 0) }), [0, 1, 2, 3]);
}

#[test]
fn a_large_vocabulary_is_cut_like_a_small_one() {
    let peaked: Vec<f32> = logits_of(50_000).iter().map(|l| l * 3.0).collect();
    let flat: Vec<f32> = logits_of(50_000).iter().map(|l| (l * 0.1 * 32.0).round() / 32.0).collect();
    let rising: Vec<f32> = (0..50_000_u16).map(|i| f32::from(i) / 8192.0).collect();
    for logits in [&peaked, &flat, &rising] {
        for (top_k, top_p, min_p) in
            [(40, 1.0, 0.0), (40, 0.9, 0.05), (0, 0.95, 0.0), (0, 0.5, 0.1), (0, 1.0, 0.3), (30_000, 0.99, 0.0)]
        {
            let config = SamplerConfig { min_p, ..config(1.0, top_k, top_p, 0) };
            assert_eq!(ids(&config, logits), naive(&config, logits), "{top_k} {top_p} {min_p}");
        }
    }
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [0.0, 2.0_f32.ln(), f32::NEG_INFINITY, 5.0_f32.ln()];
    let mut sampler = Sampler::new(config(1.0, 0, 1.0, 5), &[]).unwrap();
    let mut counts = [0_u32; 4];
    for _ in 0..80_000 {
        counts[sampler.sample(&logits).unwrap() as usize] += 1;
    }
    // Expected 10,000, 20,000, 0 and 50,000; five standard deviations are at most 700.
    assert_eq!(counts[2], 0);
    for (count, expected) in counts.into_iter().zip([10_000_u32, 20_000, 0, 50_000]) {
        assert!(count.abs_diff(expected) < 700, "{counts:?}");
    }
}

#[test]
fn refusals_draw_nothing() {
    let mut sampler = Sampler::new(config(1.0, 0, 1.0, 1), &[]).unwrap();
    let refused = sampler.sample(&[0.0, f32::NAN]);
    assert!(matches!(refused, Err(SamplerError::Logit { id: 1, value }) if value.is_nan()));
    let mut long = vec![0.0; 20];
    long[3] = f32::INFINITY;
    assert_eq!(sampler.sample(&long), Err(SamplerError::Logit { id: 3, value: f32::INFINITY }));
    assert_eq!(sampler.sample(&[]), Err(SamplerError::Nothing { count: 0 }));
    assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 2]), Err(SamplerError::Nothing { count: 2 }));
    assert_eq!(sampler.draws(), 0);
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let default = SamplerConfig::default;
    let inf = f32::INFINITY;
    let bad = [
        ("temperature", SamplerConfig { temperature: -1.0, ..default() }),
        ("temperature", SamplerConfig { temperature: f32::NAN, ..default() }),
        ("temperature", SamplerConfig { temperature: inf, ..default() }),
        ("top_p", SamplerConfig { top_p: 1.5, ..default() }),
        ("top_p", SamplerConfig { top_p: f32::NAN, ..default() }),
        ("min_p", SamplerConfig { min_p: -0.1, ..default() }),
        ("repeat_penalty", SamplerConfig { repeat_penalty: 0.0, ..default() }),
        ("repeat_penalty", SamplerConfig { repeat_penalty: inf, ..default() }),
        ("presence_penalty", SamplerConfig { presence_penalty: 2.5, ..default() }),
        ("frequency_penalty", SamplerConfig { frequency_penalty: f32::NAN, ..default() }),
        ("logit_bias", SamplerConfig { logit_bias: [(1, 101.0)].into(), ..default() }),
        ("logit_bias", SamplerConfig { logit_bias: [(1, 0.0), (2, f32::NAN)].into(), ..default() }),
    ];
    for (setting, config) in bad {
        let refused = Sampler::new(config, &[]).map(|_| ());
        assert!(matches!(&refused, Err(SamplerError::Setting { name, .. }) if *name == setting), "{refused:?}");
    }
    let mut unknown = Sampler::new(SamplerConfig { logit_bias: [(2, 1.0)].into(), ..default() }, &[]).unwrap();
    assert_eq!(unknown.sample(&[0.0, 0.0]), Err(SamplerError::UnknownToken { id: 2, vocab: 2 }));
    assert_eq!(unknown.draws(), 0);
}

#[test]
fn extremes_still_pick() {
    let logits = [1.0e30, -1.0e30, 0.0];
    let sample = |config| Sampler::new(config, &[0]).unwrap().sample(&logits);
    assert_eq!(sample(config(f32::MIN_POSITIVE, 0, 0.9, 0)), Ok(0));
    assert!(sample(config(f32::MAX, 2, 1.0, 7)).is_ok());
    // Nothing overflows into a NaN.
    let huge = [f32::MAX, f32::MIN, 0.0];
    let config =
        SamplerConfig { repeat_penalty: 0.01, logit_bias: [(0, 99.0), (1, -99.0)].into(), ..config(1.0, 0, 1.0, 0) };
    assert_eq!(Sampler::new(config, &[0, 1]).unwrap().sample(&huge), Ok(0));
}

#[test]
fn bias_bans_and_forces() {
    let logits = [5.0, 4.0, 3.0, f32::NEG_INFINITY];
    let pick = |bias: &[(u32, f32)]| {
        let config = SamplerConfig { logit_bias: bias.iter().copied().collect(), ..SamplerConfig::default() };
        Sampler::new(config, &[]).unwrap().sample(&logits)
    };
    assert_eq!(pick(&[]), Ok(0));
    assert_eq!(pick(&[(2, 2.5)]), Ok(2));
    assert_eq!(pick(&[(0, -100.0)]), Ok(1));
    assert_eq!(pick(&[(2, 100.0)]), Ok(2));
    assert_eq!(pick(&[(2, 100.0), (1, 100.0), (0, 99.0)]), Ok(1));
    assert_eq!(pick(&[(3, 100.0)]), Err(SamplerError::Nothing { count: 4 }));
    assert_eq!(pick(&[(0, -100.0), (1, -100.0), (2, -100.0)]), Err(SamplerError::Nothing { count: 4 }));
}

/// Logits after the penalties of `config` with this history.
fn penalised(config: &SamplerConfig, prompt: &[u32], answer: &[u32], logits: &[f32]) -> Vec<f32> {
    let mut logits = logits.to_vec();
    let mut penalties = Penalties::new(config, prompt);
    answer.iter().for_each(|id| penalties.push(*id));
    penalties.apply(&mut logits);
    logits
}

#[test]
fn penalties_count_in_their_window() {
    let logits = [2.0, -2.0, 2.0, 2.0, f32::NEG_INFINITY];
    let config = |repeat_penalty, presence_penalty, frequency_penalty, repeat_last_n| SamplerConfig {
        repeat_penalty,
        presence_penalty,
        frequency_penalty,
        repeat_last_n,
        ..SamplerConfig::default()
    };
    let after = |config| penalised(&config, &[0, 1], &[2, 2, 4, 9], &logits);
    let banned = f32::NEG_INFINITY;
    // Repetition: prompt and answer, down from either side of zero, once however often.
    assert_eq!(after(config(2.0, 0.0, 0.0, usize::MAX)), [1.0, -4.0, 1.0, 2.0, banned]);
    assert_eq!(after(config(2.0, 0.0, 0.0, 4)), [2.0, -2.0, 1.0, 2.0, banned]);
    assert_eq!(after(config(2.0, 0.0, 0.0, 2)), [2.0, -2.0, 2.0, 2.0, banned]);
    // Presence and frequency: the answer only.
    assert_eq!(after(config(1.0, 0.5, 0.0, 64)), [2.0, -2.0, 1.5, 2.0, banned]);
    assert_eq!(after(config(1.0, 0.0, 0.5, 64)), [2.0, -2.0, 1.0, 2.0, banned]);
    assert_eq!(after(config(1.0, 0.0, 0.5, 3)), [2.0, -2.0, 1.5, 2.0, banned]);
    assert_eq!(after(config(2.0, 0.25, 0.5, 64)), [1.0, -4.0, -0.25, 2.0, banned]);
    assert!(!config(2.0, 0.5, 0.5, 0).penalises());
}

#[test]
fn log_probabilities_are_those_of_the_raw_logits() {
    let logits: Vec<f32> = [1.0_f32, 5.0, 2.0, 5.0, 0.5].iter().map(|n| n.ln()).collect();
    let close = |a: f32, b: f32| assert!((a - b).abs() < 1e-6, "{a} {b}");
    let got = log_prob(&logits, 2, 3).unwrap();
    assert_eq!(got.id, 2);
    close(got.logprob, (2.0_f32 / 13.5).ln());
    assert_eq!(got.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 2]);
    close(got.top[0].1, (5.0_f32 / 13.5).ln());
    assert_eq!(log_prob(&logits, 0, 0).unwrap().top, []);
    assert_eq!(log_prob(&logits, 0, 99).unwrap().top.len(), 5);
    assert_eq!(log_prob(&logits, 5, 0), Err(SamplerError::UnknownToken { id: 5, vocab: 5 }));
    // One sure token has probability 1, the others what is left: nothing below 0 is called 0.
    let sure = log_prob(&[0.0, -200.0, f32::NEG_INFINITY], 1, 1).unwrap();
    assert_eq!((sure.logprob, sure.top[0]), (-200.0, (0, 0.0)));
    assert_eq!(log_prob(&[0.0, f32::NEG_INFINITY], 1, 0).unwrap().logprob, f32::NEG_INFINITY);
    let all: f32 = (0..5).map(|id| log_prob(&logits, id, 0).unwrap().logprob.exp()).sum();
    close(all, 1.0);
}

#[test]
fn log_probabilities_of_a_large_vocabulary_agree_with_the_slow_way() {
    let logits: Vec<f32> = logits_of(150_000).iter().map(|l| l * 2.0).collect();
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|l| libm::exp(f64::from(*l) - f64::from(max))).sum();
    let expected = f64::from(logits[17]) - f64::from(max) - libm::log(sum);
    assert_eq!(log_prob(&logits, 17, 0).unwrap().logprob, expected as f32);
}

#[test]
fn stop_strings_are_refused_when_nobody_can_find_them() {
    let refused = |stops: &[&str]| matches!(StopMatcher::new(stops), Err(SamplerError::Stops { .. }));
    assert!(refused(&["a", ""]) && refused(&[&"x".repeat(1025)]) && refused(&["a"; 17]));
    assert!(!refused(&[]) && !refused(&["a"; 16]) && !refused(&[&"x".repeat(1024)]));
}

/// Text that came out piece by piece, and the stop.
fn stopped(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<usize>) {
    let mut matcher = StopMatcher::new(stops).unwrap();
    let mut out = Vec::new();
    for piece in pieces {
        let Stopped { text, stop } = matcher.push(piece);
        out.push(text);
        if stop.is_some() {
            return (out, stop);
        }
    }
    out.push(matcher.finish());
    (out, None)
}

#[test]
fn text_is_held_back_as_long_as_it_may_become_a_stop_and_no_longer() {
    let all = |stops: &[&str], pieces: &[&str]| stopped(stops, pieces);
    let owned = |pieces: &[&str]| pieces.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
    assert_eq!(all(&["END"], &["a E", "N", "D b"]), (owned(&["a ", "", ""]), Some(0)));
    assert_eq!(all(&["END"], &["a E", "N", "d b"]), (owned(&["a ", "", "ENd b", ""]), None));
    assert_eq!(all(&["END"], &["EEN", "EN"]), (owned(&["E", "EN", "EN"]), None));
    assert_eq!(all(&["aab"], &["aaa", "ab"]), (owned(&["a", "a"]), Some(0)));
    assert_eq!(all(&["\n\n"], &["x\n", "\ny"]), (owned(&["x", ""]), Some(0)));
    // The first to end wins, the longest of those that end together.
    assert_eq!(all(&["abcd", "bc"], &["abcd"]), (owned(&["a"]), Some(1)));
    assert_eq!(all(&["c", "abc", "bc"], &["xab", "cd"]), (owned(&["x", ""]), Some(1)));
    // Characters of several bytes that share their first ones.
    assert_eq!(all(&["é→"], &["è", "é", "é→!"]), (owned(&["è", "", "é"]), Some(0)));
    assert_eq!(all(&["🙂"], &["🙁🙂"]), (owned(&["🙁"]), Some(0)));
    assert_eq!(all(&[], &["a", "b"]), (owned(&["a", "b", ""]), None));
}

/// The text before the first stop, by looking at every prefix.
fn naive_stop(stops: &[String], text: &str) -> (String, Option<usize>) {
    for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
        let ended = stops.iter().enumerate().filter(|(_, stop)| text[..end].ends_with(*stop));
        if let Some((n, stop)) = ended.max_by_key(|(n, stop)| (stop.len(), usize::MAX - n)) {
            return (text[..end - stop.len()].to_owned(), Some(n));
        }
    }
    (text.to_owned(), None)
}

proptest! {
    #[test]
    fn cuts_are_those_of_sorting(
        raw in prop::collection::vec(-40..40_i32, 1..400),
        step in prop::sample::select(vec![0.05_f32, 0.25, 1.0]),
        top_k in prop_oneof![Just(0_usize), 1..50_usize],
        top_p in prop_oneof![Just(1.0_f32), 0.0..1.0_f32],
        min_p in prop_oneof![Just(0.0_f32), 0.0..1.0_f32],
        temperature in 0.1..3.0_f32,
    ) {
        // Few distinct values, so that there are many ties.
        let logits: Vec<f32> = raw.iter().map(|n| *n as f32 * step).collect();
        let config = SamplerConfig { min_p, ..config(temperature, top_k, top_p, 0) };
        let kept = candidates(&config, &logits);
        prop_assert_eq!(kept.iter().map(|c| c.id).collect::<Vec<_>>(), naive(&config, &logits));
        prop_assert!(kept.iter().any(|c| c.weight == ONE));
        let mut sampler = Sampler::new(config, &[]).unwrap();
        let id = sampler.sample(&logits).unwrap();
        prop_assert!(kept.iter().any(|c| c.id == id));
    }

    #[test]
    fn penalties_never_lift_a_token_and_are_a_function_of_the_tokens(
        prompt in prop::collection::vec(0..8_u32, 0..20),
        answer in prop::collection::vec(0..8_u32, 0..20),
        window in prop_oneof![Just(usize::MAX), 1..30_usize],
        logits in prop::collection::vec(-9.0..9.0_f32, 8),
        (repeat, presence, frequency) in (1.0..3.0_f32, 0.0..2.0_f32, 0.0..2.0_f32),
    ) {
        let config = SamplerConfig {
            repeat_penalty: repeat,
            presence_penalty: presence,
            frequency_penalty: frequency,
            repeat_last_n: window,
            ..SamplerConfig::default()
        };
        let got = penalised(&config, &prompt, &answer, &logits);
        let all = [&prompt[..], &answer].concat();
        let from = all.len().saturating_sub(window);
        for (id, (after, before)) in (0_u32..).zip(got.iter().zip(&logits)) {
            prop_assert!(after <= before);
            let in_answer = all[from.max(prompt.len())..].iter().filter(|t| **t == id).count() as f32;
            let mut expected = *before;
            if all[from..].contains(&id) {
                expected = if expected > 0.0 { expected / repeat } else { expected * repeat };
            }
            if in_answer > 0.0 {
                expected -= in_answer * frequency + presence;
            }
            prop_assert_eq!(*after, expected);
        }
    }

    #[test]
    fn resuming_draws_the_same(
        cut in 0..24_usize,
        seed: u64,
        (repeat, frequency) in (0.8..1.5_f32, -1.0..1.0_f32),
        window in prop_oneof![Just(usize::MAX), 0..12_usize],
    ) {
        let config = SamplerConfig {
            repeat_penalty: repeat,
            frequency_penalty: frequency,
            repeat_last_n: window,
            ..config(1.2, 30, 0.95, seed)
        };
        let logits = logits_of(64);
        let prompt = [4, 8, 15, 16];
        let go = |mut sampler: Sampler, count: usize| -> Vec<u32> {
            (0..count).map(|_| sampler.sample(&logits).unwrap()).collect()
        };
        let whole = go(Sampler::new(config.clone(), &prompt).unwrap(), 24);
        let resumed = Sampler::resume(config, &prompt, &whole[..cut]).unwrap();
        prop_assert_eq!(resumed.draws(), cut as u64);
        prop_assert_eq!(go(resumed, 24 - cut), &whole[cut..]);
    }

    #[test]
    fn stops_do_not_depend_on_the_pieces(
        stops in prop::collection::vec("[abé🙂]{1,4}", 0..4),
        pieces in prop::collection::vec("[abé🙂]{0,3}", 0..20),
    ) {
        let text = pieces.concat();
        let (before, stop) = naive_stop(&stops, &text);
        let mut matcher = StopMatcher::new(&stops).unwrap();
        let mut out = String::new();
        let mut given = String::new();
        let mut hit = None;
        for piece in &pieces {
            given.push_str(piece);
            let Stopped { text, stop } = matcher.push(piece);
            out.push_str(&text);
            hit = stop;
            if hit.is_some() {
                break;
            }
            // Exactly as much is held back as a stop could still begin with.
            let may_stop = |from: &usize| given.is_char_boundary(*from)
                && stops.iter().any(|s| s.len() > given.len() - from && s.starts_with(&given[*from..]));
            prop_assert_eq!(out.len(), (0..given.len()).find(may_stop).unwrap_or(given.len()));
        }
        if hit.is_none() {
            out.push_str(&matcher.finish());
        }
        prop_assert_eq!((out, hit), (before, stop));
    }
}

/// Times for people: `cargo test --release -p quelea-engine --lib sampler::tests::times -- --ignored --nocapture`.
#[test]
#[ignore = "prints times, checks nothing"]
fn times() {
    // As with words: the nth most likely token is n to the power of -1.2 as likely as the first.
    let zipf = |i: u32| -1.2 * (1.0 + (i.wrapping_mul(2_654_435_761) % 151_937) as f32).ln();
    let peaked: Vec<f32> = (0..151_936).map(zipf).collect();
    let flat: Vec<f32> = logits_of(151_936).iter().map(|l| l * 0.1).collect();
    let plain = |top_k, top_p| config(0.8, top_k, top_p, 0);
    let all = SamplerConfig { repeat_penalty: 1.1, min_p: 0.05, ..plain(40, 0.95) };
    let cases = [
        ("greedy", config(0.0, 0, 1.0, 0)),
        ("top-k 40", plain(40, 1.0)),
        ("top-k 40, top-p, min-p, penalty", all),
        ("top-p 0.9", plain(0, 0.9)),
        ("no cut", plain(0, 1.0)),
    ];
    for (name, config) in cases {
        for (shape, logits) in [("peaked", &peaked), ("flat", &flat)] {
            let mut sampler = Sampler::new(config.clone(), &[1, 2, 3]).unwrap();
            let start = std::time::Instant::now();
            (0..50).for_each(|_| assert!(sampler.sample(logits).is_ok()));
            println!("{name:<32} {shape:<7} {:>7.0} µs", start.elapsed().as_secs_f64() / 50.0 * 1e6);
        }
    }
    let start = std::time::Instant::now();
    (0..50).for_each(|_| assert!(log_prob(&peaked, 7, 20).is_ok()));
    println!("{:<40} {:>7.0} µs", "log-probability and 20 alternatives", start.elapsed().as_secs_f64() / 50.0 * 1e6);
}
