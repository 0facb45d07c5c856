//! One `quelea` process: what it prints, its signals, and its end.

use std::{
    io::{Seek as _, Write as _},
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};

use super::{MemoryLimit, PATIENCE};

/// The program under test.
const QUELEA: &str = env!("CARGO_BIN_EXE_quelea");

/// A running process. Killed when dropped; its stderr is shown when the test fails.
pub struct Process {
    what: String,
    child: Child,
    pid: Pid,
    stdout: Output,
    stderr: Output,
}

/// What came out of one of a process's pipes so far. The sender goes away at the end of the pipe.
struct Output {
    text: watch::Receiver<String>,
    reader: JoinHandle<()>,
}

impl Output {
    fn of(mut pipe: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let (sender, text) = watch::channel(String::new());
        let reader = tokio::spawn(async move {
            let mut bytes = Vec::new();
            while let Ok(read) = pipe.read_buf(&mut bytes).await
                && read > 0
            {
                sender.send_modify(|text| *text = String::from_utf8_lossy(&bytes).into_owned());
            }
        });
        Self { text, reader }
    }

    fn so_far(&self) -> String {
        self.text.borrow().clone()
    }
}

impl Process {
    /// Starts `quelea` with these arguments, apart from the settings of whoever runs the tests.
    pub fn spawn<S: AsRef<str>>(args: &[S]) -> Self {
        Self::spawn_with(args, &[])
    }

    /// The same with more of an environment.
    pub fn spawn_with<S: AsRef<str>>(args: &[S], env: &[(&str, &str)]) -> Self {
        Self::spawn_command(Command::new(QUELEA), args, env, Stdio::null())
    }

    /// The same with this on stdin.
    pub fn spawn_fed<S: AsRef<str>>(args: &[S], input: &str) -> Self {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(input.as_bytes()).and_then(|()| file.rewind()).unwrap();
        Self::spawn_command(Command::new(QUELEA), args, &[], file.into())
    }

    /// The same within a limit of memory.
    pub fn spawn_within<S: AsRef<str>>(limit: &MemoryLimit, args: &[S]) -> Self {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(limit.enter() + "exec \"$0\" \"$@\"").arg(QUELEA);
        Self::spawn_command(shell, args, &[], Stdio::null())
    }

    /// The same where a file may be no longer than a block.
    pub fn spawn_in_little_room<S: AsRef<str>>(args: &[S]) -> Self {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg("trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\"").arg(QUELEA);
        Self::spawn_command(shell, args, &[], Stdio::null())
    }

    fn spawn_command<S: AsRef<str>>(mut command: Command, args: &[S], env: &[(&str, &str)], stdin: Stdio) -> Self {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        for variable in [
            "QUELEA_DATA_DIR",
            "QUELEA_API",
            "QUELEA_CONFIG",
            "QUELEA_CONTEXT",
            "XDG_DATA_HOME",
            "RUST_LOG",
            "NO_COLOR",
            "FORCE_COLOR",
            "HF_TOKEN",
            "HF_ENDPOINT",
        ] {
            command.env_remove(variable);
        }
        command.args(&args).env("HOME", env!("CARGO_TARGET_TMPDIR")).kill_on_drop(true);
        command.envs(env.iter().copied());
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        let stdout = Output::of(child.stdout.take().unwrap());
        let stderr = Output::of(child.stderr.take().unwrap());
        Self { what: format!("quelea {}", args.join(" ")), child, pid, stdout, stderr }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits until stdout is as wanted; all of it.
    pub async fn stdout_until(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let seen = timeout(PATIENCE, self.stdout.text.wait_for(|text| wanted(text))).await;
        let seen = seen.map(|text| text.map(|text| text.clone()));
        match seen {
            Ok(Ok(text)) => text,
            Ok(Err(_)) => panic!("{}: ended, with this on stdout: {:?}", self.what, self.stdout.so_far()),
            Err(_) => panic!("{}: waited in vain, with this on stdout: {:?}", self.what, self.stdout.so_far()),
        }
    }

    /// Waits until stderr holds `text`.
    pub async fn stderr_has(&mut self, text: &str) {
        let seen = timeout(PATIENCE, self.stderr.text.wait_for(|all| all.contains(text))).await;
        assert!(matches!(seen, Ok(Ok(_))), "{}: {text:?} never came on stderr", self.what);
    }

    /// Waits for the process to end by itself.
    pub async fn end(mut self) -> Ended {
        let waited = Instant::now();
        let Ok(status) = timeout(PATIENCE, self.child.wait()).await else {
            panic!("{}: does not end", self.what);
        };
        let took = waited.elapsed();
        for reader in [&mut self.stdout.reader, &mut self.stderr.reader] {
            timeout(PATIENCE, reader).await.unwrap().unwrap();
        }
        Ended {
            what: self.what.clone(),
            code: status.unwrap().code(),
            stdout: self.stdout.so_far(),
            stderr: self.stderr.so_far(),
            took,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let stderr = self.stderr.so_far();
        if std::thread::panicking() {
            eprintln!("--- stderr of {} (process {}):\n{stderr}---", self.what, self.pid());
        } else {
            assert!(!stderr.contains("panicked"), "{} panicked:\n{stderr}", self.what);
        }
    }
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// Its command line.
    pub what: String,
    /// Its exit code; nothing when a signal ended it.
    pub code: Option<i32>,
    /// All that it printed.
    pub stdout: String,
    /// All that it said besides.
    pub stderr: String,
    /// How long it was waited for.
    pub took: Duration,
}

impl Ended {
    /// Checks the exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        let Self { what, stdout, stderr, .. } = &self;
        assert_eq!(self.code, Some(code), "exit code of {what}\nstdout: {stdout}\nstderr: {stderr}");
        self
    }

    /// Its stdout as one JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{}: {e}: {:?}", self.what, self.stdout))
    }

    /// Checks that stderr says all of this.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "{}: does not say {part:?}: {}", self.what, self.stderr);
        }
        self
    }
}

/// Runs `quelea` to its end.
pub async fn quelea<S: AsRef<str>>(args: &[S]) -> Ended {
    Process::spawn(args).end().await
}
