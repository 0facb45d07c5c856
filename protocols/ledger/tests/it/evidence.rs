//! Proofs: every lie is one, no honest history is.

use proptest::prelude::*;
use quelea_ledger::{
    Hash, Raw,
    evidence::{Kind, NoEvidence, check},
    message::{Note, SignedMessage},
};

use crate::samples::{network, note, peer, redeem, signed};

fn proof(a: &SignedMessage, b: &SignedMessage) -> Result<Kind, NoEvidence> {
    let one = check(&a.raw().0, &b.raw().0, &network());
    assert_eq!(one, check(&b.raw().0, &a.raw().0, &network()), "the order does not matter");
    if let Ok(offence) = &one {
        assert_eq!((offence.signer, offence.other), (peer(1), peer(2)));
    }
    one.map(|offence| offence.kind)
}

#[test]
fn two_steps_under_one_number_are_a_proof() {
    let one = signed(1, note(3, Hash::ZERO, 40, 40));
    let other = signed(1, note(3, Hash::ZERO, 41, 41));
    assert_eq!(proof(&one, &other), Ok(Kind::Equivocation));
    assert_eq!(
        proof(&signed(1, redeem(3, Hash::ZERO, 4, 4)), &signed(1, redeem(3, Hash::ZERO, 5, 5))),
        Ok(Kind::Equivocation)
    );
    assert_eq!(proof(&one, &one), Err(NoEvidence::Consistent));
}

#[test]
fn a_total_that_falls_and_a_step_that_does_not_add_up_are_proofs() {
    let one = signed(1, note(3, Hash::ZERO, 40, 40));
    assert_eq!(proof(&one, &signed(1, note(9, Hash([1; 32]), 39, 5))), Ok(Kind::Rollback));
    assert_eq!(proof(&one, &signed(1, note(9, one.id(), 50, 9))), Ok(Kind::Misstep));
    assert_eq!(proof(&one, &signed(1, note(9, one.id(), 50, 10))), Err(NoEvidence::Consistent));
    assert_eq!(proof(&one, &signed(1, note(9, one.id(), 30, u64::MAX))), Ok(Kind::Misstep), "nor do sums wrap");
}

#[test]
fn what_is_not_two_steps_of_one_counter_proves_nothing() {
    let one = signed(1, note(3, Hash::ZERO, 40, 40));
    for other in [
        signed(2, Note { creditor: peer(1), ..note(3, Hash::ZERO, 41, 41) }),
        signed(1, Note { creditor: peer(3), ..note(3, Hash::ZERO, 41, 41) }),
        signed(1, Note { unit: quelea_ledger::Unit(2), ..note(3, Hash::ZERO, 41, 41) }),
        signed(1, redeem(3, Hash::ZERO, 41, 41)),
        signed(1, crate::samples::all().swap_remove(10).1),
    ] {
        assert_eq!(proof(&one, &other), Err(NoEvidence::Unrelated));
    }
    let mut forged: Vec<u8> = signed(1, note(3, Hash::ZERO, 41, 41)).raw().0;
    *forged.last_mut().unwrap() ^= 1;
    assert!(matches!(check(&one.raw().0, &forged, &network()), Err(NoEvidence::Message(_))));
    assert!(check(&one.raw().0, &Raw(Vec::new()).0, &network()).is_err());
}

proptest! {
    /// Numbers with gaps, and steps of nothing.
    #[test]
    fn no_two_notes_of_an_honest_history_are_a_proof(steps in prop::collection::vec((1_u64..1000, 0_u64..1 << 50), 2..12)) {
        let (mut seq, mut prev, mut issued) = (0, Hash::ZERO, 0);
        let mut history = Vec::new();
        for (gap, delta) in steps {
            (seq, issued) = (seq + gap, issued + delta);
            let step = signed(1, note(seq, prev, issued, delta));
            prev = step.id();
            history.push(step);
        }
        for a in &history {
            for b in &history {
                prop_assert_eq!(proof(a, b), Err(NoEvidence::Consistent));
            }
        }
    }

    /// Of a history that branches, the two branches' first steps under one number convict.
    #[test]
    fn whoever_tells_two_stories_is_convicted(gap in 1_u64..1000, one in 0_u64..1 << 60, other in 0_u64..1 << 60) {
        prop_assume!(one != other);
        let root = signed(1, note(7, Hash::ZERO, 40, 40));
        let branch = |delta| signed(1, note(7 + gap, root.id(), 40 + delta, delta));
        prop_assert_eq!(proof(&branch(one), &branch(other)), Ok(Kind::Equivocation));
    }
}
