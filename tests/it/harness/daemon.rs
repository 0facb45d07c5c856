//! Daemons, and swarms of them.

use std::{ops::Deref, path::PathBuf, sync::Arc};

use futures::future::join_all;
use reqwest::{StatusCode, header::CONTENT_TYPE};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::{
    MemoryLimit, http_client,
    process::{Ended, Process, quelea},
    tempdir, until,
};

/// How a daemon is started: on loopback, at free ports, in a directory of its own unless said otherwise.
#[derive(Clone)]
pub struct Launch {
    home: Option<PathBuf>,
    listen: Vec<String>,
    args: Vec<String>,
    within: Option<Arc<MemoryLimit>>,
}

impl Launch {
    /// A bare node.
    pub fn new() -> Self {
        Self {
            home: None,
            listen: ["--host", "127.0.0.1", "--port", "0"].map(str::to_owned).into(),
            args: Vec::new(),
            within: None,
        }
    }

    /// In this data directory.
    pub fn home(mut self, home: impl Into<PathBuf>) -> Self {
        self.home = Some(home.into());
        self
    }

    /// Listens on exactly this multiaddr.
    pub fn listen(mut self, addr: &str) -> Self {
        self.listen = vec!["--listen".into(), addr.into()];
        self
    }

    /// Starts from that node.
    pub fn bootstrap(self, node: &Daemon) -> Self {
        self.args(&["--bootstrap", node.addr()])
    }

    /// Within a limit of memory.
    pub fn within(mut self, limit: &Arc<MemoryLimit>) -> Self {
        self.within = Some(limit.clone());
        self
    }

    /// Serves layers of a model.
    pub fn serve(self, model: &str, layers: &str) -> Self {
        self.args(&["--model", model, "--layers", layers])
    }

    /// More arguments.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    fn spawn(&self) -> (Process, PathBuf, Option<TempDir>) {
        let made = self.home.is_none().then(tempdir);
        let home = self.home.clone().or_else(|| Some(made.as_ref()?.path().to_owned())).unwrap();
        let mut args: Vec<String> = vec!["daemon".into(), "--data-dir".into(), home.to_str().unwrap().into()];
        args.extend(self.listen.iter().cloned());
        for flag in ["--api-listen", "--metrics-listen"] {
            if !self.args.iter().any(|arg| arg == flag) {
                args.extend([flag.into(), "127.0.0.1:0".into()]);
            }
        }
        args.extend(self.args.iter().cloned());
        // To see what daemons did when a test fails.
        if std::env::var_os("QUELEA_IT_VERBOSE").is_some() {
            args.push("-v".into());
        }
        let process = match &self.within {
            Some(limit) => Process::spawn_within(limit, &args),
            None => Process::spawn(&args),
        };
        (process, home, made)
    }

    /// Starts it and waits until it is ready.
    pub async fn start(&self) -> Daemon {
        let (mut process, home, made) = self.spawn();
        let greeting = process.stdout_until(|text| text.lines().any(|line| line == "ready")).await;
        Daemon { process, home, greeting, _made: made }
    }

    /// Starts one that must not come up, and waits for its end.
    pub async fn fails(&self) -> Ended {
        let (process, _, _made) = self.spawn();
        process.end().await
    }
}

/// A daemon that is ready.
pub struct Daemon {
    process: Process,
    home: PathBuf,
    greeting: String,
    /// The data directory goes away after the process, unless a test brought it.
    _made: Option<TempDir>,
}

impl Deref for Daemon {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl Daemon {
    /// The values of a line of the greeting, like `listen`.
    pub fn told(&self, name: &str) -> Vec<&str> {
        let lines = self.greeting.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(key, _)| *key == name).map(|(_, value)| value.trim()).collect()
    }

    /// Everything that it printed on the way to `ready`.
    pub fn greeting(&self) -> &str {
        &self.greeting
    }

    /// Its peer id.
    pub fn peer(&self) -> &str {
        self.told("peer id")[0]
    }

    /// A full multiaddr of it, over TCP where it has one.
    pub fn addr(&self) -> &str {
        let all = self.told("listen");
        all.iter().find(|addr| addr.contains("/tcp/")).or(all.first()).unwrap()
    }

    /// Its data directory.
    pub fn home(&self) -> &str {
        self.home.to_str().unwrap()
    }

    /// Waits until its log says this.
    pub async fn logs(&mut self, text: &str) {
        self.process.stderr_has(text).await;
    }

    /// Runs a command against it, through its socket.
    pub async fn command(&self, args: &[&str]) -> Ended {
        quelea(&[args, &["--data-dir", self.home()]].concat()).await
    }

    /// `quelea status`.
    pub async fn status(&self) -> Value {
        self.command(&["status", "--json"]).await.expect(0).json()
    }

    /// Sessions that it serves as a stage.
    pub async fn sessions(&self) -> u64 {
        let status = self.status().await;
        status["serves"].as_array().unwrap().iter().map(|served| served["sessions"].as_u64().unwrap()).sum()
    }

    /// Waits until it serves this many sessions.
    pub async fn until_sessions(&self, wanted: u64) {
        let what = format!("{wanted} session(s) at {}", self.peer());
        until(&what, async || (self.sessions().await == wanted).then_some(())).await;
    }

    /// The addresses at which it is connected to its peers.
    pub async fn connections(&self) -> Vec<String> {
        let status = self.status().await;
        let peers = status["peers"].as_array().unwrap().clone();
        let addresses = peers.iter().flat_map(|peer| peer["addresses"].as_array().unwrap());
        addresses.map(|addr| addr.as_str().unwrap().to_owned()).collect()
    }

    /// What it serves at its metrics address: status, content type, body.
    pub async fn fetch(&self, path: &str) -> (StatusCode, String, String) {
        let url = format!("{}{path}", self.told("metrics")[0].trim_end_matches("/metrics"));
        let response = http_client().build().unwrap().get(url).send().await.unwrap();
        let kind = response.headers().get(CONTENT_TYPE).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        (response.status(), kind, response.text().await.unwrap())
    }

    /// The sum of all samples of one of its metrics whose labels hold `label`.
    pub async fn metric(&self, name: &str, label: &str) -> f64 {
        let scrape = self.fetch("/metrics").await.2;
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let samples = scrape.lines().filter(of_name).filter(|line| line.contains(label));
        let samples: Vec<f64> = samples.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(!samples.is_empty(), "no sample of {name} with {label:?} in\n{scrape}");
        samples.iter().sum()
    }

    /// Waits until it is connected to `peer`.
    pub async fn until_connected_to(&self, peer: &str) {
        until(&format!("a connection from {} to {peer}", self.peer()), async || {
            let status = self.status().await;
            status["peers"].as_array().unwrap().iter().any(|p| p["peer_id"] == peer).then_some(())
        })
        .await;
    }

    /// Ends it politely, as its supervisor would.
    pub async fn stop(self) {
        self.signal(Signal::TERM);
        self.end().await.expect(0);
    }

    /// Waits for its end.
    pub async fn end(self) -> Ended {
        self.process.end().await
    }
}

/// A bare node to start from, and workers.
pub struct Swarm {
    pub boot: Daemon,
    pub workers: Vec<Daemon>,
}

/// Starts a swarm that holds these spans of `model`.
pub async fn swarm(model: &str, spans: &[&str]) -> Swarm {
    swarm_of(model, spans, &[]).await
}

/// The same of workers that are started with more arguments.
pub async fn swarm_of(model: &str, spans: &[&str], args: &[&str]) -> Swarm {
    let boot = Launch::new().start().await;
    let launches = spans.iter().map(|span| Launch::new().bootstrap(&boot).serve(model, span).args(args));
    let workers = join_all(launches.map(|launch| async move { launch.start().await })).await;
    Swarm { boot, workers }
}

impl Swarm {
    /// `quelea infer` as a passing peer, with `--json`.
    pub async fn ask(&self, model: &str, args: &[&str]) -> Ended {
        quelea(&[&["infer", "--json", "--bootstrap", self.boot.addr(), "--model", model], args].concat()).await
    }

    /// Starts a long answer as a passing peer, and waits until some of its text has come.
    pub async fn streaming(&self, model: &str, args: &[&str]) -> Process {
        streaming(&[&["--bootstrap", self.boot.addr(), "--model", model], args].concat()).await
    }
}

/// Starts a long answer, and waits until some of its text has come.
pub async fn streaming(args: &[&str]) -> Process {
    let long = ["infer", "--raw", "--ignore-eos", "--max-tokens", "480", "Once"];
    let mut asking = Process::spawn(&[&long, args].concat());
    asking.stdout_until(|text| !text.is_empty()).await;
    asking
}

/// A daemon that drains and cannot finish: what is under way is for a caller who has stopped reading.
pub async fn draining() -> (Daemon, Process) {
    let mut daemon = Launch::new().serve(super::DEMO, "all").start().await;
    let asking = streaming(&["--bootstrap", daemon.addr()]).await;
    asking.signal(Signal::STOP);
    daemon.until_sessions(1).await;
    daemon.signal(Signal::TERM);
    daemon.logs("a second signal ends at once").await;
    (daemon, asking)
}
