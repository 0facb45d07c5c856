//! Inbound handshakes under way: when there are too many, the oldest gives way.
//!
//! Connection limits turn the newcomer away, so that whoever opens connections and stays silent keeps everybody else out
//! for as long as a handshake may take. A peer that means it is done within a few round trips. Here the handshake that has
//! taken longest ends when one more begins: to keep others out, silent connections must come faster than as many as the
//! limit within somebody's handshake.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{
    FutureExt,
    channel::oneshot,
    future::{BoxFuture, Either, select},
};
use libp2p::{
    Multiaddr, Transport, TransportError,
    core::transport::{Boxed, DialOpts, ListenerId, TransportEvent},
};

/// A transport with at most so many inbound handshakes under way.
pub(crate) struct Handshakes<O> {
    inner: Boxed<O>,
    /// Oldest first. Dropping one ends its handshake.
    under_way: VecDeque<oneshot::Sender<()>>,
    limit: usize,
}

impl<O> Handshakes<O> {
    /// A limit of 0 is taken as 1.
    pub(crate) fn new(inner: Boxed<O>, limit: u32) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).max(1);
        Self { inner, under_way: VecDeque::new(), limit }
    }

    /// Counts one more; what comes tells when it must end.
    fn begin(&mut self) -> oneshot::Receiver<()> {
        // Those that are done have dropped their end.
        self.under_way.retain(|handshake| !handshake.is_canceled());
        while self.under_way.len() >= self.limit {
            self.under_way.pop_front();
        }
        let (under_way, end) = oneshot::channel();
        self.under_way.push_back(under_way);
        end
    }
}

impl<O: 'static> Transport for Handshakes<O> {
    type Output = O;
    type Error = io::Error;
    type ListenerUpgrade = BoxFuture<'static, io::Result<O>>;
    type Dial = <Boxed<O> as Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, addr)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        self.inner.dial(addr, opts)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let event = std::task::ready!(Pin::new(&mut self.inner).poll(cx));
        Poll::Ready(event.map_upgrade(|handshake| {
            let end = self.begin();
            async move {
                match select(handshake, end).await {
                    Either::Left((result, _)) => result,
                    Either::Right(_) => Err(io::Error::other("gave way to newer handshakes")),
                }
            }
            .boxed()
        }))
    }
}

#[cfg(test)]
mod tests {
    use libp2p::core::transport::dummy::DummyTransport;

    use super::*;

    fn ended(end: &mut oneshot::Receiver<()>) -> bool {
        end.try_recv().is_err()
    }

    #[test]
    fn the_oldest_gives_way_and_what_is_done_does_not_count() {
        let mut handshakes = Handshakes::new(DummyTransport::<()>::new().boxed(), 3);
        let (mut first, second, mut third) = (handshakes.begin(), handshakes.begin(), handshakes.begin());
        drop(second);
        let mut fourth = handshakes.begin();
        assert!(!ended(&mut first) && !ended(&mut third) && !ended(&mut fourth));
        let fifth = handshakes.begin();
        assert!(ended(&mut first) && !ended(&mut third));
        drop((first, fifth));
        for _ in 0..1000 {
            drop(handshakes.begin());
        }
        assert!(!ended(&mut third) && !ended(&mut fourth));
        assert!(handshakes.under_way.len() <= 3);
    }
}
