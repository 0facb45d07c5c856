//! `quelea token …`: through the daemon, or in its directory when none runs.

use std::process::ExitCode;

use quelea_wire::ErrorCode;
use serde_json::{Value, json};

use super::{
    args::{Global, TokenCommand},
    client::{Daemon, home, unusable},
    exit::CliError,
    output::{data_line, note},
};
use crate::{
    api::{
        access::{Scope, TokenError, Tokens},
        login::{explain, shown},
        shape,
    },
    home::Home,
    text::escaped,
};

pub(super) async fn run(global: &Global, command: TokenCommand) -> Result<ExitCode, CliError> {
    match Daemon::find(global)?.get("/api/v1/id").await {
        Err(error) if error.code == ErrorCode::DaemonUnreachable && global.api.is_none() => {
            // Nobody holds the directory while this goes on: a daemon that starts meanwhile says so.
            let home = Home::new(Some(home(global)?.dir().to_owned())).map_err(unusable)?;
            let _lock = home.lock().map_err(unusable)?;
            let tokens = Tokens::open(&home.tokens()).map_err(failed)?;
            show(global, &command, &on_disk(&tokens, &command)?)
        }
        Err(error) => Err(error),
        Ok(_) => show(global, &command, &at_daemon(&Daemon::find(global)?, &command).await?),
    }
}

async fn at_daemon(daemon: &Daemon, command: &TokenCommand) -> Result<Value, CliError> {
    let (route, body) = match command {
        TokenCommand::List => return daemon.get("/api/v1/tokens").await,
        TokenCommand::Create { name, scope, expires } => {
            let expires = expires.map(|expires| expires.as_secs());
            ("/api/v1/tokens", json!({ "name": name, "scopes": scope, "expires_s": expires }))
        }
        TokenCommand::Revoke { token } => ("/api/v1/tokens/revoke", json!({ "token": token })),
    };
    daemon.post(route, &body).await?.json().await.map_err(|e| daemon.lost(&e))
}

fn on_disk(tokens: &Tokens, command: &TokenCommand) -> Result<Value, CliError> {
    Ok(match command {
        TokenCommand::List => shape::list("quelea.tokens/v1", tokens.list().iter().map(shown).collect()),
        TokenCommand::Create { name, scope, expires } => {
            let scopes: Vec<Scope> = scope.iter().filter_map(|scope| scope.parse().ok()).collect();
            let lifetime = expires.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            let (token, secret) = tokens.create(name, scopes, lifetime).map_err(failed)?;
            let mut made = shown(&token);
            made["schema"] = json!("quelea.token/v1");
            made["token"] = json!(secret.as_str());
            made
        }
        TokenCommand::Revoke { token } => {
            let mut gone = shown(&tokens.revoke(token).map_err(failed)?);
            gone["schema"] = json!("quelea.token_revoke/v1");
            gone
        }
    })
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: TokenError) -> CliError {
    explain(&error).into()
}

fn show(global: &Global, command: &TokenCommand, answer: &Value) -> Result<ExitCode, CliError> {
    let text = |value: &Value| escaped(value.as_str().unwrap_or("-"));
    if global.json {
        data_line(&answer.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    match command {
        TokenCommand::Create { .. } => {
            data_line(answer["token"].as_str().unwrap_or_default())?;
            note(&format!("this is shown once; 'quelea token revoke {}' takes it back", text(&answer["id"])));
        }
        TokenCommand::Revoke { .. } => {
            note(&format!("the token {} ({}) opens nothing any more", text(&answer["id"]), text(&answer["name"])));
        }
        TokenCommand::List => {
            let tokens = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
            for token in tokens {
                let scopes = token["scopes"].as_array().map_or(&[][..], Vec::as_slice);
                let scopes: Vec<String> = scopes.iter().map(text).collect();
                let ends = match token["expires_at_s"].as_f64() {
                    Some(at) if at * 1e3 < quelea_wire::time::unix_ms() as f64 => "  ended",
                    Some(_) => "  ends by itself",
                    None => "",
                };
                data_line(&format!(
                    "{}  {:<20}  {}{ends}",
                    text(&token["id"]),
                    text(&token["name"]),
                    scopes.join(",")
                ))?;
            }
            if tokens.is_empty() {
                note("no tokens; 'quelea token create NAME --scope read' makes one");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
