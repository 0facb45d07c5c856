//! What several peers answer for one key, and which of it is believed.
//!
//! | namespace | best is | enough is |
//! |---|---|---|
//! | signed | the highest sequence number; whoever lies can only be silent or late | as many valid answers as the quorum |
//! | open | what most of the 20 closest holders gave; then what expires last | as many holders that agree as the quorum |
//!
//! Only the holders closest to the key have a say in an open value: a lookup also meets others, and liars, who send it on to
//! each other, it meets more than their share.

use std::{cmp::Reverse, time::Instant};

use libp2p::{
    PeerId,
    kad::{KBucketKey, Record, RecordKey},
};
use quelea_wire::NetworkId;

use crate::store::{Refusal, StoreLimits, value};

/// Distinct values kept of one lookup. A lookup asks the 20 closest peers and some on the way; the rest of a crowd that
/// answers with something else each time is not worth keeping.
pub const MAX_CHOICES: usize = 32;

/// Holders noted of one value: the same number, for the same reason.
const MAX_HOLDERS: usize = 64;

/// Valid answers after which a lookup of a signed value ends: a single one could be an old value that is sent again.
pub const SIGNED_QUORUM: usize = 3;

/// Holders that must agree before a lookup of an open value ends early: never, because those who are asked first may be
/// liars who know each other.
pub const OPEN_QUORUM: usize = usize::MAX;

/// One value, and who holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The value.
    pub value: Vec<u8>,
    /// Who answered with it; `None` is this node itself.
    pub holders: Vec<Option<PeerId>>,
    /// The latest time at which a holder says that it drops the value.
    pub expires: Option<Instant>,
    /// Its place among the signer's values, where it is signed.
    pub sequence: Option<u64>,
}

/// The answers of one lookup so far.
#[derive(Debug, Clone)]
pub struct Answers {
    rules: value::Rules,
    key: Option<RecordKey>,
    choices: Vec<Choice>,
    invalid: usize,
}

impl Answers {
    /// None yet. Values are judged by the rules by which a store of `network` with these limits holds them.
    #[must_use]
    pub fn new(network: NetworkId, limits: &StoreLimits) -> Self {
        Self { rules: value::Rules::new(network, limits), key: None, choices: Vec::new(), invalid: 0 }
    }

    /// Takes an answer of `holder`, if it is valid at `now_ms` (Unix).
    ///
    /// # Errors
    /// Says why it is not counted.
    pub fn add(&mut self, holder: Option<PeerId>, record: Record, now_ms: u64) -> Result<(), Refusal> {
        let judged = self.rules.judge(record.key.as_ref(), &record.value, now_ms);
        self.key.get_or_insert_with(|| record.key.clone());
        let standing = judged.inspect_err(|_| self.invalid = self.invalid.saturating_add(1))?;
        if let Some(known) = self.choices.iter_mut().find(|choice| choice.value == record.value) {
            if known.holders.len() < MAX_HOLDERS && !known.holders.contains(&holder) {
                known.holders.push(holder);
                known.expires = known.expires.max(record.expires);
            }
        } else {
            let sequence = standing.sequence;
            self.choices.push(Choice { value: record.value, holders: vec![holder], expires: record.expires, sequence });
            if self.choices.len() > MAX_CHOICES {
                self.sort();
                self.choices.truncate(MAX_CHOICES);
            }
        }
        Ok(())
    }

    /// Whether a lookup may end here. A `quorum` of zero is met by one answer.
    #[must_use]
    pub fn enough(&self, quorum: usize) -> bool {
        let quorum = quorum.max(1);
        let signed = self.choices.first().is_some_and(|choice| choice.sequence.is_some());
        let holders = self.choices.iter().map(|choice| choice.holders.len());
        if signed { holders.sum::<usize>() >= quorum } else { holders.max().unwrap_or_default() >= quorum }
    }

    /// Answers that were not valid.
    #[must_use]
    pub fn invalid(&self) -> usize {
        self.invalid
    }

    /// Whether there is no valid answer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// The values, best first.
    #[must_use]
    pub fn ranked(mut self) -> Vec<Choice> {
        self.sort();
        self.choices
    }

    /// Those of the holders that are closest to the key; this node, whose own answer costs nobody anything, among them.
    fn voters(&self) -> Vec<Option<PeerId>> {
        let Some(key) = self.key.clone().map(KBucketKey::new) else { return Vec::new() };
        let mut holders: Vec<Option<PeerId>> = self.choices.iter().flat_map(|choice| choice.holders.clone()).collect();
        holders.sort_by_cached_key(|holder| holder.map(|peer| KBucketKey::from(peer).distance(&key)));
        holders.dedup();
        holders.truncate(super::K.get());
        holders
    }

    fn sort(&mut self) {
        let voters = self.voters();
        // The value itself comes last, so that equals stand in the same order at everybody.
        self.choices.sort_by(|a, b| {
            let rank = |c: &Choice| {
                Reverse((c.sequence, c.holders.iter().filter(|holder| voters.contains(holder)).count(), c.expires))
            };
            rank(a).cmp(&rank(b)).then_with(|| a.value.cmp(&b.value))
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use libp2p::kad::RecordKey;
    use proptest::prelude::*;

    use super::*;

    fn record(value: &[u8]) -> Record {
        Record::new(RecordKey::new(b"/quelea/user/k"), value.to_vec())
    }

    fn none() -> Answers {
        Answers::new(NetworkId::from_name("main"), &StoreLimits::default())
    }

    fn add(answers: &mut Answers, value: &[u8]) {
        answers.add(Some(PeerId::random()), record(value), 0).unwrap();
    }

    #[test]
    fn the_many_are_believed_and_equals_by_what_lives_longest() {
        let mut answers = none();
        for value in [b"lie", b"yes", b"yes"] {
            add(&mut answers, value);
        }
        assert!(answers.enough(2) && !answers.enough(3) && answers.enough(0));
        let soon = Some(Instant::now());
        let late = soon.map(|at| at + Duration::from_secs(9));
        answers.add(None, Record { expires: soon, ..record(b"lie") }, 0).unwrap();
        answers.add(None, Record { expires: late, ..record(b"yes") }, 0).unwrap();
        add(&mut answers, b"lie");
        let ranked = answers.ranked();
        assert_eq!((ranked[0].value.as_slice(), ranked[0].holders.len(), ranked[0].expires), (&b"yes"[..], 3, late));
        assert_eq!(ranked[1].holders.len(), 3);
    }

    #[test]
    fn what_nobody_may_put_is_no_answer() {
        let mut answers = none();
        assert_eq!(answers.add(None, record(&[0; 1025]), 0), Err(Refusal::ValueTooLong));
        let other = Record::new(RecordKey::new(b"/elsewhere/k"), vec![1]);
        assert_eq!(answers.add(None, other, 0), Err(Refusal::Namespace));
        assert!(answers.is_empty() && answers.invalid() == 2 && !answers.enough(0));
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_one_holder_counts_once(values in proptest::collection::vec((0_usize..4, any::<u16>()), 0..300)) {
            let peers: Vec<PeerId> = (0..4).map(|_| PeerId::random()).collect();
            let mut answers = none();
            for (who, value) in values {
                answers.add(Some(peers[who]), record(&value.to_le_bytes()), 0).unwrap();
                prop_assert!(answers.choices.len() <= MAX_CHOICES);
                prop_assert!(answers.choices.iter().all(|choice| choice.holders.len() <= 4));
            }
            let ranked = answers.ranked();
            prop_assert!(ranked.windows(2).all(|pair| pair[0].holders.len() >= pair[1].holders.len()));
        }
    }
}
