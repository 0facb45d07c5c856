//! `quelea store`: copies of what the node keeps on disk.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use quelea_wire::ErrorCode;
use serde_json::{Value, json};

use super::{
    args::{Global, StoreCommand},
    client::{Daemon, home, unusable},
    exit::CliError,
    output::{confirmed, data_line},
};
use crate::{api::store::explain, home::LockError, storage};

pub(super) async fn run(global: &Global, command: StoreCommand) -> Result<ExitCode, CliError> {
    match command {
        StoreCommand::Backup { file, db } => backup(global, &file, db).await,
        StoreCommand::Restore { file, db } => restore(global, file, db).await,
    }
    .map(|()| ExitCode::SUCCESS)
}

async fn backup(global: &Global, file: &Path, db: Option<PathBuf>) -> Result<(), CliError> {
    let file = std::path::absolute(file).map_err(unusable)?;
    let rest = if global.api.is_some() { None } else { at_rest(global, db)? };
    let answer: Value = match rest {
        Some((database, lock)) => {
            let to = file.clone();
            let copied = tokio::task::spawn_blocking(move || storage::copy(&database, &to)).await;
            drop(lock);
            let bytes = copied.map_err(unusable)?.map_err(|e| CliError::from(explain(&e)))?;
            json!({ "schema": "quelea.store_backup/v1", "path": file, "bytes": bytes })
        }
        // The daemon has the file open; it copies between two writes.
        None => {
            let answer = Daemon::find(global)?.post("/api/v1/store/backup", &json!({ "path": file })).await?;
            answer.json().await.map_err(|e| CliError::new(ErrorCode::DaemonUnreachable, e.to_string()))?
        }
    };
    if global.json {
        return data_line(&answer.to_string());
    }
    data_line(&format!("{} bytes in {}", answer["bytes"], file.display()))
}

async fn restore(global: &Global, file: PathBuf, db: Option<PathBuf>) -> Result<(), CliError> {
    // A copy may be all that is left: the directory is made where there is none.
    crate::home::Home::new(Some(home(global)?.dir().to_owned())).map_err(unusable)?;
    let Some((database, lock)) = at_rest(global, db)? else {
        return Err(CliError::new(ErrorCode::Usage, "a daemon runs on this data directory")
            .hint("stop it, restore, and start it again"));
    };
    confirmed(global, &format!("put {} in the place of {}?", file.display(), database.display()))?;
    let (from, to) = (file.clone(), database.clone());
    let restored = tokio::task::spawn_blocking(move || storage::restore(&from, &to)).await;
    drop(lock);
    let old = restored.map_err(unusable)?.map_err(|e| CliError::from(explain(&e)))?;
    if global.json {
        let answer = json!({ "schema": "quelea.store_restore/v1", "path": database, "kept": old });
        return data_line(&answer.to_string());
    }
    let kept = old.map_or(String::new(), |old| format!("; what was there is kept as {}", old.display()));
    data_line(&format!("{} is {} again{kept}", database.display(), file.display()))
}

/// The database and the lock on its directory, unless a daemon has it.
fn at_rest(global: &Global, db: Option<PathBuf>) -> Result<Option<(PathBuf, crate::home::HomeLock)>, CliError> {
    let home = home(global)?;
    match home.lock() {
        Ok(lock) => Ok(Some((db.unwrap_or_else(|| home.database()), lock))),
        Err(LockError::Held { .. } | LockError::HeldByUnknown(_)) => Ok(None),
        Err(error) => Err(unusable(error)),
    }
}
