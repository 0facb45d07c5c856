//! The HTTP server over TCP: bounds on connections and on how long a request's head may take, for whoever reaches it.

use std::{future::Future, net::SocketAddr, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::Service as _};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::accept::{Bounds, accept};

/// Connections at once: all streams of events, and as many others. Further ones wait in the system's queue.
const CONNECTIONS_MAX: usize = 512;

/// The longest wait for a request's head, in an idle connection too.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest request head, in bytes: what a browser sends with the cookies of everything else on this machine.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// How long answers under way may take when the server is to end. What models answer has ended by then; streams of events
/// never do.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves the routes until `shutdown` is done.
pub(super) async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) {
    let bounds = Bounds { name: "control API", connections: CONNECTIONS_MAX, finish: FINISH_TIMEOUT };
    accept(listener, bounds, shutdown, |stream, from, stopping| connection(stream, from, router.clone(), stopping))
        .await;
}

async fn connection(stream: TcpStream, from: SocketAddr, router: Router, mut stopping: watch::Receiver<()>) {
    // Tokens are small, and each is to leave at once.
    let _ = stream.set_nodelay(true);
    let router = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(from));
        router.call(request.map(Body::new))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        // Closed is the signal.
        _ = stopping.changed() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection to the control API ended in an error");
    }
}
