//! Putting a swarm together: transports with their limits, then the behaviour.

use std::io;

use libp2p::{
    PeerId, Swarm, Transport, allow_block_list,
    connection_limits::{self, ConnectionLimits},
    core::{
        ConnectedPoint,
        muxing::{StreamMuxer, StreamMuxerBox},
        transport::{Boxed, MemoryTransport, timeout::TransportTimeout},
        upgrade,
    },
    dcutr, dns,
    identity::Keypair,
    memory_connection_limits,
    metrics::BandwidthTransport,
    multiaddr::Protocol,
    noise, ping, quic, relay,
    swarm::{self, behaviour::toggle::Toggle},
    tcp, websocket,
};
use prometheus_client::registry::Registry;

use crate::{
    Behaviour, Config, Limits, MemoryLimit,
    config::{CONNECTION_TIMEOUT, DIAL_TIMEOUT, PENDING_INBOUND_SLACK, PING_INTERVAL, PING_TIMEOUT},
    delay::Delayed,
    gossip,
    handshakes::Handshakes,
    identify, inbound, kad,
    masking::{self, Masking},
    muxing, nat,
    nearby::OthersFirst,
    peers::{self, Watched},
    prefixes, probe,
    traffic::Traffic,
};

/// Why no swarm could be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The identity cannot be used for encryption.
    #[error("the identity cannot encrypt connections: {0}")]
    Noise(#[from] noise::Error),
    /// Gossip refuses its configuration.
    #[error("gossip: {0}")]
    Gossip(String),
    /// The certificates to trust are none.
    #[error("a certificate to trust is none: {0}")]
    Trust(String),
    /// The local network cannot be listened to.
    #[error("mDNS cannot listen on the local network: {0}")]
    Mdns(io::Error),
}

/// Bytes of a WebSocket frame that are taken in. Ours carry one message of Noise, 64 KiB; others may join a few. libp2p's
/// default is 256 MiB.
pub(crate) const MAX_WEBSOCKET_FRAME: usize = 1 << 20;

pub(crate) type Muxed = Boxed<(PeerId, StreamMuxerBox)>;

/// A swarm with TCP and WebSocket (Noise, Yamux), QUIC, names through DNS, circuits through relays, and the [`Behaviour`] of `config`.
/// It dials WebSocket in TLS, too, as [masked](masking) nodes are reached. It listens nowhere yet. With a `registry`, libp2p counts bytes and gossip there.
///
/// # Errors
/// When the identity cannot encrypt, a certificate to trust is none, or mDNS is wanted and there is no network to listen on.
///
/// # Panics
/// When called outside a Tokio runtime.
pub fn build_swarm(
    keypair: Keypair,
    config: Config,
    registry: Option<&mut Registry>,
) -> Result<Swarm<Behaviour>, BuildError> {
    build(keypair, config, None, registry)
}

/// A swarm as [`build_swarm`]'s that connects through web servers only: see [`masking`]. UPnP, mDNS, hole punching and
/// AutoNAT's server are off, whatever `config` says.
///
/// # Errors
/// When the identity cannot encrypt, or a certificate to trust is none.
///
/// # Panics
/// When called outside a Tokio runtime.
pub fn build_masked_swarm(
    keypair: Keypair,
    mut config: Config,
    masking: Masking,
    registry: Option<&mut Registry>,
) -> Result<Swarm<Behaviour>, BuildError> {
    (config.upnp, config.mdns) = (false, false);
    build(keypair, config, Some(masking), registry)
}

fn build(
    keypair: Keypair,
    config: Config,
    masking: Option<Masking>,
    mut registry: Option<&mut Registry>,
) -> Result<Swarm<Behaviour>, BuildError> {
    let (relay_transport, relay_client) = relay::client::new(keypair.public().to_peer_id());
    let mut behaviour = behaviour(&keypair, &config, relay_client, registry.as_deref_mut())?;
    if masking.is_some() {
        (behaviour.autonat_server, behaviour.dcutr) = (Toggle::from(None), Toggle::from(None));
        behaviour.identify.ignore_observed();
    }
    let transport = transport(&keypair, &config, relay_transport, masking, registry)?;
    Ok(Swarm::new(transport, behaviour, keypair.public().to_peer_id(), swarm_config(&config)))
}

/// As [`build_swarm`], but over the memory of this process alone: for swarms of a hundred nodes in one test. Everything above the
/// sockets is as it is, encryption included.
///
/// # Errors
/// As [`build_swarm`].
///
/// # Panics
/// When called outside a Tokio runtime.
pub fn build_memory_swarm(
    keypair: Keypair,
    config: Config,
    registry: Option<&mut Registry>,
) -> Result<Swarm<Behaviour>, BuildError> {
    let (relay_transport, relay_client) = relay::client::new(keypair.public().to_peer_id());
    let behaviour = behaviour(&keypair, &config, relay_client, registry)?;
    let (muxer, traffic) = (muxing::Config::new(config.limits.streams_per_connection), config.traffic.clone());
    let transport = relay_transport
        .or_transport(MemoryTransport::new())
        .upgrade(upgrade::Version::V1Lazy)
        .authenticate(noise::Config::new(&keypair)?)
        .multiplex(muxer)
        .map(move |(peer, muxer), _| muxer.to(peer, &traffic));
    let transport = TransportTimeout::new(as_named(transport.boxed()), CONNECTION_TIMEOUT).boxed();
    Ok(Swarm::new(transport, behaviour, keypair.public().to_peer_id(), swarm_config(&config)))
}

fn swarm_config(config: &Config) -> swarm::Config {
    swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(config.idle_timeout)
        .with_max_negotiating_inbound_streams(config.limits.negotiating_streams)
        .with_smart_dial()
}

fn transport(
    keypair: &Keypair,
    config: &Config,
    relay: relay::client::Transport,
    masking: Option<Masking>,
    registry: Option<&mut Registry>,
) -> Result<Muxed, BuildError> {
    let (limits, traffic) = (&config.limits, config.traffic.clone());
    let muxer = || muxing::Config::new(limits.streams_per_connection);
    let noise = noise::Config::new(keypair)?;
    let direct = || {
        let delay = config.line_delay;
        let plain = || {
            tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
                .map(move |stream, _| Delayed::new(stream, delay))
        };
        let mut web = websocket::Config::new(plain());
        web.set_max_data_size(MAX_WEBSOCKET_FRAME);
        let web =
            web.upgrade(upgrade::Version::V1Lazy).authenticate(noise.clone()).multiplex(muxer()).map(shown(&traffic));
        let tcp = plain()
            .upgrade(upgrade::Version::V1Lazy)
            .authenticate(noise.clone())
            .multiplex(muxer())
            .map(shown(&traffic));
        let quic = OthersFirst(quic::tokio::Transport::new(quic_config(keypair, limits))).map({
            let traffic = traffic.clone();
            move |(peer, muxer), _| muxing::Muxer::unmetered(muxer).to(peer, &traffic)
        });
        let streams = web.or_transport(tcp).map(|either, _| either.into_inner());
        quic.or_transport(streams).map(|either, _| either.into_inner()).boxed()
    };
    let direct = match masking {
        Some(masking) => masking::transport(masking, noise.clone(), muxer(), &traffic)?,
        None => {
            // Masked nodes are dialled as they dial each other; everything else the others take.
            let web = Masking { trust: config.trust.clone(), tunnels: None };
            let web = masking::transport(web, noise.clone(), muxer(), &traffic)?;
            web.or_transport(with_names(direct)).map(|either, _| either.into_inner()).boxed()
        }
    };
    let relayed = relay.upgrade(upgrade::Version::V1Lazy).authenticate(noise).multiplex(muxer()).map(shown(&traffic));
    let all = as_named(relayed.or_transport(direct).map(|either, _| either.into_inner()).boxed());
    let all = Handshakes::new(all, limits.pending_inbound).boxed();
    let counted = match registry {
        Some(registry) => {
            BandwidthTransport::new(all, registry).map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed()
        }
        None => all,
    };
    Ok(TransportTimeout::new(TransportTimeout::with_outgoing_timeout(counted, DIAL_TIMEOUT), CONNECTION_TIMEOUT)
        .boxed())
}

/// Has a connection be counted for its peer.
pub(crate) fn shown<M>(
    traffic: &Traffic,
) -> impl FnOnce((PeerId, muxing::Muxer<M>), ConnectedPoint) -> (PeerId, StreamMuxerBox) + Clone + Send + 'static
where
    M: StreamMuxer + Send + Unpin + 'static,
    M::Substream: Send + Unpin + 'static,
    M::Error: Send + Sync + 'static,
{
    let traffic = traffic.clone();
    move |(peer, muxer), _| muxer.to(peer, &traffic)
}

/// Lets an address that another peer answers fail on its own, while the dial goes on with the others. Left to the swarm, the
/// first to answer decides the whole dial, and an address of yesterday may be somebody else's today.
fn as_named(transport: Muxed) -> Muxed {
    let check = |(peer, muxer), endpoint: ConnectedPoint| {
        let wrong = match &endpoint {
            ConnectedPoint::Dialer { address, .. } => {
                matches!(address.iter().last(), Some(Protocol::P2p(named)) if named != peer)
            }
            ConnectedPoint::Listener { .. } => false,
        };
        let outcome = if wrong { Err(io::Error::other(format!("{peer} answers there"))) } else { Ok((peer, muxer)) };
        std::future::ready(outcome)
    };
    transport.and_then(check).boxed()
}

/// Resolves names as the system says. A container or a machine without a usable `/etc/resolv.conf` still gets a node: one
/// that dials addresses and the names of its hosts file. (The transport beneath is lost when the configuration cannot be
/// read, hence the closure.)
pub(crate) fn with_names<T>(direct: impl Fn() -> T) -> dns::tokio::Transport<T> {
    match dns::tokio::Transport::system(direct()) {
        Ok(named) => named,
        Err(error) => {
            tracing::warn!(%error, "no usable DNS configuration: names in multiaddrs will not resolve");
            without_names(direct())
        }
    }
}

fn without_names<T>(direct: T) -> dns::tokio::Transport<T> {
    dns::tokio::Transport::custom(direct, dns::ResolverConfig::default(), dns::ResolverOpts::default())
}

fn quic_config(keypair: &Keypair, limits: &Limits) -> quic::Config {
    let mut config = quic::Config::new(keypair);
    config.max_concurrent_stream_limit = u32::try_from(limits.streams_per_connection).unwrap_or(u32::MAX);
    config.max_connection_data = limits.quic_connection_bytes;
    config.max_stream_data = limits.quic_stream_bytes;
    config.handshake_timeout = CONNECTION_TIMEOUT;
    config
}

fn behaviour(
    keypair: &Keypair,
    config: &Config,
    relay_client: relay::client::Behaviour,
    metrics: Option<&mut Registry>,
) -> Result<Behaviour, BuildError> {
    let local = keypair.public().to_peer_id();
    let peers = peers::Behaviour::new(local, config.outbound, config.idle_timeout, rand::random());
    let uses = peers.uses();
    Ok(Behaviour {
        connection_limits: connection_limits::Behaviour::new(connection_counts(&config.limits)),
        memory_limits: match config.limits.memory {
            MemoryLimit::Share(share) => memory_connection_limits::Behaviour::with_max_percentage(share),
            MemoryLimit::Bytes(bytes) => memory_connection_limits::Behaviour::with_max_bytes(bytes),
        },
        blocked_peers: allow_block_list::Behaviour::default(),
        prefixes: prefixes::Behaviour::new(config.limits.prefixes),
        inbound: inbound::Behaviour::new(&config.limits),
        shard: Watched::new(quelea_shard::Behaviour::new(quelea_shard::Config::new(config.network)), uses.clone()),
        ledger: Watched::new(quelea_ledger::behaviour::Behaviour::new(config.network), uses.clone()),
        announce: Watched::new(quelea_announce::Behaviour::new(config.network), uses.clone()),
        exchange: quelea_exchange::Behaviour::new(keypair.clone(), peers::exchange_config(config)),
        weights: Watched::new(quelea_weights::Behaviour::new(config.network), uses.clone()),
        service: Watched::new(quelea_service::Behaviour::new(config.network), uses.clone()),
        peers,
        identify: identify::new(keypair, config),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT)),
        probe: Watched::new(probe::Behaviour::default(), uses.clone()),
        kad: Watched::new(kad::new(local, config), uses),
        gossipsub: gossip::new(keypair, config, metrics)?,
        autonat_client: nat::autonat_client(local, config),
        autonat_server: Toggle::from(Some(libp2p::autonat::v2::server::Behaviour::default())),
        relay_client,
        relay_server: nat::relay_server(local, config),
        dcutr: Toggle::from(Some(dcutr::Behaviour::new(local))),
        upnp: nat::upnp(config),
        rendezvous: peers::rendezvous(keypair, config),
        mdns: nat::mdns(local, config)?,
    })
}

fn connection_counts(limits: &Limits) -> ConnectionLimits {
    let spare = inbound::slack(limits.established_inbound).max(1).min(limits.established_inbound);
    ConnectionLimits::default()
        .with_max_pending_incoming(Some(limits.pending_inbound.saturating_mul(PENDING_INBOUND_SLACK)))
        .with_max_pending_outgoing(Some(limits.pending_outbound))
        // One more may stand for a moment, until somebody has given way to it.
        .with_max_established_incoming(Some(limits.established_inbound.saturating_add(spare)))
        .with_max_established_outgoing(Some(limits.established_outbound))
        .with_max_established(Some(limits.established_total))
        .with_max_established_per_peer(Some(limits.established_per_peer))
}

#[cfg(test)]
mod tests {
    use libp2p::{
        TransportError,
        core::{
            Endpoint,
            transport::{DialOpts, PortUse, dummy::DummyTransport},
        },
    };

    use super::*;

    /// A machine without `/etc/resolv.conf` gets a resolver with nobody to ask: names fail, addresses still pass through.
    #[tokio::test]
    async fn without_a_dns_configuration_addresses_still_reach_the_transport_beneath() {
        let mut transport = without_names(DummyTransport::<()>::new().boxed());
        let opts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let dial = transport.dial("/ip4/127.0.0.1/tcp/1".parse().unwrap(), opts).unwrap();
        let beneath = dial.await.unwrap_err().to_string();
        let named = transport.dial("/dns4/peer.example/tcp/1".parse().unwrap(), opts);
        let named = match named {
            Ok(dial) => dial.await.unwrap_err().to_string(),
            Err(TransportError::Other(error)) => error.to_string(),
            Err(TransportError::MultiaddrNotSupported(addr)) => panic!("{addr} is not taken for a name"),
        };
        assert_ne!(beneath, named);
    }
}
