//! Every topic there is. Whatever differs between topics is said here and nowhere else.

use libp2p::gossipsub::{IdentTopic, MaxCountSubscriptionFilter, TopicHash, WhitelistSubscriptionFilter};
use quelea_announce::TOPICS;
use quelea_wire::{ModelId, NetworkId};

use super::MAX_TOPICS;

/// Bytes that gossipsub puts around the data: author (38 bytes), sequence number, topic (at most 30 bytes), signature, and
/// the key that authors of other kinds send along (Ed25519's is in the peer id). Twice what an honest one takes.
const AROUND: usize = 256;

/// A topic of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Topic {
    /// Announcements for the models whose [`topic_index`](quelea_announce::topic_index) is this number, 0 to 15.
    Announce(u8),
    /// Lines that anybody may say to everybody.
    Broadcast,
}

impl Topic {
    /// Every topic.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..TOPICS).map(Self::Announce).chain([Self::Broadcast])
    }

    /// The topic of announcements for `model`.
    #[must_use]
    pub fn of_model(model: &ModelId) -> Self {
        Self::Announce(quelea_announce::topic_index(model))
    }

    /// Whether every node listens from its start. Announcements are listened to by those who serve or use a model of the
    /// topic: a sixteenth of the swarm's.
    #[must_use]
    pub fn is_for_all(self) -> bool {
        matches!(self, Self::Broadcast)
    }

    /// `/quelea/<net>/announce/<n>` or `/quelea/<net>/broadcast`, as gossipsub names it.
    #[must_use]
    pub fn ident(self, network: &NetworkId) -> IdentTopic {
        match self {
            Self::Announce(n) => IdentTopic::new(format!("/quelea/{}/announce/{n}", network.short())),
            Self::Broadcast => IdentTopic::new(format!("/quelea/{}/broadcast", network.short())),
        }
    }

    /// The topic of this hash, if it is one of ours.
    #[must_use]
    pub fn from_hash(network: &NetworkId, hash: &TopicHash) -> Option<Self> {
        Self::all().find(|topic| topic.ident(network).hash() == *hash)
    }

    /// Bytes of content that a message of this topic has at most.
    #[must_use]
    pub fn max_bytes(self) -> usize {
        match self {
            Self::Announce(_) => quelea_announce::MAX_BYTES,
            Self::Broadcast => quelea_broadcast::MAX_BYTES,
        }
    }

    /// Bytes of a whole message, with what gossipsub puts around the content. Longer ones count as invalid before they
    /// are looked at.
    #[must_use]
    pub fn max_message(self) -> usize {
        self.max_bytes().saturating_add(AROUND)
    }

    /// The topic's share of a peer's score: all topics together weigh one.
    #[must_use]
    pub fn weight(self) -> f64 {
        1.0 / f64::from(TOPICS.saturating_add(1))
    }

    /// The topic's kind, for metrics and counters: one of [`Topic::KINDS`].
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Announce(_) => Self::KINDS[0],
            Self::Broadcast => Self::KINDS[1],
        }
    }

    /// The kinds of topics.
    pub const KINDS: [&'static str; 2] = ["announce", "broadcast"];
}

/// Subscriptions that are taken note of: ours, and no more than [`MAX_TOPICS`] of them.
pub(super) type Filter = MaxCountSubscriptionFilter<WhitelistSubscriptionFilter>;

pub(super) fn filter(network: &NetworkId) -> Filter {
    MaxCountSubscriptionFilter {
        filter: WhitelistSubscriptionFilter(Topic::all().map(|topic| topic.ident(network).hash()).collect()),
        max_subscribed_topics: MAX_TOPICS,
        max_subscriptions_per_request: MAX_TOPICS,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn seventeen_topics_that_name_the_network() {
        let net = NetworkId::from_name("main");
        let names: BTreeSet<String> = Topic::all().map(|topic| topic.ident(&net).to_string()).collect();
        assert_eq!(names.len(), 17);
        assert!(names.iter().all(|name| name.starts_with(&format!("/quelea/{}/", net.short())) && name.len() <= 30));
        for topic in Topic::all() {
            assert_eq!(Topic::from_hash(&net, &topic.ident(&net).hash()), Some(topic));
            assert_eq!(Topic::from_hash(&NetworkId::from_name("club"), &topic.ident(&net).hash()), None);
        }
        assert_eq!(Topic::of_model(&ModelId([0x25; 32])), Topic::Announce(5));
        assert_eq!(Topic::all().filter(|topic| topic.is_for_all()).collect::<Vec<_>>(), [Topic::Broadcast]);
    }

    #[test]
    fn all_topics_together_weigh_one() {
        let sum: f64 = Topic::all().map(Topic::weight).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
    }
}
