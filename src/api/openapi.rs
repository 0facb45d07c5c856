//! `GET /api/v1/openapi.json`: every route with what it takes and gives, for programs that make clients and checks of it.
//!
//! What a route takes and gives stands beside it, as `#[utoipa::path]`; each file gathers its own in a `Described`. What holds
//! for all of them is added here: who may call a route (from the one table of scopes), the errors that stand before routes,
//! ids and tags. `docs/openapi.json` is the same document; a test compares them. See ADR 0049.

use std::{collections::HashSet, sync::OnceLock};

use axum::{
    http::header,
    response::{IntoResponse as _, Response},
};
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::access::scopes::{self, Need};
use super::shape::Failure;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Quelea",
        description = "The control API of a node (`/api/v1`) and the OpenAI API beside it (`/v1`). Errors of the first are \
                       `Failure`, of the second `OpenAiFailure`. Lines of `application/x-ndjson` are a JSON document each. \
                       Amounts are micro-credits, times seconds, instants Unix seconds, unless their names say otherwise."
    ),
    paths(openapi),
    components(schemas(Failure, super::openai::OpenAiFailure))
)]
struct Described;

/// What every file says of its routes.
fn parts() -> Vec<utoipa::openapi::OpenApi> {
    vec![
        Described::openapi(),
        super::Described::openapi(),
        super::agents::Described::openapi(),
        super::bans::Described::openapi(),
        super::broadcast::Described::openapi(),
        super::config::Described::openapi(),
        super::coverage::Described::openapi(),
        super::dht::Described::openapi(),
        super::events::Described::openapi(),
        super::ledger::Described::openapi(),
        super::login::Described::openapi(),
        super::logs::Described::openapi(),
        super::models::Described::openapi(),
        super::nat::Described::openapi(),
        super::openai::Described::openapi(),
        super::peers::Described::openapi(),
        super::plan::Described::openapi(),
        super::services::Described::openapi(),
        super::shutdown::Described::openapi(),
        super::snapshot::Described::openapi(),
        super::stats::Described::openapi(),
        super::store::Described::openapi(),
        super::traces::Described::openapi(),
    ]
}

/// This document.
#[utoipa::path(get, path = "/api/v1/openapi.json", responses((status = 200, body = Value)))]
pub(super) async fn openapi() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| document().to_string());
    ([(header::CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}

/// The whole document.
pub(super) fn document() -> Value {
    let all = parts().into_iter().reduce(utoipa::openapi::OpenApi::merge_from);
    let mut document = serde_json::to_value(all).unwrap_or_default();
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    document["info"]["license"] = json!({ "name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE") });
    document["servers"] = json!([{ "url": "http://127.0.0.1:8469", "description": "where --api-listen is" }]);
    document["components"]["securitySchemes"] = json!({
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "The content of api.token in the data directory, or a token of 'quelea token create'. \
                            `x-quelea-scopes` of an operation names the scopes of which a token needs one; `admin` opens all.",
        },
        "key": {
            "type": "apiKey", "in": "header", "name": "x-api-key",
            "description": "The same, as some clients of models send it.",
        },
    });
    document["components"]["responses"] = shared();
    if let Some(Value::Object(paths)) = document.get_mut("paths") {
        for (path, item) in paths {
            for (method, operation) in item.as_object_mut().into_iter().flatten() {
                complete(method, path, operation);
            }
        }
    }
    close(&mut document);
    document
}

/// What of an operation its route does not say itself.
fn complete(method: &str, path: &str, operation: &mut Value) {
    let need = scopes::need(&method.to_uppercase(), path);
    let words = path.split(['/', '.', '-', '{', '}']).filter(|word| !matches!(*word, "" | "api" | "v1"));
    let id: Vec<&str> = [method].into_iter().chain(words).collect();
    let openai = path.starts_with("/v1/");
    operation["operationId"] = json!(format!("{}{}", if openai { "openai_" } else { "" }, id.join("_")));
    let tag = if openai { "openai" } else { path.trim_start_matches("/api/v1").split('/').nth(1).unwrap_or_default() };
    operation["tags"] = json!([tag]);
    let scopes = match need {
        Need::Nothing => json!([]),
        Need::Anyone => json!(scopes::Scope::ALL),
        Need::One(wanted) => json!(std::iter::once(&scopes::Scope::Admin).chain(wanted).collect::<Vec<_>>()),
    };
    operation["x-quelea-scopes"] = scopes;
    operation["security"] = if need == Need::Nothing { json!([]) } else { json!([{ "bearer": [] }, { "key": [] }]) };
    let (body, asks) = (operation.get("requestBody").is_some(), operation.get("parameters").is_some());
    let Some(Value::Object(responses)) = operation.get_mut("responses") else { return };
    for response in responses.values_mut().filter(|response| response["description"].as_str().is_none_or(str::is_empty))
    {
        response["description"] = json!("as asked");
    }
    // OpenAPI 3.1 has no words for the events of a stream.
    for response in responses.values_mut() {
        if let Some(events) = response.pointer_mut("/content/text~1event-stream") {
            *events = json!({});
        }
    }
    let failure = if openai { "OpenAiFailure" } else { "Failure" };
    for (status, response) in responses.iter_mut() {
        if response.get("content").is_none() && !status.starts_with('2') {
            response["content"] = failed(failure);
        }
    }
    for (status, _) in failures(need, body, asks, openai) {
        if !responses.contains_key(status) {
            responses.insert(status.to_owned(), json!({ "$ref": format!("#/components/responses/{failure}{status}") }));
        }
    }
    responses.sort_keys();
}

/// What errors that operations share come back as, by their names.
fn shared() -> Value {
    let mut all = Map::new();
    for (openai, failure) in [(false, "Failure"), (true, "OpenAiFailure")] {
        for (status, what) in failures(Need::Anyone, true, true, openai) {
            let response = json!({ "description": what, "content": failed(failure) });
            all.insert(format!("{failure}{status}"), response);
        }
    }
    all.sort_keys();
    Value::Object(all)
}

const UNAUTHORIZED: (&str, &str) = ("401", "no credential, or a wrong one");
const FORBIDDEN: (&str, &str) = ("403", "not with this credential, or not from there");

/// Which errors there may be besides a route's own.
fn failures(need: Need, body: bool, asks: bool, openai: bool) -> Vec<(&'static str, &'static str)> {
    let mut all = vec![
        ("421", "the server is not asked for by that name"),
        ("429", "too many requests from one address"),
        ("500", "something failed here"),
        ("503", "not now: the node is stopping, has no room, or reaches nobody"),
    ];
    if need != Need::Nothing || body {
        all.extend([FORBIDDEN, UNAUTHORIZED]);
    }
    if body || asks {
        all.push(("400", "the request makes no sense"));
    }
    if body {
        all.push(("413", "the request is too long"));
    }
    if openai && body {
        all.extend([
            ("402", "it costs more than there is credit for, or than was to be paid"),
            ("404", "there is no such model"),
            ("422", "the idempotency key was used for another request"),
            ("502", "a peer failed"),
            ("504", "it took too long"),
        ]);
    }
    all
}

fn failed(failure: &str) -> Value {
    let schema = json!({ "$ref": format!("#/components/schemas/{failure}") });
    json!({ "application/json": { "schema": schema } })
}

/// Schemas of objects that may have more fields than they name.
const OPEN: [&str; 1] = ["InferError"];

/// Objects have no fields but those that are named, unless they say so, or are parts of others. A field that an answer has and
/// the document has not is so found by whoever compares them.
fn close(document: &mut Value) {
    let mut parts = HashSet::new();
    parts_of(document, false, &mut parts);
    let Some(Value::Object(schemas)) = document.pointer_mut("/components/schemas") else { return };
    for (name, schema) in schemas {
        let Some(schema) = schema.as_object_mut() else { continue };
        let fields = schema.contains_key("properties") && !schema.contains_key("additionalProperties");
        if fields && !parts.contains(name) && !OPEN.contains(&name.as_str()) && !name.starts_with("OpenAi") {
            schema.insert("additionalProperties".into(), json!(false));
        }
    }
}

/// Names of schemas that stand within an `allOf`.
fn parts_of(value: &Value, within: bool, parts: &mut HashSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, below) in object {
                match below.as_str().filter(|_| within && key == "$ref").and_then(|at| at.rsplit('/').next()) {
                    Some(name) => {
                        parts.insert(name.to_owned());
                    }
                    None => parts_of(below, within || key == "allOf", parts),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|below| parts_of(below, within, parts)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use super::{
        super::access::scopes::{TABLE, tests::routes},
        *,
    };

    /// What people's browsers ask for, and what answers that there is nothing.
    const UNDESCRIBED: [&str; 5] = ["/", "/favicon.svg", "/assets/{name}", "/v1", "/v1/{rest}"];

    fn operations(document: &Value) -> Vec<(String, String, &Value)> {
        let paths = document["paths"].as_object().unwrap();
        let each = paths.iter().flat_map(|(path, item)| {
            item.as_object().unwrap().iter().map(move |(method, op)| (method.to_uppercase(), path.clone(), op))
        });
        each.collect()
    }

    #[test]
    fn the_committed_document_is_the_one_that_is_served() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
        let made = serde_json::to_string_pretty(&document()).unwrap() + "\n";
        if std::env::var_os("QUELEA_BLESS").is_some() {
            fs::write(&path, &made).unwrap();
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        let first =
            committed.lines().chain(std::iter::repeat("")).zip(made.lines()).enumerate().find(|(_, (a, b))| a != b);
        if let Some((line, (old, new))) = first {
            panic!(
                "docs/openapi.json differs from the program in line {}:\n  file:    {old}\n  program: {new}\n\
                 make it again with: QUELEA_BLESS=1 cargo test --lib -- api::openapi",
                line + 1
            );
        }
        assert_eq!(committed, made);
    }

    #[test]
    fn all_routes_are_described_and_no_others() {
        let mut found = Vec::new();
        routes(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api"), &mut found);
        let mut routed: Vec<(String, String)> =
            found.into_iter().map(|(method, path)| (method, path.replace("{*", "{"))).collect();
        routed.retain(|(_, path)| !UNDESCRIBED.contains(&path.as_str()));
        let document = document();
        let described: Vec<(String, String)> =
            operations(&document).into_iter().map(|(method, path, _)| (method, path)).collect();
        for route in &routed {
            assert!(described.contains(route), "{route:?} has no #[utoipa::path], or its file's Described lacks it");
        }
        for route in &described {
            assert!(routed.contains(route), "{route:?} is described, and there is no such route");
        }
        // The table's rows for single routes are of routes that there are.
        for (method, path, _) in TABLE.iter().filter(|(_, path, _)| path.starts_with("/api/") && !path.contains('{')) {
            assert!(routed.iter().any(|(of, at)| of == method && at == path), "{method} {path} is in TABLE only");
        }
    }

    #[test]
    fn operations_say_who_may_and_what_comes_back() {
        let document = document();
        let mut ids = HashSet::new();
        for (method, path, operation) in operations(&document) {
            let what = format!("{method} {path}");
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{what}: its id is taken");
            assert!(
                operation["summary"].as_str().is_some_and(|text| !text.is_empty()),
                "{what} does not say what it does"
            );
            let need = scopes::need(&method, &path);
            let scopes = operation["x-quelea-scopes"].as_array().unwrap();
            for scope in scopes::Scope::ALL {
                let may = scopes.iter().any(|name| name == scope.as_str());
                assert_eq!(may, need.allows(&[scope]) && need != Need::Nothing, "{what} {scope:?}");
            }
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.keys().any(|status| status.starts_with('2')), "{what}: nothing goes well");
            for (status, response) in responses {
                let shared = response["$ref"].as_str().and_then(|at| document.pointer(at.trim_start_matches('#')));
                let response = shared.unwrap_or(response);
                let text = response["description"].as_str().unwrap_or_default();
                assert!(!text.is_empty() && response["content"].is_object(), "{what} {status}");
            }
        }
    }

    #[test]
    fn a_name_of_a_schema_means_one_thing() {
        let mut seen: BTreeMap<String, Value> = BTreeMap::new();
        for part in parts() {
            let part = serde_json::to_value(part).unwrap();
            for (name, schema) in part.pointer("/components/schemas").and_then(Value::as_object).into_iter().flatten() {
                let first = seen.entry(name.clone()).or_insert_with(|| schema.clone());
                assert_eq!(first, schema, "two schemas are called {name}");
            }
        }
        assert!(seen.len() > 60, "{}", seen.len());
    }
}
