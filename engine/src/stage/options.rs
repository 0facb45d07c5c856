//! On what a stage computes, and how.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError, Weak},
};

pub use quelea_kernels::{Isa, attention::KvFormat, isa::UnknownIsa};
use quelea_kernels::{Pool, limits};

use crate::{
    BackendError, LoadError,
    backend::{candle::Candle, cpu::Cpu},
};

/// How a stage computes. The default is what a user wants: the exact kernels on all cores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageOptions {
    /// Where.
    pub device: Device,
    /// The instruction set of the exact kernels; the best that the machine has when absent. No result depends on it.
    pub isa: Option<Isa>,
    /// Threads of the exact kernels; one for each core when absent. No result depends on it.
    pub threads: Option<NonZeroUsize>,
    /// How the exact kernels keep keys and values; part of the numeric profile.
    pub kv: KvFormat,
}

impl StageOptions {
    /// The exact kernels as these options ask for them.
    pub(super) fn cpu(&self) -> Result<Cpu, LoadError> {
        let isa = self.isa.unwrap_or_else(Isa::best);
        if !isa.is_available() {
            let available = Isa::available().iter().map(Isa::to_string).collect::<Vec<_>>().join(", ");
            return Err(BackendError(format!("this machine does not have {isa}; it has {available}")).into());
        }
        Ok(Cpu::new(isa, pool(self.threads), self.kv))
    }

    /// The numeric profile of stages with these options, without loading one; see [`Stage::profile`](super::Stage::profile).
    pub fn profile(&self) -> &'static str {
        match self.device {
            Device::Cpu => crate::backend::cpu::profile(self.kv),
            Device::Candle => "candle-cpu-f32",
            Device::Cuda(_) => "candle-cuda-f32",
            Device::Metal(_) => "candle-metal-f32",
        }
    }

    /// Whether results of stages with these options depend on nothing but their input; see
    /// [`Stage::is_exact`](super::Stage::is_exact).
    pub fn is_exact(&self) -> bool {
        self.device == Device::Cpu
    }

    /// The instruction set that the exact kernels use with these options; nothing on other devices.
    pub fn isa_used(&self) -> Option<Isa> {
        (self.device == Device::Cpu).then(|| self.isa.unwrap_or_else(Isa::best))
    }

    /// The threads that compute with these options.
    pub fn threads_used(&self) -> usize {
        match self.device {
            Device::Cpu => pool(self.threads).threads(),
            Device::Candle => rayon::current_num_threads(),
            // The one that gives the device its work.
            Device::Cuda(_) | Device::Metal(_) => 1,
        }
    }

    /// Operations per second of the exact kernels' products: see [`limits::product_rate`].
    pub fn product_rate(&self, repeat: usize) -> f64 {
        let isa = self.isa_used().unwrap_or_else(Isa::best);
        limits::product_rate(isa, &pool(NonZeroUsize::new(self.threads_used())), repeat)
    }

    /// Bytes per second at which as many threads read `bytes` of memory: see [`limits::read_bandwidth`].
    pub fn read_bandwidth(&self, bytes: usize, repeat: usize) -> f64 {
        limits::read_bandwidth(&pool(NonZeroUsize::new(self.threads_used())), bytes, repeat)
    }
}

/// What computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The exact kernels on the processor.
    #[default]
    Cpu,
    /// Candle on the processor.
    Candle,
    /// Candle on the CUDA device of this number, in builds with the feature `cuda`.
    Cuda(usize),
    /// Candle on the Metal device of this number, in builds with the feature `metal`.
    Metal(usize),
}

impl Device {
    /// Whether this build and this machine have it.
    ///
    /// # Errors
    /// What is missing: support for it in the build, or the device.
    pub fn check(self) -> Result<(), BackendError> {
        match self {
            Self::Cpu | Self::Candle => Ok(()),
            Self::Cuda(number) => Candle::cuda(number).map(drop),
            Self::Metal(number) => Candle::metal(number).map(drop),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Candle => f.write_str("candle"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal(number) => write!(f, "metal:{number}"),
        }
    }
}

impl FromStr for Device {
    type Err = UnknownDevice;

    /// `cpu`, `candle`, `cuda[:N]` or `metal[:N]`.
    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        let (kind, number) = name.split_once(':').unwrap_or((name, "0"));
        match (kind, number.parse()) {
            ("cpu", _) if kind == name => Ok(Self::Cpu),
            ("candle", _) if kind == name => Ok(Self::Candle),
            ("cuda", Ok(number)) => Ok(Self::Cuda(number)),
            ("metal", Ok(number)) => Ok(Self::Metal(number)),
            _ => Err(UnknownDevice { name: name.to_owned() }),
        }
    }
}

/// A device that there is none of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no device '{name}'; there are cpu, candle, cuda[:N] and metal[:N]")]
pub struct UnknownDevice {
    /// The name given.
    pub name: String,
}

/// The pool of this many threads; all stages of a process share it, as they would share the cores anyway.
fn pool(threads: Option<NonZeroUsize>) -> Arc<Pool> {
    static POOLS: Mutex<BTreeMap<NonZeroUsize, Weak<Pool>>> = Mutex::new(BTreeMap::new());
    let threads = threads.or_else(|| std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = pools.get(&threads).and_then(Weak::upgrade) {
        return pool;
    }
    pools.retain(|_, pool| pool.strong_count() > 0);
    let pool = Arc::new(Pool::new(threads));
    pools.insert(threads, Arc::downgrade(&pool));
    pool
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_by_name() {
        for (name, device) in [
            ("cpu", Device::Cpu),
            ("candle", Device::Candle),
            ("cuda:0", Device::Cuda(0)),
            ("cuda:3", Device::Cuda(3)),
            ("metal:1", Device::Metal(1)),
        ] {
            assert_eq!(name.parse(), Ok(device));
            assert_eq!(device.to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for name in ["", "gpu", "cpu:0", "cuda:", "cuda:x", "metal:-1"] {
            let error = name.parse::<Device>().unwrap_err().to_string();
            assert_eq!(error, format!("there is no device '{name}'; there are cpu, candle, cuda[:N] and metal[:N]"));
        }
    }
}
