//! The command line: parses, runs one command, and ends with a documented exit code.

mod agent;
mod args;
mod bans;
mod bench;
mod broadcast;
mod client;
mod coverage;
mod daemon;
mod demo;
mod dht;
mod effective;
mod events;
mod exit;
mod health;
mod infer;
mod ledger;
mod make;
mod masking;
mod model;
mod nat;
mod output;
mod peers;
mod plan;
mod receipt;
mod service;
mod stats;
mod status;
mod store;
mod token;
mod ui;
mod verify;
mod weights;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use quelea_wire::ErrorCode;

use self::{
    args::{Cli, Command},
    exit::CliError,
};
use crate::{
    api::config::ConfigItem,
    node::settings::Shown,
    telemetry::logging::{self, LogFormat},
};

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let as_json = cli.global.json;
    match dispatch(cli, effective::of_daemon(&matches)) {
        Ok(code) => code,
        Err(error) => error.report(as_json),
    }
}

fn dispatch(cli: Cli, config: Vec<ConfigItem>) -> Result<ExitCode, CliError> {
    let format = match cli.global.log_format {
        args::LogFormat::Text => LogFormat::Text,
        args::LogFormat::Json => LogFormat::Json,
    };
    let quiet = !matches!(cli.command, Command::Daemon(_)) && cli.global.verbose == 0;
    // Commands other than the daemon show what they were asked for; their logs are for those who ask for them.
    let logs = if !quiet || std::env::var_os("RUST_LOG").is_some() {
        let logs = logging::init(format, cli.global.verbose);
        Some(logs.map_err(|e| CliError::new(ErrorCode::Usage, e.to_string()))?)
    } else {
        None
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::new(ErrorCode::Internal, format!("cannot start the runtime: {e}")))?;
    let global = &cli.global;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Daemon(args) => Box::pin(daemon::run(global, *args, Shown { config, logs })).await,
            Command::Demo(args) => Box::pin(demo::run(global, args)).await,
            Command::Infer(args) => Box::pin(infer::run(global, *args)).await,
            Command::Receipt(command) => receipt::run(global, &command),
            Command::Verify(args) => Box::pin(verify::run(global, args)).await,
            Command::Plan(args) => Box::pin(plan::run(global, *args)).await,
            Command::Id { peer: Some(peer) } => peers::info(global, &peer).await,
            Command::Id { peer: None } => status::id(global).await,
            Command::Bootstrap(command) => peers::bootstrap(global, command).await,
            Command::Status => status::status(global).await,
            Command::Peers(command) => peers::run(global, command).await,
            Command::Stats => stats::run(global).await,
            Command::Events(args) => events::run(global, args).await,
            Command::Broadcast(args) => broadcast::run(global, args).await,
            Command::Ping(args) => nat::ping(global, args).await,
            Command::Netcheck(args) => nat::netcheck(global, args).await,
            Command::Health(args) => health::run(global, args).await,
            Command::Model(command) => Box::pin(model::run(global, command)).await,
            Command::Agent(command) => agent::run(global, command).await,
            Command::Web(command) => agent::web(global, command).await,
            Command::Dht(command) => dht::run(global, command).await,
            Command::Service(command) => Box::pin(service::run(global, *command)).await,
            Command::Store(command) => store::run(global, command).await,
            Command::Ledger(command) => ledger::run(global, command).await,
            Command::Trust(args) => ledger::trust(global, &args).await,
            Command::Bench(command) => Box::pin(bench::run(global, command)).await,
            Command::Ui(args) => ui::run(global, args).await,
            Command::Token(command) => token::run(global, command).await,
        }
    });
    // Blocking work of a cancelled request may still run; nobody waits for it.
    runtime.shutdown_background();
    result
}
