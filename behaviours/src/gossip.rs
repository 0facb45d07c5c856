//! Spreading announcements: which topics there are, what a message may be, and who is listened to.

use std::time::Duration;

use libp2p::{
    gossipsub::{
        self, ConfigBuilder, IdentTopic, Message, MessageAcceptance, MessageAuthenticity, MessageId, PeerScoreParams,
        PeerScoreThresholds, TopicHash, TopicScoreParams, ValidationMode, Version, WhitelistSubscriptionFilter,
    },
    identity::Keypair,
};
use prometheus_client::registry::Registry;
use quelea_announce::{MAX_BYTES, SignedAnnouncement, TOPICS, VerifyError, topic_index};
use quelea_wire::NetworkId;

use crate::BuildError;

/// Gossipsub that knows our topics only: subscriptions to others are not even counted.
pub type Behaviour = gossipsub::Behaviour<gossipsub::IdentityTransform, WhitelistSubscriptionFilter>;

/// Bytes of one RPC: sixteen announcements with their envelopes fit in one.
pub const MAX_RPC: usize = 32 * 1024;
/// Messages waiting for a slow peer: 256 KiB of announcements. Older libp2p had none, the default is 5,000.
pub const QUEUE: usize = 256;
/// Messages of one RPC that are read.
const MAX_MESSAGES: usize = 64;
/// Bytes of gossipsub's control part of one RPC: 500 message ids of 20 bytes and their framing.
const MAX_CONTROL: usize = 16 * 1024;
/// Bytes of a message id: 160 bits of BLAKE3 do not collide by accident, nor cheaply by design.
const ID_BYTES: usize = 20;
/// How long a message id is remembered. Announcements live ten minutes but are repeated only by attackers; two minutes
/// outlast every path through the mesh.
const DUPLICATES: Duration = Duration::from_secs(120);
/// How long a queued message may wait before it is dropped.
const PUBLISH_WAIT: Duration = Duration::from_secs(5);
const FORWARD_WAIT: Duration = Duration::from_secs(1);

/// A topic of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Topic {
    /// Announcements for the models whose [`topic_index`] is this number, 0 to 15.
    Announce(u8),
}

impl Topic {
    /// Every topic.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..TOPICS).map(Self::Announce)
    }

    /// `/quelea/<net>/announce/<n>`, as gossipsub names it.
    #[must_use]
    pub fn ident(self, network: &NetworkId) -> IdentTopic {
        match self {
            Self::Announce(n) => IdentTopic::new(format!("/quelea/{}/announce/{n}", network.short())),
        }
    }

    /// The topic of this hash, if it is one of ours.
    #[must_use]
    pub fn from_hash(network: &NetworkId, hash: &TopicHash) -> Option<Self> {
        Self::all().find(|topic| topic.ident(network).hash() == *hash)
    }
}

/// What to do with a message.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// Believe it and pass it on.
    Accept(Box<SignedAnnouncement>),
    /// Drop it without holding it against the sender.
    Ignore(Reason),
    /// Drop it and lower the sender's score.
    Reject(Reason),
}

/// Why a message was dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// Longer than any announcement.
    #[error("{0} bytes are more than an announcement has")]
    TooLarge(usize),
    /// Not a valid announcement.
    #[error(transparent)]
    Invalid(#[from] VerifyError),
    /// Offers no model of this topic.
    #[error("the announcement belongs on another topic")]
    WrongTopic,
    /// Not a topic of ours.
    #[error("no topic of this network")]
    UnknownTopic,
}

impl Verdict {
    /// As gossipsub wants to hear it.
    #[must_use]
    pub fn acceptance(&self) -> MessageAcceptance {
        match self {
            Self::Accept(_) => MessageAcceptance::Accept,
            Self::Ignore(_) => MessageAcceptance::Ignore,
            Self::Reject(_) => MessageAcceptance::Reject,
        }
    }
}

/// Judges a message: size, topic, signature, content and time, cheapest first.
///
/// Who published it to gossip does not matter, only who signed the announcement: the message id is a hash of the content,
/// so whoever re-publishes another's announcement only helps to spread it, and must not make the original look like
/// a duplicate of something rejected.
#[must_use]
pub fn validate(network: &NetworkId, message: &Message, now_ms: u64) -> Verdict {
    let Some(Topic::Announce(index)) = Topic::from_hash(network, &message.topic) else {
        return Verdict::Reject(Reason::UnknownTopic);
    };
    if message.data.len() > MAX_BYTES {
        return Verdict::Reject(Reason::TooLarge(message.data.len()));
    }
    match SignedAnnouncement::verify(&message.data, network, now_ms) {
        Err(error) if error.is_honest() => Verdict::Ignore(error.into()),
        Err(error) => Verdict::Reject(error.into()),
        Ok(signed) => {
            let said = signed.announcement();
            // A leaving peer says so wherever it spoke; an empty word belongs nowhere in particular.
            let belongs = said.offers.is_empty() || said.offers.iter().any(|offer| topic_index(&offer.model) == index);
            if belongs { Verdict::Accept(Box::new(signed)) } else { Verdict::Reject(Reason::WrongTopic) }
        }
    }
}

fn message_id(message: &Message) -> MessageId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(message.topic.as_str().as_bytes());
    hasher.update(&[0]);
    hasher.update(&message.data);
    let mut id = [0; ID_BYTES];
    hasher.finalize_xof().fill(&mut id);
    MessageId::new(&id)
}

pub(crate) fn new(
    keypair: &Keypair,
    network: &NetworkId,
    metrics: Option<&mut Registry>,
) -> Result<Behaviour, BuildError> {
    let protocol = network.protocol("gossip", 1).to_string();
    let config = ConfigBuilder::default()
        .protocol_id(protocol, Version::V1_1)
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .message_id_fn(message_id)
        .max_transmit_size(MAX_RPC)
        .max_control_message_size(MAX_CONTROL)
        .max_publish_messages(MAX_MESSAGES)
        .connection_handler_queue_len(QUEUE)
        .publish_queue_duration(PUBLISH_WAIT)
        .forward_queue_duration(FORWARD_WAIT)
        .duplicate_cache_time(DUPLICATES)
        .build()
        .map_err(|error| BuildError::Gossip(error.to_string()))?;
    let topics = Topic::all().map(|topic| topic.ident(network).hash()).collect();
    let author = MessageAuthenticity::Signed(keypair.clone());
    let behaviour = Behaviour::new_with_subscription_filter(author, config, WhitelistSubscriptionFilter(topics));
    let mut behaviour = behaviour.map_err(|error| BuildError::Gossip(error.to_owned()))?;
    if let Some(registry) = metrics {
        // Its names have no prefix of their own.
        let registry = registry.sub_registry_with_prefix("libp2p").sub_registry_with_prefix("gossipsub");
        behaviour = behaviour.with_metrics(registry, gossipsub::MetricsConfig::default());
    }
    behaviour.with_peer_score(score(network), PeerScoreThresholds::default()).map_err(BuildError::Gossip)?;
    Ok(behaviour)
}

/// Modest scores: invalid messages (P4), many peers on one address (P6) and broken promises (P7) cost; being first (P2) and
/// staying (P1) gain a little. The penalty for delivering too little (P3) is off: a topic may be silent for minutes.
fn score(network: &NetworkId) -> PeerScoreParams {
    let topic = TopicScoreParams {
        // Sixteen topics; together they weigh one.
        topic_weight: 1.0 / f64::from(TOPICS),
        // One point a minute in the mesh, up to ten.
        time_in_mesh_weight: 1.0,
        time_in_mesh_quantum: Duration::from_secs(60),
        time_in_mesh_cap: 10.0,
        first_message_deliveries_weight: 0.5,
        first_message_deliveries_decay: 0.9,
        first_message_deliveries_cap: 20.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        // The square of the count: 4 invalid messages cost 16 of these, 20 in all at 1/16 weight: below the gossip
        // threshold of -10; 9 cost 101: below the graylist at -80. Halved within a minute or so.
        invalid_message_deliveries_weight: -20.0,
        invalid_message_deliveries_decay: 0.99,
        ..TopicScoreParams::default()
    };
    PeerScoreParams {
        topics: Topic::all().map(|t| (t.ident(network).hash(), topic.clone())).collect(),
        topic_score_cap: 20.0,
        app_specific_weight: 1.0,
        // Homes, labs and tests put many peers behind one address: only more than ten cost anything.
        ip_colocation_factor_threshold: 10.0,
        ip_colocation_factor_weight: -5.0,
        ip_colocation_factor_whitelist: ["127.0.0.1", "::1"].iter().filter_map(|ip| ip.parse().ok()).collect(),
        behaviour_penalty_weight: -10.0,
        behaviour_penalty_threshold: 6.0,
        behaviour_penalty_decay: 0.9,
        ..PeerScoreParams::default()
    }
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;
    use quelea_announce::{Announcement, Offer, State};
    use quelea_wire::{ModelId, Profile, SpanRange};

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn net() -> NetworkId {
        NetworkId::from_name("main")
    }

    fn message(topic: TopicHash, data: Vec<u8>) -> Message {
        Message { source: Some(PeerId::random()), data, sequence_number: Some(1), topic }
    }

    fn signed(network: NetworkId, offers: usize) -> SignedAnnouncement {
        let key = Keypair::ed25519_from_bytes([3; 32]).unwrap();
        let mut said = Announcement::new(key.public().to_peer_id(), 1, NOW);
        let offer = Offer {
            model: ModelId([5; 32]),
            profile: Profile::CandleCpu,
            span: SpanRange::new(0, 8).unwrap(),
            layers_total: 8,
            state: State::Ready,
            decode_rows_per_s: 1,
            prefill_rows_per_s: 1,
            queue: 0,
            kv_pages_free: 1,
            price_decode: 1,
            price_prefill: 1,
        };
        said.offers = vec![offer; offers];
        SignedAnnouncement::sign(&key, &network, said).unwrap()
    }

    fn on(index: u8) -> TopicHash {
        Topic::Announce(index).ident(&net()).hash()
    }

    #[test]
    fn sixteen_topics_that_name_the_network() {
        let names: std::collections::BTreeSet<String> = Topic::all().map(|t| t.ident(&net()).to_string()).collect();
        assert_eq!(names.len(), 16);
        assert!(names.iter().all(|name| name.starts_with(&format!("/quelea/{}/announce/", net().short()))));
        for topic in Topic::all() {
            assert_eq!(Topic::from_hash(&net(), &topic.ident(&net()).hash()), Some(topic));
            assert_eq!(Topic::from_hash(&NetworkId::from_name("club"), &topic.ident(&net()).hash()), None);
        }
    }

    #[test]
    fn every_way_to_be_judged() {
        let good = signed(net(), 1);
        let judge = |topic: TopicHash, data: &[u8], now: u64| validate(&net(), &message(topic, data.to_vec()), now);
        assert_eq!(judge(on(5), good.raw(), NOW), Verdict::Accept(Box::new(good.clone())));
        assert_eq!(judge(on(6), good.raw(), NOW), Verdict::Reject(Reason::WrongTopic));
        assert_eq!(judge(TopicHash::from_raw("/x"), good.raw(), NOW), Verdict::Reject(Reason::UnknownTopic));
        assert_eq!(judge(on(5), &[0; MAX_BYTES + 1], NOW), Verdict::Reject(Reason::TooLarge(MAX_BYTES + 1)));
        let invalid = |verdict| matches!(verdict, Verdict::Reject(Reason::Invalid(_)));
        assert!(invalid(judge(on(5), b"", NOW)) && invalid(judge(on(5), b"garbage", NOW)));
        assert!(invalid(judge(on(5), signed(NetworkId::from_name("club"), 1).raw(), NOW)));
        // A clock that is off, or a long way round, is nobody's fault.
        for now in [NOW - 200_000, NOW + 700_000] {
            assert!(matches!(judge(on(5), good.raw(), now), Verdict::Ignore(Reason::Invalid(_))));
        }
        assert!(matches!(judge(on(9), signed(net(), 0).raw(), NOW), Verdict::Accept(_)));
    }

    #[test]
    fn the_id_of_a_message_is_its_topic_and_content() {
        let (a, b) = (message(on(1), vec![1]), message(on(1), vec![1]));
        assert_ne!(a.source, b.source);
        assert_eq!(message_id(&a), message_id(&b));
        assert_ne!(message_id(&a), message_id(&message(on(2), vec![1])));
        assert_ne!(message_id(&a), message_id(&message(on(1), vec![2])));
    }

    #[test]
    fn the_scores_are_sound_and_the_configuration_stands() {
        let behaviour = new(&Keypair::generate_ed25519(), &net(), None).unwrap();
        assert_eq!(behaviour.topics().count(), 0);
        assert!(score(&net()).validate().is_ok());
        assert_eq!(score(&net()).topics.len(), 16);
    }
}
