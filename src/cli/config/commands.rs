//! `quelea config` and `quelea init`.

use std::process::ExitCode;

use clap::ValueEnum as _;
use quelea_wire::ErrorCode;
use serde_json::{Value, json};

use super::{edit, file, layers, path_of, profile};
use crate::{
    api::shape,
    cli::{
        args::{ConfigCommand, Global, InitArgs, ProfileArg},
        client::{home, unusable},
        exit::{CliError, Exit},
        output::{data_line, note},
        table::Listing,
    },
    home::Home,
    identity,
};

pub(in crate::cli) fn run(global: &Global, command: ConfigCommand) -> Result<ExitCode, CliError> {
    match command {
        ConfigCommand::Show { origin } => {
            let (path, settings) = layers::effective(global)?;
            data_line(&layers::shown(global, &path, &settings, origin))?;
        }
        ConfigCommand::Get { key } => get(global, &key)?,
        ConfigCommand::Set { key, values } => set(global, &key, Some(&values))?,
        ConfigCommand::Unset { key } => set(global, &key, None)?,
        ConfigCommand::Edit => edit::edit(global)?,
        ConfigCommand::Validate { file } => validate(global, file)?,
        ConfigCommand::Path => {
            let path = path_of(global, &home(global)?);
            let document = json!({ "schema": "quelea.config.path/v1", "path": path, "exists": path.exists() });
            data_line(&if global.json { document.to_string() } else { path.display().to_string() })?;
        }
        ConfigCommand::Profiles => profiles(global)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn get(global: &Global, name: &str) -> Result<(), CliError> {
    let key = layers::key(name)?;
    let (path, settings) = layers::effective(global)?;
    let one: Vec<_> = settings.into_iter().filter(|setting| setting.key == key.name).collect();
    if global.json {
        return data_line(&layers::shown(global, &path, &one, false));
    }
    let values: Vec<String> = one.into_iter().flat_map(|setting| setting.values).collect();
    if values.is_empty() { Ok(()) } else { data_line(&values.join("\n")) }
}

fn set(global: &Global, name: &str, values: Option<&[String]>) -> Result<(), CliError> {
    let key = layers::key(name)?;
    if let Some(values) = values {
        layers::check(&key, values).map_err(|what| CliError::new(ErrorCode::Usage, what))?;
    }
    let path = path_of(global, &home(global)?);
    // A file that is wrong already is not written to.
    file::read(&path, &layers::keys())?;
    file::change(&path, &key, values)?;
    if global.json {
        let document = json!({ "schema": "quelea.config.set/v1", "key": key.name, "values": values, "path": path });
        return data_line(&document.to_string());
    }
    note(&format!("written to {}; a daemon reads it when it starts", path.display()));
    Ok(())
}

fn validate(global: &Global, file: Option<std::path::PathBuf>) -> Result<(), CliError> {
    let global = Global { config: file.or_else(|| global.config.clone()), ..global.clone() };
    let (path, settings) = layers::effective(&global)?;
    if global.json {
        let set = settings.iter().filter(|setting| matches!(setting.origin, layers::Origin::File(_))).count();
        let document =
            json!({ "schema": "quelea.config.validate/v1", "path": path, "exists": path.exists(), "set": set });
        return data_line(&document.to_string());
    }
    let text = if path.exists() { "is right" } else { "is not there, which is right, too" };
    note(&format!("{} {text}", path.display()));
    Ok(())
}

fn profiles(global: &Global) -> Result<(), CliError> {
    let all = ProfileArg::value_variants().iter().copied();
    if global.json {
        let item = |profile: ProfileArg| {
            let settings: serde_json::Map<String, Value> =
                profile::settings(profile).iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
            json!({ "name": layers::name_of(profile), "about": profile::about(profile), "settings": settings })
        };
        return data_line(&shape::list("quelea.config.profiles/v1", all.map(item).collect()).to_string());
    }
    let mut table = Listing::new(["PROFILE", "FOR", "SETS"]);
    for profile in all {
        let sets: Vec<String> =
            profile::settings(profile).iter().map(|(key, value)| format!("{key}={value}")).collect();
        table.add_row([layers::name_of(profile).to_owned(), profile::about(profile).to_owned(), sets.join(" ")]);
    }
    data_line(&table.to_string())
}

/// Makes what a daemon needs, and says how to start it.
pub(in crate::cli) fn init(global: &Global, args: &InitArgs) -> Result<ExitCode, CliError> {
    let home = Home::new(global.data_dir.clone()).map_err(unusable)?;
    let path = path_of(global, &home);
    if path.exists() && !args.force {
        let error = CliError::new(ErrorCode::Usage, format!("{} is there already", path.display()));
        return Err(error.exit(Exit::Failed).hint("--force writes it anew; the identity is kept in any case"));
    }
    let unusable = |e: identity::IdentityError| CliError::new(ErrorCode::IdentityUnusable, e.to_string());
    let keypair = identity::load_or_create(&home.identity_key()).map_err(unusable)?;
    identity::load_or_create_token(&home.api_token()).map_err(unusable)?;
    let mut text = String::from(
        "# Settings of 'quelea daemon': a key is a flag's long name. 'quelea config show --origin' has all of them, and says\n\
         # where each value comes from; 'quelea daemon --dry-run' looks whether they are right.\n",
    );
    if let Some(profile) = args.profile {
        text.push_str(&format!("\n# {}\nprofile = {:?}\n", profile::about(profile), layers::name_of(profile)));
    }
    text.push_str("\n# bootstrap = [\"/ip4/203.0.113.7/tcp/8468/p2p/12D3KooW…\"]\n# model = \"demo\"\n");
    file::write(&path, &text)?;
    let peer = keypair.public().to_peer_id();
    if global.json {
        let document = json!({
            "schema": "quelea.init/v1", "peer_id": peer.to_string(), "data_dir": home.dir(), "config": path,
            "profile": args.profile.map(layers::name_of),
        });
        data_line(&document.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    data_line(&format!("peer id:  {peer}\ndata:     {}\nconfig:   {}", home.dir().display(), path.display()))?;
    let dir = global.data_dir.as_ref().map_or(String::new(), |dir| format!(" --data-dir {}", dir.display()));
    note(&format!("next:     quelea daemon{dir}"));
    Ok(ExitCode::SUCCESS)
}
