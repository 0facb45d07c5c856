//! Daemons inside the lab, and commands to them. Commands run outside: a daemon's socket is a file.

use std::{process::Stdio, time::Duration};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::net::{Host, Net};

/// How long anything may take; generous, as other work may run beside the lab.
pub const PATIENCE: Duration = Duration::from_secs(60);

const LOOK: Duration = Duration::from_millis(300);

/// A daemon that is ready. Its log stays in its directory while the test runs, and is shown when it panics.
pub struct Daemon {
    pub name: String,
    pub peer: String,
    /// Its first address, peer id included.
    pub listen: String,
    home: TempDir,
    _child: Child,
}

impl Daemon {
    pub async fn start(name: &str, host: &Host, args: &[&str]) -> Self {
        Self::start_with(name, host, args, &[]).await
    }

    /// The same with something in its environment.
    pub async fn start_with(name: &str, host: &Host, args: &[&str], env: &[(&str, &str)]) -> Self {
        let home = tempfile::Builder::new().prefix("quelea-nat-").tempdir().unwrap();
        let log = std::fs::File::create(home.path().join("log")).unwrap();
        let mut command = Net::exec(host, env!("CARGO_BIN_EXE_quelea"));
        command.args(["daemon", "-v", "--data-dir", home.path().to_str().unwrap()]).args(args);
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "quelea=debug,libp2p_dcutr=debug".into()));
        command.envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut peer, mut listen) = (String::new(), String::new());
        let ready = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some(id) = line.strip_prefix("peer id:") {
                    peer = id.trim().to_owned();
                }
                if let Some(addr) = line.strip_prefix("listen:").filter(|_| listen.is_empty()) {
                    listen = addr.trim().to_owned();
                }
                if line == "ready" {
                    return true;
                }
            }
            false
        };
        let ready = timeout(PATIENCE, ready).await.unwrap_or(false);
        let log = std::fs::read_to_string(home.path().join("log")).unwrap_or_default();
        assert!(ready, "{name} does not start:\n{log}");
        Self { name: name.into(), peer, listen, home, _child: child }
    }

    /// Runs `quelea` against it: exit code and stdout.
    pub async fn command(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quelea"));
        command.args(args).args(["--data-dir", self.home.path().to_str().unwrap()]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(PATIENCE * 2, command.output()).await.expect("the command ends").unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    pub async fn netcheck(&self) -> Value {
        let (code, out, err) = self.command(&["netcheck", "--json"]).await;
        assert_eq!(code, 0, "{}: {err}", self.name);
        serde_json::from_str(&out).unwrap()
    }

    /// Looks at its netcheck until it is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let seen = timeout(PATIENCE, async {
            loop {
                last = self.netcheck().await;
                if wanted(&last) {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        let seen = seen.await.is_ok();
        assert!(seen, "{}: in vain: {what}: {last:#}\n{}", self.name, self.log());
        last
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }
}

/// Places that relays keep, in a netcheck.
pub fn reserved(netcheck: &Value) -> usize {
    netcheck["relays"].as_array().unwrap().iter().filter(|relay| relay["reserved"] == true).count()
}
