//! `quelea context …`: names for nodes elsewhere, each an address of the API and the file with its token.
//!
//! They lie in `contexts.json` of the user's configuration directory, not in a node's: they are the person's. A command goes
//! by `--api` or `--data-dir` where it has one, else by `--context`, else by the context in use.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use quelea_wire::ErrorCode;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    args::{ContextCommand, Global},
    exit::{CliError, Exit},
    output::{data_line, note},
    table::Listing,
};
use crate::api::shape;

/// The longest file that is read, and the most contexts.
const LENGTH_MAX: u64 = 1 << 20;
const CONTEXTS_MAX: usize = 256;

/// The longest name.
const NAME_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    api: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contexts {
    schema: String,
    #[serde(default)]
    current: Option<String>,
    contexts: BTreeMap<String, Place>,
}

const SCHEMA: &str = "quelea.contexts/v1";

impl Contexts {
    fn read(path: &Path) -> Result<Self, CliError> {
        let wrong = |what: &dyn std::fmt::Display| {
            CliError::new(ErrorCode::Usage, format!("{}: {what}", path.display())).hint("mend the file, or remove it")
        };
        match std::fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(wrong(&e)),
            Ok(meta) if meta.len() > LENGTH_MAX => return Err(wrong(&"it is longer than 1 MiB")),
            Ok(_) => {}
        }
        let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
        let contexts: Self = serde_json::from_str(&text).map_err(|e| wrong(&e))?;
        if contexts.schema != SCHEMA { Err(wrong(&format!("its schema is not {SCHEMA}"))) } else { Ok(contexts) }
    }

    /// In place as a whole, for this user only.
    fn write(&mut self, path: &Path) -> Result<(), CliError> {
        let failed = |e: &dyn std::fmt::Display| {
            CliError::new(ErrorCode::StorageFailed, format!("cannot write {}: {e}", path.display()))
        };
        SCHEMA.clone_into(&mut self.schema);
        let dir = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).map_err(|e| failed(&e))?;
        let mut new = tempfile::NamedTempFile::new_in(dir).map_err(|e| failed(&e))?;
        let text = serde_json::to_string_pretty(self).map_err(|e| failed(&e))?;
        writeln!(new, "{text}").and_then(|()| new.as_file().sync_all()).map_err(|e| failed(&e))?;
        new.persist(path).map_err(|e| failed(&e.error))?;
        Ok(())
    }

    fn get(&self, name: &str) -> Result<&Place, CliError> {
        self.contexts.get(name).ok_or_else(|| {
            CliError::new(ErrorCode::NotFound, format!("there is no context {name:?}"))
                .hint("'quelea context ls' shows all")
        })
    }
}

/// Where the contexts are: the XDG base directory rules; relative or empty values count as unset.
fn path() -> Result<PathBuf, CliError> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let dir = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    dir.map(|dir| dir.join("quelea").join("contexts.json")).ok_or_else(|| {
        let message = "cannot tell where contexts are kept: neither XDG_CONFIG_HOME nor HOME is set";
        CliError::new(ErrorCode::HomeUnusable, message).hint("--api names a node without one")
    })
}

/// The flags as a context makes them: that of `--context`, or the one in use where nothing else says which node is meant.
pub(super) fn applied(global: Global) -> Result<Global, CliError> {
    if global.api.is_some() || global.data_dir.is_some() {
        return Ok(global);
    }
    let path = match (path(), &global.context) {
        (Ok(path), _) => path,
        (Err(error), Some(_)) => return Err(error),
        (Err(_), None) => return Ok(global),
    };
    let contexts = Contexts::read(&path)?;
    let Some(name) = global.context.as_ref().or(contexts.current.as_ref()) else { return Ok(global) };
    let place = contexts.get(name)?.clone();
    let api_token_file = global.api_token_file.clone().or(place.token_file);
    Ok(Global { api: Some(place.api), api_token_file, ..global })
}

pub(super) fn run(global: &Global, command: ContextCommand) -> Result<ExitCode, CliError> {
    let path = path()?;
    let mut contexts = Contexts::read(&path)?;
    match command {
        ContextCommand::Ls => list(global, &contexts)?,
        ContextCommand::Add { name, at, token_file } => {
            let place = checked(&contexts, &name, at, token_file)?;
            contexts.contexts.insert(name.clone(), place);
            contexts.write(&path)?;
            told(global, "quelea.context.add/v1", &name, &format!("'quelea --context {name} status' asks it"))?;
        }
        ContextCommand::Use { name: Some(name) } => {
            contexts.get(&name)?;
            contexts.current = Some(name.clone());
            contexts.write(&path)?;
            told(global, "quelea.context.use/v1", &name, "commands without --api and --data-dir go there now")?;
        }
        ContextCommand::Use { name: None } => {
            contexts.current = None;
            contexts.write(&path)?;
            if global.json {
                data_line(&json!({ "schema": "quelea.context.use/v1", "name": null }).to_string())?;
            } else {
                note("commands go to this machine's own node again");
            }
        }
        ContextCommand::Rm { name } => {
            contexts.get(&name)?;
            contexts.contexts.remove(&name);
            contexts.current = contexts.current.filter(|current| *current != name);
            contexts.write(&path)?;
            told(global, "quelea.context.rm/v1", &name, "gone; the file with the token is left")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn checked(contexts: &Contexts, name: &str, api: String, token_file: Option<PathBuf>) -> Result<Place, CliError> {
    let usage = |message: String| CliError::new(ErrorCode::Usage, message);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
        return Err(usage(format!("{name:?} is no name: 1 to {NAME_MAX} letters, digits, '-', '_' and '.'")));
    }
    if contexts.contexts.contains_key(name) {
        let error = usage(format!("there is a context {name:?} already")).exit(Exit::Failed);
        return Err(error.hint(format!("'quelea context rm {name}' takes it away")));
    }
    if contexts.contexts.len() >= CONTEXTS_MAX {
        return Err(usage(format!("there are {CONTEXTS_MAX} contexts, and no more fit")));
    }
    if !api.starts_with("http://") && !api.starts_with("unix:/") {
        return Err(usage(format!("--api {api:?}: write it like http://192.0.2.7:8469 or unix:/path/to/quelea.sock")));
    }
    if api.starts_with("http://") && token_file.is_none() {
        let error = usage("--token-file is missing: over HTTP a node asks for a token".into());
        return Err(error.hint("this machine's own is for its own node: 'quelea token create' makes one there"));
    }
    // As it is meant now, wherever a command is run later.
    let token_file = token_file.map(|file| std::path::absolute(&file).unwrap_or(file));
    if let Some(file) = &token_file {
        crate::identity::load_token(file).map_err(|e| CliError::new(ErrorCode::Unauthorized, e.to_string()))?;
    }
    Ok(Place { api, token_file })
}

fn list(global: &Global, contexts: &Contexts) -> Result<(), CliError> {
    let current = |name: &String| contexts.current.as_ref() == Some(name);
    if global.json {
        let item = |(name, place): (&String, &Place)| json!({ "name": name, "api": place.api, "token_file": place.token_file, "current": current(name) });
        return data_line(&shape::list(SCHEMA, contexts.contexts.iter().map(item).collect()).to_string());
    }
    if contexts.contexts.is_empty() {
        note("there is none; 'quelea context add NAME --at URL --token-file FILE' makes one");
        return Ok(());
    }
    let mut table = Listing::new(["", "NAME", "API", "TOKEN"]);
    for (name, place) in &contexts.contexts {
        let token = place.token_file.as_ref().map_or("-".to_owned(), |file| file.display().to_string());
        table.add_row([
            if current(name) { "*".to_owned() } else { String::new() },
            name.clone(),
            place.api.clone(),
            token,
        ]);
    }
    data_line(&table.to_string())
}

fn told(global: &Global, schema: &str, name: &str, what: &str) -> Result<(), CliError> {
    if global.json {
        return data_line(&json!({ "schema": schema, "name": name }).to_string());
    }
    note(what);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_kept_as_they_were_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/contexts.json");
        let mut contexts = Contexts::read(&path).unwrap();
        let place = checked(&contexts, "lab", "unix:/srv/quelea.sock".into(), None).unwrap();
        contexts.contexts.insert("lab".into(), place);
        contexts.current = Some("lab".into());
        contexts.write(&path).unwrap();
        assert_eq!(Contexts::read(&path).unwrap(), contexts);
        assert_eq!(contexts.get("other").unwrap_err().code, ErrorCode::NotFound);
        std::fs::write(&path, r#"{"schema": "quelea.contexts/v2", "contexts": {}}"#).unwrap();
        assert!(Contexts::read(&path).unwrap_err().message.contains("schema"));
        std::fs::write(&path, "{").unwrap();
        assert!(Contexts::read(&path).is_err());
    }

    #[test]
    fn names_and_addresses_that_cannot_be_meant_are_refused() {
        let mut contexts = Contexts::default();
        let add = |contexts: &Contexts, name: &str, api: &str| checked(contexts, name, api.into(), None);
        for name in ["", "a b", "ä", "../x", &"n".repeat(NAME_MAX + 1)] {
            assert!(add(&contexts, name, "unix:/run/quelea.sock").is_err(), "{name}");
        }
        for api in ["https://192.0.2.7", "192.0.2.7:1", "unix:sock", "", "http://192.0.2.7:1"] {
            assert!(add(&contexts, "a", api).is_err(), "{api}");
        }
        contexts.contexts.insert("a".into(), add(&contexts, "a", "unix:/run/quelea.sock").unwrap());
        assert!(add(&contexts, "a", "unix:/run/quelea.sock").is_err(), "taken");
    }
}
