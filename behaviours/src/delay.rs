//! A long line, in user space: what is written leaves later.
//!
//! For measuring what distance does on a machine that has none. Each end delays what it sends, so that two nodes with the
//! same delay are that far apart, one way. Only bytes over plain TCP: what happens beneath, as TCP's own handshake, is as
//! fast as it is.
//!
//! Memory: [`WINDOW`] bytes a connection, which is also what a line of that length carries within its delay at most.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use futures::{AsyncRead, AsyncWrite, FutureExt};
use futures_timer::Delay;

/// Bytes on their way: at 50 ms, 1.3 Gbit/s.
const WINDOW: usize = 8 << 20;
/// Bytes of a piece: what is sent of one at once is taken from its beginning.
const PIECE: usize = 64 << 10;

/// A stream whose bytes leave `delay` after they were written.
pub(crate) struct Delayed<S> {
    inner: S,
    /// Nothing: an ordinary line.
    delay: Duration,
    /// When each piece leaves, and what of it has not.
    on_its_way: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    timer: Delay,
    /// Of a writer that waits for room.
    writer: Option<Waker>,
}

impl<S> Delayed<S> {
    pub(crate) fn new(inner: S, delay: Duration) -> Self {
        Self { inner, delay, on_its_way: VecDeque::new(), bytes: 0, timer: Delay::new(Duration::ZERO), writer: None }
    }
}

impl<S: AsyncWrite + Unpin> Delayed<S> {
    /// Sends what is due; ready when nothing is left. The task is woken when more is due.
    fn send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((due, piece)) = self.on_its_way.front_mut() {
            let wait = due.saturating_duration_since(Instant::now());
            if !wait.is_zero() {
                self.timer.reset(wait);
                if self.timer.poll_unpin(cx).is_pending() {
                    return Poll::Pending;
                }
            }
            let sent = ready!(Pin::new(&mut self.inner).poll_write(cx, piece))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.bytes = self.bytes.saturating_sub(sent);
            piece.drain(..sent.min(piece.len()));
            if piece.is_empty() {
                self.on_its_way.pop_front();
            }
            if let Some(writer) = self.writer.take() {
                writer.wake();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Delayed<S> {
    /// Who waits for an answer is woken for what it sent, too.
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // A line that takes nothing any more may still bring something.
        let _ = this.send(cx)?;
        Pin::new(&mut this.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Delayed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.delay.is_zero() {
            return Pin::new(&mut this.inner).poll_write(cx, buf);
        }
        let taken = buf.len().min(PIECE).min(WINDOW.saturating_sub(this.bytes));
        let Some(piece) = buf.get(..taken).filter(|piece| !piece.is_empty()) else {
            if buf.is_empty() {
                return Poll::Ready(Ok(0));
            }
            this.writer = Some(cx.waker().clone());
            let _ = this.send(cx)?;
            return Poll::Pending;
        };
        this.bytes = this.bytes.saturating_add(taken);
        let due = Instant::now().checked_add(this.delay).unwrap_or_else(Instant::now);
        this.on_its_way.push_back((due, piece.to_vec()));
        let _ = this.send(cx)?;
        Poll::Ready(Ok(taken))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.delay.is_zero() {
            return Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs);
        }
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
        self.poll_write(cx, first)
    }

    /// As with a socket: what is on its way is out of our hands.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let _ = this.send(cx)?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.send(cx))?;
        Pin::new(&mut this.inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_util::compat::TokioAsyncReadCompatExt as _;

    use super::*;

    const DELAY: Duration = Duration::from_millis(30);

    fn line(
        delay: Duration,
    ) -> (Delayed<impl AsyncRead + AsyncWrite + Unpin>, Delayed<impl AsyncRead + AsyncWrite + Unpin>) {
        let (near, far) = tokio::io::duplex(64 << 10);
        (Delayed::new(near.compat(), delay), Delayed::new(far.compat(), delay))
    }

    #[tokio::test]
    async fn a_question_and_its_answer_take_the_delay_twice() {
        let (mut near, mut far) = line(DELAY);
        let began = Instant::now();
        let answering = async {
            let mut four = [0; 4];
            far.read_exact(&mut four).await.unwrap();
            far.write_all(&four).await.unwrap();
            // Goes on polling: what it wrote is on its way.
            assert_eq!(far.read(&mut four).await.unwrap(), 0);
        };
        let asking = async {
            near.write_all(b"ping").await.unwrap();
            let mut four = [0; 4];
            near.read_exact(&mut four).await.unwrap();
            assert_eq!(&four, b"ping");
            assert!(began.elapsed() >= 2 * DELAY);
            near.close().await.unwrap();
            drop(near);
        };
        futures::join!(answering, asking);
    }

    #[tokio::test]
    async fn all_bytes_come_in_their_order_however_full_the_line_is() {
        let (mut near, mut far) = line(Duration::from_millis(1));
        let all: Vec<u8> = (0..2 * WINDOW + 17).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let sending = async {
            near.write_all(&all).await.unwrap();
            near.close().await.unwrap();
            drop(near);
        };
        let mut came = Vec::new();
        futures::join!(sending, async { far.read_to_end(&mut came).await.unwrap() });
        assert!(came == all);
    }

    #[tokio::test]
    async fn a_line_without_delay_keeps_nothing() {
        let (mut near, _far) = line(Duration::ZERO);
        near.write_all(&[7; 1000]).await.unwrap();
        assert!(near.on_its_way.is_empty());
    }
}
