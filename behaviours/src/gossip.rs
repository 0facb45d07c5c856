//! Gossip: which topics there are, what a message may be, who is listened to, and what is passed on.
//!
//! | module | decides |
//! |---|---|
//! | [`topic`] | every topic, as one enum: name, subscription, sizes, weight in scores |
//! | [`validate`] | what a message must be; pure |
//! | [`gate`] | what becomes of a message: what was seen is dropped, the rest is believed once; pure |
//! | [`dedup`] | the memory of what was seen: exact while small, Bloom filters past a budget; pure |
//! | `identity` | the exact memory for what has an exact identity |
//! | [`conduct`] | what a peer's control traffic costs it; pure |
//! | `score` | gossipsub's peer scores, with the reason for every number |
//! | `behaviour` | gossipsub with conduct metered |
//!
//! # From the wire to the neighbours
//!
//! 1. gossipsub decodes an RPC within its limits and checks the signature of each message (strict: author, sequence number
//!    and signature are there and right), on the task of the connection. What fails counts against who sent it (P4), and
//!    the connection is read on at a pace, [`pace`](crate::pace).
//! 2. What gossipsub itself has seen in the last [`DUPLICATES`] goes no further.
//! 3. [`Gate::screen`]: foreign topics and sizes are rejected, what the dedup stage knows is ignored. On the event loop,
//!    microseconds.
//! 4. [`verify`]: the signature within the message, its content, its time. Off the event loop.
//! 5. [`Gate::admit`]: believed once, and only now remembered: what is not valid fills no filter.
//! 6. The verdict goes to gossipsub, which passes the message on, or counts it against who sent it, or forgets it.
//!
//! Nothing that decides money travels by gossip: the dedup stage may take a new line for an old one, once in half a million.

mod behaviour;
pub mod conduct;
pub mod dedup;
pub mod gate;
mod identity;
mod score;
pub mod topic;
pub mod validate;

use std::time::Duration;

use libp2p::gossipsub::{self, ConfigBuilder, Message, MessageAuthenticity, MessageId, ValidationMode, Version};
use libp2p::identity::Keypair;
use prometheus_client::registry::Registry;

pub use self::{
    behaviour::Behaviour,
    gate::{Figures, Gate, Verdict},
    topic::Topic,
    validate::{Content, Reason, verify},
};
use crate::{BuildError, Config};

/// Bytes of one RPC: fifty announcements with their envelopes fit in one. libp2p's default.
pub const MAX_RPC: usize = 64 * 1024;
/// Messages waiting for a slow peer: 256 KiB of announcements. Older libp2p had none, the default is 5,000.
pub const QUEUE: usize = 256;
/// Topics that one peer may be subscribed to, and subscriptions in one RPC. There are seventeen; a later version may have
/// more, which this one ignores.
pub const MAX_TOPICS: usize = 100;
/// Messages of one RPC that are read. Their signatures are checked in one go, 40 µs each, while other connections wait;
/// gossipsub here sends one at a time.
const MAX_MESSAGES: usize = 16;
/// Bytes of gossipsub's control part of one RPC: 700 message ids of 20 bytes and their framing.
const MAX_CONTROL: usize = 16 * 1024;
/// Message ids that one peer may have us ask for in a heartbeat. Each is a promise of which gossipsub keeps note; the
/// default is 5,000.
const MAX_ASKED: usize = 500;
/// Advertisements (IHAVE) of one peer that are read in a heartbeat: one for each topic, and some.
const MAX_IHAVE: usize = 20;
/// Size from which gossipsub tells neighbours not to send what it has. Larger than any message here: the note would cost
/// about as much as it saves, and a peer that sends many is not ours.
const DONT_WANT_FROM: usize = 4096;
/// Bytes of a message id: 160 bits of BLAKE3 do not collide by accident, nor cheaply by design.
pub const ID_BYTES: usize = 20;
/// How long gossipsub remembers a message id. Two minutes outlast every path through the mesh; beyond them the dedup stage
/// and the dates within the messages stop repetitions.
pub const DUPLICATES: Duration = Duration::from_secs(120);
/// How long a queued message may wait before it is dropped.
const PUBLISH_WAIT: Duration = Duration::from_secs(5);
const FORWARD_WAIT: Duration = Duration::from_secs(1);
/// Time between heartbeats: gossipsub's own figure, which all its other numbers assume.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Heartbeats for which a message can still be asked for, and so must have been judged.
const HISTORY: usize = 6;
/// Heartbeats for which a message is advertised, and to how many peers outside the mesh each time. Twice what gossipsub does:
/// messages are small and rare, and it is advertisements that reach those whose mesh neighbours pass nothing on (the
/// simulator's `silent_neighbours_do_not_censor`).
const ADVERTISED: usize = 5;
const ADVERTISED_TO: usize = 12;
/// Neighbours to which messages are passed on at once: how many there should be, at least, at most, and of those that we have
/// chosen ourselves. With gossipsub's own 6, and the connections that a node chooses, the last hundredth of a thousand nodes may
/// be seven hops away; with 8 it is six, at one copy more of each message (the simulator's `swarms`).
pub const MESH: usize = 8;
const MESH_LOW: usize = 6;
const MESH_HIGH: usize = 12;
const MESH_OUTBOUND: usize = 3;
/// Heartbeats within which a peer must send what it advertised and we asked for.
const FOLLOW_UP: u32 = 3;

/// The id of a message: a hash of topic and content, so that whoever publishes it again sends the same message.
pub type Id = [u8; ID_BYTES];

/// The id of `data` on a topic.
#[must_use]
pub fn id_of(topic: &str, data: &[u8]) -> Id {
    let mut hasher = blake3::Hasher::new();
    hasher.update(topic.as_bytes());
    hasher.update(&[0]);
    hasher.update(data);
    let mut id = [0; ID_BYTES];
    hasher.finalize_xof().fill(&mut id);
    id
}

fn message_id(message: &Message) -> MessageId {
    MessageId::new(&id_of(message.topic.as_str(), &message.data))
}

/// gossipsub's own settings as this node uses them.
///
/// # Errors
/// When gossipsub refuses them.
pub fn settings(config: &Config) -> Result<gossipsub::Config, gossipsub::ConfigBuilderError> {
    let mut builder = ConfigBuilder::default();
    builder
        .protocol_id(config.network.protocol("gossip", 1).to_string(), Version::V1_1)
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .message_id_fn(message_id)
        .max_transmit_size(MAX_RPC)
        .max_control_message_size(MAX_CONTROL)
        .max_publish_messages(MAX_MESSAGES)
        .max_control_messages_sent(MAX_ASKED)
        .max_ihave_messages_heartbeat(MAX_IHAVE)
        .idontwant_message_size_threshold(DONT_WANT_FROM)
        .connection_handler_queue_len(QUEUE)
        .publish_queue_duration(PUBLISH_WAIT)
        .forward_queue_duration(FORWARD_WAIT)
        .duplicate_cache_time(DUPLICATES)
        .heartbeat_interval(config.gossip_heartbeat)
        .heartbeat_initial_delay(config.gossip_heartbeat)
        .iwant_followup_time(config.gossip_heartbeat.saturating_mul(FOLLOW_UP))
        .history_length(HISTORY)
        .history_gossip(ADVERTISED)
        .gossip_lazy(ADVERTISED_TO)
        .mesh_n(MESH)
        .mesh_n_low(MESH_LOW)
        .mesh_n_high(MESH_HIGH)
        .mesh_outbound_min(MESH_OUTBOUND);
    for topic in Topic::all() {
        builder.max_transmit_size_for_topic(topic.max_message(), topic.ident(&config.network).hash());
    }
    builder.build()
}

pub(crate) fn new(keypair: &Keypair, config: &Config, metrics: Option<&mut Registry>) -> Result<Behaviour, BuildError> {
    let settings = settings(config).map_err(|error| BuildError::Gossip(error.to_string()))?;
    let author = MessageAuthenticity::Signed(keypair.clone());
    let inner = behaviour::Inner::new_with_subscription_filter(author, settings, topic::filter(&config.network));
    let mut inner = inner.map_err(|error| BuildError::Gossip(error.to_owned()))?;
    if let Some(registry) = metrics {
        // Its names have no prefix of their own.
        let registry = registry.sub_registry_with_prefix("libp2p").sub_registry_with_prefix("gossipsub");
        inner = inner.with_metrics(registry, gossipsub::MetricsConfig::default());
    }
    inner.with_peer_score(score::params(&config.network), score::thresholds()).map_err(BuildError::Gossip)?;
    Ok(Behaviour::new(inner))
}

#[cfg(test)]
mod tests {
    use libp2p::{PeerId, gossipsub::TopicHash};
    use quelea_wire::NetworkId;

    use super::*;

    fn message(topic: TopicHash, data: Vec<u8>) -> Message {
        Message { source: Some(PeerId::random()), data, sequence_number: Some(1), topic }
    }

    #[test]
    fn the_id_of_a_message_is_its_topic_and_content() {
        let net = NetworkId::from_name("main");
        let on = |n| Topic::Announce(n).ident(&net).hash();
        let (a, b) = (message(on(1), vec![1]), message(on(1), vec![1]));
        assert_ne!(a.source, b.source);
        assert_eq!(message_id(&a), message_id(&b));
        assert_ne!(message_id(&a), message_id(&message(on(2), vec![1])));
        assert_ne!(message_id(&a), message_id(&message(on(1), vec![2])));
    }

    #[test]
    fn the_configuration_stands() {
        let behaviour = new(&Keypair::generate_ed25519(), &Config::default(), None).unwrap();
        assert_eq!(behaviour.topics().count(), 0);
        let settings = super::settings(&Config::default()).unwrap();
        for topic in Topic::all() {
            let hash = topic.ident(&Config::default().network).hash();
            assert_eq!(settings.max_transmit_size_for_topic(&hash), topic.max_message());
            assert!(topic.max_message() < DONT_WANT_FROM && topic.max_message() < MAX_RPC);
        }
        assert!(settings.validate_messages());
        assert_eq!(settings.connection_handler_queue_len(), QUEUE);
    }
}
