//! `quelea service`.

use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    path::Path,
    process::ExitCode,
};

use comfy_table::{Table, presets};
use quelea_service::MAX_INPUT;
use quelea_wire::{Credits, ErrorCode};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    args::{CallArgs, Global, OfferArgs, ServiceCommand},
    client::Daemon,
    exit::CliError,
    output::{data_bytes, data_line, note, printable},
};
use crate::{
    inference::InferError,
    services::{ServiceSettings, Upstream},
};

/// The longest line of an answer: 1 MiB of output in hexadecimal, and what stands around it.
const LINE_MAX: usize = 4 << 20;

impl OfferArgs {
    /// What the daemon offers.
    pub(super) fn settings(self) -> Result<ServiceSettings, CliError> {
        let local = self.llm_local_url.map(|url| Upstream::new(&url, None, self.llm_local_model)).transpose()?;
        let prompt = match self.llm_prompt_url {
            None => None,
            Some(url) => {
                let key = match self.llm_prompt_key_file {
                    Some(file) => Some(read_key(&file)?),
                    None => std::env::var(KEY).ok().map(Zeroizing::new),
                };
                Some(Upstream::new(&url, key, self.llm_prompt_model)?)
            }
        };
        Ok(ServiceSettings {
            offered: self.offered,
            llm_distributed: self.llm_distributed_model,
            llm_local: local,
            llm_prompt: prompt,
        })
    }
}

/// Where the key of the server behind `llm_prompt` is when no file holds it.
const KEY: &str = "QUELEA_LLM_PROMPT_KEY";

/// Bytes of the longest key.
const KEY_MAX: u64 = 4096;

fn read_key(file: &Path) -> Result<Zeroizing<String>, CliError> {
    let cannot = |why: &dyn std::fmt::Display| {
        CliError::new(ErrorCode::Usage, format!("--llm-prompt-key-file {}: {why}", file.display()))
    };
    let mut key = Zeroizing::new(String::new());
    let opened = std::fs::File::open(file).map_err(|e| cannot(&e))?;
    opened.take(KEY_MAX).read_to_string(&mut key).map_err(|e| cannot(&e))?;
    if key.trim().is_empty() {
        return Err(cannot(&"it is empty"));
    }
    Ok(Zeroizing::new(key.trim().to_owned()))
}

pub(super) async fn run(global: &Global, command: ServiceCommand) -> Result<ExitCode, CliError> {
    let daemon = Daemon::find(global)?;
    let show = |answer: &Value, text: String| data_line(if global.json { answer.to_string() } else { text }.as_str());
    match command {
        ServiceCommand::List { peer: None } => {
            let answer = daemon.get("/api/v1/services").await?;
            show(&answer, own(&answer["items"]).to_string())?;
        }
        ServiceCommand::List { peer: Some(peer) } => {
            let answer = daemon.get(&format!("/api/v1/services/offers?peer={peer}")).await?;
            show(&answer, offers(&answer["items"]).to_string())?;
        }
        ServiceCommand::Call(args) => call(global, &daemon, args).await?,
        ServiceCommand::Enable { name, price } => {
            let body = json!({ "name": name.as_str(), "enabled": true, "price": price.map(|price| price.0) });
            let answer = change(&daemon, &body).await?;
            show(&answer, format!("{name} is offered for {} credits", credits(&answer["price"])))?;
        }
        ServiceCommand::Disable { name } => {
            let answer = change(&daemon, &json!({ "name": name.as_str(), "enabled": false })).await?;
            show(&answer, format!("{name} is not offered any more"))?;
        }
        ServiceCommand::Price { name, price } => {
            let answer = change(&daemon, &json!({ "name": name.as_str(), "price": price.0 })).await?;
            show(&answer, format!("{name} costs {} credits", credits(&answer["price"])))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn change(daemon: &Daemon, body: &Value) -> Result<Value, CliError> {
    let response = daemon.post("/api/v1/services/set", body).await?;
    response.json().await.map_err(|e| not_understood(&e))
}

async fn call(global: &Global, daemon: &Daemon, args: CallArgs) -> Result<(), CliError> {
    let body = json!({
        "name": args.name.as_str(),
        "input_hex": hex::encode(read_input(&args.input)?),
        "peer": args.peer.to_string(),
        "max_price": args.max_price.map(|most| most.0),
        "timeout_s": args.timeout.as_secs_f64(),
        "call_id": args.call_id.map(|id| id.to_string()),
    });
    let mut lines = daemon.lines(daemon.post("/api/v1/services/call", &body).await?, LINE_MAX);
    let streams = std::io::stderr().is_terminal() && !global.json;
    let mut streamed = false;
    while let Some(mut event) = lines.next::<Value>().await? {
        match event["event"].as_str() {
            Some("progress") if streams => {
                if let Some(text) = event["text"].as_str() {
                    eprint_part(text);
                    streamed = true;
                }
            }
            Some("done") => {
                if streamed {
                    note("");
                }
                let result = event["result"].take();
                return done(global, &result);
            }
            Some("error") => {
                let error: InferError =
                    serde_json::from_value(event["error"].take()).map_err(|e| not_understood(&e))?;
                return Err(error.into());
            }
            _ => {}
        }
    }
    Err(not_understood(&"it ends in the middle"))
}

fn done(global: &Global, result: &Value) -> Result<(), CliError> {
    if global.json {
        return data_line(&result.to_string());
    }
    let output = match result["output"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => hex::decode(result["output_hex"].as_str().unwrap_or_default()).map_err(|e| not_understood(&e))?,
    };
    if std::io::stdout().is_terminal() {
        data_line(&printable(&String::from_utf8_lossy(&output)))?;
    } else {
        data_bytes(&output)?;
    }
    let (call, peer) = (result["call_id"].as_str().unwrap_or("-"), result["peer_id"].as_str().unwrap_or("-"));
    note(&format!("{} credits paid to {peer}; call {call}", credits(&result["paid"])));
    Ok(())
}

/// What comes while the service works, for people who watch.
fn eprint_part(text: &str) {
    let mut stderr = std::io::stderr().lock();
    // With stderr closed nobody watches.
    let _ = stderr.write_all(printable(text).as_bytes()).and_then(|()| stderr.flush());
}

fn read_input(given: &str) -> Result<Vec<u8>, CliError> {
    let cannot = |what: &str, e: std::io::Error| CliError::new(ErrorCode::Usage, format!("cannot read {what}: {e}"));
    let mut input = Vec::new();
    let most = u64::try_from(MAX_INPUT).unwrap_or(u64::MAX).saturating_add(1);
    if given == "-" {
        std::io::stdin().take(most).read_to_end(&mut input).map_err(|e| cannot("stdin", e))?;
    } else if let Some(path) = given.strip_prefix('@') {
        let file = std::fs::File::open(path).map_err(|e| cannot(path, e))?;
        file.take(most).read_to_end(&mut input).map_err(|e| cannot(path, e))?;
    } else {
        input.extend_from_slice(given.as_bytes());
    }
    if input.len() > MAX_INPUT {
        return Err(CliError::new(ErrorCode::ServiceInput, format!("at most {MAX_INPUT} bytes go into a call")));
    }
    Ok(input)
}

fn own(items: &Value) -> Table {
    let mut table = table(["SERVICE", "OFFERED", "CREDITS", "RUNNING", "ANSWERED", "FAILED", "EARNED", "WHAT IT DOES"]);
    for item in list(items) {
        let offered = if item["enabled"] == true { "yes" } else { "no" };
        table.add_row([
            shown(&item["name"]),
            offered.into(),
            credits(&item["price"]),
            item["running"].to_string(),
            item["answered"].to_string(),
            item["failed"].to_string(),
            credits(&item["earned"]),
            shown(&item["about"]),
        ]);
    }
    table
}

fn offers(items: &Value) -> Table {
    let mut table = table(["SERVICE", "PEER", "VERSION", "CREDITS", "RUNNING", "WAITING", "TAKES", "WHAT IT DOES"]);
    for item in list(items) {
        let took = item["took_s"].as_f64().map_or_else(|| "-".into(), |took| format!("{took:.3}s"));
        table.add_row([
            shown(&item["name"]),
            shown(&item["peer_id"]),
            item["version"].to_string(),
            credits(&item["price"]),
            format!("{} of {}", item["running"], item["at_once"]),
            item["waiting"].to_string(),
            took,
            shown(&item["about"]),
        ]);
    }
    table
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn credits(micro: &Value) -> String {
    micro.as_u64().map_or_else(|| "-".into(), |micro| Credits(micro).to_string())
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| "-".into(), printable)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn not_understood(error: &dyn std::fmt::Display) -> CliError {
    CliError::new(ErrorCode::Internal, format!("the daemon's answer is not understood: {error}"))
}
