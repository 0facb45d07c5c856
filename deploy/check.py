#!/usr/bin/env python3
"""Checks the files that run the node elsewhere, against the binary they run. Called by deploy/check.sh.

A command line counts as right when the binary itself takes it: it is run with `--help` at its end, and clap reads (and
refuses) everything before that. So commands, flags and the values of flags are all checked, and nothing is started.
"""

import argparse
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

import yaml

# Instructions of a Containerfile that we use; another one is a typing mistake until it is added here.
INSTRUCTIONS = {
    "ARG", "FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD",
}

# A full address as `--bootstrap` wants it, of the example network.
ADDRESS = "/ip4/203.0.113.7/tcp/8468"
PEER = "12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS"

# What stands for a value in the documentation's examples, and a value to try in its place.
PLACEHOLDERS = {"ADDR": f"{ADDRESS}/p2p/{PEER}", "MULTIADDR": f"{ADDRESS}/p2p/{PEER}"}

# Keys of a compose service that we use, likewise.
SERVICE_KEYS = {
    "image", "build", "restart", "healthcheck", "stop_grace_period", "cap_drop", "security_opt", "read_only",
    "entrypoint", "command", "volumes", "depends_on", "ports",
}


class Checks:
    """What was found wrong, and what could not be looked at."""

    def __init__(self, root: pathlib.Path, quelea: str) -> None:
        self.root, self.quelea = root, quelea
        self.problems: list[str] = []
        self.skipped: list[str] = []
        self.lines = 0

    def fail(self, where: str, what: str) -> None:
        self.problems.append(f"{where}: {what}")

    def expect(self, holds: bool, where: str, what: str) -> None:
        if not holds:
            self.fail(where, what)

    def command_line(self, where: str, args: list[str]) -> None:
        """`args` follow the binary's name."""
        self.lines += 1
        ran = subprocess.run([self.quelea, *args, "--help"], capture_output=True, text=True, timeout=30, check=False)
        if ran.returncode != 0:
            why = (ran.stderr.strip() or f"exit code {ran.returncode}").splitlines()[0]
            self.fail(where, f"quelea refuses `quelea {shlex.join(args)}`: {why}")

    def tool(self, where: str, program: str, args: list[str], cwd: pathlib.Path | None = None) -> None:
        """Runs another project's checker, if it is installed."""
        if shutil.which(program) is None:
            self.skipped.append(f"{where}: `{program} {args[0]}` ({program} is not installed)")
            return
        ran = subprocess.run([program, *args], capture_output=True, text=True, timeout=120, check=False, cwd=cwd or self.root)
        self.expect(ran.returncode == 0, where, f"{program}: {(ran.stderr or ran.stdout).strip()}")


def instructions(text: str):
    """(line number, instruction, rest) of a Containerfile, continuation lines joined."""
    joined, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not (line.strip() or joined):
            continue
        start = start if joined else number
        if line.rstrip().endswith("\\"):
            joined += line.rstrip()[:-1] + " "
            continue
        word, _, rest = (joined + line).strip().partition(" ")
        yield start, word.upper(), rest.strip()
        joined = ""
    if joined:
        yield start, "", joined


def exec_form(text: str):
    """The list of an instruction in JSON form; None for the shell form, which would hide the node from signals."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, list) and all(isinstance(v, str) for v in value) else None


def check_containerfile(c: Checks) -> None:
    where = "Containerfile"
    args, stages, user, found = {}, [], "", {}
    for number, word, rest in instructions((c.root / where).read_text()):
        at = f"{where}:{number}"
        c.expect(word in INSTRUCTIONS, at, f"unknown instruction {word!r}")
        if word == "ARG":
            name, _, default = rest.partition("=")
            args.setdefault(name, default)
        elif word == "FROM":
            image, _, name = rest.partition(" AS ")
            base = re.fullmatch(r"\$\{(\w+)\}", image)
            c.expect(bool(base and args.get(base.group(1))), at, f"the base image {image!r} is not an ARG with a default")
            stages.append(name)
            user, found = "", {}
        elif word == "COPY":
            source = re.match(r"--from=(\S+)", rest)
            if source:
                c.expect(source.group(1) in stages[:-1], at, f"copies from {source.group(1)!r}, which is no earlier stage")
            else:
                for path in rest.split()[:-1]:
                    c.expect((c.root / path).exists(), at, f"copies {path!r}, which is not there")
                    c.expect(not ignored(c.root, path), at, f"copies {path!r}, which .containerignore leaves out")
        elif word == "USER":
            user = rest
        elif word in ("ENTRYPOINT", "CMD"):
            found[word] = exec_form(rest)
            c.expect(found[word] is not None, at, f"{word} is not in the JSON form")
        elif word == "HEALTHCHECK":
            flags, _, command = rest.partition("CMD ")
            found[word] = exec_form(command)
            c.expect(found[word] is not None, at, "the health check's CMD is not in the JSON form")
            for flag in flags.split():
                c.expect(bool(re.fullmatch(r"--(interval|timeout|start-period)=\d+s|--retries=\d+", flag)), at, f"unknown {flag!r}")
    c.expect(len(stages) == 2, where, f"{len(stages)} stages, not 2")
    c.expect(bool(re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)), where, f"runs as {user or 'root'!r}, not as a numbered user of its own")
    c.expect(found.get("ENTRYPOINT") == ["quelea"], where, "the entry point is not quelea")
    c.command_line(where, found.get("CMD") or [])
    health = found.get("HEALTHCHECK") or ["?"]
    c.expect(health[0] == "quelea", where, "the health check does not run quelea")
    c.command_line(where, health[1:])


def ignored(root: pathlib.Path, path: str) -> bool:
    """Whether .containerignore leaves a path out: the last pattern that matches decides."""
    out = False
    for line in (root / ".containerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        keep = pattern.startswith("!")
        target = pathlib.PurePosixPath(path)
        pattern = pattern.lstrip("!").lstrip("/")
        if target.match("/" + pattern) or any(pathlib.PurePosixPath("/") / p in [pathlib.PurePosixPath("/") / pattern]
                                              for p in [target, *target.parents]) or matches_from_top(target, pattern):
            out = not keep
    return out
