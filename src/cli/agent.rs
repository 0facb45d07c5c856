//! `quelea agent …` and `quelea web …`.

use std::{
    io::{IsTerminal as _, Read as _},
    path::Path,
    process::ExitCode,
};

use comfy_table::{Table, presets};
use quelea_wire::{ErrorCode, time::unix_ms};
use serde_json::{Value, json};
use url::form_urlencoded::Serializer;

use super::{
    args::{AgentCommand, Global, InstallArgs, WebCommand},
    client::Daemon,
    exit::{CliError, Exit},
    ledger::credits,
    output::{data, data_bytes, data_line, note, printable},
};
use crate::agents::limits::{INPUT_MAX, MODULE_MAX};

pub(super) async fn run(global: &Global, command: AgentCommand) -> Result<ExitCode, CliError> {
    match command {
        AgentCommand::List => list(global).await,
        AgentCommand::Install(args) => install(global, args).await,
        AgentCommand::Run { name, input, allowance } => return start(global, &name, &input, allowance).await,
        AgentCommand::Logs { name, last } => logs(global, &name, last).await,
        AgentCommand::Caps { name } => caps(global, &name).await,
        AgentCommand::Rm { name } => remove(global, &name).await,
    }
    .map(|()| ExitCode::SUCCESS)
}

pub(super) async fn web(global: &Global, command: WebCommand) -> Result<ExitCode, CliError> {
    let WebCommand::Read { url, max_bytes } = command;
    let daemon = Daemon::find(global)?;
    let response = daemon.post("/api/v1/web/read", &json!({ "url": url, "max_bytes": max_bytes })).await?;
    let page: Value = response.json().await.map_err(|e| daemon.lost(&e))?;
    if global.json {
        data_line(&page.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let (title, text) = (word(&page["title"]), word(&page["text"]));
    if !title.is_empty() {
        data_line(&format!("{title}\n"))?;
    }
    data_line(text.trim_end())?;
    if page["cut"] == true {
        note("there is more; --max-bytes takes up to 262144");
    }
    Ok(ExitCode::SUCCESS)
}

fn word(value: &Value) -> String {
    printable(value.as_str().unwrap_or_default())
}

fn words(value: &Value) -> String {
    let all: Vec<String> = value.as_array().into_iter().flatten().map(word).collect();
    if all.is_empty() { "-".into() } else { all.join(", ") }
}

/// A name as it stands in a route. Names that could mean another route are not asked for.
fn route(name: &str, rest: &str) -> Result<String, CliError> {
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || !name.chars().all(named) {
        return Err(CliError::new(ErrorCode::NotFound, format!("no agent is called {name:?}"))
            .hint("see which there are with 'quelea agent list'"));
    }
    Ok(format!("/api/v1/agents/{name}{rest}"))
}

async fn list(global: &Global) -> Result<(), CliError> {
    let answer = Daemon::find(global)?.get("/api/v1/agents").await?;
    if global.json {
        return data_line(&answer.to_string());
    }
    let items = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
    if items.is_empty() {
        note("no agent is installed; see 'quelea agent install --help'");
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["NAME", "HASH", "GRANTED", "ALLOWANCE", "SPENT", "RUNS"]);
    for one in items {
        let hash: String = word(&one["hash"]).chars().take(12).collect();
        let row = [
            word(&one["name"]),
            hash,
            words(&one["granted"]),
            credits(&one["allowance"]),
            credits(&one["spent"]),
            one["runs"].to_string(),
        ];
        table.add_row(row);
    }
    data_line(&table.to_string())
}

async fn install(global: &Global, args: InstallArgs) -> Result<(), CliError> {
    let unread = |said: String| CliError::new(ErrorCode::Usage, said);
    let size = std::fs::metadata(&args.file).map_err(|e| unread(format!("{}: {e}", args.file.display())))?.len();
    if size > MODULE_MAX as u64 {
        return Err(unread(format!("{} has {size} bytes; at most {MODULE_MAX} are taken", args.file.display())));
    }
    let module = std::fs::read(&args.file).map_err(|e| unread(format!("{}: {e}", args.file.display())))?;
    let name = match args.name {
        Some(name) => name,
        None => named_after(&args.file),
    };
    let mut query = Serializer::new(String::new());
    query.append_pair("name", &name).append_pair("entry", &args.entry);
    query.append_pair("grant", &args.grant.join(",")).append_pair("hosts", &args.hosts.join(","));
    query.append_pair("allowance", &args.allowance.to_string());
    if let Some(fuel) = args.fuel {
        query.append_pair("fuel", &fuel.to_string());
    }
    if let Some(deadline) = args.deadline {
        query.append_pair("deadline_ms", &deadline.as_millis().to_string());
    }
    let daemon = Daemon::find(global)?;
    let response = daemon.post_bytes(&format!("/api/v1/agents?{}", query.finish()), module).await?;
    let agent: Value = response.json().await.map_err(|e| daemon.lost(&e))?;
    if global.json {
        return data_line(&agent.to_string());
    }
    note(&format!("installed {} ({})", word(&agent["name"]), word(&agent["hash"])));
    note(&format!("granted: {}; it asks for: {}", words(&agent["granted"]), words(&agent["wants"])));
    let missing: Vec<String> = agent["wants"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|one| !agent["granted"].as_array().is_some_and(|granted| granted.contains(one)))
        .map(word)
        .collect();
    if !missing.is_empty() {
        note(&format!("hint: install it again with --grant {} if it is to have it", missing.join(",")));
    }
    Ok(())
}

/// A file's name as an agent's.
fn named_after(file: &Path) -> String {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    stem.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') { c } else { '-' }).collect()
}

fn input(text: &str) -> Result<Vec<u8>, CliError> {
    if text != "-" {
        return Ok(text.as_bytes().to_vec());
    }
    if std::io::stdin().is_terminal() {
        note("reading the input from stdin; end it with Ctrl-D");
    }
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(INPUT_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|e| CliError::new(ErrorCode::Usage, format!("stdin cannot be read: {e}")))?;
    Ok(bytes)
}

async fn start(global: &Global, name: &str, text: &str, allowance: Option<u64>) -> Result<ExitCode, CliError> {
    let input = input(text)?;
    if input.len() > INPUT_MAX {
        let said = format!("an input is at most {INPUT_MAX} bytes long");
        return Err(CliError::new(ErrorCode::Usage, said));
    }
    let query = allowance.map(|amount| format!("?allowance={amount}")).unwrap_or_default();
    let daemon = Daemon::find(global)?;
    let response = daemon.post_bytes(&route(name, &format!("/run{query}"))?, input).await?;
    let run: Value = response.json().await.map_err(|e| daemon.lost(&e))?;
    if global.json {
        data_line(&run.to_string())?;
    } else {
        for line in run["log"].as_array().into_iter().flatten() {
            note(&format!("{}: {}", word(&line["level"]), word(&line["text"])));
        }
        match run["output_hex"].as_str().map(hex::decode) {
            Some(Ok(bytes)) => data_bytes(&bytes)?,
            _ => {
                let text = run["output"].as_str().unwrap_or_default();
                // To a terminal nothing goes that it would act on; to a file or a program, what the agent gave.
                if std::io::stdout().is_terminal() { data_line(&printable(text))? } else { data(text)? }
            }
        }
        if run["spent"] != 0 {
            note(&format!("spent {} credits", credits(&run["spent"])));
        }
    }
    if run["outcome"] == "ok" {
        return Ok(ExitCode::SUCCESS);
    }
    let code = match run["outcome"].as_str() {
        Some("denied") => ErrorCode::AgentRefused,
        Some("timeout") => ErrorCode::DeadlineExceeded,
        _ => ErrorCode::AgentFailed,
    };
    let mut error = CliError::new(code, format!("{name}: {}", word(&run["message"]))).exit(Exit::Failed);
    error.hint = run["hint"].as_str().map(str::to_owned);
    Err(error)
}

async fn logs(global: &Global, name: &str, last: usize) -> Result<(), CliError> {
    let answer = Daemon::find(global)?.get(&route(name, &format!("/logs?last={last}"))?).await?;
    if global.json {
        return data_line(&answer.to_string());
    }
    let now = unix_ms() as f64 / 1e3;
    for line in answer["items"].as_array().into_iter().flatten() {
        let ago = (now - line["at_s"].as_f64().unwrap_or(now)).max(0.0);
        data_line(&format!("{:>8.0}s ago  {:<5}  {}", ago, word(&line["level"]), word(&line["text"])))?;
    }
    Ok(())
}

async fn caps(global: &Global, name: &str) -> Result<(), CliError> {
    let agent = Daemon::find(global)?.get(&route(name, "")?).await?;
    if global.json {
        return data_line(&agent.to_string());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["CAPABILITY", "GRANTED", "ASKED FOR", "MEANS"]);
    for one in agent["capabilities"].as_array().into_iter().flatten() {
        let yes = |value: &Value| if *value == true { "yes" } else { "no" }.to_owned();
        table.add_row([word(&one["name"]), yes(&one["granted"]), yes(&one["wanted"]), word(&one["meaning"])]);
    }
    data_line(&table.to_string())?;
    data_line(&format!("hosts      {}", words(&agent["hosts"])))?;
    let (allowance, spent) = (credits(&agent["allowance"]), credits(&agent["spent"]));
    data_line(&format!("allowance  {allowance} credits, of which {spent} are spent"))?;
    let deadline = agent["deadline_ms"].as_f64().unwrap_or(0.0) / 1e3;
    data_line(&format!("a run      at most {} units of fuel and {deadline} s", agent["fuel"]))?;
    data_line(&format!("module     {}", word(&agent["hash"])))
}

async fn remove(global: &Global, name: &str) -> Result<(), CliError> {
    let daemon = Daemon::find(global)?;
    let response = daemon.post(&route(name, "/remove")?, &json!({})).await?;
    let answer: Value = response.json().await.map_err(|e| daemon.lost(&e))?;
    if global.json {
        return data_line(&answer.to_string());
    }
    note(&format!("{name} is gone, with all that it kept"));
    Ok(())
}
