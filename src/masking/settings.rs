//! The ways to be masked, and what each needs. What would show besides is refused here, in words, before anything is opened.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use libp2p::{Multiaddr, multiaddr::Protocol};
use quelea_behaviours::masking::is_masked;

/// The port of the web.
const FRONT_PORT: u16 = 443;
/// Where the front listens for the operator's own web server.
const PROXIED_PORT: u16 = 8468;

/// How a node is masked.
#[derive(Debug, Clone)]
pub(crate) struct MaskingSettings {
    pub(crate) way: Way,
    /// By which addresses others reach the front, without the secret path or with it.
    pub(crate) external: Vec<Multiaddr>,
    /// Certificates to trust besides those that browsers do.
    pub(crate) ca: Option<PathBuf>,
    /// What visitors see.
    pub(crate) page: Option<PathBuf>,
}

/// Who stands at the port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// A web front of our own.
    Front { bind: SocketAddr, cert: PathBuf, key: PathBuf },
    /// The operator's, which passes the secret path on to this address on loopback.
    BehindProxy { bind: SocketAddr },
    /// Nobody: the node dials only.
    DialOnly,
}

/// What was asked for on the command line.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) host: Option<IpAddr>,
    pub(crate) port: Option<u16>,
    pub(crate) listen: Vec<Multiaddr>,
    pub(crate) external: Vec<Multiaddr>,
    pub(crate) bootstrap: Vec<Multiaddr>,
    pub(crate) rendezvous: Vec<Multiaddr>,
    pub(crate) upnp: bool,
    pub(crate) mdns: bool,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) page: Option<PathBuf>,
}

/// The mode, before its settings are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Front,
    BehindProxy,
    DialOnly,
}

impl MaskingSettings {
    /// Checks that what was asked for leaves nothing open but the front.
    ///
    /// # Errors
    /// What would show, or what is missing, and what to do.
    pub(crate) fn new(mode: Mode, asked: Asked) -> Result<Self, String> {
        refuse_others(&asked)?;
        if let Some(bad) = asked.external.iter().find(|addr| !is_masked(addr)) {
            return Err(format!(
                "--external {bad}: a masked node is reached at a web server's address, like /dns4/www.example.org/tcp/443/tls/ws"
            ));
        }
        let way = match mode {
            Mode::Front => {
                let bind = bind(&asked, Ipv4Addr::UNSPECIFIED, FRONT_PORT, is_tls_ws)?;
                let (Some(cert), Some(key)) = (asked.cert, asked.key) else {
                    return Err("--masking needs a certificate that browsers believe: --masking-cert FILE and \
                                --masking-key FILE (PEM); --masking=behind-proxy leaves it to your web server, \
                                --masking=dial-only opens no port"
                        .into());
                };
                if asked.external.is_empty() && bind.ip().is_unspecified() {
                    return Err(
                        "say how others reach the web front: --external /dns4/www.example.org/tcp/443/tls/ws, \
                                with the name in the certificate"
                            .into(),
                    );
                }
                Way::Front { bind, cert, key }
            }
            Mode::BehindProxy => {
                let bind = bind(&asked, Ipv4Addr::LOCALHOST, PROXIED_PORT, is_plain_ws)?;
                if !bind.ip().is_loopback() {
                    return Err(format!(
                        "{bind}: behind your web server the node listens on loopback only; leave --host out, or give 127.0.0.1"
                    ));
                }
                if asked.external.is_empty() {
                    return Err(
                        "say how others reach your web server: --external /dns4/www.example.org/tcp/443/tls/ws".into(),
                    );
                }
                if asked.cert.is_some() || asked.key.is_some() {
                    return Err("behind your web server that server has the certificate; leave --masking-cert and \
                                --masking-key out"
                        .into());
                }
                Way::BehindProxy { bind }
            }
            Mode::DialOnly => {
                let opens = asked.host.is_some() || asked.port.is_some() || !asked.listen.is_empty();
                if opens || !asked.external.is_empty() || asked.cert.is_some() || asked.key.is_some() {
                    return Err("--masking=dial-only opens no port: leave --host, --port, --listen, --external, \
                                --masking-cert and --masking-key out"
                        .into());
                }
                Way::DialOnly
            }
        };
        Ok(Self { way, external: asked.external, ca: asked.ca, page: asked.page })
    }

    /// By which addresses others reach a front that listens on `bound`: those given, else that one; with the secret path
    /// where none is given.
    pub(super) fn public(&self, bound: SocketAddr, path: &str) -> Vec<Multiaddr> {
        let own = || Multiaddr::from(bound.ip()).with(Protocol::Tcp(bound.port())).with(Protocol::Tls).with(root());
        let given = if self.external.is_empty() { vec![own()] } else { self.external.clone() };
        given.into_iter().map(|addr| with_path(&addr, path)).collect()
    }
}

fn root() -> Protocol<'static> {
    Protocol::Ws("/".into())
}

/// The address with this path, unless it has one. A peer's id at its end is left out.
fn with_path(addr: &Multiaddr, path: &str) -> Multiaddr {
    let parts = addr.iter().filter(|part| !matches!(part, Protocol::P2p(_)));
    parts
        .map(|part| match part {
            Protocol::Ws(given) if given == "/" => Protocol::Ws(path.to_owned().into()),
            Protocol::Wss(given) if given == "/" => Protocol::Wss(path.to_owned().into()),
            other => other,
        })
        .collect()
}

/// Refuses what is seen or heard outside, or would dial in the clear.
fn refuse_others(asked: &Asked) -> Result<(), String> {
    for (wanted, flag, why) in [
        (asked.upnp, "--upnp", "it asks the router for a port in words that everybody on the LAN hears"),
        (asked.mdns, "--mdns", "it tells everybody on the LAN of this node"),
    ] {
        if wanted {
            return Err(format!("{flag} and --masking do not go together: {why}; leave one of them out"));
        }
    }
    if let Some(addr) = asked.metrics.filter(|addr| !addr.ip().is_loopback()) {
        return Err(format!(
            "--metrics-listen {addr} and --masking do not go together: a masked node has no other port open; use 127.0.0.1"
        ));
    }
    for (flag, addrs) in [("--bootstrap", &asked.bootstrap), ("--rendezvous", &asked.rendezvous)] {
        if let Some(addr) = addrs.iter().find(|addr| !is_masked(addr)) {
            return Err(format!(
                "{flag} {addr}: a masked node dials web servers only, at addresses like \
                 /dns4/www.example.org/tcp/443/tls/x-parity-ws/…"
            ));
        }
    }
    Ok(())
}

/// Where to listen: as the one `--listen` says, else by host and port.
fn bind(asked: &Asked, host: Ipv4Addr, port: u16, fits: fn(&[Protocol<'_>]) -> bool) -> Result<SocketAddr, String> {
    let [listen] = asked.listen.as_slice() else {
        if let Some(second) = asked.listen.get(1) {
            return Err(format!("--listen {second}: a masked node has one port open, not two"));
        }
        return Ok(SocketAddr::new(asked.host.unwrap_or(host.into()), asked.port.unwrap_or(port)));
    };
    let parts: Vec<Protocol<'_>> = listen.iter().collect();
    let ip = match parts.first() {
        Some(Protocol::Ip4(ip)) => Some(IpAddr::V4(*ip)),
        Some(Protocol::Ip6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    match (ip, parts.get(1)) {
        (Some(ip), Some(Protocol::Tcp(port))) if fits(parts.get(2..).unwrap_or_default()) => {
            Ok(SocketAddr::new(ip, *port))
        }
        _ => Err(format!(
            "--listen {listen} and --masking do not go together: the only listener is the web front's, \
             /ip4/0.0.0.0/tcp/443/tls/ws, or /ip4/127.0.0.1/tcp/{PROXIED_PORT}/ws behind your web server"
        )),
    }
}

fn is_tls_ws(rest: &[Protocol<'_>]) -> bool {
    matches!(rest, [Protocol::Tls, Protocol::Ws(path)] | [Protocol::Wss(path)] if path == "/")
}

fn is_plain_ws(rest: &[Protocol<'_>]) -> bool {
    matches!(rest, [Protocol::Ws(path)] if path == "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(text: &[&str]) -> Vec<Multiaddr> {
        text.iter().map(|addr| addr.parse().unwrap()).collect()
    }

    fn asked() -> Asked {
        let external = addrs(&["/dns4/www.example.org/tcp/443/tls/ws"]);
        Asked { external, cert: Some("c".into()), key: Some("k".into()), ..Asked::default() }
    }

    fn refused(mode: Mode, asked: Asked) -> String {
        MaskingSettings::new(mode, asked).unwrap_err()
    }

    #[test]
    fn the_front_takes_the_web_s_port_unless_told() {
        let front = |asked| match MaskingSettings::new(Mode::Front, asked).unwrap().way {
            Way::Front { bind, .. } => bind.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(front(asked()), "0.0.0.0:443");
        assert_eq!(front(Asked { port: Some(8443), host: "::".parse().ok(), ..asked() }), "[::]:8443");
        assert_eq!(front(Asked { listen: addrs(&["/ip4/127.0.0.1/tcp/7/tls/ws"]), ..asked() }), "127.0.0.1:7");
        let proxied = Asked { cert: None, key: None, ..asked() };
        let way = MaskingSettings::new(Mode::BehindProxy, proxied).unwrap().way;
        assert_eq!(way, Way::BehindProxy { bind: "127.0.0.1:8468".parse().unwrap() });
    }

    #[test]
    fn whatever_else_would_show_is_refused_by_name() {
        for open in ["/ip4/0.0.0.0/tcp/8468", "/ip4/0.0.0.0/udp/8468/quic-v1", "/ip4/0.0.0.0/tcp/80/ws"] {
            assert!(refused(Mode::Front, Asked { listen: addrs(&[open]), ..asked() }).contains(open));
            let proxied = Asked { listen: addrs(&[open]), cert: None, key: None, ..asked() };
            assert!(refused(Mode::BehindProxy, proxied).contains("loopback") || open.contains("8468"));
        }
        assert!(refused(Mode::Front, Asked { mdns: true, ..asked() }).contains("--mdns"));
        assert!(refused(Mode::Front, Asked { upnp: true, ..asked() }).contains("--upnp"));
        let seen = "0.0.0.0:8470".parse().ok();
        assert!(refused(Mode::Front, Asked { metrics: seen, ..asked() }).contains("--metrics-listen"));
        let clear = addrs(&["/ip4/9.9.9.9/tcp/8468"]);
        assert!(
            refused(Mode::DialOnly, Asked { bootstrap: clear.clone(), ..Asked::default() }).contains("--bootstrap")
        );
        let point = Asked { rendezvous: clear.clone(), ..Asked::default() };
        assert!(refused(Mode::DialOnly, point).contains("--rendezvous"));
        assert!(refused(Mode::Front, Asked { external: clear, ..asked() }).contains("--external"));
        assert!(refused(Mode::DialOnly, Asked { port: Some(1), ..Asked::default() }).contains("--port"));
    }

    #[test]
    fn what_is_missing_is_said() {
        assert!(refused(Mode::Front, Asked { key: None, ..asked() }).contains("--masking-key"));
        assert!(refused(Mode::Front, Asked { external: Vec::new(), ..asked() }).contains("--external"));
        let proxied = Asked { external: Vec::new(), cert: None, key: None, ..asked() };
        assert!(refused(Mode::BehindProxy, proxied).contains("--external"));
    }

    #[test]
    fn others_are_told_the_path() {
        let settings = MaskingSettings::new(Mode::Front, asked()).unwrap();
        let bound = "127.0.0.1:8443".parse().unwrap();
        assert_eq!(settings.public(bound, "/p"), addrs(&["/dns4/www.example.org/tcp/443/tls/x-parity-ws/%2Fp"]));
        let named = Asked { external: addrs(&["/ip4/9.9.9.9/tcp/443/tls/sni/a.example/x-parity-ws/%2Fq"]), ..asked() };
        let external = named.external.clone();
        assert_eq!(MaskingSettings::new(Mode::Front, named).unwrap().public(bound, "/p"), external);
        let here = Asked { external: Vec::new(), host: "127.0.0.1".parse().ok(), ..asked() };
        let public = MaskingSettings::new(Mode::Front, here).unwrap().public(bound, "/p");
        assert_eq!(public, addrs(&["/ip4/127.0.0.1/tcp/8443/tls/x-parity-ws/%2Fp"]));
    }
}
