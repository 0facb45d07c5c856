//! How fast one connection's messages of one protocol are read. Pure but for the handler that waits.
//!
//! Some of libp2p's protocols do what costs most (signatures, lists of names) where they read, before anybody is asked. All that
//! can be done about a peer that sends more than an honest one would is to read on later: each message costs units; a connection
//! has so many at once, and so many a second. All connections together have a total, which holds for those that have spent more
//! than a trickle of late: who floods does not take it from those who do not. What is not read fills the stream's window, and then
//! the sender waits.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::FutureExt;
use futures_timer::Delay;
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, SubstreamProtocol, handler::ConnectionEvent};

/// Units, in seconds and at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// A second, of one connection.
    pub rate: u32,
    /// At once, of one connection.
    pub burst: u32,
    /// A second, of all connections.
    pub total: u32,
    /// Spent of late by a connection that the total is not held against.
    pub trickle: u32,
}

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

/// What all connections of a node may spend, and have spent.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    rates: Rates,
    spent: Arc<Mutex<Bucket>>,
}

impl Pace {
    pub(crate) fn new(rates: Rates) -> Self {
        Self { rates, spent: Arc::default() }
    }
}

/// What one connection has spent.
#[derive(Debug)]
struct Budget {
    own: Bucket,
    pace: Pace,
}

impl Budget {
    fn new(pace: &Pace) -> Self {
        Self { own: Bucket::default(), pace: pace.clone() }
    }

    /// Something was read. How long to wait before the next.
    fn spend(&mut self, units: u32, now: Instant) -> Option<Duration> {
        let Rates { rate, burst, total, trickle } = self.pace.rates;
        let own = self.own.take(units, rate, now);
        let all = self.pace.spent.lock().unwrap_or_else(PoisonError::into_inner).take(units, total, now);
        let mut wait = own.saturating_sub(worth(burst, rate));
        if own > worth(trickle, rate) {
            // A second's worth is there for everybody; nobody waits longer than its own share would have it.
            wait = wait.max(all.saturating_sub(worth(total, total)).min(own));
        }
        (!wait.is_zero()).then_some(wait)
    }
}

/// Another's handler, polled no more often than its peer has units. Its events cost what the function says.
pub struct Handler<H: ConnectionHandler> {
    inner: H,
    cost: fn(&H::ToBehaviour) -> u32,
    budget: Budget,
    pause: Option<Delay>,
}

impl<H: ConnectionHandler> Handler<H> {
    pub(crate) fn new(inner: H, pace: &Pace, cost: fn(&H::ToBehaviour) -> u32) -> Self {
        Self { inner, cost, budget: Budget::new(pace), pause: None }
    }
}

impl<H: ConnectionHandler> ConnectionHandler for Handler<H> {
    type FromBehaviour = H::FromBehaviour;
    type ToBehaviour = H::ToBehaviour;
    type InboundProtocol = H::InboundProtocol;
    type OutboundProtocol = H::OutboundProtocol;
    type InboundOpenInfo = H::InboundOpenInfo;
    type OutboundOpenInfo = H::OutboundOpenInfo;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol, Self::InboundOpenInfo> {
        self.inner.listen_protocol()
    }

    fn connection_keep_alive(&self) -> bool {
        self.inner.connection_keep_alive()
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        self.inner.on_behaviour_event(event);
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            '_,
            Self::InboundProtocol,
            Self::OutboundProtocol,
            Self::InboundOpenInfo,
            Self::OutboundOpenInfo,
        >,
    ) {
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
        if let ConnectionHandlerEvent::NotifyBehaviour(message) = &event {
            let units = (self.cost)(message);
            if units > 0 {
                self.pause = self.budget.spend(units, Instant::now()).map(Delay::new);
            }
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

    const RATES: Rates = Rates { rate: 200, burst: 400, total: 4_000, trickle: 50 };

    fn pace() -> Pace {
        Pace::new(RATES)
    }

    /// Messages that a peer gets read in `seconds` when it always has more, sixteen at a time.
    fn read(budget: &mut Budget, units: u32, start: Instant, seconds: u64) -> u32 {
        let (mut now, mut count) = (start, 0);
        while now < start + Duration::from_secs(seconds) {
            now += budget.spend(16 * units, now).unwrap_or(Duration::ZERO);
            count += 16;
        }
        count
    }

    #[test]
    fn a_flood_is_read_at_the_rate_and_what_costs_ten_times_as_much_at_a_tenth_of_it() {
        let (now, Rates { rate, burst, .. }) = (Instant::now(), RATES);
        let cheap = read(&mut Budget::new(&pace()), 1, now, 100);
        assert!((rate * 100..=rate * 100 + burst + 16).contains(&cheap), "{cheap}");
        let dear = read(&mut Budget::new(&pace()), 10, now, 100);
        assert!((rate * 10..=rate * 10 + burst / 10 + 32).contains(&dear), "{dear}");
    }

    #[test]
    fn an_honest_neighbour_never_waits_even_when_others_have_spent_everything() {
        let (pace, start) = (pace(), Instant::now());
        let mut flooders: Vec<_> = (0..100).map(|_| Budget::new(&pace)).collect();
        let mut honest = Budget::new(&pace);
        for beat in 0..60 {
            let now = start + Duration::from_secs(beat);
            let waits: Vec<_> = flooders.iter_mut().map(|flooder| flooder.spend(160, now)).collect();
            assert!(beat < 2 || waits.iter().all(Option::is_some), "{waits:?}");
            for n in 0..40 {
                assert_eq!(honest.spend(1, now + Duration::from_millis(n * 20)), None);
            }
        }
    }

    #[test]
    fn numbers_past_any_meaning_are_a_wait_and_no_panic() {
        let mut budget = Budget::new(&pace());
        for _ in 0..100 {
            assert!(budget.spend(u32::MAX, Instant::now()).is_some());
        }
    }
}
