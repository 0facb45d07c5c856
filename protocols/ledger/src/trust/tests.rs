use proptest::prelude::*;

use super::{fixed::faded, *};
use crate::DecodeError;

const NOW: u64 = 20_833 * DAY_MS;

fn policy() -> Policy {
    Policy { base: 1_000_000, most: 100_000_000 }
}

/// A peer that has paid so much on each of so many days, and the time then.
fn customer(days: u64, amount: u64) -> (Row, u64) {
    let mut row = Row::default();
    for day in 0..days {
        row.deal(Dealing::Redeemed { amount }, &policy(), NOW + day * DAY_MS);
    }
    (row, NOW + days * DAY_MS)
}

#[test]
fn a_stranger_has_nothing_but_the_base() {
    let row = Row::default();
    assert_eq!((row.commerce(NOW), row.limit(&policy(), NOW), row.proven(&policy())), (0, 1_000_000, false));
}

#[test]
fn gains_shrink_near_the_end_and_weigh_by_amount() {
    let mut row = Row::default();
    row.deal(Dealing::Transfer { amount: 1_000_000 }, &policy(), NOW);
    assert_eq!(row.commerce, 10_000);
    row.deal(Dealing::Transfer { amount: 500_000 }, &policy(), NOW);
    assert_eq!(row.commerce, 10_000 + 10_000 * 890 / 900 / 2, "half the limit, half the step");
    let mut small = Row::default();
    (0..1000).for_each(|_| small.deal(Dealing::Transfer { amount: 1 }, &policy(), NOW));
    assert_eq!(small.commerce, 0, "a thousand millionths of a credit are worth nothing");
    let mut rich = Row::default();
    (0..10_000).for_each(|_| rich.deal(Dealing::Redeemed { amount: u64::MAX }, &policy(), NOW));
    assert!((MOST - 100..=MOST).contains(&rich.commerce), "{}", rich.commerce);
}

#[test]
fn failures_escalate_within_a_day_and_a_cut_line_is_a_fifth() {
    let failed = |proven| Dealing::Failed { amount: 1_000_000, proven };
    let mut row = Row::default();
    let mut steps = Vec::new();
    for _ in 0..7 {
        let before = row.commerce;
        row.deal(failed(false), &policy(), NOW);
        steps.push(before - row.commerce);
    }
    assert_eq!(steps, [10_000, 20_000, 40_000, 80_000, 160_000, 160_000, 160_000]);
    let mut proven = Row::default();
    proven.deal(failed(true), &policy(), NOW);
    assert_eq!(proven.commerce, -50_000);
    let mut slow = Row::default();
    slow.deal(failed(true), &policy(), NOW);
    slow.deal(failed(true), &policy(), NOW + DAY_MS);
    assert!(slow.commerce > -100_000, "a day later it is the first again, and some has faded: {}", slow.commerce);
    let mut small = Row::default();
    small.deal(Dealing::Failed { amount: 10_000, proven: false }, &policy(), NOW);
    assert_eq!(small.commerce, -100, "a hundredth of the limit, a hundredth of the step");
    let mut large = Row::default();
    large.deal(Dealing::Failed { amount: 3_000_000, proven: true }, &policy(), NOW);
    assert_eq!(large.commerce, -150_000, "three times the limit, three times the step");
}

#[test]
fn credit_grows_a_quarter_a_day_after_seven_days() {
    let (row, now) = customer(6, 50_000_000);
    assert_eq!((row.limit(&policy(), now), row.proven(&policy())), (1_000_000, false));
    let (row, now) = customer(7, 50_000_000);
    assert_eq!((row.limit(&policy(), now), row.proven(&policy())), (1_250_000, true));
    let (row, now) = customer(9, 50_000_000);
    assert_eq!(row.limit(&policy(), now), 1_953_125);
    let mut again = row;
    (0..100).for_each(|_| again.deal(Dealing::Redeemed { amount: 50_000_000 }, &policy(), now - 1));
    assert_eq!(again.limit(&policy(), now), 1_953_125, "once a day, however often it pays");
    let (row, now) = customer(100, 50_000_000);
    assert_eq!(row.limit(&policy(), now), 100_000_000, "nobody may owe more");
    let (row, now) = customer(30, 100);
    assert_eq!(
        (row.limit(&policy(), now), row.proven(&policy())),
        (1_001_500, false),
        "by half of what was repaid at most"
    );
}

#[test]
fn a_default_takes_all_and_is_long_remembered() {
    let (mut row, now) = customer(60, 10_000_000);
    assert!(row.commerce > 300_000, "{}", row.commerce);
    let limit = row.limit(&policy(), now);
    row.deal(Dealing::Defaulted { overdue: 2 * limit }, &policy(), now);
    assert_eq!((row.commerce, row.limit(&policy(), now)), (-200_000, 0));
    let year = now + 365 * DAY_MS;
    assert_eq!((row.commerce(year), row.limit(&policy(), year)), (-200_000, 0), "time alone pays nothing");
    row.deal(Dealing::Redeemed { amount: limit }, &policy(), year);
    assert_eq!(row.commerce, -200_000, "nor does part of it");
    row.deal(Dealing::Settled, &policy(), year);
    assert_eq!(row.limit(&policy(), year + 29 * DAY_MS), 0);
    for day in 30..59 {
        (0..50).for_each(|_| row.deal(Dealing::Redeemed { amount: limit }, &policy(), year + day * DAY_MS));
        assert!(row.commerce(year + day * DAY_MS) <= MOST_AFTER_DEFAULT);
    }
    assert!(row.limit(&policy(), year + 59 * DAY_MS) > 0);
    row.deal(Dealing::Redeemed { amount: limit }, &policy(), year + 61 * DAY_MS);
    assert!(row.commerce > MOST_AFTER_DEFAULT, "{}", row.commerce);
}

#[test]
fn evidence_is_for_good() {
    let (mut row, now) = customer(60, 10_000_000);
    row.deal(Dealing::Evidence, &policy(), now);
    for dealing in [Dealing::Redeemed { amount: u64::MAX }, Dealing::Transfer { amount: u64::MAX }, Dealing::Settled] {
        row.deal(dealing, &policy(), now + 1000 * DAY_MS);
    }
    let later = now + 10_000 * DAY_MS;
    assert_eq!((row.commerce(later), row.limit(&policy(), later)), (LEAST, 0));
}

#[test]
fn good_fades_without_dealings_and_bad_with_time() {
    let (row, now) = customer(60, 10_000_000);
    let last = now - DAY_MS;
    let half = row.commerce(last + GOOD_HALF_LIFE_MS);
    assert!((row.commerce / 2 - 1..=row.commerce / 2).contains(&half), "{half} of {}", row.commerce);
    let mut bad = Row::default();
    bad.deal(Dealing::Failed { amount: 1, proven: true }, &policy(), NOW);
    assert_eq!(bad.commerce(NOW + BAD_HALF_LIFE_MS), -25_000);
    assert_eq!(bad.commerce(u64::MAX), 0);
    // Asking often does not keep it from fading.
    let mut busy = bad;
    for hour in 0..7 * 24 {
        busy.deal(Dealing::Transfer { amount: 0 }, &policy(), NOW + hour * 3_600_000);
    }
    assert!((-26_500..=-24_900).contains(&busy.commerce(NOW + BAD_HALF_LIFE_MS)), "{}", busy.commerce);
}

#[test]
fn losses_are_remembered_for_thirty_days() {
    let mut losses = Losses::default();
    for day in 0..100 {
        losses.add(NOW + day * DAY_MS, 1);
        losses.add(NOW + day * DAY_MS + 1, 1);
        assert_eq!(losses.sum(NOW + day * DAY_MS), 2 * (day + 1).min(31));
    }
    losses.add(NOW, u64::MAX);
    assert_eq!(losses.sum(NOW + 99 * DAY_MS), u64::MAX, "a clock that went back counts as the last day");
    assert!(losses.days.len() <= 31);
    assert_eq!(losses.sum(u64::MAX), 0);
}

#[test]
fn halves_are_halves() {
    assert_eq!(faded(1_000_000, 16), 500_000);
    assert_eq!(faded(-1_000_000, 32), -250_000);
    assert_eq!(faded(i32::MIN, 0), i32::MIN);
    assert_eq!(faded(i32::MAX, u64::MAX), 0);
    for step in 0..200 {
        assert!(faded(1_000_000, step + 1) <= faded(1_000_000, step));
        let exact = 1e6 * 0.5_f64.powf(step as f64 / 16.0);
        assert!((f64::from(faded(1_000_000, step)) - exact).abs() < 2.0, "{step}");
    }
}

#[test]
fn the_operator_decides_unless_there_is_evidence() {
    let policy = Policy::default();
    let mut row = Row { granted: Some(5), ..Row::default() };
    assert_eq!(row.limit(&policy, 0), 5);
    row.deal(Dealing::Defaulted { overdue: 1 }, &policy, 0);
    assert_eq!(row.limit(&policy, 0), 5);
    row.deal(Dealing::Evidence, &policy, 0);
    assert_eq!(row.limit(&policy, 0), 0);
}

#[test]
fn a_row_has_one_form() {
    let row = Row {
        commerce: -3,
        at: 1,
        repaid: 2,
        days: 4,
        last_day: 5,
        limit: 6,
        limit_day: 7,
        failures: 8,
        failed_at: 9,
        overdue: 10,
        default_until: u64::MAX,
        convicted: true,
        granted: Some(11),
    };
    let bytes = row.encode();
    assert_eq!(
        hex::encode(&bytes),
        "fdffffff010000000000000002000000000000000400000005000000000000000600000000000000070000000000000008000000\
         09000000000000000a00000000000000ffffffffffffffff01010b00000000000000"
    );
    assert_eq!(Row::decode(&bytes), Ok(row));
    assert_eq!(Row::decode(&bytes[..bytes.len() - 1]), Err(DecodeError::Short));
    assert_eq!(Row::decode(&[bytes.as_slice(), &[0]].concat()), Err(DecodeError::Long));
    let mut neither = bytes.clone();
    let yes = bytes.len() - 10;
    neither[yes] = 2;
    assert_eq!(Row::decode(&neither), Err(DecodeError::Field("yes or no")));
    let beyond = Row { commerce: MOST + 1, ..row };
    assert_eq!(Row::decode(&beyond.encode()), Err(DecodeError::Field("commerce")));
}

#[test]
fn losses_have_one_form() {
    let mut losses = Losses::default();
    assert_eq!(losses.encode(), [0]);
    for day in 0..40 {
        losses.add(NOW + day * DAY_MS, day + 1);
        assert_eq!(Losses::decode(&losses.encode()), Ok(losses.clone()));
    }
    let bytes = losses.encode();
    assert_eq!(bytes.len(), 1 + 31 * 16);
    assert_eq!(Losses::decode(&bytes[1..]), Err(DecodeError::Field("list")), "more days than there can be");
    let again = [&[2][..], &bytes[1..17], &bytes[1..17]].concat();
    assert_eq!(Losses::decode(&again), Err(DecodeError::Field("day")));
    assert_eq!(Losses::decode(&[1]), Err(DecodeError::Short));
    assert_eq!(Losses::decode(&[0, 0]), Err(DecodeError::Long));
}

fn dealing() -> impl Strategy<Value = Dealing> {
    let amount = || prop_oneof![0_u64..10_000_000, any::<u64>()];
    prop_oneof![
        amount().prop_map(|amount| Dealing::Transfer { amount }),
        amount().prop_map(|amount| Dealing::Redeemed { amount }),
        (amount(), any::<bool>()).prop_map(|(amount, proven)| Dealing::Failed { amount, proven }),
        amount().prop_map(|overdue| Dealing::Defaulted { overdue }),
        Just(Dealing::Settled),
    ]
}

proptest! {
    #[test]
    fn what_is_damaged_is_an_error_or_another_row(
        fields in prop::collection::vec(any::<u64>(), 0..=31),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut row = Row { repaid: fields.len() as u64, ..Row::default() };
        row.at = fields.iter().copied().fold(0, u64::wrapping_add);
        let mut losses = Losses::default();
        losses.days.extend(fields.iter().enumerate().map(|(day, lost)| (day as u64, *lost)));
        let (mut of_row, mut of_losses) = (row.encode(), losses.encode());
        prop_assert_eq!(Row::decode(&of_row), Ok(row));
        prop_assert_eq!(Losses::decode(&of_losses), Ok(losses));
        let (one, other) = (at.index(of_row.len()), at.index(of_losses.len()));
        (of_row[one], of_losses[other]) = (byte, byte);
        if let Ok(row) = Row::decode(&of_row) {
            prop_assert_eq!(row.encode(), of_row);
        }
        if let Ok(losses) = Losses::decode(&of_losses) {
            prop_assert_eq!(losses.encode(), of_losses);
        }
    }

    #[test]
    fn any_bytes_are_no_reason_to_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = (Row::decode(&bytes), Losses::decode(&bytes));
    }

    #[test]
    fn numbers_stay_within_their_bounds(
        dealings in prop::collection::vec((dealing(), prop_oneof![0_u64..40 * DAY_MS, any::<u64>()]), 0..60),
        base in 0_u64..=u64::MAX,
        most in any::<u64>(),
    ) {
        let policy = Policy { base, most };
        let (mut row, mut now) = (Row::default(), NOW);
        for (dealing, later) in dealings {
            now = now.saturating_add(later);
            let before = row.limit(&policy, now);
            row.deal(dealing, &policy, now);
            prop_assert!((LEAST..=MOST).contains(&row.commerce));
            prop_assert!((LEAST..=MOST).contains(&row.commerce(now)));
            let after = row.limit(&policy, now);
            prop_assert!(after <= most.max(base));
            prop_assert!(after <= before.max(base).saturating_add(before.max(base) / 4), "{before} to {after}");
            if row.commerce(now) < 0 || row.overdue > 0 {
                prop_assert_eq!(after, 0);
            }
            prop_assert_eq!(Row::decode(&row.encode()), Ok(row));
        }
    }
}
