//! HTTP clients. All TLS of this program is rustls over `ring`, as libp2p has it: reqwest is built without a provider of its own
//! and is told here, so clients are made nowhere else (`clippy.toml` sees to that).

use reqwest::{Client, ClientBuilder};

/// A client for this machine: plain HTTP, no proxy, and no look at the system's certificates, which a container may lack.
pub(crate) fn local() -> ClientBuilder {
    builder().tls_certs_only([]).no_proxy()
}

/// A client for the web: the system's certificates, and its proxy if the environment names one.
pub(crate) fn web() -> ClientBuilder {
    builder().user_agent(concat!("quelea/", env!("CARGO_PKG_VERSION")))
}

#[expect(clippy::disallowed_methods, reason = "the one place where clients are made")]
fn builder() -> ClientBuilder {
    // Fails when it is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
}
