//! `quelea version`, `errors` and `paths`: what the program says about itself.

use std::process::ExitCode;

use quelea_engine::Isa;
use quelea_wire::ErrorCode;
use serde_json::{Value, json};

use super::{
    args::{ErrorsCommand, Global, VersionArgs},
    client::{home, unusable},
    exit::{CliError, Exit},
    output::data_line,
    table::Listing,
};
use crate::{api::shape, storage, telemetry::metrics::BuildInfo};

pub(super) fn version(global: &Global, args: &VersionArgs) -> Result<ExitCode, CliError> {
    let build = BuildInfo::default();
    let mut document = json!({ "schema": "quelea.version/v1", "version": build.version });
    let mut lines = vec![format!("quelea {}", build.version)];
    if args.all {
        let isas: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        let target = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
        lines.push(format!("commit        {}", build.commit));
        lines.push(format!("rustc         {}", build.rustc));
        lines.push(format!("features      {}", if build.features.is_empty() { "none" } else { &*build.features }));
        lines.push(format!("target        {target}"));
        lines.push(format!("kernels       {}", isas.join(", ")));
        lines.push(format!("database      schema {}", storage::SCHEMA));
        document["commit"] = build.commit.into();
        document["rustc"] = build.rustc.into();
        document["features"] = build.features.split(',').filter(|name| !name.is_empty()).collect::<Vec<_>>().into();
        document["target"] = target.into();
        document["kernels"] = isas.into();
        document["database_schema"] = storage::SCHEMA.into();
    }
    data_line(&if global.json { document.to_string() } else { lines.join("\n") })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn errors(global: &Global, command: ErrorsCommand) -> Result<ExitCode, CliError> {
    match command {
        ErrorsCommand::Lookup { code } => {
            let number = code.to_ascii_uppercase().trim_start_matches("QUE-").parse().ok();
            let found = number.and_then(|n: u16| ErrorCode::ALL.iter().copied().find(|code| code.to_u16() == n));
            let Some(found) = found else {
                let message = format!("there is no error code {code:?}");
                return Err(CliError::new(ErrorCode::Usage, message)
                    .exit(Exit::NotFound)
                    .hint("'quelea errors list' shows all"));
            };
            let mut document = described(found);
            document["schema"] = "quelea.error/v1".into();
            data_line(&if global.json { document.to_string() } else { explained(found) })?;
        }
        ErrorsCommand::List if global.json => {
            let items = ErrorCode::ALL.iter().map(|code| described(*code)).collect();
            data_line(&shape::list("quelea.errors/v1", items).to_string())?;
        }
        ErrorsCommand::List => {
            let mut table = Listing::new(["CODE", "EXIT", "AGAIN", "MEANING"]);
            for code in ErrorCode::ALL {
                let exit = (Exit::of(*code) as u8).to_string();
                let again = if code.retryable() { "yes" } else { "no" };
                table.add_row([code.to_string(), exit, again.into(), code.meaning().into()]);
            }
            data_line(&table.to_string())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn described(code: ErrorCode) -> Value {
    json!({
        "code": code.to_string(),
        "meaning": code.meaning(),
        "retryable": code.retryable(),
        "charged": code.charged(),
        "exit": Exit::of(code) as u8,
    })
}

fn explained(code: ErrorCode) -> String {
    let again = if code.retryable() { "trying again may help" } else { "trying again does not help" };
    let paid = if code.charged() { "work may have been paid for" } else { "nothing was paid for" };
    format!("{code}: {}\n{again}; {paid}; commands end with exit code {}", code.meaning(), Exit::of(code) as u8)
}

pub(super) fn paths(global: &Global) -> Result<ExitCode, CliError> {
    let home = home(global)?;
    let socket = home.socket().map_err(unusable)?;
    let all = [
        ("data", home.dir().to_owned()),
        ("config", super::config::path_of(global, &home)),
        ("identity", home.identity_key()),
        ("database", home.database()),
        ("socket", socket),
        ("token", home.api_token()),
        ("daemon", home.daemon_json()),
        ("models", home.models()),
        ("sessions", home.sessions()),
        ("claims", home.claims()),
    ];
    if global.json {
        let items = all.iter().map(|(name, path)| json!({ "name": name, "path": path, "exists": path.exists() }));
        data_line(&shape::list("quelea.paths/v1", items.collect()).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Listing::new(["WHAT", "PATH", "THERE"]);
    for (name, path) in all {
        let there = if path.exists() { "yes" } else { "no" };
        table.add_row([name.to_owned(), path.display().to_string(), there.to_owned()]);
    }
    data_line(&table.to_string())?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_explained_with_their_exit_code() {
        assert!(explained(ErrorCode::NoCredit).contains("exit code 7"));
        assert_eq!(described(ErrorCode::DaemonUnreachable)["exit"], 3);
    }
}
