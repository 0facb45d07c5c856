//! The web front: takes connections, ends TLS, answers requests, hands tunnels over.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, channel::mpsc, io::BufWriter};
use futures_rustls::TlsAcceptor;
use libp2p::tcp::tokio::TcpStream;
use quelea_behaviours::masking::{Bytes, SEND_BUFFER, Tunnel};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{MissedTickBehavior, interval_at, timeout},
};

use super::{
    certs::{self, Certificates},
    guests::Guests,
    http::{Answer, MAX_HEAD, Site, too_long},
};
use crate::telemetry::{
    front::{Closed, Line, Request},
    stats::NodeStats,
};

/// How long TLS may take, and how long a request's head may take to come: slow phones need a few seconds.
const DUE: Duration = Duration::from_secs(10);
/// How long a visitor may wait before it asks again on the same connection.
const IDLE: Duration = Duration::from_secs(15);
/// How long an answer may take to leave.
const SENT: Duration = Duration::from_secs(30);
/// Requests on one connection, as old nginx had it.
const MAX_REQUESTS: usize = 100;
/// After the system has refused to accept, most often for want of file descriptors: asking again at once would spin.
const BREATH: Duration = Duration::from_millis(100);
/// Bytes read at once.
const CHUNK: usize = 2048;

/// TLS, and the certificate in it.
pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    pub(super) certificates: Arc<Certificates>,
}

/// What stands at the port.
pub(crate) struct Front {
    listener: TcpListener,
    /// Nothing behind the operator's own web server.
    tls: Option<Tls>,
    site: Arc<Site>,
    tunnels: mpsc::Sender<Tunnel>,
    stats: Arc<NodeStats>,
}

impl Front {
    pub(super) fn new(
        listener: TcpListener,
        tls: Option<Tls>,
        site: Arc<Site>,
        tunnels: mpsc::Sender<Tunnel>,
        stats: Arc<NodeStats>,
    ) -> Self {
        Self { listener, tls, site, tunnels, stats }
    }

    /// Serves until `stop` resolves. Tunnels are the swarm's and outlive it.
    pub(crate) async fn run(self, stop: impl Future<Output = ()>) {
        let mut guests = Guests::new();
        let mut tasks = JoinSet::new();
        let figures = &self.stats.front;
        // The first look comes after a while: they were just read.
        let mut looks = interval_at(tokio::time::Instant::now() + certs::LOOK, certs::LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                // Their ends are nobody's business; this only clears them away.
                Some(_) = tasks.join_next() => {}
                _ = looks.tick() => if let Some(tls) = &self.tls {
                    let certificates = tls.certificates.clone();
                    tasks.spawn_blocking(move || certificates.look());
                },
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, from)) => {
                        if guests.admit(from.ip(), Instant::now()) {
                            let line = OpenLine::new(self.stats.clone());
                            let guest = Guest { from, line, site: self.site.clone(), tunnels: self.tunnels.clone() };
                            let tls = self.tls.as_ref().map(|tls| tls.acceptor.clone());
                            let gone = guests.enter(from.ip(), tasks.spawn(guest.welcome(stream, tls)));
                            figures.closed(Closed::Crowded).add(gone);
                        } else {
                            figures.closed(Closed::Host).inc();
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the web front cannot take a connection");
                        tokio::time::sleep(BREATH).await;
                    }
                },
            }
        }
    }
}

/// Counts a connection as open while it is.
struct OpenLine {
    stats: Arc<NodeStats>,
    whose: Line,
}

impl OpenLine {
    fn new(stats: Arc<NodeStats>) -> Self {
        stats.front.lines(Line::Visitor).inc();
        Self { stats, whose: Line::Visitor }
    }

    fn becomes(&mut self, whose: Line) {
        self.stats.front.lines(self.whose).dec();
        self.stats.front.lines(whose).inc();
        self.whose = whose;
    }
}

impl Drop for OpenLine {
    fn drop(&mut self) {
        self.stats.front.lines(self.whose).dec();
    }
}

/// One connection.
struct Guest {
    from: SocketAddr,
    line: OpenLine,
    site: Arc<Site>,
    tunnels: mpsc::Sender<Tunnel>,
}

impl Guest {
    async fn welcome(self, stream: tokio::net::TcpStream, tls: Option<TlsAcceptor>) {
        let _ = stream.set_nodelay(true);
        // Unlike the adapter of tokio's own this one writes several records at once.
        let stream = TcpStream(stream);
        let (from, stats) = (self.from, self.line.stats.clone());
        let failed = |error: io::Error| {
            stats.front.handshakes_failed.inc();
            Err(error)
        };
        let served = match tls {
            None => self.serve(Box::new(stream)).await,
            Some(tls) => match timeout(DUE, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.serve(Box::new(stream)).await,
                Ok(Err(error)) => failed(error),
                Err(_) => failed(io::ErrorKind::TimedOut.into()),
            },
        };
        if let Err(error) = served {
            tracing::debug!(%from, %error, "a visitor left early");
        }
    }

    async fn serve(self, mut stream: Box<dyn Bytes>) -> io::Result<()> {
        let mut read = Vec::new();
        for turn in 0..MAX_REQUESTS {
            let due = if turn == 0 { DUE } else { IDLE };
            let answer = match timeout(due, head_end(&mut stream, &mut read)).await?? {
                Some(end) => {
                    let answer = self.site.answer(read.get(..end).unwrap_or_default());
                    self.count(&answer);
                    if let Answer::Tunnel { forwarded } = answer {
                        self.hand_over(stream, read, forwarded);
                        return Ok(());
                    }
                    read.drain(..end);
                    answer
                }
                None if read.is_empty() => return Ok(()),
                None => {
                    let answer = too_long();
                    self.count(&answer);
                    answer
                }
            };
            let Answer::Response { bytes, status, keep } = answer else { return Ok(()) };
            tracing::debug!(from = %self.from, status, "answered a visitor");
            let send = async {
                stream.write_all(&bytes).await?;
                stream.flush().await
            };
            timeout(SENT, send).await??;
            if !keep {
                break;
            }
        }
        timeout(SENT, stream.close()).await?
    }

    fn count(&self, answer: &Answer) {
        let kind = match answer {
            Answer::Tunnel { .. } => Request::Upgrade,
            Answer::Response { status: 200, .. } => Request::Page,
            Answer::Response { status: 404, .. } => Request::NotFound,
            Answer::Response { .. } => Request::Refused,
        };
        self.line.stats.front.requests(kind).inc();
    }

    fn hand_over(mut self, stream: Box<dyn Bytes>, read: Vec<u8>, forwarded: Option<std::net::IpAddr>) {
        let from = SocketAddr::new(forwarded.unwrap_or(self.from.ip()), self.from.port());
        let stats = self.line.stats.clone();
        self.line.becomes(Line::Tunnel);
        let stream = Replayed { read, at: 0, stream, _line: Some(self.line) };
        let stream = Box::new(BufWriter::with_capacity(SEND_BUFFER, stream));
        if self.tunnels.try_send(Tunnel { stream, from }).is_err() {
            stats.front.closed(Closed::Swarm).inc();
            tracing::warn!(%from, "a connection was dropped: the swarm does not take it");
        }
    }
}

/// Reads until `read` holds a head, and says where it ends; nothing when the other end is done or the head too long.
async fn head_end(stream: &mut Box<dyn Bytes>, read: &mut Vec<u8>) -> io::Result<Option<usize>> {
    const END: &[u8] = b"\r\n\r\n";
    let mut looked = 0;
    let mut chunk = [0; CHUNK];
    loop {
        let unseen = read.get(looked..).unwrap_or_default();
        if let Some(at) = unseen.windows(END.len()).position(|four| four == END) {
            return Ok(Some(looked + at + END.len()));
        }
        if read.len() >= MAX_HEAD {
            return Ok(None);
        }
        looked = read.len().saturating_sub(END.len() - 1);
        match stream.read(&mut chunk).await? {
            0 => {
                read.clear();
                return Ok(None);
            }
            n => read.extend_from_slice(&chunk[..n]),
        }
    }
}

/// A stream whose first bytes have been read already, and come again.
struct Replayed {
    read: Vec<u8>,
    at: usize,
    stream: Box<dyn Bytes>,
    /// Open until this is dropped.
    _line: Option<OpenLine>,
}

impl AsyncRead for Replayed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let rest = self.read.get(self.at..).unwrap_or_default();
        if rest.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, into);
        }
        let n = rest.len().min(into.len());
        into[..n].copy_from_slice(&rest[..n]);
        self.at += n;
        if self.at == self.read.len() {
            (self.read, self.at) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(n))
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_read_comes_again() {
        let rest = Box::new(futures::io::Cursor::new(b"world".to_vec()));
        let mut stream = Replayed { read: b"hello ".to_vec(), at: 0, stream: rest, _line: None };
        let mut all = Vec::new();
        let mut two = [0; 2];
        loop {
            match stream.read(&mut two).await.unwrap() {
                0 => break,
                n => all.extend_from_slice(&two[..n]),
            }
        }
        assert_eq!(all, b"hello world");
    }

    #[tokio::test]
    async fn a_head_ends_at_its_empty_line_or_grows_too_long() {
        let stream = |bytes: &[u8]| -> Box<dyn Bytes> { Box::new(futures::io::Cursor::new(bytes.to_vec())) };
        let mut read = Vec::new();
        let end = head_end(&mut stream(b"GET / HTTP/1.1\r\n\r\nGET"), &mut read).await.unwrap();
        assert_eq!((end, read.len()), (Some(18), 21));
        let mut read = Vec::new();
        assert_eq!(head_end(&mut stream(&[b'a'; 100_000]), &mut read).await.unwrap(), None);
        assert!((MAX_HEAD..MAX_HEAD + CHUNK).contains(&read.len()), "{}", read.len());
        let mut read = Vec::new();
        assert_eq!(head_end(&mut stream(b"GET / HT"), &mut read).await.unwrap(), None);
        assert!(read.is_empty(), "nobody waits for an answer");
    }
}
