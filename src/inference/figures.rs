//! When what this node announces has changed enough to be said again, and to whom.
//!
//! Who plans a chain asks for announcements, and gets what was signed last. So the answer is signed anew as soon as it is
//! no longer true. Everybody else hears of it by gossip: only when a mark is passed, and seldom.

use std::time::{Duration, Instant};

use super::serve::Served;

/// How often figures are looked over. With [`ANSWER_AGAIN`] it is what an answer may lag behind.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Between two answers that are signed anew: a signature, and a number that is written down.
const ANSWER_AGAIN: Duration = Duration::from_secs(1);

/// Between two messages to everybody, before jitter: gossip costs every listener of the model's topic.
const SAY_AGAIN: Duration = Duration::from_secs(20);

/// The part of [`SAY_AGAIN`] that is added at random, in parts of 256: workers that filled up together do not all speak at once.
const JITTER: Duration = Duration::from_millis(20_000 / 256);

/// What changes about one offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Figures {
    pages_free: u32,
    pages: u32,
    queue: u16,
    /// Layer-rows per second.
    speed: u32,
}

impl Figures {
    pub(super) fn of(served: &Served) -> Self {
        let load = served.runner.load();
        Self {
            pages_free: load.kv_pages_free,
            pages: load.kv_pages_total,
            queue: u16::try_from(load.queued).unwrap_or(u16::MAX),
            speed: served.meter.rows_per_s().0,
        }
    }

    /// The quarter that the free pages are in, 0 for none; and a queue's length and a speed by powers of four and two.
    fn marks(self) -> (u64, u32, u32) {
        let quarter = (u64::from(self.pages_free) * 4).div_ceil(u64::from(self.pages.max(1)));
        (quarter, (u16::BITS - self.queue.leading_zeros()).div_ceil(2), u32::BITS - self.speed.leading_zeros())
    }

    /// Whether an answer that says the one is no longer true.
    fn differs(self, other: Self) -> bool {
        self.pages_free != other.pages_free || self.marks() != other.marks()
    }
}

/// To whom changed figures are said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// To all who listen to the model.
    Everybody,
    /// To those who ask from now on.
    WhoAsks,
}

/// What was said last, and when.
#[derive(Debug)]
pub(super) struct News {
    said: Vec<Figures>,
    said_at: Instant,
    answered: Vec<Figures>,
    answered_at: Instant,
}

impl News {
    /// Everybody has just been told.
    pub(super) fn new(said: Vec<Figures>, now: Instant) -> Self {
        Self { answered: said.clone(), said, said_at: now, answered_at: now }
    }

    /// To whom `figures` are to be said now, if to anybody; taken for said then. `random` is of the caller's choice.
    pub(super) fn due(&mut self, figures: Vec<Figures>, now: Instant, random: u8) -> Option<To> {
        let differ = |differs: fn(Figures, Figures) -> bool, from: &[Figures]| {
            figures.len() != from.len() || figures.iter().zip(from).any(|(new, old)| differs(*new, *old))
        };
        let since = |at: Instant| now.saturating_duration_since(at);
        if differ(|a, b| a.marks() != b.marks(), &self.said)
            && since(self.said_at) >= SAY_AGAIN + JITTER * u32::from(random)
        {
            *self = Self::new(figures, now);
            Some(To::Everybody)
        } else if differ(Figures::differs, &self.answered) && since(self.answered_at) >= ANSWER_AGAIN {
            (self.answered, self.answered_at) = (figures, now);
            Some(To::WhoAsks)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pages_free: u32, queue: u16) -> Vec<Figures> {
        vec![Figures { pages_free, pages: 100, queue, speed: 1000 }]
    }

    #[test]
    fn an_answer_is_true_within_a_second_and_gossip_is_for_marks() {
        let start = Instant::now();
        let mut news = News::new(with(100, 0), start);
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(news.due(with(100, 0), at(60_000), 255), None, "nothing has changed");
        assert_eq!(news.due(with(99, 0), at(60_000), 255), Some(To::WhoAsks), "one page is no mark");
        assert_eq!(news.due(with(98, 0), at(60_500), 255), None, "not twice in a second");
        assert_eq!(news.due(with(98, 0), at(61_000), 255), Some(To::WhoAsks));
        assert_eq!(news.due(with(70, 0), at(61_500), 255), Some(To::Everybody), "a quarter is gone");
        assert_eq!(news.due(with(10, 0), at(62_500), 0), Some(To::WhoAsks), "everybody has just been told");
        assert_eq!(news.due(with(10, 0), at(90_000), 255), None, "those who wait for each other do not speak at once");
        assert_eq!(news.due(with(10, 0), at(90_000), 0), Some(To::Everybody));
        assert_eq!(news.due(with(10, 1), at(120_000), 0), Some(To::Everybody), "somebody waits");
        assert_eq!(news.due(with(10, 1), at(180_000), 0), None);
    }

    #[test]
    fn what_goes_up_and_down_costs_everybody_little() {
        let start = Instant::now();
        let mut news = News::new(with(100, 0), start);
        let (mut said, mut answered) = (0, 0);
        // Ten minutes of sessions that come and go.
        for tick in 0..1200_u32 {
            let figures = with(if tick % 2 == 0 { 0 } else { 100 }, 0);
            match news.due(figures, start + LOOK_EVERY * tick, 0) {
                Some(To::Everybody) => said += 1,
                Some(To::WhoAsks) => answered += 1,
                None => {}
            }
        }
        assert!(said <= 30 && answered <= 600, "{said} times to everybody, {answered} answers");
    }
}
