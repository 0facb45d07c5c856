//! Over short ways TCP is tried first.
//!
//! The swarm dials a peer's QUIC addresses before its TCP ones, which is right for the internet: a lost packet holds up one
//! stream and not all, and networks are passed more often. On one machine and in one network neither matters much, and TCP
//! has two advantages there: when the process at the other end dies, its kernel says so at once, where a QUIC peer is
//! noticed by its silence; and a byte costs less to send. So a QUIC dial to an address nearby waits long enough for the
//! dials over TCP, which the swarm staggers, to be done. Who listens on QUIC alone is reached that much later.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use futures_timer::Delay;
use libp2p::{
    Multiaddr, Transport, TransportError,
    core::{
        Endpoint,
        transport::{DialOpts, ListenerId, TransportEvent},
    },
};

use crate::scope::{self, Scope};

/// How long a QUIC dial nearby waits. The swarm begins dials over TCP 30 to 90 ms after the first over QUIC, the more QUIC
/// addresses there are the later, and one within a network takes a few milliseconds.
const HEAD_START: Duration = Duration::from_millis(120);

/// A transport that leaves others the first try at addresses nearby.
pub(crate) struct OthersFirst<T>(pub(crate) T);

impl<T> Transport for OthersFirst<T>
where
    T: Transport + Unpin,
    T::Dial: Send + 'static,
    T::Output: 'static,
    T::Error: 'static,
{
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = BoxFuture<'static, Result<T::Output, T::Error>>;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<T::Error>> {
        self.0.listen_on(id, addr)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.0.remove_listener(id)
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<T::Error>> {
        let near = scope::of(&addr).is_some_and(|scope| scope < Scope::World);
        // Who listens in a dial makes a hole for the other side, and time counts there.
        let wait = near && opts.role == Endpoint::Dialer;
        let dial = self.0.dial(addr, opts)?;
        Ok(async move {
            if wait {
                Delay::new(HEAD_START).await;
            }
            dial.await
        }
        .boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, T::Error>> {
        Pin::new(&mut self.0).poll(cx)
    }
}
