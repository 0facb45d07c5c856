//! Agents and pages.
//!
//! | route | does |
//! |---|---|
//! | `GET /api/v1/agents` | lists them |
//! | `POST /api/v1/agents?name=…&grant=…&hosts=…&allowance=…` | installs the module that is the body |
//! | `GET /api/v1/agents/{name}` | one: what it was granted, what it wants, what is left to spend |
//! | `POST /api/v1/agents/{name}/run?allowance=…` | runs it with the body as its input |
//! | `GET /api/v1/agents/{name}/logs?last=…` | the last lines of its log |
//! | `POST /api/v1/agents/{name}/remove` | takes it away |
//! | `POST /api/v1/compute?entry=…` | runs the module that is the body, which may only compute |
//! | `POST /api/v1/web/read` | readable text of a page: `{"url", "max_bytes"?}` |

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Query, State},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use quelea_wire::ErrorCode;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::{
    ApiState, parse, refuse,
    shape::{self, Binary, Failure, List, answers, seconds},
};
use crate::{
    agents::{
        End, Limits,
        installed::{AgentRun, Capability, Installing},
        limits::{CONTRACT_MAX, MODULE_MAX},
    },
    fetch,
    inference::InferError,
    storage::{AgentLine, AgentRow},
};

/// Levels of a log, from 0.
const LEVELS: [&str; 5] = ["trace", "debug", "info", "warn", "error"];

#[derive(utoipa::OpenApi)]
#[openapi(paths(list, one, install, run, logs, remove, compute, read))]
pub(super) struct Described;

answers! {
    /// An agent: what it was granted, what it wants, what is left to spend.
    AgentItem {
        name: String, hash: String, bytes: u64, installed_at_s: f64, entry: String, granted: Vec<String>, wants: Vec<String>,
        hosts: Vec<String>, allowance: u64, spent: u64, fuel: u64, deadline_ms: u64, runs: u64,
    }

    /// One agent; `capabilities` where it is asked for by its name.
    Agent = "quelea.agent/v1" {
        name: String, hash: String, bytes: u64, installed_at_s: f64, entry: String, granted: Vec<String>, wants: Vec<String>,
        hosts: Vec<String>, allowance: u64, spent: u64, fuel: u64, deadline_ms: u64, runs: u64,
        ; capabilities: Vec<CapabilityShown>,
    }

    CapabilityShown { name: String, meaning: String, granted: bool, wanted: bool, }

    /// What a run came to. What is no text comes as `output_hex`.
    AgentRan = "quelea.agent_run/v1" {
        name: Option<String>, outcome: String, message: Option<String>, hint: Option<String>, output: Option<String>,
        output_hex: Option<String>, fuel: u64, spent: u64, compile_s: f64, took_s: f64, log: Vec<AgentLogLine>,
    }

    AgentLogLine { at_s: f64, level: String, text: String, }
    AgentRemoved = "quelea.agent_removed/v1" { name: String, }

    /// Readable text of a page.
    PageRead = "quelea.page/v1" {
        /// Where it was in the end, after redirects.
        url: String,
        status: u16, title: String, text: String, links: Vec<PageLink>,
        /// Whether there was more.
        cut: bool,
    }

    PageLink { url: String, text: String, }
}

pub(super) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/api/v1/agents", get(list).post(install).layer(DefaultBodyLimit::max(MODULE_MAX + 1)))
        .route("/api/v1/agents/{name}", get(one))
        .route("/api/v1/agents/{name}/run", post(run))
        .route("/api/v1/agents/{name}/logs", get(logs))
        .route("/api/v1/agents/{name}/remove", post(remove))
        .route("/api/v1/compute", post(compute))
        .route("/api/v1/web/read", post(read))
}

fn document(schema: &str, fields: Value) -> Response {
    let mut document = json!({ "schema": schema });
    if let (Value::Object(document), Value::Object(fields)) = (&mut document, fields) {
        document.extend(fields);
    }
    Json(document).into_response()
}

fn answer(result: Result<Response, InferError>) -> Response {
    result.unwrap_or_else(|error| refuse(&error))
}

fn shown(row: &AgentRow) -> Value {
    json!({
        "name": row.name,
        "hash": hex::encode(row.hash),
        "bytes": row.bytes,
        "installed_at_s": seconds(row.installed_ms),
        "entry": row.entry,
        "granted": row.granted,
        "wants": row.wants,
        "hosts": row.hosts,
        "allowance": row.allowance,
        "spent": row.spent,
        "fuel": row.fuel,
        "deadline_ms": row.deadline_ms,
        "runs": row.runs,
    })
}

fn line(line: &AgentLine) -> Value {
    let level = LEVELS.get(usize::from(line.level)).copied().unwrap_or("info");
    json!({ "at_s": seconds(line.at_ms), "level": level, "text": line.text })
}

fn ran(name: Option<&str>, run: &AgentRun) -> Value {
    let (message, hint) = match &run.end {
        End::Ok => (None, None),
        End::Failed(said) | End::Trapped(said) | End::Refused(said) => (Some(said.clone()), None),
        End::OutOfFuel => (Some("its fuel is used up".into()), Some("--fuel gives more at installation")),
        End::Timeout => (Some("its time was over".into()), Some("--deadline gives more at installation")),
    };
    let text = std::str::from_utf8(&run.output).ok();
    json!({
        "name": name,
        "outcome": match run.end { End::Failed(_) => "failed", _ => run.end.label() },
        "message": message,
        "hint": hint,
        "output": text,
        // Only what is no text comes so.
        "output_hex": text.is_none().then(|| hex::encode(&run.output)),
        "fuel": run.fuel,
        "spent": run.spent,
        "compile_s": run.compiled_in.as_secs_f64(),
        "took_s": run.took.as_secs_f64(),
        "log": run.lines.iter().map(line).collect::<Vec<_>>(),
    })
}

/// The agents of this node.
#[utoipa::path(get, path = "/api/v1/agents", responses((status = 200, body = List<AgentItem>)))]
async fn list(State(state): State<ApiState>) -> Response {
    let rows = state.agents.list().await;
    answer(rows.map(|rows| Json(shape::list("quelea.agents/v1", rows.iter().map(shown).collect())).into_response()))
}

/// One agent.
#[utoipa::path(
    get, path = "/api/v1/agents/{name}",
    params(("name" = String, Path, description = "the agent's")),
    responses((status = 200, body = Agent), (status = 404, body = Failure, description = "there is none"))
)]
async fn one(State(state): State<ApiState>, Path(name): Path<String>) -> Response {
    let found = state.agents.named(&name).await;
    answer(found.map(|(row, _)| {
        let mut fields = shown(&row);
        let capabilities = Capability::ALL.iter().map(|one| {
            let has = |list: &[String]| list.iter().any(|name| name == one.name());
            json!({
                "name": one.name(), "meaning": one.meaning(),
                "granted": has(&row.granted), "wanted": has(&row.wants),
            })
        });
        fields["capabilities"] = capabilities.collect();
        document("quelea.agent/v1", fields)
    }))
}

/// Installs the module that is the body.
#[utoipa::path(
    post, path = "/api/v1/agents",
    params(Installing),
    request_body(content = Binary, content_type = "application/octet-stream"),
    responses((status = 200, body = Agent))
)]
async fn install(State(state): State<ApiState>, Query(how): Query<Installing>, module: Bytes) -> Response {
    let installed = state.agents.install(&how, &module).await;
    answer(installed.map(|row| document("quelea.agent/v1", shown(&row))))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct Running {
    /// The most that this run may spend, in micro-credits.
    allowance: Option<u64>,
}

/// Runs an agent with the body as its input.
#[utoipa::path(
    post, path = "/api/v1/agents/{name}/run",
    params(("name" = String, Path, description = "the agent's"), Running),
    request_body(content = Option<Binary>, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = AgentRan),
        (status = 402, body = Failure, description = "its allowance is spent"),
        (status = 404, body = Failure, description = "there is none"),
    )
)]
async fn run(
    State(state): State<ApiState>,
    Path(name): Path<String>,
    Query(wanted): Query<Running>,
    input: Bytes,
) -> Response {
    // A caller that goes away does not leave a purse half spent: the run goes on to its end.
    let (agents, of) = (state.agents.clone(), name.clone());
    let task = tokio::spawn(async move { agents.run(&of, input.to_vec(), wanted.allowance).await });
    let run =
        task.await.unwrap_or_else(|e| Err(InferError::new(ErrorCode::Internal, format!("the run panicked: {e}"))));
    answer(run.map(|run| document("quelea.agent_run/v1", ran(Some(&name), &run))))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct Wanted {
    /// How many; 100 unless said.
    last: Option<usize>,
}

/// The last lines of an agent's log.
#[utoipa::path(
    get, path = "/api/v1/agents/{name}/logs",
    params(("name" = String, Path, description = "the agent's"), Wanted),
    responses((status = 200, body = List<AgentLogLine>), (status = 404, body = Failure, description = "there is none"))
)]
async fn logs(State(state): State<ApiState>, Path(name): Path<String>, Query(wanted): Query<Wanted>) -> Response {
    let lines = state.agents.log(&name, wanted.last.unwrap_or(100)).await;
    answer(
        lines.map(|lines| Json(shape::list("quelea.agent_logs/v1", lines.iter().map(line).collect())).into_response()),
    )
}

/// Takes an agent away.
#[utoipa::path(
    post, path = "/api/v1/agents/{name}/remove",
    params(("name" = String, Path, description = "the agent's")),
    responses((status = 200, body = AgentRemoved), (status = 404, body = Failure, description = "there is none"))
)]
async fn remove(State(state): State<ApiState>, Path(name): Path<String>) -> Response {
    let removed = state.agents.remove(&name).await;
    answer(removed.map(|()| document("quelea.agent_removed/v1", json!({ "name": name }))))
}

#[derive(Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct Computing {
    /// The function that is called; `run` unless said.
    entry: Option<String>,
}

/// Runs the module that is the body, which may only compute.
#[utoipa::path(
    post, path = "/api/v1/compute",
    params(Computing),
    request_body(content = Binary, content_type = "application/octet-stream"),
    responses((status = 200, body = AgentRan))
)]
async fn compute(State(state): State<ApiState>, Query(wanted): Query<Computing>, module: Bytes) -> Response {
    if module.is_empty() {
        return refuse(&InferError::new(ErrorCode::Usage, "the module is missing: it is the request's body"));
    }
    if module.len() > CONTRACT_MAX {
        let said = format!("a contract of {} bytes; at most {CONTRACT_MAX} are run", module.len());
        return refuse(&InferError::new(ErrorCode::Usage, said));
    }
    let entry = wanted.entry.unwrap_or_else(|| "run".into());
    let run = state.agents.compute(Arc::from(&*module), Vec::new(), entry, Limits::default()).await;
    answer(run.map(|run| document("quelea.agent_run/v1", ran(None, &run))))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ReadRequest)]
struct Reading {
    url: String,
    max_bytes: Option<usize>,
}

/// Readable text of a page.
#[utoipa::path(post, path = "/api/v1/web/read", request_body = Reading, responses((status = 200, body = PageRead)))]
async fn read(State(state): State<ApiState>, body: Bytes) -> Response {
    let reading: Reading = match parse(&body) {
        Ok(reading) => reading,
        Err(error) => return refuse(&error),
    };
    let page = state.agents.web_read(&reading.url, reading.max_bytes.unwrap_or(fetch::TEXT)).await;
    answer(page.map(|page| document("quelea.page/v1", json!(page))))
}
