//! `quelea config edit`: an editor on a copy, which takes the file's place once a daemon would take it.

use std::{io::Write as _, path::Path, process::Command};

use quelea_wire::ErrorCode;
use serde_json::json;

use super::{file, layers, path_of};
use crate::cli::{
    args::Global,
    client::home,
    exit::{CliError, Exit},
    output::{asks, confirmed, data_line, note},
};

/// What is run where neither VISUAL nor EDITOR says.
const EDITOR: &str = "vi";

pub(super) fn edit(global: &Global) -> Result<(), CliError> {
    let path = path_of(global, &home(global)?);
    let before = file::text_of(&path)?.unwrap_or_default();
    let failed =
        |e: &dyn std::fmt::Display| CliError::new(ErrorCode::StorageFailed, format!("cannot make a copy: {e}"));
    // Editors go by a name's end.
    let mut copy = tempfile::Builder::new().prefix("quelea-").suffix(".toml").tempfile().map_err(|e| failed(&e))?;
    copy.write_all(before.as_bytes()).and_then(|()| copy.flush()).map_err(|e| failed(&e))?;
    let after = loop {
        run(copy.path())?;
        let after = file::text_of(copy.path())?.unwrap_or_default();
        if after == before {
            note("nothing was changed");
            return shown(global, &path, false);
        }
        let Err(error) = layers::effective(&Global { config: Some(copy.path().to_owned()), ..global.clone() }) else {
            break after;
        };
        if asks(global) {
            note(&format!("error: {}", error.message));
            if confirmed(global, "edit it again?").is_ok() {
                continue;
            }
        }
        let kept = copy.keep().map_err(|e| failed(&e))?.1;
        return Err(error.hint(format!("{} is as it was; what was written is in {}", path.display(), kept.display())));
    };
    if file::text_of(&path)?.unwrap_or_default() != before {
        let kept = copy.keep().map_err(|e| failed(&e))?.1;
        let error =
            CliError::new(ErrorCode::Usage, format!("{} was changed by somebody else meanwhile", path.display()));
        return Err(error.exit(Exit::Failed).hint(format!("what was written is in {}", kept.display())));
    }
    file::write(&path, &after)?;
    note(&format!("written to {}; a daemon reads it when it starts", path.display()));
    shown(global, &path, true)
}

fn shown(global: &Global, path: &Path, changed: bool) -> Result<(), CliError> {
    if !global.json {
        return Ok(());
    }
    data_line(&json!({ "schema": "quelea.config.edit/v1", "path": path, "changed": changed }).to_string())
}

/// Runs the editor until it ends.
fn run(file: &Path) -> Result<(), CliError> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let editor = set("VISUAL").or_else(|| set("EDITOR")).unwrap_or_else(|| EDITOR.to_owned());
    let failed = |why: String| {
        CliError::new(ErrorCode::Usage, format!("the editor {editor:?} {why}"))
            .exit(Exit::Failed)
            .hint("VISUAL or EDITOR says which is used; 'quelea config set' needs none")
    };
    let words = shlex::split(&editor).filter(|words| !words.is_empty());
    let words = words.ok_or_else(|| failed("is not understood: a quote has no end".into()))?;
    let (program, args) = words.split_first().ok_or_else(|| failed("is empty".into()))?;
    let ended = Command::new(program).args(args).arg(file).status();
    match ended.map_err(|e| failed(format!("cannot be run: {e}")))? {
        status if status.success() => Ok(()),
        status => Err(failed(format!("ended with {status}; nothing was changed"))),
    }
}
