//! `quelea embed`: what a model makes of texts, as vectors, over `/v1/embeddings`.

use std::io::Read as _;

use quelea_wire::ErrorCode;
use serde_json::{Value, json};

use super::{
    args::{EmbedArgs, Global},
    client::Daemon,
    exit::CliError,
    output::data_line,
};

/// The longest text from stdin: as much as a request takes, less what stands around it.
const TEXT_MAX: u64 = 3 << 20;

pub(super) async fn run(global: &Global, args: EmbedArgs) -> Result<(), CliError> {
    let texts = args.texts.iter().map(|text| if text == "-" { from_stdin() } else { Ok(text.clone()) });
    let texts: Vec<String> = texts.collect::<Result<_, _>>()?;
    let request = json!({ "model": args.model, "input": texts, "encoding_format": "float" });
    let daemon = Daemon::find(global)?;
    let response = daemon.post("/v1/embeddings", &request).await?;
    let answer: Value = response.json().await.map_err(|error| daemon.lost(&error))?;
    let vectors = answer["data"].as_array().map_or(&[][..], Vec::as_slice);
    if global.json {
        let items: Vec<Value> =
            vectors.iter().map(|one| json!({ "index": one["index"], "embedding": one["embedding"] })).collect();
        let document = json!({
            "schema": "quelea.embed/v1", "model": answer["model"], "items": items,
            "prompt_tokens": answer["usage"]["prompt_tokens"],
        });
        return data_line(&document.to_string());
    }
    for one in vectors {
        let values = one["embedding"].as_array().map_or(&[][..], Vec::as_slice);
        data_line(&values.iter().map(Value::to_string).collect::<Vec<_>>().join(" "))?;
    }
    Ok(())
}

fn from_stdin() -> Result<String, CliError> {
    let wrong = |what: &dyn std::fmt::Display| {
        CliError::new(ErrorCode::Usage, format!("cannot read the text from stdin: {what}"))
    };
    let mut text = String::new();
    std::io::stdin().take(TEXT_MAX + 1).read_to_string(&mut text).map_err(|error| wrong(&error))?;
    if u64::try_from(text.len()).is_ok_and(|length| length > TEXT_MAX) {
        return Err(wrong(&format!("it is longer than {} MiB", TEXT_MAX >> 20)));
    }
    Ok(text)
}
