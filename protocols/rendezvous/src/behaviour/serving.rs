//! Being a point: what becomes of a request.

use std::time::Instant;

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol, request_response::ResponseChannel};
use quelea_wire::prefix::{Prefix, ip_of, is_local};

use super::{Behaviour, Event, Served};
use crate::{
    codec::{Page, Response},
    message::{Request, Status},
    record::Record,
};

/// What one customer of a provider can rent, as in the routing table: an IPv4 /24, an IPv6 /48.
const GROUP: (u8, u8) = (24, 48);

impl Behaviour {
    pub(super) fn on_request(&mut self, peer: PeerId, request: Request, channel: ResponseChannel<Response>) {
        let admitted = self.rate.admit(peer, Instant::now());
        if let Err(scope) = admitted {
            self.tell(Event::Limited { peer, scope });
        }
        let outcome = match request {
            Request::Register { namespace, record, ttl } => {
                let result = admitted.map_err(|_| Status::Unavailable);
                let result = result.and_then(|()| self.register(&peer, &namespace, &record, ttl));
                let _ = self.inner.send_response(channel, Response::Register(result));
                result.map(|_| Served::Registered)
            }
            Request::Unregister { namespace } => {
                if let (Ok(()), Some(registry)) = (admitted, &mut self.registry) {
                    registry.unregister(&namespace, &peer);
                }
                Ok(Served::Unregistered)
            }
            Request::Discover { namespace, cookie, limit } => {
                let result = admitted.map_err(|_| Status::Unavailable);
                let result = result.and_then(|()| self.discover(&peer, namespace.as_deref(), cookie.as_deref(), limit));
                let told = result.as_ref().map(|page| Served::Told(page.records.len())).map_err(|status| *status);
                let _ = self.inner.send_response(channel, Response::Discover(result));
                told
            }
        };
        match (admitted, outcome) {
            (Err(_), _) => {}
            (Ok(()), Ok(what)) => self.tell(Event::Served { peer, what }),
            (Ok(()), Err(status)) => self.tell(Event::Refused { peer, status }),
        }
    }

    fn register(&mut self, peer: &PeerId, namespace: &str, raw: &[u8], ttl: Option<u64>) -> Result<u64, Status> {
        let now = self.now();
        let (Some(registry), Some(remotes)) = (&mut self.registry, self.remotes.get(peer)) else {
            return Err(Status::Unavailable);
        };
        let record = Record::verify(raw).map_err(|_| Status::InvalidRecord)?;
        let may_name = self.reach.may_name;
        let nameable = |addr: &Multiaddr| remotes.values().any(|remote| may_name(remote, addr));
        // Those who ask believe us about addresses as near as we are: a stranger is not to have them knock next door.
        if record.peer() != *peer || !record.addrs().iter().all(nameable) {
            return Err(Status::NotAuthorized);
        }
        registry.register(namespace, record, ttl, group_of(remotes.values()), now)
    }

    fn discover(
        &mut self,
        peer: &PeerId,
        namespace: Option<&str>,
        cookie: Option<&[u8]>,
        limit: Option<u64>,
    ) -> Result<Page, Status> {
        let now = self.now();
        let (Some(registry), Some(remotes)) = (&mut self.registry, self.remotes.get(peer)) else {
            return Err(Status::Unavailable);
        };
        let may_tell = self.reach.may_tell;
        let tells = |addr: &Multiaddr| remotes.values().any(|remote| may_tell(remote, addr));
        registry.discover(namespace, cookie, limit, now, |record| {
            record.peer() != *peer && record.addrs().iter().all(tells)
        })
    }
}

/// The address group that a peer takes a place of; `None` at home and behind relays.
fn group_of<'a>(remotes: impl IntoIterator<Item = &'a Multiaddr>) -> Option<Prefix> {
    let direct = |addr: &&Multiaddr| !addr.iter().any(|part| matches!(part, Protocol::P2pCircuit));
    let mut ips = remotes.into_iter().filter(direct).filter_map(ip_of);
    ips.find(|ip| !is_local(*ip)).map(|ip| Prefix::around(ip, GROUP))
}
