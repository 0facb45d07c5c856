//! The file: TOML, one key for each setting, nothing unknown.

use std::{io, path::Path};

use quelea_wire::ErrorCode;
use toml_edit::{Document, DocumentMut, Item, Value};

use super::layers::{Key, Kind};
use crate::cli::exit::{CliError, Exit};

/// The longest file that is read. A thousand addresses fit.
const LENGTH_MAX: u64 = 1 << 20;

/// Names that are at least so much alike are what somebody may have meant.
const ALIKE: f64 = 0.7;

/// A key of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) values: Vec<String>,
}

/// Reads the file; nothing where there is none.
pub(super) fn read(path: &Path, keys: &[Key]) -> Result<Option<Vec<Entry>>, CliError> {
    let Some(text) = text_of(path)? else { return Ok(None) };
    entries(&path.display().to_string(), &text, keys).map(Some)
}

/// The file as it is; nothing where there is none.
pub(super) fn text_of(path: &Path) -> Result<Option<String>, CliError> {
    let unreadable = |e: &dyn std::fmt::Display| {
        CliError::new(ErrorCode::Usage, format!("cannot read {}: {e}", path.display())).exit(Exit::Usage)
    };
    match std::fs::metadata(path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(unreadable(&e)),
        Ok(meta) if meta.len() > LENGTH_MAX => return Err(unreadable(&"it is longer than 1 MiB")),
        Ok(_) => {}
    }
    std::fs::read_to_string(path).map(Some).map_err(|e| unreadable(&e))
}

/// What `text` sets. `place` is for messages.
pub(super) fn entries(place: &str, text: &str, keys: &[Key]) -> Result<Vec<Entry>, CliError> {
    let wrong = |line: usize, what: String| CliError::new(ErrorCode::Usage, format!("{place}:{line}: {what}"));
    let line_of = |at: Option<std::ops::Range<usize>>| {
        1 + at.and_then(|at| text.get(..at.start)).map_or(0, |before| before.matches('\n').count())
    };
    let document =
        Document::parse(text).map_err(|e| wrong(line_of(e.span()), e.message().trim().replace('\n', ", ")))?;
    let table = document.as_table();
    let mut entries = Vec::new();
    for (name, item) in table {
        let line = line_of(table.key(name).and_then(toml_edit::Key::span).or(item.span()));
        let Some(key) = keys.iter().find(|key| key.name == name) else {
            let error = wrong(line, format!("there is no setting {name:?}"));
            return Err(error.hint(nearest(name, keys)));
        };
        let values = values(item, key).map_err(|what| wrong(line, format!("{name}: {what}")))?;
        entries.push(Entry { key: name.to_owned(), line, values });
    }
    Ok(entries)
}

/// What to say about a name that is none.
pub(super) fn nearest(name: &str, keys: &[Key]) -> String {
    let near = keys.iter().map(|key| (strsim::jaro_winkler(name, &key.name), &key.name));
    match near.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((alike, key)) if alike >= ALIKE => format!("did you mean {key:?}?"),
        _ => "'quelea config show' has all of them".into(),
    }
}

/// A setting's values as a flag would have them.
fn values(item: &Item, key: &Key) -> Result<Vec<String>, String> {
    let value = item.as_value().ok_or("it has no sections")?;
    match (key.kind, value) {
        (Kind::Switch, Value::Boolean(on)) => Ok(vec![on.value().to_string()]),
        (Kind::Switch, _) => Err("it is true or false".into()),
        (Kind::Many, Value::Array(all)) => all.iter().map(scalar).collect(),
        (_, Value::Array(_)) => Err("it has one value, not several".into()),
        (_, one) => scalar(one).map(|value| vec![value]),
    }
}

fn scalar(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.value().clone()),
        Value::Integer(number) => Ok(number.value().to_string()),
        Value::Float(number) => Ok(number.value().to_string()),
        Value::Boolean(on) => Ok(on.value().to_string()),
        _ => Err("a value is a text, a number, true or false".into()),
    }
}

/// Sets a key in the file, or takes it out, and leaves everything else as it is.
pub(super) fn change(path: &Path, key: &Key, values: Option<&[String]>) -> Result<(), CliError> {
    write(path, &changed(path, key, values)?)
}

/// The file's text with that change.
pub(super) fn changed(path: &Path, key: &Key, values: Option<&[String]>) -> Result<String, CliError> {
    let text = text_of(path)?.unwrap_or_default();
    let mut document: DocumentMut = text
        .parse()
        .map_err(|e: toml_edit::TomlError| CliError::new(ErrorCode::Usage, format!("{}: {e}", path.display())))?;
    match values {
        None => drop(document.remove(&key.name)),
        Some(values) => {
            let typed = |text: &String| -> Value {
                match text.parse::<i64>() {
                    // `0..8` and `8470` are told apart by what they parse as; a leading zero or plus is a text.
                    Ok(number) if number.to_string() == *text => number.into(),
                    _ => text.as_str().into(),
                }
            };
            let value: Value = match (key.kind, values) {
                (Kind::Switch, [only]) => (only == "true").into(),
                (Kind::Many, all) => Value::Array(all.iter().map(typed).collect()),
                (_, [only]) => typed(only),
                _ => return Err(CliError::new(ErrorCode::Usage, format!("{} has one value", key.name))),
            };
            document[&key.name] = Item::Value(value);
        }
    }
    Ok(document.to_string())
}

/// Puts the file in place as a whole: a daemon that starts meanwhile reads the old one or the new one.
pub(super) fn write(path: &Path, text: &str) -> Result<(), CliError> {
    use std::io::Write as _;
    let failed =
        |e: io::Error| CliError::new(ErrorCode::StorageFailed, format!("cannot write {}: {e}", path.display()));
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(failed)?;
    let mut new = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
    new.write_all(text.as_bytes()).and_then(|()| new.as_file().sync_all()).map_err(failed)?;
    new.persist(path).map_err(|e| failed(e.error))?;
    Ok(())
}
