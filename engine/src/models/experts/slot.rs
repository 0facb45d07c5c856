//! A value that is loaded when it is first asked for, and asked for again when that fails.

use std::sync::{Mutex, OnceLock, PoisonError};

/// Loads in a row that may fail before the slot gives up: enough to outlive a moment without memory or a disk that was away,
/// few enough that weights which really are damaged are not read for every token from then on.
const MAX_TRIES: u32 = 4;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Slot<T> {
    loaded: OnceLock<T>,
    /// Held while somebody loads, so that two do not.
    failed: Mutex<Failed>,
}

/// The loads that failed so far.
#[derive(Debug, Default)]
struct Failed {
    tries: u32,
    /// How the last one ended.
    reason: String,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { loaded: OnceLock::new(), failed: Mutex::default() }
    }
}

impl<T> Slot<T> {
    /// The value, loaded if it is not there yet.
    ///
    /// # Errors
    /// What `load` says; after [`MAX_TRIES`] failures what it said last, without another try.
    pub(super) fn get_or_load(&self, load: impl FnOnce() -> Result<T, String>) -> Result<&T, String> {
        if let Some(value) = self.loaded.get() {
            return Ok(value);
        }
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = self.loaded.get() {
            // Somebody else loaded it while this thread waited.
            return Ok(value);
        }
        if failed.tries >= MAX_TRIES {
            return Err(format!("{} (tried {MAX_TRIES} times; load the model again)", failed.reason));
        }
        match load() {
            Ok(value) => Ok(self.loaded.get_or_init(|| value)),
            Err(reason) => {
                failed.tries = failed.tries.saturating_add(1);
                failed.reason.clone_from(&reason);
                Err(reason)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_tried_again() {
        let slot = Slot::default();
        assert_eq!(slot.get_or_load(|| Err("no memory".to_owned())), Err("no memory".to_owned()));
        assert_eq!(slot.get_or_load(|| Ok(7)), Ok(&7));
        assert_eq!(slot.get_or_load(|| Err("never asked".to_owned())), Ok(&7));
    }

    #[test]
    fn what_fails_again_and_again_is_given_up() {
        let slot = Slot::<u32>::default();
        for n in 0..MAX_TRIES {
            assert_eq!(slot.get_or_load(|| Err(format!("damage {n}"))), Err(format!("damage {n}")));
        }
        let given_up = "damage 3 (tried 4 times; load the model again)".to_owned();
        assert_eq!(slot.get_or_load(|| Ok(1)), Err(given_up));
    }

    #[test]
    fn many_who_ask_at_once_load_once() {
        let (slot, loads) = (Slot::default(), std::sync::atomic::AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let load = || Ok(loads.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
                    assert_eq!(slot.get_or_load(load), Ok(&0));
                });
            }
        });
        assert_eq!(loads.into_inner(), 1);
    }
}
