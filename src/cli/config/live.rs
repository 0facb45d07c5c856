//! The configuration file of a daemon that runs, for its API: what may be changed from there, and how.

use std::{
    ffi::OsString,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use clap::CommandFactory as _;
use quelea_wire::ErrorCode;

use super::{
    file,
    layers::{self, Key, Kind, Origin, Setting, Unparsed},
};
use crate::{
    api::config::{ConfigFile, Editable, SettingKind},
    cli::{
        args::{Cli, Command},
        daemon,
        exit::CliError,
        usage_error,
    },
    home::Home,
    inference::InferError,
};

/// What may be changed over the API: how much this node gives and for what price, whom it knows, and how it is reached. Nothing
/// that names a program, a file, a listener or who may come in: whoever has stolen a session would else have the machine.
const OPEN: [&str; 35] = [
    "bootstrap",
    "layers",
    "memory",
    "ends",
    "announce-ttl",
    "price",
    "price-prefill",
    "exposure",
    "service",
    "llm-local-memory",
    "llm-local-idle",
    "debt-term",
    "debt-grace",
    "audit",
    "device",
    "threads",
    "kv",
    "replay-memory",
    "replay-disk",
    "models-quota",
    "upload-limit",
    "relay-server",
    "relay-circuits",
    "relay-circuit-bytes",
    "relay-circuit-time",
    "relay-allow",
    "external",
    "upnp",
    "limit-local",
    "rendezvous",
    "rendezvous-server",
    "mdns",
    "kad-mode",
    "trace-parents-from",
    "log-format",
];

/// Most values of a setting, and their bytes all together.
const VALUES_MAX: usize = 256;
const BYTES_MAX: usize = 64 << 10;

/// The file that this daemon has read, or would have.
pub(in crate::cli) struct Live {
    argv: Vec<OsString>,
    path: PathBuf,
    home: Home,
    /// Settings that flags or variables decide, whatever the file says.
    decided: Vec<(String, String)>,
    /// One change after the other.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Live {
    /// The file of the daemon that was started with the command line `argv` and has these settings.
    pub(in crate::cli) fn new(argv: Vec<OsString>, path: PathBuf, home: Home, settings: &[Setting]) -> Self {
        let decided = settings
            .iter()
            .filter(|setting| matches!(setting.origin, Origin::Flag | Origin::Environment(_)))
            .map(|setting| (setting.key.clone(), setting.from(&path)))
            .collect();
        Self { argv, path, home, decided, turn: Mutex::default() }
    }

    /// Whether a setting may be changed here.
    fn open(&self, key: &Key) -> Result<(), CliError> {
        if !OPEN.contains(&key.name.as_str()) {
            let message = format!("{} is not changed over the API", key.name);
            return Err(CliError::new(ErrorCode::Usage, message)
                .hint(format!("'quelea config set {} …' does it, on the node's machine", key.name)));
        }
        if let Some((_, origin)) = self.decided.iter().find(|(name, _)| *name == key.name) {
            let message = format!("{} comes from the {origin}, which wins over the file", key.name);
            return Err(CliError::new(ErrorCode::Usage, message).hint("take it away there, and start the node again"));
        }
        Ok(())
    }

    /// Whether this daemon would start with the file `path` in place of its own.
    fn would_start(&self, path: &Path) -> Result<(), CliError> {
        let cli = layers::parse_with(&self.argv, Some(path)).map_err(|error| match error {
            Unparsed::Clap(error) => usage_error(&error),
            Unparsed::Config(error) => error,
        })?;
        match cli.command {
            Command::Daemon(args) => daemon::settings(self.home.clone(), *args).map(drop),
            _ => Ok(()),
        }
    }

    fn change(&self, name: &str, values: Option<&[String]>) -> Result<(), CliError> {
        let key = layers::key(name)?;
        self.open(&key)?;
        if let Some(values) = values {
            let bytes: usize = values.iter().map(String::len).sum();
            if values.is_empty() || values.len() > VALUES_MAX || bytes > BYTES_MAX {
                let message = format!("{name}: a setting has 1 to {VALUES_MAX} values, and {BYTES_MAX} bytes at most");
                return Err(CliError::new(ErrorCode::Usage, message));
            }
            layers::check(&key, values).map_err(|what| CliError::new(ErrorCode::Usage, what))?;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let text = file::changed(&self.path, &key, values)?;
        let failed = |e: std::io::Error| CliError::new(ErrorCode::StorageFailed, format!("cannot make a copy: {e}"));
        let mut copy = tempfile::Builder::new().suffix(".toml").tempfile().map_err(failed)?;
        copy.write_all(text.as_bytes()).and_then(|()| copy.flush()).map_err(failed)?;
        self.would_start(copy.path()).map_err(|mut error| {
            // The copy is gone when somebody reads this.
            error.message = error.message.replace(&*copy.path().to_string_lossy(), &self.path.to_string_lossy());
            error
        })?;
        file::write(&self.path, &text)
    }
}

impl ConfigFile for Live {
    fn path(&self) -> &Path {
        &self.path
    }

    fn editable(&self) -> Result<Vec<Editable>, InferError> {
        let keys = layers::keys();
        let entries = file::read(&self.path, &keys).map_err(told)?.unwrap_or_default();
        let command = Cli::command();
        let daemon = command.find_subcommand("daemon");
        let editable = |key: &Key| {
            self.open(key).ok()?;
            let args = daemon.into_iter().flat_map(clap::Command::get_arguments).chain(command.get_arguments());
            let choices = args
                .filter(|arg| arg.get_long() == Some(key.name.as_str()))
                .flat_map(|arg| arg.get_possible_values())
                .filter(|_| key.kind == Kind::One)
                .map(|value| value.get_name().to_owned())
                .collect();
            let kind = match key.kind {
                Kind::Switch => SettingKind::Switch,
                Kind::One => SettingKind::One,
                Kind::Many => SettingKind::Many,
            };
            let written = entries.iter().find(|entry| entry.key == key.name).map(|entry| entry.values.clone());
            Some(Editable { key: key.name.clone(), kind, choices, written })
        };
        Ok(keys.iter().filter_map(editable).collect())
    }

    fn set(&self, key: &str, values: Option<&[String]>) -> Result<(), InferError> {
        self.change(key, values).map_err(told)
    }
}

/// As the API says it.
fn told(error: CliError) -> InferError {
    let told = InferError::new(error.code, error.message);
    match error.hint {
        Some(hint) => told.hint(hint),
        None => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(dir: &Path, more: &[&str]) -> Live {
        let home = Home::new(Some(dir.to_owned())).unwrap();
        let argv: Vec<OsString> = ["quelea", "daemon", "--data-dir"]
            .into_iter()
            .map(OsString::from)
            .chain([dir.as_os_str().to_owned()])
            .chain(more.iter().map(OsString::from))
            .collect();
        let Ok(cli) = layers::parse(&argv) else { panic!("a right command line") };
        let Command::Daemon(args) = cli.command else { panic!("a daemon") };
        Live::new(argv, dir.join("config.toml"), home, &args.effective)
    }

    fn values(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn all_that_is_open_is_a_setting() {
        for name in OPEN {
            assert!(layers::key(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_change_is_written_when_the_daemon_would_start_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let live = live(dir.path(), &["--model", "demo"]);
        let text = || std::fs::read_to_string(dir.path().join("config.toml")).unwrap_or_default();
        live.set("price", Some(&values(&["250"]))).unwrap();
        // That --model is a flag of this daemon is what makes this right.
        live.set("layers", Some(&values(&["0..3"]))).unwrap();
        live.set("mdns", Some(&values(&["true"]))).unwrap();
        assert_eq!(text(), "price = 250\nlayers = \"0..3\"\nmdns = true\n");
        live.set("price", None).unwrap();
        assert_eq!(text(), "layers = \"0..3\"\nmdns = true\n");
        let written = |name: &str| live.editable().unwrap().into_iter().find(|one| one.key == name).unwrap();
        assert_eq!(written("layers").written, Some(values(&["0..3"])));
        assert_eq!((written("price").written, written("mdns").kind), (None, SettingKind::Switch));
        assert_eq!(written("kad-mode").choices, ["auto", "server", "client"]);
    }

    #[test]
    fn what_is_wrong_or_not_open_leaves_the_file_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let live = live(dir.path(), &["--threads", "2"]);
        let refused = |name: &str, given: &[&str]| {
            let error = live.set(name, Some(&values(given))).unwrap_err();
            assert!(!dir.path().join("config.toml").exists(), "{name}");
            error.message
        };
        assert!(refused("memory", &["2X"]).contains("--memory"));
        assert!(refused("price", &["1", "2"]).contains("price"));
        assert!(refused("mdns", &["perhaps"]).contains("true or false"));
        assert!(refused("layers", &["0..3"]).contains("--model"), "what it needs beside it is missing");
        assert!(refused("threads", &["1"]).contains("command line"));
        assert!(refused("pirce", &["1"]).contains("no setting"));
        for closed in
            ["insecure-no-auth", "identity", "api-listen", "llm-local-program", "otlp-endpoint", "masking-key"]
        {
            assert!(refused(closed, &["x"]).contains("not changed over the API"), "{closed}");
        }
        assert!(refused("bootstrap", &["x"; 300]).contains("256"));
    }
}
