use super::*;

fn share(rows: &[u32], weights: &[f32]) -> Share {
    Share { rows: rows.to_vec(), weights: weights.to_vec() }
}

#[test]
fn equal_logits_go_to_the_lower_numbers() {
    let shares = route(&[1.0, 3.0, 3.0, 3.0, 0.0, -0.0, 0.0, -0.0], 4, 2);
    assert_eq!(
        shares,
        BTreeMap::from([(0, share(&[1], &[0.5])), (1, share(&[0, 1], &[0.5, 0.5])), (2, share(&[0], &[0.5]))])
    );
}

#[test]
fn weights_are_the_softmax_over_the_chosen() {
    let logits = [0.3f32, -1.0, 2.0, 0.9, 1.7];
    let shares = route(&logits, 5, 3);
    assert_eq!(shares.keys().copied().collect::<Vec<_>>(), [2, 3, 4]);
    let sum: f64 = [2.0f64, 0.9, 1.7].iter().map(|l| l.exp()).sum();
    for (expert, share) in shares {
        let exact = f64::from(logits[expert]).exp() / sum;
        assert!((f64::from(share.weights[0]) - exact).abs() < 1e-6, "{expert}: {share:?}");
    }
}

#[test]
fn a_row_is_routed_alike_in_any_company() {
    let logits: Vec<f32> = (0..24u32).map(|i| (i * 7919 % 101) as f32 / 17.0).collect();
    let together = route(&logits, 8, 3);
    for (row, alone) in logits.chunks(8).enumerate() {
        for (expert, alone) in route(alone, 8, 3) {
            let share = &together[&expert];
            let at = share.rows.iter().position(|r| *r as usize == row).unwrap();
            assert_eq!(share.weights[at].to_bits(), alone.weights[0].to_bits());
        }
    }
}

/// They show in what the stage hands out, and are refused there.
#[test]
fn numbers_that_are_none_are_passed_on() {
    let shares = route(&[f32::NAN, 1.0, f32::INFINITY], 3, 2);
    assert!(shares.values().all(|share| share.weights[0].is_nan()));
}
