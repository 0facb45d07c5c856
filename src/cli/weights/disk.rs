//! `quelea model list|rm|import|ps`: models on disk and in memory.

use std::path::{Path, PathBuf};

use quelea_engine::{Hparams, Manifest, Outline};
use quelea_wire::{ErrorCode, ModelId};
use serde_json::{Value, json};

use crate::{
    api::{
        models::{described, not_here},
        shape,
    },
    cli::{
        args::Global,
        client::{Daemon, unusable},
        exit::CliError,
        output::{confirmed, data_line, note, printable},
        table::Listing,
    },
    home::Home,
    inference::models::{open_gguf, unusable as bad_model},
    weights::{
        fetch::blocking,
        store::{Kept, Store},
    },
};

/// Digits of an id that say which model is meant, where a file may be meant as well.
const SHORTEST_ID: usize = 6;

/// Digits of an id where there is no room for all.
const SHOWN_DIGITS: usize = 12;

pub(super) fn store(global: &Global, quota: Option<u64>) -> Result<Store, CliError> {
    Ok(Store::new(Home::new(global.data_dir.clone()).map_err(unusable)?.models(), quota))
}

/// One model, as commands show what they made.
pub(super) fn show(global: &Global, model: &Value, schema: &str) -> Result<(), CliError> {
    if global.json {
        return data_line(&json!({ "schema": schema, "model": model }).to_string());
    }
    data_line(&table(std::slice::from_ref(model)))
}

/// Hashes a model's file.
fn outline_of(path: &str, shown: &str) -> Result<Outline, CliError> {
    let gguf = open_gguf(path)?;
    Hparams::from_gguf(&gguf).map_err(|e| bad_model(shown, &e))?;
    let outline = Outline::of(&gguf).map_err(|e| bad_model(shown, &e))?;
    // What is kept must be what it says it is after it has travelled.
    let told = outline.manifest().map_err(|e| bad_model(shown, &e))?;
    let own = Manifest::from_outline(&outline, &gguf).map_err(|e| bad_model(shown, &e))?;
    if told.id() == own.id() {
        Ok(outline)
    } else {
        Err(bad_model(shown, &"its metadata cannot be told to others").into())
    }
}

/// Copies a file into the store.
pub(super) async fn imported(store: Store, path: PathBuf) -> Result<Value, CliError> {
    let work = move || -> Result<Kept, CliError> {
        let shown = path.display().to_string();
        if !path.is_file() {
            let error =
                CliError::new(ErrorCode::NotFound, format!("there is no file {shown}, nor a model of that name"));
            return Err(error.hint("pass a model id of 64 hex digits, hf:OWNER/REPO, a URL, or a GGUF file"));
        }
        let outline = outline_of(&shown, &shown)?;
        let id = ModelId(outline.manifest().map_err(|e| bad_model(&shown, &e))?.id());
        if let Some(kept) = store.open(id)?.filter(Kept::is_whole) {
            return Ok(kept);
        }
        let _room = store.room_for(std::fs::metadata(&path).map_or(0, |meta| meta.len()))?;
        let io = |e: std::io::Error| CliError::new(ErrorCode::StorageFailed, format!("{shown}: {e}"));
        std::fs::create_dir_all(store.downloads()).map_err(io)?;
        let copy = tempfile::Builder::new().prefix("import-").tempfile_in(store.downloads()).map_err(io)?;
        std::fs::copy(&path, copy.path()).map_err(io)?;
        Ok(store.adopt(id, outline, copy.into_temp_path().as_ref())?)
    };
    Ok(described(&blocking(work).await??))
}

/// Moves a file that lies beside the store into it. One that is no model is thrown away: nothing else could be done with it.
pub(super) fn adopted(store: &Store, file: &Path, shown: &str) -> Result<Kept, CliError> {
    let outline = outline_of(&file.display().to_string(), shown).inspect_err(|_| drop(std::fs::remove_file(file)))?;
    let id = ModelId(outline.manifest().map_err(|e| bad_model(shown, &e))?.id());
    if let Some(kept) = store.open(id)?.filter(Kept::is_whole) {
        let _ = std::fs::remove_file(file);
        return Ok(kept);
    }
    Ok(store.adopt(id, outline, file)?)
}

pub(in crate::cli) async fn import(global: &Global, path: PathBuf, quota: Option<u64>) -> Result<(), CliError> {
    let model = imported(store(global, quota)?, path).await?;
    show(global, &model, "quelea.model_import/v1")
}

pub(in crate::cli) async fn list(global: &Global) -> Result<(), CliError> {
    let store = store(global, None)?;
    let all = blocking(move || {
        let open = |id| store.open(id).ok().flatten();
        store.ids().into_iter().filter_map(open).map(|kept| described(&kept)).collect::<Vec<_>>()
    });
    let items = all.await?;
    if global.json {
        return data_line(&shape::list("quelea.models/v1", items).to_string());
    }
    data_line(&table(&items))?;
    note(&format!("{} model(s)", items.len()));
    Ok(())
}

/// The model of the store that these digits begin.
fn named(store: &Store, id: &str) -> Result<ModelId, CliError> {
    let found: Vec<ModelId> = store.ids().into_iter().filter(|known| known.to_string().starts_with(id)).collect();
    match found.as_slice() {
        [only] if !id.is_empty() => Ok(*only),
        [] => Err(CliError::new(ErrorCode::NotFound, format!("no model on this disk begins with {id:?}"))
            .hint("'quelea model list' shows what is here")),
        _ => Err(CliError::new(ErrorCode::Usage, format!("{} models begin with {id:?}", found.len()))
            .hint("give more digits")),
    }
}

/// A model of the store, for commands that otherwise read files; nothing when `id` does not look like one.
pub(in crate::cli) fn kept(global: &Global, id: &str) -> Result<Option<Kept>, CliError> {
    let digits = id.len() >= SHORTEST_ID && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
    if !digits || Path::new(id).exists() {
        return Ok(None);
    }
    let store = store(global, None)?;
    let id = named(&store, id)?;
    Ok(store.open(id)?)
}

pub(in crate::cli) async fn rm(global: &Global, id: &str) -> Result<(), CliError> {
    let store = store(global, None)?;
    let id = named(&store, id)?;
    confirmed(global, &format!("remove model {id} from this disk?"))?;
    match Daemon::find(global) {
        Ok(daemon) => match daemon.post("/api/v1/models/rm", &json!({ "model": id.to_string() })).await {
            Err(error) if error.code == ErrorCode::DaemonUnreachable => at_rest(store, id).await?,
            answer => drop(answer?),
        },
        Err(_) => at_rest(store, id).await?,
    }
    if global.json {
        return data_line(&json!({ "schema": "quelea.model_rm/v1", "model": id.to_string() }).to_string());
    }
    data_line(&format!("removed {id}"))
}

async fn at_rest(store: Store, id: ModelId) -> Result<(), CliError> {
    if blocking(move || store.remove(id)).await?? { Ok(()) } else { Err(not_here(&id).into()) }
}

pub(in crate::cli) async fn ps(global: &Global) -> Result<(), CliError> {
    let answer = Daemon::find(global)?.get("/api/v1/models/ps").await?;
    if global.json {
        return data_line(&answer.to_string());
    }
    let mib = |value: &Value| format!("{} MiB", value.as_u64().unwrap_or(0) >> 20);
    let text = |value: &Value| printable(value.as_str().unwrap_or_default());
    let mut table = Listing::new(["MODEL", "NAME", "LAYERS", "WEIGHTS", "KV USED", "KV", "SESSIONS"]);
    let items = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
    for item in items {
        table.add_row([
            text(&item["model"]).chars().take(SHOWN_DIGITS).collect(),
            text(&item["name"]),
            text(&item["layers"]),
            mib(&item["weight_bytes"]),
            mib(&item["kv_used_bytes"]),
            mib(&item["kv_bytes"]),
            item["sessions"].to_string(),
        ]);
    }
    data_line(&table.to_string())?;
    note(&format!("{} span(s) loaded", items.len()));
    Ok(())
}

/// Models as a table.
fn table(models: &[Value]) -> String {
    let text = |value: &Value| printable(value.as_str().unwrap_or_default());
    let mut table = Listing::new(["MODEL", "NAME", "TYPE", "LAYERS", "ON DISK", "STATE"]);
    for model in models {
        let bytes = |key: &str| model[key].as_u64().unwrap_or(0);
        let layers: Vec<&str> = model["layers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let layers = if layers.is_empty() { "none".to_owned() } else { layers.join(",") };
        let percent = bytes("bytes").saturating_mul(100).checked_div(bytes("bytes_total")).unwrap_or(0);
        table.add_row([
            text(&model["model"]),
            text(&model["name"]),
            text(&model["quantisation"]),
            format!("{layers} of {}", model["layers_total"]),
            format!("{} MiB", bytes("bytes") >> 20),
            if model["whole"] == true { "whole".to_owned() } else { format!("{percent} %") },
        ]);
    }
    table.to_string()
}
