//! How quantised matrices lie in memory once packed.
//!
//! Rows of the matrix are taken in groups of [`GROUP`] = 16, one to a lane. A group is a row of **records**, each of
//! [`Format::BLOCKS`] blocks of 32 inputs; a record holds the codes of its blocks, then its scales.
//!
//! Within a block, four consecutive inputs of 16 rows make a **quad** of 64 bytes: byte `4·lane + i` is the code of input
//! `4·quad + i`. That is what `vpdpbusd` multiplies at once, and eight quads are the right-hand tile of `tdpbssd`. Codes of
//! fewer than eight bits are cut into **planes** of 8, 4, 2 or 1 bits, several quads to 64 bytes:
//!
//! | plane | vectors a block | vector `v` holds |
//! |---|---|---|
//! | 8 bits | 8 | quad `v` |
//! | 4 bits | 4 | quad `v` in the low nibbles, quad `v + 4` in the high ones |
//! | 2 bits | 2 | quads `4v … 4v + 3`, from the low bits up |
//! | 1 bit | 1 | quad `j` at bit `j` |

use super::WeightType;

/// Rows of a matrix, or outputs of a product, that are worked on together: the lanes of a 512-bit vector.
pub(crate) const GROUP: usize = 16;

/// Inputs whose codes lie together: one block of activations, or two of half the length.
pub(crate) const BLOCK: usize = 32;

/// Bytes of a quad.
pub(crate) const QUAD: usize = 64;

/// The planes of a code, widest first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planes {
    Eight,
    Four,
    FourOne,
    FourTwo,
    Two,
    TwoOne,
}

/// The scales of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// Per block an f16 scale: `[2][16]`.
    Plain,
    /// Per block an f16 scale, then per block an f16 minimum: `[2][16]`, `[2][16]`.
    Minimum,
    /// u8 scales `[8][16]`, u8 minimums `[8][16]`, f16 `d` `[16]`, f16 `−dmin` `[16]`.
    SixBits,
    /// Per 16 inputs a nibble of scale and, above it, one of minimum `[16][16]`, f16 `d` `[16]`, f16 `−dmin` `[16]`.
    FourBits,
    /// Per 16 inputs an i8 scale `[16][16]`, f32 `d` `[16]`.
    Signed,
}

/// One quantised type.
pub(crate) trait Format: 'static {
    const TYPE: WeightType;
    const PLANES: Planes;
    const SCALES: Scales;
    /// The code that stands for zero, or 0: a power of two.
    const ZERO: u32;

    /// Blocks of 32 inputs to a record.
    const BLOCKS: usize = match Self::SCALES {
        Scales::Plain | Scales::Minimum => 2,
        _ => 8,
    };
    /// Sub-blocks to a block: stretches with a scale of their own, their weights' or their activations'. Activations come
    /// in blocks of 16, an eighth more accurate than blocks of 32, but for the types where 32 already beats the 256 of
    /// other engines and a sum more would cost the most.
    const SUBS: usize = match Self::SCALES {
        Scales::SixBits => 1,
        _ => 2,
    };
    /// Whether the sub-blocks of a block share their weights' scale and minimum.
    const SHARED: bool = matches!(Self::SCALES, Scales::Plain | Scales::Minimum);
    /// Whether there is something to add besides scale times code.
    const MINIMUMS: bool = matches!(Self::SCALES, Scales::Minimum | Scales::SixBits | Scales::FourBits);
    /// The bits of a code.
    const BITS: u32 = match Self::PLANES {
        Planes::Eight => 8,
        Planes::FourTwo => 6,
        Planes::FourOne => 5,
        Planes::Four => 4,
        Planes::TwoOne => 3,
        Planes::Two => 2,
    };
    /// Bytes of a block's codes: one bit each of a quad's 64 times eight quads is one vector.
    const CODE_BYTES: usize = QUAD * Self::BITS as usize;
    /// Where the scales of a record begin.
    const SCALES_AT: usize = Self::BLOCKS * Self::CODE_BYTES;
    /// Bytes of a record, a multiple of a cache line.
    const RECORD: usize = Self::SCALES_AT
        + GROUP
            * match Self::SCALES {
                Scales::Plain => 2 * 2,
                Scales::Minimum => 2 * 2 + 2 * 2,
                Scales::SixBits => 8 + 8 + 2 + 2,
                Scales::FourBits => 16 + 2 + 2,
                Scales::Signed => 16 + 4,
            };
}

macro_rules! formats {
    ($($name:ident: $planes:ident, $scales:ident, $zero:literal;)*) => {
        $(
            pub(crate) struct $name;
            impl Format for $name {
                const TYPE: WeightType = WeightType::$name;
                const PLANES: Planes = Planes::$planes;
                const SCALES: Scales = Scales::$scales;
                const ZERO: u32 = $zero;
            }
            const _: () = assert!($name::RECORD % crate::memory::LINE == 0);
        )*

        /// Evaluates an expression with the format of a quantised weight type as a type of its own; for the plain
        /// floats, another one.
        macro_rules! with_format {
            ($ty:expr, $format:ident => $body:expr, float => $float:expr) => {
                match $ty {
                    $($crate::product::WeightType::$name => {
                        type $format = $crate::product::format::$name;
                        $body
                    })*
                    _ => $float,
                }
            };
        }
        pub(crate) use with_format;
    };
}

formats! {
    Q4_0: Four, Plain, 8;
    Q4_1: Four, Minimum, 0;
    Q5_0: FourOne, Plain, 16;
    Q5_1: FourOne, Minimum, 0;
    Q8_0: Eight, Plain, 128;
    Q2K: Two, FourBits, 0;
    Q3K: TwoOne, Signed, 4;
    Q4K: Four, SixBits, 0;
    Q5K: FourOne, SixBits, 0;
    Q6K: FourTwo, Signed, 32;
}
