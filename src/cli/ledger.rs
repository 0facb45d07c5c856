//! `quelea ledger` and `quelea trust`.

use std::{fmt::Write as _, process::ExitCode};

use libp2p::PeerId;
use quelea_wire::{ErrorCode, time::unix_ms};
use serde_json::{Value, json};

use super::{
    args::{ExportFormat, Global, IouCommand, LedgerCommand, TrustArgs},
    client::Daemon,
    exit::{CliError, Exit},
    output::{data, data_line, note, printable},
    table::Listing,
    watch::{self, Shown},
};

/// Entries that an export asks for: more than are ever kept of a hundred accounts.
const EXPORT: usize = 10_000;

/// The shortest beginning of an id that names an entry.
const ID_MIN: usize = 8;

pub(super) async fn run(global: &Global, command: LedgerCommand) -> Result<ExitCode, CliError> {
    match command {
        LedgerCommand::Balance(watch) => watch::show(global, watch, async || balance(global).await).await,
        LedgerCommand::List { peer, number } => list(global, peer, number).await,
        LedgerCommand::Show { id } => show(global, &id).await,
        LedgerCommand::Limit { peer, amount: None, earned: false } => limit_of(global, peer).await,
        LedgerCommand::Limit { peer, amount, .. } => set_limit(global, peer, amount).await,
        LedgerCommand::Grant { peer, amount } => set_limit(global, peer, Some(amount)).await,
        LedgerCommand::Redeem { peer, amount, reference } => redeem(global, peer, amount, false, &reference).await,
        LedgerCommand::Iou(IouCommand::Redeem { peer, amount }) => redeem(global, peer, amount, false, "").await,
        LedgerCommand::Forgive { peer, amount } => redeem(global, peer, amount, true, "").await,
        LedgerCommand::Settle { peer, amount } => settle(global, peer, amount).await,
        LedgerCommand::Iou(IouCommand::Create { peer, amount, due_days }) => iou(global, peer, amount, due_days).await,
        LedgerCommand::Export { format } => export(global, format).await,
        LedgerCommand::Verify => verify(global).await,
    }
}

/// Micro-credits as credits with six decimals.
pub(super) fn credits(micro: &Value) -> String {
    let micro = micro.as_i64().unwrap_or(0);
    let (sign, whole) = (if micro < 0 { "-" } else { "" }, micro.unsigned_abs());
    format!("{sign}{}.{:06}", whole / 1_000_000, whole % 1_000_000)
}

fn items(answer: &Value) -> &[Value] {
    answer["items"].as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    printable(value.as_str().unwrap_or("-"))
}

async fn balance(global: &Global) -> Result<Shown, CliError> {
    let answer = Daemon::find(global)?.get("/api/v1/ledger").await?;
    if global.json {
        return Ok(answer.to_string().into());
    }
    let accounts = items(&answer);
    let (mut data, mut note) = (String::new(), String::new());
    if accounts.is_empty() {
        note.push_str("no accounts yet: nobody owes anybody anything");
    } else {
        let mut table =
            Listing::new(["PEER", "OWES US", "OVERDUE", "HELD", "MAY OWE", "WE MAY OWE", "STATE"]).right(1..6);
        for account in accounts {
            let granted = if account["granted"].is_null() { "-".into() } else { credits(&account["granted"]) };
            let line = if account["synced"] == true { "synced" } else { "away" };
            let state = match (account["frozen"].as_str(), &account["default_since_s"]) {
                (Some(why), _) => format!("frozen: {why}"),
                (None, Value::Null) => line.into(),
                (None, since) => format!("{line}, in default since {}", when(since)),
            };
            let amounts = ["owed", "overdue", "held", "limit"].map(|field| credits(&account[field]));
            let [owed, overdue, held, limit] = amounts;
            table.add_row([text(&account["peer_id"]), owed, overdue, held, limit, granted, state]);
        }
        let _ = writeln!(data, "{table}");
    }
    let totals = &answer["totals"];
    let (owed, owing, held) = (credits(&totals["owed"]), credits(&totals["owing"]), credits(&totals["held"]));
    let _ = write!(data, "owed to us: {owed}   we owe: {owing}   held: {held}");
    Ok(Shown { data, note })
}

async fn entries(global: &Global, peer: Option<PeerId>, limit: usize) -> Result<Value, CliError> {
    let mut route = format!("/api/v1/ledger/entries?limit={limit}");
    if let Some(peer) = peer {
        let _ = write!(route, "&peer={peer}");
    }
    Daemon::find(global)?.get(&route).await
}

async fn list(global: &Global, peer: Option<PeerId>, number: usize) -> Result<ExitCode, CliError> {
    let answer = entries(global, peer, number).await?;
    if global.json {
        data_line(&answer.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    for request in answer["requests"].as_array().map_or(&[][..], Vec::as_slice) {
        let (peer, amount) = (text(&request["peer_id"]), credits(&request["amount"]));
        note(&format!("{peer} asks to be paid {amount} credits until {}", when(&request["deadline_s"])));
    }
    if items(&answer).is_empty() {
        note("no entries yet");
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Listing::new(["ID", "WHEN", "WHAT", "PEER", "CREDITS", "TOTAL", "DUE", "ACK"]);
    for entry in items(&answer) {
        let id: String = text(&entry["id"]).chars().take(ID_MIN).collect();
        let acknowledged = match entry["acknowledged"].as_bool() {
            Some(true) => "yes",
            Some(false) => "not yet",
            None => "",
        };
        table.add_row([
            id,
            when(&entry["at_s"]),
            what(entry),
            text(&entry["peer_id"]),
            credits(&entry["amount"]),
            credits(&entry["total"]),
            if entry["due_at_s"].is_null() { String::new() } else { when(&entry["due_at_s"]) },
            acknowledged.into(),
        ]);
    }
    data_line(&table.to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// What an entry says, from this node's side.
fn what(entry: &Value) -> String {
    let by_me = entry["by"] == "me";
    let said = match (entry["kind"].as_str(), by_me) {
        (Some("note"), true) => "we owe more",
        (Some("note"), false) => "owes us more",
        (_, true) => "we discharged",
        (_, false) => "discharged us",
    };
    let how = match entry["method"].as_str() {
        Some(method) => format!(" ({method})"),
        None if entry["hold"].is_null() => " (by hand)".into(),
        None => String::new(),
    };
    format!("{said}{how}")
}

fn when(at_s: &Value) -> String {
    crate::api::shape::rfc3339((at_s.as_f64().unwrap_or(0.0) * 1e3) as u64)
}

async fn show(global: &Global, id: &str) -> Result<ExitCode, CliError> {
    let wanted = id.to_ascii_lowercase();
    if wanted.len() < ID_MIN || !wanted.chars().all(|c| c.is_ascii_hexdigit()) {
        let message = format!("{id:?} is not the beginning of an id: {ID_MIN} hex digits at least");
        return Err(CliError::new(ErrorCode::Usage, message));
    }
    let answer = entries(global, None, EXPORT).await?;
    let is_it = |entry: &&Value| entry["id"].as_str().is_some_and(|id| id.starts_with(&wanted));
    let found: Vec<&Value> = items(&answer).iter().filter(is_it).collect();
    let [entry] = found.as_slice() else {
        let message = match found.len() {
            0 => format!("no entry's id begins with {wanted}"),
            n => format!("{n} entries' ids begin with {wanted}"),
        };
        return Err(CliError::new(ErrorCode::NotFound, message).hint("see ids with 'quelea ledger list --json'"));
    };
    if global.json {
        let mut document = (*entry).clone();
        document["schema"] = json!("quelea.ledger.entry/v1");
        data_line(&document.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = format!("id        {}\n", text(&entry["id"]));
    let _ = writeln!(lines, "when      {}", when(&entry["at_s"]));
    let _ = writeln!(lines, "what      {}", what(entry));
    let _ = writeln!(lines, "peer      {}", text(&entry["peer_id"]));
    let _ = writeln!(lines, "amount    {}", credits(&entry["amount"]));
    let _ = writeln!(lines, "total     {}", credits(&entry["total"]));
    if let Some(hold) = entry["hold"].as_str() {
        let _ = writeln!(lines, "hold      {}", printable(hold));
    }
    if !entry["due_at_s"].is_null() {
        let _ = writeln!(lines, "due       {}", when(&entry["due_at_s"]));
        let account = account_with(global, &entry["peer_id"]).await?;
        let (overdue, since) = (&account["overdue"], &account["default_since_s"]);
        if entry["by"] == "peer" && overdue.as_u64() > Some(0) {
            let since = if since.is_null() { String::new() } else { format!(", in default since {}", when(since)) };
            let _ = writeln!(lines, "overdue   {} of the whole account{since}", credits(overdue));
        }
    }
    let _ = writeln!(lines, "envelope  {}", text(&entry["envelope"]));
    data(&lines)?;
    Ok(ExitCode::SUCCESS)
}

/// How this node stands with a peer; nothing where there is no account.
async fn account_with(global: &Global, peer: &Value) -> Result<Value, CliError> {
    let answer = Daemon::find(global)?.get("/api/v1/ledger").await?;
    Ok(items(&answer).iter().find(|account| account["peer_id"] == *peer).cloned().unwrap_or_default())
}

async fn limit_of(global: &Global, peer: PeerId) -> Result<ExitCode, CliError> {
    let answer = Daemon::find(global)?.get(&format!("/api/v1/trust?peer={peer}")).await?;
    let limit = items(&answer).first().map(|item| item["limit"].clone()).filter(|limit| !limit.is_null());
    if global.json {
        let document = json!({ "schema": "quelea.ledger.limit/v1", "peer_id": peer.to_string(), "limit": limit });
        data_line(&document.to_string())?;
    } else {
        match limit {
            Some(limit) => data_line(&credits(&limit))?,
            None => note("nothing is known of this peer: it may owe what any newcomer may"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn set_limit(global: &Global, peer: PeerId, amount: Option<u64>) -> Result<ExitCode, CliError> {
    let body = json!({ "peer": peer.to_string(), "amount": amount });
    let answer = ask(global, "/api/v1/ledger/limit", &body).await?;
    if global.json {
        data_line(&answer.to_string())?;
    } else {
        note(&format!("{peer} may owe {} credits", credits(&answer["limit"])));
    }
    Ok(ExitCode::SUCCESS)
}

async fn redeem(
    global: &Global,
    peer: PeerId,
    amount: u64,
    forgive: bool,
    reference: &str,
) -> Result<ExitCode, CliError> {
    let body = json!({ "peer": peer.to_string(), "amount": amount, "forgive": forgive, "reference": reference });
    let answer = ask(global, "/api/v1/ledger/redeem", &body).await?;
    told(global, &answer, &format!("{peer} owes {} credits less", credits(&json!(amount))))
}

async fn settle(global: &Global, peer: PeerId, amount: Option<u64>) -> Result<ExitCode, CliError> {
    let body = json!({ "peer": peer.to_string(), "amount": amount });
    let answer = ask(global, "/api/v1/ledger/request", &body).await?;
    let asked = format!("{peer} is asked for {} credits", credits(&answer["amount"]));
    told(global, &answer, &format!("{asked}; when it has paid, say so with 'quelea ledger redeem'"))
}

async fn iou(global: &Global, peer: PeerId, amount: u64, due_days: u16) -> Result<ExitCode, CliError> {
    let body = json!({ "peer": peer.to_string(), "amount": amount, "due_days": due_days });
    let answer = ask(global, "/api/v1/ledger/promise", &body).await?;
    told(global, &answer, &format!("we owe {peer} {} credits more", credits(&json!(amount))))
}

/// The entry's id is data; what it means is for people.
fn told(global: &Global, answer: &Value, meaning: &str) -> Result<ExitCode, CliError> {
    if global.json {
        data_line(&answer.to_string())?;
    } else {
        note(meaning);
        if let Some(id) = answer["id"].as_str() {
            data_line(&printable(id))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn export(global: &Global, format: ExportFormat) -> Result<ExitCode, CliError> {
    let answer = entries(global, None, EXPORT).await?;
    if format == ExportFormat::Json {
        data_line(&answer.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = String::from(
        "id,at,kind,by,peer_id,amount_microcredits,total_microcredits,hold,method,acknowledged,envelope\n",
    );
    for entry in items(&answer) {
        let plain = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
        let number = |field: &str| entry[field].as_u64().unwrap_or(0).to_string();
        let acknowledged = entry["acknowledged"].as_bool().map(|yes| yes.to_string()).unwrap_or_default();
        let fields = [
            plain("id"),
            when(&entry["at_s"]),
            plain("kind"),
            plain("by"),
            plain("peer_id"),
            number("amount"),
            number("total"),
            plain("hold"),
            plain("method"),
            acknowledged,
            plain("envelope"),
        ];
        table.push_str(&fields.join(","));
        table.push('\n');
    }
    data(&table)?;
    Ok(ExitCode::SUCCESS)
}

async fn verify(global: &Global) -> Result<ExitCode, CliError> {
    let answer = Daemon::find(global)?.get("/api/v1/ledger/check").await?;
    if global.json {
        data_line(&answer.to_string())?;
    } else {
        for fault in answer["faults"].as_array().map_or(&[][..], Vec::as_slice) {
            data_line(&format!("{}: {}", text(&fault["peer_id"]), text(&fault["what"])))?;
        }
        note(&format!("{} entries of {} accounts checked", answer["entries"], answer["accounts"]));
    }
    if answer["ok"] == true {
        return Ok(ExitCode::SUCCESS);
    }
    Err(CliError::new(ErrorCode::StorageFailed, "what is stored is not what the counters say")
        .exit(Exit::Integrity)
        .hint("stop the node and keep a copy: 'quelea store backup FILE'"))
}

pub(super) async fn trust(global: &Global, args: &TrustArgs) -> Result<ExitCode, CliError> {
    let route = match args.peer {
        Some(peer) => format!("/api/v1/trust?peer={peer}"),
        None => "/api/v1/trust".into(),
    };
    let answer = Daemon::find(global)?.get(&route).await?;
    if global.json {
        data_line(&answer.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let peers = items(&answer);
    if peers.is_empty() {
        note("nothing is known of any peer yet");
        return Ok(ExitCode::SUCCESS);
    }
    let decimals = |value: &Value| format!("{:.3}", value.as_f64().unwrap_or(0.0));
    let mut table =
        Listing::new(["PEER", "TRUST", "CONDUCT", "COMMERCE", "MAY OWE", "REPAID", "OVERDUE", "DEFAULT SINCE"]);
    for peer in peers {
        let limit = if peer["limit"].is_null() { "-".into() } else { credits(&peer["limit"]) };
        let numbers = ["trust", "conduct", "commerce"].map(|field| decimals(&peer[field]));
        let [trust, conduct, commerce] = numbers;
        let amounts = ["repaid", "overdue"].map(|field| credits(&peer[field]));
        let [repaid, overdue] = amounts;
        table.add_row([text(&peer["peer_id"]), trust, conduct, commerce, limit, repaid, overdue, default_of(peer)]);
    }
    data_line(&table.to_string())?;
    if args.peer.is_some() {
        let mut events = Listing::new(["WHEN", "DEALING", "CREDITS", "BEFORE", "AFTER"]);
        let all = peers.iter().flat_map(|peer| peer["events"].as_array().map_or(&[][..], Vec::as_slice));
        let mut some = false;
        for event in all {
            some = true;
            let (before, after) = (decimals(&event["before"]), decimals(&event["after"]));
            events.add_row([when(&event["at_s"]), text(&event["what"]), credits(&event["amount"]), before, after]);
        }
        if some {
            data_line(&format!("\n{events}"))?;
        } else {
            note("no dealings with it since this node was started");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Since when a peer is in default, or until when one that is paid is remembered.
fn default_of(peer: &Value) -> String {
    match (&peer["default_since_s"], &peer["no_credit_until_s"], &peer["little_trust_until_s"]) {
        (Value::Null, Value::Null, _) => String::new(),
        (Value::Null, no_credit, _) if no_credit.as_f64() > Some(unix_ms() as f64 / 1e3) => {
            format!("paid; no credit until {}", when(no_credit))
        }
        (Value::Null, _, little) => format!("paid; little trust until {}", when(little)),
        (since, ..) => when(since),
    }
}

async fn ask(global: &Global, route: &str, body: &Value) -> Result<Value, CliError> {
    let daemon = Daemon::find(global)?;
    let response = daemon.post(route, body).await?;
    response.json().await.map_err(|e| daemon.lost(&e))
}
