//! What becomes of a message. Pure but for its memory: time is an argument.

use std::time::{Duration, Instant};

use libp2p::{
    PeerId,
    gossipsub::{Message, MessageAcceptance, TopicHash},
};
use quelea_broadcast::LIFETIME_MS;
use quelea_wire::{
    NetworkId,
    rate::{Cell, PeerBuckets, Quota},
};

use super::{
    Id,
    dedup::{Dedup, DedupFigures},
    id_of,
    identity::Announced,
    topic::Topic,
    validate::{Content, Reason, verify},
};

/// Lines that one author may say at once, and then one a second: faster than people write. More is dropped without blame for
/// those who passed it on; nobody else's lines are touched.
const LINES: u32 = 10;
const LINES_PERIOD: Duration = Duration::from_secs(10);

/// Lines of all authors at once, and then fifty a second: authors cost nothing, but the events, the log and the neighbours'
/// lines of every node do.
const ALL_LINES: u32 = 500;

/// How long a line is remembered at least: as long as it is believed, and as long again as its author's clock may be
/// ahead.
const REMEMBER: Duration = Duration::from_millis(LIFETIME_MS + quelea_wire::time::MAX_SKEW_MS);

/// What to do with a message.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Verdict {
    /// Believe it and pass it on.
    Accept(Content),
    /// Drop it without holding it against the sender.
    Ignore(Reason),
    /// Drop it and lower the sender's score.
    Reject(Reason),
}

impl Verdict {
    fn drop(reason: Reason) -> Self {
        if reason.is_honest() { Self::Ignore(reason) } else { Self::Reject(reason) }
    }

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

/// Messages of one kind of topic, by what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Believed and passed on.
    pub accepted: u64,
    /// Dropped, without blame.
    pub ignored: u64,
    /// Dropped, with blame.
    pub rejected: u64,
    /// Of those dropped, the ones that the dedup stage or the exact memory knew.
    pub duplicates: u64,
}

/// What the gate has done and holds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Figures {
    /// By kind of topic, in the order of [`Topic::KINDS`].
    pub messages: [Counts; Topic::KINDS.len()],
    /// The dedup stage.
    pub dedup: DedupFigures,
    /// Peers whose newest announcement is remembered.
    pub announced: usize,
}

/// Decides what is believed, once.
#[derive(Debug)]
pub struct Gate {
    network: NetworkId,
    dedup: Dedup,
    announced: Announced,
    authors: PeerBuckets,
    all: Cell,
    rotated: Instant,
    announcements: Counts,
    lines: Counts,
}

impl Gate {
    /// With a secret key of this start.
    #[must_use]
    pub fn new(network: NetworkId, now: Instant) -> Self {
        Self::with_dedup(network, Dedup::new(rand::random()), now)
    }

    /// With a dedup stage of one's own.
    #[must_use]
    pub fn with_dedup(network: NetworkId, dedup: Dedup, now: Instant) -> Self {
        Self {
            network,
            dedup,
            announced: Announced::default(),
            authors: PeerBuckets::new(LINES, LINES_PERIOD),
            all: Cell::new(Quota::new(ALL_LINES, LINES_PERIOD)),
            rotated: now,
            announcements: Counts::default(),
            lines: Counts::default(),
        }
    }

    /// What can be said of a message at a glance: its topic, if it is worth checking.
    ///
    /// # Errors
    /// The verdict, when it is not.
    pub fn screen(&mut self, topic: &TopicHash, id: &Id, len: usize) -> Result<Topic, Verdict> {
        let Some(topic) = Topic::from_hash(&self.network, topic) else {
            // gossipsub delivers what we are subscribed to only.
            return Err(Verdict::Reject(Reason::UnknownTopic));
        };
        let reason = if len > topic.max_bytes() {
            Reason::TooLarge(len)
        } else if topic == Topic::Broadcast && self.dedup.contains(id) {
            Reason::Seen
        } else {
            return Ok(topic);
        };
        Err(self.count(topic, Verdict::drop(reason)))
    }

    /// The verdict on a message that [`verify`] has looked at. What is accepted is remembered.
    pub fn admit(
        &mut self,
        topic: Topic,
        id: Id,
        checked: Result<Content, Reason>,
        now_ms: u64,
        now: Instant,
    ) -> Verdict {
        let verdict = match checked {
            Err(reason) => Verdict::drop(reason),
            Ok(content) => match self.news(topic, id, &content, now_ms, now) {
                Ok(()) => Verdict::Accept(content),
                Err(reason) => Verdict::drop(reason),
            },
        };
        self.count(topic, verdict)
    }

    /// The verdict on a message, all at once.
    pub fn judge(&mut self, message: &Message, now_ms: u64, now: Instant) -> Verdict {
        let id = id_of(message.topic.as_str(), &message.data);
        match self.screen(&message.topic, &id, message.data.len()) {
            Err(verdict) => verdict,
            Ok(topic) => {
                let checked = verify(&self.network, topic, &message.data, now_ms);
                self.admit(topic, id, checked, now_ms, now)
            }
        }
    }

    /// Remembers what this node itself has published: it is no news when it comes back.
    pub fn published(&mut self, topic: Topic, data: &[u8], content: &Content, now_ms: u64) {
        match (topic, content) {
            (Topic::Announce(index), Content::Announcement(signed)) => {
                self.announced.note(signed.peer(), signed.announcement(), index, now_ms);
            }
            _ => self.dedup.insert(id_of(topic.ident(&self.network).hash().as_str(), data)),
        }
    }

    /// Forgets what is too old to be repeated. Call it now and then.
    pub fn tick(&mut self, now: Instant) {
        if now.saturating_duration_since(self.rotated) >= REMEMBER {
            self.dedup.rotate();
            self.rotated = now;
        }
    }

    /// What it has done and holds.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            messages: [self.announcements, self.lines],
            dedup: self.dedup.figures(),
            announced: self.announced.len(),
        }
    }

    fn news(&mut self, topic: Topic, id: Id, content: &Content, now_ms: u64, now: Instant) -> Result<(), Reason> {
        match (topic, content) {
            // Exact: a bit in a filter must not silence a worker.
            (Topic::Announce(index), Content::Announcement(signed)) => {
                let news = self.announced.note(signed.peer(), signed.announcement(), index, now_ms);
                news.then_some(()).ok_or(Reason::Superseded)
            }
            (Topic::Broadcast, Content::Line(line)) => {
                // Two copies may have been checked at once.
                if self.dedup.contains(&id) {
                    return Err(Reason::Seen);
                }
                if !self.admits_author(line.author(), now) {
                    return Err(Reason::TooMany);
                }
                self.dedup.insert(id);
                Ok(())
            }
            _ => Err(Reason::WrongTopic),
        }
    }

    fn admits_author(&mut self, author: PeerId, now: Instant) -> bool {
        self.authors.admit(author, now) && self.all.admit(now)
    }

    fn count(&mut self, topic: Topic, verdict: Verdict) -> Verdict {
        let counts = match topic {
            Topic::Announce(_) => &mut self.announcements,
            Topic::Broadcast => &mut self.lines,
        };
        let one = match &verdict {
            Verdict::Accept(_) => &mut counts.accepted,
            Verdict::Reject(_) => &mut counts.rejected,
            Verdict::Ignore(_) => &mut counts.ignored,
        };
        *one = one.saturating_add(1);
        if matches!(verdict, Verdict::Ignore(Reason::Seen | Reason::Superseded)) {
            counts.duplicates = counts.duplicates.saturating_add(1);
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use quelea_broadcast::SignedLine;

    use super::*;
    use crate::gossip::validate::tests::{NOW, announcement, key};

    fn net() -> NetworkId {
        NetworkId::from_name("main")
    }

    fn message(topic: Topic, data: &[u8]) -> Message {
        let topic = topic.ident(&net()).hash();
        Message { source: Some(PeerId::random()), data: data.to_vec(), sequence_number: Some(1), topic }
    }

    fn line(author: u8, sent_ms: u64, text: &str) -> SignedLine {
        SignedLine::sign(&key(author), &net(), sent_ms, text).unwrap()
    }

    #[test]
    fn a_line_is_believed_once_and_for_as_long_as_it_lives() {
        let start = Instant::now();
        let mut gate = Gate::new(net(), start);
        let hello = message(Topic::Broadcast, line(1, NOW, "hello").raw());
        assert!(matches!(gate.judge(&hello, NOW, start), Verdict::Accept(Content::Line(_))));
        for minutes in 0..10 {
            let passed = Duration::from_secs(60 * minutes);
            gate.tick(start + passed);
            let now_ms = NOW + 60_000 * minutes;
            assert_eq!(gate.judge(&hello, now_ms, start + passed), Verdict::Ignore(Reason::Seen));
        }
        // By the time that it is forgotten its date refuses it.
        for minutes in [12, 24, 36] {
            gate.tick(start + Duration::from_secs(60 * minutes));
        }
        let late = gate.judge(&hello, NOW + 36 * 60_000, start);
        assert!(matches!(late, Verdict::Ignore(Reason::Line(_))), "{late:?}");
        let counts = gate.figures().messages[1];
        assert_eq!((counts.accepted, counts.ignored, counts.duplicates), (1, 11, 10));
    }

    #[test]
    fn what_is_not_valid_is_not_remembered() {
        let start = Instant::now();
        let mut gate = Gate::new(net(), start);
        for n in 0..100_u8 {
            let verdict = gate.judge(&message(Topic::Broadcast, &[n; 200]), NOW, start);
            assert!(matches!(verdict, Verdict::Reject(Reason::Line(_))));
        }
        let early = line(1, NOW + 200_000, "too early");
        assert!(matches!(gate.judge(&message(Topic::Broadcast, early.raw()), NOW, start), Verdict::Ignore(_)));
        assert_eq!(gate.figures().dedup, DedupFigures::default());
        // It is believed when its time has come.
        let verdict = gate.judge(&message(Topic::Broadcast, early.raw()), NOW + 100_000, start);
        assert!(matches!(verdict, Verdict::Accept(_)));
    }

    #[test]
    fn who_says_too_much_is_heard_no_more_and_others_are() {
        let start = Instant::now();
        let mut gate = Gate::new(net(), start);
        let verdicts: Vec<Verdict> = (0..20)
            .map(|n| gate.judge(&message(Topic::Broadcast, line(1, NOW + n, "spam").raw()), NOW, start))
            .collect();
        let accepted = verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Accept(_))).count();
        assert_eq!((accepted, &verdicts[19]), (10, &Verdict::Ignore(Reason::TooMany)));
        let other = gate.judge(&message(Topic::Broadcast, line(2, NOW, "spam").raw()), NOW, start);
        assert!(matches!(other, Verdict::Accept(_)));
        let later = start + Duration::from_secs(2);
        let again = gate.judge(&message(Topic::Broadcast, line(1, NOW + 19, "spam").raw()), NOW, later);
        assert!(matches!(again, Verdict::Accept(_)), "what was dropped for its author's haste is not taken for old");
    }

    #[test]
    fn announcements_are_told_apart_exactly() {
        let start = Instant::now();
        let mut gate = Gate::new(net(), start);
        for seq in 1..200 {
            let said = message(Topic::Announce(5), announcement(net(), seq, 1).raw());
            assert!(matches!(gate.judge(&said, NOW, start), Verdict::Accept(_)), "{seq}");
            assert_eq!(gate.judge(&said, NOW, start), Verdict::Ignore(Reason::Superseded));
        }
        assert_eq!((gate.figures().announced, gate.figures().dedup), (1, DedupFigures::default()));
    }

    #[test]
    fn a_tombstone_is_news_on_every_topic() {
        let start = Instant::now();
        let mut gate = Gate::new(net(), start);
        let gone = announcement(net(), 7, 0);
        for n in 0..16 {
            let verdict = gate.judge(&message(Topic::Announce(n), gone.raw()), NOW, start);
            assert!(matches!(verdict, Verdict::Accept(_)), "{n}");
        }
    }

    #[test]
    fn what_is_too_large_or_foreign_is_rejected_unread() {
        let start = Instant::now();
        let mut gate = Gate::new(net(), start);
        for topic in Topic::all() {
            let len = topic.max_bytes() + 1;
            assert_eq!(gate.judge(&message(topic, &vec![0; len]), NOW, start), Verdict::Reject(Reason::TooLarge(len)));
        }
        let mut foreign = message(Topic::Broadcast, b"x");
        foreign.topic = TopicHash::from_raw("/x");
        assert_eq!(gate.judge(&foreign, NOW, start), Verdict::Reject(Reason::UnknownTopic));
    }

    #[test]
    fn our_own_words_are_no_news() {
        let start = Instant::now();
        let mut gate = Gate::new(net(), start);
        let own = line(1, NOW, "mine");
        gate.published(Topic::Broadcast, own.raw(), &Content::Line(Box::new(own.clone())), NOW);
        assert_eq!(gate.judge(&message(Topic::Broadcast, own.raw()), NOW, start), Verdict::Ignore(Reason::Seen));
    }
}
