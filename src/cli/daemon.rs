//! `quelea daemon`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
};

use libp2p::Multiaddr;
use quelea_behaviours::KadMode;
use quelea_rendezvous::MAX_POINTS;
use quelea_wire::{ErrorCode, Price};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    args::{self, DaemonArgs, Global},
    client::unusable,
    config,
    exit::{CliError, Exit},
    output::data_line,
};
use crate::{
    address::is_private,
    api::access::Tokens,
    events::Offered,
    home::Home,
    inference::models::quantised,
    node::{
        GRACE, Node, StartError,
        settings::{Bind, Keep, ServeSpec, Settings, Shown},
    },
    telemetry::tail::LogTail,
};

/// Where the swarm finds the node unless said otherwise.
pub(super) const SWARM_PORT: u16 = 8468;

/// Where the control API and the metrics are served unless said otherwise.
const API_PORT: u16 = 8469;
const METRICS_PORT: u16 = 8470;

impl From<StartError> for CliError {
    fn from(error: StartError) -> Self {
        let mut cli = Self::new(error.code, error.message);
        cli.hint = error.hint;
        cli
    }
}

/// Runs a node until a signal, then drains it.
pub(super) async fn run(global: &Global, args: DaemonArgs, logs: Option<LogTail>) -> Result<ExitCode, CliError> {
    if args.dry_run {
        let home = Home::locate(global.data_dir.clone()).map_err(unusable)?;
        let file = config::path_of(global, &home);
        let shown = config::shown(global, &file, &args.effective, true);
        settings(home, args)?;
        data_line(&shown)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut interrupt = listen_for(SignalKind::interrupt())?;
    let mut terminate = listen_for(SignalKind::terminate())?;
    let home = Home::new(global.data_dir.clone()).map_err(unusable)?;
    let path = config::path_of(global, &home);
    let config = config::items(&path, &args.effective);
    let file = config::Live::new(std::env::args_os().collect(), path, home.clone(), &args.effective);
    let mut settings = settings(home, args)?;
    settings.shown = Shown { config, file: Some(Arc::new(file)), logs };
    let (home, page) = (settings.keep.clone(), settings.page);
    let node = tokio::select! {
        started = Node::start(settings) => started?,
        // Nothing is under way yet that would want a goodbye.
        _ = interrupt.recv() => return Ok(ExitCode::from(Exit::Interrupted as u8)),
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
    };
    node.count_panics();
    greet(&node, &home, page).await?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let grace = tokio::select! {
        _ = interrupt.recv() => GRACE,
        _ = terminate.recv() => GRACE,
        grace = node.asked_to_stop() => grace,
        error = reread_certificates(&node) => {
            error?;
            GRACE
        }
    };
    tracing::info!(grace_s = grace.as_secs(), "stopping; a second signal ends at once");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tokio::select! {
        () = node.shutdown(grace) => {
            tracing::info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
        _ = interrupt.recv() => std::process::exit(i32::from(Exit::Interrupted as u8)),
        _ = terminate.recv() => std::process::exit(i32::from(Exit::Interrupted as u8)),
    }
}

/// Reads the web front's certificate again at each SIGHUP. Without one the signal means what it always does: the end.
async fn reread_certificates(node: &Node) -> Result<(), CliError> {
    let Some(certificates) = node.certificates() else { return std::future::pending().await };
    let mut hangup = listen_for(SignalKind::hangup())?;
    loop {
        hangup.recv().await;
        let certificates = certificates.clone();
        let _ = tokio::task::spawn_blocking(move || certificates.reread()).await;
    }
}

fn listen_for(kind: SignalKind) -> Result<tokio::signal::unix::Signal, CliError> {
    signal(kind).map_err(|e| CliError::new(ErrorCode::Internal, format!("cannot listen for signals: {e}")))
}

pub(super) fn settings(home: Home, args: DaemonArgs) -> Result<Settings, CliError> {
    let masking = super::masking::of_daemon(&args)?;
    if args.rendezvous.rendezvous.len() > MAX_POINTS {
        let message = format!("--rendezvous: at most {MAX_POINTS} points, not {}", args.rendezvous.rendezvous.len());
        return Err(
            CliError::new(ErrorCode::Usage, message).hint("two or three that are run by different people serve")
        );
    }
    let api_home = home.clone();
    let keep = Keep::In {
        identity: args.identity.unwrap_or_else(|| home.identity_key()),
        db: args.db.unwrap_or_else(|| home.database()),
        home,
    };
    let host = args.host.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let listen = if args.listen.is_empty() { listen_on(host, args.port.unwrap_or(SWARM_PORT)) } else { args.listen };
    let kad_mode = match args.kad_mode {
        args::KadMode::Server => KadMode::Server,
        args::KadMode::Client => KadMode::Client,
        // On a LAN (or alone) nobody confirms a public address, and nobody outside is bothered by a server.
        args::KadMode::Auto if args.bootstrap.iter().all(|b| is_private(&b.addr)) => KadMode::Server,
        args::KadMode::Auto => KadMode::Auto,
    };
    Ok(Settings {
        network: args.network,
        keep,
        listen,
        bootstrap: args.bootstrap,
        kad_mode,
        relay_server: args.nat.relay_server,
        relay: args.nat.relay(),
        external: args.nat.external.clone(),
        masking,
        upnp: args.nat.upnp,
        limit_local: args.limit_local,
        mdns: args.mdns,
        rendezvous: args.rendezvous.rendezvous,
        rendezvous_server: args.rendezvous.rendezvous_server,
        trust: args.masking.masking_ca,
        line_delay: args.line_delay.unwrap_or_default(),
        serve: args.model.map(|model| ServeSpec {
            model: quantised(&model, args.quantize),
            layers: args.layers,
            memory: args.memory,
            ends: args.ends.into(),
        }),
        services: args.services.settings()?,
        audit: args.audit.audit,
        audit_price: args.audit.audit_price,
        price: Price { decode: args.price.price, prefill: args.price.price_prefill },
        exposure: args.price.exposure.map(|most| most.0),
        debts: args.debts.terms(),
        models: None,
        sessions: None,
        models_quota: args.weights.models_quota,
        replay: args.replay.settings(),
        upload: args.weights.upload_limit,
        announce_ttl: args.announce_ttl,
        compute: args.compute.options(),
        metrics: Some(bind(args.metrics_listen, METRICS_PORT)),
        traces: args.traces.settings()?,
        api: Some(reaches_who_may(bind(args.api_listen, API_PORT), &api_home, args.api_access.insecure_no_auth)?),
        api_hosts: args.api_access.api_host,
        api_open: args.api_access.insecure_no_auth,
        page: !args.api_access.no_ui,
        shown: Shown::default(),
    })
}

pub(super) fn listen_on(host: IpAddr, port: u16) -> Vec<Multiaddr> {
    let ip = Multiaddr::from(host);
    [format!("/tcp/{port}"), format!("/udp/{port}/quic-v1")]
        .iter()
        .filter_map(|rest| format!("{ip}{rest}").parse().ok())
        .collect()
}

fn bind(given: Option<SocketAddr>, port: u16) -> Bind {
    match given {
        Some(addr) => Bind { addr, or_any_port: false },
        None => Bind { addr: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port), or_any_port: true },
    }
}

/// The control API acts for its user. Beyond this machine it does so only for those who were given a token for it, or when
/// somebody said that they want it otherwise.
fn reaches_who_may(bind: Bind, home: &Home, open: bool) -> Result<Bind, CliError> {
    if open {
        tracing::warn!(addr = %bind.addr, "--insecure-no-auth: whoever reaches the control API does as they like");
        return Ok(bind);
    }
    if bind.addr.ip().is_loopback() {
        return Ok(bind);
    }
    let tokens = Tokens::open(&home.tokens()).map_err(|e| CliError::new(ErrorCode::StorageFailed, e.to_string()))?;
    if tokens.list().is_empty() {
        let message = format!(
            "--api-listen {}: beyond loopback the control API needs a token that was made for it, and there is none",
            bind.addr
        );
        return Err(CliError::new(ErrorCode::Usage, message)
            .hint("make one with 'quelea token create', or listen on 127.0.0.1 or [::1] and use a tunnel"));
    }
    tracing::warn!(addr = %bind.addr, "the control API is plain HTTP beyond this machine: put TLS before it");
    Ok(bind)
}

/// What a person, or a script that starts nodes, needs to know. On stdout; everything later goes to the log.
async fn greet(node: &Node, keep: &Keep, page: bool) -> Result<(), CliError> {
    data_line(&format!("quelea {}", env!("CARGO_PKG_VERSION")))?;
    data_line(&format!("peer id:  {}", node.peer_id()))?;
    for addr in node.addresses().await {
        data_line(&format!("listen:   {addr}"))?;
    }
    if let Some(addr) = node.front_addr() {
        data_line(&format!("front:    {addr}"))?;
    }
    if let Some(addr) = node.api_addr() {
        data_line(&format!("api:      http://{addr}"))?;
        if page {
            data_line("page:     'quelea ui' opens it")?;
        }
    }
    if let Some(addr) = node.metrics_addr() {
        data_line(&format!("metrics:  http://{addr}/metrics"))?;
    }
    if let Keep::In { home, .. } = keep {
        data_line(&format!("data:     {}", home.dir().display()))?;
    }
    for Offered { model, layers } in node.serves() {
        data_line(&format!("serving:  layers {layers} of {model}"))?;
    }
    data_line("ready")
}
