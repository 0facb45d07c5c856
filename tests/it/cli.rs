//! The command line as a whole: flags of every command, exit codes, the layers of the configuration, what it says of itself.

use std::{fs, path::Path};

use serde_json::Value;

use crate::harness::{DEMO, Ended, Launch, Process, quelea, swarm, tempdir};

const PEER: &str = "12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS";

async fn at(home: &Path, args: &[&str]) -> Ended {
    quelea(&[args, &["--data-dir", home.to_str().unwrap()]].concat()).await
}

async fn with_variables(home: &Path, args: &[&str], variables: &[(&str, &str)]) -> Ended {
    Process::spawn_with(&[args, &["--data-dir", home.to_str().unwrap()]].concat(), variables).end().await
}

/// Where a setting's value comes from, and what it is.
fn setting(shown: &Value, key: &str) -> (String, Vec<String>) {
    let all = shown["items"].as_array().unwrap();
    let item = all.iter().find(|item| item["key"] == key).unwrap_or_else(|| panic!("no {key} in {shown}"));
    let values = item["values"].as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_owned());
    (item["origin"].as_str().unwrap().to_owned(), values.collect())
}

#[tokio::test]
async fn a_flag_wins_over_the_environment_that_over_the_file_that_over_the_profile() {
    let home = tempdir();
    let home = home.path();
    at(home, &["init", "--profile", "dev", "--json"]).await.expect(0);
    at(home, &["init"]).await.expect(1).says(&["is there already", "--force"]);
    at(home, &["config", "set", "network", "of-the-file"]).await.expect(0);
    at(home, &["config", "set", "bootstrap", &format!("/ip4/10.0.0.3/tcp/1/p2p/{PEER}")]).await.expect(0);
    let dry = ["daemon", "--dry-run", "--json", "--api-listen", "127.0.0.1:7"];
    let variables = [("QUELEA_DAEMON_PORT", "7000"), ("QUELEA_DAEMON_MDNS", "yes")];
    let shown = with_variables(home, &dry, &variables).await.expect(0).json();
    assert_eq!(shown["schema"], "quelea.config/v1");
    let file = format!("{}:6", home.join("config.toml").display());
    for (key, origin, value) in [
        ("api-listen", "command line", "127.0.0.1:7"),
        ("port", "environment QUELEA_DAEMON_PORT", "7000"),
        ("mdns", "environment QUELEA_DAEMON_MDNS", "true"),
        ("network", file.as_str(), "of-the-file"),
        ("host", "profile dev", "127.0.0.1"),
        ("upnp", "default", "false"),
    ] {
        assert_eq!(setting(&shown, key), (origin.to_owned(), vec![value.to_owned()]), "{key}");
    }
    assert_eq!(setting(&shown, "memory"), ("default".into(), vec![]));
    assert_eq!(setting(&shown, "bootstrap").1, [format!("/ip4/10.0.0.3/tcp/1/p2p/{PEER}")]);
    // What is shown for the next start is what a start would have.
    let next = at(home, &["config", "show", "--json"]).await.expect(0).json();
    assert_eq!(setting(&next, "port"), ("profile dev".into(), vec!["0".into()]));
    assert_eq!(at(home, &["config", "get", "network"]).await.expect(0).stdout, "of-the-file\n");
    at(home, &["config", "unset", "network"]).await.expect(0);
    assert_eq!(at(home, &["config", "get", "network"]).await.expect(0).stdout, "dev\n");
}

#[tokio::test]
async fn a_daemon_starts_as_its_file_says() {
    let home = tempdir();
    let file = home.path().join("config.toml");
    fs::write(&file, "# what is served\nmodel = \"demo\"\nlayers = \"0..2\"\n").unwrap();
    let daemon = Launch::new().home(home.path()).start().await;
    assert!(daemon.greeting().contains("serving:  layers 0..2"), "{}", daemon.greeting());
    daemon.stop().await;

    fs::write(&file, "model = \"demo\"\nlayer = \"0..2\"\n").unwrap();
    let said = [format!("{}:2: there is no setting \"layer\"", file.display()), "did you mean \"layers\"?".into()];
    let said = said.each_ref().map(String::as_str);
    Launch::new().home(home.path()).fails().await.expect(2).says(&said);
    at(home.path(), &["config", "validate"]).await.expect(2).says(&said);
    at(home.path(), &["config", "set", "port", "1"]).await.expect(2).says(&said);
    // A value that no daemon would take, and one that needs another beside it.
    fs::write(&file, "model = \"demo\"\n\nmemory = \"2X\"\n").unwrap();
    at(home.path(), &["config", "validate"]).await.expect(2).says(&["config.toml:3: ", "--memory"]);
    fs::write(&file, "memory = \"2G\"\n").unwrap();
    at(home.path(), &["config", "validate"]).await.expect(2).says(&["--model"]);
    at(home.path(), &["config", "get", "prot"]).await.expect(5).says(&["did you mean \"port\"?"]);
    at(home.path(), &["config", "validate", "nowhere.toml"]).await.expect(2).says(&["no configuration file"]);
}

#[tokio::test]
async fn commands_end_with_the_documented_codes() {
    let swarm = swarm(DEMO, &["0..3"]).await;
    let daemon = &swarm.boot;
    let nowhere = tempdir();
    let wrong_token = nowhere.path().join("token");
    fs::write(&wrong_token, "00".repeat(32)).unwrap();
    fs::set_permissions(&wrong_token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let api = daemon.told("api")[0];
    let forged = nowhere.path().join("a.receipt");
    fs::write(&forged, b"no receipt").unwrap();

    daemon.command(&["status"]).await.expect(0);
    daemon.command(&["frobnicate"]).await.expect(2);
    at(nowhere.path(), &["status"]).await.expect(3);
    quelea(&["status", "--api", api, "--api-token-file", wrong_token.to_str().unwrap()]).await.expect(4);
    daemon.command(&["peers", "info", PEER]).await.expect(5);
    // Three of six layers have nobody.
    daemon.command(&["infer", "--max-tokens", "4", "hi"]).await.expect(6);
    quelea(&["receipt", "verify", forged.to_str().unwrap()]).await.expect(8);
}

#[tokio::test]
async fn errors_are_json_where_answers_are() {
    let nowhere = tempdir();
    for (args, code, exit) in
        [(&["status"][..], "QUE-1003", 3), (&["frobnicate"], "QUE-1001", 2), (&["ping"], "QUE-1001", 2)]
    {
        let ended = at(nowhere.path(), &[args, &["--json"]].concat()).await.expect(exit);
        let error: Value = serde_json::from_str(&ended.stderr).unwrap_or_else(|e| panic!("{e}: {:?}", ended.stderr));
        let error = error["error"].as_object().unwrap();
        assert_eq!((error["code"].as_str(), ended.stdout.as_str()), (Some(code), ""));
        assert!(error["message"].is_string() && error["hint"].is_string() && error["retryable"].is_boolean());
    }
}

#[tokio::test]
async fn output_is_as_it_is_wanted() {
    let nowhere = tempdir();
    let listed = at(nowhere.path(), &["errors", "list", "--plain"]).await.expect(0).stdout;
    assert!(listed.lines().all(|line| line.split('\t').count() == 4), "{listed}");
    assert!(
        !at(nowhere.path(), &["errors", "list"]).await.expect(0).stdout.contains('\u{1b}'),
        "a pipe has no colours"
    );
    let coloured = at(nowhere.path(), &["errors", "list", "--color", "always"]).await.expect(0).stdout;
    assert!(coloured.contains("\u{1b}[1m"), "{coloured:?}");
    let errors = async |variables: &[(&str, &str)]| with_variables(nowhere.path(), &["status"], variables).await.stderr;
    assert!(errors(&[("FORCE_COLOR", "1")]).await.starts_with("\u{1b}[1;31merror:"));
    assert!(errors(&[("FORCE_COLOR", "1"), ("NO_COLOR", "1")]).await.starts_with("error: "));
    let quiet = tempdir();
    assert_eq!(at(quiet.path(), &["init", "--quiet"]).await.expect(0).stderr, "");
    // A daemon that is stopped answers nothing: the wait is what --timeout says.
    let daemon = Launch::new().start().await;
    daemon.signal(rustix::process::Signal::STOP);
    daemon.command(&["status", "--timeout", "300ms"]).await.expect(6).says(&["not answered in time", "--timeout"]);
    daemon.signal(rustix::process::Signal::CONT);
    daemon.stop().await;
}

#[tokio::test]
async fn the_program_says_what_it_is() {
    let home = tempdir();
    let version = at(home.path(), &["version", "--all", "--json"]).await.expect(0).json();
    assert_eq!(
        (&version["schema"], &version["version"]),
        (&"quelea.version/v1".into(), &env!("CARGO_PKG_VERSION").into())
    );
    let code = at(home.path(), &["errors", "lookup", "7001", "--json"]).await.expect(0).json();
    assert_eq!((&code["schema"], &code["exit"]), (&"quelea.error/v1".into(), &7.into()));
    at(home.path(), &["errors", "lookup", "QUE-9"]).await.expect(5).says(&["errors list"]);
    let paths = at(home.path(), &["paths", "--json"]).await.expect(0).json();
    assert!(
        paths["items"].as_array().unwrap().iter().any(|item| item["name"] == "identity" && item["exists"] == false)
    );
    for (shell, word) in [("bash", "_quelea()"), ("zsh", "#compdef quelea"), ("fish", "complete -c quelea")] {
        let script = at(home.path(), &["completions", shell]).await.expect(0).stdout;
        assert!(script.contains(word) && script.contains("netcheck"), "{shell}");
    }
    let pages = home.path().join("man");
    at(home.path(), &["man", pages.to_str().unwrap()]).await.expect(0);
    let page = fs::read_to_string(pages.join("quelea-peers-list.1")).unwrap();
    assert!(page.contains(".SH EXAMPLES") && page.contains("quelea peers list"), "{page}");
}

#[tokio::test]
async fn an_editor_changes_the_file_only_to_what_a_daemon_would_take() {
    let home = tempdir();
    let (home, file) = (home.path(), home.path().join("config.toml"));
    at(home, &["config", "set", "port", "9000"]).await.expect(0);
    let before = fs::read_to_string(&file).unwrap();
    // The copy's name comes last.
    let edited = async |command: &str| {
        let variables = [("VISUAL", ""), ("EDITOR", command), ("TMPDIR", home.to_str().unwrap())];
        with_variables(home, &["config", "edit", "--json"], &variables).await
    };
    let done = edited("true").await.expect(0).json();
    assert_eq!((&done["schema"], &done["changed"]), (&"quelea.config.edit/v1".into(), &false.into()));
    edited("sed -i s/9000/9001/").await.expect(0);
    assert_eq!(fs::read_to_string(&file).unwrap(), before.replace("9000", "9001"));
    // What is wrong is named with its line, and what was written is not lost.
    let refused = edited("sed -i s/port/prot/")
        .await
        .expect(2)
        .says(&["there is no setting \\\"prot\\\"", "what was written is in"]);
    let error: Value = serde_json::from_str(refused.stderr.lines().last().unwrap()).unwrap();
    let kept = error["error"]["hint"].as_str().unwrap().rsplit(' ').next().unwrap();
    assert!(fs::read_to_string(kept).unwrap().contains("prot = 9001"), "{kept}");
    assert_eq!(fs::read_to_string(&file).unwrap(), before.replace("9000", "9001"));
    edited("false").await.expect(1).says(&["nothing was changed"]);
    edited("no-such-editor").await.expect(1).says(&["cannot be run", "VISUAL or EDITOR"]);
    edited("sh -c 'echo").await.expect(1).says(&["a quote has no end"]);
    // Somebody else writes meanwhile.
    let other = format!("sh -c 'echo port = 1 > {}; sed -i s/9001/9002/ $0'", file.display());
    edited(&other).await.expect(1).says(&["was changed by somebody else"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "port = 1\n");
}

#[tokio::test]
async fn a_key_is_shown_and_copied_and_never_overwritten() {
    let home = tempdir();
    let home = home.path();
    at(home, &["key", "show"]).await.expect(5).says(&["quelea init"]);
    let made = at(home, &["init", "--json"]).await.expect(0).json();
    let shown = at(home, &["key", "show", "--json"]).await.expect(0).json();
    assert_eq!((&shown["peer_id"], &shown["type"]), (&made["peer_id"], &"ed25519".into()));
    assert_eq!(shown["public_key"].as_str().unwrap().len(), 64);
    let copy = home.join("copy.key");
    at(home, &["key", "export", copy.to_str().unwrap()]).await.expect(0).says(&["proof of fraud"]);
    at(home, &["key", "export", copy.to_str().unwrap()]).await.expect(1).says(&["is there already"]);
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    // The copy is the same node, and where the daemon's key is elsewhere, that one is shown.
    at(home, &["config", "set", "identity", copy.to_str().unwrap()]).await.expect(0);
    let again = at(home, &["key", "show", "--json"]).await.expect(0).json();
    assert_eq!((&again["peer_id"], &again["path"]), (&made["peer_id"], &copy.to_str().unwrap().into()));
}

#[tokio::test]
async fn a_context_is_a_node_elsewhere() {
    let node = Launch::new().start().await;
    let (room, here) = (tempdir(), tempdir());
    let path = |name: &str| room.path().join(name).to_str().unwrap().to_owned();
    let token = Path::new(node.home()).join("api.token").to_str().unwrap().to_owned();
    let api = node.told("api")[0].to_owned();
    let run = async |args: &[&str]| {
        // A node of this machine's own would be at the default place, which is empty.
        let settings =
            [("XDG_CONFIG_HOME", path("config")), ("XDG_DATA_HOME", here.path().to_str().unwrap().to_owned())];
        let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Process::spawn_with(args, &settings).end().await
    };
    run(&["id"]).await.expect(3);
    run(&["context", "ls"]).await.expect(0).says(&["there is none"]);
    run(&["context", "add", "lab", "--at", &api, "--token-file", &token]).await.expect(0);
    run(&["context", "add", "lab", "--at", &api]).await.expect(1).says(&["already"]);
    run(&["context", "add", "x", "--at", "https://192.0.2.7"]).await.expect(2).says(&["http://192.0.2.7:8469"]);
    run(&["context", "add", "x", "--at", &api, "--token-file", &path("none")]).await.expect(4);
    run(&["id"]).await.expect(3);
    assert_eq!(run(&["--context", "lab", "id", "--json"]).await.expect(0).json()["peer_id"], node.peer());
    run(&["--context", "other", "id"]).await.expect(5).says(&["quelea context ls"]);
    run(&["context", "use", "lab"]).await.expect(0);
    assert_eq!(run(&["id", "--json"]).await.expect(0).json()["peer_id"], node.peer());
    // Who names a node means it.
    run(&["id", "--data-dir", here.path().to_str().unwrap()]).await.expect(3);
    let listed = run(&["context", "ls", "--json"]).await.expect(0).json();
    assert_eq!((&listed["items"][0]["name"], &listed["items"][0]["current"]), (&"lab".into(), &true.into()));
    run(&["context", "use"]).await.expect(0);
    run(&["id"]).await.expect(3);
    run(&["context", "rm", "lab"]).await.expect(0);
    run(&["context", "rm", "lab"]).await.expect(5);
}
