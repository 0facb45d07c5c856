//! What is checked of an address before anything is looked up.

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::{Limits, URL_MAX};

/// Why an address is not fetched from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("an address of {0} bytes; at most {URL_MAX} are taken")]
    TooLong(usize),
    #[error("this is no address: {0}")]
    Malformed(url::ParseError),
    #[error("only https is fetched, not {0}")]
    Scheme(String),
    #[error("an address with a user or a password is not fetched")]
    UserInfo,
    #[error("port {0} is not fetched from")]
    Port(u16),
    #[error("an address in the place of a name is not fetched from")]
    Literal,
    #[error("{0} is a name of this machine or of a private network")]
    PrivateName(String),
    #[error("{0} is not among the hosts that may be fetched from")]
    NotListed(String),
    #[error("the method {0:.16} is not used here; GET, HEAD and POST are")]
    Method(String),
    #[error("the header {0:.64} may not be sent")]
    Header(String),
    #[error("a request of {0} bytes; at most {max} are sent", max = super::REQUEST_MAX)]
    RequestTooLong(usize),
}

/// Names that may be fetched from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Hosts {
    /// Every public one.
    Any,
    /// Exactly these; `*.example.org` stands for one more label.
    Only(Vec<String>),
}

impl Hosts {
    fn have(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Only(list) => list.iter().any(|one| match one.strip_prefix("*.") {
                Some(parent) => host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent),
                None => one == host,
            }),
        }
    }
}

/// A name as it is compared: lower case, in the letters of the DNS.
///
/// # Errors
/// When it is none that could be fetched from.
pub(crate) fn listed(name: &str) -> Result<String, String> {
    if name == "*" {
        return Ok(name.to_owned());
    }
    let (star, rest) = name.strip_prefix("*.").map_or(("", name), |rest| ("*.", rest));
    match Host::parse(rest) {
        Ok(Host::Domain(host)) if host.contains('.') && !is_private(&host) => Ok(format!("{star}{host}")),
        _ => Err(format!("{name:?} is no public host's name; write it like example.org or *.example.org")),
    }
}

/// Endings of names that lead nowhere outside of a private network, or to this machine.
const PRIVATE: [&str; 10] =
    ["localhost", "local", "localdomain", "internal", "intranet", "lan", "home", "corp", "home.arpa", "onion"];

fn is_private(host: &str) -> bool {
    let under = |ending: &str| host.strip_suffix(ending).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    // A name without a dot is completed by the resolver, and one with a dot at its end compares unequal to what is listed.
    !host.contains('.') || host.ends_with('.') || PRIVATE.iter().any(|ending| under(ending))
}

/// An address that may be looked up.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) url: Url,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
}

/// Parses an address and checks it.
pub(super) fn target(text: &str, limits: &Limits) -> Result<Target, Refused> {
    if text.len() > URL_MAX {
        return Err(Refused::TooLong(text.len()));
    }
    check(Url::parse(text).map_err(Refused::Malformed)?, limits)
}

/// Checks an address that has been parsed: the first one, and that of every redirect.
pub(super) fn check(mut url: Url, limits: &Limits) -> Result<Target, Refused> {
    let tls = match url.scheme() {
        "https" => true,
        "http" if limits.http => false,
        other => return Err(Refused::Scheme(other.chars().take(16).collect())),
    };
    if url.as_str().len() > URL_MAX {
        return Err(Refused::TooLong(url.as_str().len()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Refused::UserInfo);
    }
    let port = url.port_or_known_default().unwrap_or(0);
    if port != if tls { 443 } else { 80 } && !limits.ports.contains(&port) {
        return Err(Refused::Port(port));
    }
    // `url` reads numbers as browsers do: decimal, octal, hexadecimal, with parts left out.
    let host = match url.host() {
        Some(Host::Domain(host)) => host.to_owned(),
        _ => return Err(Refused::Literal),
    };
    if is_private(&host) {
        return Err(Refused::PrivateName(host));
    }
    if !limits.hosts.have(&host) {
        return Err(Refused::NotListed(host));
    }
    url.set_fragment(None);
    Ok(Target { url, host, port, tls })
}
