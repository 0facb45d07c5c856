//! The process behind `llm_local`: where its program is, starting it, telling it to stop, and what it says on stderr.

use std::{
    env, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use quelea_wire::ErrorCode;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, ChildStderr, ChildStdin, Command},
};

use crate::inference::InferError;

/// What the program is called.
const NAME: &str = "quelea-local-llm";

/// Bytes of a line that it says.
const LINE: u64 = 512;

/// Lines of it that go into the log within [`WINDOW`].
const LINES: u32 = 40;

const WINDOW: Duration = Duration::from_secs(60);

/// What of the environment it is given.
const ENVIRONMENT: [&str; 3] = ["PATH", "RAYON_NUM_THREADS", "TMPDIR"];

/// Finds the program: where the operator says, beside this one, or on the way where programs are looked for.
pub(super) fn find(named: Option<PathBuf>) -> Result<PathBuf, InferError> {
    let runs =
        |path: &Path| path.metadata().is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0);
    let missing = |what: String| {
        InferError::new(ErrorCode::Usage, what).hint(
            "build it with: cargo build --release --manifest-path sidecars/local-llm/Cargo.toml, and put it beside quelea or \
             name it as --llm-local-program; or run Ollama and give its URL as --llm-local-url",
        )
    };
    if let Some(named) = named {
        let path = std::path::absolute(&named).ok().filter(|path| runs(path));
        return path.ok_or_else(|| missing(format!("--llm-local-program {}: it is no program", named.display())));
    }
    let beside = env::current_exe().ok().and_then(|program| Some(program.parent()?.to_owned()));
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = beside.into_iter().chain(env::split_paths(&path).filter(|dir| dir.is_absolute()));
    let found = places.find_map(|dir| Some(dir.join(NAME)).filter(|path| runs(path)));
    found.ok_or_else(|| missing(format!("the program {NAME}, which llm_local runs a model with, is not installed")))
}

/// How it is started.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) program: PathBuf,
    pub(super) model: PathBuf,
    pub(super) socket: PathBuf,
    /// Bytes of memory of its own.
    pub(super) memory: Option<u64>,
}

/// A process that was started. Killed when dropped; should this process be killed, it notices that its stdin is closed.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    _stdin: ChildStdin,
}

impl Process {
    pub(super) fn start(order: &Order) -> io::Result<Self> {
        let mut command = std::process::Command::new(&order.program);
        command.arg("--model").arg(&order.model).arg("--socket").arg(&order.socket).arg("--until-stdin-closes");
        if let Some(memory) = order.memory {
            command.arg("--memory").arg(memory.to_string());
        }
        command.env_clear().current_dir("/").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.envs(ENVIRONMENT.into_iter().filter_map(|name| Some((name, env::var_os(name)?))));
        // What a terminal sends to the daemon, the daemon tells it when it is time.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = Command::from(command).kill_on_drop(true).spawn()?;
        match (child.stdin.take(), child.stderr.take()) {
            (Some(stdin), Some(stderr)) => {
                tokio::spawn(tell(stderr));
                Ok(Self { child, _stdin: stdin })
            }
            _ => Err(io::Error::other("a process without pipes")),
        }
    }

    /// Tells it to finish what is under way and to end.
    pub(super) fn ask(&self) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        // It has not been waited for, so its number is nobody else's.
        if let Some(pid) = pid
            && let Err(error) = kill_process(pid, Signal::TERM)
        {
            tracing::debug!(%error, "the process behind llm_local cannot be told to stop");
        }
    }

    pub(super) fn kill(&mut self) {
        if let Err(error) = self.child.start_kill() {
            tracing::debug!(%error, "the process behind llm_local cannot be killed");
        }
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }
}

/// Tells the log what it says, as much as a log can take.
async fn tell(stderr: ChildStderr) {
    let mut reader = BufReader::new(stderr);
    let (mut began, mut told, mut passed) = (Instant::now(), 0u32, 0u32);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        if began.elapsed() >= WINDOW {
            (began, told) = (Instant::now(), 0);
        }
        if told >= LINES {
            passed = passed.saturating_add(1);
            continue;
        }
        told += 1;
        let text: String = String::from_utf8_lossy(&line).chars().filter(|c| !c.is_control()).collect();
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        if passed > 0 {
            tracing::warn!("llm_local: … ({passed} lines are left out)");
            passed = 0;
        }
        tracing::warn!("llm_local: {text}");
    }
    if passed > 0 {
        tracing::warn!("llm_local: … ({passed} lines are left out)");
    }
}
