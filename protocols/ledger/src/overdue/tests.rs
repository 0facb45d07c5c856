//! The rule beside a list of all notes, and what a creditor does while time passes in any way.

use proptest::prelude::*;

use super::*;

const GRACE: u64 = 72 * 3600 * 1000;
const T: u64 = 1_790_000_000_000;

/// The rule as it is written, from every note.
fn exact(notes: &[(u64, u64)], now: u64, paid: u64) -> u64 {
    notes.iter().filter(|(_, due)| *due <= now).map(|(amount, _)| amount).sum::<u64>().saturating_sub(paid)
}

#[test]
fn what_is_due_first_is_paid_first() {
    let mut dues = Dues::default();
    dues.promised(5, T + 20);
    dues.promised(3, T + 10);
    assert_eq!((dues.overdue(T + 9, 0), dues.overdue(T + 10, 0), dues.overdue(T + 20, 0)), (0, 3, 8));
    assert_eq!((dues.overdue(T + 20, 3), dues.overdue(T + 20, 8), dues.overdue(T + 20, 9)), (5, 0, 0));
    assert_eq!((dues.next(T, 0), dues.next(T, 3), dues.next(T, 8)), (Some(T + 10), Some(T + 20), None));
    dues.redeemed(4);
    assert_eq!((dues.total(), dues.overdue(T + 20, 4)), (8, 4));
    // A redeem that this node has lost had discharged it.
    assert_eq!(dues.overdue(T + 20, 0), 5);
}

/// Cheap promises do not wash out old ones: were the oldest dates merged, the first hundred would be due with the last.
#[test]
fn a_peer_that_promises_every_minute_still_owes_what_was_due() {
    let (mut dues, term) = (Dues::default(), 14 * DAY_MS);
    let minutes = 60 * 24 * 60;
    for minute in 0..minutes {
        let now = T + minute * 60_000;
        dues.promised(1, due_date(now + term, now, Some(14)));
    }
    let now = T + minutes * 60_000;
    let exact = minutes - 14 * 24 * 60;
    let found = dues.overdue(now, 0);
    let late = (exact - found) / (24 * 60);
    assert!(found <= exact && late <= 2, "{found} of {exact}");
}

#[test]
fn a_date_that_is_no_date_is_one() {
    assert_eq!(due_date(u64::MAX, T, None), T + LONGEST_MS + SKEW_MS);
    assert_eq!(due_date(u64::MAX, T, Some(30)), T + 30 * DAY_MS + SKEW_MS);
    assert_eq!(due_date(T + 7, T, Some(30)), T + 7);
}

#[test]
fn notes_that_are_gone_are_due_when_all_that_was_signed_is() {
    let kept = |seq, issued, delta, due_at| Kept { seq, issued, delta, due_at };
    // 40 in notes that are not there any more, 10 in one, 5 in one that was lost, 20 in another.
    let dues = Dues::of_kept(vec![kept(T + 9, 75, 20, T + 60), kept(T, 50, 10, T + 50)], 75, 0);
    assert_eq!(
        (dues.total(), dues.overdue(T + 49, 0), dues.overdue(T + 50, 0), dues.overdue(T + 60, 0)),
        (75, 0, 10, 30)
    );
    assert_eq!((dues.overdue(T + LONGEST_MS, 0), dues.overdue(T + LONGEST_MS + 9, 0)), (70, 75));
    assert_eq!(Dues::of_kept(Vec::new(), 9, 9).overdue(u64::MAX - 1, 9), 0);
}

fn look(debt: &mut Debt, now: u64, seen: Seen) -> Option<Step> {
    let (step, _) = debt.step(now, seen, GRACE);
    *debt = Debt::decode(&debt.encode()).unwrap();
    step
}

fn owing(amount: u64, due: u64) -> Debt {
    let mut dues = Dues::default();
    dues.promised(amount, due);
    Debt::of(dues)
}

const LIVE: Seen = Seen { paid: 0, live: true, frozen: false };

#[test]
fn it_is_asked_waited_for_and_remembered() {
    let mut debt = owing(7, T);
    assert_eq!(look(&mut debt, T - 1, LIVE), None);
    assert_eq!(debt.next(T - 1, LIVE, GRACE), Some(T));
    assert_eq!(look(&mut debt, T, Seen { live: false, ..LIVE }), None);
    assert_eq!(look(&mut debt, T + 5, LIVE), Some(Step::Ask(7)));
    assert_eq!(look(&mut debt, T + 6, LIVE), None);
    // The line broke: nobody is in default for what he has not heard, and he is asked again.
    assert_eq!(look(&mut debt, T + 2 * GRACE, LIVE), Some(Step::Ask(7)));
    assert!(debt.taken(T + 2 * GRACE + 1) && !debt.taken(T + 2 * GRACE + 9));
    let asked = T + 2 * GRACE + 1;
    assert_eq!(look(&mut debt, asked + DAY_MS - 2, LIVE), None);
    assert_eq!(look(&mut debt, asked + DAY_MS, LIVE), Some(Step::Ask(7)));
    assert_eq!(look(&mut debt, asked + GRACE - 1, Seen { live: false, ..LIVE }), None);
    assert_eq!(look(&mut debt, asked + GRACE, LIVE), Some(Step::Default(7)));
    assert_eq!(debt.asked().defaulted, asked + GRACE);
    // A clock that goes back, or a part of it, pays nothing.
    assert_eq!(look(&mut debt, T - 5, LIVE), None);
    assert_eq!((debt.overdue(T - 5, 0), debt.overdue(T - 5, 6)), (7, 1));
    assert_eq!(look(&mut debt, asked + GRACE + 1, Seen { paid: 6, live: false, ..LIVE }), None);
    assert_eq!(look(&mut debt, asked + GRACE + 2, Seen { paid: 7, ..LIVE }), Some(Step::Settled));
    assert_eq!(look(&mut debt, asked + 9 * GRACE, Seen { paid: 7, ..LIVE }), None);
    assert_eq!(
        (debt.asked().defaulted, debt.asked().taken, debt.next(asked, Seen { paid: 7, ..LIVE }, GRACE)),
        (0, 0, None)
    );
}

#[test]
fn an_account_that_is_frozen_is_in_default_after_thirty_days() {
    let (mut debt, frozen) = (owing(7, T), Seen { paid: 0, live: false, frozen: true });
    assert_eq!(look(&mut debt, T + 1, frozen), None);
    assert_eq!(debt.next(T + 1, frozen, GRACE), Some(T + 1 + 30 * DAY_MS));
    assert_eq!(look(&mut debt, T + 30 * DAY_MS, frozen), None);
    assert_eq!(look(&mut debt, T + 1 + 30 * DAY_MS, frozen), Some(Step::Default(7)));
    // Whose account was thawed meanwhile begins anew.
    let mut debt = owing(7, T);
    assert_eq!(look(&mut debt, T + 1, frozen), None);
    assert_eq!(look(&mut debt, T + 2, Seen { live: false, ..LIVE }), None);
    assert_eq!(look(&mut debt, T + 1 + 30 * DAY_MS, frozen), None);
}

#[test]
fn bytes_that_are_no_debt_are_an_error() {
    let mut debt = owing(7, T);
    debt.dues.promised(1, T + 5);
    let bytes = debt.encode();
    assert_eq!(Debt::decode(&bytes), Ok(debt));
    assert!((0..bytes.len()).all(|len| Debt::decode(&bytes[..len]).is_err()));
    assert!(Debt::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
    let mut turned = bytes;
    // The first part's dates: the earliest after the latest.
    turned[9] = turned[9].wrapping_add(1);
    assert!(Debt::decode(&turned).is_err());
}

/// What happens to a debt.
#[derive(Debug, Clone)]
enum Happens {
    Promised(u64, u64),
    Redeemed(u64),
    SetOff(u64),
    Passed(u64),
    Back(u64),
    Taken,
    Line(bool),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (1_u64..100, 0_u64..40 * DAY_MS).prop_map(|(amount, term)| Happens::Promised(amount, term)),
        2 => (0_u64..200).prop_map(Happens::Redeemed),
        1 => (0_u64..100).prop_map(Happens::SetOff),
        4 => (0_u64..3 * DAY_MS).prop_map(Happens::Passed),
        1 => (0_u64..3 * DAY_MS).prop_map(Happens::Back),
        2 => Just(Happens::Taken),
        1 => any::<bool>().prop_map(Happens::Line),
    ]
}

proptest! {
    /// Never more than the rule from every note, and all of it a little later.
    #[test]
    fn the_rule_never_accuses_and_always_finds(
        notes in proptest::collection::vec((1_u64..1000, 0_u64..30 * DAY_MS), 1..300),
        paid in 0_u64..100_000,
        at in 0_u64..31 * DAY_MS,
    ) {
        let (mut dues, mut seen) = (Dues::default(), Vec::new());
        for (amount, term) in notes {
            dues.promised(amount, T + term);
            seen.push((amount, T + term));
        }
        prop_assert!(dues.parts.len() <= MAX_PARTS);
        let total: u64 = seen.iter().map(|(amount, _)| amount).sum();
        prop_assert_eq!(dues.total(), total);
        let paid = paid.min(total);
        let found = dues.overdue(T + at, paid);
        prop_assert!(found <= exact(&seen, T + at, paid));
        prop_assert!(dues.overdue(T + at + 30 * DAY_MS / 32, paid) >= exact(&seen, T + at, paid));
        // To forget what is discharged changes nothing.
        let mut short = dues.clone();
        short.redeemed(paid);
        prop_assert_eq!((short.overdue(T + at, paid), short.total()), (found, total));
        prop_assert_eq!(short.next(T + at, paid), dues.next(T + at, paid));
        let kept = Debt::of(short.clone());
        prop_assert_eq!(Debt::decode(&kept.encode()), Ok(kept));
    }

    /// From what is kept of a counter as much can be said as is certain.
    #[test]
    fn what_is_kept_never_accuses(
        notes in proptest::collection::vec((1_u64..1000, 0_u64..LONGEST_MS, any::<bool>()), 1..100),
        at in 0_u64..2 * LONGEST_MS,
    ) {
        let (mut issued, mut all, mut kept) = (0, Vec::new(), Vec::new());
        for (n, (delta, term, lost)) in (0_u64..).zip(notes) {
            issued += delta;
            let (seq, due_at) = (T + n * 1000, T + n * 1000 + term);
            all.push((delta, due_at));
            if !lost {
                kept.push(Kept { seq, issued, delta, due_at });
            }
        }
        let newest = kept.split_off(kept.len().saturating_sub(64));
        let dues = Dues::of_kept(newest, issued, 0);
        prop_assert_eq!(dues.total(), issued);
        prop_assert!(dues.overdue(T + at, 0) <= exact(&all, T + at, 0));
    }

    /// Whatever happens when: nobody is in default who was not asked, and had not the whole grace on this node's clock; who was
    /// asked is not asked again within a day; a default ends when, and only when, nothing is overdue; and it is looked at in time.
    #[test]
    fn nobody_is_in_default_who_was_not_asked(happened in proptest::collection::vec(happens(), 0..120)) {
        let (mut debt, mut now, mut live) = (Debt::default(), T, true);
        let (mut redeemed, mut reverse) = (0_u64, 0_u64);
        let (mut taken, mut in_default) = (None, false);
        for what in happened {
            match what {
                Happens::Promised(amount, term) => debt.dues.promised(amount, now + term),
                Happens::Redeemed(amount) => {
                    redeemed = (redeemed + amount).min(debt.dues.total());
                    debt.dues.redeemed(redeemed);
                }
                Happens::SetOff(amount) => reverse = amount,
                Happens::Passed(time) => now += time,
                Happens::Back(time) => now -= time,
                Happens::Taken => {
                    if debt.taken(now) {
                        taken = Some(now);
                    }
                }
                Happens::Line(stands) => live = stands,
            }
            let seen = Seen { paid: redeemed + reverse, live, frozen: false };
            let before = debt.asked();
            for _ in 0..3 {
                let next = debt.next(now, seen, GRACE);
                let untouched = debt.clone();
                match look(&mut debt, now, seen) {
                    Some(Step::Default(amount)) => {
                        prop_assert!(!in_default && amount > 0);
                        prop_assert!(taken.is_some_and(|at| now >= at + GRACE));
                        in_default = true;
                    }
                    Some(Step::Settled) => {
                        prop_assert!(in_default && debt.overdue(now, seen.paid) == 0);
                        in_default = false;
                    }
                    Some(Step::Ask(amount)) => {
                        prop_assert!(live && amount > 0);
                        prop_assert!(before.taken == 0 || now >= before.at + DAY_MS);
                    }
                    None => {
                        // Until it is to be looked at again there is nothing to do.
                        let mut later = untouched;
                        let until = next.map_or(now + LONGEST_MS, |at| at - 1);
                        prop_assert_eq!(later.step(until, seen, GRACE).0, None);
                    }
                }
                if debt.overdue(now, seen.paid) == 0 {
                    taken = None;
                }
            }
            prop_assert_eq!(in_default, debt.asked().defaulted > 0);
        }
    }
}
