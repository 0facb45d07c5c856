//! Gossip messages on their way to be checked, and back: bounded, off the loop, with a deadline.
//!
//! A message that finds no place is ignored, which costs nobody anything but the message; so a flood from one peer may take
//! [`PER_PEER`] places and no more.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::{PeerId, gossipsub::MessageId};
use quelea_behaviours::gossip::{Content, Id, Reason, Topic, verify};
use quelea_wire::{NetworkId, time::unix_ms};
use tokio::sync::mpsc;

/// Messages that may wait for their check, 1.3 KiB each. At some 100 µs each the last one waits for 25 ms.
pub(super) const QUEUE: usize = 256;

/// Of these, from one peer.
pub(super) const PER_PEER: usize = 32;

/// How long a message may wait. gossipsub can pass it on for five heartbeats; a machine that is so far behind has no use for
/// it.
const WAIT: Duration = Duration::from_secs(2);

/// A message that is worth checking.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) topic: Topic,
    pub(super) id: Id,
    pub(super) message_id: MessageId,
    pub(super) source: PeerId,
    pub(super) data: Vec<u8>,
}

/// A message that was checked.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) topic: Topic,
    pub(super) id: Id,
    pub(super) message_id: MessageId,
    pub(super) source: PeerId,
    pub(super) result: Result<Content, Reason>,
}

/// The way there and back.
#[derive(Debug)]
pub(super) struct Validation {
    jobs: mpsc::Sender<(Job, Instant)>,
    checked: mpsc::Receiver<Checked>,
    waiting: HashMap<PeerId, usize>,
    total: usize,
}

impl Validation {
    /// Starts the task that checks. It ends with this value.
    pub(super) fn start(network: NetworkId) -> Self {
        let (jobs, todo) = mpsc::channel(QUEUE);
        let (done, checked) = mpsc::channel(QUEUE);
        tokio::spawn(check(network, todo, done));
        Self { jobs, checked, waiting: HashMap::new(), total: 0 }
    }

    /// Queues a message, unless too many wait.
    pub(super) fn queue(&mut self, job: Job) -> Result<(), Reason> {
        let source = job.source;
        let of_peer = self.waiting.get(&source).copied().unwrap_or(0);
        // Counted until the result is taken, so that the way back is never full either.
        if self.total >= QUEUE || of_peer >= PER_PEER || self.jobs.try_send((job, Instant::now())).is_err() {
            return Err(Reason::Busy);
        }
        self.total += 1;
        self.waiting.insert(source, of_peer + 1);
        Ok(())
    }

    /// The next message that was checked.
    pub(super) async fn next(&mut self) -> Option<Checked> {
        let checked = self.checked.recv().await?;
        self.total = self.total.saturating_sub(1);
        if let Some(of_peer) = self.waiting.get_mut(&checked.source) {
            *of_peer = of_peer.saturating_sub(1);
            if *of_peer == 0 {
                self.waiting.remove(&checked.source);
            }
        }
        Some(checked)
    }
}

async fn check(network: NetworkId, mut todo: mpsc::Receiver<(Job, Instant)>, done: mpsc::Sender<Checked>) {
    while let Some((job, since)) = todo.recv().await {
        let Job { topic, id, message_id, source, data } = job;
        let result = if since.elapsed() > WAIT { Err(Reason::Busy) } else { verify(&network, topic, &data, unix_ms()) };
        if done.send(Checked { topic, id, message_id, source, result }).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use quelea_behaviours::gossip::id_of;

    use super::*;

    fn job(source: PeerId, n: usize) -> Job {
        let data = n.to_le_bytes().to_vec();
        let id = id_of("topic", &data);
        Job { topic: Topic::Broadcast, id, message_id: MessageId::new(&id), source, data }
    }

    #[tokio::test]
    async fn one_peer_takes_its_share_and_no_more() {
        // The worker runs only while this test waits: nothing is taken out meanwhile.
        let mut validation = Validation::start(NetworkId::from_name("main"));
        let (flooder, honest) = (PeerId::random(), PeerId::random());
        let taken = (0..1000).filter(|n| validation.queue(job(flooder, *n)).is_ok()).count();
        assert_eq!(taken, PER_PEER);
        assert_eq!(validation.queue(job(honest, 0)), Ok(()));
        let all = (0..1000).filter(|n| validation.queue(job(PeerId::random(), *n)).is_ok()).count();
        assert_eq!(taken + 1 + all, QUEUE);
        for _ in 0..QUEUE {
            let checked = tokio::time::timeout(Duration::from_secs(10), validation.next()).await.unwrap().unwrap();
            assert!(matches!(checked.result, Err(Reason::Line(_))));
        }
        assert!(validation.waiting.is_empty() && validation.total == 0);
        assert_eq!(validation.queue(job(flooder, 0)), Ok(()));
    }
}
