//! What the sandbox does for other peers, as services: `compute` with `op: run`, and `web_read`. And the way back: services of
//! others, which agents call.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use quelea_service::{CallId, Fault, Name};
use quelea_wire::ErrorCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    End, Job as Module, Limits, Sandbox,
    hands::{ServiceCaller, ServiceFuture},
    limits::CONTRACT_MAX,
};
use crate::{
    fetch::{FetchError, Reader, TEXT, Web},
    services::{
        CallRequest, Runner, Services,
        service::{About, Done, Job, Progress, Service, fault},
    },
    telemetry::Telemetry,
};

/// Units of fuel for a micro-credit.
const FUEL_PRICE: u64 = 1_000_000;

/// How long a contract of a stranger may compute.
const CONTRACT_TIME: Duration = Duration::from_secs(5);

/// What a page costs unless the operator says otherwise, in micro-credits.
const PAGE_PRICE: u64 = 10_000;

/// How long a service that an agent calls may take.
const CALL_TIME: Duration = Duration::from_secs(60);

/// Runs contracts that callers of `compute` submit. They only compute, and their price is by the fuel that they used, which is
/// the same on every machine.
///
/// `{"op": "run", "module_hex", "input"? | "input_hex"?, "entry"?}` gives
/// `{"schema": "quelea.compute/v1", "output" | "output_hex", "fuel"}`.
pub(crate) struct Contracts {
    pub(crate) sandbox: Sandbox,
    pub(crate) telemetry: Telemetry,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contract {
    /// Always `run`.
    #[serde(rename = "op")]
    _op: String,
    module_hex: String,
    #[serde(default)]
    input: String,
    #[serde(default)]
    input_hex: Option<String>,
    #[serde(default)]
    entry: Option<String>,
}

impl Runner for Contracts {
    fn run<'a>(&'a self, question: Value, job: &'a Job, _: &'a Progress) -> BoxFuture<'a, Result<Done, Fault>> {
        Box::pin(async move {
            let wrong = |said: String| fault(ErrorCode::ServiceInput, said);
            let contract: Contract = serde_json::from_value(question).map_err(|e| wrong(e.to_string()))?;
            if contract.module_hex.len() > 2 * CONTRACT_MAX {
                return Err(wrong(format!("a contract has at most {CONTRACT_MAX} bytes")));
            }
            let module = hex::decode(&contract.module_hex).map_err(|e| wrong(format!("module_hex: {e}")))?;
            let input = match contract.input_hex {
                Some(text) => hex::decode(text).map_err(|e| wrong(format!("input_hex: {e}")))?,
                None => contract.input.into_bytes(),
            };
            let time = CONTRACT_TIME.min(job.remaining);
            let limits = Limits {
                fuel: job.most.saturating_mul(FUEL_PRICE).min(Limits::default().fuel),
                deadline_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
                ..Limits::default()
            };
            let entry = contract.entry.unwrap_or_else(|| "run".into());
            let run = self.sandbox.compute(&Module { module: module.into(), input, entry, limits }).await;
            let run = run.map_err(|e| fault(ErrorCode::Overloaded, e.to_string()))?;
            self.telemetry.metrics.agent_run(run.end.label(), run.took, run.fuel);
            match run.end {
                End::Ok => {}
                End::OutOfFuel => {
                    let said = format!(
                        "the contract used all {} units of fuel that {} micro-credits buy",
                        limits.fuel, job.most
                    );
                    return Err(fault(ErrorCode::ServiceExhausted, said));
                }
                End::Timeout => {
                    return Err(fault(ErrorCode::ServiceExhausted, format!("the contract took longer than {time:?}")));
                }
                End::Failed(said) | End::Trapped(said) | End::Refused(said) => return Err(wrong(said)),
            }
            let mut answer = json!({ "schema": "quelea.compute/v1", "fuel": run.fuel });
            match String::from_utf8(run.output) {
                Ok(text) => answer["output"] = text.into(),
                Err(bytes) => answer["output_hex"] = hex::encode(bytes.into_bytes()).into(),
            }
            let cost = run.fuel.div_ceil(FUEL_PRICE).min(job.most);
            Ok(Done { output: answer.to_string().into_bytes(), cost: Some(cost) })
        })
    }
}

/// Readable text of a page: `{"url", "max_bytes"?}` gives what `quelea web read --json` does.
pub(crate) struct WebRead {
    reader: Reader,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    url: String,
    #[serde(default)]
    max_bytes: Option<usize>,
}

impl WebRead {
    /// The service, under its name.
    pub(crate) fn named(sandbox: &Sandbox) -> Option<(Name, Arc<dyn Service>)> {
        let service = Self { reader: Reader::new(Web::default(), sandbox.clone()) };
        Some(("web_read".parse().ok()?, Arc::new(service)))
    }
}

impl Service for WebRead {
    fn about(&self) -> About {
        About {
            version: 1,
            price: PAGE_PRICE,
            // An address, and what goes with it.
            input_max: 4 << 10,
            // Text of at most 64 KiB, which JSON may make six times as long, and the links.
            output_max: 1 << 20,
            deadline: Duration::from_secs(20),
            at_once: 4,
            queue: 16,
            about: "Gives a web page's title, readable text and links; a question is JSON with 'url'",
        }
    }

    fn call<'a>(&'a self, job: Job, _: &'a Progress) -> BoxFuture<'a, Result<Done, Fault>> {
        Box::pin(async move {
            let wrong = |said: String| fault(ErrorCode::ServiceInput, said);
            let wanted: Wanted = serde_json::from_slice(&job.input).map_err(|e| wrong(e.to_string()))?;
            let page = self.reader.read(&wanted.url, wanted.max_bytes.unwrap_or(TEXT).min(TEXT)).await;
            let page = page.map_err(|error| match error {
                FetchError::Sandbox(error) => fault(ErrorCode::Overloaded, error.to_string()),
                error if error.code() == ErrorCode::Usage => wrong(error.to_string()),
                error => fault(ErrorCode::ServiceFailed, error.to_string()),
            })?;
            let mut answer = json!({ "schema": "quelea.page/v1" });
            if let (Value::Object(answer), Value::Object(page)) = (&mut answer, json!(page)) {
                answer.extend(page);
            }
            Ok(answer.to_string().into_bytes().into())
        })
    }
}

/// Services of other nodes, for agents.
pub(crate) struct Calling(pub(crate) Arc<Services>);

impl ServiceCaller for Calling {
    fn call<'a>(&'a self, service: &'a str, input: &'a Value, most: u64) -> ServiceFuture<'a> {
        Box::pin(async move {
            let name: Name = service.parse().map_err(|_| (format!("{service:.64} is no service's name"), 0))?;
            // Text goes as it is, everything else as JSON.
            let input = input.as_str().map_or_else(|| input.to_string(), str::to_owned).into_bytes();
            let id = CallId(rand::random());
            let request = CallRequest { name, input, peer: None, max_price: Some(most), timeout: CALL_TIME, id };
            let (events, mut seen) = mpsc::channel(16);
            // Nobody looks at how far it is.
            tokio::spawn(async move { while seen.recv().await.is_some() {} });
            match self.0.call(&request, &events).await {
                Ok(done) => {
                    let output = String::from_utf8_lossy(&done.output).into_owned();
                    Ok((json!({ "output": output, "peer": done.peer.to_string(), "spent": done.paid }), done.paid))
                }
                Err(error) => {
                    let spent = if error.error_code().charged() { most } else { 0 };
                    Err((error.message, spent))
                }
            }
        })
    }
}
