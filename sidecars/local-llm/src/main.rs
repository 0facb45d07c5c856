//! `quelea-local-llm`: a language model of this machine, behind a unix socket, in OpenAI's dialect.
//!
//! A Quelea node starts it for its service `llm_local` and ends it again; by hand it works as well. The model is a GGUF file or
//! a Hugging Face folder that is here already: nothing is ever fetched, and on Linux the process cannot open a socket of the
//! internet ([`lockdown`]).
//!
//! | file | holds |
//! |---|---|
//! | `lockdown` | what the process gives up before it looks at the model |
//! | `model` | what lies at a path, and loading it |
//! | `chat` | requests and answers as OpenAI writes them |
//! | `engine`, `sample`, `stop` | one answer: its tokens, how they are drawn, where it ends |
//! | `server` | the routes, and how much of them at once |

mod chat;
mod engine;
mod lockdown;
mod model;
mod sample;
mod server;
mod stop;

use std::{
    io::Read as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use clap::Parser;

use self::server::{Limits, Server};

/// How long answers under way may still take when the program is told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// What the program ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Exit {
    /// The socket, or what the process gives up.
    Setup = 1,
    /// The model is not there, is damaged, or of a family that is not known.
    Model = 3,
    /// A fault of this program, or of the engine's.
    Panic = 70,
}

/// Whether a model is being loaded: the engine panics at files that it does not understand, and at some that it cannot run.
static LOADING: AtomicBool = AtomicBool::new(false);

/// Asks for a backtrace when the program fails.
const BACKTRACE: &str = "RUST_BACKTRACE";

const EXAMPLES: &str = "Examples:
  quelea-local-llm --model qwen3-1.7b-q4_k_m.gguf --socket /run/user/1000/llm/llm.sock
  quelea-local-llm --model ~/models/SmolLM2-360M-Instruct --socket ./llm/llm.sock --memory 4294967296
  curl --unix-socket ./llm/llm.sock http://localhost/v1/models
  curl --unix-socket ./llm/llm.sock http://localhost/v1/chat/completions \\
    -d '{\"messages\":[{\"role\":\"user\",\"content\":\"What is a relay?\"}],\"stream\":true}'

Exit codes: 0 stopped, 1 it cannot be set up, 2 wrong usage, 3 the model cannot be loaded, 70 a fault of the engine";

/// Serves a model of this machine over a unix socket, in the dialect of OpenAI's chat completions.
#[derive(Debug, Parser)]
#[command(name = "quelea-local-llm", version, after_help = EXAMPLES)]
struct Args {
    /// A GGUF file (the first of several, where it is split), or a folder as Hugging Face lays it out
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// The socket to serve, mode 0600; its directory is made with mode 0700, and must be closed to others if it is there
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// What the model is called [default: what the file says, or the file's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Requests that may wait besides the one that is answered; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 16)]
    queue: u16,
    /// Tokens of an answer at most, whatever a request says
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Bytes of memory of its own that the process may have; it ends when it needs more (Linux) [default: no limit]
    #[arg(long, value_name = "BYTES")]
    memory: Option<u64>,
    /// End at once when stdin is closed: whoever started this has gone
    #[arg(long)]
    until_stdin_closes: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.memory.is_some() && std::env::var_os(BACKTRACE).is_some() {
        // Without memory there is none for a backtrace either: the process would stand still where it should end.
        let error = std::env::current_exe()
            .map(|program| Command::new(program).args(std::env::args_os().skip(1)).env_remove(BACKTRACE).exec());
        eprintln!("quelea-local-llm: cannot start again without {BACKTRACE}: {error:?}");
        return ExitCode::from(Exit::Setup as u8);
    }
    // A fault of the engine leaves requests that nobody answers: whoever watches starts the program anew.
    std::panic::set_hook(Box::new(|info| {
        let what = info.payload_as_str().unwrap_or("for a reason that it does not tell");
        let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line())).unwrap_or_default();
        let exit = if LOADING.load(Ordering::Relaxed) {
            eprintln!("quelea-local-llm: the engine cannot run this model: {what}{place}");
            Exit::Model
        } else {
            eprintln!("quelea-local-llm: the engine has failed: {what}{place}");
            Exit::Panic
        };
        std::process::exit(i32::from(exit as u8));
    }));
    if let Err(error) = lockdown::limit(args.memory) {
        eprintln!("quelea-local-llm: cannot limit this process: {error}");
        return ExitCode::from(Exit::Setup as u8);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("quelea-local-llm: no runtime: {error}");
            return ExitCode::from(Exit::Setup as u8);
        }
    };
    let code = runtime.block_on(run(args)).map_or_else(|exit| ExitCode::from(exit as u8), |()| ExitCode::SUCCESS);
    // The engine's threads wait for nothing.
    runtime.shutdown_background();
    code
}

async fn run(args: Args) -> Result<(), Exit> {
    let say = |exit: Exit| {
        move |error: String| {
            eprintln!("quelea-local-llm: {error}");
            exit
        }
    };
    let source = model::find(&args.model).map_err(say(Exit::Model))?;
    let name = args.name.clone().unwrap_or_else(|| source.name());
    let stop = stopped().map_err(|e| say(Exit::Setup)(format!("no signals: {e}")))?;
    let listener = server::bind(&args.socket).map_err(say(Exit::Setup))?;
    let socket = Socket(&args.socket);
    if args.until_stdin_closes {
        until_stdin_closes(args.socket.clone());
    }
    let limits = Limits { queue: args.queue, max_tokens: args.max_tokens };
    let server = Server::new(name, limits);
    // Health is told while the model is being loaded.
    let serving = tokio::spawn(server.clone().serve(listener, stop));
    let scratch = args.socket.with_extension("jinja");
    LOADING.store(true, Ordering::Relaxed);
    let loaded = tokio::select! {
        loaded = engine::Engine::load(source, scratch) => loaded,
        // Told to stop before there is anything to finish.
        _ = server.stopping() => return Ok(()),
    };
    LOADING.store(false, Ordering::Relaxed);
    server.ready(loaded.map_err(say(Exit::Model))?);
    let served = async {
        server.stopping().await;
        tokio::time::timeout(DRAIN, serving).await
    };
    if served.await.is_err() {
        eprintln!("quelea-local-llm: answers under way were cut off");
    }
    drop(socket);
    Ok(())
}

/// The socket's file, which goes with the program.
struct Socket<'a>(&'a Path);

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(self.0);
    }
}

/// Ends the process when nobody holds the other end of stdin any more. A thread of its own: nothing keeps it from noticing.
fn until_stdin_closes(socket: PathBuf) {
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut ignored = [0; 64];
        while matches!(stdin.read(&mut ignored), Ok(1..)) {}
        drop(Socket(&socket));
        std::process::exit(0);
    });
}

/// Waits for a signal to stop.
fn stopped() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
