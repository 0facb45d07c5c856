#!/usr/bin/env python3
"""Builds the agent that docs/agents.md shows in Rust, as it stands there, and has a node run it.

usage: check_kit.py QUELEA

Needs the target wasm32-unknown-unknown and the kit's crates; without them it says so and ends with 3.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET = "wasm32-unknown-unknown"
UNAVAILABLE = 3


def unavailable(why: str) -> None:
    print(f"skipped: {why}")
    sys.exit(UNAVAILABLE)


def build(folder: Path, guide: str) -> Path:
    chapter = guide.split("## In Rust", 1)[1].split("\n## ", 1)[0]
    source = re.search(r"```rust\n(.*?)```", chapter, re.S).group(1)
    crates = re.search(r"cargo add (.*)", chapter).group(1).split()
    subprocess.run(["cargo", "new", "--quiet", "--vcs", "none", "--lib", "morning"], cwd=folder, check=True)
    package = folder / "morning"
    if subprocess.run(["cargo", "add", "--quiet", *crates], cwd=package, capture_output=True).returncode:
        unavailable("the kit's crates cannot be had")
    with (package / "Cargo.toml").open("a") as manifest:
        manifest.write('\n[lib]\ncrate-type = ["cdylib"]\n')
    (package / "src/lib.rs").write_text(source)
    output = folder / "target"
    command = ["cargo", "build", "--quiet", "--release", "--target", TARGET, "--target-dir", output]
    subprocess.run(command, cwd=package, check=True)
    return output / TARGET / "release/morning.wasm"


def run(quelea: str, folder: Path, module: Path) -> None:
    def ask(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run([quelea, "--data-dir", folder / "home", *args], capture_output=True, text=True, timeout=60)

    listen = ["--listen", "/ip4/127.0.0.1/tcp/0", "--model", "demo"]
    daemon = subprocess.Popen([quelea, "--data-dir", folder / "home", "daemon", *listen], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while ask("status").returncode:
            if daemon.poll() is not None or time.monotonic() > deadline:
                sys.exit("the node does not come up")
            time.sleep(0.1)
        installed = ask("agent", "install", str(module), "--grant", "infer")
        if installed.returncode:
            sys.exit(f"the agent is not installed: {installed.stderr}")
        ran = ask("agent", "run", "morning", "--input", "Ada")
        logs = ask("agent", "logs", "morning")
        if ran.returncode or not ran.stdout.strip() or "asked by Ada" not in logs.stdout:
            sys.exit(f"the agent does not run: {ran.stdout!r} {ran.stderr!r}, its log {logs.stdout!r}")
        print(f"the agent of docs/agents.md in Rust, {module.stat().st_size} bytes, says: {ran.stdout.strip()!r}")
    finally:
        daemon.terminate()
        daemon.wait(timeout=30)


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    [quelea] = sys.argv[1:]
    libraries = subprocess.run(["rustc", "--print", "target-libdir", "--target", TARGET], capture_output=True, text=True)
    if libraries.returncode or not list(Path(libraries.stdout.strip()).glob("libcore-*.rlib")):
        unavailable(f"no target {TARGET}: 'rustup target add {TARGET}'")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        run(quelea, folder, build(folder, (root / "docs/agents.md").read_text()))


if __name__ == "__main__":
    main()
