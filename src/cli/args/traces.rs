//! Flags of traces.

use std::{collections::HashMap, convert::Infallible, str::FromStr};

use clap::{Args, Subcommand};
use libp2p::PeerId;
use quelea_wire::ErrorCode;
use url::Url;

use crate::{cli::exit::CliError, telemetry::traces::TraceSettings};

/// Where a collector is by default, by OTLP's specification.
const LOCAL: &str = "http://localhost:4318";

/// What OTLP's specification appends to an endpoint that is for all signals.
const PATH: &str = "v1/traces";

/// Variables that OpenTelemetry's specification names. They say where and how; only the flag says that.
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const SERVICE: &str = "OTEL_SERVICE_NAME";
const RATIO: &str = "OTEL_TRACES_SAMPLER_ARG";

/// How the daemon's traces are collected.
#[derive(Debug, Clone, Args)]
pub(crate) struct TraceArgs {
    /// Send traces by OTLP (protobuf over HTTP) to this collector; without =URL to the one that OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
    /// or OTEL_EXPORTER_OTLP_ENDPOINT names, else to http://localhost:4318; 'off' for none
    #[arg(long, value_name = "URL", num_args = 0..=1, default_missing_value = "default")]
    pub(crate) otlp_endpoint: Option<Endpoint>,
    /// Let this peer's traces go on here when it asks this node to compute (repeatable, or comma-separated); those of others
    /// are linked to
    #[arg(long, value_name = "PEER", requires = "otlp_endpoint", value_delimiter = ',', value_parser = parse_peer)]
    pub(crate) trace_parents_from: Vec<PeerId>,
}

/// Where a collector is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// Where the environment says, or on this machine.
    Default,
    /// Here.
    At(String),
}

impl FromStr for Endpoint {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "default" { Self::Default } else { Self::At(text.to_owned()) })
    }
}

fn parse_peer(text: &str) -> Result<PeerId, String> {
    text.parse().map_err(|_| format!("{text:?} is not a peer id: 'quelea id' on that node shows its own"))
}

/// `quelea trace …`.
#[derive(Debug, Subcommand)]
pub(crate) enum TraceCommand {
    /// The newest requests of this node
    #[command(after_help = "Examples:\n  quelea trace ls\n  quelea trace ls --json")]
    Ls,
    /// One request: its parts, when they were, and who did them
    #[command(after_help = "Examples:
  quelea trace show                 the newest
  quelea trace show 4bf92f35        the one that begins like this
  quelea trace show 4bf92f35 --json")]
    Show {
        /// The trace's id, or its beginning [default: the newest]
        id: Option<String>,
    },
}

impl TraceArgs {
    /// What they come to.
    pub(crate) fn settings(&self) -> Result<Option<TraceSettings>, CliError> {
        let names = [TRACES_ENDPOINT, ENDPOINT, SERVICE, RATIO];
        let set = |name: &'static str| Some((name, std::env::var(name).ok()?.trim().to_owned()));
        let variables = names.into_iter().filter_map(set).filter(|(_, value)| !value.is_empty()).collect();
        self.settings_with(&variables).map_err(|what| CliError::new(ErrorCode::Usage, what))
    }

    fn settings_with(&self, variables: &HashMap<&str, String>) -> Result<Option<TraceSettings>, String> {
        let (from, text, whole) = match (&self.otlp_endpoint, variables.get(TRACES_ENDPOINT), variables.get(ENDPOINT)) {
            (None, _, _) => return Ok(None),
            // As a file for several nodes has it where there is no collector, or a variable that is set and empty.
            (Some(Endpoint::At(url)), _, _) if url.is_empty() || url == "off" => return Ok(None),
            (Some(Endpoint::At(url)), _, _) => ("--otlp-endpoint", url.clone(), false),
            (_, Some(url), _) => (TRACES_ENDPOINT, url.clone(), true),
            (_, None, Some(url)) => (ENDPOINT, format!("{}/{PATH}", url.trim_end_matches('/')), true),
            (_, None, None) => (ENDPOINT, format!("{LOCAL}/{PATH}"), true),
        };
        let wrong = |why: &str| format!("{from}: {text:?} {why}; a collector is at http://HOST:4318, or https://…");
        let mut endpoint = Url::parse(&text).map_err(|_| wrong("is not a URL"))?;
        if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host().is_none() {
            return Err(wrong("is not one of HTTP"));
        }
        if !endpoint.username().is_empty() || endpoint.password().is_some() {
            // Whoever lists processes sees it, and so does whoever reads the log.
            return Err(format!(
                "{from}: no user or password in the URL; OTEL_EXPORTER_OTLP_HEADERS takes a collector's key"
            ));
        }
        if !whole && endpoint.path() == "/" {
            endpoint.set_path(PATH);
        }
        let ratio = match variables.get(RATIO) {
            None => 1.0,
            Some(text) => text
                .parse()
                .ok()
                .filter(|ratio| (0.0..=1.0).contains(ratio))
                .ok_or_else(|| format!("{RATIO}: {text:?} is not a share of traces, 0 to 1"))?,
        };
        let service = variables.get(SERVICE).cloned().unwrap_or_else(|| "quelea".into());
        Ok(Some(TraceSettings { endpoint, service, ratio, parents_from: self.trace_parents_from.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Command};

    const PEER: &str = "12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS";

    fn args(flags: &[&str]) -> TraceArgs {
        let argv = [&["quelea", "daemon"], flags].concat();
        let Command::Daemon(args) = Cli::parse_from(argv).command else { panic!("parsed as something else") };
        args.traces
    }

    fn endpoint(flags: &[&str], variables: &[(&'static str, &str)]) -> Result<String, String> {
        let variables = variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        args(flags).settings_with(&variables).map(|s| s.expect("on").endpoint.to_string())
    }

    #[test]
    fn nothing_is_sent_unless_the_flag_says_so() {
        let variables = [(ENDPOINT, "http://collector:4318".to_owned())].into();
        assert_eq!(args(&[]).settings_with(&variables), Ok(None));
        assert_eq!(args(&["--otlp-endpoint="]).settings_with(&variables), Ok(None));
        assert_eq!(args(&["--otlp-endpoint=off"]).settings_with(&variables), Ok(None));
    }

    #[test]
    fn the_flag_wins_then_the_variable_of_traces_then_that_of_everything() {
        let (all, traces) = ((ENDPOINT, "http://all:1/otel/"), (TRACES_ENDPOINT, "http://traces:2/in"));
        let on = &["--otlp-endpoint"][..];
        let url = |flags: &[&str], variables: &[(&'static str, &str)]| endpoint(flags, variables).unwrap();
        assert_eq!(url(on, &[]), "http://localhost:4318/v1/traces");
        assert_eq!(url(on, &[all]), "http://all:1/otel/v1/traces");
        assert_eq!(url(on, &[all, traces]), "http://traces:2/in");
        assert_eq!(url(&["--otlp-endpoint=http://flag:3"], &[all, traces]), "http://flag:3/v1/traces");
        assert_eq!(url(&["--otlp-endpoint=https://flag/a/b"], &[]), "https://flag/a/b");
    }

    #[test]
    fn what_is_wrong_is_named_with_where_it_stands() {
        let of = |flag: &str| endpoint(&[flag], &[]).unwrap_err();
        assert!(of("--otlp-endpoint=collector:4318").starts_with("--otlp-endpoint"));
        assert!(of("--otlp-endpoint=ftp://collector").contains("HTTP"));
        assert!(of("--otlp-endpoint=http://me:secret@collector").contains("OTEL_EXPORTER_OTLP_HEADERS"));
        let said = endpoint(&["--otlp-endpoint"], &[(ENDPOINT, "nowhere")]).unwrap_err();
        assert!(said.starts_with(ENDPOINT), "{said}");
        for ratio in ["2", "-0.1", "NaN", "half"] {
            assert!(endpoint(&["--otlp-endpoint"], &[(RATIO, ratio)]).unwrap_err().starts_with(RATIO), "{ratio}");
        }
    }

    #[test]
    fn a_share_a_name_and_peers_are_taken() {
        let variables = [(RATIO, "0.25".to_owned()), (SERVICE, "flock".to_owned())].into();
        let args = args(&["--otlp-endpoint", "--trace-parents-from", PEER]);
        let settings = args.settings_with(&variables).unwrap().unwrap();
        assert_eq!((settings.ratio, settings.service.as_str()), (0.25, "flock"));
        assert_eq!(settings.parents_from, [PEER.parse().unwrap()]);
        assert!(Cli::try_parse_from(["quelea", "daemon", "--trace-parents-from", PEER]).is_err());
        assert!(Cli::try_parse_from(["quelea", "daemon", "--otlp-endpoint", "--trace-parents-from=me"]).is_err());
    }
}
