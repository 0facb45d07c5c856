//! What a message must be. Pure: no clock, no memory.

use quelea_announce::{SignedAnnouncement, VerifyError, topic_index};
use quelea_broadcast::{LineError, SignedLine};
use quelea_wire::NetworkId;

use super::topic::Topic;

/// A message that was found to be what it should be.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Content {
    /// Who serves what.
    Announcement(Box<SignedAnnouncement>),
    /// Somebody's words.
    Line(Box<SignedLine>),
}

/// Why a message was dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// Longer than any message of its topic.
    #[error("{0} bytes are more than such a message has")]
    TooLarge(usize),
    /// Not a valid announcement.
    #[error(transparent)]
    Announcement(#[from] VerifyError),
    /// Not a valid line.
    #[error(transparent)]
    Line(#[from] LineError),
    /// Offers no model of this topic.
    #[error("the announcement belongs on another topic")]
    WrongTopic,
    /// Not a topic of ours.
    #[error("no topic of this network")]
    UnknownTopic,
    /// Heard before.
    #[error("heard before")]
    Seen,
    /// Its author has said something newer, or the same, on this topic.
    #[error("no news: its author has said as much or more since")]
    Superseded,
    /// Its author says more than one should.
    #[error("its author says too much")]
    TooMany,
    /// The queue of messages to be checked had no place for it, or it waited for too long.
    #[error("too many messages wait to be checked")]
    Busy,
}

impl Reason {
    /// Whether an honest peer may have passed the message on.
    #[must_use]
    pub fn is_honest(&self) -> bool {
        match self {
            Self::Announcement(error) => error.is_honest(),
            Self::Line(error) => error.is_honest(),
            Self::Seen | Self::Superseded | Self::TooMany | Self::Busy => true,
            Self::TooLarge(_) | Self::WrongTopic | Self::UnknownTopic => false,
        }
    }
}

/// Checks the signature within a message, its content and its time: some 100 µs, so not on the event loop.
///
/// Who published it to gossip does not matter, only who signed the content: the message id is a hash of the content, so
/// whoever re-publishes another's message only helps to spread it.
///
/// # Errors
/// Says what is wrong; [`Reason::is_honest`] tells whether to hold it against the sender.
pub fn verify(network: &NetworkId, topic: Topic, data: &[u8], now_ms: u64) -> Result<Content, Reason> {
    match topic {
        Topic::Announce(index) => {
            let signed = SignedAnnouncement::verify(data, network, now_ms)?;
            let offers = &signed.announcement().offers;
            // A leaving peer says so wherever it spoke; an empty word belongs nowhere in particular.
            let belongs = offers.is_empty() || offers.iter().any(|offer| topic_index(&offer.model) == index);
            if belongs { Ok(Content::Announcement(Box::new(signed))) } else { Err(Reason::WrongTopic) }
        }
        Topic::Broadcast => Ok(Content::Line(Box::new(SignedLine::verify(data, network, now_ms)?))),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use libp2p::identity::Keypair;
    use quelea_announce::{Announcement, Ends, Offer, State};
    use quelea_wire::{ModelId, Profile, SpanRange};

    use super::*;

    pub(in crate::gossip) const NOW: u64 = 1_800_000_000_000;

    pub(in crate::gossip) fn key(n: u8) -> Keypair {
        Keypair::ed25519_from_bytes([n; 32]).unwrap()
    }

    /// An announcement of a model on topic 5.
    pub(in crate::gossip) fn announcement(network: NetworkId, seq: u64, offers: usize) -> SignedAnnouncement {
        let key = key(3);
        let mut said = Announcement::new(key.public().to_peer_id(), seq, NOW);
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
            ends: Ends::default(),
        };
        said.offers = vec![offer; offers];
        SignedAnnouncement::sign(&key, &network, said).unwrap()
    }

    #[test]
    fn every_way_to_be_judged() {
        let net = NetworkId::from_name("main");
        let good = announcement(net, 1, 1);
        let judge = |topic, data: &[u8], now| verify(&net, topic, data, now);
        let on = Topic::Announce;
        assert_eq!(judge(on(5), good.raw(), NOW), Ok(Content::Announcement(Box::new(good.clone()))));
        assert_eq!(judge(on(6), good.raw(), NOW), Err(Reason::WrongTopic));
        for garbage in [&b""[..], b"garbage", announcement(NetworkId::from_name("club"), 1, 1).raw()] {
            let reason = judge(on(5), garbage, NOW).unwrap_err();
            assert!(matches!(reason, Reason::Announcement(_)) && !reason.is_honest(), "{reason}");
        }
        // A clock that is off, or a long way round, is nobody's fault.
        for now in [NOW - 200_000, NOW + 700_000] {
            assert!(judge(on(5), good.raw(), now).unwrap_err().is_honest());
        }
        assert!(judge(on(9), announcement(net, 1, 0).raw(), NOW).is_ok());
    }

    #[test]
    fn a_line_is_a_line_on_its_topic_only() {
        let net = NetworkId::from_name("main");
        let line = SignedLine::sign(&key(4), &net, NOW, "hello").unwrap();
        assert_eq!(verify(&net, Topic::Broadcast, line.raw(), NOW), Ok(Content::Line(Box::new(line.clone()))));
        assert!(!verify(&net, Topic::Announce(0), line.raw(), NOW).unwrap_err().is_honest());
        assert!(!verify(&net, Topic::Broadcast, announcement(net, 1, 1).raw(), NOW).unwrap_err().is_honest());
        assert!(verify(&net, Topic::Broadcast, line.raw(), NOW + 700_000).unwrap_err().is_honest());
    }
}
