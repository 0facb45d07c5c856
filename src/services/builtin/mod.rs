//! The services that ship with the node.
//!
//! Prices are seeds that operators change: in thousandths of a credit, so that a newcomer, who may owe one credit, can call each
//! of them (docs/adr/0038).

pub(super) mod compute;
mod distributed;
mod echo;
mod prompt;
pub(super) mod upstream;

use std::{path::PathBuf, sync::Arc};

use quelea_service::Name;
use quelea_wire::ErrorCode;

use self::{
    compute::{Compute, Runner},
    upstream::{Offer, Remote},
};
use super::{ServiceSettings, local::Local, registry::Registry, service::Service};
use crate::{
    inference::{Asker, InferError},
    telemetry::Telemetry,
};

/// A thousandth of a credit, in micro-credits.
const MILLI: u64 = 1000;

/// The names that ship, which are labels of metrics; all others are one.
const NAMES: [&str; 6] = ["compute", "echo", "llm_distributed", "llm_local", "llm_prompt", "web_read"];

/// A service's name as a label's value, from a fixed set.
pub(super) fn label(name: &Name) -> &'static str {
    NAMES.into_iter().find(|known| *known == name.as_str()).unwrap_or("other")
}

const LOCAL: Offer = Offer { price: 30 * MILLI, at_once: 2, about: "Asks a model on the provider's own machine" };

/// With a program of ours, which answers one after the other.
const LOCAL_MODEL: Offer = Offer { at_once: 1, ..LOCAL };

const PROMPT: Offer =
    Offer { price: 50 * MILLI, at_once: 8, about: "Asks a model behind an API of the provider's choice" };

const LOCAL_WANTS: &str = "it wants a model of this machine as --llm-local-path (a GGUF file, or a folder as Hugging Face lays it \
out), or a server that speaks the OpenAI API, like Ollama, as --llm-local-url http://127.0.0.1:11434/v1";

const PROMPT_WANTS: &str =
    "it wants --llm-prompt-url, and the key for it as --llm-prompt-key-file or in QUELEA_LLM_PROMPT_KEY";

/// Adds them all; none is offered yet. Gives what keeps a process that has to be stopped.
pub(super) fn add_all(
    registry: &Registry,
    asker: Arc<Asker>,
    runner: Option<Arc<dyn Runner>>,
    settings: &ServiceSettings,
    socket: Option<PathBuf>,
    telemetry: &Telemetry,
) -> Result<Option<Arc<Local>>, InferError> {
    let model = settings.llm_distributed.clone().unwrap_or_else(|| "demo".into());
    add(registry, "compute", Arc::new(Compute { runner }));
    add(registry, "echo", Arc::new(echo::Echo));
    add(registry, "llm_distributed", Arc::new(distributed::Distributed { asker, model }));
    for (name, upstream, offer, wants) in [
        ("llm_local", &settings.llm_local, LOCAL, LOCAL_WANTS),
        ("llm_prompt", &settings.llm_prompt, PROMPT, PROMPT_WANTS),
    ] {
        match (upstream, name.parse::<Name>()) {
            (Some(upstream), _) => add(registry, name, Arc::new(Remote::new(upstream.clone(), offer)?)),
            (None, Ok(name)) => registry.absent(name, wants),
            (None, Err(_)) => {}
        }
    }
    let Some(local) = &settings.llm_local_model else { return Ok(None) };
    let homeless = || {
        let what = "a model of this machine wants a data directory, where its socket is";
        InferError::new(ErrorCode::Usage, what)
    };
    let local = Local::new(local, socket.ok_or_else(homeless)?, LOCAL_MODEL, telemetry)?;
    add(registry, "llm_local", local.clone());
    Ok(Some(local))
}

fn add(registry: &Registry, name: &str, service: Arc<dyn Service>) {
    if let Ok(name) = name.parse::<Name>() {
        registry.add(name, service);
    }
}
