//! SentencePiece's precompiled map of characters: which bytes are replaced by which before text is cut into pieces.
//!
//! The map is a blob of a file: the length of a trie in bytes (u32, little-endian), the trie as a compact double array of
//! 32-bit units, and the replacements, each ended by a zero byte. A unit holds a label in its lowest byte and bit 31, in
//! bit 8 whether a value hangs below it, and the distance to its children in bits 10 to 30 (times 256 when bit 9 is set);
//! a unit with a value holds the place of a replacement in its lower 31 bits. Whatever the blob says, a look-up ends after
//! as many steps as the text has bytes; what points outside of it is no match.

#[derive(Debug)]
pub(super) struct Charsmap {
    units: Vec<u32>,
    replacements: Vec<u8>,
}

impl Charsmap {
    /// Reads the blob; none when its length does not fit the length that it says.
    pub fn new(blob: &[u8]) -> Option<Self> {
        let (length, rest) = blob.split_first_chunk()?;
        let (units, replacements) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        let units = units.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        Some(Self { units, replacements: replacements.to_vec() })
    }

    /// Calls `found` with the length and the replacement of every entry that `bytes` begins with, shortest first, for as
    /// long as it says so.
    fn prefixes<'s>(&'s self, bytes: &[u8], mut found: impl FnMut(usize, &'s [u8]) -> bool) {
        let unit = |at: u32| self.units.get(at as usize).copied();
        let below = |unit: u32| (unit >> 10) << ((unit & (1 << 9)) >> 6);
        let Some(mut at) = unit(0).map(below) else { return };
        for (index, byte) in bytes.iter().enumerate() {
            at ^= u32::from(*byte);
            let Some(here) = unit(at).filter(|here| *byte != 0 && here & (1 << 31 | 0xff) == u32::from(*byte)) else {
                return;
            };
            at ^= below(here);
            if (here >> 8) & 1 == 1 {
                let place = unit(at).map(|value| (value & !(1 << 31)) as usize);
                let text = place.and_then(|place| self.replacements.get(place..)).and_then(|rest| {
                    let end = rest.iter().position(|byte| *byte == 0)?;
                    rest.get(..end)
                });
                if text.is_some_and(|text| !found(index + 1, text)) {
                    return;
                }
            }
        }
    }

    /// The longest entry that `bytes` begins with: its length and what replaces it.
    pub fn longest(&self, bytes: &[u8]) -> Option<(usize, &[u8])> {
        let mut longest = None;
        self.prefixes(bytes, |length, text| {
            longest = Some((length, text));
            true
        });
        longest
    }

    /// What replaces the shortest entry that `bytes` begins with.
    pub fn shortest(&self, bytes: &[u8]) -> Option<&[u8]> {
        let mut shortest = None;
        self.prefixes(bytes, |_, text| {
            shortest = Some(text);
            false
        });
        shortest
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A map that replaces `a` by `b` and `ac` by nothing: the root's children at 256, those of `a` at 512.
    pub fn small() -> Vec<u8> {
        let mut units = vec![0_u32; 1024];
        let a = usize::from(b'a');
        units[0] = 256 << 10;
        units[256 ^ a] = u32::from(b'a') | 1 << 8 | (((256 ^ a as u32) ^ 512) << 10);
        units[512] = 1 << 31;
        let c = 512 ^ usize::from(b'c');
        units[c] = u32::from(b'c') | 1 << 8 | ((c as u32 ^ 768) << 10);
        units[768] = 1 << 31 | 2;
        let mut blob = 4096_u32.to_le_bytes().to_vec();
        blob.extend(units.into_iter().flat_map(u32::to_le_bytes));
        blob.extend(b"b\0\0");
        blob
    }

    #[test]
    fn entries_are_found() {
        let map = Charsmap::new(&small()).unwrap();
        assert_eq!(map.longest(b"ax"), Some((1, &b"b"[..])));
        assert_eq!(map.longest(b"acx"), Some((2, &b""[..])));
        assert_eq!(map.shortest(b"acx"), Some(&b"b"[..]));
        assert_eq!((map.longest(b"x"), map.longest(b"\0"), map.longest(b"")), (None, None, None));
    }

    /// Every bit of it flipped: no panic, and no endless walk.
    #[test]
    fn damaged_maps_are_harmless() {
        let blob = small();
        for bit in 0..blob.len() * 8 {
            let mut damaged = blob.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let Some(map) = Charsmap::new(&damaged) else { continue };
            let text: Vec<u8> = (0..=255).collect();
            assert!((0..256).all(|at| map.longest(&text[at..]).is_none_or(|(length, _)| length + at <= 256)));
            map.longest(b"acacac");
        }
        assert!(Charsmap::new(&blob[..100]).is_none());
        assert!(Charsmap::new(&[]).is_none());
    }
}
