//! Whatever is read is what would be written.

use proptest::{collection::vec, prelude::*};
use quelea_weights::{Answer, Bitmap};

use crate::{answer, request};

proptest! {
    #[test]
    fn what_is_read_is_what_would_be_written(bytes in vec(any::<u8>(), 0..100)) {
        if let Ok(read) = answer(&bytes) {
            let again = read.encode().unwrap();
            // The time a busy peer asks for is brought into its range.
            let busy = matches!(read, Answer::Busy { .. });
            prop_assert!(busy || bytes.starts_with(&again));
        }
        if let Ok(read) = request(&bytes) {
            prop_assert!(bytes.starts_with(&read.encode()));
        }
    }

    #[test]
    fn a_bitmap_is_a_set(chunks in 0_u32..100, changes in vec((0_u32..110, any::<bool>()), 0..60)) {
        let mut bitmap = Bitmap::new(chunks);
        let mut set = std::collections::BTreeSet::new();
        for (chunk, there) in changes {
            bitmap.set(chunk, there);
            if !there || chunk >= chunks { set.remove(&chunk); } else { set.insert(chunk); }
        }
        prop_assert!((0..110).all(|chunk| bitmap.has(chunk) == set.contains(&chunk)));
        prop_assert_eq!(bitmap.count() as usize, set.len());
        prop_assert_eq!(bitmap.is_full(), set.len() == chunks as usize);
        prop_assert_eq!(Bitmap::from_bits(chunks, bitmap.bits().to_vec()), Some(bitmap.clone()));
        let given = Answer::Have(bitmap);
        prop_assert_eq!(answer(&given.encode().unwrap()).unwrap(), given);
        prop_assert!(Bitmap::full(chunks).is_full());
    }
}
