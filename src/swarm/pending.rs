//! Questions asked of the swarm that have not been answered yet: bounded, and each with a deadline.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

/// A map from the id of a question to who waits for its answer.
///
/// Nothing stays in it for ever: an entry leaves when it is answered, when its deadline passes ([`Pending::expire`]) or
/// when whoever asked has gone away.
#[derive(Debug)]
pub(super) struct Pending<K, V> {
    waiting: HashMap<K, Question<V>>,
    cap: usize,
}

#[derive(Debug)]
struct Question<V> {
    reply: oneshot::Sender<V>,
    deadline: Instant,
    /// The answer when none has come by the deadline.
    late: V,
}

impl<K: Hash + Eq, V> Pending<K, V> {
    pub(super) fn new(cap: usize) -> Self {
        Self { waiting: HashMap::new(), cap }
    }

    /// Whether one more question may be asked.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < self.cap
    }

    /// Remembers who asked `key`, and what to tell them when `timeout` has passed. Call [`Pending::has_room`] first.
    pub(super) fn insert(&mut self, key: K, reply: oneshot::Sender<V>, timeout: Duration, late: V) {
        self.waiting.insert(key, Question { reply, deadline: Instant::now() + timeout, late });
    }

    /// Hands `value` to whoever asked `key`, if anybody still waits.
    pub(super) fn answer(&mut self, key: &K, value: V) {
        if let Some(question) = self.waiting.remove(key) {
            // An error means that the caller gave up, which is its right.
            let _ = question.reply.send(value);
        }
    }

    /// Answers everything whose deadline has passed, and forgets questions nobody waits for.
    pub(super) fn expire(&mut self, now: Instant) {
        for (_, question) in self.waiting.extract_if(|_, q| q.deadline <= now || q.reply.is_closed()) {
            let _ = question.reply.send(question.late);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_question_ends() {
        let mut pending = Pending::<u32, Result<u8, &str>>::new(2);
        let (answered, mut a) = oneshot::channel();
        let (late, mut b) = oneshot::channel();
        pending.insert(1, answered, Duration::from_secs(60), Err("too late"));
        pending.insert(2, late, Duration::ZERO, Err("too late"));
        assert!(!pending.has_room());
        pending.answer(&1, Ok(7));
        pending.expire(Instant::now());
        assert_eq!(a.try_recv(), Ok(Ok(7)));
        assert_eq!(b.try_recv(), Ok(Err("too late")));
        assert!(pending.has_room());
    }

    #[test]
    fn who_has_gone_away_takes_no_room() {
        let mut pending = Pending::<u32, ()>::new(1);
        let (gone, receiver) = oneshot::channel();
        drop(receiver);
        pending.insert(1, gone, Duration::from_secs(60), ());
        pending.expire(Instant::now());
        assert!(pending.has_room());
    }
}
