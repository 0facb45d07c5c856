//! What a daemon was started with, read off the command line as clap has it.

use clap::{ArgMatches, CommandFactory as _, parser::ValueSource};

use super::args::Cli;
use crate::api::config::ConfigItem;

/// Every flag of `quelea daemon`, and where its value comes from. Nothing for other commands.
pub(super) fn of_daemon(matches: &ArgMatches) -> Vec<ConfigItem> {
    let Some(("daemon", given)) = matches.subcommand() else { return Vec::new() };
    let mut command = Cli::command();
    command.build();
    let Some(daemon) = command.find_subcommand("daemon") else { return Vec::new() };
    let mut items = Vec::new();
    for arg in daemon.get_arguments() {
        let (id, Some(key)) = (arg.get_id().as_str(), arg.get_long()) else { continue };
        if matches!(key, "help" | "version") {
            continue;
        }
        let raw = given.try_get_raw(id).ok().flatten();
        let switch = !arg.get_action().takes_values();
        let values: Vec<String> = raw.into_iter().flatten().map(|value| value.to_string_lossy().into_owned()).collect();
        let source = given.try_contains_id(id).ok().and_then(|_| given.value_source(id));
        let origin = match source {
            Some(ValueSource::CommandLine) => "command line".to_owned(),
            Some(ValueSource::EnvVariable) => {
                format!("environment {}", arg.get_env().map(|name| name.to_string_lossy()).unwrap_or_default())
            }
            _ => "default".to_owned(),
        };
        let values = if switch && values.is_empty() { vec!["false".to_owned()] } else { values };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        items.push(ConfigItem { key: key.to_owned(), values, origin, help });
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flag_says_where_its_value_comes_from() {
        let line = [
            "quelea",
            "daemon",
            "--port",
            "7",
            "--mdns",
            "-b",
            "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGRUf2xsXYjqjZ3mYSTMSFrWvWqtoCpd6nDVtVxQJLqZr",
        ];
        let matches = Cli::command().try_get_matches_from(line).unwrap_or_else(|e| panic!("{e}"));
        let items = of_daemon(&matches);
        let item = |key: &str| items.iter().find(|item| item.key == key).unwrap_or_else(|| panic!("{key}"));
        assert_eq!(
            (item("port").values.as_slice(), item("port").origin.as_str()),
            (&["7".to_owned()][..], "command line")
        );
        assert_eq!(
            (item("network").values.as_slice(), item("network").origin.as_str()),
            (&["main".to_owned()][..], "default")
        );
        assert_eq!(
            (item("mdns").values.as_slice(), item("upnp").values.as_slice()),
            (&["true".to_owned()][..], &["false".to_owned()][..])
        );
        assert!(item("model").values.is_empty() && !item("model").help.is_empty());
        let other = Cli::command().try_get_matches_from(["quelea", "status"]).unwrap();
        assert!(of_daemon(&other).is_empty());
    }
}
