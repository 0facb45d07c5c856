//! `quelea shell`: the commands, one line each, without starting the program for each.

mod complete;

use std::{
    io::{self, BufRead as _, IsTerminal as _},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use clap::Parser as _;
use quelea_wire::ErrorCode;
use serde_json::Value;

use self::complete::Completions;
use super::{
    args::{Cli, Command, Global, ShellArgs},
    client::{Daemon, home},
    exit::{CliError, Exit},
    line::{Editor, Entered},
    output::{data_line, note, set_look},
    usage_error,
};

/// How long the daemon may take to name peers for completion.
const NAMES_WITHIN: Duration = Duration::from_millis(500);

/// Words that stand for longer commands.
const SHORT: [(&[&str], &[&str]); 4] = [
    (&["peers"], &["peers", "list"]),
    (&["known"], &["peers", "known"]),
    (&["ledger"], &["ledger", "balance"]),
    (&["bootstrap"], &["bootstrap", "list"]),
];

/// What `help` says before the commands.
const HELP: &str = "a command a line, as after 'quelea'; Tab completes, peer ids too\n\
also: known, peers, ledger (without more: a list), broadcast TEXT (no quotes needed), quit, # a remark\n";

pub(super) async fn run(global: &Global, args: &ShellArgs) -> Result<ExitCode, CliError> {
    if io::stdin().is_terminal() && !global.no_input {
        return interactive(global).await;
    }
    let mut first = None;
    loop {
        let line = tokio::task::block_in_place(|| {
            let mut line = String::new();
            io::stdin().lock().read_line(&mut line).map(|read| (read > 0).then_some(line))
        });
        let line = line.map_err(|e| CliError::new(ErrorCode::Usage, format!("cannot read from stdin: {e}")))?;
        let Some(line) = line else { break };
        match Box::pin(execute(global, &line)).await {
            Done::Well => {}
            Done::Failed(code) => {
                first.get_or_insert(code);
                if args.stop {
                    break;
                }
            }
            Done::Quit => break,
        }
    }
    Ok(first.unwrap_or(ExitCode::SUCCESS))
}

async fn interactive(global: &Global) -> Result<ExitCode, CliError> {
    let history = home(global).ok().filter(|home| home.dir().is_dir()).map(|home| home.dir().join("shell.history"));
    let peers = Arc::new(Mutex::new(Vec::new()));
    let mut editor = Editor::new("quelea", history, Some(Box::new(Completions::new(peers.clone()))));
    note("'help' shows the commands, 'quit' ends");
    loop {
        if let Some(names) = names(global).await {
            *peers.lock().unwrap_or_else(PoisonError::into_inner) = names;
        }
        match editor.read()? {
            Entered::Line(line) => {
                if let Done::Quit = Box::pin(execute(global, &line)).await {
                    break;
                }
            }
            Entered::Nothing => {}
            Entered::End => break,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The ids of known peers, if the daemon says them at once.
async fn names(global: &Global) -> Option<Vec<String>> {
    let daemon = Daemon::find(global).ok()?;
    let known = tokio::time::timeout(NAMES_WITHIN, daemon.get("/api/v1/peers/known")).await.ok()?.ok()?;
    let id = |peer: &Value| Some(peer["peer_id"].as_str()?.to_owned());
    Some(known["items"].as_array()?.iter().filter_map(id).collect())
}

/// How a line ended.
enum Done {
    Well,
    Failed(ExitCode),
    Quit,
}

/// Runs one line.
async fn execute(global: &Global, line: &str) -> Done {
    let failed = |error: CliError, as_json: bool| Done::Failed(error.report(as_json));
    let words = match words(line) {
        Ok(words) => words,
        Err(error) => return failed(error, global.json),
    };
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => return Done::Well,
        ["quit" | "exit"] => return Done::Quit,
        ["help"] => {
            let help = format!("{HELP}\n{}", super::reference::tree().render_help());
            return data_line(&help).map_or_else(|error| failed(error, global.json), |()| Done::Well);
        }
        _ => {}
    }
    let cli = match Cli::try_parse_from(std::iter::once("quelea".to_owned()).chain(words)) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return Done::Well;
        }
        Err(error) => return failed(usage_error(&error), global.json),
    };
    let cli = Cli { global: within(global, cli.global), ..cli };
    if let Command::Shell(_) | Command::Daemon(_) = cli.command {
        let error = CliError::new(ErrorCode::Usage, "that is no command of the shell").hint("run it outside");
        return failed(error, cli.global.json);
    }
    set_look(&cli.global);
    let as_json = cli.global.json;
    let ended = tokio::select! {
        biased;
        ended = Box::pin(super::dispatch(cli, None)) => ended,
        // Those that do not listen for it themselves end here, and the shell goes on.
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(Exit::Interrupted as u8)),
    };
    set_look(global);
    match ended {
        Ok(code) if code == ExitCode::SUCCESS => Done::Well,
        Ok(code) => Done::Failed(code),
        Err(error) => failed(error, as_json),
    }
}

/// The words of a line, with short commands written out.
fn words(line: &str) -> Result<Vec<String>, CliError> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(Vec::new());
    }
    // What is said to everybody needs no quotes.
    if let Some(text) = line.strip_prefix("broadcast ").map(str::trim)
        && !text.starts_with(['-', '"', '\''])
    {
        return Ok(vec!["broadcast".into(), "--".into(), text.into()]);
    }
    let words = shlex::split(line)
        .ok_or_else(|| CliError::new(ErrorCode::Usage, "a quote is not closed").hint("'…' or \"…\""))?;
    let short = SHORT.iter().find(|(short, _)| words.iter().map(String::as_str).eq(short.iter().copied()));
    Ok(match short {
        Some((_, long)) => long.iter().map(|word| (*word).to_owned()).collect(),
        None => words,
    })
}

/// A line's flags; what it does not say is as the shell was started.
fn within(shell: &Global, line: Global) -> Global {
    Global {
        json: line.json || (shell.json && !line.plain),
        plain: line.plain || (shell.plain && !line.json),
        quiet: line.quiet || (shell.quiet && line.verbose == 0),
        no_input: line.no_input || shell.no_input,
        yes: line.yes || shell.yes,
        timeout: line.timeout.or(shell.timeout),
        config: shell.config.clone().or(line.config),
        // Flags of the line come from the environment as well, which a flag of the shell overrides.
        data_dir: shell.data_dir.clone().or(line.data_dir),
        api: shell.api.clone().or(line.api),
        api_token_file: line.api_token_file.or_else(|| shell.api_token_file.clone()),
        color: shell.color,
        ..line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_as_a_shell_would() {
        let split = |line: &str| words(line).unwrap();
        assert_eq!(split("  peers  "), ["peers", "list"]);
        assert_eq!(split("peers known"), ["peers", "known"]);
        assert_eq!(split("known"), ["peers", "known"]);
        assert_eq!(
            split("infer \"What is a relay?\" --max-tokens 4"),
            ["infer", "What is a relay?", "--max-tokens", "4"]
        );
        assert_eq!(split("broadcast it's -5 here"), ["broadcast", "--", "it's -5 here"]);
        assert_eq!(split("broadcast \"hello\" --json"), ["broadcast", "hello", "--json"]);
        assert!(split("# a remark").is_empty() && split("").is_empty());
        assert!(words("infer \"open").is_err());
    }
}
