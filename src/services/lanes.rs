//! Whose turn it is to call: a rush of our own calls waits here, where a provider would take it for a flood.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use libp2p::PeerId;
use quelea_service::{MAX_INBOUND_PER_PEER, PEER_RATE};
use quelea_wire::rate::PeerBuckets;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

/// Streams of ours to one peer at once: less than it takes, as it is told of their ends a moment later.
const AT_ONCE: usize = MAX_INBOUND_PER_PEER * 3 / 4;

/// Streams that we open to one peer per second: half of what it takes, because a call that is paid has two packets of the ledger,
/// of which it takes a hundred.
const PER_SECOND: u32 = PEER_RATE / 2;

/// Between two looks whether it is our turn.
const BETWEEN: Duration = Duration::from_millis(10);

/// See the module.
pub(super) struct Lanes {
    /// As many as calls are under way.
    places: Mutex<HashMap<PeerId, Weak<Semaphore>>>,
    pace: Mutex<PeerBuckets>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { places: Mutex::default(), pace: Mutex::new(PeerBuckets::new(PER_SECOND, Duration::from_secs(1))) }
    }
}

impl Lanes {
    /// Waits until one more stream may be opened to a peer.
    pub(super) async fn turn(&self, peer: PeerId) -> OwnedSemaphorePermit {
        let place = loop {
            // Never closed; another one is made if it were.
            if let Ok(place) = self.lane(peer).acquire_owned().await {
                break place;
            }
        };
        while !self.pace.lock().unwrap_or_else(PoisonError::into_inner).admit(peer, std::time::Instant::now()) {
            sleep(BETWEEN).await;
        }
        place
    }

    fn lane(&self, peer: PeerId) -> Arc<Semaphore> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = places.get(&peer).and_then(Weak::upgrade) {
            return lane;
        }
        places.retain(|_, lane| lane.strong_count() > 0);
        let lane = Arc::new(Semaphore::new(AT_ONCE));
        places.insert(peer, Arc::downgrade(&lane));
        lane
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_rush_of_our_own_calls_waits_its_turn() {
        let (lanes, peer) = (Lanes::default(), PeerId::random());
        let mut places = Vec::new();
        for _ in 0..AT_ONCE {
            places.push(lanes.turn(peer).await);
        }
        assert!(timeout(Duration::from_millis(30), lanes.turn(peer)).await.is_err(), "one too many");
        let _other = timeout(Duration::from_secs(9), lanes.turn(PeerId::random())).await.unwrap();
        places.pop();
        places.push(lanes.turn(peer).await);
        places.clear();
        let _again = lanes.turn(peer).await;
        assert_eq!(lanes.places.lock().unwrap().len(), 2);
    }
}
