//! Choosing who runs which layers: a pure function over what peers announce.
//!
//! A chain covers layers `0..n` without gaps, each peer used once. Among all chains the one
//! with the fewest hops wins, because every hop costs a round trip per token; among those, the one with the lowest sum
//! of measured round trips. A peer may be entered and left inside its span.

use std::{collections::BTreeMap, fmt, time::Duration};

use libp2p::{Multiaddr, PeerId};
use quelea_wire::SpanRange;

/// Assumed for a peer that ping has not measured yet: pessimistic, so that a measured peer is preferred.
const UNKNOWN_RTT: Duration = Duration::from_millis(200);

/// A peer that offers layers of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) peer: PeerId,
    pub(crate) span: SpanRange,
    pub(crate) rtt: Option<Duration>,
    pub(crate) addrs: Vec<Multiaddr>,
}

/// One stage of a chosen chain: `peer` runs exactly `span`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) peer: PeerId,
    pub(crate) span: SpanRange,
    pub(crate) rtt: Option<Duration>,
    pub(crate) addrs: Vec<Multiaddr>,
}

/// Why there is no chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NoChain {
    /// Layers of the model.
    pub(crate) layers: u16,
    /// Layers that nobody counted holds; empty when only the combination fails.
    pub(crate) missing: Vec<SpanRange>,
    /// Who was counted, with what.
    pub(crate) counted: Vec<(PeerId, SpanRange)>,
    /// Who was left out, and why.
    pub(crate) left_out: Vec<(PeerId, String)>,
}

impl fmt::Display for NoChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |spans: &[SpanRange]| spans.iter().map(SpanRange::to_string).collect::<Vec<_>>().join(", ");
        if self.missing.is_empty() {
            write!(f, "no chain covers layers 0..{} without using a peer twice", self.layers)?;
        } else {
            write!(f, "no chain covers layers 0..{}: short of layers {}", self.layers, list(&self.missing))?;
        }
        if self.counted.is_empty() {
            f.write_str("; no peer offers any layer of this model")?;
        } else {
            let counted: Vec<_> = self.counted.iter().map(|(peer, span)| format!("{peer} ({span})")).collect();
            write!(f, "; peers counted: {}", counted.join(", "))?;
        }
        if !self.left_out.is_empty() {
            let out: Vec<_> = self.left_out.iter().map(|(peer, why)| format!("{peer} ({why})")).collect();
            write!(f, "; left out: {}", out.join(", "))?;
        }
        Ok(())
    }
}

impl std::error::Error for NoChain {}

/// A chain under construction: reaches up to some boundary.
struct Partial {
    hops: Vec<Hop>,
    cost: Duration,
}

/// The best chain over `0..layers`. The candidates compute alike: see [`super::discover`].
///
/// # Errors
/// [`NoChain`] says what is missing; `left_out` is handed through into it.
pub(crate) fn choose(
    layers: u16,
    candidates: &[Candidate],
    left_out: Vec<(PeerId, String)>,
) -> Result<Vec<Hop>, NoChain> {
    let best = shortest(layers, candidates);
    best.map(|partial| partial.hops).ok_or_else(|| NoChain {
        layers,
        missing: uncovered(layers, candidates),
        counted: candidates.iter().map(|c| (c.peer, c.span)).collect(),
        left_out,
    })
}

/// The best chain over the layers of `span` alone.
///
/// # Errors
/// As [`choose`].
pub(crate) fn choose_within(
    span: SpanRange,
    candidates: &[Candidate],
    left_out: Vec<(PeerId, String)>,
) -> Result<Vec<Hop>, NoChain> {
    let start = span.start();
    let shifted = |range: SpanRange, by: fn(u16, u16) -> u16| {
        SpanRange::new(by(range.start(), start), by(range.end(), start)).ok()
    };
    let clipped: Vec<Candidate> = candidates
        .iter()
        .filter_map(|c| {
            let within = SpanRange::new(c.span.start().max(start), c.span.end().min(span.end())).ok()?;
            Some(Candidate { span: shifted(within, u16::wrapping_sub)?, ..c.clone() })
        })
        .collect();
    let back = |range: SpanRange| shifted(range, u16::wrapping_add);
    match choose(span.end() - start, &clipped, left_out) {
        Ok(hops) => Ok(hops.into_iter().filter_map(|hop| Some(Hop { span: back(hop.span)?, ..hop })).collect()),
        Err(none) => Err(NoChain {
            missing: none.missing.into_iter().filter_map(back).collect(),
            counted: none.counted.into_iter().filter_map(|(peer, range)| Some((peer, back(range)?))).collect(),
            ..none
        }),
    }
}

/// Shortest path over boundaries. Leaving a span before its end never saves a hop, so each hop runs to its span's end;
/// the boundaries reached are then ends of spans, and looking at them in rising order sees each once.
fn shortest(layers: u16, candidates: &[Candidate]) -> Option<Partial> {
    let mut reached = BTreeMap::from([(0_u16, Partial { hops: Vec::new(), cost: Duration::ZERO })]);
    while let Some((boundary, partial)) = reached.pop_first() {
        if boundary >= layers {
            return Some(partial);
        }
        for candidate in candidates.iter().filter(|c| c.span.contains(boundary)) {
            let end = candidate.span.end().min(layers);
            let (Ok(span), false) =
                (SpanRange::new(boundary, end), partial.hops.iter().any(|hop| hop.peer == candidate.peer))
            else {
                continue;
            };
            let cost = partial.cost + candidate.rtt.unwrap_or(UNKNOWN_RTT);
            let better = |known: &Partial| (partial.hops.len() + 1, cost) < (known.hops.len(), known.cost);
            if !reached.get(&end).is_none_or(better) {
                continue;
            }
            let mut next = Partial { hops: partial.hops.clone(), cost };
            next.hops.push(Hop { peer: candidate.peer, span, rtt: candidate.rtt, addrs: candidate.addrs.clone() });
            reached.insert(end, next);
        }
    }
    None
}

/// The layers of `0..layers` that no candidate holds, as ranges.
pub(crate) fn uncovered(layers: u16, candidates: &[Candidate]) -> Vec<SpanRange> {
    let mut missing = Vec::new();
    let mut start = None;
    for layer in 0..=layers {
        let open = layer < layers && !candidates.iter().any(|c| c.span.contains(layer));
        match (open, start) {
            (true, None) => start = Some(layer),
            (false, Some(from)) => {
                missing.extend(SpanRange::new(from, layer));
                start = None;
            }
            _ => {}
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerId {
        libp2p::identity::Keypair::ed25519_from_bytes([n; 32]).unwrap().public().to_peer_id()
    }

    fn candidate(n: u8, span: &str, rtt_ms: u64) -> Candidate {
        Candidate {
            peer: peer(n),
            span: span.parse().unwrap(),
            rtt: Some(Duration::from_millis(rtt_ms)),
            addrs: Vec::new(),
        }
    }

    fn route(hops: &[Hop]) -> Vec<(PeerId, String)> {
        hops.iter().map(|hop| (hop.peer, hop.span.to_string())).collect()
    }

    #[test]
    fn fewest_hops_win_over_round_trips() {
        let all = [candidate(1, "0..2", 1), candidate(2, "2..4", 1), candidate(3, "0..4", 90)];
        assert_eq!(route(&choose(4, &all, vec![]).unwrap()), [(peer(3), "0..4".into())]);
    }

    #[test]
    fn equal_hops_are_decided_by_round_trip() {
        let all = [candidate(1, "0..2", 9), candidate(2, "2..4", 9), candidate(3, "0..2", 2), candidate(4, "2..4", 30)];
        assert_eq!(route(&choose(4, &all, vec![]).unwrap()), [(peer(3), "0..2".into()), (peer(2), "2..4".into())]);
    }

    #[test]
    fn spans_are_entered_and_left_inside() {
        let all = [candidate(1, "0..3", 1), candidate(2, "1..9", 1)];
        assert_eq!(route(&choose(6, &all, vec![]).unwrap()), [(peer(1), "0..3".into()), (peer(2), "3..6".into())]);
    }

    #[test]
    fn a_part_of_the_layers_is_chosen_for_alike() {
        let all = [candidate(1, "0..3", 1), candidate(2, "2..9", 1), candidate(3, "5..12", 1)];
        let hops = choose_within("4..11".parse().unwrap(), &all, vec![]).unwrap();
        assert_eq!(route(&hops), [(peer(2), "4..9".into()), (peer(3), "9..11".into())]);
        let none = choose_within("8..14".parse().unwrap(), &all, vec![]).unwrap_err();
        assert_eq!(none.missing.iter().map(SpanRange::to_string).collect::<Vec<_>>(), ["12..14"]);
        assert_eq!(none.counted, [(peer(2), "8..9".parse().unwrap()), (peer(3), "8..12".parse().unwrap())]);
    }

    #[test]
    fn what_is_missing_and_who_was_counted_is_named() {
        let all = [candidate(1, "0..2", 1), candidate(2, "3..4", 1)];
        let error = choose(6, &all, vec![(peer(3), "draining".into())]).unwrap_err();
        assert_eq!(error.missing.iter().map(SpanRange::to_string).collect::<Vec<_>>(), ["2..3", "4..6"]);
        let text = error.to_string();
        for part in ["2..3, 4..6", &peer(1).to_string(), &peer(2).to_string(), &peer(3).to_string(), "draining"] {
            assert!(text.contains(part), "{part} not in {text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_chain_is_gapless_and_uses_each_peer_once(spans in proptest::collection::vec((0_u16..12, 1_u16..12, 0_u64..50), 0..12)) {
            let all: Vec<Candidate> = spans.iter().enumerate().map(|(i, (start, len, rtt))| {
                candidate(u8::try_from(i).unwrap() + 1, &format!("{start}..{}", start + len), *rtt)
            }).collect();
            match choose(12, &all, vec![]) {
                Ok(hops) => {
                    let mut at = 0;
                    for hop in &hops {
                        proptest::prop_assert_eq!(hop.span.start(), at);
                        proptest::prop_assert!(all.iter().any(|c| c.peer == hop.peer && c.span.covers(&hop.span)));
                        at = hop.span.end();
                    }
                    proptest::prop_assert_eq!(at, 12);
                    let mut peers: Vec<_> = hops.iter().map(|h| h.peer).collect();
                    peers.sort();
                    peers.dedup();
                    proptest::prop_assert_eq!(peers.len(), hops.len());
                }
                Err(error) => proptest::prop_assert!(!error.missing.is_empty()),
            }
        }
    }
}
