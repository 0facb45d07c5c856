//! What several tests need.

pub mod frames;
pub mod nodes;

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{
    AsyncRead, AsyncReadExt, AsyncWrite,
    io::{ReadHalf, WriteHalf},
};
use libp2p::{PeerId, identity::Keypair};
use quelea_shard::{
    codec::{FrameReader, FrameWriter},
    frame::{Form, SessionId, StreamKind},
    link::{Batch, Budget, Dropped, Incoming, Sessions, SinkClosed},
    protocol::{self, Negotiated},
    reassembly::Expect,
};
use tokio::{
    io::DuplexStream,
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

/// Longer than anything takes that is not stuck.
pub const STUCK: Duration = Duration::from_secs(10);

/// The future's output, or a panic when it is stuck.
pub async fn soon<F: Future>(future: F) -> F::Output {
    timeout(STUCK, future).await.expect("finishes unless it is stuck")
}

/// Waits until `condition` holds, letting others run meanwhile.
pub async fn until(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Always the same peer for the same number.
pub fn peer(n: u8) -> PeerId {
    Keypair::ed25519_from_bytes([n; 32]).expect("any 32 bytes are a key").public().to_peer_id()
}

pub fn session(n: u8) -> SessionId {
    SessionId([n; 16])
}

/// A batch whose values tell where they belong.
pub fn batch(n: u8, seq: u32, pos: u32, rows: u16, width: u32) -> Batch {
    let values = u32::from(rows) * width;
    Batch {
        session: session(n),
        epoch: 1,
        seq,
        pos,
        rows,
        last_row_only: seq.is_multiple_of(2),
        rewind: seq % 3 == 1,
        deadline: Instant::now() + Duration::from_secs(60),
        form: Form::Rows,
        data: (0..values).map(|i| (seq * 31 + i) as f32 / 7.0).collect(),
    }
}

/// All but the deadline, which travels as what remains.
pub fn same(a: &Batch, b: &Batch) -> bool {
    let key = |b: &Batch| (b.session, b.epoch, b.seq, b.pos, b.rows, b.last_row_only, b.rewind);
    key(a) == key(b) && a.data.iter().map(|v| v.to_bits()).eq(b.data.iter().map(|v| v.to_bits()))
}

/// A byte pipe of `buffer` bytes each way.
pub fn pipe(buffer: usize) -> (Compat<DuplexStream>, Compat<DuplexStream>) {
    let (a, b) = tokio::io::duplex(buffer);
    (a.compat(), b.compat())
}

/// A reader and a writer on a stream that was not greeted on.
pub fn halves<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> (FrameReader<ReadHalf<S>>, FrameWriter<WriteHalf<S>>) {
    let (read, write) = stream.split();
    (FrameReader::new(read), FrameWriter::new(write))
}

/// Both ends of a greeted stream on a pipe.
pub async fn greeted(
    kind: StreamKind,
    buffer: usize,
) -> (Negotiated<Compat<DuplexStream>>, Negotiated<Compat<DuplexStream>>) {
    let (a, b) = pipe(buffer);
    let (a, b) = tokio::join!(protocol::initiate(a, kind), protocol::accept(b));
    (a.expect("greets"), b.expect("answers"))
}

/// The sessions of a stage under test: name → (epoch, width), of any predecessor.
#[derive(Debug, Default)]
pub struct Table {
    sessions: Mutex<HashMap<SessionId, (u32, u32)>>,
    pub dropped: AtomicU64,
    budget: Option<Budget>,
    form: Form,
}

impl Table {
    pub fn of(sessions: impl IntoIterator<Item = (u8, u32)>) -> Self {
        let sessions = sessions.into_iter().map(|(n, width)| (session(n), (1, width))).collect();
        Self { sessions: Mutex::new(sessions), dropped: AtomicU64::new(0), budget: None, form: Form::Rows }
    }

    /// With rows of another form.
    pub fn of_form(self, form: Form) -> Self {
        Self { form, ..self }
    }

    /// With so many bytes for unfinished batches.
    pub fn within(self, bytes: usize) -> Self {
        Self { budget: Some(Budget::new(bytes)), ..self }
    }

    /// Bytes of unfinished batches now.
    pub fn taken(&self) -> usize {
        self.budget.as_ref().map_or(0, Budget::taken)
    }

    pub fn close(&self, session: &SessionId) {
        self.sessions.lock().expect("nobody panics").remove(session);
    }
}

impl Sessions for Table {
    fn expect(&self, _: &PeerId, session: &SessionId, epoch: u32) -> Option<Expect> {
        let sessions = self.sessions.lock().expect("nobody panics");
        let (current, width) = *sessions.get(session)?;
        (current == epoch).then_some(Expect { form: self.form, width, max_rows: 1 << 20 })
    }

    fn dropped(&self, _: &PeerId, _: Dropped) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn budget(&self) -> Option<&Budget> {
        self.budget.as_ref()
    }
}

/// A sink that passes on to a channel, and ends the stream when that is full.
pub fn to_channel(tx: mpsc::Sender<Incoming>) -> impl FnMut(Incoming) -> Result<(), SinkClosed> {
    move |incoming| tx.try_send(incoming).map_err(|_| SinkClosed(quelea_wire::ErrorCode::Overloaded))
}
