//! From flags, environment, file and profile to one list of arguments, which clap reads as if all had been given as flags.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Command, CommandFactory as _, FromArgMatches as _, ValueEnum as _, parser::ValueSource};
use quelea_wire::ErrorCode;
use serde_json::json;

use super::{file, path_of, profile};
use crate::api::{config::ConfigItem, shape};
use crate::cli::{
    args::{self, Cli, Global, ProfileArg},
    client::home,
    exit::{CliError, Exit},
    table::Listing,
};

/// What a variable of a setting begins with. Not `QUELEA_` alone: where a service is called quelea, Kubernetes sets
/// `QUELEA_PORT` to an address of its own.
const VARIABLE: &str = "QUELEA_DAEMON_";

/// Flags of `daemon` that are no settings.
const NO_SETTINGS: [&str; 3] = ["help", "version", "dry-run"];

/// Flags of every command that are settings of the daemon as well.
const GLOBAL_SETTINGS: [&str; 1] = ["log-format"];

/// What a setting holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Switch,
    One,
    Many,
}

/// A setting's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) name: String,
    /// What clap calls it.
    id: String,
    pub(super) kind: Kind,
    /// What it does, in a line.
    help: String,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    Profile(&'static str),
    File(usize),
    Environment(String),
    Flag,
}

impl Key {
    fn set(&self, values: Vec<String>, origin: Origin) -> Setting {
        Setting { key: self.name.clone(), kind: self.kind, values, origin, help: self.help.clone() }
    }
}

/// A setting, as it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) key: String,
    kind: Kind,
    /// None where nothing is set.
    pub(crate) values: Vec<String>,
    pub(crate) origin: Origin,
    /// What it does, in a line.
    pub(crate) help: String,
}

/// All settings, in the order of `daemon --help`.
pub(super) fn keys() -> Vec<Key> {
    let cli = Cli::command();
    let own = cli.find_subcommand("daemon").into_iter().flat_map(Command::get_arguments);
    let shared = cli.get_arguments().filter(|arg| arg.get_long().is_some_and(|long| GLOBAL_SETTINGS.contains(&long)));
    let key = |arg: &clap::Arg| {
        let name = arg.get_long().filter(|long| !NO_SETTINGS.contains(long))?.to_owned();
        let kind = match arg.get_action() {
            clap::ArgAction::SetTrue => Kind::Switch,
            clap::ArgAction::Append => Kind::Many,
            _ => Kind::One,
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        Some(Key { name, id: arg.get_id().to_string(), kind, help })
    };
    own.chain(shared).filter_map(key).collect()
}

/// The tree of commands, in which each flag of the daemon has a variable.
fn command() -> Command {
    Cli::command().mut_subcommand("daemon", |daemon| {
        daemon.mut_args(|arg| match arg.get_long().filter(|long| !NO_SETTINGS.contains(long)) {
            Some(long) => {
                let variable = variable(long);
                let switch = matches!(arg.get_action(), clap::ArgAction::SetTrue);
                let arg = arg.env(variable).hide_env(true);
                // A variable says 1, yes or on as well as true.
                if switch { arg.value_parser(clap::builder::BoolishValueParser::new()) } else { arg }
            }
            None => arg,
        })
    })
}

fn variable(name: &str) -> String {
    format!("{VARIABLE}{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// Why a command line was not understood.
pub(crate) enum Unparsed {
    /// As clap says it; also `--help` and `--version`.
    Clap(clap::Error),
    /// The configuration file is wrong.
    Config(CliError),
}

impl From<clap::Error> for Unparsed {
    fn from(error: clap::Error) -> Self {
        Self::Clap(error)
    }
}

impl From<CliError> for Unparsed {
    fn from(error: CliError) -> Self {
        Self::Config(error)
    }
}

/// Reads a command line, and for the daemon what belongs to it.
pub(crate) fn parse(argv: &[OsString]) -> Result<Cli, Unparsed> {
    parse_with(argv, None)
}

/// The same, with `config` in place of the file that it would read.
pub(super) fn parse_with(argv: &[OsString], config: Option<&Path>) -> Result<Cli, Unparsed> {
    let mut strict = command();
    // What is missing may be in the file.
    let first = strict.clone().ignore_errors(true).try_get_matches_from(argv)?;
    let Some(("daemon", daemon)) = first.subcommand() else {
        let matches = strict.try_get_matches_from_mut(argv)?;
        return Ok(Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut strict))?);
    };
    let mut global = Global::from_arg_matches(&first)?;
    if let Some(config) = config {
        global.config = Some(config.to_owned());
    }
    let layers = Layers::read(&global, daemon)?;
    let argv: Vec<OsString> = argv.iter().cloned().chain(layers.arguments()).collect();
    let matches = strict.try_get_matches_from_mut(argv)?;
    let mut cli = Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut strict))?;
    if let args::Command::Daemon(args) = &mut cli.command {
        args.effective = layers.settings(matches.subcommand().map_or(daemon, |(_, daemon)| daemon));
    }
    Ok(cli)
}

/// What a daemon that is started with no flags has.
pub(crate) fn effective(global: &Global) -> Result<(PathBuf, Vec<Setting>), CliError> {
    let mut command = command();
    let argv =
        |more: Vec<OsString>| ["quelea", "daemon"].into_iter().map(OsString::from).chain(more).collect::<Vec<_>>();
    let wrong = |error: &clap::Error| super::super::usage_error(error);
    let first = command.clone().ignore_errors(true).try_get_matches_from(argv(Vec::new())).map_err(|e| wrong(&e))?;
    let daemon = first.subcommand_matches("daemon").unwrap_or(&first);
    let layers = Layers::read(global, daemon)?;
    let matches = command.try_get_matches_from_mut(argv(layers.arguments())).map_err(|e| wrong(&e))?;
    let settings = layers.settings(matches.subcommand_matches("daemon").unwrap_or(daemon));
    Ok((layers.path, settings))
}

/// What stands behind the flags.
struct Layers {
    path: PathBuf,
    keys: Vec<Key>,
    /// What the file and the profile set and no flag nor variable does.
    added: Vec<Setting>,
}

impl Layers {
    fn read(global: &Global, daemon: &ArgMatches) -> Result<Self, CliError> {
        let keys = keys();
        let path = match &global.config {
            Some(path) => path.clone(),
            None => path_of(global, &home(global)?),
        };
        let entries = file::read(&path, &keys)?;
        if entries.is_none() && global.config.is_some() {
            let error = CliError::new(ErrorCode::Usage, format!("there is no configuration file {}", path.display()));
            return Err(error.hint("'quelea init' makes one in the data directory"));
        }
        let entries = entries.unwrap_or_default();
        for entry in &entries {
            if let Some(key) = keys.iter().find(|key| key.name == entry.key) {
                check(key, &entry.values).map_err(|what| {
                    CliError::new(ErrorCode::Usage, format!("{}:{}: {what}", path.display(), entry.line))
                })?;
            }
        }
        let given =
            |key: &Key| matches!(source(daemon, key), Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        let in_file = |name: &str| entries.iter().find(|entry| entry.key == name);
        let profile = daemon
            .get_raw("profile")
            .and_then(|mut raw| raw.next())
            .map(|raw| raw.to_string_lossy().into_owned())
            .or_else(|| in_file("profile").and_then(|entry| entry.values.first().cloned()));
        let profile = profile.and_then(|name| ProfileArg::from_str(&name, false).ok());
        let mut added = Vec::new();
        for key in keys.iter().filter(|key| !given(key)) {
            let of_profile = profile.and_then(|profile| {
                let value = profile::settings(profile).iter().find(|(name, _)| *name == key.name)?.1;
                Some((vec![value.to_owned()], Origin::Profile(name_of(profile))))
            });
            let of_file = in_file(&key.name).map(|entry| (entry.values.clone(), Origin::File(entry.line)));
            if let Some((values, origin)) = of_file.or(of_profile) {
                added.push(key.set(values, origin));
            }
        }
        Ok(Self { path, keys, added })
    }

    /// The flags that say the same.
    fn arguments(&self) -> Vec<OsString> {
        self.added.iter().flat_map(|setting| spelled(&setting.key, setting.kind, &setting.values)).collect()
    }

    fn settings(&self, daemon: &ArgMatches) -> Vec<Setting> {
        let setting = |key: &Key| {
            if let Some(added) = self.added.iter().find(|added| added.key == key.name) {
                return added.clone();
            }
            let origin = match source(daemon, key) {
                Some(ValueSource::CommandLine) => Origin::Flag,
                Some(ValueSource::EnvVariable) => Origin::Environment(variable(&key.name)),
                _ => Origin::Default,
            };
            let raw = daemon.try_get_raw(&key.id).ok().flatten().into_iter().flatten();
            let mut values: Vec<String> = raw.map(|value| value.to_string_lossy().into_owned()).collect();
            if key.kind == Kind::Switch {
                values = vec![daemon.try_get_one::<bool>(&key.id).ok().flatten().copied().unwrap_or(false).to_string()];
            }
            key.set(values, origin)
        };
        self.keys.iter().map(setting).collect()
    }
}

fn source(daemon: &ArgMatches, key: &Key) -> Option<ValueSource> {
    daemon.try_contains_id(&key.id).ok()?;
    daemon.value_source(&key.id)
}

pub(super) fn name_of(profile: ProfileArg) -> &'static str {
    match profile {
        ProfileArg::Lan => "lan",
        ProfileArg::Public => "public",
        ProfileArg::Dev => "dev",
        ProfileArg::Inference => "inference",
        ProfileArg::Storage => "storage",
    }
}

/// A setting as flags.
fn spelled(name: &str, kind: Kind, values: &[String]) -> Vec<OsString> {
    match kind {
        Kind::Switch => values.iter().filter(|on| *on == "true").map(|_| format!("--{name}").into()).collect(),
        _ => values.iter().map(|value| format!("--{name}={value}").into()).collect(),
    }
}

/// Whether a daemon would take these values. What else it needs beside them is looked at when all are known.
pub(super) fn check(key: &Key, values: &[String]) -> Result<(), String> {
    use clap::error::ErrorKind::{ArgumentConflict, MissingRequiredArgument};
    if key.kind == Kind::Switch {
        return match values {
            [one] if one == "true" || one == "false" => Ok(()),
            _ => Err(format!("{}: it is true or false", key.name)),
        };
    }
    let argv = ["quelea", "daemon"].into_iter().map(OsString::from).chain(spelled(&key.name, key.kind, values));
    match Cli::command().try_get_matches_from(argv) {
        Err(error) if !matches!(error.kind(), ArgumentConflict | MissingRequiredArgument) => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            Err(first.trim_start_matches("error: ").to_owned())
        }
        _ => Ok(()),
    }
}

/// The setting of this name.
pub(super) fn key(name: &str) -> Result<Key, CliError> {
    let keys = keys();
    let wanted = name.trim_start_matches("--");
    keys.iter().find(|key| key.name == wanted).cloned().ok_or_else(|| {
        let error = CliError::new(ErrorCode::Usage, format!("there is no setting {name:?}")).exit(Exit::NotFound);
        error.hint(file::nearest(wanted, &keys))
    })
}

impl Setting {
    /// Where it comes from, in words.
    pub(super) fn from(&self, path: &Path) -> String {
        match &self.origin {
            Origin::Default => "default".to_owned(),
            Origin::Profile(name) => format!("profile {name}"),
            Origin::File(line) => format!("{}:{line}", path.display()),
            Origin::Environment(variable) => format!("environment {variable}"),
            Origin::Flag => "command line".into(),
        }
    }

    /// A line of a configuration file; a remark where nothing is set.
    fn line(&self) -> String {
        let quoted = |text: &String| match text.parse::<i64>() {
            Ok(number) if number.to_string() == *text => text.clone(),
            _ => toml_edit::Value::from(text.as_str()).to_string(),
        };
        match (self.kind, self.values.as_slice()) {
            (_, []) => format!("# {} =", self.key),
            (Kind::Switch, [on, ..]) => format!("{} = {on}", self.key),
            (Kind::Many, all) => format!("{} = [{}]", self.key, all.iter().map(quoted).collect::<Vec<_>>().join(", ")),
            (Kind::One, [value, ..]) => format!("{} = {}", self.key, quoted(value)),
        }
    }
}

/// Settings as the API shows them.
pub(crate) fn items(path: &Path, settings: &[Setting]) -> Vec<ConfigItem> {
    let item = |setting: &Setting| ConfigItem {
        key: setting.key.clone(),
        values: setting.values.clone(),
        origin: setting.from(path),
        help: setting.help.clone(),
    };
    settings.iter().map(item).collect()
}

/// Settings for people or programs.
pub(crate) fn shown(global: &Global, path: &Path, settings: &[Setting], origin: bool) -> String {
    if global.json {
        let items = items(path, settings).iter().map(|item| json!(item)).collect();
        let mut document = shape::list("quelea.config/v1", items);
        document["file"] = json!(path.exists().then_some(path));
        return document.to_string();
    }
    if !origin {
        return settings.iter().map(Setting::line).collect::<Vec<_>>().join("\n");
    }
    let mut table = Listing::new(["SETTING", "VALUE", "FROM"]);
    for setting in settings {
        let value = if setting.values.is_empty() { "-".to_owned() } else { setting.values.join(", ") };
        table.add_row([setting.key.clone(), value, setting.from(path)]);
    }
    table.to_string()
}
