//! A wire tap: a TCP proxy that keeps every byte.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// The type of TLS's first message from the client, and from the server.
pub const CLIENT_HELLO: u8 = 1;
pub const SERVER_HELLO: u8 = 2;

/// What went over one connection.
#[derive(Clone, Default)]
pub struct Seen {
    pub client: Vec<u8>,
    pub server: Vec<u8>,
}

type Shared = Arc<Mutex<Vec<Seen>>>;

/// The tap.
pub struct Tap {
    port: u16,
    target: watch::Sender<Option<SocketAddr>>,
    seen: Shared,
}

impl Tap {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (target, target_known) = watch::channel(None);
        let seen = Shared::default();
        tokio::spawn(accept(listener, target_known, seen.clone()));
        Self { port, target, seen }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where connections go on to. Until then they wait.
    pub fn leads_to(&self, addr: &str) {
        self.target.send_replace(Some(addr.parse().unwrap()));
    }

    /// All that went over it so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn accept(listener: TcpListener, mut target: watch::Receiver<Option<SocketAddr>>, seen: Shared) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(Some(addr)) = target.wait_for(Option::is_some).await.map(|addr| *addr) else { return };
        let Ok(server) = TcpStream::connect(addr).await else { continue };
        let index = {
            let mut all = seen.lock().unwrap();
            all.push(Seen::default());
            all.len() - 1
        };
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        tokio::spawn(pass(client_read, server_write, seen.clone(), move |all, bytes| {
            all[index].client.extend_from_slice(bytes);
        }));
        tokio::spawn(pass(server_read, client_write, seen.clone(), move |all, bytes| {
            all[index].server.extend_from_slice(bytes);
        }));
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    seen: Shared,
    keep: impl Fn(&mut Vec<Seen>, &[u8]),
) {
    let mut chunk = [0; 16 << 10];
    while let Ok(n) = from.read(&mut chunk).await
        && n > 0
    {
        keep(&mut seen.lock().unwrap(), &chunk[..n]);
        if to.write_all(&chunk[..n]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// Checks that bytes are records of TLS from the first to the last (which may be cut), and begin with this message.
pub fn assert_tls(bytes: &[u8], message: u8) {
    assert!(bytes.len() > 6, "nothing was said");
    assert_eq!((bytes[0], bytes[5]), (22, message), "a handshake begins with a hello");
    let mut rest = bytes;
    while let [kind, major, _, high, low, after @ ..] = rest {
        assert!((20..=23).contains(kind) && *major == 3, "not a record of TLS: {kind} {major}");
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        rest = after.get(length..).unwrap_or_default();
    }
}

/// The protocols that a client hello asks for.
pub fn alpn(client: &[u8]) -> Vec<String> {
    const ALPN: u16 = 16;
    let u16_at = |at: usize| usize::from(u16::from_be_bytes([client[at], client[at + 1]]));
    // Record (5), message type and length (4), version (2), random (32), session id, cipher suites, compression.
    let mut at = 43;
    at += 1 + usize::from(client[at]);
    at += 2 + u16_at(at);
    at += 1 + usize::from(client[at]);
    let end = at + 2 + u16_at(at);
    at += 2;
    let mut names = Vec::new();
    while at < end {
        let (kind, length) = (u16_at(at), u16_at(at + 2));
        if kind == usize::from(ALPN) {
            let mut name = at + 6;
            while name < at + 4 + length {
                let size = usize::from(client[name]);
                names.push(String::from_utf8_lossy(&client[name + 1..=name + size]).into_owned());
                name += 1 + size;
            }
        }
        at += 4 + length;
    }
    names
}
