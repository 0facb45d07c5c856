//! On what models are computed.

use std::num::NonZeroUsize;

use clap::Args;
use quelea_engine::{BackendError, Device, Isa, KvFormat, MAX_ROWS, MAX_THREADS, StageOptions, UnknownDevice};

use super::{parse_size, values::parse_size_or_0};
use crate::node::settings::Replay;

/// On what models are computed, and how.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct ComputeArgs {
    /// What computes: 'cpu' with exact kernels, 'candle', or a GPU that this build has: 'cuda:N', 'metal:N'
    #[arg(help_heading = COMPUTE, long, value_name = "DEVICE", default_value = "cpu", value_parser = parse_device)]
    pub(crate) device: Device,
    /// Threads that compute [default: one for each core]
    #[arg(help_heading = COMPUTE, long, value_name = "N", value_parser = parse_threads)]
    pub(crate) threads: Option<NonZeroUsize>,
    /// How keys and values are kept: f32, f16 or q8. All stages of a chain must agree
    #[arg(help_heading = COMPUTE, long, value_name = "FORMAT", default_value = "f32", value_parser = parse_kv)]
    pub(crate) kv: KvFormat,
}

impl ComputeArgs {
    /// As the engine wants it.
    pub(crate) fn options(self) -> StageOptions {
        let Self { device, threads, kv } = self;
        StageOptions { device, threads, kv, isa: None }
    }
}

/// Room for what is computed, should a stage be lost that it was handed on to.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct ReplayArgs {
    /// Memory for what was handed on in all sessions, should a stage be lost
    #[arg(help_heading = COMPUTE, long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    replay_memory: u64,
    /// Disk for what has no room there, encrypted and gone with its session; 0 for none
    #[arg(help_heading = COMPUTE, long, value_name = "SIZE", default_value = "4G", value_parser = parse_size_or_0)]
    replay_disk: u64,
}

impl ReplayArgs {
    /// As a node wants it.
    pub(crate) fn settings(self) -> Replay {
        Replay { memory: self.replay_memory, disk: self.replay_disk }
    }
}

/// The instruction set, for those who compare.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct IsaArg {
    /// Instruction set of the exact kernels: scalar, avx2, avx512 or amx; no result depends on it [default: the best
    /// there is]
    #[arg(help_heading = COMPUTE, long, value_name = "NAME", value_parser = parse_isa)]
    isa: Option<Isa>,
}

impl IsaArg {
    /// The options of `compute` with this instruction set.
    pub(crate) fn with(self, compute: ComputeArgs) -> StageOptions {
        StageOptions { isa: self.isa, ..compute.options() }
    }
}

/// Where flags of computing stand in `--help`.
const COMPUTE: &str = "Computing";

fn parse_device(name: &str) -> Result<Device, String> {
    let device: Device = name.parse().map_err(|e: UnknownDevice| e.to_string())?;
    let missing = |e: BackendError| format!("{}. Leave --device out to compute on the processor", e.0);
    device.check().map(|()| device).map_err(missing)
}

fn parse_kv(name: &str) -> Result<KvFormat, String> {
    match name {
        "f32" => Ok(KvFormat::F32),
        "f16" => Ok(KvFormat::F16),
        "q8" => Ok(KvFormat::Q8),
        other => Err(format!("there is no format '{other}'; there are f32, f16 and q8")),
    }
}

fn parse_isa(name: &str) -> Result<Isa, String> {
    let isa: Isa = name.parse().map_err(|e: quelea_engine::UnknownIsa| e.to_string())?;
    if isa.is_available() {
        return Ok(isa);
    }
    let available: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    Err(format!("this machine does not have {isa}; it has {}", available.join(", ")))
}

/// A number of threads that a machine can have.
pub(super) fn parse_threads(text: &str) -> Result<NonZeroUsize, String> {
    let threads = text.parse().ok().filter(|threads: &NonZeroUsize| threads.get() <= MAX_THREADS);
    threads.ok_or_else(|| format!("expected a number between 1 and {MAX_THREADS}"))
}

fn parse_chunk(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=MAX_ROWS) => Ok(n),
        _ => Err(format!("expected a number between 1 and {MAX_ROWS}")),
    }
}

/// What log-probabilities to show.
#[derive(Debug, Args)]
pub(crate) struct LogitsArgs {
    /// A GGUF file, or 'demo'
    pub(crate) file: String,
    /// The text before; tokenised as the file's own settings say
    #[arg(long, required_unless_present = "ids", conflicts_with = "ids")]
    pub(crate) text: Option<String>,
    /// The token ids before
    #[arg(long, value_delimiter = ',')]
    pub(crate) ids: Option<Vec<u32>>,
    /// Run as stages cut at these layers
    #[arg(long, value_delimiter = ',')]
    pub(crate) split: Vec<usize>,
    /// Only this many of the likeliest
    #[arg(long)]
    pub(crate) top: Option<usize>,
    /// Tokens that are computed at once. No result of the exact kernels depends on it
    #[arg(help_heading = COMPUTE, long, value_name = "N", default_value = "64", value_parser = parse_chunk)]
    pub(crate) chunk: usize,
    #[command(flatten)]
    pub(crate) isa: IsaArg,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_threads_than_a_machine_can_have() {
        assert_eq!(parse_threads("1"), Ok(NonZeroUsize::MIN));
        assert_eq!(parse_threads(&MAX_THREADS.to_string()).unwrap().get(), MAX_THREADS);
        for text in ["0", "-1", "x", "30000", "18446744073709551615"] {
            assert!(parse_threads(text).unwrap_err().contains("between 1 and 1024"), "{text}");
        }
    }
}
