//! ggml's block formats: 32 values about one scale, or 256 with scales for each 16 or 32 of them.

use half::f16;

use super::search::{affine, code, extreme, sum, symmetric};

/// Values in a block of the K formats.
const SUPER: usize = 256;

fn half(scale: f32) -> (f32, [u8; 2]) {
    let scale = f16::from_f32(scale);
    (scale.to_f32(), scale.to_le_bytes())
}

/// One over `scale`, or zero for zero.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Codes of 4 bits, the first half of the block in the lower nibbles.
fn nibbles(codes: &[u8; 32], out: &mut [u8]) {
    let (low, high) = codes.split_at(16);
    out.iter_mut().zip(low.iter().zip(high)).for_each(|(byte, (low, high))| *byte = (low & 0xf) | (high & 0xf) << 4);
}

/// The fifth bits of 32 codes.
fn fifth(codes: &[u8; 32]) -> [u8; 4] {
    let bits = codes.iter().enumerate().fold(0u32, |bits, (i, code)| bits | u32::from(code >> 4 & 1) << i);
    bits.to_le_bytes()
}

/// A block of `scale * (code - levels)`.
fn centred(x: &[f32; 32], levels: f32) -> ([u8; 2], [u8; 32]) {
    let (scale, bytes) = half(symmetric(x, levels));
    let by = inverse(scale);
    (bytes, x.map(|value| (code(value * by, -levels, levels - 1.0) + levels) as u8))
}

/// A block of `scale * code + minimum`; unlike in the K formats the minimum may have either sign.
fn from_minimum(x: &[f32; 32], levels: f32) -> ([u8; 4], [u8; 32]) {
    let low = x.iter().fold(f32::INFINITY, |low, value| low.min(*value));
    let shifted = x.map(|value| value - low);
    let (scale, minimum) = affine(&shifted, levels);
    let ((scale, a), (start, b)) = (half(scale), half(low - minimum));
    let by = inverse(scale);
    let codes = x.map(|value| code((value - start) * by, 0.0, levels) as u8);
    ([a[0], a[1], b[0], b[1]], codes)
}

pub(super) fn q4_0(x: &[f32; 32], out: &mut [u8; 18]) {
    let (scale, codes) = centred(x, 8.0);
    out[..2].copy_from_slice(&scale);
    nibbles(&codes, &mut out[2..]);
}

pub(super) fn q4_1(x: &[f32; 32], out: &mut [u8; 20]) {
    let (scales, codes) = from_minimum(x, 15.0);
    out[..4].copy_from_slice(&scales);
    nibbles(&codes, &mut out[4..]);
}

pub(super) fn q5_0(x: &[f32; 32], out: &mut [u8; 22]) {
    let (scale, codes) = centred(x, 16.0);
    out[..2].copy_from_slice(&scale);
    out[2..6].copy_from_slice(&fifth(&codes));
    nibbles(&codes, &mut out[6..]);
}

pub(super) fn q5_1(x: &[f32; 32], out: &mut [u8; 24]) {
    let (scales, codes) = from_minimum(x, 31.0);
    out[..4].copy_from_slice(&scales);
    out[4..8].copy_from_slice(&fifth(&codes));
    nibbles(&codes, &mut out[8..]);
}

pub(super) fn q8_0(x: &[f32; 32], out: &mut [u8; 34]) {
    let (scale, bytes) = half(extreme(x).abs() / 127.0);
    let by = inverse(scale);
    out[..2].copy_from_slice(&bytes);
    out[2..].iter_mut().zip(x).for_each(|(byte, value)| *byte = code(value * by, -127.0, 127.0) as i8 as u8);
}

/// Two-bit codes, four values 32 apart to a byte.
fn pairs_of_bits(codes: &[u8; SUPER], out: &mut [u8]) {
    for (codes, out) in codes.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = codes[i] | codes[i + 32] << 2 | codes[i + 64] << 4 | codes[i + 96] << 6;
        }
    }
}

/// Scales and minima of `N` sub-blocks as small whole numbers, and the codes that belong to them.
struct Affine<const N: usize> {
    scale: [u8; 2],
    minimum: [u8; 2],
    scales: [u8; N],
    minima: [u8; N],
    codes: [u8; SUPER],
}

/// `d * scale * code - m * minimum`, codes up to `levels`, scales and minima up to `most`.
fn sub_blocks<const N: usize>(x: &[f32; SUPER], levels: f32, most: f32) -> Affine<N> {
    let len = SUPER / N;
    let mut found = [(0.0, 0.0); N];
    found.iter_mut().zip(x.chunks(len)).for_each(|(found, x)| *found = affine(x, levels));
    let largest = |of: fn(&(f32, f32)) -> f32| found.iter().map(of).fold(0.0, f32::max);
    let ((d, scale), (m, minimum)) = (half(largest(|f| f.0) / most), half(largest(|f| f.1) / most));
    let mut block = Affine { scale, minimum, scales: [0; N], minima: [0; N], codes: [0; SUPER] };
    for (i, (x, codes)) in x.chunks(len).zip(block.codes.chunks_mut(len)).enumerate() {
        let (scale, minimum) = nearest(x, levels, most, (d, m), found[i]);
        block.scales[i] = scale as u8;
        block.minima[i] = minimum as u8;
        let (by, minimum) = (inverse(d * scale), m * minimum);
        codes.iter_mut().zip(x).for_each(|(c, value)| *c = code((value + minimum) * by, 0.0, levels) as u8);
    }
    block
}

/// The whole-number scale and minimum beside the `wanted` ones that store `x` best.
fn nearest(x: &[f32], levels: f32, most: f32, (d, m): (f32, f32), wanted: (f32, f32)) -> (f32, f32) {
    let scale = code(wanted.0 * inverse(d), 0.0, most);
    let minimum = code(wanted.1 * inverse(m), 0.0, most);
    let mut best = (f32::INFINITY, scale, minimum);
    for scale in [scale, (scale - 1.0).max(0.0), (scale + 1.0).min(most)] {
        for minimum in [minimum, (minimum - 1.0).max(0.0), (minimum + 1.0).min(most)] {
            let (step, by, start) = (d * scale, inverse(d * scale), m * minimum);
            let error = sum(x, |value| {
                let off = value - (step * code((value + start) * by, 0.0, levels) - start);
                off * off
            });
            if error < best.0 {
                best = (error, scale, minimum);
            }
        }
    }
    (best.1, best.2)
}

pub(super) fn q2_k(x: &[f32; SUPER], out: &mut [u8; 84]) {
    let block = sub_blocks::<16>(x, 3.0, 15.0);
    let scales = block.scales.iter().zip(&block.minima);
    out.iter_mut().zip(scales).for_each(|(byte, (scale, minimum))| *byte = scale | minimum << 4);
    pairs_of_bits(&block.codes, &mut out[16..80]);
    out[80..82].copy_from_slice(&block.scale);
    out[82..].copy_from_slice(&block.minimum);
}

/// Eight six-bit scales and minima in twelve bytes: the first four of each in bytes of their own, whose two upper bits
/// hold the upper bits of the last four.
fn six_bits(scales: &[u8; 8], minima: &[u8; 8], out: &mut [u8]) {
    for i in 0..4 {
        out[i] = scales[i] | (scales[i + 4] >> 4) << 6;
        out[i + 4] = minima[i] | (minima[i + 4] >> 4) << 6;
        out[i + 8] = (scales[i + 4] & 0xf) | (minima[i + 4] & 0xf) << 4;
    }
}

/// The lower four bits of codes, values 32 apart to a byte.
fn halves(codes: &[u8; SUPER], out: &mut [u8]) {
    for (codes, out) in codes.as_chunks::<64>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = (codes[i] & 0xf) | (codes[i + 32] & 0xf) << 4;
        }
    }
}

pub(super) fn q4_k(x: &[f32; SUPER], out: &mut [u8; 144]) {
    let block = sub_blocks::<8>(x, 15.0, 63.0);
    out[..2].copy_from_slice(&block.scale);
    out[2..4].copy_from_slice(&block.minimum);
    six_bits(&block.scales, &block.minima, &mut out[4..16]);
    halves(&block.codes, &mut out[16..]);
}

pub(super) fn q5_k(x: &[f32; SUPER], out: &mut [u8; 176]) {
    let block = sub_blocks::<8>(x, 31.0, 63.0);
    out[..2].copy_from_slice(&block.scale);
    out[2..4].copy_from_slice(&block.minimum);
    six_bits(&block.scales, &block.minima, &mut out[4..16]);
    out[16..48].fill(0);
    for (bit, codes) in block.codes.as_chunks::<32>().0.iter().enumerate() {
        codes.iter().zip(&mut out[16..48]).for_each(|(code, byte)| *byte |= (code >> 4 & 1) << bit);
    }
    halves(&block.codes, &mut out[48..]);
}

/// Signed whole-number scales of sixteen sub-blocks, up to `most - 1` (and down to `-most`), and codes about `levels`.
fn signed_sub_blocks(x: &[f32; SUPER], levels: f32, most: f32) -> ([u8; 2], [i8; 16], [u8; SUPER]) {
    let mut found = [0.0; 16];
    found.iter_mut().zip(x.as_chunks::<16>().0).for_each(|(found, x)| *found = symmetric(x, levels));
    let (d, bytes) = half(extreme(&found) / -most);
    let (mut scales, mut codes) = ([0; 16], [0; SUPER]);
    for (i, (x, codes)) in x.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0).enumerate() {
        let wanted = code(found[i] * inverse(d), -most, most - 1.0);
        let error = |scale: f32| {
            let (step, by) = (d * scale, inverse(d * scale));
            sum(x, |value| {
                let off = value - step * code(value * by, -levels, levels - 1.0);
                off * off
            })
        };
        let mut best = (error(wanted), wanted);
        for scale in [(wanted - 1.0).max(-most), (wanted + 1.0).min(most - 1.0)] {
            let error = error(scale);
            if error < best.0 {
                best = (error, scale);
            }
        }
        scales[i] = best.1 as i8;
        let by = inverse(d * best.1);
        codes.iter_mut().zip(x).for_each(|(c, v)| *c = (code(v * by, -levels, levels - 1.0) + levels) as u8);
    }
    (bytes, scales, codes)
}

pub(super) fn q3_k(x: &[f32; SUPER], out: &mut [u8; 110]) {
    let (scale, scales, mut codes) = signed_sub_blocks(x, 4.0, 32.0);
    out.fill(0);
    for (bit, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (code, byte) in codes.iter_mut().zip(&mut out[..32]) {
            *byte |= (*code >> 2 & 1) << bit;
            *code &= 3;
        }
    }
    pairs_of_bits(&codes, &mut out[32..96]);
    for (i, scale) in scales.iter().enumerate() {
        // Six bits, 32 in the middle: four of them in the nibbles of eight bytes, the upper two in four bytes more.
        let scale = (i16::from(*scale) + 32) as u8;
        out[96 + i % 8] |= (scale & 0xf) << (4 * (i / 8));
        out[104 + i % 4] |= (scale >> 4) << (2 * (i / 4));
    }
    out[108..].copy_from_slice(&scale);
}

pub(super) fn q6_k(x: &[f32; SUPER], out: &mut [u8; 210]) {
    let (scale, scales, codes) = signed_sub_blocks(x, 32.0, 128.0);
    let (low, rest) = out.split_at_mut(128);
    let (high, rest) = rest.split_at_mut(64);
    let halves = codes.as_chunks::<128>().0.iter().zip(low.as_chunks_mut::<64>().0).zip(high.as_chunks_mut::<32>().0);
    for ((codes, low), high) in halves {
        for i in 0..32 {
            let [a, b, c, d] = [codes[i], codes[i + 32], codes[i + 64], codes[i + 96]];
            low[i] = (a & 0xf) | (c & 0xf) << 4;
            low[i + 32] = (b & 0xf) | (d & 0xf) << 4;
            high[i] = a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6;
        }
    }
    rest.iter_mut().zip(scales).for_each(|(byte, scale)| *byte = scale as u8);
    rest[16..].copy_from_slice(&scale);
}
