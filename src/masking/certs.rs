//! The front's certificate, read again when its files change. A new one that cannot be used is said, and the old one stays.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use futures_rustls::rustls::{
    client::verify_server_name,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};
use libp2p::{Multiaddr, multiaddr::Protocol};

use crate::telemetry::stats::NodeStats;

/// How often the files are looked at. Renewal comes weeks before the end; a minute is soon enough, and costs two `stat`s.
pub(super) const LOOK: Duration = Duration::from_secs(60);

/// What shows that a file is another one: when it was changed, its number and its length. A link that leads elsewhere shows, too.
type Stamp = (SystemTime, u64, u64);

/// The front's certificate and its files.
pub(crate) struct Certificates {
    cert: PathBuf,
    key: PathBuf,
    /// How others reach the front: what the certificate ought to be for.
    names: Vec<ServerName<'static>>,
    current: RwLock<Arc<CertifiedKey>>,
    /// The files as they were when they were last read, well or not.
    seen: Mutex<[Option<Stamp>; 2]>,
    stats: Arc<NodeStats>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// A certificate as read, and what is odd about it.
struct Read {
    key: CertifiedKey,
    /// When it ends, Unix seconds.
    ends: i64,
    odd: Vec<String>,
}

impl Certificates {
    /// Reads them for the first time; `external` is how others reach the front.
    pub(super) fn load(
        cert: &Path,
        key: &Path,
        external: &[Multiaddr],
        stats: Arc<NodeStats>,
    ) -> Result<Arc<Self>, String> {
        let names: Vec<_> = external.iter().filter_map(name_of).collect();
        let seen = Mutex::new([stamp(cert), stamp(key)]);
        let read = read(cert, key, &names)?;
        for odd in &read.odd {
            tracing::warn!("{odd}");
        }
        stats.front.set_certificate_ends(u64::try_from(read.ends).unwrap_or_default());
        let current = RwLock::new(Arc::new(read.key));
        Ok(Arc::new(Self { cert: cert.into(), key: key.into(), names, current, seen, stats }))
    }

    /// Reads them again, whether they have changed or not. When they cannot be used, those of before stay.
    pub(crate) fn reread(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = [stamp(&self.cert), stamp(&self.key)];
        let usable = read(&self.cert, &self.key, &self.names).and_then(|read| {
            let ended = read.odd.iter().find(|_| has_ended(read.ends)).cloned();
            ended.map_or(Ok(read), Err)
        });
        match usable {
            Ok(read) => {
                for odd in &read.odd {
                    tracing::warn!("{odd}");
                }
                self.stats.front.set_certificate_ends(u64::try_from(read.ends).unwrap_or_default());
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(read.key);
                tracing::info!(cert = %self.cert.display(), "the web front has a new certificate");
            }
            Err(error) => tracing::error!("the web front keeps its old certificate: {error}"),
        }
    }

    /// As [`Self::reread`], if a file has changed since.
    pub(super) fn look(&self) {
        let changed =
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) != [stamp(&self.cert), stamp(&self.key)];
        if changed {
            self.reread();
        }
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.ino(), meta.len()))
}

fn has_ended(ends: i64) -> bool {
    SystemTime::UNIX_EPOCH.elapsed().is_ok_and(|now| i64::try_from(now.as_secs()).is_ok_and(|now| ends < now))
}

/// The certificates of a PEM file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certs) if certs.is_empty() => {
            Err(format!("{}: holds no certificate (PEM, '-----BEGIN CERTIFICATE-----')", path.display()))
        }
        Ok(certs) => Ok(certs),
        Err(error) => Err(format!("{}: cannot be read as certificates: {error}", path.display())),
    }
}

fn read(cert: &Path, key: &Path, names: &[ServerName<'static>]) -> Result<Read, String> {
    let chain = certificates(cert)?;
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|e| format!("{}: cannot be read as a private key (PEM): {e}", key.display()))?;
    let of = |what: String| format!("{}: {what}", cert.display());
    let first = chain.first().cloned().ok_or_else(|| of("holds no certificate".into()))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&first).map_err(|e| of(format!("is no certificate: {e}")))?;
    let (begins, ends) = (parsed.validity().not_before, parsed.validity().not_after);
    let mut odd = Vec::new();
    if has_ended(ends.timestamp()) {
        odd.push(of(format!("has ended on {ends}: nobody will connect until it is renewed")));
    } else if !has_ended(begins.timestamp()) {
        odd.push(of(format!("is valid from {begins} only: look at this machine's clock")));
    }
    let webpki = ParsedCertificate::try_from(&first).map_err(|e| of(format!("is no certificate for a server: {e}")))?;
    let foreign = names.iter().filter(|name| verify_server_name(&webpki, name).is_err());
    odd.extend(
        foreign.map(|name| of(format!("is not for {}, which --external names: peers will not connect", name.to_str()))),
    );
    let key = CertifiedKey::from_der(chain, private, &ring::default_provider())
        .map_err(|e| format!("{} and {} do not go together: {e}", cert.display(), key.display()))?;
    Ok(Read { key, ends: ends.timestamp(), odd })
}

/// What a peer that dials this address wants a certificate for.
fn name_of(addr: &Multiaddr) -> Option<ServerName<'static>> {
    let mut name = None;
    for part in addr {
        match part {
            Protocol::Ip4(ip) => name = Some(ServerName::from(std::net::IpAddr::V4(ip))),
            Protocol::Ip6(ip) => name = Some(ServerName::from(std::net::IpAddr::V6(ip))),
            Protocol::Dns(host) | Protocol::Dns4(host) | Protocol::Dns6(host) | Protocol::Sni(host) => {
                name = ServerName::try_from(host.into_owned()).ok();
            }
            _ => {}
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// Writes a certificate for `name` that ends in this year; its bytes.
    fn write(dir: &Path, name: &str, ends: i32) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(ends, 1, 1);
        let cert = params.self_signed(&key).unwrap();
        std::fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
        std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
        cert.der().to_vec()
    }

    #[test]
    fn a_changed_certificate_is_taken_and_a_bad_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let first = write(dir.path(), "a.example", 2096);
        let stats = Arc::<NodeStats>::default();
        let certs = Certificates::load(&cert, &key, &[], stats).unwrap();
        let current = || certs.current().cert[0].to_vec();
        certs.look();
        assert_eq!(current(), first);
        for bad in ["", "not a certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&cert, bad).unwrap();
            certs.look();
            assert_eq!(current(), first, "{bad:?}");
        }
        // Half of a renewal, then the other half.
        let second = write(dir.path(), "a.example", 2097);
        let key_of_second = std::fs::read(&key).unwrap();
        std::fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        certs.look();
        assert_eq!(current(), first);
        std::fs::write(&key, key_of_second).unwrap();
        certs.look();
        assert_eq!(current(), second);
        write(dir.path(), "a.example", 2001);
        certs.look();
        assert_eq!(current(), second, "one that has ended is no better");
        std::fs::remove_file(&cert).unwrap();
        certs.reread();
        assert_eq!(current(), second);
    }

    #[test]
    fn what_is_odd_about_a_certificate_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let odd = |addr: &str| {
            let name = name_of(&addr.parse().unwrap()).unwrap();
            read(&cert, &key, &[name]).unwrap().odd
        };
        write(dir.path(), "a.example", 2096);
        assert_eq!(odd("/dns4/a.example/tcp/443/tls/ws"), Vec::<String>::new());
        assert_eq!(odd("/ip4/9.9.9.9/tcp/443/tls/sni/a.example/ws"), Vec::<String>::new());
        for other in ["/dns4/b.example/tcp/443/tls/ws", "/ip4/9.9.9.9/tcp/443/tls/ws"] {
            assert!(odd(other)[0].contains("is not for"), "{other}");
        }
        write(dir.path(), "a.example", 2001);
        assert!(odd("/dns4/a.example/tcp/443/tls/ws")[0].contains("has ended"));
    }
}
