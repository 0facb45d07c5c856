//! What `--json` prints, command by command, against docs/json.md: a field that is not there, one that is gone, and one of
//! another type fail.
//!
//! `QUELEA_BLESS=1 cargo test --test it shapes` adds what was seen to what the page says. Every schema's name that the sources have is
//! seen here, or listed in [`ELSEWHERE`] with the reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::harness::{DEMO, Daemon, Launch, Process, tempdir};

const INTRO: &str = "# What `--json` prints\n\n\
    One document a command, or one a line where it goes on. `schema` names its form; within a version fields are added, never taken away\n\
    and never given another type. Times are seconds, instants Unix seconds or RFC 3339, sizes bytes, amounts micro-credits unless a field\n\
    says otherwise. `[]` stands for each item, `?` marks what may be missing. Errors are `{\"error\": {\"code\", \"message\", \"hint\",\n\
    \"retryable\"}}` on stderr, with the exit codes of [cli.md](cli.md).\n\n\
    This page is checked against a running node: `QUELEA_BLESS=1 cargo test --test it shapes` adds what is new.\n";

/// What is said of a field: its types, and whether it may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Field {
    types: BTreeSet<String>,
    optional: bool,
}

/// A document's fields by their paths.
type Shape = BTreeMap<String, Field>;

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Objects whose keys are data: names of peers, kinds, settings. Their values are one field, `*`.
const MAPS: [&str; 6] = ["queries", "components", "settings", "figures", "logit_bias", "attributes"];

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// All objects at each path, so that a field that only some have shows.
fn objects<'a>(path: &str, value: &'a Value, all: &mut BTreeMap<String, Vec<&'a serde_json::Map<String, Value>>>) {
    match value {
        Value::Object(fields) => {
            let is_map = MAPS.contains(&path.rsplit(['.', ']']).next().unwrap_or_default());
            if !is_map {
                all.entry(path.to_owned()).or_default().push(fields);
            }
            for (key, below) in fields {
                objects(&join(path, if is_map { "*" } else { key }), below, all);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| objects(&format!("{path}[]"), item, all)),
        _ => {}
    }
}

fn shape(document: &Value) -> Shape {
    let mut all = BTreeMap::new();
    objects("", document, &mut all);
    let mut shape = Shape::new();
    for (path, objects) in all {
        for object in &objects {
            for (key, value) in *object {
                shape.entry(join(&path, key)).or_default().types.insert(type_of(value).to_owned());
            }
        }
        for object in &objects {
            for (key, field) in keys_of(&mut shape, &path) {
                field.optional |= !object.contains_key(&key);
            }
        }
    }
    shape
}

/// The fields right below a path.
fn keys_of<'a>(shape: &'a mut Shape, path: &str) -> Vec<(String, &'a mut Field)> {
    let prefix = if path.is_empty() { String::new() } else { format!("{path}.") };
    let below = |(name, field): (&'a String, &'a mut Field)| {
        let key = name.strip_prefix(&prefix)?;
        (!key.contains(['.', '['])).then(|| (key.to_owned(), field))
    };
    shape.iter_mut().filter_map(below).collect()
}

/// The page as it is committed: command, schema, fields.
fn documented(page: &str) -> BTreeMap<String, (String, Shape)> {
    let mut all = BTreeMap::new();
    for section in page.split("\n## ").skip(1) {
        let command = section.lines().next().unwrap_or_default().trim_matches('`').to_owned();
        let schema = section.lines().find_map(|line| line.strip_prefix("Schema: ")).unwrap_or_default();
        let mut shape = Shape::new();
        for line in section.lines().filter_map(|line| line.strip_prefix("| `")) {
            let (name, types) = line.split_once("` | ").expect("a row has two columns");
            let types = types.trim_end_matches(" |").split(", ").map(str::to_owned).collect();
            let optional = name.ends_with('?');
            shape.insert(name.trim_end_matches('?').to_owned(), Field { types, optional });
        }
        all.insert(command, (schema.trim_matches('`').to_owned(), shape));
    }
    all
}

fn page(all: &BTreeMap<String, (String, Shape)>) -> String {
    let mut page = INTRO.to_owned();
    for (command, (schema, shape)) in all {
        let _ = write!(page, "\n## `{command}`\n\nSchema: `{schema}`\n\n| field | type |\n|---|---|\n");
        for (name, field) in shape.iter().filter(|(name, _)| *name != "schema") {
            let types = field.types.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let _ = writeln!(page, "| `{name}{}` | {types} |", if field.optional { "?" } else { "" });
        }
    }
    page
}

/// What of `seen` differs from what is said.
fn differences(said: &Shape, seen: &Shape, document: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, field) in seen.iter().filter(|(name, _)| *name != "schema") {
        match said.get(name) {
            None => wrong.push(format!("{name} is not documented")),
            Some(known) => {
                // Whether something is known yet is a matter of moments.
                let new: Vec<&String> = field.types.difference(&known.types).filter(|new| *new != "null").collect();
                if !new.is_empty() {
                    wrong.push(format!("{name} is {new:?}, documented as {:?}", known.types));
                }
            }
        }
    }
    let mut all = BTreeMap::new();
    objects("", document, &mut all);
    for (path, objects) in all {
        for (key, field) in keys_of(&mut said.clone(), &path) {
            if !field.optional && objects.iter().any(|object| !object.contains_key(&key)) {
                wrong.push(format!("{} is missing", join(&path, &key)));
            }
        }
    }
    wrong
}

/// What is known of both, together.
fn merged(said: Option<&Shape>, seen: &Shape, document: &Value) -> Shape {
    let Some(said) = said else { return seen.clone() };
    let mut all = said.clone();
    for (name, field) in seen {
        let entry = all.entry(name.clone()).or_insert_with(|| Field { optional: true, ..Field::default() });
        entry.types.extend(field.types.iter().cloned());
        entry.optional |= field.optional;
    }
    let mut there = BTreeMap::new();
    objects("", document, &mut there);
    for (path, objects) in there {
        for (key, field) in keys_of(&mut all, &path) {
            field.optional |= objects.iter().any(|object| !object.contains_key(&key));
        }
    }
    all
}

/// Two nodes that have dealt with each other, so that lists have items.
async fn dealings() -> (Daemon, Daemon) {
    let boot = Launch::new().serve(DEMO, "0..3").args(&["--service", "echo"]).start().await;
    let other = Launch::new().bootstrap(&boot).serve(DEMO, "3..6").args(&["--service", "echo,compute"]).start().await;
    boot.until_connected_to(other.peer()).await;
    other.command(&["ledger", "iou", "create", boot.peer(), "5"]).await.expect(0);
    other.until_connected_to(boot.peer()).await;
    (boot, other)
}

/// What no command prints, or what is not for this test to have printed, and why.
const ELSEWHERE: [(&str, &str); 28] = [
    ("quelea.session.log", "kept on disk, and read by nobody but the node"),
    ("quelea.tokens_file", "kept on disk"),
    ("quelea.agent_walls", "printed by a worker's check of its own walls, which the tests of agents run"),
    ("quelea.daemon", "printed by a daemon that starts; the test of it reads it"),
    ("quelea.demo", "the demo's answer, tested with it"),
    ("quelea.fraud", "proof of fraud, which takes a peer that computes wrongly; tested with receipts"),
    ("quelea.verify", "takes a model's file, and minutes with a large one; tested with receipts"),
    ("quelea.page", "takes a page of the web; in docs/openapi.json"),
    ("quelea.bench.masking", "measures for a minute"),
    ("quelea.bench.chain", "measures for a minute, and takes a model's file"),
    ("quelea.written", "takes room for a model"),
    ("quelea.llm", "an answer of the service llm_prompt, which has another's API do the work"),
    ("quelea.gap", "told to who missed events; in docs/openapi.json"),
    ("quelea.pull", "takes a model from peers; tested with weights"),
    ("quelea.model_rm", "takes a model on disk; in docs/openapi.json, and tested with weights"),
    ("quelea.compute", "what the service compute gives, as text within the answer to its call"),
    ("quelea.chat", "a conversation that was saved, and is read again"),
    ("quelea.debug", "what a bundle has in it; its file is for people, and changes with what is looked for"),
    ("quelea.config.edit", "takes an editor; tested with it"),
    ("quelea.other", "a test's own"),
    ("quelea.login", "in docs/openapi.json, for the page"),
    ("quelea.login_code", "in docs/openapi.json, for the page"),
    ("quelea.logout", "in docs/openapi.json, for the page"),
    ("quelea.session", "in docs/openapi.json, for the page"),
    ("quelea.snapshot", "in docs/openapi.json, for the page"),
    ("quelea.timeseries", "in docs/openapi.json, for the page"),
    ("quelea.ledger.convict", "takes a peer's fraud; in docs/openapi.json"),
    ("quelea.model_import", "takes a model's file; tested with weights"),
];

/// The names of schemas, without their versions, in the sources.
fn names_in(dir: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names_in(&path, into);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        for part in text.split("\"quelea.").skip(1) {
            let Some((name, rest)) = part.split_once("/v") else { continue };
            let plain = name.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '.');
            if plain && rest.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with(['"', '\\']) {
                into.insert(format!("quelea.{name}"));
            }
        }
    }
}

/// The page, and what was seen beside it.
struct Page {
    said: BTreeMap<String, (String, Shape)>,
    seen: BTreeSet<String>,
    wrong: Vec<String>,
    bless: bool,
}

impl Page {
    /// A command's output. `name` stands on the page.
    fn printed(&mut self, name: &str, text: &str) {
        for line in text.lines() {
            let Ok(document) = serde_json::from_str::<Value>(line) else {
                self.wrong.push(format!("quelea {name}: no JSON: {line}"));
                continue;
            };
            let schema = document["schema"].as_str().unwrap_or_default().to_owned();
            let (bare, version) = schema.split_once("/v").unwrap_or_default();
            let versioned = bare.starts_with("quelea.") && version.parse::<u32>().is_ok();
            if !versioned {
                self.wrong.push(format!("quelea {name}: a document without a schema: {line}"));
                continue;
            }
            self.seen.insert(bare.to_owned());
            let seen = shape(&document);
            let key = format!("quelea {name}");
            let said = self.said.get(&key);
            if self.bless {
                let merged = merged(said.map(|(_, shape)| shape), &seen, &document);
                self.said.insert(key, (schema, merged));
                continue;
            }
            let Some((known, said)) = said else {
                self.wrong.push(format!("{key}: it is not there"));
                continue;
            };
            if *known != schema {
                self.wrong.push(format!("{key}: its schema is {schema}, documented as {known}"));
            }
            self.wrong.extend(differences(said, &seen, &document).into_iter().map(|what| format!("{key}: {what}")));
        }
    }
}

#[tokio::test]
async fn json_is_as_documented() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/json.md");
    let said = documented(&fs::read_to_string(&path).unwrap_or_default());
    let bless = std::env::var_os("QUELEA_BLESS").is_some();
    let mut page = Page { said, seen: BTreeSet::new(), wrong: Vec::new(), bless };
    let (boot, other) = dealings().await;
    let room = tempdir();
    let file = |name: &str| room.path().join(name).to_str().unwrap().to_owned();
    let signed = boot.command(&["ledger", "iou", "create", other.peer(), "0.25", "--json"]).await.expect(0).json();
    let names = [
        ("ID", signed["id"].as_str().unwrap().to_owned()),
        ("TOKEN", Path::new(boot.home()).join("api.token").to_str().unwrap().to_owned()),
        ("KEY", file("copy.key")),
        ("PEER", other.peer().to_owned()),
        ("ADDR", other.addr().to_owned()),
        ("COPY", file("copy.redb")),
        ("BUNDLE", file("bundle.json")),
        ("RECEIPT", file("answer.receipt")),
        ("CONFIG", file("config.toml")),
        ("HELLO", concat!(env!("CARGO_MANIFEST_DIR"), "/agents/hello/hello.wasm").to_owned()),
        ("EMPTY", file("empty")),
    ];
    // As on the page; a word in capitals stands for this run's.
    let commands = [
        "id",
        "infer --max-tokens 2 --receipt RECEIPT hi",
        "chat demo hi --max-tokens 2",
        "embed demo hello there",
        "receipt show RECEIPT",
        "status",
        "broadcast hello",
        "peers connect ADDR",
        "peers list",
        "peers known",
        "peers info PEER",
        "peers ban 203.0.113.0/24",
        "peers bans",
        "peers unban 203.0.113.0/24",
        "bootstrap add ADDR",
        "bootstrap list",
        "bootstrap rm ADDR",
        "ping PEER -c 1",
        "netcheck",
        "stats",
        "health",
        "events",
        "logs",
        "log-level quelea=info",
        "dht put greeting hello",
        "dht get greeting",
        "dht get greeting --all",
        "dht provide greeting",
        "dht providers greeting",
        "dht find-peer PEER",
        "dht find-node greeting",
        "dht delete greeting",
        "dht stats",
        "service list",
        "service list --peer PEER",
        "service price echo 2",
        "service call echo hello --peer PEER",
        "ledger iou create PEER 0.5",
        "ledger balance",
        "ledger list",
        "ledger show ID",
        "ledger redeem PEER 0.1",
        "ledger settle PEER 0.1",
        "ledger limit PEER",
        "ledger limit PEER 3",
        "ledger verify",
        "trust",
        "agent install HELLO",
        "agent list",
        "agent caps hello",
        "agent run hello --input 1",
        "agent logs hello",
        "agent rm hello",
        "model list",
        "model ps",
        "model coverage demo",
        "model show demo",
        "model synth --list",
        "plan demo",
        "bench ledger --notes 20 --accounts 4",
        "bench hop --rows 20",
        "bench agent agents/hello/hello.wasm --runs 1",
        "token create reader --scope read",
        "token list",
        "token revoke reader",
        "store backup COPY",
        "debug bundle BUNDLE",
        "doctor",
        "check node",
        "config set --config CONFIG port 9000",
        "config show --config CONFIG",
        "config get --config CONFIG port",
        "config unset --config CONFIG port",
        "config validate --config CONFIG",
        "config path",
        "config profiles",
        "store restore COPY --data-dir EMPTY",
        "init --data-dir EMPTY",
        "key show",
        "key export KEY",
        "context add lab --at http://127.0.0.1:8469 --token-file TOKEN",
        "context use lab",
        "context ls",
        "context rm lab",
        "trace ls",
        "trace show",
        "paths",
        "version",
        "version --all",
        "errors list",
        "errors lookup QUE-2003",
        "peers disconnect PEER",
        "shutdown",
    ];
    for name in commands {
        let word = |word: &str| names.iter().find(|(of, _)| *of == word).map_or(word.to_owned(), |(_, is)| is.clone());
        let args: Vec<String> = name.split(' ').map(word).chain(["--json".to_owned()]).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let elsewhere = args.contains(&"--data-dir");
        let args = if elsewhere { args } else { [args.as_slice(), &["--data-dir", boot.home()]].concat() };
        // The person's own settings are this test's.
        let settings = [("XDG_CONFIG_HOME", room.path().to_str().unwrap())];
        let ended = Process::spawn_with(&args, &settings).end().await;
        if matches!(ended.code, Some(0 | 1)) && !ended.stdout.trim().is_empty() {
            page.printed(name, &ended.stdout);
        } else {
            page.wrong.push(format!("quelea {name}: exit code {:?}: {}", ended.code, ended.stderr));
        }
    }
    // Errors are on stderr, and have no schema of their own.
    let refused = other.command(&["peers", "info", "nobody", "--json"]).await;
    let error: Value = serde_json::from_str(refused.stderr.lines().last().unwrap()).unwrap();
    let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert!(fields(&error).contains("error"), "{error}");
    assert!(["code", "message", "retryable"].iter().all(|name| fields(&error["error"]).contains(*name)), "{error}");

    let mut all = BTreeSet::new();
    names_in(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut all);
    assert!(all.len() > 80, "the sources are not read as they are written: {all:?}");
    let listed: BTreeSet<String> = ELSEWHERE.iter().map(|(name, _)| (*name).to_owned()).collect();
    let unseen: Vec<&String> =
        all.iter().filter(|name| !page.seen.contains(*name) && !listed.contains(*name)).collect();
    let idle: Vec<&String> = listed.iter().filter(|name| page.seen.contains(*name) || !all.contains(*name)).collect();
    if bless {
        fs::write(&path, self::page(&page.said)).unwrap();
    }
    assert!(
        page.wrong.is_empty(),
        "docs/json.md differs from what commands print; QUELEA_BLESS=1 cargo test --test it shapes adds what is new:\n{}",
        page.wrong.join("\n")
    );
    assert!(unseen.is_empty(), "no command of this test prints these; add one, or a reason to ELSEWHERE: {unseen:?}");
    assert!(idle.is_empty(), "ELSEWHERE lists what is seen, or is not there any more: {idle:?}");
}

#[test]
fn a_field_that_is_gone_new_or_another_is_seen() {
    let said = shape(&serde_json::json!({ "schema": "x", "a": 1, "items": [{ "b": null }, { "b": 1.5, "c": "x" }] }));
    assert!(said["items[].c"].optional && !said["items[].b"].optional);
    let wrong = |document: Value| differences(&said, &shape(&document), &document);
    assert!(wrong(serde_json::json!({ "schema": "x", "a": 2, "items": [{ "b": 3 }] })).is_empty());
    assert_eq!(wrong(serde_json::json!({ "schema": "x", "items": [] })), ["a is missing"]);
    assert_eq!(wrong(serde_json::json!({ "a": "1", "items": [] })).len(), 2, "its type, and the schema that is gone");
    assert_eq!(
        wrong(serde_json::json!({ "schema": "x", "a": 1, "items": [{ "b": 1, "d": 1 }] })),
        ["items[].d is not documented"]
    );
    let all = BTreeMap::from([("quelea x".to_owned(), ("quelea.x/v1".to_owned(), said.clone()))]);
    let mut again = documented(&page(&all))["quelea x"].1.clone();
    again.insert("schema".into(), said["schema"].clone());
    assert_eq!(again, said, "the page says what was seen");
}
