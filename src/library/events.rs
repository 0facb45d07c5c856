//! What happens on a node.

use std::collections::VecDeque;

use crate::events::{Event, EventBus};

/// A node's events, from its start on. It is a cursor into a memory of the last 1,024 and costs the node nothing: who comes late, or
/// reads too slowly, is told how many are gone.
#[derive(Debug)]
pub struct Events {
    bus: EventBus,
    cursor: u64,
    waiting: VecDeque<Event>,
}

/// What a look at the events brought.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Followed {
    /// The next one.
    Event(Event),
    /// So many are gone: they were not read in time.
    Missed(u64),
}

impl Events {
    pub(crate) fn new(bus: EventBus) -> Self {
        Self { bus, cursor: 0, waiting: VecDeque::new() }
    }

    /// Waits for the next event. It does not end while the node runs, and nothing is lost when the future is dropped
    /// before it is ready.
    pub async fn next(&mut self) -> Followed {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Followed::Event(event);
            }
            self.bus.wait(self.cursor).await;
            let batch = self.bus.after(self.cursor, &[]);
            self.cursor = batch.cursor;
            self.waiting.extend(batch.events);
            if batch.missed > 0 {
                return Followed::Missed(batch.missed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{CAPACITY, EventKind};

    #[tokio::test]
    async fn events_come_in_order_and_what_is_gone_is_told() {
        let bus = EventBus::default();
        let say = |n: usize| bus.emit(1, EventKind::Peer { peer: n.to_string(), connected: true });
        say(0);
        let mut events = Events::new(bus.clone());
        say(1);
        let Followed::Event(event) = events.next().await else { panic!("an event") };
        assert_eq!(event.kind, EventKind::Peer { peer: "0".into(), connected: true }, "also from before");
        (0..CAPACITY + 5).for_each(say);
        let Followed::Event(event) = events.next().await else { panic!("an event") };
        assert_eq!(event.kind, EventKind::Peer { peer: "1".into(), connected: true });
        assert_eq!(events.next().await, Followed::Missed(5));
        for n in 5..CAPACITY + 5 {
            let Followed::Event(event) = events.next().await else { panic!("an event") };
            assert_eq!(event.kind, EventKind::Peer { peer: n.to_string(), connected: true });
        }
    }
}
