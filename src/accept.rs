//! Connections of a TCP server, within a bound: accepted, each served by a task, and ended in time.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};

/// The pause after a failed accept: usually there are no file descriptors left, and trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a server allows.
pub(crate) struct Bounds {
    /// What is served, for the log.
    pub(crate) name: &'static str,
    /// Connections at once; further ones wait in the system's queue.
    pub(crate) connections: usize,
    /// How long answers under way may take when the server is to end.
    pub(crate) finish: Duration,
}

/// Serves each connection until `shutdown` is done, then finishes those under way for as long as the bounds say. A
/// connection's task is told of the end by the receiver, whose sender is dropped.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    bounds: Bounds,
    shutdown: impl Future<Output = ()>,
    serve: impl Fn(TcpStream, SocketAddr, watch::Receiver<()>) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let Bounds { name, connections: most, finish } = bounds;
    let places = Arc::new(Semaphore::new(most));
    let (stop, stopping) = watch::channel(());
    let mut connections = JoinSet::new();
    let accept = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            // Ended ones would pile up otherwise.
            while connections.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, from)) => {
                    let served = serve(stream, from, stopping.clone());
                    connections.spawn(async move {
                        served.await;
                        drop(place);
                    });
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections to the {name}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = shutdown => {}
    }
    drop(stop);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(finish, ended).await.is_err() {
        connections.shutdown().await;
    }
}

/// An accept that failed because of the one connection, not of the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
