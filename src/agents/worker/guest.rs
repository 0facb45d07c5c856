//! What a running module has on this side: its blocks, its input, its output, and the way to the daemon.

use std::{collections::BTreeMap, io};

use super::{arena::Arena, clock::Clock};
use crate::agents::{
    frames::{self, ANSWER, CALL},
    limits::{CALLS_MAX, LOG_BYTES, LOG_LINES},
};

/// What a module asks of the daemon. The numbers are those of the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum HostFunction {
    /// A line for the agent's log. There is no answer.
    Log = 1,
    KvGet = 2,
    KvSet = 3,
    HttpFetch = 4,
    Infer = 5,
    Call = 6,
    /// As [`HostFunction::HttpFetch`], with bytes instead of text.
    HttpRequest = 7,
}

impl HostFunction {
    const ALL: [Self; 7] =
        [Self::Log, Self::KvGet, Self::KvSet, Self::HttpFetch, Self::Infer, Self::Call, Self::HttpRequest];

    pub(crate) fn from_u8(n: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|function| *function as u8 == n)
    }

    /// Whether the time until the answer is the module's own: it has no part in how long a model takes.
    pub(crate) fn stops_the_clock(self) -> bool {
        matches!(self, Self::Infer | Self::Call)
    }
}

/// An answer of the daemon.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) refused: bool,
    pub(super) bytes: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("more than {CALLS_MAX} calls of host functions in one run")]
    TooMany,
    #[error("the node does not answer: {0}")]
    Pipe(#[from] io::Error),
}

/// See the module.
pub(super) struct Guest {
    pub(super) arena: Arena,
    /// Where the input lies.
    pub(super) input: u64,
    pub(super) input_len: u64,
    pub(super) output: Vec<u8>,
    /// What the module says went wrong.
    pub(super) error: Option<u64>,
    /// What it keeps for the length of the run.
    pub(super) vars: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) http_status: u16,
    pub(super) clock: Clock,
    pipe: Box<dyn Pipe>,
    calls: u32,
    log_lines: usize,
    log_bytes: usize,
}

/// To the daemon and back.
pub(super) trait Pipe: Send {
    fn send(&mut self, kind: u8, parts: &[&[u8]]) -> io::Result<()>;
    fn receive(&mut self) -> io::Result<frames::Frame>;
}

/// Stdin and stdout.
pub(super) struct Stdio;

impl Pipe for Stdio {
    fn send(&mut self, kind: u8, parts: &[&[u8]]) -> io::Result<()> {
        frames::write(&mut io::stdout().lock(), kind, parts)
    }

    fn receive(&mut self) -> io::Result<frames::Frame> {
        frames::read(&mut io::stdin().lock())
    }
}

impl Guest {
    pub(super) fn new(input: &[u8], pipe: Box<dyn Pipe>, clock: Clock) -> Self {
        let mut arena = Arena::default();
        // An input that has no room does not get this far: its length is checked where the job is read.
        let at = arena.put(input).unwrap_or_default();
        Self {
            arena,
            input: at,
            input_len: input.len() as u64,
            output: Vec::new(),
            error: None,
            vars: BTreeMap::new(),
            http_status: 0,
            clock,
            pipe,
            calls: 0,
            log_lines: 0,
            log_bytes: 0,
        }
    }

    /// Asks the daemon.
    pub(super) fn ask(&mut self, function: HostFunction, first: &[u8], second: &[u8]) -> Result<Answer, NoAnswer> {
        self.calls = self.calls.saturating_add(1);
        if self.calls > CALLS_MAX {
            return Err(NoAnswer::TooMany);
        }
        if function.stops_the_clock() {
            self.clock.pause();
        }
        let answer = self.exchange(function, first, second);
        if function.stops_the_clock() {
            self.clock.go_on();
        }
        answer
    }

    fn exchange(&mut self, function: HostFunction, first: &[u8], second: &[u8]) -> Result<Answer, NoAnswer> {
        let len = u32::try_from(first.len()).unwrap_or(u32::MAX).to_le_bytes();
        self.pipe.send(CALL, &[&[function as u8], &len, first, second])?;
        let frame = self.pipe.receive()?;
        match (frame.kind, frame.body.split_first()) {
            (ANSWER, Some((refused, bytes))) => Ok(Answer { refused: *refused != 0, bytes: bytes.to_vec() }),
            _ => Err(NoAnswer::Pipe(io::ErrorKind::InvalidData.into())),
        }
    }

    /// A line for the log. Beyond the cap nothing leaves this process.
    pub(super) fn log(&mut self, level: u8, text: &[u8]) -> io::Result<()> {
        self.log_lines = self.log_lines.saturating_add(1);
        let room = LOG_BYTES.saturating_sub(self.log_bytes);
        if self.log_lines > LOG_LINES || room == 0 {
            return Ok(());
        }
        let text = text.get(..room).unwrap_or(text);
        self.log_bytes = self.log_bytes.saturating_add(text.len());
        let len = 1_u32.to_le_bytes();
        self.pipe.send(CALL, &[&[HostFunction::Log as u8], &len, &[level], text])
    }
}
