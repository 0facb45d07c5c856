//! Starting workers.
//!
//! A worker asks to be killed when its parent ends; the system means by that the *thread* that started it. Threads of a runtime
//! come and go, so one thread does nothing else and lasts as long as the process.

use std::{
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::mpsc as std_mpsc,
};

use tokio::{
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::oneshot,
};

/// Starts that may wait. Each is answered within milliseconds; whoever finds no place is refused.
const QUEUE: usize = 64;

/// A process that has been started.
#[derive(Debug)]
pub(super) struct Worker {
    /// Killed when dropped.
    pub(super) child: Child,
    pub(super) stdin: ChildStdin,
    pub(super) stdout: ChildStdout,
}

type Reply = oneshot::Sender<io::Result<Worker>>;

/// The thread that starts workers.
#[derive(Debug, Clone)]
pub(super) struct Spawner {
    orders: std_mpsc::SyncSender<(tokio::runtime::Handle, Reply)>,
}

impl Spawner {
    /// Workers are this program.
    pub(super) fn new(program: PathBuf) -> io::Result<Self> {
        let (orders, waiting) = std_mpsc::sync_channel::<(tokio::runtime::Handle, Reply)>(QUEUE);
        std::thread::Builder::new().name("quelea-agents".into()).spawn(move || {
            for (runtime, reply) in waiting {
                let _inside = runtime.enter();
                // Nobody waits any more: the process is killed with the answer.
                let _ = reply.send(start(&program));
            }
        })?;
        Ok(Self { orders })
    }

    /// Starts one.
    pub(super) async fn start(&self) -> io::Result<Worker> {
        let (reply, answer) = oneshot::channel();
        let full = |_| io::Error::new(io::ErrorKind::WouldBlock, "too many agents are being started");
        self.orders.try_send((tokio::runtime::Handle::current(), reply)).map_err(full)?;
        answer.await.unwrap_or_else(|_| Err(io::Error::other("the thread that starts agents has ended")))
    }
}

fn start(program: &Path) -> io::Result<Worker> {
    let mut command = std::process::Command::new(program);
    command
        .arg("agent-worker")
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // What it would say there is of use to nobody, and a stranger's module might make it say much.
        .stderr(Stdio::null());
    let mut child = Command::from(command).kill_on_drop(true).spawn()?;
    match (child.stdin.take(), child.stdout.take()) {
        (Some(stdin), Some(stdout)) => Ok(Worker { child, stdin, stdout }),
        _ => Err(io::Error::other("a process without pipes")),
    }
}
