//! What masking costs in throughput: bytes both ways at once over a masked line, over a line of TCP, Noise and Yamux as an
//! unmasked node has it, and over a bare socket.
//!
//! All of it runs in this process over loopback, where nothing but the processor is in the way: over a real network the line
//! is the limit and masking costs less. The three are measured in turns, so that whatever else the machine does hits all.

use std::{net::Ipv4Addr, sync::Arc, time::Instant};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, future::try_join};
use libp2p::identity::Keypair;
use quelea_behaviours::{KadMode, build_masked_swarm, build_swarm};
use quelea_shard::ShardStream;
use quelea_wire::NetworkId;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::compat::TokioAsyncReadCompatExt as _;

use super::hop::{End, NETWORK, failed};
use crate::{
    masking::{
        self,
        settings::{MaskingSettings, Way},
    },
    node::StartError,
    telemetry::stats::NodeStats,
};

/// Bytes written at once: a frame of WebSocket and a message of Noise take as much.
const CHUNK: usize = 64 << 10;

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct MaskingReport {
    /// Bytes each way in each turn.
    pub(crate) bytes: u64,
    pub(crate) turns: u32,
    pub(crate) items: Vec<Line>,
    /// The masked line's median over that of TCP, Noise and Yamux.
    pub(crate) masked_to_tcp: f64,
    /// The masked line's median over that of the bare socket.
    pub(crate) masked_to_socket: f64,
}

/// Bytes per second over one line, both ways together.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    pub(crate) line: &'static str,
    pub(crate) median: f64,
    pub(crate) samples: Vec<f64>,
}

/// Two ends of a line.
struct Pair<S> {
    near: S,
    far: S,
}

/// Sends `bytes` each way over each line, in `turns` turns.
pub(crate) async fn measure(bytes: u64, turns: u32) -> Result<MaskingReport, StartError> {
    let mut socket = socket().await?;
    let (mut tcp, _tcp_ends) = open(plain_ends().await?).await?;
    let (front, ends) = masked_ends().await?;
    let (mut masked, _masked_ends) = open(ends).await?;
    let mut samples = [Vec::new(), Vec::new(), Vec::new()];
    // One small turn to warm up.
    for turn in 0..=turns {
        let bytes = if turn == 0 { bytes / 8 } else { bytes };
        let speeds = [socket.turn(bytes).await?, tcp.turn(bytes).await?, masked.turn(bytes).await?];
        if turn > 0 {
            samples.iter_mut().zip(speeds).for_each(|(all, speed)| all.push(speed));
        }
    }
    front.abort();
    let names = ["socket", "tcp", "masked"];
    let items: Vec<Line> = names
        .into_iter()
        .zip(samples)
        .map(|(line, samples)| Line { line, median: median(samples.clone()), samples })
        .collect();
    let of = |name: &str| items.iter().find(|item| item.line == name).map_or(f64::NAN, |item| item.median);
    let (masked, tcp, socket) = (of("masked"), of("tcp"), of("socket"));
    Ok(MaskingReport { bytes, turns, items, masked_to_tcp: masked / tcp, masked_to_socket: masked / socket })
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Pair<S> {
    /// Bytes per second, both ways together.
    async fn turn(&mut self, bytes: u64) -> Result<f64, StartError> {
        let started = Instant::now();
        try_join(exchange(&mut self.near, bytes), exchange(&mut self.far, bytes)).await.map_err(failed)?;
        #[expect(clippy::cast_precision_loss, reason = "a speed for people")]
        let both = (2 * bytes) as f64;
        Ok(both / started.elapsed().as_secs_f64())
    }
}

/// Sends and gets so many bytes.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, bytes: u64) -> std::io::Result<()> {
    let (mut read, mut write) = stream.split();
    let send = async {
        let chunk = vec![0x3c; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let n = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            write.write_all(&chunk[..n]).await?;
            left -= u64::try_from(n).unwrap_or(u64::MAX);
        }
        write.flush().await
    };
    let get = async {
        let mut chunk = vec![0; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let n = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = read.read(&mut chunk[..n]).await?;
            if got == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            left -= u64::try_from(got).unwrap_or(u64::MAX);
        }
        Ok(())
    };
    try_join(send, get).await.map(|_| ())
}

async fn socket() -> Result<Pair<tokio_util::compat::Compat<TcpStream>>, StartError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
    let near = TcpStream::connect(listener.local_addr().map_err(failed)?).await.map_err(failed)?;
    let (far, _) = listener.accept().await.map_err(failed)?;
    for stream in [&near, &far] {
        stream.set_nodelay(true).map_err(failed)?;
    }
    Ok(Pair { near: near.compat(), far: far.compat() })
}

/// Connects the ends, and opens a stream.
async fn open((near, mut far): (End, End)) -> Result<(Pair<ShardStream>, (End, End)), StartError> {
    let addrs = far.addresses().await;
    near.handle.connect(far.handle.local(), addrs).await.map_err(failed)?;
    let stream = near.open(&far).await?;
    let accepted = far.accept().await?;
    Ok((Pair { near: stream, far: accepted }, (near, far)))
}

fn config() -> quelea_behaviours::Config {
    let mut config = quelea_behaviours::Config::new(NetworkId::from_name(NETWORK));
    config.kad_mode = KadMode::Client;
    config
}

async fn plain_ends() -> Result<(End, End), StartError> {
    let end = |listen: &[&str]| {
        let keypair = Keypair::generate_ed25519();
        let swarm = build_swarm(keypair.clone(), config(), None).map_err(failed)?;
        End::start(swarm, keypair, listen)
    };
    Ok((end(&[])?, end(&["/ip4/127.0.0.1/tcp/0"])?))
}

/// Two masked nodes, and the front of the second.
async fn masked_ends() -> Result<(JoinHandle<()>, (End, End)), StartError> {
    let dir = tempfile::tempdir().map_err(failed)?;
    let CertifiedKey { cert, key_pair } =
        generate_simple_self_signed(vec![Ipv4Addr::LOCALHOST.to_string()]).map_err(failed)?;
    let (cert_file, key_file) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert_file, cert.pem()).map_err(failed)?;
    std::fs::write(&key_file, key_pair.serialize_pem()).map_err(failed)?;
    let settings = |way| MaskingSettings { way, external: Vec::new(), ca: Some(cert_file.clone()), page: None };
    let bind = (Ipv4Addr::LOCALHOST, 0).into();
    let front = settings(Way::Front { bind, cert: cert_file.clone(), key: key_file });
    let mut ends = Vec::new();
    let mut serving = None;
    for settings in [settings(Way::DialOnly), front] {
        let prepared = masking::prepare(&settings, None, &Arc::<NodeStats>::default()).await?;
        let keypair = Keypair::generate_ed25519();
        let swarm = build_masked_swarm(keypair.clone(), config(), prepared.masking, None).map_err(failed)?;
        let listen: Vec<String> = prepared.public.iter().map(ToString::to_string).collect();
        let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
        ends.push(End::start(swarm, keypair, &listen)?);
        if let Some((front, _)) = prepared.front {
            serving = Some(tokio::spawn(front.run(std::future::pending())));
        }
    }
    let (far, near) = (ends.pop(), ends.pop());
    match (serving, near, far) {
        (Some(front), Some(near), Some(far)) => Ok((front, (near, far))),
        _ => Err(failed("the masked nodes did not start")),
    }
}
