//! The instruction sets a kernel may be written for, and which of them this machine has.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// A path through the kernels, from the plainest to the widest. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust; the definition the others are held to.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// [`Isa::Avx512`] with AMX int8 tiles, which the operating system has to grant.
    Amx,
}

impl Isa {
    /// Every path there is, from the plainest to the widest.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Amx];

    /// The widest path this machine has.
    pub fn best() -> Isa {
        detected()
    }

    /// The paths this machine has, from the plainest to the widest. Each includes those before it.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this machine has the path.
    pub fn is_available(self) -> bool {
        self <= detected()
    }

    /// The name that [`FromStr`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name is none of a path's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no instruction set: use scalar, avx2, avx512 or amx")]
pub struct UnknownIsa(pub String);

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| UnknownIsa(name.to_owned()))
    }
}

/// Asked once: the permission for tiles is per process, and stays.
fn detected() -> Isa {
    static DETECTED: OnceLock<Isa> = OnceLock::new();
    *DETECTED.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")) {
        return Isa::Scalar;
    }
    let wide = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni");
    match (wide, wide && tiles_granted()) {
        (false, _) => Isa::Avx2,
        (true, false) => Isa::Avx512,
        (true, true) => Isa::Amx,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Scalar
}

/// Whether the processor has int8 tiles and the kernel lets this process use them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tiles_granted() -> bool {
    const LEAF: u32 = 7;
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;

    let highest = std::arch::x86_64::__cpuid(0).eax;
    if highest < LEAF {
        return false;
    }
    let features = std::arch::x86_64::__cpuid_count(LEAF, 0).edx;
    if features & AMX_TILE == 0 || features & AMX_INT8 == 0 {
        return false;
    }
    // SAFETY: the call takes two integers and touches no memory of ours; where the kernel does not know it, it fails.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn tiles_granted() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        assert!("sse".parse::<Isa>().is_err());
    }

    #[test]
    fn the_best_path_is_available_and_scalar_always_is() {
        assert!(Isa::best().is_available());
        assert!(Isa::available().starts_with(&[Isa::Scalar]));
        assert_eq!(Isa::available().last(), Some(&Isa::best()));
    }
}
