//! Worker processes of this program, and the peer that asks them.

use std::{path::Path, process::Stdio, time::Duration};

use quelea_wire::ErrorCode;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use super::Plan;
use crate::{
    address::{PeerAddress, parse_peer_address},
    inference::{InferError, InferRequest, Summary},
    node::{Node, settings::Settings},
};

/// How long a worker may take to load its layers.
const LOADED: Duration = Duration::from_secs(300);

/// How long the asker may take to stop, and each worker.
const GRACE: Duration = Duration::from_secs(2);

pub(super) struct Lab {
    workers: Vec<Child>,
    asker: Node,
    /// The workers' data directories; removed at the end.
    _dir: tempfile::TempDir,
}

impl Lab {
    /// Starts `stages` workers with equal shares of `layers`, which ask `price` for 1,000 layer-rows of answers, and waits
    /// until all are found.
    pub(super) async fn start(plan: &Plan, layers: u16, stages: u16, price: u64) -> Result<Self, InferError> {
        let dir = tempfile::Builder::new()
            .prefix("quelea-bench-")
            .tempdir()
            .map_err(|e| InferError::new(ErrorCode::StorageFailed, format!("no temporary directory: {e}")))?;
        // Apart from every other run's.
        let network = format!("bench-{:016x}", rand::random::<u64>());
        let (mut workers, mut first): (Vec<Child>, Vec<PeerAddress>) = (Vec::new(), Vec::new());
        let cut = |i: u16| u32::from(layers) * u32::from(i) / u32::from(stages.max(1));
        for i in 0..stages {
            let span = format!("{}..{}", cut(i), cut(i + 1));
            let home = dir.path().join(format!("worker-{i}"));
            let (child, address) = worker(plan, &home, &network, (&span, price), first.first()).await?;
            workers.push(child);
            if first.is_empty() {
                first.push(address);
            }
        }
        let mut settings = Settings::passing(&network, first.clone());
        settings.compute.threads = plan.threads;
        settings.line_delay = plan.delay;
        let asker = Node::start(settings).await.map_err(|e| InferError::new(e.code, e.message))?;
        asker.wait_for_bootstrap(&first).await?;
        Ok(Self { workers, asker, _dir: dir })
    }

    /// Asks and waits for the end.
    pub(super) async fn ask(&self, request: InferRequest) -> Result<Summary, InferError> {
        self.asker.answer(request, |_| {}).await
    }

    /// Ends the workers. Those that do not go are killed.
    pub(super) async fn stop(mut self) {
        self.asker.shutdown(GRACE).await;
        for worker in &mut self.workers {
            let _ = worker.start_kill();
            let _ = tokio::time::timeout(GRACE, worker.wait()).await;
        }
    }
}

/// Starts a worker; it, and where it listens.
async fn worker(
    plan: &Plan,
    home: &Path,
    network: &str,
    (span, price): (&str, u64),
    first: Option<&PeerAddress>,
) -> Result<(Child, PeerAddress), InferError> {
    let failed = |why: String| InferError::new(ErrorCode::Internal, format!("the worker of layers {span}: {why}"));
    let mut command = Command::new(&plan.program);
    command.args(["daemon", "--listen", "/ip4/127.0.0.1/tcp/0", "--kad-mode", "server", "--network", network]);
    command.args(["--api-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]);
    command.args(["--model", &plan.file, "--layers", span]).arg("--data-dir").arg(home);
    command.arg("--price").arg(price.to_string());
    if let Some(first) = first {
        command.arg("--bootstrap").arg(first.to_string());
    }
    if let Some(threads) = plan.threads {
        command.arg("--threads").arg(threads.to_string());
    }
    if !plan.delay.is_zero() {
        command.arg("--line-delay").arg(format!("{}ms", plan.delay.as_millis()));
    }
    // What it has to say against starting goes where this program's own words go.
    command.env("RUST_LOG", "error").stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| failed(format!("cannot be started: {e}")))?;
    let stdout = child.stdout.take().ok_or_else(|| failed("has no output".into()))?;
    let mut lines = BufReader::new(stdout).lines();
    let ready = async {
        let mut address = None;
        while let Some(line) = lines.next_line().await.map_err(|e| failed(e.to_string()))? {
            if let Some(addr) = line.strip_prefix("listen:") {
                address = parse_peer_address(addr.trim()).ok();
            }
            if line == "ready" {
                return address.ok_or_else(|| failed("listens nowhere".into()));
            }
        }
        Err(failed("has ended before it was ready".into()))
    };
    let address = tokio::time::timeout(LOADED, ready).await;
    let address = address.map_err(|_| failed(format!("is not ready after {} s", LOADED.as_secs())))??;
    // A pipe that nobody reads would end it, if it ever said more.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((child, address))
}
