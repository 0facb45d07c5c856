//! `quelea agent-worker --check`: locks a worker down as ever, and then tries what it must not be able to do. For operators who
//! want to know that the walls stand on their machine, and for the tests.

use std::{
    io::{self, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    process::Command,
};

use serde_json::json;

/// One thing that must fail.
type Attempt = (&'static str, fn() -> io::Result<()>);

const ATTEMPTS: [Attempt; 15] = [
    ("read a file", || std::fs::File::open("/etc/passwd").map(drop)),
    ("read its own program", || std::fs::File::open("/proc/self/exe").map(drop)),
    ("write a file", || std::fs::File::create("/tmp/quelea-agent-worker-was-here").map(drop)),
    ("list a directory", || std::fs::read_dir("/").map(drop)),
    ("remove a file", || std::fs::remove_file("/tmp/quelea-agent-worker-was-here")),
    ("look at a file", || std::fs::metadata("/etc").map(drop)),
    ("open a TCP socket", || TcpStream::connect("127.0.0.1:9").map(drop)),
    ("listen on TCP", || TcpListener::bind("127.0.0.1:0").map(drop)),
    ("open a UDP socket", || UdpSocket::bind("127.0.0.1:0").map(drop)),
    ("open a unix socket", || UnixStream::connect("/run/nothing").map(drop)),
    ("run a program", || Command::new("/bin/true").spawn().map(drop)),
    ("start a thread", || std::thread::Builder::new().spawn(|| {}).map(drop)),
    ("signal another process", || {
        let one = rustix::process::Pid::INIT;
        Ok(rustix::process::test_kill_process(one)?)
    }),
    ("raise its limits", || {
        let more = rustix::process::Rlimit { current: Some(64), maximum: Some(64) };
        Ok(rustix::process::setrlimit(rustix::process::Resource::Nofile, more)?)
    }),
    ("be dumped again", || Ok(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?)),
];

/// Prints a document with what each attempt came to; fails when one did not fail.
pub(super) fn run() -> io::Result<()> {
    let _kept = super::prepare()?;
    let mut held = true;
    let mut items = Vec::new();
    for (what, attempt) in ATTEMPTS {
        let result = attempt();
        // That there is nothing to connect to is no wall: only the system's "not permitted" is.
        let refused = result.as_ref().is_err_and(|e| e.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error()));
        held &= refused;
        items.push(json!({
            "attempt": what, "refused": refused,
            "said": result.err().map_or_else(|| "it worked".to_owned(), |e| e.to_string()),
        }));
    }
    let document = json!({ "schema": "quelea.agent_walls/v1", "holds": held, "items": items });
    writeln!(io::stdout(), "{document}")?;
    if held { Ok(()) } else { Err(io::Error::other("a worker can do what it must not")) }
}
