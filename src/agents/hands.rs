//! What a running agent may do, and what it costs: the answers to its host functions.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use quelea_wire::{ModelId, time::unix_ms};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    HostFunction,
    installed::Capability,
    sandbox::{Host, HostFuture, refusal},
};
use crate::{
    fetch::{FetchRequest, Hosts, Limits as FetchLimits, Web},
    inference::{Asker, EVENT_QUEUE, InferEvent, InferRequest},
    storage::{AgentLine, AgentRefusal, AgentWrite, Db, KV_KEY, KV_VALUE, WriteError},
};

/// Fetches of one run.
const FETCHES: u64 = 32;

/// Tokens that one question is answered with at most.
const TOKENS_MAX: u32 = 4_096;

/// Answers a service that an agent calls; there is none until a node has one.
pub(crate) type Services = Arc<dyn ServiceCaller>;

/// Calls a service for an agent.
pub(crate) trait ServiceCaller: Send + Sync {
    /// Calls `service` with `input`, paying at most `most` micro-credits. Gives what it answered and what was spent.
    fn call<'a>(&'a self, service: &'a str, input: &'a Value, most: u64) -> ServiceFuture<'a>;
}

/// What a service answered and what it cost; or why there is no answer, and what it may have cost all the same.
pub(crate) type ServiceFuture<'a> =
    std::pin::Pin<Box<dyn Future<Output = Result<(Value, u64), (String, u64)>> + Send + 'a>>;

/// What an agent may spend.
pub(crate) enum Purse {
    /// What the operator gave this agent for all its runs: written down before it is spent.
    Own(Db),
    /// What the operator gave for this run.
    Run(Mutex<u64>),
}

/// Where a purse's answers come from.
pub(crate) struct Hands {
    pub(super) name: String,
    pub(super) granted: BTreeSet<Capability>,
    pub(super) hosts: Vec<String>,
    pub(super) purse: Purse,
    pub(super) db: Option<Db>,
    pub(super) asker: Arc<Asker>,
    pub(super) web: Web,
    pub(super) services: Option<Services>,
    pub(super) spent: AtomicU64,
    pub(super) fetches: AtomicU64,
    pub(super) lines: Mutex<Vec<AgentLine>>,
}

/// A question of an agent to a model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    prompt: String,
    #[serde(default = "demo")]
    model: String,
    #[serde(default = "few")]
    max_tokens: u32,
    #[serde(default)]
    system: Option<String>,
    #[serde(default)]
    temperature: f32,
    #[serde(default)]
    seed: u64,
    /// Micro-credits; what is in the purse, unless it is less.
    #[serde(default)]
    max_price: Option<u64>,
}

fn demo() -> String {
    "demo".into()
}

fn few() -> u32 {
    256
}

/// A call of a service.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceCall {
    service: String,
    #[serde(default)]
    input: Value,
    #[serde(default)]
    max_price: Option<u64>,
}

type Answer = Result<Vec<u8>, Vec<u8>>;

fn ok(value: impl Into<Value>) -> Answer {
    Ok(json!({ "ok": value.into() }).to_string().into_bytes())
}

fn no(code: &str, message: impl AsRef<str>) -> Vec<u8> {
    refusal(code, message.as_ref())
}

impl Host for Hands {
    fn ask<'a>(&'a self, function: HostFunction, first: &'a [u8], second: &'a [u8]) -> HostFuture<'a> {
        Box::pin(async move {
            let needed = Capability::of(function);
            if let Some(needed) = needed.filter(|needed| !self.granted.contains(needed)) {
                let said = format!("{} was not granted the capability '{}'", self.name, needed.name());
                return Err(if function == HostFunction::HttpRequest { said.into_bytes() } else { no("denied", said) });
            }
            match function {
                HostFunction::KvGet => self.get(first).await,
                HostFunction::KvSet => self.set(first, second).await,
                HostFunction::HttpFetch => self.fetch(first).await,
                HostFunction::HttpRequest => self.request(first, second).await,
                HostFunction::Infer => self.infer(first).await,
                HostFunction::Call => self.call(first).await,
                // A line of log is no question.
                HostFunction::Log => Err(no("usage", "not a question")),
            }
        })
    }

    fn log(&self, level: u8, text: String) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(AgentLine { at_ms: unix_ms(), level, text });
    }
}

impl Hands {
    fn db(&self) -> Result<&Db, Vec<u8>> {
        self.db.as_ref().ok_or_else(|| no("failed", "this node keeps nothing on disk"))
    }

    async fn get(&self, key: &[u8]) -> Answer {
        let value = self.db()?.agent_value(self.name.clone(), key.to_vec()).await;
        let value = value.map_err(|e| no("failed", e.to_string()))?;
        // Only text gets in.
        ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    async fn set(&self, key: &[u8], value: &[u8]) -> Answer {
        if key.is_empty() || key.len() > KV_KEY || value.len() > KV_VALUE {
            let said = format!("a key has 1 to {KV_KEY} bytes, a value {KV_VALUE} at most");
            return Err(no("usage", said));
        }
        if std::str::from_utf8(value).is_err() {
            return Err(no("usage", "a value is text (UTF-8)"));
        }
        let value = (!value.is_empty()).then(|| value.to_vec());
        match self.db()?.agent(AgentWrite::Set { name: self.name.clone(), key: key.to_vec(), value }).await {
            Ok(()) => ok(true),
            Err(WriteError::Agent(refusal @ AgentRefusal::Quota)) => Err(no("quota", refusal.to_string())),
            Err(error) => Err(no("failed", error.to_string())),
        }
    }

    fn fetching(&self) -> Result<FetchLimits, String> {
        if self.fetches.fetch_add(1, Ordering::Relaxed) >= FETCHES {
            return Err(format!("more than {FETCHES} fetches in one run"));
        }
        let any = self.hosts.iter().any(|host| host == "*");
        let hosts = if any { Hosts::Any } else { Hosts::Only(self.hosts.clone()) };
        Ok(FetchLimits { hosts, ..FetchLimits::default() })
    }

    async fn fetch(&self, request: &[u8]) -> Answer {
        let request: FetchRequest = parse(request)?;
        let limits = self.fetching().map_err(|said| no("quota", said))?;
        match self.web.fetch(&request, None, &limits).await {
            Ok(fetched) => ok(json!({
                "url": fetched.url, "status": fetched.status, "headers": fetched.headers,
                "body": String::from_utf8_lossy(&fetched.body),
            })),
            Err(error) => Err(no(error.word(), error.to_string())),
        }
    }

    /// The same for the kits' own HTTP: the status, then the body as it is.
    async fn request(&self, request: &[u8], body: &[u8]) -> Answer {
        let plain = |said: String| said.into_bytes();
        let request: FetchRequest = serde_json::from_slice(request).map_err(|e| plain(e.to_string()))?;
        let limits = self.fetching().map_err(plain)?;
        let fetched = self.web.fetch(&request, Some(body), &limits).await.map_err(|e| plain(e.to_string()))?;
        Ok([&fetched.status.to_le_bytes()[..], &fetched.body].concat())
    }

    async fn infer(&self, question: &[u8]) -> Answer {
        let question: Question = parse(question)?;
        // A file of this machine is not a stranger's to name.
        if question.model != "demo" && question.model.parse::<ModelId>().is_err() {
            return Err(no("usage", "a model is named by its id of 64 hex digits, or 'demo'"));
        }
        let most = self.reserve(question.max_price).await?;
        let mut request = InferRequest::new(question.model, question.prompt);
        request.max_tokens = question.max_tokens.clamp(1, TOKENS_MAX);
        (request.system, request.temperature, request.seed) = (question.system, question.temperature, question.seed);
        request.max_price = Some(most);
        let (events, mut receiver) = mpsc::channel(EVENT_QUEUE);
        let asker = self.asker.clone();
        let asking = tokio::spawn(async move { asker.infer(request, events).await });
        let mut end = None;
        while let Some(event) = receiver.recv().await {
            if matches!(event, InferEvent::Done { .. } | InferEvent::Error { .. }) {
                end = Some(event);
            }
        }
        let _ = asking.await;
        match end {
            Some(InferEvent::Done { summary }) => {
                let spent = summary.cost.as_ref().map_or(0, |cost| cost.micro_credits);
                self.settle(most, spent).await?;
                ok(json!({
                    "text": summary.text, "model": summary.model, "tokens": summary.ids.len(), "spent": spent,
                }))
            }
            Some(InferEvent::Error { error }) => {
                // Peers may have been paid before it failed, and by how much is not said: what was put aside counts as spent.
                let spent = if error.error_code().charged() { most } else { 0 };
                self.settle(most, spent).await?;
                let code = match error.error_code() {
                    quelea_wire::ErrorCode::PriceTooHigh => "allowance",
                    _ => "failed",
                };
                Err(no(code, error.message))
            }
            _ => {
                self.settle(most, most).await?;
                Err(no("failed", "the answer stopped before its end"))
            }
        }
    }

    async fn call(&self, call: &[u8]) -> Answer {
        let call: ServiceCall = parse(call)?;
        let Some(services) = &self.services else { return Err(no("failed", "this node calls no services")) };
        let most = self.reserve(call.max_price).await?;
        match services.call(&call.service, &call.input, most).await {
            Ok((answer, spent)) => {
                self.settle(most, spent).await?;
                ok(answer)
            }
            Err((said, spent)) => {
                self.settle(most, spent).await?;
                Err(no("failed", said))
            }
        }
    }

    /// Puts aside what may be spent: what is asked for, or all there is.
    async fn reserve(&self, wanted: Option<u64>) -> Result<u64, Vec<u8>> {
        let covered = |left: u64| {
            let said = format!("{left} micro-credits are left of the allowance");
            if wanted.is_some_and(|wanted| wanted > left) { Err(no("allowance", said)) } else { Ok(()) }
        };
        match &self.purse {
            Purse::Run(left) => {
                let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
                covered(*left)?;
                let amount = wanted.unwrap_or(*left);
                *left = left.saturating_sub(amount);
                Ok(amount)
            }
            Purse::Own(db) => {
                let found = db.agent_named(self.name.clone()).await.map_err(|e| no("failed", e.to_string()))?;
                let left = found.map_or(0, |(row, _)| row.allowance.saturating_sub(row.spent));
                covered(left)?;
                let amount = wanted.unwrap_or(left);
                let reserved = db.agent(AgentWrite::Reserve { name: self.name.clone(), amount }).await;
                reserved.map_err(|e| no("allowance", e.to_string()))?;
                Ok(amount)
            }
        }
    }

    /// Puts back what was not spent of it.
    async fn settle(&self, reserved: u64, spent: u64) -> Result<(), Vec<u8>> {
        self.spent.fetch_add(spent, Ordering::Relaxed);
        let back = reserved.saturating_sub(spent);
        match &self.purse {
            Purse::Run(left) => {
                let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
                *left = left.saturating_add(back);
                Ok(())
            }
            Purse::Own(db) => db
                .agent(AgentWrite::Return { name: self.name.clone(), amount: back })
                .await
                .map_err(|e| no("failed", e.to_string())),
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(request: &'a [u8]) -> Result<T, Vec<u8>> {
    serde_json::from_slice(request).map_err(|e| no("usage", format!("the request is not understood: {e}")))
}
