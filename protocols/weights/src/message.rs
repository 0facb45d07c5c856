//! What is asked and answered, and its bytes.

use std::{io, time::Duration};

use futures::{AsyncRead, AsyncReadExt as _};
use quelea_wire::ModelId;

/// Bytes of one answer: one chunk, or several small ones.
pub const MAX_BYTES: u32 = 1 << 20;

/// Bytes of an outline: as the engine's reader takes.
pub const MAX_OUTLINE: u32 = 64 << 20;

/// Chunks of a model: 4 TiB in whole ones. The bitmap of so many is 512 KiB.
pub const MAX_CHUNKS: u32 = 1 << 22;

/// Chunks in one question. A layer has some ten tensors, a few of them small.
pub const MAX_RUN: u16 = 256;

/// How long a busy peer may have us wait: less is not worth it, and more is a peer to do without.
const RETRY: std::ops::RangeInclusive<u64> = 50..=10_000;

const VERSION: u8 = 1;
const OUTLINE: u8 = 1;
const HAVE: u8 = 2;
const CHUNKS: u8 = 3;

const A_UNKNOWN: u8 = 0;
const A_BUSY: u8 = 1;
const A_OUTLINE: u8 = 2;
const A_HAVE: u8 = 3;
const A_CHUNKS: u8 = 4;
const A_MISSING: u8 = 5;

/// A question about a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Which.
    pub model: ModelId,
    /// What.
    pub question: Question,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Its outline, from this byte on.
    Outline {
        /// First byte wanted.
        offset: u32,
    },
    /// Which chunks are there.
    Have,
    /// Some chunks.
    Chunks {
        /// The first of them.
        first: u32,
        /// How many; 1 to [`MAX_RUN`].
        count: u16,
    },
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing of this model is here.
    Unknown,
    /// Ask again later.
    Busy {
        /// After so long.
        retry: Duration,
    },
    /// Some of the outline.
    Outline {
        /// Bytes of all of it.
        total: u32,
        /// From the byte that was asked for; 1 to [`MAX_BYTES`].
        bytes: Vec<u8>,
    },
    /// Which chunks are here.
    Have(Bitmap),
    /// The chunks, one after the other; 1 to [`MAX_BYTES`].
    Chunks(Vec<u8>),
    /// One of the chunks is not here.
    Missing,
}

/// Which of a model's chunks are there.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Bitmap {
    chunks: u32,
    bits: Vec<u8>,
}

impl std::fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bitmap({} of {})", self.count(), self.chunks)
    }
}

impl Bitmap {
    /// None of so many; more than [`MAX_CHUNKS`] are taken as that.
    #[must_use]
    pub fn new(chunks: u32) -> Self {
        let chunks = chunks.min(MAX_CHUNKS);
        Self { chunks, bits: vec![0; bytes_of(chunks)] }
    }

    /// All of so many.
    #[must_use]
    pub fn full(chunks: u32) -> Self {
        let mut all = Self::new(chunks);
        for chunk in 0..all.chunks {
            all.set(chunk, true);
        }
        all
    }

    /// Takes over bits as [`Bitmap::bits`] gives them; nothing when they are too many, too few, or beyond the last chunk.
    #[must_use]
    pub fn from_bits(chunks: u32, bits: Vec<u8>) -> Option<Self> {
        let spare = u32::try_from(bits.len()).ok()?.checked_mul(8)?.checked_sub(chunks)?;
        let last = bits.last().copied().unwrap_or(0);
        let clean = spare == 0 || last.leading_zeros() >= spare;
        (chunks <= MAX_CHUNKS && bits.len() == bytes_of(chunks) && clean).then_some(Self { chunks, bits })
    }

    /// Number of chunks, there or not.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// One bit a chunk, the lowest first.
    #[must_use]
    pub fn bits(&self) -> &[u8] {
        &self.bits
    }

    /// Whether a chunk is there.
    #[must_use]
    pub fn has(&self, chunk: u32) -> bool {
        chunk < self.chunks && self.bits.get(at(chunk)).is_some_and(|byte| byte & mask(chunk) != 0)
    }

    /// Notes that a chunk is there, or is not.
    pub fn set(&mut self, chunk: u32, there: bool) {
        if chunk < self.chunks
            && let Some(byte) = self.bits.get_mut(at(chunk))
        {
            *byte = if there { *byte | mask(chunk) } else { *byte & !mask(chunk) };
        }
    }

    /// How many chunks are there.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.bits.iter().fold(0, |sum: u32, byte| sum.saturating_add(byte.count_ones()))
    }

    /// Whether all are.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count() == self.chunks
    }
}

fn bytes_of(chunks: u32) -> usize {
    usize::try_from(chunks.div_ceil(8)).unwrap_or(usize::MAX)
}

fn at(chunk: u32) -> usize {
    usize::try_from(chunk >> 3).unwrap_or(usize::MAX)
}

fn mask(chunk: u32) -> u8 {
    1 << (chunk & 7)
}

impl Request {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        match self.question {
            Question::Outline { offset } => {
                out.push(OUTLINE);
                out.extend(self.model.0);
                out.extend(offset.to_le_bytes());
            }
            Question::Have => {
                out.push(HAVE);
                out.extend(self.model.0);
            }
            Question::Chunks { first, count } => {
                out.push(CHUNKS);
                out.extend(self.model.0);
                out.extend(first.to_le_bytes());
                out.extend(count.to_le_bytes());
            }
        }
        out
    }

    /// Reads one.
    ///
    /// # Errors
    /// `InvalidData` for what no peer of ours writes, and the stream's own.
    pub async fn read<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<Self> {
        let [version, kind] = array(io).await?;
        if version != VERSION {
            return Err(invalid("a request of an unknown version"));
        }
        let model = ModelId(array(io).await?);
        let question = match kind {
            OUTLINE => Question::Outline { offset: u32_of(io).await? },
            HAVE => Question::Have,
            CHUNKS => {
                let (first, count) = (u32_of(io).await?, u16::from_le_bytes(array(io).await?));
                if count == 0
                    || count > MAX_RUN
                    || first.checked_add(u32::from(count)).is_none_or(|end| end > MAX_CHUNKS)
                {
                    return Err(invalid("chunks that no model has"));
                }
                Question::Chunks { first, count }
            }
            _ => return Err(invalid("a question of an unknown kind")),
        };
        Ok(Self { model, question })
    }
}

impl Answer {
    /// Its bytes.
    ///
    /// # Errors
    /// `InvalidData` for an answer that is longer than its cap, or empty where it must not be.
    pub fn encode(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        match self {
            Self::Unknown => out.push(A_UNKNOWN),
            Self::Missing => out.push(A_MISSING),
            Self::Busy { retry } => {
                out.push(A_BUSY);
                out.extend(u32::try_from(clamp(retry.as_millis())).unwrap_or(u32::MAX).to_le_bytes());
            }
            Self::Outline { total, bytes } => {
                out.push(A_OUTLINE);
                out.extend(total.to_le_bytes());
                extend(&mut out, bytes)?;
            }
            Self::Have(bitmap) => {
                out.push(A_HAVE);
                out.extend(bitmap.chunks.to_le_bytes());
                out.extend(&bitmap.bits);
            }
            Self::Chunks(bytes) => {
                out.push(A_CHUNKS);
                extend(&mut out, bytes)?;
            }
        }
        Ok(out)
    }

    /// Reads one. Memory is taken for bytes that have come, not for those that are announced.
    ///
    /// # Errors
    /// `InvalidData` for what no peer of ours writes, and the stream's own.
    pub async fn read<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<Self> {
        let [status] = array(io).await?;
        Ok(match status {
            A_UNKNOWN => Self::Unknown,
            A_MISSING => Self::Missing,
            A_BUSY => Self::Busy { retry: Duration::from_millis(clamp(u128::from(u32_of(io).await?))) },
            A_OUTLINE => {
                let total = u32_of(io).await?;
                if total == 0 || total > MAX_OUTLINE {
                    return Err(invalid("an outline longer than any model's"));
                }
                Self::Outline { total, bytes: run(io).await? }
            }
            A_HAVE => {
                let chunks = u32_of(io).await?;
                if chunks > MAX_CHUNKS {
                    return Err(invalid("more chunks than any model has"));
                }
                let bits = exactly(io, u64::from(chunks.div_ceil(8))).await?;
                Self::Have(Bitmap::from_bits(chunks, bits).ok_or_else(|| invalid("bits beyond the last chunk"))?)
            }
            A_CHUNKS => Self::Chunks(run(io).await?),
            _ => return Err(invalid("an answer of an unknown status")),
        })
    }
}

/// The length's arithmetic keeps a peer from having us wait for ever, or ask in a loop.
fn clamp(millis: u128) -> u64 {
    u64::try_from(millis).unwrap_or(u64::MAX).clamp(*RETRY.start(), *RETRY.end())
}

fn extend(out: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
    let len = u32::try_from(bytes.len()).ok().filter(|len| (1..=MAX_BYTES).contains(len));
    let len = len.ok_or_else(|| invalid("an answer of no length, or more than 1 MiB"))?;
    out.reserve(bytes.len().saturating_add(4));
    out.extend(len.to_le_bytes());
    out.extend(bytes);
    Ok(())
}

async fn run<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<Vec<u8>> {
    let len = u32_of(io).await?;
    if len == 0 || len > MAX_BYTES {
        return Err(invalid("an answer of no length, or more than 1 MiB"));
    }
    exactly(io, u64::from(len)).await
}

async fn exactly<T: AsyncRead + Unpin>(io: &mut T, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.take(len).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

async fn array<const N: usize, T: AsyncRead + Unpin>(io: &mut T) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    io.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn u32_of<T: AsyncRead + Unpin>(io: &mut T) -> io::Result<u32> {
    Ok(u32::from_le_bytes(array(io).await?))
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
