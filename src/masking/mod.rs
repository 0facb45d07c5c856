//! Masking: the node's only port towards the swarm is that of a web server.
//!
//! | module | what |
//! |---|---|
//! | `settings` | the ways to be masked, and what each needs |
//! | `certs` | the certificate, read again when its files change |
//! | `front` | takes connections, ends TLS, answers, hands tunnels over |
//! | `guests` | how many connections that have not shown the secret path may stand, and from whom |
//! | `http` | reads a request's head and decides: a pure function |
//!
//! ```text
//!                  ┌ GET /               the page
//! TCP ─ TLS ─ head ┼ anything else       404
//!                  └ upgrade on the path ──> Tunnel ──> the swarm (quelea_behaviours::masking)
//! ```
//!
//! Behind the operator's own web server the same front speaks plain HTTP on loopback, and the peer's address is what that
//! server says in `X-Forwarded-For`.
//!
//! | memory | bound | full means |
//! |---|---|---|
//! | connections without a tunnel | [`guests::MAX_GUESTS`] | the oldest is closed |
//! | those of one host | [`guests::PER_HOST`] | the newcomer is closed |
//! | bytes of one | [`http::MAX_HEAD`], and TLS's buffers | 431 |
//! | tunnels the swarm has not taken | [`TUNNEL_QUEUE`] | the newcomer is closed |

mod certs;
mod front;
mod guests;
mod http;
pub(crate) mod settings;

use std::{net::SocketAddr, path::Path, sync::Arc};

use futures::channel::mpsc;
use futures_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring},
};
use libp2p::Multiaddr;
use quelea_behaviours::masking::{Masking, TUNNEL_QUEUE};
use quelea_wire::ErrorCode;
use tokio::net::TcpListener;

pub(crate) use self::{certs::Certificates, front::Front};
use self::{
    certs::certificates,
    front::Tls,
    http::Site,
    settings::{MaskingSettings, Way},
};
use crate::{identity, node::StartError, telemetry::stats::NodeStats};

/// What the secret path is derived for.
const PATH_CONTEXT: &str = "quelea 2026-11 masking: path of the tunnel";
/// Bytes of the path: 128 bits cannot be guessed, and 32 hexadecimal digits leave room for a name in an address.
const PATH_BYTES: usize = 16;
/// The page unless the operator has one: what a fresh web server shows.
const PAGE: &str = "<html><body><h1>It works!</h1></body></html>\n";
/// Bytes of the operator's page. It is one page, kept in memory.
const MAX_PAGE: u64 = 1 << 20;
/// What TLS agrees on: what an old web server would.
const ALPN: &[u8] = b"http/1.1";

/// What a masked node is started with.
pub(crate) struct Prepared {
    /// For the swarm.
    pub(crate) masking: Masking,
    /// The front and where it listens, unless nobody is to be let in.
    pub(crate) front: Option<(Front, SocketAddr)>,
    /// By which addresses others reach it.
    pub(crate) public: Vec<Multiaddr>,
    /// The front's, unless the operator's web server has them.
    pub(crate) certificates: Option<Arc<Certificates>>,
}

/// Reads files and opens the port. `secret` is the file of the secret, made if missing.
pub(crate) async fn prepare(
    settings: &MaskingSettings,
    secret: Option<&Path>,
    stats: &Arc<NodeStats>,
) -> Result<Prepared, StartError> {
    let usage = |what| StartError::new(ErrorCode::Usage, what);
    let trust = trusted(settings.ca.as_deref())?;
    let (bind, tls) = match &settings.way {
        Way::DialOnly => {
            let masking = Masking { trust, tunnels: None };
            return Ok(Prepared { masking, front: None, public: Vec::new(), certificates: None });
        }
        Way::Front { bind, cert, key } => {
            let certificates = Certificates::load(cert, key, &settings.external, stats.clone()).map_err(usage)?;
            (*bind, Some(Tls { acceptor: acceptor(certificates.clone())?, certificates }))
        }
        Way::BehindProxy { bind } => (*bind, None),
    };
    let path = match secret {
        Some(file) => path_of(identity::load_or_create_masking_secret(file).map_err(StartError::identity)?.as_bytes()),
        None => path_of(&rand::random::<[u8; 32]>()),
    };
    let page = settings.page.as_deref().map_or_else(|| Ok(PAGE.to_owned()), page)?;
    let listener = TcpListener::bind(bind).await.map_err(|e| cannot_listen(bind, &e))?;
    let bound = listener.local_addr().map_err(|e| StartError::internal(e.to_string()))?;
    let (sender, tunnels) = mpsc::channel(TUNNEL_QUEUE);
    let public = settings.public(bound, &path);
    let site = Arc::new(Site::new(page, path.clone(), tls.is_none()));
    let certificates = tls.as_ref().map(|tls| tls.certificates.clone());
    let front = Front::new(listener, tls, site, sender, stats.clone());
    let masking = Masking { trust, tunnels: Some(tunnels) };
    Ok(Prepared { masking, front: Some((front, bound)), public, certificates })
}

/// The certificates in a file that a node trusts at web servers.
pub(crate) fn trusted(file: Option<&Path>) -> Result<Vec<Vec<u8>>, StartError> {
    let read = file.map(certificates).transpose().map_err(|what| StartError::new(ErrorCode::Usage, what))?;
    Ok(read.unwrap_or_default().iter().map(|cert| cert.to_vec()).collect())
}

/// The secret path, from the secret.
fn path_of(secret: &[u8]) -> String {
    let derived = blake3::derive_key(PATH_CONTEXT, secret);
    format!("/{}", hex::encode(&derived[..PATH_BYTES]))
}

fn cannot_listen(bind: SocketAddr, error: &std::io::Error) -> StartError {
    let hint = if error.kind() == std::io::ErrorKind::PermissionDenied {
        "; ports below 1024 need the capability CAP_NET_BIND_SERVICE, or choose another with --port"
    } else {
        "; stop what uses it, or choose another with --port"
    };
    StartError::listen(format!("the web front cannot listen on {bind}: {error}{hint}"))
}

fn acceptor(certificates: Arc<Certificates>) -> Result<TlsAcceptor, StartError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| StartError::internal(e.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config).into())
}

fn page(path: &Path) -> Result<String, StartError> {
    let bad = |what: String| StartError::new(ErrorCode::Usage, format!("--masking-page {}: {what}", path.display()));
    let meta = std::fs::metadata(path).map_err(|e| bad(e.to_string()))?;
    if !meta.is_file() || meta.len() > MAX_PAGE {
        return Err(bad(format!("is not a file of at most {MAX_PAGE} bytes")));
    }
    std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_the_secret_s_and_nobody_else_s() {
        let path = path_of(b"a");
        assert_eq!(path.len(), 33);
        assert_eq!(path, path_of(b"a"));
        assert_ne!(path, path_of(b"b"));
    }
}
