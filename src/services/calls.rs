//! Which calls are known, so that a repeated one is answered and not done again.
//!
//! | memory | bound | when full |
//! |---|---|---|
//! | calls under way | the protocol's inbound streams | – |
//! | results | [`KEPT`] of them and [`KEPT_BYTES`], each for as long as its hold is remembered | the oldest goes, of the caller that has most |

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use libp2p::PeerId;
use quelea_service::{CallId, Fault};
use tokio::sync::watch;

/// Results that are kept.
const KEPT: usize = 4096;

/// Bytes that all of them may have.
const KEPT_BYTES: usize = 32 << 20;

/// How long one is kept: as long as its hold may still be paid.
pub(super) const KEEP: Duration = Duration::from_secs(3 * 60);

/// Whose call.
pub(super) type Key = (PeerId, CallId);

/// What a call came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    /// Micro-credits.
    pub(super) amount: u64,
    pub(super) output: Vec<u8>,
}

/// The end of a call, for everybody who waits for it.
pub(super) type End = Result<Arc<Kept>, Fault>;

/// Where the end of a call under way is told. When nobody listens any more, the call is given up.
pub(super) type Ends = Arc<watch::Sender<Option<End>>>;

enum State {
    Running { job: [u8; 32], ends: Ends },
    Done { job: [u8; 32], kept: Arc<Kept>, until: Instant },
}

#[derive(Default)]
struct Table {
    calls: HashMap<Key, State>,
    /// Results in the order in which they came.
    order: VecDeque<Key>,
    bytes: usize,
}

/// See the module.
#[derive(Default)]
pub(super) struct Calls(Mutex<Table>);

/// What is known of a call.
pub(super) enum Known {
    /// Nothing: it is begun, and told about here.
    New(Ends, watch::Receiver<Option<End>>),
    /// It is under way.
    Running(watch::Receiver<Option<End>>),
    /// It is done.
    Done(Arc<Kept>),
    /// The id was used for something else.
    Conflict,
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks, and begins nothing.
    pub(super) fn look(&self, key: &Key, job: &[u8; 32], now: Instant) -> Option<Known> {
        self.lock().look(key, job, now)
    }

    /// Looks, and notes that it is begun where nothing is known of it.
    pub(super) fn begin(&self, key: Key, job: [u8; 32], now: Instant) -> Known {
        let mut table = self.lock();
        if let Some(known) = table.look(&key, &job, now) {
            return known;
        }
        let (ends, told) = watch::channel(None);
        let ends = Arc::new(ends);
        table.calls.insert(key, State::Running { job, ends: ends.clone() });
        Known::New(ends, told)
    }

    /// It has come to nothing, and may be done again.
    pub(super) fn forget(&self, key: &Key) {
        let mut table = self.lock();
        if let Some(State::Running { .. }) = table.calls.get(key) {
            table.calls.remove(key);
        }
    }

    /// It is done.
    pub(super) fn done(&self, key: Key, job: [u8; 32], kept: Arc<Kept>, now: Instant) {
        let mut table = self.lock();
        table.bytes = table.bytes.saturating_add(kept.output.len());
        table.calls.insert(key, State::Done { job, kept, until: now + KEEP });
        table.order.push_back(key);
        table.trim(now);
    }

    /// What an earlier process had done, for so much longer.
    pub(super) fn restore(&self, key: Key, job: [u8; 32], kept: Kept, rest: Duration, now: Instant) {
        let mut table = self.lock();
        table.bytes = table.bytes.saturating_add(kept.output.len());
        table.calls.insert(key, State::Done { job, kept: Arc::new(kept), until: now + rest.min(KEEP) });
        table.order.push_back(key);
        table.trim(now);
    }

    /// Results that are kept, and their bytes.
    #[cfg(test)]
    pub(super) fn kept(&self) -> (usize, usize) {
        let table = self.lock();
        (table.order.len(), table.bytes)
    }

    /// Lets go of results whose time is over.
    pub(super) fn sweep(&self, now: Instant) {
        self.lock().trim(now);
    }
}

impl Table {
    fn look(&mut self, key: &Key, job: &[u8; 32], now: Instant) -> Option<Known> {
        match self.calls.get(key)? {
            State::Running { job: of, .. } | State::Done { job: of, .. } if of != job => Some(Known::Conflict),
            State::Running { ends, .. } => Some(Known::Running(ends.subscribe())),
            State::Done { kept, until, .. } if *until > now => Some(Known::Done(kept.clone())),
            State::Done { .. } => {
                self.order.retain(|of| of != key);
                self.remove(key);
                None
            }
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(State::Done { kept, .. }) = self.calls.remove(key) {
            self.bytes = self.bytes.saturating_sub(kept.output.len());
        }
    }

    fn trim(&mut self, now: Instant) {
        while let Some(oldest) = self.order.front().copied() {
            let over = matches!(self.calls.get(&oldest), Some(State::Done { until, .. }) if *until <= now);
            let full = self.order.len() > KEPT || self.bytes > KEPT_BYTES;
            if !over && !full {
                return;
            }
            let goes = if over { 0 } else { self.of_most() };
            let Some(key) = self.order.remove(goes) else { return };
            self.remove(&key);
        }
    }

    /// The oldest result of the caller that has most bytes here: nobody keeps others' results out.
    fn of_most(&self) -> usize {
        let mut by_peer: HashMap<PeerId, usize> = HashMap::new();
        for key in &self.order {
            let bytes = match self.calls.get(key) {
                Some(State::Done { kept, .. }) => kept.output.len().saturating_add(64),
                _ => 0,
            };
            *by_peer.entry(key.0).or_default() += bytes;
        }
        let most = by_peer.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(peer, _)| peer);
        self.order.iter().position(|(peer, _)| Some(*peer) == most).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(bytes: usize) -> Arc<Kept> {
        Arc::new(Kept { amount: 1, output: vec![0; bytes] })
    }

    fn id(n: u32) -> CallId {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_le_bytes());
        CallId(id)
    }

    #[test]
    fn a_call_is_begun_once_and_answered_from_what_is_kept() {
        let (calls, key, now) = (Calls::default(), (PeerId::random(), id(1)), Instant::now());
        let Known::New(ends, _told) = calls.begin(key, [1; 32], now) else { panic!("it is new") };
        assert!(matches!(calls.begin(key, [1; 32], now), Known::Running(_)));
        assert!(matches!(calls.begin(key, [2; 32], now), Known::Conflict));
        // Somebody else's call of the same name is another.
        assert!(matches!(calls.begin((PeerId::random(), id(1)), [2; 32], now), Known::New(..)));
        calls.done(key, [1; 32], kept(3), now);
        drop(ends);
        assert!(matches!(calls.begin(key, [1; 32], now), Known::Done(_)));
        assert!(matches!(calls.look(&key, &[2; 32], now), Some(Known::Conflict)));
        assert_eq!(calls.kept(), (1, 3));
        assert!(matches!(calls.begin(key, [1; 32], now + KEEP), Known::New(..)), "its time is over");
        assert_eq!(calls.kept(), (0, 0));
    }

    #[test]
    fn what_failed_may_be_done_again() {
        let (calls, key, now) = (Calls::default(), (PeerId::random(), id(1)), Instant::now());
        let _first = calls.begin(key, [1; 32], now);
        calls.forget(&key);
        assert!(matches!(calls.begin(key, [1; 32], now), Known::New(..)));
    }

    #[test]
    fn results_are_bounded_and_whoever_has_most_loses_his_first() {
        let (calls, now) = (Calls::default(), Instant::now());
        let (modest, greedy) = (PeerId::random(), PeerId::random());
        calls.done((modest, id(0)), [0; 32], kept(1000), now);
        for n in 0..100 {
            calls.done((greedy, id(n)), [0; 32], kept(1 << 20), now);
        }
        let (count, bytes) = calls.kept();
        assert!(bytes <= KEPT_BYTES && count <= 33, "{count} of {bytes} bytes");
        assert!(matches!(calls.look(&(modest, id(0)), &[0; 32], now), Some(Known::Done(_))));
        for n in 0..u32::try_from(KEPT + 100).unwrap() {
            calls.done((PeerId::random(), id(n)), [0; 32], kept(1), now);
        }
        assert!(calls.kept().0 <= KEPT);
        calls.sweep(now + KEEP);
        assert_eq!(calls.kept(), (0, 0));
    }
}
