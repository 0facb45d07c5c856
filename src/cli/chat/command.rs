//! What begins with a slash, and texts of several lines.

use std::path::PathBuf;

use quelea_wire::ErrorCode;
use serde_json::{Number, Value};

use crate::cli::exit::CliError;

/// What `/help` says.
pub(super) const HELP: &str = "\
/system [TEXT]        show or set the system message; '/system \"\"' takes it away
/model [MODEL]        show the model, or go on with another
/params [NAME=VALUE]… show or set how answers are drawn: temperature, top_p, top_k, min_p, seed, max_tokens, repeat_penalty
/regenerate           the last answer again, another one
/save FILE            write the conversation; /load FILE goes on with it
/clear                begin anew
/cost                 what the answers took and cost so far
/stats on|off         show that after each answer
/quit                 end; so does Ctrl-D
several lines: Alt-Enter, a backslash at the end of a line, or \"\"\" before and after; Ctrl-C stops an answer";

/// Words after a slash.
const NAMES: [&str; 12] =
    ["help", "system", "model", "params", "save", "load", "regenerate", "clear", "cost", "stats", "quit", "exit"];

/// Parameters of an answer that are whole numbers, and those that are not.
const WHOLE: [&str; 4] = ["top_k", "seed", "max_tokens", "repeat_last_n"];
const REAL: [&str; 6] = ["temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"];

/// Opens and closes a text of several lines.
const FENCE: &str = "\"\"\"";

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Slash {
    Help,
    System(Option<String>),
    Model(Option<String>),
    Params(Vec<(String, Value)>),
    Save(PathBuf),
    Load(PathBuf),
    Regenerate,
    Clear,
    Cost,
    Stats(bool),
    Quit,
}

/// Whether more lines belong to this text.
pub(super) fn incomplete(text: &str) -> bool {
    text.matches(FENCE).count() % 2 == 1 || (text.ends_with('\\') && !text.contains(FENCE))
}

/// A text without what held its lines together.
pub(super) fn unquoted(text: &str) -> String {
    let text = text.trim();
    match text.strip_prefix(FENCE).and_then(|text| text.strip_suffix(FENCE)) {
        Some(inner) => inner.trim_matches('\n').to_owned(),
        None => text.replace("\\\n", "\n"),
    }
}

/// The command that a text is; nothing where it is something to say.
pub(super) fn parse(text: &str) -> Result<Option<Slash>, CliError> {
    let Some(rest) = text.strip_prefix('/') else { return Ok(None) };
    let (name, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let rest = rest.trim();
    let given = || (!rest.is_empty()).then(|| rest.to_owned());
    let usage = |message: String| CliError::new(ErrorCode::Usage, message).hint("/help shows what there is");
    let file = || given().map(PathBuf::from).ok_or_else(|| usage(format!("/{name} needs the name of a file")));
    Ok(Some(match name {
        "help" | "?" => Slash::Help,
        "system" => Slash::System(given().map(|text| unquoted(text.trim_matches('"')))),
        "model" => Slash::Model(given()),
        "params" => Slash::Params(rest.split_whitespace().map(param).collect::<Result<_, _>>().map_err(usage)?),
        "save" => Slash::Save(file()?),
        "load" => Slash::Load(file()?),
        "regenerate" => Slash::Regenerate,
        "clear" => Slash::Clear,
        "cost" => Slash::Cost,
        "stats" => match rest {
            "" | "on" => Slash::Stats(true),
            "off" => Slash::Stats(false),
            _ => return Err(usage("it is /stats on or /stats off".into())),
        },
        "quit" | "exit" => Slash::Quit,
        other => {
            let near = NAMES.into_iter().map(|known| (strsim::jaro_winkler(other, known), known));
            let near = near.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(alike, _)| *alike > 0.7);
            let error = usage(format!("there is no /{other}"));
            return Err(match near {
                Some((_, known)) => {
                    error.hint(format!("did you mean /{known}? A line with a blank before the slash is said as it is"))
                }
                None => error,
            });
        }
    }))
}

/// `temperature=0.7`.
fn param(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?}: write it like temperature=0.7"))?;
    let wrong = || format!("{name}: {value:?} is no number that fits");
    let value = if WHOLE.contains(&name) {
        value.parse::<i64>().map(Value::from).map_err(|_| wrong())?
    } else if REAL.contains(&name) {
        value.parse().ok().and_then(Number::from_f64).map(Value::from).ok_or_else(wrong)?
    } else {
        return Err(format!("there is no parameter {name:?}; there are {} and {}", WHOLE.join(", "), REAL.join(", ")));
    };
    Ok((name.to_owned(), value))
}
