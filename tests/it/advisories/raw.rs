//! A connection without a swarm: TCP, Noise and the choice of Yamux are real, and from there on every byte is ours.

use std::{net::SocketAddr, time::Duration};

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{
    core::upgrade::{OutboundConnectionUpgrade, UpgradeInfo},
    identity::Keypair,
    noise,
};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

/// How long the victim may take to answer a handshake, or to take bytes.
const SOON: Duration = Duration::from_secs(10);

/// After this without a place in the victim's buffers, it does not read any more.
const FULL: Duration = Duration::from_millis(500);

pub type Encrypted = noise::Output<Compat<TcpStream>>;

/// A connection on which Yamux has been agreed upon, and nothing said yet.
pub struct Raw {
    io: Encrypted,
}

/// A message of multistream-select: its length, the protocol, a newline.
fn offer(protocol: &str) -> Vec<u8> {
    let mut message = vec![u8::try_from(protocol.len() + 1).unwrap()];
    message.extend_from_slice(protocol.as_bytes());
    message.push(b'\n');
    message
}

/// Agrees on a protocol, as the one who dials.
async fn agree<S>(io: &mut S, protocol: &str) -> Option<()>
where
    S: futures::AsyncRead + futures::AsyncWrite + Unpin,
{
    let asked = [offer("/multistream/1.0.0"), offer(protocol)].concat();
    io.write_all(&asked).await.ok()?;
    io.flush().await.ok()?;
    let mut answer = vec![0; asked.len()];
    io.read_exact(&mut answer).await.ok()?;
    (answer == asked).then_some(())
}

impl Raw {
    /// Connects under a fresh identity, from `source` where that matters; `None` when the victim does not want it.
    pub async fn connect(victim: SocketAddr, source: Option<SocketAddr>) -> Option<Self> {
        let connecting = async {
            let socket = TcpSocket::new_v4().ok()?;
            if let Some(source) = source {
                socket.set_reuseaddr(true).ok()?;
                socket.bind(source).ok()?;
            }
            let mut stream = socket.connect(victim).await.ok()?.compat();
            let noise = noise::Config::new(&Keypair::generate_ed25519()).unwrap();
            let protocol = noise.protocol_info().next()?;
            agree(&mut stream, protocol).await?;
            let (_, mut io) = noise.upgrade_outbound(stream, protocol).await.ok()?;
            agree(&mut io, "/yamux/1.0.0").await?;
            Some(Self { io })
        };
        timeout(SOON, connecting).await.ok()?
    }

    /// Writes frames; says whether the victim still takes them.
    pub async fn write(&mut self, bytes: &[u8]) -> bool {
        let written = async { self.io.write_all(bytes).await.is_ok() && self.io.flush().await.is_ok() };
        timeout(FULL, written).await.unwrap_or(false)
    }

    /// Whether the victim closes the connection before it has nothing more to say for a while.
    pub async fn is_closed(&mut self) -> bool {
        let mut heard = vec![0; 4096];
        loop {
            match timeout(FULL, self.io.read(&mut heard)).await {
                Ok(Ok(0) | Err(_)) => return true,
                Ok(Ok(_)) => {}
                Err(_) => return false,
            }
        }
    }
}
