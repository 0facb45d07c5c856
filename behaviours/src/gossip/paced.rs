//! How fast one connection's gossip is read. Pure but for the handler that waits.
//!
//! gossipsub checks the signatures of an RPC where it reads it, before anybody is asked. All that can be done about a peer that
//! has us check more than an honest one would is to read on later: each RPC costs a unit for each message, [`INVALID`] for
//! each that was wrong, one at least; a connection has [`BURST`] units at once and [`RATE`] a second. All connections together
//! have [`TOTAL`] a second, which holds for those that have spent more than [`TRICKLE`] of late: who floods does not take it
//! from those who do not. What is not read fills the stream's window, and then the sender waits.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::FutureExt;
use futures_timer::Delay;
use libp2p::swarm::{
    ConnectionHandler, ConnectionHandlerEvent, SubstreamProtocol, THandler, THandlerInEvent, handler::ConnectionEvent,
};

use super::behaviour::{FromHandler, Inner};

/// Units a second of one connection: as many signatures as [`guard`](crate::guard) checks within its messages.
pub const RATE: u32 = 200;
/// Units at once: a neighbour's whole memory of messages, when it is asked for it.
pub const BURST: u32 = 400;
/// Units of a message that is wrong: a signature of 40 µs, its place in the scores, and no use.
pub const INVALID: u32 = 10;
/// Units a second of all connections: at 40 µs a sixth of a core.
pub const TOTAL: u32 = 4_000;
/// Units of one connection that the total is not held against.
pub const TRICKLE: u32 = 50;

/// When a bucket will be full again.
#[derive(Debug, Default)]
struct Bucket {
    full_at: Option<Instant>,
}

impl Bucket {
    /// Takes so many units of `rate` a second. How far the bucket is from full then.
    fn take(&mut self, units: u32, rate: u32, now: Instant) -> Duration {
        let cost = Duration::from_secs(1).checked_div(rate).unwrap_or_default().saturating_mul(units);
        let full_at = self.full_at.unwrap_or(now).max(now).checked_add(cost).unwrap_or(now);
        self.full_at = Some(full_at);
        full_at.saturating_duration_since(now)
    }
}

fn worth(units: u32, rate: u32) -> Duration {
    Duration::from_secs(1).checked_div(rate).unwrap_or_default().saturating_mul(units)
}

/// What all connections have spent together.
#[derive(Debug, Clone, Default)]
pub(super) struct Total(Arc<Mutex<Bucket>>);

/// What one connection has spent.
#[derive(Debug)]
struct Budget {
    own: Bucket,
    total: Total,
}

impl Budget {
    /// An RPC was read. How long to wait before the next.
    fn spend(&mut self, messages: usize, invalid: usize, now: Instant) -> Option<Duration> {
        let [messages, invalid] = [messages, invalid].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let units = messages.saturating_add(invalid.saturating_mul(INVALID)).max(1);
        let own = self.own.take(units, RATE, now);
        let all = self.total.0.lock().unwrap_or_else(PoisonError::into_inner).take(units, TOTAL, now);
        let mut wait = own.saturating_sub(worth(BURST, RATE));
        if own > worth(TRICKLE, RATE) {
            // A second's worth is there for everybody; nobody waits longer than its own share would have it.
            wait = wait.max(all.saturating_sub(worth(TOTAL, TOTAL)).min(own));
        }
        (!wait.is_zero()).then_some(wait)
    }
}

type Wrapped = THandler<Inner>;

/// gossipsub's handler, polled no more often than its peer has units.
pub struct Handler {
    inner: Wrapped,
    budget: Budget,
    pause: Option<Delay>,
}

impl Handler {
    pub(super) fn new(inner: Wrapped, total: &Total) -> Self {
        Self { inner, budget: Budget { own: Bucket::default(), total: total.clone() }, pause: None }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = THandlerInEvent<Inner>;
    type ToBehaviour = FromHandler;
    type InboundProtocol = <Wrapped as ConnectionHandler>::InboundProtocol;
    type OutboundProtocol = <Wrapped as ConnectionHandler>::OutboundProtocol;
    type InboundOpenInfo = <Wrapped as ConnectionHandler>::InboundOpenInfo;
    type OutboundOpenInfo = <Wrapped as ConnectionHandler>::OutboundOpenInfo;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol, Self::InboundOpenInfo> {
        self.inner.listen_protocol()
    }

    fn connection_keep_alive(&self) -> bool {
        self.inner.connection_keep_alive()
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        self.inner.on_behaviour_event(event);
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>) {
        self.inner.on_connection_event(event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>> {
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.poll_unpin(cx));
            self.pause = None;
        }
        let event = std::task::ready!(self.inner.poll(cx));
        if let ConnectionHandlerEvent::NotifyBehaviour(FromHandler::Message { rpc, invalid_messages }) = &event {
            let wait = self.budget.spend(rpc.messages.len(), invalid_messages.len(), Instant::now());
            self.pause = wait.map(Delay::new);
        }
        Poll::Ready(event)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Option<Self::ToBehaviour>> {
        self.inner.poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(total: &Total) -> Budget {
        Budget { own: Bucket::default(), total: total.clone() }
    }

    /// Messages that a peer gets read in `seconds` when it always has more, sixteen at a time.
    fn read(budget: &mut Budget, wrong: bool, start: Instant, seconds: u64) -> u32 {
        let (mut now, mut count) = (start, 0);
        while now < start + Duration::from_secs(seconds) {
            let (messages, invalid) = if wrong { (0, 16) } else { (16, 0) };
            now += budget.spend(messages, invalid, now).unwrap_or(Duration::ZERO);
            count += 16;
        }
        count
    }

    #[test]
    fn a_flood_is_read_at_the_rate_and_wrong_ones_at_a_tenth_of_it() {
        let now = Instant::now();
        let right = read(&mut budget(&Total::default()), false, now, 100);
        assert!((RATE * 100..=RATE * 100 + BURST + 16).contains(&right), "{right}");
        let wrong = read(&mut budget(&Total::default()), true, now, 100);
        assert!((RATE * 10..=RATE * 10 + BURST / 10 + 32).contains(&wrong), "{wrong}");
    }

    #[test]
    fn an_honest_neighbour_never_waits_even_when_others_have_spent_everything() {
        let (total, start) = (Total::default(), Instant::now());
        let mut flooders: Vec<_> = (0..100).map(|_| budget(&total)).collect();
        let mut honest = budget(&total);
        for beat in 0..60 {
            let now = start + Duration::from_secs(beat);
            let waits: Vec<_> = flooders.iter_mut().map(|flooder| flooder.spend(0, 16, now)).collect();
            assert!(beat < 2 || waits.iter().all(Option::is_some), "{waits:?}");
            for n in 0..40 {
                assert_eq!(honest.spend(1, 0, now + Duration::from_millis(n * 20)), None);
            }
        }
    }

    #[test]
    fn numbers_past_any_meaning_are_a_wait_and_no_panic() {
        let mut budget = budget(&Total::default());
        for _ in 0..100 {
            assert!(budget.spend(usize::MAX, usize::MAX, Instant::now()).is_some());
        }
    }
}
