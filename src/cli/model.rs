//! `quelea model`: diagnostics for people who port models.

use std::process::ExitCode;

use quelea_engine::{
    Chain, ChainError, Gguf, Manifest, Stage, StageError, log_probs,
    tokenizer::{EncodeOptions, Tokenizer},
};
use quelea_wire::ErrorCode;
use serde_json::json;

use super::{
    args::{Global, LogitsArgs, ModelCommand},
    coverage,
    exit::CliError,
    make,
    output::{data_line, printable},
    weights,
};
use crate::inference::{
    memory,
    models::{open_gguf, unusable},
};

pub(super) async fn run(global: &Global, command: ModelCommand) -> Result<ExitCode, CliError> {
    match command {
        ModelCommand::Show { file } => show(global, &file),
        ModelCommand::Coverage(args) => coverage::run(global, *args).await,
        ModelCommand::Tokenize { file, text, special } => tokenize(global, &file, &text, special),
        ModelCommand::Logits(args) => logits(global, &args),
        ModelCommand::Pull(args) => Box::pin(weights::pull(global, args)).await,
        ModelCommand::List => weights::list(global).await,
        ModelCommand::Rm { id } => weights::rm(global, &id).await,
        ModelCommand::Import { path, models_quota } => weights::import(global, path, models_quota).await,
        ModelCommand::Ps => weights::ps(global).await,
        ModelCommand::Synth(args) => make::synth(global, args).await,
        ModelCommand::Quantize(args) => make::quantize(global, args).await,
    }
    .map(|()| ExitCode::SUCCESS)
}

fn show(global: &Global, file: &str) -> Result<(), CliError> {
    let manifest = match weights::kept(global, file)? {
        // Of a model of the store the hashes are known, whatever is there of it.
        Some(kept) => Manifest::clone(&kept.manifest),
        None => {
            let gguf = open_gguf(file)?;
            // What is shown should be what can be run; looking at shapes is cheap beside hashing.
            Stage::check_file(&gguf).map_err(|e| unusable(file, &e))?;
            Manifest::from_gguf(&gguf).map_err(|e| unusable(file, &e))?
        }
    };
    let id = hex::encode(manifest.id());
    let bytes: u64 = manifest.layers.iter().map(|part| part.bytes).sum();
    if global.json {
        return data_line(
            &json!({
                "schema": "quelea.model/v1",
                "id": id,
                "name": manifest.name,
                "architecture": manifest.architecture,
                "quantisation": manifest.quantisation,
                "layers": manifest.n_layers,
                "hidden": manifest.hidden,
                "vocab": manifest.vocab,
                "context": manifest.context_length,
                "layer_bytes": manifest.layers.iter().map(|part| part.bytes).collect::<Vec<_>>(),
                "embedding_bytes": manifest.embedding.bytes,
                "head_bytes": manifest.head.bytes,
                "kv_bytes_per_token_and_layer": manifest.kv_bytes_per_row_per_layer(),
            })
            .to_string(),
        );
    }
    let lines = [
        ("id", id),
        ("name", printable(&manifest.name)),
        ("family", manifest.architecture.clone()),
        ("quantisation", manifest.quantisation.clone()),
        ("layers", format!("{} ({:.1} MiB)", manifest.n_layers, mib(bytes))),
        ("embedding", format!("{:.1} MiB", mib(manifest.embedding.bytes))),
        ("head", format!("{:.1} MiB", mib(manifest.head.bytes))),
        ("hidden", manifest.hidden.to_string()),
        ("vocabulary", manifest.vocab.to_string()),
        ("context", manifest.context_length.to_string()),
    ];
    for (name, value) in lines {
        data_line(&format!("{name:<13} {value}"))?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a size for people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn tokenize(global: &Global, file: &str, text: &str, special: bool) -> Result<(), CliError> {
    let tokenizer = Tokenizer::from_gguf(&open_gguf(file)?).map_err(|e| unusable(file, &e))?;
    let add_bos = special && tokenizer.defaults().add_bos;
    let ids = tokenizer.encode(text, EncodeOptions { parse_special: special, add_bos });
    if global.json {
        return data_line(&json!({ "ids": ids }).to_string());
    }
    for id in ids {
        data_line(&format!("{id:>8}  {:?}", tokenizer.piece(id).unwrap_or_default()))?;
    }
    Ok(())
}

/// Tokenised as the file's own settings say.
fn ids_of(gguf: &Gguf, file: &str, text: &str) -> Result<Vec<u32>, CliError> {
    let tokenizer = Tokenizer::from_gguf(gguf).map_err(|e| unusable(file, &e))?;
    Ok(tokenizer.encode_input(text))
}

fn logits(global: &Global, args: &LogitsArgs) -> Result<(), CliError> {
    let file = &args.file;
    let gguf = open_gguf(file)?;
    let ids = match (&args.ids, &args.text) {
        (Some(ids), _) => ids.clone(),
        (None, text) => ids_of(&gguf, file, text.as_deref().unwrap_or_default())?,
    };
    memory::check_whole(file, &gguf, u64::try_from(ids.len()).unwrap_or(u64::MAX))?;
    let options = args.isa.with(args.compute);
    let chain = Chain::load_with(&gguf, &args.split, &options);
    let logits = chain.and_then(|mut chain| chain.advance_by(&ids, args.chunk)).map_err(|error| match error {
        ChainError::Load(error) => unusable(file, &error).into(),
        ChainError::Stage(error @ (StageError::Backend(_) | StageError::NotFinite { .. })) => {
            CliError::new(ErrorCode::EngineFailed, format!("{file:?}: {error}"))
        }
        // Ids, cuts, or more tokens than the context holds: what was asked for.
        error => CliError::new(ErrorCode::Usage, format!("{file:?}: {error}")),
    })?;
    let mut ranked: Vec<(u32, f32)> = (0..).zip(log_probs(&logits)).collect();
    if let Some(top) = args.top {
        // Ties go to the lower id, as greedy sampling has it.
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.truncate(top);
    }
    if global.json {
        let logprobs: Vec<_> = ranked.iter().map(|(id, value)| json!([id, value])).collect();
        return data_line(&json!({ "ids": ids, "logprobs": logprobs }).to_string());
    }
    let tokenizer = Tokenizer::from_gguf(&gguf).ok();
    for (id, value) in ranked {
        let piece = tokenizer.as_ref().and_then(|t| t.piece(id)).unwrap_or_default();
        data_line(&format!("{id:>8}  {value:>10.5}  {piece:?}"))?;
    }
    Ok(())
}
