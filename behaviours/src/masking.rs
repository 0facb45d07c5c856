//! Masking: everything goes through a web server, as WebSocket in TLS.
//!
//! Who is masked dials addresses that end in `/tls/ws` only (or `/wss`, or with a path: see [`is_masked`]), and opens no
//! port: a web front that is not of libp2p's making serves a page to whoever asks for one, and hands over the connections
//! that ask for the secret path, as [`Tunnel`]s. So the swarm knows who is at the other end of each, and limits, bans and
//! scopes by address hold as they do for plain TCP.
//!
//! ```text
//! dial    DNS → TCP → TLS (the name in the address is the name in the certificate) → WebSocket → Noise → Yamux
//! accept  front → Tunnel → WebSocket → Noise → Yamux
//! ```
//!
//! A masked swarm listens on the addresses by which others reach its front: they are told as they are.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{AsyncRead, AsyncWrite, Stream, channel::mpsc, future, io::BufWriter};
use libp2p::{
    Multiaddr, Transport, TransportError,
    core::{
        transport::{Boxed, DialOpts, ListenerId, TransportEvent},
        upgrade,
    },
    multiaddr::Protocol,
    noise, tcp, websocket,
};

use crate::{
    BuildError, muxing,
    swarm::{MAX_WEBSOCKET_FRAME, Muxed, shown, with_names},
    traffic::Traffic,
};

/// Tunnels that wait for the swarm to take them. It takes each as soon as it turns, so more than a few mean that it does not.
pub const TUNNEL_QUEUE: usize = 64;

/// Bytes that wait for a tunnel's next flush. A WebSocket frame's head is written by itself, which would be a packet: so heads,
/// and the frames behind them that are written together, leave together.
pub const SEND_BUFFER: usize = 32 << 10;

/// A connection's bytes.
pub trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// An inbound connection that asks for the secret path. Its first bytes are that request's.
pub struct Tunnel {
    /// From the request line on.
    pub stream: Box<dyn Bytes>,
    /// Who is at the other end.
    pub from: SocketAddr,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("from", &self.from).finish_non_exhaustive()
    }
}

/// How a swarm is masked.
#[derive(Debug, Default)]
pub struct Masking {
    /// Certificates (X.509, DER) to trust besides those that browsers do.
    pub trust: Vec<Vec<u8>>,
    /// Where the front puts connections, from a channel of [`TUNNEL_QUEUE`]; nothing when nobody is to be let in.
    pub tunnels: Option<mpsc::Receiver<Tunnel>>,
}

/// Whether dialling `addr` shows nothing but TLS to a web server: `/tls/ws`, `/tls/sni/NAME/ws` or `/wss` at the end (with
/// or without a path), over TCP to an IP address or a name.
#[must_use]
pub fn is_masked(addr: &Multiaddr) -> bool {
    let mut parts = addr.iter().peekable();
    let host = matches!(
        parts.next(),
        Some(Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_))
    );
    let port = matches!(parts.next(), Some(Protocol::Tcp(_)));
    let web = match parts.next() {
        Some(Protocol::Wss(_)) => true,
        Some(Protocol::Tls) => {
            parts.next_if(|part| matches!(part, Protocol::Sni(_)));
            matches!(parts.next(), Some(Protocol::Ws(_)))
        }
        _ => false,
    };
    parts.next_if(|part| matches!(part, Protocol::P2p(_)));
    host && port && web && parts.next().is_none()
}

/// The transport of a masked swarm.
pub(crate) fn transport(
    masking: Masking,
    noise: noise::Config,
    muxer: muxing::Config,
    traffic: &Traffic,
) -> Result<Muxed, BuildError> {
    let mut tls = websocket::tls::Config::builder();
    for cert in masking.trust {
        let cert = websocket::tls::Certificate::new(cert);
        tls.add_trust(&cert).map_err(|e| BuildError::Trust(e.to_string()))?;
    }
    // Names are resolved beneath the WebSocket, which needs them for TLS.
    let dialler = with_names(|| tcp::tokio::Transport::new(tcp::Config::default().nodelay(true)))
        .map(|stream, _| Box::new(BufWriter::with_capacity(SEND_BUFFER, stream)) as Box<dyn Bytes>)
        .boxed();
    let mut web = websocket::Config::new(Streams { dialler, tunnels: masking.tunnels, listeners: Vec::new(), told: 0 });
    web.set_max_data_size(MAX_WEBSOCKET_FRAME).set_tls_config(tls.finish());
    let inner = web.upgrade(upgrade::Version::V1Lazy).authenticate(noise).multiplex(muxer).map(shown(traffic)).boxed();
    Ok(Masked { inner, listeners: HashMap::new() }.boxed())
}

/// Streams beneath the WebSocket: dialled ones, and what the front hands over.
struct Streams {
    dialler: Boxed<Box<dyn Bytes>>,
    tunnels: Option<mpsc::Receiver<Tunnel>>,
    /// All of them stand for the one front.
    listeners: Vec<(ListenerId, Multiaddr)>,
    /// How many of them have been told as listening.
    told: usize,
}

type Event = TransportEvent<future::Ready<io::Result<Box<dyn Bytes>>>, io::Error>;

impl Transport for Streams {
    type Output = Box<dyn Bytes>;
    type Error = io::Error;
    type ListenerUpgrade = future::Ready<io::Result<Box<dyn Bytes>>>;
    type Dial = <Boxed<Box<dyn Bytes>> as Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<io::Error>> {
        if self.tunnels.is_none() {
            return Err(TransportError::Other(io::Error::other("there is no web front to listen behind")));
        }
        self.listeners.push((id, addr));
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let Some(at) = self.listeners.iter().position(|(listener, _)| *listener == id) else { return false };
        self.listeners.remove(at);
        self.told = if at < self.told { self.told.saturating_sub(1) } else { self.told };
        true
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        self.dialler.dial(addr, opts)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some((listener_id, listen_addr)) = self.listeners.get(self.told).cloned() {
            self.told = self.told.saturating_add(1);
            return Poll::Ready(TransportEvent::NewAddress { listener_id, listen_addr });
        }
        let Some((listener_id, local_addr)) = self.listeners.first().cloned() else { return Poll::Pending };
        let Some(tunnels) = &mut self.tunnels else { return Poll::Pending };
        match Pin::new(tunnels).poll_next(cx) {
            Poll::Ready(Some(Tunnel { stream, from })) => Poll::Ready(TransportEvent::Incoming {
                listener_id,
                upgrade: future::ready(Ok(stream)),
                local_addr,
                send_back_addr: Multiaddr::from(from.ip()).with(Protocol::Tcp(from.port())),
            }),
            Poll::Ready(None) => {
                self.tunnels = None;
                let reason = Err(io::Error::other("the web front is gone"));
                Poll::Ready(TransportEvent::ListenerClosed { listener_id, reason })
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Lets only masked addresses through, and tells those of the front instead of what stands behind it.
struct Masked {
    inner: Muxed,
    /// By which address each listener is reached. As many as were asked for.
    listeners: HashMap<ListenerId, Multiaddr>,
}

impl Masked {
    fn public(&self, id: ListenerId, addr: Multiaddr) -> Multiaddr {
        self.listeners.get(&id).cloned().unwrap_or(addr)
    }
}

impl Transport for Masked {
    type Output = <Muxed as Transport>::Output;
    type Error = io::Error;
    type ListenerUpgrade = <Muxed as Transport>::ListenerUpgrade;
    type Dial = <Muxed as Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<io::Error>> {
        if !is_masked(&addr) {
            return Err(TransportError::MultiaddrNotSupported(addr));
        }
        // TLS ends at the front, so that here it is a plain WebSocket.
        let plain = addr.iter().take(2).collect::<Multiaddr>().with(Protocol::Ws("/".into()));
        self.inner.listen_on(id, plain)?;
        self.listeners.insert(id, addr);
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.listeners.remove(&id);
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        if !is_masked(&addr) {
            return Err(TransportError::MultiaddrNotSupported(addr));
        }
        self.inner.dial(addr, opts)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Poll::Ready(match std::task::ready!(Pin::new(&mut self.inner).poll(cx)) {
            TransportEvent::NewAddress { listener_id, listen_addr } => {
                TransportEvent::NewAddress { listener_id, listen_addr: self.public(listener_id, listen_addr) }
            }
            TransportEvent::AddressExpired { listener_id, listen_addr } => {
                TransportEvent::AddressExpired { listener_id, listen_addr: self.public(listener_id, listen_addr) }
            }
            TransportEvent::Incoming { listener_id, upgrade, local_addr, send_back_addr } => TransportEvent::Incoming {
                listener_id,
                upgrade,
                local_addr: self.public(listener_id, local_addr),
                send_back_addr: in_tls(&send_back_addr),
            },
            other => other,
        })
    }
}

/// `/ip4/…/tcp/…/ws` as the other end made it: `/ip4/…/tcp/…/tls/ws`.
fn in_tls(addr: &Multiaddr) -> Multiaddr {
    let tcp: Multiaddr = addr.iter().take(2).collect();
    tcp.with(Protocol::Tls).with(Protocol::Ws("/".into()))
}

#[cfg(test)]
mod tests {
    use libp2p::PeerId;

    use super::*;

    fn addr(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_a_web_server_s_address_is_masked() {
        let peer = PeerId::random();
        for good in [
            "/dns4/www.example.org/tcp/443/tls/ws".to_owned(),
            "/ip4/203.0.113.7/tcp/443/tls/sni/www.example.org/ws".into(),
            "/ip6/2001:db8::7/tcp/8443/wss".into(),
            format!("/dns/www.example.org/tcp/443/tls/x-parity-ws/%2Fpath/p2p/{peer}"),
        ] {
            assert!(is_masked(&addr(&good)), "{good}");
        }
        for bad in [
            "/ip4/203.0.113.7/tcp/8468".to_owned(),
            "/ip4/203.0.113.7/tcp/80/ws".into(),
            "/ip4/203.0.113.7/tcp/443/tls".into(),
            "/ip4/203.0.113.7/udp/443/quic-v1".into(),
            "/dnsaddr/www.example.org".into(),
            "/memory/7".into(),
            format!("/ip4/203.0.113.7/tcp/443/tls/ws/p2p/{peer}/p2p-circuit"),
        ] {
            assert!(!is_masked(&addr(&bad)), "{bad}");
        }
    }

    fn masked(tunnels: Option<mpsc::Receiver<Tunnel>>) -> Muxed {
        let noise = noise::Config::new(&libp2p::identity::Keypair::generate_ed25519()).unwrap();
        transport(Masking { trust: Vec::new(), tunnels }, noise, muxing::Config::new(8), &Traffic::default()).unwrap()
    }

    #[tokio::test]
    async fn nothing_else_is_dialled_or_listened_on() {
        let (_front, tunnels) = mpsc::channel(1);
        let mut transport = masked(Some(tunnels));
        let opts =
            || DialOpts { role: libp2p::core::Endpoint::Dialer, port_use: libp2p::core::transport::PortUse::New };
        for open in ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1/ws"] {
            let refused = |e| matches!(e, TransportError::MultiaddrNotSupported(_));
            assert!(transport.dial(addr(open), opts()).err().is_some_and(refused), "{open}");
            assert!(transport.listen_on(ListenerId::next(), addr(open)).err().is_some_and(refused), "{open}");
        }
        assert!(transport.listen_on(ListenerId::next(), addr("/dns4/a.example/tcp/443/tls/ws")).is_ok());
        assert!(masked(None).listen_on(ListenerId::next(), addr("/dns4/a.example/tcp/443/tls/ws")).is_err());
    }

    /// Limits by address see the other end, not the front.
    #[tokio::test]
    async fn a_tunnel_comes_from_who_is_at_its_other_end() {
        let (mut front, tunnels) = mpsc::channel(1);
        let mut transport = masked(Some(tunnels));
        let public = addr("/dns4/a.example/tcp/443/tls/x-parity-ws/%2Fpath");
        transport.listen_on(ListenerId::next(), public.clone()).unwrap();
        let mut next = async || future::poll_fn(|cx| Pin::new(&mut transport).poll(cx)).await;
        assert_eq!(next().await.into_new_address(), Some(public.clone()));
        let stream = Box::new(futures::io::Cursor::new(Vec::new()));
        front.try_send(Tunnel { stream, from: "203.0.113.7:5000".parse().unwrap() }).unwrap();
        let TransportEvent::Incoming { local_addr, send_back_addr, .. } = next().await else { panic!("no connection") };
        assert_eq!((local_addr, send_back_addr), (public, addr("/ip4/203.0.113.7/tcp/5000/tls/ws")));
        drop(front);
        assert!(matches!(next().await, TransportEvent::ListenerClosed { reason: Err(_), .. }));
    }
}
