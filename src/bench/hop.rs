//! What one hop costs: a decode row from one node to the next over real sockets, beside a bare libp2p stream.
//!
//! Two nodes with full swarms run in this process and talk over loopback. *Echo*: one stream, the row's bytes there and
//! back, nothing else. *Hop*: the row as a decode batch over the shard protocol, there over one decode stream and back over
//! another, each with frame, checks, reassembly and acknowledgement, as between two stages. Both are given as one-way time,
//! half of the round trip. The two are measured in turns, so that whatever else the machine does hits both.

use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{Multiaddr, PeerId, Swarm, identity::Keypair};
use quelea_behaviours::{Behaviour, KadMode, build_swarm, traffic::Traffic};
use quelea_shard::{
    ShardStream,
    frame::{Form, SessionId, StreamKind},
    link::{self, Batch, DataSender, Dropped, Incoming, SenderConfig, Sessions, SinkClosed},
    protocol,
    reassembly::Expect,
};
use quelea_wire::{ErrorCode, NetworkId};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::{
    node::StartError,
    swarm::{Driver, DriverConfig, Handle},
    telemetry::Telemetry,
};

/// Turns in which the two are measured.
const TURNS: u32 = 10;

/// The network that the two are alone in.
pub(super) const NETWORK: &str = "bench";

/// A row that takes longer than this ends the measurement.
const ROW_TIMEOUT: Duration = Duration::from_secs(5);

/// Which transport to measure over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    Tcp,
    Quic,
}

/// One-way times in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct OneWay {
    pub(crate) p50_us: f64,
    pub(crate) p95_us: f64,
}

/// What was measured over one transport.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct HopReport {
    pub(crate) transport: Transport,
    pub(crate) rows: u32,
    pub(crate) bytes: u32,
    pub(crate) echo: OneWay,
    pub(crate) hop: OneWay,
    /// p50 of the hop over p50 of the echo.
    pub(crate) ratio_p50: f64,
}

/// Measures `rows` rows of `bytes` bytes over `transport`.
pub(crate) async fn measure(transport: Transport, rows: u32, bytes: u32) -> Result<HopReport, StartError> {
    let listen = match transport {
        Transport::Tcp => "/ip4/127.0.0.1/tcp/0",
        Transport::Quic => "/ip4/127.0.0.1/udp/0/quic-v1",
    };
    let mut far = End::plain(&[listen])?;
    let mut near = End::plain(&[])?;
    let addrs = far.addresses().await;
    near.handle.connect(far.handle.local(), addrs).await.map_err(failed)?;

    let mut echo = near.open(&far).await?;
    let echoed = far.accept().await?;
    tokio::spawn(echo_back(echoed, bytes));
    let mut hop = Hop::between(&mut near, &mut far, bytes).await?;

    let per_turn = (rows / TURNS).max(1);
    let warm_up = (rows / 10).max(1);
    round_trips(&mut echo, warm_up, bytes).await?;
    hop.round_trips(warm_up).await?;
    let (mut echoes, mut hops) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        echoes.extend(round_trips(&mut echo, per_turn, bytes).await?);
        hops.extend(hop.round_trips(per_turn).await?);
    }
    let (echo, hop) = (one_way(echoes), one_way(hops));
    near.stop().await;
    far.stop().await;
    Ok(HopReport { transport, rows: per_turn * TURNS, bytes, echo, hop, ratio_p50: hop.p50_us / echo.p50_us })
}

fn one_way(mut round_trips: Vec<Duration>) -> OneWay {
    round_trips.sort_unstable();
    let at = |share: usize| {
        let index = (round_trips.len() * share / 100).min(round_trips.len().saturating_sub(1));
        round_trips.get(index).map_or(0.0, |d| d.as_secs_f64() * 1e6 / 2.0)
    };
    OneWay { p50_us: at(50), p95_us: at(95) }
}

async fn round_trips(stream: &mut ShardStream, rows: u32, bytes: u32) -> Result<Vec<Duration>, StartError> {
    let row = vec![0x3c_u8; usize::try_from(bytes).unwrap_or_default()];
    let mut back = row.clone();
    let mut times = Vec::with_capacity(usize::try_from(rows).unwrap_or_default());
    for _ in 0..rows {
        let started = Instant::now();
        let trip = async {
            stream.write_all(&row).await?;
            stream.flush().await?;
            stream.read_exact(&mut back).await
        };
        tokio::time::timeout(ROW_TIMEOUT, trip).await.map_err(failed)?.map_err(failed)?;
        times.push(started.elapsed());
    }
    Ok(times)
}

async fn echo_back(mut stream: ShardStream, bytes: u32) {
    let mut row = vec![0; usize::try_from(bytes).unwrap_or_default()];
    while stream.read_exact(&mut row).await.is_ok() {
        if stream.write_all(&row).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

/// One of the two nodes.
pub(super) struct End {
    pub(super) handle: Handle,
    streams: mpsc::Receiver<(PeerId, ShardStream)>,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl End {
    fn plain(listen: &[&str]) -> Result<Self, StartError> {
        let mut config = quelea_behaviours::Config::new(NetworkId::from_name(NETWORK));
        config.kad_mode = KadMode::Client;
        let keypair = Keypair::generate_ed25519();
        Self::start(build_swarm(keypair.clone(), config, None).map_err(failed)?, keypair, listen)
    }

    /// A node with this swarm, which listens here.
    pub(super) fn start(swarm: Swarm<Behaviour>, keypair: Keypair, listen: &[&str]) -> Result<Self, StartError> {
        let network = NetworkId::from_name(NETWORK);
        let (inbound, streams) = mpsc::channel(8);
        let telemetry = Telemetry::new().map_err(failed)?;
        let config = DriverConfig {
            network,
            keypair,
            db: None,
            inbound,
            // Nobody calls services or asks for weights here.
            services: mpsc::channel(1).0,
            weights: crate::weights::shelf::desk().0,
            ledger: None,
            telemetry,
            bans: Vec::new(),
            kad_mode: KadMode::Client,
            publishes: false,
            relay_server: false,
            traffic: Traffic::default(),
        };
        let metrics = libp2p::metrics::Metrics::new(&mut prometheus_client::registry::Registry::default());
        let (mut driver, handle) = Driver::new(swarm, config, metrics);
        for listen in listen {
            driver.listen(listen.parse().map_err(failed)?).map_err(failed)?;
        }
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(driver.run(stopped));
        Ok(Self { handle, streams, stop, task })
    }

    pub(super) async fn addresses(&self) -> Vec<Multiaddr> {
        let mut notices = self.handle.watch();
        loop {
            let listeners = self.handle.snapshot().await.map(|s| s.listeners).unwrap_or_default();
            if !listeners.is_empty() || notices.recv().await.is_err() {
                return listeners;
            }
        }
    }

    pub(super) async fn open(&self, to: &Self) -> Result<ShardStream, StartError> {
        let mut stream = self.handle.open_stream(to.handle.local()).await.map_err(failed)?;
        stream.flush().await.map_err(failed)?;
        Ok(stream)
    }

    pub(super) async fn accept(&mut self) -> Result<ShardStream, StartError> {
        let next = tokio::time::timeout(ROW_TIMEOUT, self.streams.recv()).await.map_err(failed)?;
        next.map(|(_, stream)| stream).ok_or_else(|| failed("the node has stopped"))
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// Rows of the one session there is.
struct OneSession {
    width: u32,
}

impl Sessions for OneSession {
    fn expect(&self, _: &PeerId, _: &SessionId, _: u32) -> Option<Expect> {
        Some(Expect { form: Form::Rows, width: self.width, max_rows: u32::MAX })
    }

    fn dropped(&self, _: &PeerId, _: Dropped) {}
}

/// Two decode links, there and back.
struct Hop {
    there: DataSender,
    back: mpsc::Receiver<Batch>,
    width: u32,
    pos: u32,
}

impl Hop {
    async fn between(near: &mut End, far: &mut End, bytes: u32) -> Result<Self, StartError> {
        let width = bytes / 4;
        let (there, far_in) = link_between(near, far).await?;
        let (home, near_in) = link_between(far, near).await?;
        let (far_peer, near_peer) = (far.handle.local(), near.handle.local());
        tokio::spawn(async move {
            let sessions = OneSession { width };
            let hand_on = |incoming| match incoming {
                Incoming::Batch(batch) => home.send(batch).map_err(|_| SinkClosed(ErrorCode::Overloaded)),
                _ => Err(SinkClosed(ErrorCode::BadShape)),
            };
            link::receive(far_in, near_peer, &sessions, hand_on).await
        });
        let (results, back) = mpsc::channel(8);
        tokio::spawn(async move {
            let sessions = OneSession { width };
            let hand_on = |incoming| match incoming {
                Incoming::Batch(batch) => results.try_send(batch).map_err(|_| SinkClosed(ErrorCode::Overloaded)),
                _ => Err(SinkClosed(ErrorCode::BadShape)),
            };
            link::receive(near_in, far_peer, &sessions, hand_on).await
        });
        Ok(Self { there, back, width, pos: 0 })
    }

    async fn round_trips(&mut self, rows: u32) -> Result<Vec<Duration>, StartError> {
        let mut data = vec![0.5; usize::try_from(self.width).unwrap_or_default()];
        let mut times = Vec::with_capacity(usize::try_from(rows).unwrap_or_default());
        for _ in 0..rows {
            let started = Instant::now();
            let batch = Batch {
                session: SessionId([7; 16]),
                epoch: 1,
                seq: self.pos,
                pos: self.pos,
                rows: 1,
                last_row_only: false,
                rewind: false,
                deadline: (started + ROW_TIMEOUT).into(),
                form: Form::Rows,
                data,
            };
            self.there.send(batch).map_err(failed)?;
            let result = tokio::time::timeout(ROW_TIMEOUT, self.back.recv()).await.map_err(failed)?;
            times.push(started.elapsed());
            data = result.ok_or_else(|| failed("the link has ended"))?.data;
            self.pos += 1;
        }
        Ok(times)
    }
}

async fn link_between(
    from: &mut End,
    to: &mut End,
) -> Result<(DataSender, protocol::Negotiated<ShardStream>), StartError> {
    let stream = from.handle.open_stream(to.handle.local()).await.map_err(failed)?;
    let greet = protocol::initiate(stream, StreamKind::Decode);
    let answer = async {
        let accepted = to.accept().await?;
        protocol::accept(accepted).await.map_err(failed)
    };
    let (ours, theirs) = tokio::join!(greet, answer);
    Ok((DataSender::spawn(ours.map_err(failed)?, SenderConfig::default()), theirs?))
}

pub(super) fn failed(error: impl std::fmt::Display) -> StartError {
    StartError::new(ErrorCode::Internal, format!("the measurement failed: {error}"))
}
