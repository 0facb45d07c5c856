//! Packets on their way to peers: which may leave now, and which give way. No clock, no streams.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use libp2p::PeerId;

use crate::behaviour::{MAX_IN_FLIGHT, MAX_QUEUED, MAX_QUEUED_ALL, MAX_RETRIES, NotSent};

/// A packet with its place.
#[derive(Debug)]
pub(crate) struct Parcel {
    turn: u64,
    retries: u8,
    pub(crate) packet: Vec<u8>,
}

/// What is to go to one connected peer.
#[derive(Debug, Default)]
struct Line {
    /// By turn, so that one that is to be sent again stands where it stood.
    waiting: BTreeMap<u64, Parcel>,
    in_flight: usize,
    /// The peer has asked us to wait until then.
    not_before: Option<Instant>,
}

impl Line {
    fn len(&self) -> usize {
        self.waiting.len().saturating_add(self.in_flight)
    }
}

/// What is to go to all of them. Its lines are those of connected peers, which the connection limits bound.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    lines: HashMap<PeerId, Line>,
    len: usize,
    next_turn: u64,
}

impl Queue {
    /// Packets that wait or are in flight; at most [`MAX_QUEUED_ALL`].
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Connected peers.
    pub(crate) fn lines(&self) -> usize {
        self.lines.len()
    }

    /// A peer has its first connection.
    pub(crate) fn open(&mut self, peer: PeerId) {
        self.lines.entry(peer).or_default();
    }

    /// A peer's last connection is gone: how many packets are lost with it, those in flight included.
    pub(crate) fn close(&mut self, peer: &PeerId) -> usize {
        let lost = self.lines.remove(peer).map_or(0, |line| line.len());
        self.len = self.len.saturating_sub(lost);
        lost
    }

    /// Adds a packet. When there is no place, the longest line gives its newest one up: whose it was.
    pub(crate) fn push(&mut self, peer: PeerId, packet: Vec<u8>) -> Result<Option<PeerId>, NotSent> {
        let length = self.lines.get(&peer).ok_or(NotSent::NotConnected)?.len();
        if length >= MAX_QUEUED {
            return Err(NotSent::PeerFull);
        }
        let gave_way = if self.len >= MAX_QUEUED_ALL { Some(self.make_room(length)?) } else { None };
        let turn = self.next_turn;
        self.next_turn = turn.wrapping_add(1);
        if let Some(line) = self.lines.get_mut(&peer) {
            line.waiting.insert(turn, Parcel { turn, retries: 0, packet });
            self.len = self.len.saturating_add(1);
        }
        Ok(gave_way)
    }

    fn make_room(&mut self, length: usize) -> Result<PeerId, NotSent> {
        let longest = self.lines.iter_mut().max_by_key(|(_, line)| line.waiting.len());
        // One that is no longer than the newcomer's has the older right.
        let (peer, line) = longest.filter(|(_, line)| line.waiting.len() > length).ok_or(NotSent::Full)?;
        line.waiting.pop_last().ok_or(NotSent::Full)?;
        self.len = self.len.saturating_sub(1);
        Ok(*peer)
    }

    /// The packet that may leave for `peer` now. It is in flight from then on.
    pub(crate) fn take(&mut self, peer: &PeerId, now: Instant) -> Option<Parcel> {
        let line = self.lines.get_mut(peer)?;
        if line.in_flight >= MAX_IN_FLIGHT || line.not_before.is_some_and(|at| at > now) {
            return None;
        }
        let (_, parcel) = line.waiting.pop_first()?;
        line.in_flight = line.in_flight.saturating_add(1);
        Some(parcel)
    }

    /// One in flight to `peer` has ended.
    pub(crate) fn ended(&mut self, peer: &PeerId) {
        if let Some(line) = self.lines.get_mut(peer) {
            line.in_flight = line.in_flight.saturating_sub(1);
            self.len = self.len.saturating_sub(1);
        }
    }

    /// One in flight is to be sent again, and nothing to that peer before `at`. `false`, and it has ended, when that was once
    /// too often.
    pub(crate) fn again(&mut self, peer: &PeerId, mut parcel: Parcel, at: Instant) -> bool {
        let Some(line) = self.lines.get_mut(peer) else { return false };
        line.not_before = line.not_before.max(Some(at));
        if parcel.retries >= MAX_RETRIES {
            self.ended(peer);
            return false;
        }
        parcel.retries = parcel.retries.saturating_add(1);
        line.in_flight = line.in_flight.saturating_sub(1);
        line.waiting.insert(parcel.turn, parcel);
        true
    }

    /// Drops what waits for `peer`: how many.
    pub(crate) fn clear(&mut self, peer: &PeerId) -> usize {
        let Some(line) = self.lines.get_mut(peer) else { return 0 };
        let dropped = std::mem::take(&mut line.waiting).len();
        self.len = self.len.saturating_sub(dropped);
        dropped
    }

    /// When the first of the peers that asked us to wait may be sent to again.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.lines.values().filter_map(|line| line.not_before).min()
    }

    /// The peers that have waited long enough. They are not named twice.
    pub(crate) fn rested(&mut self, now: Instant) -> Vec<PeerId> {
        let over = |line: &mut Line| line.not_before.take_if(|at| *at <= now).is_some();
        self.lines.iter_mut().filter_map(|(peer, line)| over(line).then_some(*peer)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn peers(n: usize) -> (Queue, Vec<PeerId>) {
        let mut queue = Queue::default();
        let peers: Vec<PeerId> = (0..n).map(|_| PeerId::random()).collect();
        peers.iter().for_each(|peer| queue.open(*peer));
        (queue, peers)
    }

    fn fill(queue: &mut Queue, peer: PeerId, n: usize) {
        (0..n).for_each(|i| assert!(matches!(queue.push(peer, vec![i as u8]), Ok(None))));
    }

    #[test]
    fn packets_leave_in_order_and_so_many_at_once() {
        let (mut queue, peers) = peers(2);
        let now = Instant::now();
        fill(&mut queue, peers[0], 20);
        let first: Vec<Parcel> = std::iter::from_fn(|| queue.take(&peers[0], now)).collect();
        assert_eq!(first.iter().map(|p| p.packet[0]).collect::<Vec<_>>(), (0..MAX_IN_FLIGHT as u8).collect::<Vec<_>>());
        queue.ended(&peers[0]);
        assert_eq!(queue.take(&peers[0], now).unwrap().packet, [MAX_IN_FLIGHT as u8]);
        assert!(queue.take(&peers[0], now).is_none() && queue.take(&peers[1], now).is_none());
        assert_eq!(queue.len(), 19);
        assert_eq!((queue.close(&peers[0]), queue.len(), queue.lines()), (19, 0, 1));
    }

    #[test]
    fn a_busy_peer_is_left_alone_and_then_sent_the_same_in_the_same_order() {
        let (mut queue, peers) = peers(1);
        let (peer, now) = (peers[0], Instant::now());
        fill(&mut queue, peer, 4);
        let at = |s: u64| now + Duration::from_secs(s);
        for round in 0..=u64::from(MAX_RETRIES) {
            let taken: Vec<Parcel> = std::iter::from_fn(|| queue.take(&peer, at(round))).collect();
            assert_eq!(taken.iter().map(|p| p.packet[0]).collect::<Vec<_>>(), [0, 1, 2, 3]);
            for parcel in taken.into_iter().rev() {
                assert_eq!(queue.again(&peer, parcel, at(round + 1)), round < u64::from(MAX_RETRIES));
            }
            assert!(queue.take(&peer, at(round)).is_none());
            assert_eq!(queue.due(), Some(at(round + 1)));
            assert_eq!(queue.rested(at(round)), []);
            assert_eq!(queue.rested(at(round + 1)), [peer]);
            assert_eq!(queue.due(), None);
        }
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn one_peer_has_its_share_and_a_full_queue_takes_from_the_longest() {
        let (mut queue, peers) = peers(MAX_QUEUED_ALL / MAX_QUEUED + 1);
        for peer in &peers[1..] {
            fill(&mut queue, *peer, MAX_QUEUED);
            assert!(matches!(queue.push(*peer, Vec::new()), Err(NotSent::PeerFull)));
        }
        assert_eq!(queue.len(), MAX_QUEUED_ALL);
        let mut lost = HashMap::<PeerId, usize>::new();
        while let Ok(gave_way) = queue.push(peers[0], Vec::new()) {
            *lost.entry(gave_way.unwrap()).or_default() += 1;
            assert_eq!(queue.len(), MAX_QUEUED_ALL);
        }
        let fair = MAX_QUEUED_ALL / peers.len();
        assert!(lost.values().sum::<usize>().abs_diff(fair) <= 1, "{lost:?}");
        assert_eq!(lost.len(), peers.len() - 1, "each gave a little");
        assert!(matches!(queue.push(PeerId::random(), Vec::new()), Err(NotSent::NotConnected)));
    }

    #[test]
    fn what_waits_is_dropped_where_nobody_reads_it() {
        let (mut queue, peers) = peers(1);
        fill(&mut queue, peers[0], 20);
        assert!(queue.take(&peers[0], Instant::now()).is_some());
        assert_eq!(queue.clear(&peers[0]), 19);
        queue.ended(&peers[0]);
        assert_eq!((queue.len(), queue.clear(&PeerId::random())), (0, 0));
    }

    proptest! {
        /// Whatever happens in whatever order, the bounds hold, and the length is what the lines have.
        #[test]
        fn counts_agree(steps in proptest::collection::vec((0_u8..6, 0_usize..4, 0_u64..3), 0..400)) {
            let (mut queue, peers) = peers(4);
            let mut now = Instant::now();
            let mut flying: Vec<(PeerId, Parcel)> = Vec::new();
            for (step, who, wait) in steps {
                let peer = peers[who];
                let at = now + Duration::from_secs(wait);
                match step {
                    0 => drop(queue.push(peer, vec![1])),
                    1 => flying.extend(queue.take(&peer, now).map(|parcel| (peer, parcel))),
                    2 => if let Some((peer, _)) = flying.pop() { queue.ended(&peer) },
                    3 => if let Some((peer, parcel)) = flying.pop() { queue.again(&peer, parcel, at); },
                    4 => {
                        queue.close(&peer);
                        flying.retain(|(other, _)| *other != peer);
                        queue.open(peer);
                    }
                    _ => {
                        now = at;
                        queue.rested(now);
                        prop_assert!(queue.due().is_none_or(|due| due > now));
                    }
                }
                let lines = queue.lines.values();
                prop_assert_eq!(queue.len(), lines.clone().map(Line::len).sum::<usize>());
                prop_assert_eq!(flying.len(), lines.clone().map(|line| line.in_flight).sum::<usize>());
                prop_assert!(lines.into_iter().all(|line| line.len() <= MAX_QUEUED && line.in_flight <= MAX_IN_FLIGHT));
            }
        }
    }
}
