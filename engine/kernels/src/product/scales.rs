//! The scales of a record, as they enter the product.

use super::format::{Format, GROUP, Scales};
use super::simd::Simd;

/// What all blocks of a record share, for the lanes of each part of a quad.
pub(crate) struct Head<S: Simd> {
    d: [S::F; 2],
    min: [S::F; 2],
}

/// Reads what the blocks of a record share.
#[inline(always)]
pub(crate) unsafe fn head<S: Simd, F: Format>(record: *const u8) -> Head<S> {
    let mut head = Head { d: [S::zero_float(); 2], min: [S::zero_float(); 2] };
    let mut part = 0;
    while part < S::PARTS {
        let lane = part * S::LANES;
        match F::SCALES {
            Scales::Plain | Scales::Minimum => {}
            Scales::SixBits | Scales::FourBits => {
                let d = record.add(F::SCALES_AT + 16 * GROUP);
                head.d[part] = S::load_f16(d.add(2 * lane));
                head.min[part] = S::load_f16(d.add(2 * GROUP + 2 * lane));
            }
            Scales::Signed => head.d[part] = S::load_f32(record.add(F::SCALES_AT + 16 * GROUP + 4 * lane)),
        }
        part += 1;
    }
    head
}

/// The factor of a sub-block's integer sum, before the activations' own. Exact: 11 bits times 8 at most.
#[inline(always)]
pub(crate) unsafe fn scale<S: Simd, F: Format>(
    record: *const u8,
    head: &Head<S>,
    block: usize,
    sub: usize,
    part: usize,
) -> S::F {
    let lane = part * S::LANES;
    let at = record.add(F::SCALES_AT);
    match F::SCALES {
        Scales::Plain | Scales::Minimum => S::load_f16(at.add(2 * (block * GROUP + lane))),
        Scales::SixBits => S::mul(head.d[part], S::load_u8(at.add(block * GROUP + lane))),
        Scales::FourBits => S::mul(head.d[part], S::load_low_nibbles(at.add((2 * block + sub) * GROUP + lane))),
        Scales::Signed => S::mul(head.d[part], S::load_i8(at.add((2 * block + sub) * GROUP + lane))),
    }
}

/// What a weight of the sub-block is worth besides scale times code. Exact, as [`scale`] is.
#[inline(always)]
pub(crate) unsafe fn minimum<S: Simd, F: Format>(
    record: *const u8,
    head: &Head<S>,
    block: usize,
    sub: usize,
    part: usize,
) -> S::F {
    let lane = part * S::LANES;
    let at = record.add(F::SCALES_AT);
    match F::SCALES {
        Scales::Plain | Scales::Signed => S::zero_float(),
        Scales::Minimum => S::load_f16(at.add(2 * ((2 + block) * GROUP + lane))),
        Scales::SixBits => S::mul(head.min[part], S::load_u8(at.add((8 + block) * GROUP + lane))),
        Scales::FourBits => S::mul(head.min[part], S::load_high_nibbles(at.add((2 * block + sub) * GROUP + lane))),
    }
}
