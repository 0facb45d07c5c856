//! Routes events and commands to the files that act on them. No rule lives here.

use libp2p::swarm::SwarmEvent;
use quelea_behaviours::BehaviourEvent;

use super::{
    command::Command,
    driver::{Driver, causes},
    on,
};

/// One command of a handle.
pub(super) fn command(driver: &mut Driver, command: Command) {
    match command {
        Command::Connect { peer, addrs, asker, reply } => on::connection::connect(driver, peer, addrs, asker, reply),
        Command::Bootstrap { peer, addr } => on::connection::bootstrap(driver, peer, addr),
        Command::Keep { peer } => on::peers::keep(driver, peer),
        Command::OpenStream { peer, reply } => on::shard::open(driver, peer, reply),
        Command::OpenService { peer, reply } => on::service::open(driver, peer, reply),
        Command::FetchAnnouncement { peer, reply } => on::announce::fetch(driver, peer, reply),
        Command::FindProviders { key, found } => on::kad::find_providers(driver, key, found),
        Command::Provide { key } => on::kad::provide(driver, key),
        Command::StopProviding { key } => on::kad::stop_providing(driver, &key),
        Command::Dht { ask, timeout, waiter } => on::dht::ask(driver, ask, timeout, waiter),
        Command::DhtDelete { key, reply } => on::dht::delete(driver, key, reply),
        Command::DhtStats { reply } => on::dht::stats(driver, reply),
        Command::Announce { announcement, gossip } => on::announce::announce(driver, announcement, gossip),
        Command::LedgerSend { packets } => on::ledger::send(driver, packets),
        Command::Deed { peer, deed } => on::conduct::deed(driver, peer, deed),
        Command::Ban { subject, duration, reason, reply } => {
            on::conduct::ban(driver, subject, duration, &reason, reply);
        }
        Command::Unban { subject, reply } => on::conduct::unban(driver, subject, reply),
        Command::Bans { reply } => on::conduct::bans(driver, reply),
        Command::Known { peer, reply } => on::peers::known(driver, peer, reply),
        Command::Disconnect { peer, reply } => on::peers::disconnect(driver, peer, reply),
        Command::Ping { peer, bytes, reply } => on::probe::ping(driver, peer, bytes, reply),
        Command::Nat { reply } => on::nat::view(driver, reply),
        Command::Snapshot { reply } => on::connection::snapshot(driver, reply),
        Command::ListenFor { model } => on::gossip::listen_for(driver, &model),
        Command::Broadcast { text, reply } => on::gossip::broadcast(driver, &text, reply),
        Command::AskWeights { peer, request, reply } => on::weights::ask(driver, peer, request, reply),
        Command::AnswerWeights { id, answer } => on::weights::answer(driver, id, answer),
        Command::Announced { reply } => on::announce::announced(driver, reply),
        Command::Heard { model, reply } => on::announce::heard(driver, &model, reply),
    }
}

/// One event of the swarm.
pub(super) fn event(driver: &mut Driver, event: SwarmEvent<BehaviourEvent>) {
    match event {
        SwarmEvent::Behaviour(event) => behaviour(driver, event),
        SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
            on::connection::established(driver, peer_id, connection_id, &endpoint);
        }
        SwarmEvent::ConnectionClosed { peer_id, connection_id, endpoint, cause, .. } => {
            tracing::debug!(peer = %peer_id, addr = %endpoint.get_remote_address(), ?cause, "connection closed");
            on::connection::closed(driver, peer_id, connection_id);
        }
        SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
            on::connection::dial_failed(driver, peer_id, &error);
        }
        SwarmEvent::NewListenAddr { listener_id, address } => on::connection::listening(driver, listener_id, address),
        SwarmEvent::ExpiredListenAddr { address, .. } => on::connection::listener_gone(driver, &address),
        SwarmEvent::ListenerClosed { listener_id, addresses, reason } => {
            on::nat::listener_closed(driver, listener_id);
            on::connection::listener_closed(driver, &addresses, reason.err());
        }
        SwarmEvent::Dialing { peer_id: Some(peer), .. } => driver.state.nat.dialling(peer),
        SwarmEvent::ExternalAddrConfirmed { .. } | SwarmEvent::ExternalAddrExpired { .. } => {
            on::nat::reconsider(driver);
        }
        SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener reports an error"),
        SwarmEvent::IncomingConnectionError { error, .. } => {
            tracing::debug!(error = causes(&error), "an inbound connection failed");
        }
        _ => {}
    }
}

fn behaviour(driver: &mut Driver, event: BehaviourEvent) {
    match event {
        BehaviourEvent::Shard(event) => on::shard::event(driver, event),
        BehaviourEvent::Ledger(event) => on::ledger::event(driver, event),
        BehaviourEvent::Announce(event) => on::announce::event(driver, event),
        BehaviourEvent::Weights(event) => on::weights::event(driver, event),
        BehaviourEvent::Service(event) => on::service::event(driver, event),
        BehaviourEvent::Exchange(event) => on::exchange::event(driver, event),
        BehaviourEvent::Identify(event) => on::identify::event(driver, event),
        BehaviourEvent::Probe(event) => on::probe::event(driver, event),
        BehaviourEvent::Ping(event) => on::ping::event(driver, &event),
        BehaviourEvent::Kad(event) => on::kad::event(driver, event),
        BehaviourEvent::Gossipsub(event) => on::gossip::event(driver, event),
        BehaviourEvent::AutonatClient(event) => on::nat::autonat(driver, &event),
        BehaviourEvent::Upnp(event) => on::nat::upnp(driver, &event),
        BehaviourEvent::Dcutr(event) => on::nat::dcutr(driver, &event),
        BehaviourEvent::RelayServer(event) => on::nat::relay_server(driver, &event),
        BehaviourEvent::RelayClient(event) => on::nat::relay_client(driver, &event),
        BehaviourEvent::Rendezvous(event) => on::rendezvous::event(driver, event),
        BehaviourEvent::Mdns(event) => on::mdns::event(driver, event),
        _ => {}
    }
}
