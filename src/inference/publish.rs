//! Telling the swarm what this node serves: provider records, and the signed announcement that says the rest.

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use libp2p::{Multiaddr, PeerId, identity::Keypair, multiaddr::Protocol};
use quelea_announce::{Announcement, Ends, Offer, SignedAnnouncement, State, bucket_key, buckets, model_key, next_seq};
use quelea_behaviours::scope::{self, Scope};
use quelea_wire::{Price, envelope, time::unix_ms};
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    figures::{Figures, LOOK_EVERY, News, To},
    plane::Plane,
    rebalance::Coming,
    serve::Served,
};
use crate::{
    node::Life,
    storage::Db,
    swarm::{PeerView, SwarmNotice},
};

/// An unchanged node announces so many times in the lifetime of an announcement, so that two may be lost.
const PER_LIFETIME: u32 = 3;

/// Announcements are made a little earlier than that, in parts of ten: their way takes time.
const EARLIER: u32 = 1;

/// When provider records are put again after a first contact: the routing table fills during the first seconds, and records
/// that reached nobody would otherwise wait for Kademlia's own repetition, five minutes later.
const PROVIDE_AGAIN: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

/// Publishes what the node serves until it stops, then takes it back.
pub(crate) struct Publisher {
    pub(crate) plane: Arc<Plane>,
    pub(crate) keypair: Keypair,
    pub(crate) db: Option<Db>,
    /// The current announcement, for this node's own chains.
    pub(crate) current: Arc<RwLock<Option<SignedAnnouncement>>>,
    /// How long an announcement is believed.
    pub(crate) ttl: Duration,
}

impl Publisher {
    /// Publishes until the node stops; says so when it drains, and leaves a tombstone at the end.
    pub(crate) async fn run(self, mut life: watch::Receiver<Life>) {
        let mut notices = self.plane.handle.watch();
        let mut keys = self.keys();
        self.provide(&keys).await;
        let mut again: Vec<Instant> = moments();
        let mut seq = self.last_seq().await;
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = *life.borrow_and_update();
            seq = next_seq(seq, unix_ms());
            let state = match now {
                Life::Running => State::Ready,
                Life::Draining => State::Draining,
                Life::Stopping => break,
            };
            let mut news = News::new(self.figures(), Instant::now().into_std());
            self.publish(seq, Some(state), To::Everybody).await;
            let next = Instant::now() + self.ttl * (10 - EARLIER) / (10 * PER_LIFETIME);
            loop {
                let provide_at = again.first().copied();
                tokio::select! {
                    () = sleep_until(next) => break,
                    () = self.plane.changed.notified() => {
                        let before = std::mem::replace(&mut keys, self.keys());
                        for key in before.into_iter().filter(|key| !keys.contains(key)) {
                            self.plane.handle.stop_providing(key).await;
                        }
                        self.provide(&keys).await;
                        break;
                    }
                    _ = look.tick() => match news.due(self.figures(), Instant::now().into_std(), rand::random()) {
                        Some(To::Everybody) => break,
                        Some(To::WhoAsks) => {
                            seq = next_seq(seq, unix_ms());
                            self.publish(seq, Some(state), To::WhoAsks).await;
                        }
                        None => {}
                    },
                    changed = life.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        break;
                    }
                    () = sleep_until(provide_at.unwrap_or(next)), if provide_at.is_some() => {
                        again.remove(0);
                        self.provide(&keys).await;
                    }
                    notice = notices.recv() => match notice {
                        Ok(SwarmNotice::Connected) if again.is_empty() => again = moments(),
                        Err(broadcast::error::RecvError::Closed) => return,
                        _ => {}
                    },
                }
            }
        }
        for key in keys {
            self.plane.handle.stop_providing(key).await;
        }
        self.publish(seq, None, To::Everybody).await;
    }

    /// What may change about the offers.
    fn figures(&self) -> Vec<Figures> {
        self.plane.served().iter().map(|served| Figures::of(served)).collect()
    }

    /// Round trips to the nearest of those who serve the same models: what a planner cannot measure from afar.
    async fn round_trips(&self, peers: &[PeerView]) -> Vec<(PeerId, u16)> {
        let mut serving = HashSet::new();
        for served in self.plane.served() {
            let heard = self.plane.handle.heard(served.file.id).await;
            serving.extend(heard.issued_ms.into_iter().map(|(peer, _)| peer));
        }
        let of = |view: &PeerView| {
            let ms = u16::try_from(view.rtt?.as_millis()).unwrap_or(u16::MAX);
            serving.contains(&view.peer).then_some((view.peer, ms))
        };
        let mut trips: Vec<(PeerId, u16)> = peers.iter().filter_map(of).collect();
        trips.sort_unstable_by_key(|(peer, ms)| (*ms, *peer));
        trips.truncate(quelea_announce::MAX_RTT);
        trips
    }

    /// The provider keys of everything served.
    fn keys(&self) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        for served in self.plane.served() {
            let model = self.plane.telemetry.stats.model(&served.file.id.short());
            if !served.leaves() {
                model.layers_hosted.set(u64::from(served.span.count()));
            }
            model.kv_pages_capacity.set(u64::from(served.runner.load().kv_pages_total));
            keys.push(model_key(&served.file.id));
            keys.extend(buckets(&served.span).map(|bucket| bucket_key(&served.file.id, bucket)));
        }
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    async fn provide(&self, keys: &[Vec<u8>]) {
        for key in keys {
            self.plane.handle.provide(key.clone()).await;
        }
    }

    /// The highest sequence number this node has used, as far as its disk remembers.
    async fn last_seq(&self) -> u64 {
        match &self.db {
            Some(db) => db.own_announcement().await.ok().flatten().map_or(0, |(seq, _)| seq),
            None => 0,
        }
    }

    /// Writes the announcement down, then sends it: a number must never be used twice. Without a state it is a tombstone.
    async fn publish(&self, seq: u64, state: Option<State>, to: To) {
        let peer = self.plane.handle.local();
        let announcement = match state {
            None => Announcement::tombstone(peer, seq, unix_ms()),
            Some(state) => {
                let mut announcement = Announcement::new(peer, seq, unix_ms());
                let lifetime = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
                announcement.expires_ms =
                    announcement.issued_ms.saturating_add(lifetime.min(quelea_announce::MAX_LIFETIME_MS));
                let (addrs, peers) = match self.plane.handle.snapshot().await {
                    Some(s) => (best_first([s.external, s.listeners].concat()), s.peers),
                    None => Default::default(),
                };
                announcement.addrs = addrs;
                announcement.addrs.truncate(quelea_announce::MAX_ADDRS);
                announcement.rtt = self.round_trips(&peers).await;
                let price = self.plane.price;
                announcement.offers = self.plane.served().iter().map(|served| offer(served, state, price)).collect();
                if let Some(Coming { of, span }) = self.plane.coming() {
                    let ends = Ends::default();
                    announcement.offers.push(Offer {
                        span,
                        kv_pages_free: 0,
                        ends,
                        ..offer(&of, State::Loading, price)
                    });
                }
                announcement.shrink_to(quelea_announce::MAX_BYTES.saturating_sub(envelope::OVERHEAD));
                announcement
            }
        };
        let signed = match SignedAnnouncement::sign(&self.keypair, &self.plane.network, announcement) {
            Ok(signed) => signed,
            Err(error) => {
                tracing::error!(%error, "our announcement cannot be signed");
                return;
            }
        };
        if let Some(db) = &self.db
            && let Err(error) = db.put_own_announcement(seq, signed.raw().to_vec()).await
        {
            tracing::error!(%error, "our announcement cannot be written down, so it is not sent");
            return;
        }
        let current = state.is_some().then(|| signed.clone());
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        self.plane.handle.announce(signed, to == To::Everybody).await;
    }
}

fn moments() -> Vec<Instant> {
    PROVIDE_AGAIN.iter().map(|after| Instant::now() + *after).collect()
}

fn offer(served: &Served, state: State, price: Price) -> Offer {
    let load = served.runner.load();
    let (decode_rows_per_s, prefill_rows_per_s) = served.meter.rows_per_s();
    Offer {
        model: served.file.id,
        profile: served.profile,
        span: served.span,
        layers_total: served.file.layers(),
        state: if served.leaves() { State::Draining } else { state },
        // 0 until something was computed here.
        decode_rows_per_s,
        prefill_rows_per_s,
        queue: u16::try_from(load.queued).unwrap_or(u16::MAX),
        kv_pages_free: load.kv_pages_free,
        price_decode: price.decode,
        price_prefill: price.prefill,
        ends: served.ends,
    }
}

/// Addresses in the order in which they are likely to be of use to others: of a chain's next hop only four travel. Names
/// and public addresses first, then home networks, then the ranges that containers like, this machine's own last.
fn best_first(mut addrs: Vec<Multiaddr>) -> Vec<Multiaddr> {
    let rank = |addr: &Multiaddr| match (scope::of(addr), addr.iter().next()) {
        (Some(Scope::Machine), _) => LOOPBACK,
        (Some(Scope::Site), Some(Protocol::Ip6(ip))) if ip.is_unicast_link_local() => 3,
        (Some(Scope::Site), Some(Protocol::Ip4(ip))) if ip.is_link_local() => 3,
        (Some(Scope::Site), Some(Protocol::Ip4(ip))) if is_container_range(ip) => 2,
        (Some(Scope::Site), _) => 1,
        _ => 0,
    };
    addrs.sort_by_key(rank);
    addrs.dedup();
    // On another machine our loopback address leads to that machine itself. It is of use only where all listen on theirs.
    let elsewhere = addrs.iter().filter(|addr| rank(addr) < LOOPBACK).count();
    if elsewhere > 0 {
        addrs.truncate(elsewhere);
    }
    addrs
}

/// The rank of addresses that only this machine can reach.
const LOOPBACK: u8 = 4;

/// 172.16.0.0/12, where container engines put their bridges by default.
fn is_container_range(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    a == 172 && (16..32).contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_help_others_come_first() {
        let addrs =
            ["/ip4/127.0.0.1/tcp/1", "/ip4/172.17.0.1/tcp/1", "/ip4/192.168.1.4/tcp/1", "/ip4/203.0.113.7/tcp/1"];
        let sorted = best_first(addrs.iter().map(|a| a.parse().unwrap()).collect());
        let shown: Vec<String> = sorted.iter().map(ToString::to_string).collect();
        assert_eq!(shown, [addrs[3], addrs[2], addrs[1]]);
    }

    #[test]
    fn loopback_is_announced_where_there_is_nothing_else() {
        let only: Vec<Multiaddr> = vec!["/ip4/127.0.0.1/tcp/1".parse().unwrap()];
        assert_eq!(best_first(only.clone()), only);
    }
}
