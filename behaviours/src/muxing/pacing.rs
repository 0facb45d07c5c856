//! Yamux is read no faster than its streams are taken.
//!
//! Yamux itself bounds what waits in each stream, by its window. It reads on for streams that nobody reads, and for frames of
//! streams that have ended or never were, which have no window at all: a peer that sends those makes us decrypt as fast as its
//! line is. Here what came in and what streams have taken is held against each other. What is not read fills TCP's window, and
//! then the sender waits.
//!
//! - Up to [`FIRST`] bytes more than were taken, and up to [`OWN`] when much was taken, a connection is read on at once.
//! - Up to [`FREE`], it takes turns with all others that are past that: [`Turns`].
//! - Beyond, it is read on as its streams are, and [`FORGIVEN`] bytes a second, in turns, too.
//!
//! A connection that is read gives way after [`TURN`] bytes: many that send at once take turns with those that send little.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{AsyncRead, AsyncWrite, FutureExt};
use futures_timer::Delay;

use super::Taken;

/// Bytes that may wait in a connection's streams, whatever others do: the receivers of bulk fragments (32 KiB) acknowledge them
/// one by one, and other messages are shorter. A hundred connections with four times that took a sixth of a second at once.
const FIRST: u64 = 32 << 10;
/// And when streams have taken a good deal more than that: one that is read while it is written to is ahead by so much.
const OWN: u64 = 128 << 10;
/// Of what streams have taken, the part that may wait besides [`FIRST`], up to [`OWN`].
const EARNED: u64 = 16;
/// Bytes that may wait in a connection's streams, or have been for none: two of Yamux's windows. Honest senders are far below.
const FREE: u64 = 512 << 10;
/// Bytes a second beyond those that streams take: headers (12 bytes a frame), and what was on its way when a stream was closed.
const FORGIVEN: u64 = 256 << 10;
/// Bytes read of a connection before others have their turn: some ten microseconds' decryption, and a handful of frames.
const TURN: usize = 16 << 10;
/// Of so many bytes read from a stream one is a header's: 12 for a frame of 16 KiB at most.
const HEADERS: u64 = 1024;
/// What is read in a turn of [`Turns`], and what is forgiven at least before a connection that has to wait is looked at again. A
/// hundred of them that were looked at for each frame of 2 KiB cost a quarter of a core in timers and switches between threads.
const PORTION: u64 = 16 << 10;
/// Between two turns: at most 4 MiB a second are read of all connections together that have more than [`OWN`] bytes waiting. Each
/// turn wakes a connection, which costs a third of a millisecond with frames of 2 KiB; a thousand a second were a third of a core.
const GAP: Duration = Duration::from_millis(4);
/// The longest wait before looking again.
const WAIT: Duration = Duration::from_millis(250);

/// When the next has its turn of those connections whose peers send what nobody takes. A hundred that were let on by the same
/// clock were let on all at once, and who came just then waited for all of them.
#[derive(Debug)]
pub(super) struct Turns {
    began: Instant,
    /// Microseconds after that.
    next: AtomicU64,
}

impl Default for Turns {
    fn default() -> Self {
        Self { began: Instant::now(), next: AtomicU64::new(0) }
    }
}

impl Turns {
    /// Takes the next turn; how long until then. Whoever has one waits for it before it takes another, so that no wait is longer
    /// than all connections' turns.
    fn take(&self, now: Instant) -> Duration {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let now = micros(now.saturating_duration_since(self.began));
        let after = |next: u64| Some(next.max(now).saturating_add(micros(GAP)));
        let next = match self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after) {
            Ok(next) | Err(next) => next,
        };
        Duration::from_micros(next.saturating_sub(now))
    }
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// That bytes are forgiven.
    Forgiveness,
    /// Its turn.
    Turn,
}

/// The bytes beneath Yamux.
pub(crate) struct Metered<C> {
    inner: C,
    taken: Arc<Taken>,
    /// Bytes that came in, less those forgiven.
    came: u64,
    /// Bytes of this turn.
    turn: usize,
    forgiven_at: Instant,
    turns: Arc<Turns>,
    /// Bytes that may be read though more than [`OWN`] wait.
    granted: u64,
    /// What for, and how long.
    wait: Option<Wait>,
    delay: Delay,
}

impl<C> Metered<C> {
    pub(super) fn new(inner: C, turns: Arc<Turns>) -> (Self, Arc<Taken>) {
        let taken = Arc::new(Taken::default());
        let metered = Self {
            inner,
            taken: Arc::clone(&taken),
            came: 0,
            turn: 0,
            forgiven_at: Instant::now(),
            turns,
            granted: 0,
            wait: None,
            delay: Delay::new(Duration::ZERO),
        };
        (metered, taken)
    }

    /// Bytes that came in and no stream has taken.
    fn surplus(&self) -> u64 {
        let received = self.taken.counts.received.load(Ordering::Acquire);
        self.came.saturating_sub(received.saturating_add(received / HEADERS))
    }

    /// Whether so few wait that it is nobody else's business.
    fn is_ahead_a_little(&self) -> bool {
        let received = self.taken.counts.received.load(Ordering::Acquire);
        self.surplus() <= FIRST.saturating_add(received / EARNED).min(OWN)
    }

    /// Forgives what has come in since it was last done; the bytes past [`FREE`] that are left.
    fn excess(&mut self, now: Instant) -> u64 {
        let surplus = self.surplus();
        if surplus <= FREE {
            return 0;
        }
        let passed = now.saturating_duration_since(self.forgiven_at);
        let micros = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX);
        let forgiven = micros.saturating_mul(FORGIVEN) / 1_000_000;
        // Less than a byte is not lost: time goes on from where the last one was forgiven.
        if forgiven > 0 {
            self.forgiven_at = now;
            self.came = self.came.saturating_sub(forgiven.min(surplus));
        }
        surplus.saturating_sub(forgiven).saturating_sub(FREE)
    }

    /// How many bytes may be read on; when none, whoever polls is woken when that may have changed.
    fn room(&mut self, cx: &mut Context<'_>) -> Option<u64> {
        if self.is_ahead_a_little() {
            return Some(u64::MAX);
        }
        if self.granted > 0 {
            return Some(self.granted);
        }
        // Looked at once more, so that a stream that is read meanwhile is not missed.
        self.taken.reader.register(cx.waker());
        if self.is_ahead_a_little() {
            return Some(u64::MAX);
        }
        self.turn = 0;
        loop {
            match self.wait {
                // Set once for each wait, however often the connection is polled meanwhile: it wakes the timers' thread.
                Some(_) if self.delay.poll_unpin(cx).is_pending() => return None,
                Some(Wait::Turn) => {
                    self.wait = None;
                    self.granted = PORTION;
                    return Some(PORTION);
                }
                Some(Wait::Forgiveness) => self.wait = None,
                None => {
                    let now = Instant::now();
                    let (wait, time) = match self.excess(now) {
                        0 => (Wait::Turn, self.turns.take(now)),
                        excess => (Wait::Forgiveness, until_forgiven(excess)),
                    };
                    if time.is_zero() {
                        self.granted = PORTION;
                        return Some(PORTION);
                    }
                    self.wait = Some(wait);
                    self.delay.reset(time);
                }
            }
        }
    }
}

/// How long so many bytes, and a [`PORTION`] besides, take to be forgiven.
fn until_forgiven(excess: u64) -> Duration {
    Duration::from_micros(excess.saturating_add(PORTION).saturating_mul(1_000_000) / FORGIVEN).min(WAIT)
}

impl<C: AsyncRead + Unpin> AsyncRead for Metered<C> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.turn >= TURN {
            this.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Some(room) = this.room(cx) else { return Poll::Pending };
        let room = usize::try_from(room).map_or(buf.len(), |room| room.min(buf.len()));
        let Poll::Ready(read) = Pin::new(&mut this.inner).poll_read(cx, buf.get_mut(..room).unwrap_or_default())?
        else {
            this.turn = 0;
            return Poll::Pending;
        };
        this.turn = this.turn.saturating_add(read);
        this.granted = this.granted.saturating_sub(read as u64);
        this.came = this.came.saturating_add(read as u64);
        Poll::Ready(Ok(read))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Metered<C> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests;
