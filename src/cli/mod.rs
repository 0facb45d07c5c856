//! The command line: parses, runs one command, and ends with a documented exit code.

mod about;
mod agent;
mod args;
mod bans;
mod bench;
mod broadcast;
mod chat;
mod check;
mod client;
mod config;
mod context;
mod coverage;
mod daemon;
mod demo;
mod dht;
mod doctor;
mod embed;
mod events;
mod exit;
mod health;
mod infer;
mod key;
mod ledger;
mod line;
mod make;
mod masking;
mod model;
mod nat;
mod output;
mod peers;
mod plan;
mod receipt;
mod reference;
mod service;
mod shell;
mod stats;
mod status;
mod store;
mod table;
mod token;
mod trace;
mod ui;
mod upkeep;
mod verify;
mod watch;
mod weights;

use std::{ffi::OsString, process::ExitCode};

use clap::error::ErrorKind;
use quelea_wire::ErrorCode;

use self::{
    args::{Cli, Command},
    config::Unparsed,
    exit::CliError,
};
use crate::telemetry::{
    logging::{self, LogFormat},
    tail::LogTail,
};

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    let cli = match config::parse(&argv) {
        Ok(cli) => cli,
        Err(unparsed) => return refused(unparsed, &argv),
    };
    let as_json = cli.global.json;
    output::set_look(&cli.global);
    match start(cli) {
        Ok(code) => code,
        Err(error) => error.report(as_json),
    }
}

/// Says why a command line was not understood; shows the help that was asked for.
fn refused(unparsed: Unparsed, argv: &[OsString]) -> ExitCode {
    let as_json = argv.iter().skip(1).any(|arg| arg == "--json");
    match unparsed {
        Unparsed::Config(error) => error.report(as_json),
        Unparsed::Clap(error) if as_json && error.use_stderr() => usage_error(&error).report(true),
        Unparsed::Clap(error) => {
            // With nobody to read it there is nobody to tell.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}

/// What clap says of a command line, as an error of ours.
fn usage_error(error: &clap::Error) -> CliError {
    let text = error.to_string();
    let (message, rest) = text.split_once("\n\n").unwrap_or((&text, ""));
    let message = message.trim_start_matches("error: ").trim();
    let message = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a command is missing",
        _ => message,
    };
    let tip = rest.lines().map(str::trim).find_map(|line| line.strip_prefix("tip: "));
    CliError::new(ErrorCode::Usage, message).hint(tip.unwrap_or("see --help"))
}

fn start(cli: Cli) -> Result<ExitCode, CliError> {
    let format = match cli.global.log_format {
        args::LogFormat::Text => LogFormat::Text,
        args::LogFormat::Json => LogFormat::Json,
    };
    let quiet = !matches!(cli.command, Command::Daemon(_)) && cli.global.verbose == 0;
    // Commands other than the daemon show what they were asked for; their logs are for those who ask for them.
    let logs = if !quiet || std::env::var_os("RUST_LOG").is_some() {
        let logs = logging::init(format, cli.global.verbose, output::look().colour_of_errors);
        Some(logs.map_err(|e| CliError::new(ErrorCode::Usage, e.to_string()))?)
    } else {
        None
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::new(ErrorCode::Internal, format!("cannot start the runtime: {e}")))?;
    let result = runtime.block_on(dispatch(cli, logs));
    // Blocking work of a cancelled request may still run; nobody waits for it.
    runtime.shutdown_background();
    result
}

/// Runs one command. `logs` is what a daemon shows of its log.
async fn dispatch(cli: Cli, logs: Option<LogTail>) -> Result<ExitCode, CliError> {
    let global = match cli.command {
        // What is about this machine's own node.
        Command::Daemon(_) | Command::Init(_) | Command::Config(_) | Command::Key(_) | Command::Context(_) => {
            cli.global
        }
        _ => context::applied(cli.global)?,
    };
    let global = &global;
    match cli.command {
        Command::Daemon(args) => Box::pin(daemon::run(global, *args, logs)).await,
        Command::Demo(args) => Box::pin(demo::run(global, args)).await,
        Command::Infer(args) => Box::pin(infer::run(global, *args)).await,
        Command::Chat(args) => Box::pin(chat::run(global, args)).await,
        Command::Embed(args) => embed::run(global, args).await.map(|()| ExitCode::SUCCESS),
        Command::Receipt(command) => receipt::run(global, &command),
        Command::Verify(args) => Box::pin(verify::run(global, args)).await,
        Command::Plan(args) => Box::pin(plan::run(global, *args)).await,
        Command::Id { peer, format: Some(format) } => status::fields(global, peer.as_deref(), &format).await,
        Command::Id { peer: Some(peer), format: None } => peers::info(global, &peer).await,
        Command::Id { peer: None, format: None } => status::id(global).await,
        Command::Bootstrap(command) => peers::bootstrap(global, command).await,
        Command::Status(watch) => status::status(global, watch).await,
        Command::Peers(command) => peers::run(global, command).await,
        Command::Stats => stats::run(global).await,
        Command::Events(args) => events::run(global, args).await,
        Command::Broadcast(args) => broadcast::run(global, args).await,
        Command::Ping(args) => nat::ping(global, args).await,
        Command::Netcheck(args) => nat::netcheck(global, args).await,
        Command::Health(args) => health::run(global, args).await,
        Command::Model(command) => Box::pin(model::run(global, command)).await,
        Command::Dht(command) => dht::run(global, command).await,
        Command::Service(command) => Box::pin(service::run(global, *command)).await,
        Command::Store(command) => store::run(global, command).await,
        Command::Ledger(command) => ledger::run(global, command).await,
        Command::Trust(args) => ledger::trust(global, &args).await,
        Command::Bench(command) => Box::pin(bench::run(global, command)).await,
        Command::Doctor => Box::pin(doctor::run(global)).await,
        Command::Check(args) => check::run(global, args).await,
        Command::Metrics(args) => upkeep::metrics(global, &args).await,
        Command::Trace(command) => trace::run(global, command).await.map(|()| ExitCode::SUCCESS),
        Command::Logs(args) => upkeep::logs(global, &args).await,
        Command::LogLevel(args) => upkeep::log_level(global, &args).await,
        Command::Shutdown(args) => upkeep::shutdown(global, &args).await,
        Command::Debug(command) => Box::pin(upkeep::debug(global, command)).await,
        Command::Shell(args) => Box::pin(shell::run(global, &args)).await,
        Command::Agent(command) => agent::run(global, command).await,
        Command::Web(command) => agent::web(global, command).await,
        Command::Ui(args) => ui::run(global, args).await,
        Command::Token(command) => token::run(global, command).await,
        Command::Config(command) => config::run(global, command),
        Command::Init(args) => config::init(global, &args),
        Command::Key(command) => key::run(global, &command),
        Command::Context(command) => context::run(global, command),
        Command::Paths => about::paths(global),
        Command::Version(args) => about::version(global, &args),
        Command::Errors(command) => about::errors(global, command),
        Command::Completions(args) => reference::completions(&args),
        Command::Man(args) => reference::man(global, &args),
    }
}
