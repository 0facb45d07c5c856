//! What passes between the daemon and a worker, over the worker's stdin and stdout.
//!
//! A frame is a little-endian `u32` length, a kind, and so many bytes less one. The daemon believes nothing that a worker says:
//! lengths are checked before anything is reserved, and what is not understood ends the worker.
//!
//! | kind | from | content |
//! |---|---|---|
//! | 1 job | daemon | `u32` length of a header in JSON, the header, the module, the input |
//! | 3 go | daemon | `u32` length of a header in JSON, the header, the input: for a module that was loaded before |
//! | 2 answer | daemon | 0 or 1 (refused), bytes |
//! | 16 ready | worker | nothing: it is locked down and waits |
//! | 17 compiled | worker | `u64` microseconds, the module's wishes in JSON |
//! | 18 call | worker | which host function, `u32` length of the first argument, it, the second |
//! | 19 done | worker | how it ended, `u64` fuel, `u32` length of a message, it, the output |

use std::io::{self, Read, Write};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::limits::{ARENA_MAX, INPUT_MAX, MODULE_MAX};

/// The longest frame that a worker takes: a module, its input, and a header.
pub(super) const TO_WORKER_MAX: usize = MODULE_MAX + INPUT_MAX + (64 << 10);

/// The longest frame that the daemon takes: an output, or a call's arguments, and a message.
pub(super) const FROM_WORKER_MAX: usize = ARENA_MAX + (64 << 10);

pub(super) const JOB: u8 = 1;
pub(super) const ANSWER: u8 = 2;
pub(super) const GO: u8 = 3;
pub(super) const READY: u8 = 16;
pub(super) const COMPILED: u8 = 17;
pub(super) const CALL: u8 = 18;
pub(super) const DONE: u8 = 19;

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) body: Vec<u8>,
}

/// Why a frame cannot be read.
fn too_long(len: usize, most: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {len} bytes; at most {most} are taken"))
}

fn empty() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a frame without a kind")
}

/// A frame's first five bytes, if it may be that long.
fn head(kind: u8, parts: &[&[u8]], most: usize) -> io::Result<[u8; 5]> {
    let len = parts.iter().fold(1_usize, |sum, part| sum.saturating_add(part.len()));
    let short = u32::try_from(len).ok().filter(|_| len <= most).ok_or_else(|| too_long(len, most))?;
    let [a, b, c, d] = short.to_le_bytes();
    Ok([a, b, c, d, kind])
}

/// Writes a frame, in the worker.
pub(super) fn write(to: &mut impl Write, kind: u8, parts: &[&[u8]]) -> io::Result<()> {
    to.write_all(&head(kind, parts, FROM_WORKER_MAX)?)?;
    for part in parts {
        to.write_all(part)?;
    }
    to.flush()
}

/// Reads a frame, in the worker. The buffer grows with what has come.
pub(super) fn read(from: &mut impl Read) -> io::Result<Frame> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let [a, b, c, d, kind] = head;
    let len = (u32::from_le_bytes([a, b, c, d]) as usize).checked_sub(1).ok_or_else(empty)?;
    if len >= TO_WORKER_MAX {
        return Err(too_long(len, TO_WORKER_MAX));
    }
    let mut body = Vec::new();
    from.take(len as u64).read_to_end(&mut body)?;
    if body.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Frame { kind, body })
}

/// Sends a frame to a worker.
pub(super) async fn send(to: &mut (impl AsyncWrite + Unpin), kind: u8, parts: &[&[u8]]) -> io::Result<()> {
    to.write_all(&head(kind, parts, TO_WORKER_MAX)?).await?;
    for part in parts {
        to.write_all(part).await?;
    }
    to.flush().await
}

/// Takes a frame from a worker. The buffer grows with what has come.
pub(super) async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let mut head = [0; 5];
    from.read_exact(&mut head).await?;
    let [a, b, c, d, kind] = head;
    let len = (u32::from_le_bytes([a, b, c, d]) as usize).checked_sub(1).ok_or_else(empty)?;
    if len >= FROM_WORKER_MAX {
        return Err(too_long(len, FROM_WORKER_MAX));
    }
    let mut body = Vec::new();
    from.take(len as u64).read_to_end(&mut body).await?;
    if body.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Frame { kind, body })
}

/// Splits `u32` length, so many bytes, and the rest.
pub(super) fn split(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = body.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_and_its_bytes_are_these() {
        let mut wire = Vec::new();
        write(&mut wire, CALL, &[&[4], &2_u32.to_le_bytes(), b"ab", b"c"]).unwrap();
        assert_eq!(hex::encode(&wire), "09000000120402000000616263");
        let frame = read(&mut wire.as_slice()).unwrap();
        assert_eq!((frame.kind, &frame.body[..]), (CALL, &b"\x04\x02\0\0\0abc"[..]));
        assert_eq!(split(&frame.body[1..]), Some((&b"ab"[..], &b"c"[..])));
        assert!(split(b"\x05\0\0\0ab").is_none() && split(b"\x05\0").is_none());
    }

    #[tokio::test]
    async fn a_length_reserves_nothing_and_one_that_is_too_long_is_refused() {
        for (len, kind) in [(u32::MAX, io::ErrorKind::InvalidData), (0, io::ErrorKind::InvalidData)] {
            let wire = [&len.to_le_bytes()[..], &[CALL]].concat();
            assert_eq!(receive(&mut wire.as_slice()).await.unwrap_err().kind(), kind);
            assert_eq!(read(&mut wire.as_slice()).unwrap_err().kind(), kind);
        }
        // As long as is allowed, with nothing behind it: what is read is what came.
        let wire = [&(FROM_WORKER_MAX as u32 - 1).to_le_bytes()[..], &[CALL], b"abc"].concat();
        assert_eq!(receive(&mut wire.as_slice()).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
