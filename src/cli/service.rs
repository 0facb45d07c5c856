//! `quelea service`.

use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    path::Path,
    process::ExitCode,
};

use libp2p::PeerId;
use quelea_service::{CallId, MAX_INPUT, Name};
use quelea_wire::{Credits, ErrorCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::{
    args::{CallArgs, Global, OfferArgs, ServiceCommand},
    client::Daemon,
    exit::{CliError, Exit},
    infer::interrupted,
    output::{data_bytes, data_line, note, printable},
    table::Listing,
};
use crate::{
    inference::InferError,
    node::{GRACE, Node, settings::Settings},
    services::{CallEvent, CallRequest, IDLE, LocalModel, ServiceSettings, Upstream},
};

/// Pieces of progress that may wait to be shown.
const EVENTS: usize = 16;

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
        let local_model = self.llm_local_path.map(|model| LocalModel {
            model,
            program: self.llm_local_program,
            memory: self.llm_local_memory,
            idle: self.llm_local_idle.unwrap_or(IDLE),
        });
        Ok(ServiceSettings {
            offered: self.offered,
            llm_distributed: self.llm_distributed_model,
            llm_local: local,
            llm_local_model: local_model,
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
    let show = |answer: &Value, text: String| data_line(if global.json { answer.to_string() } else { text }.as_str());
    let command = match command {
        ServiceCommand::Call(args) if !args.bootstrap.is_empty() => {
            return Box::pin(as_passing_peer(global, *args)).await;
        }
        command => command,
    };
    let daemon = Daemon::find(global)?;
    match command {
        ServiceCommand::List { peer: None, name: None } => {
            let answer = daemon.get("/api/v1/services").await?;
            show(&answer, own(&answer["items"]).to_string())?;
        }
        ServiceCommand::List { peer, name } => {
            let answer = offered(&daemon, peer, name.as_ref()).await?;
            show(&answer, offers(&answer["items"]).to_string())?;
        }
        ServiceCommand::Info { name, peer } => info(global, &daemon, &name, peer).await?,
        ServiceCommand::Call(args) => call(global, &daemon, *args).await?,
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

/// What a peer offers, who offers a service, or both.
async fn offered(daemon: &Daemon, peer: Option<PeerId>, name: Option<&Name>) -> Result<Value, CliError> {
    let peer = peer.map(|peer| format!("peer={peer}"));
    let name = name.map(|name| format!("name={name}"));
    let query: Vec<String> = [peer, name].into_iter().flatten().collect();
    daemon.get(&format!("/api/v1/services/offers?{}", query.join("&"))).await
}

async fn info(global: &Global, daemon: &Daemon, name: &Name, peer: Option<PeerId>) -> Result<(), CliError> {
    let answer = match peer {
        Some(_) => offered(daemon, peer, Some(name)).await?,
        None => daemon.get("/api/v1/services").await?,
    };
    let found = list(&answer["items"]).iter().find(|item| item["name"] == name.as_str());
    let Some(found) = found else {
        let whose = peer.map_or_else(|| "this node has".into(), |peer| format!("peer {peer} offers"));
        return Err(CliError::new(ErrorCode::ServiceUnknown, format!("{whose} no service {name}")));
    };
    if global.json {
        let mut document = found.clone();
        document["schema"] = "quelea.service/v1".into();
        return data_line(&document.to_string());
    }
    let took = found["took_s"].as_f64().map_or_else(|| "-".into(), |took| format!("{took:.3} s"));
    let mut lines = vec![
        format!("service   {} (version {})", shown(&found["name"]), found["version"]),
        format!("does      {}", shown(&found["about"])),
        format!("costs     {} credits a call", credits(&found["price"])),
        format!("takes     {} bytes, gives {}", found["input_max_bytes"], found["output_max_bytes"]),
        format!("time      {} s at most, {took} lately", found["deadline_s"]),
        format!("calls     {} of {} running, {} waiting", found["running"], found["at_once"], found["waiting"]),
    ];
    if peer.is_none() {
        let offered = if found["enabled"] == true { "yes" } else { "no" };
        lines.push(format!("offered   {offered}; {} answered, {} failed", found["answered"], found["failed"]));
        lines.push(format!("earned    {} credits", credits(&found["earned"])));
    }
    data_line(&lines.join("\n"))
}

/// Calls without a daemon.
async fn as_passing_peer(global: &Global, args: CallArgs) -> Result<ExitCode, CliError> {
    let request = CallRequest {
        name: args.name,
        input: read_input(&args.input)?,
        peer: args.peer,
        max_price: args.max_price.map(|most| most.0),
        timeout: args.timeout,
        id: args.call_id.unwrap_or_else(|| CallId(rand::random())),
    };
    let mut settings = Settings::passing(&args.network, args.bootstrap.clone());
    settings.masking = super::masking::of_passing(&args.masked, &args.bootstrap)?;
    let node = Node::start(settings).await?;
    let streams = std::io::stderr().is_terminal() && !global.json;
    let called = async {
        node.wait_for_bootstrap(&args.bootstrap).await?;
        let (events, mut happened) = mpsc::channel(EVENTS);
        let calling = async {
            let called = node.services().call(&request, &events).await;
            drop(events);
            called
        };
        let telling = async {
            while let Some(event) = happened.recv().await {
                if let (CallEvent::Progress(bytes), true) = (event, streams) {
                    eprint_part(&String::from_utf8_lossy(&bytes));
                }
            }
        };
        tokio::join!(calling, telling).0
    };
    let paid = async {
        let called = called.await;
        if let Ok(done) = &called
            && done.paid > 0
        {
            node.services().note_taken(done.peer).await;
        }
        called
    };
    let called = tokio::select! {
        called = paid => Some(called),
        () = interrupted() => None,
    };
    // Gives the note, or the cancellation, time to reach the peer; who is in a hurry presses Ctrl-C again.
    tokio::select! {
        () = node.shutdown(GRACE) => {}
        () = interrupted() => {}
    }
    match called {
        Some(called) => {
            done(global, &called?.document(&request))?;
            Ok(ExitCode::SUCCESS)
        }
        None => Ok(ExitCode::from(Exit::Interrupted as u8)),
    }
}

async fn change(daemon: &Daemon, body: &Value) -> Result<Value, CliError> {
    let response = daemon.post("/api/v1/services/set", body).await?;
    response.json().await.map_err(|e| not_understood(&e))
}

async fn call(global: &Global, daemon: &Daemon, args: CallArgs) -> Result<(), CliError> {
    let body = json!({
        "name": args.name.as_str(),
        "input_hex": hex::encode(read_input(&args.input)?),
        "peer": args.peer.map(|peer| peer.to_string()),
        "max_price": args.max_price.map(|most| most.0),
        "timeout_s": args.timeout.as_secs_f64(),
        "call_id": args.call_id.map(|id| id.to_string()),
    });
    let mut lines = daemon.lines(daemon.post_stream("/api/v1/services/call", &body).await?, LINE_MAX);
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

fn own(items: &Value) -> Listing {
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

fn offers(items: &Value) -> Listing {
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

fn table<const N: usize>(header: [&str; N]) -> Listing {
    Listing::new(header)
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
