//! What happens on the node, for those who want to follow it: a bounded memory of events with a cursor.
//!
//! The event loop [emits](EventBus::emit) and never waits. The last [`CAPACITY`] events are kept; each has a number, one more
//! than the one before. Whoever reads says after which number, gets what there is, and is told how many are gone when it
//! comes too late. So a reader that falls behind costs nothing, and one that comes back continues where it stopped.

mod types;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

pub use self::types::{Event, EventKind, EventType, Offered};

/// Events kept: at most 600 bytes each, so some 600 KiB. At one a second, a quarter of an hour.
pub const CAPACITY: usize = 1024;

/// Events that one read takes at most.
pub const BATCH: usize = 256;

/// A clonable reference to the node's events.
#[derive(Debug, Clone)]
pub(crate) struct EventBus {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    kept: Mutex<VecDeque<Event>>,
    /// The number of the newest event; 0 before the first.
    newest: watch::Sender<u64>,
    capacity: usize,
}

/// What a read brought.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Batch {
    /// Events that were asked for and are gone, of whatever type.
    pub(crate) missed: u64,
    /// Oldest first.
    pub(crate) events: Vec<Event>,
    /// After which number to go on.
    pub(crate) cursor: u64,
}

impl Default for EventBus {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl EventBus {
    fn with_capacity(capacity: usize) -> Self {
        let (newest, _) = watch::channel(0);
        Self { shared: Arc::new(Shared { kept: Mutex::default(), newest, capacity }) }
    }

    /// Something happened at `time_ms`, Unix milliseconds. The oldest event goes when there is no room.
    pub(crate) fn emit(&self, time_ms: u64, kind: EventKind) {
        let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= self.shared.capacity {
            kept.pop_front();
        }
        let id = self.newest().saturating_add(1);
        kept.push_back(Event { id, time_ms, kind });
        // Under the lock: numbers become known in order.
        self.shared.newest.send_replace(id);
    }

    /// The number of the newest event.
    pub(crate) fn newest(&self) -> u64 {
        *self.shared.newest.borrow()
    }

    /// Up to [`BATCH`] events after number `cursor` of these types (all, when there are none). Does not wait.
    pub(crate) fn after(&self, cursor: u64, types: &[EventType]) -> Batch {
        let kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // A number from before a restart lies in the future: everything is news then.
        let cursor = if cursor > self.newest() { 0 } else { cursor };
        let oldest = kept.front().map_or(0, |event| event.id);
        let missed = oldest.saturating_sub(cursor.saturating_add(1));
        let wanted = |event: &&Event| types.is_empty() || types.contains(&event.kind.event_type());
        let first = kept.partition_point(|event| event.id <= cursor);
        let mut next = self.newest();
        let mut events = Vec::new();
        for event in kept.iter().skip(first).filter(wanted) {
            if events.len() == BATCH {
                next = events.last().map_or(next, |last: &Event| last.id);
                break;
            }
            events.push(event.clone());
        }
        Batch { missed, events, cursor: next }
    }

    /// Waits until there is an event after number `cursor`.
    pub(crate) async fn wait(&self, cursor: u64) {
        let mut newest = self.shared.newest.subscribe();
        // The sender lives as long as the bus.
        let _ = newest.wait_for(|newest| *newest > cursor).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn peer(n: u64) -> EventKind {
        EventKind::Peer { peer: format!("p{n}"), connected: true }
    }

    fn message(n: u64) -> EventKind {
        EventKind::Message { author: "a".into(), text: format!("m{n}"), sent_ms: n, own: false }
    }

    #[test]
    fn a_cursor_continues_where_it_stopped() {
        let bus = EventBus::default();
        for n in 1..=10 {
            bus.emit(n, if n % 2 == 0 { peer(n) } else { message(n) });
        }
        let all = bus.after(0, &[]);
        assert_eq!((all.missed, all.events.len(), all.cursor), (0, 10, 10));
        assert!(all.events.iter().map(|event| event.id).eq(1..=10));
        let some = bus.after(4, &[EventType::Message]);
        assert_eq!(some.events.iter().map(|event| event.id).collect::<Vec<_>>(), [5, 7, 9]);
        assert_eq!(bus.after(some.cursor, &[]).events, []);
        // From before a restart.
        assert_eq!(bus.after(999, &[EventType::Peer]).events.len(), 5);
    }

    #[test]
    fn it_is_bounded_and_says_what_is_gone() {
        let bus = EventBus::with_capacity(3);
        for n in 1..=10 {
            bus.emit(n, peer(n));
        }
        let late = bus.after(2, &[]);
        assert_eq!((late.missed, late.events.len(), late.cursor), (5, 3, 10));
        assert_eq!(bus.after(7, &[]).missed, 0);
    }

    #[test]
    fn a_batch_is_bounded_and_loses_nothing() {
        let bus = EventBus::default();
        for n in 0..600 {
            bus.emit(n, message(n));
        }
        let (mut cursor, mut seen) = (0, 0);
        loop {
            let batch = bus.after(cursor, &[EventType::Message]);
            assert!(batch.events.len() <= BATCH);
            if batch.events.is_empty() {
                break;
            }
            seen += batch.events.len();
            cursor = batch.cursor;
        }
        assert_eq!((seen, cursor), (600, 600));
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let bus = EventBus::default();
        let waiting = tokio::spawn({
            let bus = bus.clone();
            async move {
                bus.wait(0).await;
                bus.after(0, &[]).events.len()
            }
        });
        bus.emit(1, peer(1));
        assert_eq!(tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap(), 1);
    }
}
