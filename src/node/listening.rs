//! What a node serves over HTTP: the front of a masked one, metrics and health, and the control API.

use std::{net::SocketAddr, sync::Arc};

use quelea_wire::ErrorCode;
use tokio::{net::TcpListener, sync::watch};

use super::{
    Life, Node, StartError,
    settings::{Bind, Keep, Settings},
    watching,
};
use crate::{
    api::{
        self,
        access::{Access, Sessions, Tokens},
        login::Door,
    },
    identity,
    masking::Front,
    telemetry::server::{self, TelemetryState},
};

impl Node {
    /// The web front of a masked node, if it has one.
    pub(super) fn serve_front(&mut self, front: Option<(Front, SocketAddr)>, stopping: watch::Receiver<Life>) {
        let Some((front, addr)) = front else { return };
        self.front_addr = Some(addr);
        self.servers.push(tokio::spawn(front.run(stopped(stopping))));
    }

    /// Metrics and health.
    pub(super) async fn serve_metrics(
        &mut self,
        bind: Option<Bind>,
        stopping: watch::Receiver<Life>,
    ) -> Result<(), StartError> {
        let Some(bind) = bind else { return Ok(()) };
        let listener = listen_tcp(bind, "--metrics-listen").await?;
        self.metrics_addr = listener.local_addr().ok();
        let state = TelemetryState { health: self.telemetry.health.clone(), metrics: self.telemetry.metrics.clone() };
        self.servers.push(tokio::spawn(server::serve(listener, state, stopped(stopping))));
        Ok(())
    }

    /// The control API, on loopback and at the socket in the data directory, and the file that says where.
    pub(super) async fn serve_api(
        &mut self,
        settings: &Settings,
        stopping: watch::Receiver<Life>,
    ) -> Result<(), StartError> {
        let Keep::In { home, .. } = &settings.keep else { return Ok(()) };
        let Some(bind) = settings.api else { return Ok(()) };
        let masked = settings.masking.is_some();
        let token = identity::load_or_create_token(&home.api_token()).map_err(StartError::identity)?;
        let tokens =
            Tokens::open(&home.tokens()).map_err(|e| StartError::new(ErrorCode::StorageFailed, e.to_string()))?;
        let open = settings.api_open;
        let listener = listen_tcp(bind, "--api-listen").await?;
        let addr = listener.local_addr().map_err(|e| StartError::internal(e.to_string()))?;
        self.api_addr = Some(addr);
        let (tokens, sessions) = (Arc::new(tokens), Arc::new(Sessions::default()));
        let access = Access::new(&token, tokens.clone(), sessions.clone(), addr).with(settings.api_hosts.clone(), open);
        let door = Door { tokens, sessions, at: addr, open, page: settings.page };
        let shown = settings.shown.clone();
        tokio::spawn(watching::keep_history(self.telemetry.clone(), stopping.clone()));
        if let Some(tail) = shown.logs.clone() {
            tokio::spawn(watching::tell_warnings(self.telemetry.clone(), tail, stopping.clone()));
        }
        let state = api::ApiState::new(
            self.asker.clone(),
            self.services.clone(),
            self.agents.clone(),
            self.telemetry.clone(),
            self.db.clone(),
            masked,
            door,
        )
        .with(shown.config, shown.file, shown.logs);
        self.servers.push(tokio::spawn(api::serve_tcp(listener, state.clone(), access, stopped(stopping.clone()))));
        match home.socket() {
            Ok(path) => {
                let listener = api::bind_socket(&path).map_err(|e| {
                    StartError::new(ErrorCode::Internal, format!("cannot open the socket {}: {e}", path.display()))
                })?;
                self.servers.push(tokio::spawn(api::serve_unix(listener, state, stopped(stopping))));
                self.socket = Some(path);
            }
            Err(error) => tracing::warn!(%error, "no unix socket; use --api with the HTTP address"),
        }
        self.daemon_json = Some(home.daemon_json());
        let text = serde_json::json!({
            "schema": "quelea.daemon/v1",
            "pid": std::process::id(),
            "peer_id": self.handle.local().to_string(),
            "api": format!("http://{addr}"),
            "metrics": self.metrics_addr.map(|addr| format!("http://{addr}")),
        });
        identity::write_secret(&home.daemon_json(), text.to_string().as_bytes(), identity::Existing::Replace)
            .map_err(StartError::identity)
    }
}

async fn listen_tcp(bind: Bind, flag: &str) -> Result<TcpListener, StartError> {
    match TcpListener::bind(bind.addr).await {
        Ok(listener) => Ok(listener),
        Err(error) if bind.or_any_port && error.kind() == std::io::ErrorKind::AddrInUse => {
            tracing::warn!(addr = %bind.addr, "taken; using a free port instead ({flag} chooses one)");
            let any = SocketAddr::new(bind.addr.ip(), 0);
            TcpListener::bind(any).await.map_err(|e| StartError::listen(format!("cannot listen on {any}: {e}")))
        }
        Err(error) => {
            let message = format!("cannot listen on {}: {error}; choose another address with {flag}", bind.addr);
            Err(StartError::listen(message))
        }
    }
}

pub(super) async fn stopped(mut stopping: watch::Receiver<Life>) {
    // The sender going away means that the node is gone, too.
    let _ = stopping.wait_for(|life| *life == Life::Stopping).await;
}
