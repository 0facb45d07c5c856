//! `quelea key …`: the identity that the node's peer id, its account and its signatures come from.

use std::{path::PathBuf, process::ExitCode};

use libp2p::identity::Keypair;
use quelea_wire::ErrorCode;
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    args::{Global, KeyCommand},
    client::home,
    config,
    exit::{CliError, Exit},
    output::{data_line, note},
};
use crate::identity::{self, Existing, IdentityError};

pub(super) fn run(global: &Global, command: &KeyCommand) -> Result<ExitCode, CliError> {
    let path = path(global)?;
    let keypair = identity::load(&path).map_err(unusable)?;
    let peer = keypair.public().to_peer_id();
    match command {
        KeyCommand::Show => {
            let public = hex::encode(public(&keypair)?);
            if global.json {
                let document = json!({
                    "schema": "quelea.key/v1", "peer_id": peer.to_string(), "type": "ed25519", "public_key": public,
                    "path": path,
                });
                data_line(&document.to_string())?;
            } else {
                let path = path.display();
                data_line(&format!(
                    "peer id:     {peer}\ntype:        ed25519\npublic key:  {public}\nfile:        {path}"
                ))?;
            }
        }
        KeyCommand::Export { file } => {
            let encoded = Zeroizing::new(keypair.to_protobuf_encoding().map_err(|e| undecodable(&e))?);
            identity::write_secret(file, &encoded, Existing::Keep).map_err(|error| match error {
                IdentityError::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists => {
                    let message = format!("{} is there already", file.display());
                    CliError::new(ErrorCode::Usage, message)
                        .exit(Exit::Failed)
                        .hint("nothing is overwritten; name another")
                }
                error => unusable(error),
            })?;
            if global.json {
                let document = json!({ "schema": "quelea.key.export/v1", "peer_id": peer.to_string(), "path": file });
                data_line(&document.to_string())?;
            } else {
                note(&format!("the key of {peer} is in {}", file.display()));
            }
            note(
                "whoever has it is this node and owns its credit; never let two nodes run with it at once: \
                 both would sign, and that is proof of fraud",
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The file that a daemon would read.
fn path(global: &Global) -> Result<PathBuf, CliError> {
    let (_, settings) = config::effective(global)?;
    let set = settings
        .into_iter()
        .find(|setting| setting.key == "identity")
        .and_then(|setting| setting.values.into_iter().next());
    set.map_or_else(|| home(global).map(|home| home.identity_key()), |path| Ok(path.into()))
}

fn public(keypair: &Keypair) -> Result<[u8; 32], CliError> {
    let public = keypair.public().try_into_ed25519().map_err(|e| undecodable(&e))?;
    Ok(public.to_bytes())
}

fn undecodable(error: &dyn std::fmt::Display) -> CliError {
    CliError::new(ErrorCode::IdentityUnusable, error.to_string())
}

fn unusable(error: IdentityError) -> CliError {
    match &error {
        IdentityError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            CliError::new(ErrorCode::NotFound, error.to_string()).hint("'quelea init' makes an identity")
        }
        _ => CliError::new(ErrorCode::IdentityUnusable, error.to_string()),
    }
}
