//! What a credential may do, and what each route asks for: the one table.

use serde::{Deserialize, Serialize};

/// Something that a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// Everything.
    Admin,
    /// Look at the node's state.
    Read,
    /// Have models answer, which may cost credit.
    Infer,
    /// Read counters and gauges.
    Metrics,
}

impl Scope {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Admin, Self::Read, Self::Infer, Self::Metrics];

    /// As it is written.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Read => "read",
            Self::Infer => "infer",
            Self::Metrics => "metrics",
        }
    }
}

impl std::str::FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.into_iter().map(Self::as_str).collect();
            format!("there is no scope {text:?}; there are {}", known.join(", "))
        })
    }
}

/// What a route asks of who calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Need {
    /// Nothing: it shows nothing of the node, or is how one gets a credential.
    Nothing,
    /// Any credential.
    Anyone,
    /// One of these, or admin.
    One(&'static [Scope]),
}

impl Need {
    /// Whether somebody with these scopes may.
    pub(in crate::api) fn allows(self, scopes: &[Scope]) -> bool {
        match self {
            Self::Nothing => true,
            Self::Anyone => !scopes.is_empty(),
            Self::One(wanted) => scopes.iter().any(|scope| *scope == Scope::Admin || wanted.contains(scope)),
        }
    }

    /// In words, for who was refused.
    pub(super) fn words(self) -> String {
        match self {
            Self::Nothing | Self::Anyone => "any".to_owned(),
            Self::One([]) => "admin".to_owned(),
            Self::One(wanted) => wanted.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(" or "),
        }
    }
}

const ADMIN: Need = Need::One(&[]);
const READ: Need = Need::One(&[Scope::Read]);
const INFER: Need = Need::One(&[Scope::Infer]);
const READ_OR_INFER: Need = Need::One(&[Scope::Read, Scope::Infer]);
const READ_OR_METRICS: Need = Need::One(&[Scope::Read, Scope::Metrics]);

/// Method (`*` for any), path (`{x}` stands for one segment, `{*}` for all that are left), and what it asks for. The first
/// row that fits counts. What is in no row is admin's: a new route is closed until somebody says who may use it.
pub(in crate::api) const TABLE: &[(&str, &str, Need)] = &[
    ("GET", "/", Need::Nothing),
    ("GET", "/assets/{*}", Need::Nothing),
    ("GET", "/favicon.svg", Need::Nothing),
    ("GET", "/livez", Need::Nothing),
    ("GET", "/readyz", Need::Nothing),
    ("GET", "/api/v1/openapi.json", Need::Nothing),
    ("POST", "/api/v1/login", Need::Nothing),
    ("GET", "/api/v1/session", Need::Anyone),
    ("POST", "/api/v1/logout", Need::Anyone),
    ("POST", "/api/v1/login/code", ADMIN),
    ("GET", "/api/v1/tokens", ADMIN),
    ("POST", "/api/v1/tokens", ADMIN),
    ("POST", "/api/v1/tokens/revoke", ADMIN),
    ("GET", "/api/v1/id", READ),
    ("GET", "/api/v1/status", READ),
    ("GET", "/api/v1/snapshot", READ),
    ("GET", "/api/v1/events", READ),
    ("GET", "/api/v1/traces", READ),
    ("GET", "/api/v1/traces/{id}", READ),
    ("GET", "/api/v1/logs", READ),
    ("POST", "/api/v1/logs/level", ADMIN),
    ("GET", "/api/v1/config", READ),
    ("POST", "/api/v1/config/set", ADMIN),
    ("GET", "/api/v1/stats", READ_OR_METRICS),
    ("GET", "/api/v1/timeseries", READ_OR_METRICS),
    ("GET", "/metrics", READ_OR_METRICS),
    ("POST", "/api/v1/infer", INFER),
    ("POST", "/api/v1/plan", READ_OR_INFER),
    ("GET", "/api/v1/coverage", READ_OR_INFER),
    ("GET", "/api/v1/models", READ_OR_INFER),
    ("GET", "/api/v1/models/ps", READ_OR_INFER),
    ("POST", "/api/v1/models/pull", ADMIN),
    ("POST", "/api/v1/models/rm", ADMIN),
    ("POST", "/api/v1/shutdown", ADMIN),
    ("POST", "/api/v1/store/backup", ADMIN),
    ("POST", "/api/v1/broadcast", ADMIN),
    ("POST", "/api/v1/dht/put", ADMIN),
    ("POST", "/api/v1/dht/provide", ADMIN),
    ("POST", "/api/v1/dht/delete", ADMIN),
    ("POST", "/api/v1/dht/get", READ),
    ("POST", "/api/v1/dht/providers", READ),
    ("POST", "/api/v1/dht/find-peer", READ),
    ("POST", "/api/v1/dht/find-node", READ),
    ("GET", "/api/v1/dht/stats", READ),
    ("GET", "/api/v1/peers", READ),
    ("GET", "/api/v1/peers/known", READ),
    ("GET", "/api/v1/peers/bans", READ),
    ("GET", "/api/v1/peers/{id}", READ),
    ("POST", "/api/v1/peers/connect", ADMIN),
    ("POST", "/api/v1/peers/disconnect", ADMIN),
    ("POST", "/api/v1/peers/ban", ADMIN),
    ("POST", "/api/v1/peers/unban", ADMIN),
    ("GET", "/api/v1/bootstrap", READ),
    ("POST", "/api/v1/bootstrap/add", ADMIN),
    ("POST", "/api/v1/bootstrap/rm", ADMIN),
    ("POST", "/api/v1/ping", READ),
    ("GET", "/api/v1/netcheck", READ),
    ("GET", "/api/v1/ledger", READ),
    ("GET", "/api/v1/ledger/entries", READ),
    ("GET", "/api/v1/ledger/check", READ),
    ("POST", "/api/v1/ledger/promise", ADMIN),
    ("POST", "/api/v1/ledger/redeem", ADMIN),
    ("POST", "/api/v1/ledger/request", ADMIN),
    ("POST", "/api/v1/ledger/limit", ADMIN),
    ("POST", "/api/v1/ledger/convict", ADMIN),
    ("GET", "/api/v1/trust", READ),
    ("GET", "/api/v1/services", READ),
    ("GET", "/api/v1/services/{*}", READ),
    ("GET", "/api/v1/agents", READ),
    ("GET", "/api/v1/agents/{*}", READ),
    // They cost credit, or run what somebody sent.
    ("POST", "/api/v1/services/{*}", ADMIN),
    ("POST", "/api/v1/agents", ADMIN),
    ("POST", "/api/v1/agents/{*}", ADMIN),
    ("POST", "/api/v1/compute", ADMIN),
    ("POST", "/api/v1/web/read", ADMIN),
    ("*", "/v1", INFER),
    ("*", "/v1/{*}", INFER),
];

/// What this request asks for. The path is taken as it came: a router that does not decode it does not know it either.
pub(in crate::api) fn need(method: &str, path: &str) -> Need {
    let method = if method == "HEAD" { "GET" } else { method };
    let row = TABLE.iter().find(|(of, pattern, _)| (*of == "*" || *of == method) && fits(pattern, path));
    row.map_or(ADMIN, |(_, _, need)| *need)
}

fn fits(pattern: &str, path: &str) -> bool {
    let mut given = path.split('/');
    for wanted in pattern.split('/') {
        match (wanted, given.next()) {
            ("{*}", Some(rest)) => return !rest.is_empty(),
            (_, None) => return false,
            (wanted, Some(given)) if wanted == given => {}
            (wanted, Some(given)) if wanted.starts_with('{') && !given.is_empty() => {}
            _ => return false,
        }
    }
    given.next().is_none()
}

#[cfg(test)]
pub(in crate::api) mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Every `.route("…", get(…).post(…))` of the sources below `dir`, with its methods.
    pub(in crate::api) fn routes(dir: &Path, into: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                routes(&path, into);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            // What tests route is not ours.
            let text = text.split("#[cfg(test)]").next().unwrap();
            for route in text.split(".route(").skip(1) {
                let mut parts = route.trim_start().trim_start_matches('"').splitn(2, '"');
                let (name, rest) = (parts.next().unwrap(), parts.next().unwrap_or_default());
                let rest = rest.split(".route(").next().unwrap();
                let first = rest.trim_start_matches(',').trim_start();
                for method in ["get", "post", "put", "delete"] {
                    if first.starts_with(&format!("{method}(")) || rest.contains(&format!(").{method}(")) {
                        into.push((method.to_uppercase(), name.to_owned()));
                    }
                }
            }
        }
    }

    #[test]
    fn what_no_row_names_is_admins() {
        for (method, path) in
            [("GET", "/api/v1/new"), ("DELETE", "/api/v1/peers"), ("GET", "/api/v1//id"), ("PUT", "/")]
        {
            assert_eq!(need(method, path), ADMIN, "{method} {path}");
        }
        assert_eq!(need("GET", "/api/v1/peers/12D3"), READ);
        assert_eq!(need("GET", "/api/v1/peers/a/b"), ADMIN);
        assert_eq!(need("GET", "/api/v1/peers/"), ADMIN);
        assert_eq!(need("HEAD", "/api/v1/id"), READ);
        assert_eq!(need("GET", "/assets/a/b.js"), Need::Nothing);
        assert_eq!(need("POST", "/v1/chat/completions"), INFER);
    }

    #[test]
    fn every_route_is_in_the_table() {
        let mut found = Vec::new();
        routes(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api"), &mut found);
        assert!(found.len() > 40, "the sources are not read as they are written: {found:?}");
        for (method, path) in &found {
            let plain = path.replace("{*", "{").replace(['{', '}'], "");
            let listed = TABLE.iter().any(|(of, pattern, _)| (*of == "*" || of == method) && fits(pattern, &plain));
            assert!(listed, "{method} {path} has no row in TABLE: say which scope it needs");
        }
    }

    #[test]
    fn each_scope_opens_what_it_should_on_every_route() {
        for (method, path, need) in TABLE {
            let allowed = |scope| need.allows(&[scope]);
            assert!(allowed(Scope::Admin), "{path}");
            assert_eq!(need.allows(&[]), *need == Need::Nothing, "{path}");
            if let Need::One(wanted) = need {
                for scope in [Scope::Read, Scope::Infer, Scope::Metrics] {
                    assert_eq!(allowed(scope), wanted.contains(&scope), "{method} {path} {scope:?}");
                }
                // Nobody who may only look changes anything.
                let looks = ["/plan", "/ping", "/get", "/providers", "/find-peer", "/find-node"];
                if *method == "POST" && !looks.iter().any(|end| path.ends_with(end)) {
                    assert!(!allowed(Scope::Read) && !allowed(Scope::Metrics), "{path}");
                }
            }
        }
    }
}
