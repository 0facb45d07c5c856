//! Stop strings.

use proptest::prelude::*;

use super::*;

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
