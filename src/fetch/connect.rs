//! Looking a name up, once, and connecting to what was found. Both can be replaced in tests.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use rustls::{ClientConfig, pki_types::ServerName};
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{FetchError, address::is_public, guard::Target};

/// Addresses of one name that are tried.
const TRIED: usize = 4;

/// How long one of them may take to take a connection.
const CONNECT: Duration = Duration::from_secs(4);

pub(super) type Later<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// A connection.
pub(super) trait Line: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Line for T {}

/// The way to the network.
pub(super) trait Network: Send + Sync {
    /// All addresses of a name.
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> Later<'a, Vec<IpAddr>>;
    /// A connection to exactly this address, with TLS for `host` if asked for.
    fn connect<'a>(&'a self, to: SocketAddr, host: &'a str, tls: bool) -> Later<'a, Box<dyn Line>>;
}

/// Looks the name up and connects to one of its addresses, if all of them are public.
pub(super) async fn line(network: &dyn Network, target: &Target) -> Result<Box<dyn Line>, FetchError> {
    let host = || target.host.clone();
    let answers = network
        .resolve(&target.host, target.port)
        .await
        .map_err(|source| FetchError::Unresolved { host: host(), source })?;
    // One private address among public ones is as good a way in as none besides it.
    if answers.is_empty() || !answers.iter().all(|ip| is_public(*ip)) {
        return Err(match answers.is_empty() {
            true => FetchError::Unresolved { host: host(), source: io::Error::other("it has no address") },
            false => FetchError::NotPublic { host: host() },
        });
    }
    let mut last = io::Error::other("it has no address");
    for ip in answers.into_iter().take(TRIED) {
        let to = SocketAddr::new(ip, target.port);
        match timeout(CONNECT, network.connect(to, &target.host, target.tls)).await {
            Ok(Ok(line)) => return Ok(line),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(FetchError::Unreachable { host: host(), source: last })
}

/// The system's resolver, TCP, and TLS with what the system trusts.
#[derive(Debug, Default)]
pub(super) struct Internet {
    tls: OnceLock<Arc<ClientConfig>>,
}

impl Internet {
    /// Made at the first use: it reads the system's certificates.
    fn tls(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(config) = self.tls.get() {
            return Ok(config.clone());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_platform_verifier())
            .map_err(io::Error::other)?
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Nothing that links one fetch to another.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(self.tls.get_or_init(|| Arc::new(config)).clone())
    }
}

impl Network for Internet {
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> Later<'a, Vec<IpAddr>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.map(|addr| addr.ip()).collect()) })
    }

    fn connect<'a>(&'a self, to: SocketAddr, host: &'a str, tls: bool) -> Later<'a, Box<dyn Line>> {
        Box::pin(async move {
            // Nobody gets here with another; if somebody ever does, this is where it ends.
            if !is_public(to.ip()) {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            if !tls {
                return Ok(Box::new(stream) as Box<dyn Line>);
            }
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            let stream = TlsConnector::from(self.tls()?).connect(name, stream).await?;
            Ok(Box::new(stream) as Box<dyn Line>)
        })
    }
}
