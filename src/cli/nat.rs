//! `quelea ping` and `quelea netcheck`.

use std::process::ExitCode;

use quelea_wire::ErrorCode;
use serde_json::{Value, json};

use super::{
    args::{Global, NetcheckArgs, PingArgs},
    client::Daemon,
    exit::{CliError, Exit},
    infer::short,
    output::{data_line, note, printable},
};

/// The longest line of an answer: a reply with two addresses is far shorter.
const LINE_MAX: usize = 64 << 10;

pub(super) async fn ping(global: &Global, args: PingArgs) -> Result<ExitCode, CliError> {
    let daemon = Daemon::find(global)?;
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let request = json!({
        "peer": args.peer,
        "count": args.count,
        "size": args.size,
        "until_direct": args.until_direct,
        "deadline_ms": millis(args.deadline),
        "interval_ms": millis(args.interval),
    });
    let mut lines = daemon.lines(daemon.post_stream("/api/v1/ping", &request).await?, LINE_MAX);
    let mut end = Value::Null;
    while let Some(line) = lines.next::<Value>().await? {
        show(global, &line)?;
        if line["done"] == true {
            end = line;
        }
    }
    outcome(&end, &args)
}

fn show(global: &Global, line: &Value) -> Result<(), CliError> {
    if global.json {
        return data_line(&line.to_string());
    }
    let text = |key: &str| line[key].as_str().unwrap_or_default();
    if line["done"] == true {
        note(&format!("{} sent, {} received", line["sent"], line["received"]));
        return Ok(());
    }
    if let Some(error) = line["error"].as_str() {
        return data_line(&format!("seq={} {}", line["seq"], printable(error)));
    }
    let way = match line["via"].as_str() {
        Some(relay) => format!("relayed via {}", short(relay)),
        None => format!("direct {}", text("transport")),
    };
    let ms = line["rtt_s"].as_f64().unwrap_or_default() * 1e3;
    data_line(&format!("pong from {}: seq={} time={ms:.1}ms {way}", short(text("peer_id")), line["seq"]))
}

/// What the exit code says: 0 when something came back and, if wanted, the connection is direct.
fn outcome(end: &Value, args: &PingArgs) -> Result<ExitCode, CliError> {
    if end.is_null() {
        return Err(CliError::new(ErrorCode::DaemonUnreachable, "the daemon stopped before the ping was done"));
    }
    if end["received"] == 0 {
        let message = format!("{} does not answer", args.peer);
        return Err(CliError::new(ErrorCode::DeadlineExceeded, message).exit(Exit::NoRoute));
    }
    if args.until_direct && end["direct"] != true {
        let message = format!("no direct connection to {} within {} s", args.peer, args.deadline.as_secs_f64());
        return Err(CliError::new(ErrorCode::DeadlineExceeded, message).exit(Exit::NoRoute).hint(
            "it is reached through a relay; between a symmetric NAT and one that is symmetric or port-restricted there is \
             no direct way: see 'quelea netcheck' on both sides",
        ));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn netcheck(global: &Global, args: NetcheckArgs) -> Result<ExitCode, CliError> {
    let daemon = Daemon::find(global)?;
    loop {
        let report = daemon.get("/api/v1/netcheck").await?;
        if global.json {
            data_line(&report.to_string())?;
        } else {
            data_line(&printable(&crate::netcheck::text(&report)))?;
        }
        let Some(every) = args.every else { return Ok(ExitCode::SUCCESS) };
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::from(Exit::Interrupted as u8)),
        }
    }
}
