//! Rounding the residual stream for thin links: the profile `exact-bf16`.
//!
//! A session of that profile rounds what enters a stage, and what each layer gives, to 8 bits of mantissa. Since rounding what
//! is rounded changes nothing, it is the same function wherever the layers are cut, and what is between two layers is two
//! bytes a value, without loss.

/// Rounds each value to the nearest that bf16 has, ties to the even one. What would be past the largest becomes infinite,
/// which stages refuse.
pub fn round_to_bf16(values: &mut [f32]) {
    for value in values {
        let bits = value.to_bits();
        // Carries into the exponent where the mantissa is full. NaN is kept out by whoever checks what is computed.
        let even = (bits >> 16) & 1;
        *value = f32::from_bits(bits.wrapping_add(0x7fff).wrapping_add(even) & 0xffff_0000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(value: f32) -> f32 {
        let mut values = [value];
        round_to_bf16(&mut values);
        values[0]
    }

    #[test]
    fn vectors() {
        let bits = |bits: u32| rounded(f32::from_bits(bits)).to_bits();
        assert_eq!(bits(0x3f80_0000), 0x3f80_0000);
        // Half way goes to the even one, either way; a bit more goes up, a bit less down.
        assert_eq!([bits(0x3f80_8000), bits(0x3f81_8000)], [0x3f80_0000, 0x3f82_0000]);
        assert_eq!([bits(0x3f80_8001), bits(0x3f81_7fff)], [0x3f81_0000, 0x3f81_0000]);
        // Into the next exponent, subnormals, and signs.
        assert_eq!([bits(0x3fff_ffff), bits(0x0000_8001), bits(0x8000_7fff)], [0x4000_0000, 0x0001_0000, 0x8000_0000]);
        assert_eq!(rounded(-3.3), -3.296_875);
        assert!(rounded(f32::MAX).is_infinite());
    }

    #[test]
    fn what_is_rounded_stays() {
        for n in 0..=u16::MAX {
            let value = f32::from_bits(u32::from(n) << 16);
            assert!(value.is_nan() || rounded(value).to_bits() == value.to_bits());
        }
    }
}
