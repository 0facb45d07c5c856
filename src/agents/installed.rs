//! The agents that the operator installed, and their runs.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use quelea_wire::{ErrorCode, time::unix_ms};
use serde::{Deserialize, Serialize};

use super::{
    End, HostFunction, Job, Limits, Sandbox, SandboxError,
    hands::{Hands, Purse, Services},
    limits::{DEADLINE_MAX, MODULE_MAX},
};
use crate::{
    fetch::{PageText, Reader, Web},
    inference::{Asker, InferError},
    storage::{AgentLine, AgentRefusal, AgentRow, AgentWrite, Db, ReadError, WriteError},
    telemetry::Telemetry,
};

/// The longest name of an agent.
const NAME_MAX: usize = 64;
/// Hosts that one agent may be granted.
const HOSTS_MAX: usize = 64;

/// What an agent must be granted before it may do it. Logging, the time and random bytes are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Capability {
    /// Keeping values between runs.
    Kv,
    /// Fetching from the hosts that were granted with it.
    Http,
    /// Asking models, paid from its allowance.
    Infer,
    /// Calling services of other nodes, paid from its allowance.
    Call,
}

impl Capability {
    pub(crate) const ALL: [Self; 4] = [Self::Kv, Self::Http, Self::Infer, Self::Call];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kv => "kv",
            Self::Http => "http",
            Self::Infer => "infer",
            Self::Call => "call",
        }
    }

    /// One sentence for people.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Kv => "keeps values between runs",
            Self::Http => "fetches from the hosts granted with it",
            Self::Infer => "asks models, paid from its allowance",
            Self::Call => "calls services of other nodes, paid from its allowance",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|capability| capability.name() == name)
    }

    pub(crate) fn of(function: HostFunction) -> Option<Self> {
        match function {
            HostFunction::KvGet | HostFunction::KvSet => Some(Self::Kv),
            HostFunction::HttpFetch | HostFunction::HttpRequest => Some(Self::Http),
            HostFunction::Infer => Some(Self::Infer),
            HostFunction::Call => Some(Self::Call),
            HostFunction::Log => None,
        }
    }

    /// What an import needs.
    fn of_import(name: &str) -> Option<Self> {
        match name {
            "kv_get" | "kv_set" => Some(Self::Kv),
            "http_fetch" | "http_request" => Some(Self::Http),
            "infer" => Some(Self::Infer),
            "call" => Some(Self::Call),
            _ => None,
        }
    }
}

/// How an agent is to be installed.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Installing {
    pub(crate) name: String,
    /// Capabilities, comma-separated.
    pub(crate) grant: String,
    /// Hosts, comma-separated.
    pub(crate) hosts: String,
    /// Micro-credits.
    pub(crate) allowance: u64,
    pub(crate) entry: Option<String>,
    pub(crate) fuel: Option<u64>,
    pub(crate) deadline_ms: Option<u64>,
}

/// What a run of an agent came to.
#[derive(Debug)]
pub(crate) struct AgentRun {
    pub(crate) end: End,
    pub(crate) output: Vec<u8>,
    pub(crate) fuel: u64,
    /// Micro-credits.
    pub(crate) spent: u64,
    pub(crate) compiled_in: Duration,
    pub(crate) took: Duration,
    pub(crate) lines: Vec<AgentLine>,
}

/// Agents of this node.
pub(crate) struct Agents {
    sandbox: Sandbox,
    reader: Reader,
    web: Web,
    asker: Arc<Asker>,
    db: Option<Db>,
    telemetry: Telemetry,
    services: OnceLock<Services>,
}

impl Agents {
    pub(crate) fn new(sandbox: Sandbox, asker: Arc<Asker>, db: Option<Db>, telemetry: Telemetry) -> Self {
        let web = Web::default();
        let reader = Reader::new(web.clone(), sandbox.clone());
        Self { sandbox, reader, web, asker, db, telemetry, services: OnceLock::new() }
    }

    /// Lets agents call services from now on.
    pub(crate) fn join(&self, services: Services) {
        // The first one stays.
        let _ = self.services.set(services);
    }

    /// The readable text of a page; at most so many bytes of it.
    ///
    /// # Errors
    /// When it may not be fetched, cannot be, or is no text.
    pub(crate) async fn web_read(&self, url: &str, max_bytes: usize) -> Result<PageText, InferError> {
        self.reader.read(url, max_bytes).await.map_err(|e| InferError::new(e.code(), e.to_string()))
    }

    /// Runs a module of a stranger, which may only compute.
    ///
    /// # Errors
    /// When too much waits, or no process can be had. That the module fails is in the answer.
    pub(crate) async fn compute(
        &self,
        module: Arc<[u8]>,
        input: Vec<u8>,
        entry: String,
        limits: Limits,
    ) -> Result<AgentRun, InferError> {
        let run = self.sandbox.compute(&Job { module, input, entry, limits }).await.map_err(|e| no_process(&e))?;
        self.telemetry.metrics.agent_run(run.end.label(), run.took, run.fuel);
        Ok(AgentRun {
            end: run.end,
            output: run.output,
            fuel: run.fuel,
            spent: 0,
            compiled_in: run.compiled_in,
            took: run.took,
            lines: Vec::new(),
        })
    }

    fn db(&self) -> Result<&Db, InferError> {
        self.db.as_ref().ok_or_else(|| InferError::new(ErrorCode::StorageFailed, "this node keeps nothing on disk"))
    }

    /// All of them.
    pub(crate) async fn list(&self) -> Result<Vec<AgentRow>, InferError> {
        self.db()?.agents().await.map_err(|e| unread(&e))
    }

    /// One of them.
    pub(crate) async fn named(&self, name: &str) -> Result<(AgentRow, Vec<u8>), InferError> {
        let found = self.db()?.agent_named(name.to_owned()).await.map_err(|e| unread(&e))?;
        found.ok_or_else(|| unknown(name))
    }

    /// The last lines of its log.
    pub(crate) async fn log(&self, name: &str, last: usize) -> Result<Vec<AgentLine>, InferError> {
        self.named(name).await?;
        self.db()?.agent_log(name.to_owned(), last).await.map_err(|e| unread(&e))
    }

    /// Takes it away, with all that it kept.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), InferError> {
        self.db()?.agent(AgentWrite::Remove { name: name.to_owned() }).await.map_err(|e| unwritten(&e, name))
    }

    /// Looks at a module in a worker, and keeps it under a name.
    pub(crate) async fn install(&self, how: &Installing, module: &[u8]) -> Result<AgentRow, InferError> {
        let usage = |said: String| InferError::new(ErrorCode::Usage, said);
        let named = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        if how.name.is_empty() || how.name.len() > NAME_MAX || !how.name.chars().all(named) {
            let said = format!("{:?} is no name: lower-case letters, digits, - and _, {NAME_MAX} at most", how.name);
            return Err(usage(said));
        }
        let mut granted = BTreeSet::new();
        for name in parts(&how.grant) {
            let all = || Capability::ALL.map(Capability::name).join(", ");
            let capability = Capability::named(name);
            granted.insert(capability.ok_or_else(|| usage(format!("{name:?} is no capability; there are {}", all())))?);
        }
        let hosts: Vec<String> =
            parts(&how.hosts).map(crate::fetch::listed).collect::<Result<_, _>>().map_err(usage)?;
        if hosts.len() > HOSTS_MAX {
            return Err(usage(format!("{} hosts; at most {HOSTS_MAX} are granted", hosts.len())));
        }
        if granted.contains(&Capability::Http) == hosts.is_empty() {
            return Err(usage("the capability http and hosts go together: name the hosts, or '*' for all".into()));
        }
        if module.len() > MODULE_MAX {
            return Err(usage(format!("the module has {} bytes; at most {MODULE_MAX} are taken", module.len())));
        }
        let wishes = self.sandbox.look(module).await.map_err(|e| no_process(&e))?;
        let wishes = wishes.map_err(|said| InferError::new(ErrorCode::AgentRefused, said))?;
        let entry = how.entry.clone().unwrap_or_else(|| "run".into());
        if !wishes.exports.contains(&entry) {
            let there = wishes.exports.join(", ");
            return Err(InferError::new(ErrorCode::AgentRefused, format!("the module exports no function {entry:?}"))
                .hint(format!("--entry names another; it exports: {there}")));
        }
        let wants: BTreeSet<Capability> = wishes.imports.iter().filter_map(|one| Capability::of_import(one)).collect();
        let limits = Limits::default();
        let most = u64::try_from(DEADLINE_MAX.as_millis()).unwrap_or(u64::MAX);
        let row = AgentRow {
            name: how.name.clone(),
            hash: *blake3::hash(module).as_bytes(),
            bytes: module.len() as u64,
            installed_ms: unix_ms(),
            granted: granted.into_iter().map(|one| one.name().to_owned()).collect(),
            wants: wants.into_iter().map(|one| one.name().to_owned()).collect(),
            hosts,
            allowance: how.allowance,
            spent: 0,
            entry,
            fuel: how.fuel.unwrap_or(limits.fuel),
            deadline_ms: how.deadline_ms.unwrap_or(limits.deadline_ms).min(most),
            runs: 0,
        };
        let write = AgentWrite::Install { row: Box::new(row.clone()), module: module.to_vec() };
        self.db()?.agent(write).await.map_err(|e| unwritten(&e, &row.name))?;
        self.sandbox.keep_ready(module.into(), Limits::default());
        Ok(row)
    }

    /// Runs an agent. With an allowance, this run may spend so many micro-credits, and the agent's own stay as they are.
    pub(crate) async fn run(&self, name: &str, input: Vec<u8>, allowance: Option<u64>) -> Result<AgentRun, InferError> {
        let (row, module) = self.named(name).await?;
        // What was pinned when it was installed is what runs.
        if blake3::hash(&module).as_bytes() != &row.hash {
            let said = format!("the module of {name} is not the one that was installed");
            return Err(InferError::new(ErrorCode::StorageFailed, said));
        }
        let limits = Limits { fuel: row.fuel, deadline_ms: row.deadline_ms, ..Limits::default() };
        let hands = Hands {
            name: row.name.clone(),
            granted: row.granted.iter().filter_map(|name| Capability::named(name)).collect(),
            hosts: row.hosts,
            purse: match (allowance, &self.db) {
                (None, Some(db)) => Purse::Own(db.clone()),
                (allowance, _) => Purse::Run(Mutex::new(allowance.unwrap_or(0))),
            },
            db: self.db.clone(),
            asker: self.asker.clone(),
            web: self.web.clone(),
            services: self.services.get().cloned(),
            spent: AtomicU64::new(0),
            fetches: AtomicU64::new(0),
            lines: Mutex::default(),
        };
        let job = Job { module: module.into(), input, entry: row.entry, limits };
        let run = self.sandbox.run_again(&job, &hands).await.map_err(|e| no_process(&e))?;
        self.telemetry.metrics.agent_run(run.end.label(), run.took, run.fuel);
        let spent = hands.spent.into_inner();
        let lines = hands.lines.into_inner().unwrap_or_else(PoisonError::into_inner);
        let ended = AgentWrite::Ran { name: row.name, lines: lines.clone() };
        // An agent that was removed meanwhile has no log.
        match self.db()?.agent(ended).await {
            Ok(()) | Err(WriteError::Agent(AgentRefusal::Unknown)) => {}
            Err(error) => return Err(unwritten(&error, name)),
        }
        Ok(AgentRun {
            end: run.end,
            output: run.output,
            fuel: run.fuel,
            spent,
            compiled_in: run.compiled_in,
            took: run.took,
            lines,
        })
    }
}

fn parts(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|part| !part.is_empty())
}

fn unknown(name: &str) -> InferError {
    InferError::new(ErrorCode::NotFound, format!("no agent is called {name:.64}"))
        .hint("see which there are with 'quelea agent list'")
        .not_retryable()
}

fn unread(error: &ReadError) -> InferError {
    InferError::new(ErrorCode::StorageFailed, error.to_string())
}

fn unwritten(error: &WriteError, name: &str) -> InferError {
    match error {
        WriteError::Agent(AgentRefusal::Unknown) => unknown(name),
        WriteError::Agent(refusal) => InferError::new(ErrorCode::Usage, refusal.to_string()),
        error => InferError::new(ErrorCode::StorageFailed, error.to_string()),
    }
}

fn no_process(error: &SandboxError) -> InferError {
    let code = match error {
        SandboxError::Busy => ErrorCode::Overloaded,
        SandboxError::Start(_) => ErrorCode::Internal,
    };
    InferError::new(code, error.to_string())
}
