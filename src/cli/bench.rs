//! `quelea bench`.

use std::{path::Path, process::ExitCode};

use quelea_wire::ErrorCode;
use serde_json::{Value, json};

use super::{
    args::{BenchChainArgs, BenchCommand, BenchLedgerArgs, BenchModelArgs, Global, TransportArg},
    client::unusable,
    exit::{CliError, Exit},
    output::{data_line, document, note, printable},
};
use crate::{
    bench::{
        agent::{self, Times},
        chain,
        hop::{self, Transport},
        ledger, masking,
        model::{self, ModelReport, Plan, TestReport},
    },
    home::Home,
};

pub(super) async fn run(global: &Global, command: BenchCommand) -> Result<ExitCode, CliError> {
    match command {
        BenchCommand::Hop { transport, rows, bytes } => hop(global, transport, rows, bytes).await,
        BenchCommand::Masking { bytes, turns } => Box::pin(masking(global, bytes, turns)).await,
        BenchCommand::Agent { file, entry, runs } => agent(global, &file, &entry, runs).await,
        BenchCommand::Chain(args) => chain(global, args).await,
        BenchCommand::Ledger(args) => ledger(global, args).await,
        BenchCommand::Model(args) => model(global, args),
    }
}

async fn hop(global: &Global, transport: Option<TransportArg>, rows: u32, bytes: u32) -> Result<ExitCode, CliError> {
    let transports = match transport {
        Some(TransportArg::Tcp) => vec![Transport::Tcp],
        Some(TransportArg::Quic) => vec![Transport::Quic],
        None => vec![Transport::Tcp, Transport::Quic],
    };
    if !global.json {
        note(&format!(
            "one-way time of a row of {bytes} bytes between two nodes on loopback, in one process; \
             echo is a bare libp2p stream, measured in turns with the hop"
        ));
    }
    let mut reports = Vec::new();
    for transport in transports {
        reports.push(hop::measure(transport, rows, bytes / 4 * 4).await?);
    }
    if global.json {
        let method = "two swarms in one process over loopback; half of the round trip; echo and hop in ten turns each";
        let document = json!({ "schema": "quelea.bench.hop/v1", "method": method, "items": reports });
        data_line(&document.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    data_line("transport   rows    echo p50   echo p95    hop p50    hop p95   hop/echo")?;
    for r in reports {
        data_line(&format!(
            "{:<9} {:>6} {:>8.0} µs {:>7.0} µs {:>7.0} µs {:>7.0} µs {:>9.2}×",
            format!("{:?}", r.transport).to_lowercase(),
            r.rows,
            r.echo.p50_us,
            r.echo.p95_us,
            r.hop.p50_us,
            r.hop.p95_us,
            r.ratio_p50
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn agent(global: &Global, file: &Path, entry: &str, runs: u32) -> Result<ExitCode, CliError> {
    let unread = |e: std::io::Error| CliError::new(ErrorCode::Usage, format!("{}: {e}", file.display()));
    let module = std::fs::read(file).map_err(unread)?;
    let program = std::env::current_exe().map_err(unread)?;
    let report = agent::measure(&program, module, entry, runs).await?;
    if global.json {
        data_line(&document("quelea.bench.agent/v1", &report, Value::Null)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let debug = if cfg!(debug_assertions) { "; this is a debug build, whose figures mean little" } else { "" };
    note(&format!(
        "{} bytes, {} runs of each kind in turns, to the first instruction{debug}",
        report.module_bytes, report.runs
    ));
    data_line("                                p50        p95")?;
    let line =
        |what: &str, times: Times| data_line(&format!("{what:<26} {:>6.1} ms {:>7.1} ms", times.p50_ms, times.p95_ms));
    line("a process is started", report.cold)?;
    line("  until it is there", report.start)?;
    line("a process waits", report.waiting)?;
    line("one waits with it (to end)", report.loaded)?;
    Ok(ExitCode::SUCCESS)
}

async fn masking(global: &Global, bytes: u64, turns: u32) -> Result<ExitCode, CliError> {
    if !global.json {
        let chosen = if cfg!(debug_assertions) { "; this is a debug build, whose figures mean little" } else { "" };
        note(&format!("{bytes} bytes each way at once over loopback, in one process, in {turns} turns{chosen}"));
    }
    let report = masking::measure(bytes, turns).await?;
    if global.json {
        data_line(&document("quelea.bench.masking/v1", &report, Value::Null)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    data_line("line         median")?;
    for item in &report.items {
        data_line(&format!("{:<8} {:>8.0} MB/s", item.line, item.median / 1e6))?;
    }
    data_line(&format!("masked   {:>8.0} % of tcp", report.masked_to_tcp * 100.0))?;
    data_line(&format!("masked   {:>8.0} % of the bare socket", report.masked_to_socket * 100.0))?;
    Ok(ExitCode::SUCCESS)
}

async fn chain(global: &Global, args: BenchChainArgs) -> Result<ExitCode, CliError> {
    let program = std::env::current_exe()
        .map_err(|e| CliError::new(ErrorCode::Internal, format!("cannot find this program's file: {e}")))?;
    let plan = chain::Plan {
        file: super::infer::absolute(&args.file),
        program,
        stages: args.stages,
        sessions: args.sessions,
        prompt: args.prompt_tokens,
        tokens: args.tokens,
        delay: args.delay.unwrap_or_default(),
        threads: args.threads,
        turns: args.turns,
    };
    let say = |test: &str| {
        if !global.json {
            note(&format!("{test} …"));
        }
    };
    let report = tokio::select! {
        report = chain::measure(&plan, say) => report?,
        // The workers end with it.
        _ = tokio::signal::ctrl_c() => return Ok(ExitCode::from(Exit::Interrupted as u8)),
    };
    if global.json {
        data_line(&document("quelea.bench.chain/v1", &report, Value::Null)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let chain::ChainReport { layers, delay_ms, sessions, prompt_tokens, tokens, turns, results } = report;
    data_line(&format!(
        "{layers} layers, {delay_ms} ms one way, medians of {turns} turns, tokens per second; {tokens} tokens of answer"
    ))?;
    data_line("workers  test           plain                       measured                        ratio")?;
    for pair in results {
        let (plain, measured) = match pair.test {
            "decode" => ("unsplit".to_owned(), "split".to_owned()),
            "sessions" => ("one answer".to_owned(), format!("{sessions} at once")),
            "prefill" => (format!("{prompt_tokens} one by one"), "chunks in flight".to_owned()),
            "paid" => ("for nothing".to_owned(), "at a price".to_owned()),
            _ => ("one by one".to_owned(), "guessed".to_owned()),
        };
        data_line(&format!(
            "{:>7}  {:<12} {:<16} {:>8.2}    {:<16} {:>8.2}  {:>8.2}×",
            pair.stages, pair.test, plain, pair.plain.median, measured, pair.measured.median, pair.ratio
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn ledger(global: &Global, args: BenchLedgerArgs) -> Result<ExitCode, CliError> {
    let dir = Home::locate(global.data_dir.clone()).map_err(unusable)?.dir().to_path_buf();
    let BenchLedgerArgs { notes, debtors, in_flight, accounts } = args;
    let plan = ledger::Plan { dir, notes, debtors, in_flight: in_flight.into(), accounts };
    let say = |test: &str| {
        if !global.json {
            note(&format!("{test} …"));
        }
    };
    let report = tokio::select! {
        report = ledger::measure(&plan, say) => report?,
        // What was made on the disk goes with it.
        _ = tokio::signal::ctrl_c() => return Ok(ExitCode::from(Exit::Interrupted as u8)),
    };
    if global.json {
        data_line(&document("quelea.bench.ledger/v1", &report, Value::Null)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let ledger::LedgerReport { profile, memory, disk, durable, start } = report;
    #[expect(clippy::cast_precision_loss, reason = "a size for people")]
    let mb = start.file_bytes as f64 / 1e6;
    for line in [
        format!(
            "measured  notes of {debtors} debtors to one creditor, profile {profile}, one thread; the database in {}",
            plan.dir.display()
        ),
        format!(
            "memory    {:>8.0} notes/s of a core's time checked, applied and acknowledged ({notes} notes)",
            memory.notes_per_second
        ),
        format!(
            "  alone   {:>8.0} notes/s checked; {:.0} acknowledgements/s signed",
            memory.opened_per_second, memory.signed_per_second
        ),
        format!(
            "disk      {:>8.0} syncs/s of 4 KiB, one after the other (median {:.2} ms)",
            disk.syncs_per_second, disk.sync_median_ms
        ),
        format!(
            "durable   {:>8.0} notes/s with {in_flight} in flight, in {} commits (median {:.2} ms); {:.1} notes in the time of a sync",
            durable.notes_per_second, durable.commits, durable.commit_median_ms, durable.notes_per_sync
        ),
        format!(
            "start     {:>8.2} s with {} accounts and {} holds ({mb:.0} MB): {:.2} s to open, {:.2} s to read, {:.2} s to restore",
            start.open_seconds + start.load_seconds + start.restore_seconds,
            start.accounts,
            start.holds,
            start.open_seconds,
            start.load_seconds,
            start.restore_seconds
        ),
    ] {
        data_line(&line)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn model(global: &Global, args: BenchModelArgs) -> Result<ExitCode, CliError> {
    let plan = Plan {
        file: args.file,
        pp: args.pp,
        tg: args.tg,
        sessions: args.sessions,
        repeat: usize::from(args.repeat),
        compute: args.isa.with(args.compute),
    };
    let report = model::measure(&plan, |test| {
        if !global.json {
            note(&format!("{test} …"));
        }
    })?;
    if global.json {
        data_line(&document("quelea.bench-model/v1", &report, Value::Null)?)?;
    } else {
        show(&report)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(report: &ModelReport) -> Result<(), CliError> {
    #[expect(clippy::cast_precision_loss, reason = "a size for people")]
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let resident = report.resident_bytes.map_or_else(String::new, |bytes| format!(", {:.0} MB resident", mb(bytes)));
    let isa = report.isa.map_or_else(String::new, |isa| format!(", {isa}"));
    for line in [
        format!(
            "model     {} ({}, {}), {:.1} MB of weights",
            printable(&report.model),
            report.architecture,
            report.quantisation,
            mb(report.weight_bytes)
        ),
        format!("computed  on {}{isa}, {} thread(s), profile {}", report.device, report.threads, report.profile),
        format!(
            "loaded    in {:.2} s; first token {:.2} s after opening the file{resident}",
            report.load_seconds, report.first_token_seconds
        ),
        format!(
            "memory    {:.1} GB/s, reading as much as the weights take with as many threads",
            report.memory_bytes_per_second / 1e9
        ),
        format!(
            "products  {:.0} GOP/s, 64 rows by a Q8_0 matrix in the caches",
            report.product_operations_per_second / 1e9
        ),
        format!("measured  {} run(s) of each test after a cold one; tokens per second\n", report.repeat),
    ] {
        data_line(&line)?;
    }
    data_line("test            median       best   spread       cold   of memory   together")?;
    report.results.iter().try_for_each(|result| data_line(&test_line(result)))
}

fn test_line(result: &TestReport) -> String {
    let rates = &result.tokens_per_second;
    let share = result.memory_share.map_or_else(String::new, |share| format!("{:.0} %", share * 100.0));
    let together = result.tokens_per_batch.map_or_else(String::new, |rows| format!("{rows:.1}"));
    format!(
        "{:<12} {:>9.1}  {:>9.1}  ±{:>4.1} %  {:>9.1}  {share:>10}  {together:>9}",
        result.test,
        rates.median,
        rates.best,
        rates.spread() * 100.0,
        result.cold_tokens_per_second,
    )
    .trim_end()
    .to_owned()
}
