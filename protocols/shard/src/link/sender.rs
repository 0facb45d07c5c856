//! The predecessor's side of a decode or bulk stream.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    AsyncRead, AsyncWrite,
    io::{ReadHalf, WriteHalf},
};
use quelea_wire::ErrorCode;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, sleep_until},
};

use super::{
    Batch, Ending, LinkEnd, SendError,
    budget::{Budget, Lease},
    rate::Rate,
};
use crate::{
    codec::{FrameReader, FrameWriter},
    frame::{Ack, Frame, MAX_DEADLINE_MS, MAX_FRAGMENT, Reject, RowsHeader, SessionId},
    protocol::{Negotiated, last_word},
};

/// A hop is dead when nothing has been acknowledged for so long while something was in flight.
pub const SILENCE: Duration = Duration::from_secs(1);

/// Weight of a new round trip in the mean: an eighth, as TCP's smoothed round trip has it.
const RTT_WEIGHT: u32 = 8;

/// Bounds of one data stream.
#[derive(Debug, Clone, Copy)]
pub struct SenderConfig {
    /// Batches that may wait. One per live session and a few chunks of prompts.
    pub queue_batches: usize,
    /// Bytes of rows that may wait: two batches of the largest size.
    pub queue_bytes: usize,
    /// Bytes of rows that may be sent and not acknowledged. 1 MiB fills 100 Mbit/s over 80 ms.
    pub window_bytes: usize,
    /// Fragments that may be sent and not acknowledged, so that small ones are bounded too.
    pub window_fragments: usize,
    /// See [`SILENCE`].
    pub silence: Duration,
}

impl Default for SenderConfig {
    fn default() -> Self {
        Self {
            queue_batches: 64,
            queue_bytes: 32 * 1024 * 1024,
            window_bytes: 1024 * 1024,
            window_fragments: 256,
            silence: SILENCE,
        }
    }
}

/// Round trips of acknowledgements: from the first byte of a fragment to its acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rtt {
    /// The last one.
    pub last: Duration,
    /// A mean in which each new one weighs an eighth.
    pub mean: Duration,
    /// How many there were.
    pub samples: u64,
}

impl Rtt {
    fn first(rtt: Duration) -> Self {
        Self { last: rtt, mean: rtt, samples: 1 }
    }

    fn next(self, rtt: Duration) -> Self {
        let weighed = |old: Duration, new: Duration| {
            // Neither can overflow: RTT_WEIGHT is not 0, and the sum is at most the larger of the two.
            let share = |d: Duration| d.checked_div(RTT_WEIGHT).unwrap_or_default();
            old.saturating_sub(share(old)).saturating_add(share(new))
        };
        Self { last: rtt, mean: weighed(self.mean, rtt), samples: self.samples.saturating_add(1) }
    }
}

/// The sending end of a decode or bulk stream. Clones send on the same stream; when the last is dropped, what is queued
/// is still sent, and the stream closed.
#[derive(Debug, Clone)]
pub struct DataSender {
    queue: mpsc::Sender<Queued>,
    queue_bytes: Arc<Semaphore>,
    most_bytes: usize,
    budget: Budget,
    rtt: Arc<Mutex<Option<Rtt>>>,
    rate: Arc<Mutex<Rate>>,
    ending: Ending,
}

#[derive(Debug)]
struct Queued {
    batch: Batch,
    total: u32,
    /// Held until the last fragment is written.
    _bytes: OwnedSemaphorePermit,
    _lease: Lease,
}

impl DataSender {
    /// Starts a task that serves `stream`.
    pub fn spawn<S>(stream: Negotiated<S>, config: SenderConfig) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Self::spawn_within(stream, config, Budget::new(usize::MAX))
    }

    /// As [`Self::spawn`]; what waits counts against a budget that several links share.
    pub fn spawn_within<S>(stream: Negotiated<S>, config: SenderConfig, budget: Budget) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (queue, batches) = mpsc::channel(config.queue_batches.max(1));
        let (end, ending) = watch::channel(None);
        let rtt = Arc::<Mutex<Option<Rtt>>>::default();
        let rate = Arc::<Mutex<Rate>>::default();
        let flight = Flight::new(config, Arc::clone(&rtt), Arc::clone(&rate));
        tokio::spawn(async move {
            let why = serve(stream, batches, &flight).await;
            tracing::debug!("data link ended: {why}");
            end.send_replace(Some(why));
        });
        let most_bytes = config.queue_bytes.min(Semaphore::MAX_PERMITS);
        let queue_bytes = Arc::new(Semaphore::new(most_bytes));
        Self { queue, queue_bytes, most_bytes, budget, rtt, rate, ending: Ending(ending) }
    }

    /// Queues a batch; never waits.
    ///
    /// # Errors
    /// When the queue is full, the link has ended, or the protocol has no room for such a batch.
    pub fn send(&self, batch: Batch) -> Result<(), SendError> {
        let total = batch.wire_bytes().ok_or(SendError::Invalid)?;
        if self.queue.is_closed() {
            return Err(SendError::Ended);
        }
        let held = self.most_bytes.saturating_sub(self.queue_bytes.available_permits());
        let bytes = Arc::clone(&self.queue_bytes).try_acquire_many_owned(total).map_err(|_| SendError::Full)?;
        let whole = usize::try_from(total).unwrap_or(usize::MAX);
        let lease = self.budget.take(held, whole).ok_or(SendError::Full)?;
        self.queue.try_send(Queued { batch, total, _bytes: bytes, _lease: lease }).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => SendError::Full,
            mpsc::error::TrySendError::Closed(_) => SendError::Ended,
        })
    }

    /// As [`Self::send`], waiting while the queue is full: for replays, which nobody's token waits behind.
    ///
    /// # Errors
    /// When the link has ended, or the protocol has no room for such a batch.
    pub async fn send_in_turn(&self, batch: Batch) -> Result<(), SendError> {
        let total = batch.wire_bytes().ok_or(SendError::Invalid)?;
        let whole = usize::try_from(total).unwrap_or(usize::MAX);
        // The budget gives one link half of itself at most.
        if whole > self.most_bytes / 2 {
            return Err(SendError::Invalid);
        }
        let queue = async {
            let place = self.queue.reserve().await.map_err(|_| SendError::Ended)?;
            let bytes = Arc::clone(&self.queue_bytes).acquire_many_owned(total).await.map_err(|_| SendError::Ended)?;
            let held = || self.most_bytes.saturating_sub(self.queue_bytes.available_permits()).saturating_sub(whole);
            let lease = self.budget.wait_for(held, whole).await;
            place.send(Queued { batch, total, _bytes: bytes, _lease: lease });
            Ok(())
        };
        tokio::select! {
            sent = queue => sent,
            _ = self.ended() => Err(SendError::Ended),
        }
    }

    /// Round trips so far; `None` before the first acknowledgement.
    #[must_use]
    pub fn rtt(&self) -> Option<Rtt> {
        *lock(&self.rtt)
    }

    /// Bytes a second that the peer has acknowledged while batches of some size were on their way to it.
    #[must_use]
    pub fn bytes_per_s(&self) -> Option<u64> {
        lock(&self.rate).bytes_per_s()
    }

    /// Why the link has ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<LinkEnd> {
        self.ending.now()
    }

    /// Waits for the link's end. Does not keep the link open.
    pub fn ended(&self) -> impl Future<Output = LinkEnd> + Send + use<> {
        self.ending.clone().wait()
    }
}

/// One fragment on its way.
#[derive(Debug)]
struct InFlight {
    session: SessionId,
    epoch: u32,
    seq: u32,
    end: u32,
    bytes: u32,
    sent: Instant,
}

/// What has been sent and not acknowledged, shared by the three parts of one task.
#[derive(Debug)]
struct Flight {
    config: SenderConfig,
    sent: Mutex<Sent>,
    /// Free bytes and free fragments of the window.
    bytes: Semaphore,
    fragments: Semaphore,
    /// Rings when something is in flight, or nothing is any more.
    changed: Notify,
    rtt: Arc<Mutex<Option<Rtt>>>,
    rate: Arc<Mutex<Rate>>,
}

#[derive(Debug)]
struct Sent {
    queue: VecDeque<InFlight>,
    last_ack: Option<Instant>,
}

impl Flight {
    fn new(config: SenderConfig, rtt: Arc<Mutex<Option<Rtt>>>, rate: Arc<Mutex<Rate>>) -> Self {
        // A window smaller than one fragment would never let one through.
        let window = config.window_bytes.max(MAX_FRAGMENT);
        Self {
            config,
            sent: Mutex::new(Sent { queue: VecDeque::new(), last_ack: None }),
            bytes: Semaphore::new(window),
            fragments: Semaphore::new(config.window_fragments.max(1)),
            changed: Notify::new(),
            rtt,
            rate,
        }
    }

    /// Waits for room in the window, then counts a fragment as sent.
    async fn depart(&self, header: &RowsHeader, bytes: u32, end: u32) {
        // The semaphores are never closed, so acquiring cannot fail.
        if let (Ok(b), Ok(f)) = (self.bytes.acquire_many(bytes).await, self.fragments.acquire().await) {
            b.forget();
            f.forget();
        }
        let RowsHeader { session, epoch, seq, .. } = *header;
        let mut flying = lock(&self.sent);
        let now = Instant::now();
        if flying.queue.is_empty() {
            lock(&self.rate).begins(now.into_std());
        }
        flying.queue.push_back(InFlight { session, epoch, seq, end, bytes, sent: now });
        drop(flying);
        self.changed.notify_waiters();
    }

    /// Takes an acknowledgement, which must be of the oldest fragment.
    fn land(&self, ack: &Ack) -> Result<(), LinkEnd> {
        let now = Instant::now();
        let mut sent = lock(&self.sent);
        let matches =
            |f: &InFlight| (f.session, f.epoch, f.seq, f.end) == (ack.session, ack.epoch, ack.seq, ack.received);
        let Some(fragment) = sent.queue.pop_front().filter(matches) else {
            return Err(LinkEnd::Violation(ErrorCode::BadFrame));
        };
        sent.last_ack = Some(now);
        let idle = sent.queue.is_empty();
        drop(sent);
        self.bytes.add_permits(usize::try_from(fragment.bytes).unwrap_or(usize::MAX));
        self.fragments.add_permits(1);
        self.changed.notify_waiters();
        let rtt = now.saturating_duration_since(fragment.sent);
        lock(&self.rate).landed(fragment.bytes, rtt, idle, now.into_std());
        let mut mean = lock(&self.rtt);
        *mean = Some(mean.map_or_else(|| Rtt::first(rtt), |m| m.next(rtt)));
        Ok(())
    }

    /// When the peer is dead unless something lands before; `None` with nothing in flight.
    fn dead_at(&self) -> Option<Instant> {
        let sent = lock(&self.sent);
        let oldest = sent.queue.front()?.sent;
        sent.last_ack.map_or(oldest, |ack| ack.max(oldest)).checked_add(self.config.silence)
    }

    /// Returns when the peer has been silent for too long.
    async fn watch(&self) {
        loop {
            // Registered before looking, so that nothing that changes in between is missed.
            let changed = self.changed.notified();
            match self.dead_at() {
                None => changed.await,
                Some(at) if at <= Instant::now() => return,
                Some(at) => sleep_until(at).await,
            }
        }
    }

    /// Returns when nothing is in flight.
    async fn all_landed(&self) {
        loop {
            let changed = self.changed.notified();
            if lock(&self.sent).queue.is_empty() {
                return;
            }
            changed.await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding these locks, and their contents are whole at every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve<S>(stream: Negotiated<S>, batches: mpsc::Receiver<Queued>, flight: &Flight) -> LinkEnd
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Negotiated { mut reader, mut writer, .. } = stream;
    let why = tokio::select! {
        why = read_acks(&mut reader, flight) => why,
        why = write_batches(&mut writer, batches, flight) => why,
        () = flight.watch() => LinkEnd::Silent,
    };
    if let LinkEnd::Violation(code) = why {
        last_word(&mut writer, code).await;
    }
    why
}

async fn read_acks<S: AsyncRead + Unpin>(reader: &mut FrameReader<ReadHalf<S>>, flight: &Flight) -> LinkEnd
where
    ReadHalf<S>: AsyncRead,
{
    loop {
        let landed = match reader.next().await {
            Ok(Some(Frame::Ack(ack))) => flight.land(&ack),
            Ok(Some(Frame::Reject(Reject { code }))) => return LinkEnd::Rejected(code),
            Ok(Some(_)) => return LinkEnd::Violation(ErrorCode::BadFrame),
            Ok(None) => return LinkEnd::PeerClosed,
            Err(e) => return e.into(),
        };
        if let Err(end) = landed {
            return end;
        }
    }
}

async fn write_batches<S: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<WriteHalf<S>>,
    mut batches: mpsc::Receiver<Queued>,
    flight: &Flight,
) -> LinkEnd {
    while let Some(queued) = batches.recv().await {
        if let Err(e) = write_batch(writer, &queued, flight).await {
            return e.into();
        }
    }
    flight.all_landed().await;
    match writer.close().await {
        Ok(()) => LinkEnd::Done,
        Err(e) => e.into(),
    }
}

async fn write_batch<S: AsyncWrite + Unpin>(
    writer: &mut FrameWriter<WriteHalf<S>>,
    Queued { batch, total, .. }: &Queued,
    flight: &Flight,
) -> std::io::Result<()> {
    let mut offset = 0;
    let value_bytes = batch.form.value_bytes();
    for values in batch.data.chunks(MAX_FRAGMENT.checked_div(value_bytes).unwrap_or(MAX_FRAGMENT)) {
        // At most MAX_FRAGMENT.
        let bytes = u32::try_from(values.len().saturating_mul(value_bytes)).unwrap_or(u32::MAX);
        let mut header = RowsHeader {
            session: batch.session,
            epoch: batch.epoch,
            seq: batch.seq,
            pos: batch.pos,
            rows: batch.rows,
            last_row_only: batch.last_row_only,
            rewind: batch.rewind,
            deadline_ms: 0,
            total: *total,
            offset,
        };
        offset = offset.saturating_add(bytes);
        flight.depart(&header, bytes, offset).await;
        // Only now, as the window may have made it wait.
        header.deadline_ms = remaining_ms(batch.deadline);
        writer.queue_rows(batch.form, &header, values);
        writer.flush().await?;
    }
    Ok(())
}

fn remaining_ms(deadline: Instant) -> u32 {
    let remaining = deadline.saturating_duration_since(Instant::now()).as_millis();
    u32::try_from(remaining).unwrap_or(u32::MAX).min(MAX_DEADLINE_MS)
}
