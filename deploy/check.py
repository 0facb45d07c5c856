#!/usr/bin/env python3
"""Checks the files that run the node elsewhere, against the binary they run. Called by deploy/check.sh.

A command line counts as right when the binary itself takes it: it is run with `--help` at its end, and clap reads, and
refuses, everything before that. So commands, flags and flags' values are checked, and nothing is started.
"""

import argparse
import contextlib
import fnmatch
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request

import yaml

PEER = "12D3KooWCQK8PtU4hnBjAoYYJLYT3vEsXnKVzvHBcTYqk5XFNTyS"
# What the documentation's examples leave open, and something to try in its place.
PLACEHOLDERS = {"ADDR": f"/ip4/203.0.113.7/tcp/8468/p2p/{PEER}", "COMMAND": "status", "PEER": PEER}

# Instructions, and keys of a compose service, that we use. Another one is a slip until it is added here.
INSTRUCTIONS = set("ARG FROM WORKDIR COPY RUN USER ENV VOLUME EXPOSE HEALTHCHECK ENTRYPOINT CMD".split())
SERVICE_KEYS = set(
    "image build restart healthcheck stop_grace_period cap_drop security_opt read_only entrypoint command volumes "
    "depends_on ports profiles environment".split()
)
ENTRY = "container-entrypoint.sh"


class Checks:
    """What was found wrong, and what could not be looked at."""

    def __init__(self, root: pathlib.Path, quelea: str, tools: bool) -> None:
        self.root, self.quelea, self.tools = root, quelea, tools
        self.problems: list[str] = []
        self.skipped: list[str] = []
        self.done: list[str] = []

    def text(self, path: str) -> str:
        return (self.root / path).read_text()

    def expect(self, holds: object, where: str, what: str) -> None:
        if not holds:
            self.problems.append(f"{where}: {what}")

    def command_line(self, where: str, args: list[str]) -> None:
        """`args` follow the binary's name."""
        line = f"{where}: quelea {shlex.join(args)}"
        if line in self.done:
            return
        ran = run([self.quelea, *args, "--help"])
        if ran.returncode == 0:
            self.done.append(line)
        else:
            why = (ran.stderr.strip() or f"exit code {ran.returncode}").splitlines()[0]
            self.problems.append(f"{where}: `quelea {shlex.join(args)}` is refused: {why}")

    def tool(self, where: str, args: list[str], **options: object) -> None:
        """Runs another project's checker, where it is installed."""
        if not self.tools:
            return
        if shutil.which(args[0]) is None:
            self.skipped.append(f"{where}: {shlex.join(args[:2])} ({args[0]} is not installed)")
            return
        ran = run(args, cwd=self.root, **options)
        if ran.returncode == 0:
            self.done.append(f"{where}: {shlex.join(args[:3])}")
        else:
            self.problems.append(f"{where}: {args[0]}: {(ran.stderr + ran.stdout).strip()}")


def run(args: list[str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(args, capture_output=True, text=True, timeout=120, check=False, **options)


# --- Containerfile ---------------------------------------------------------------------------------------------------


def instructions(text: str):
    """(line number, instruction, rest), continuation lines joined."""
    joined, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not (line.strip() or joined):
            continue
        start = start if joined else number
        joined += line.strip().removesuffix("\\")
        if not line.rstrip().endswith("\\"):
            word, _, rest = joined.strip().partition(" ")
            yield start, word.upper(), rest.strip()
            joined = ""


def exec_form(c: Checks, at: str, text: str) -> list[str]:
    """The list of an instruction in JSON form. The shell form would put a shell before the node, which eats signals."""
    with contextlib.suppress(json.JSONDecodeError):
        value = json.loads(text)
        if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
            return value
    c.expect(False, at, f"{text!r} is not a list in JSON form")
    return ["?"]


def ignored(c: Checks, path: str) -> bool:
    """Whether .containerignore leaves a path out. The last pattern that matches it, or a folder it lies in, decides."""
    tops = [str(p) for p in [pathlib.PurePosixPath(path), *pathlib.PurePosixPath(path).parents][:-1]]
    out = False
    for line in c.text(".containerignore").split():
        pattern = line.removeprefix("!").removeprefix("/")
        if any(fnmatch.fnmatchcase(top, pattern) and top.count("/") == pattern.count("/") for top in tops):
            out = not line.startswith("!")
    return out


def check_containerfile(c: Checks) -> None:
    name = "Containerfile"
    args, stages, last = {}, [], {}
    for number, word, rest in instructions(c.text(name)):
        at = f"{name}:{number}"
        c.expect(word in INSTRUCTIONS, at, f"unknown instruction {word!r}")
        if word == "ARG":
            key, _, default = rest.partition("=")
            args.setdefault(key, default)
        elif word == "FROM":
            image, _, stage = rest.partition(" AS ")
            c.expect(args.get(image[2:-1]), at, f"the base image {image!r} is not an ARG with a default")
            stages.append(stage)
            last = {}
        elif word == "COPY" and rest.startswith("--from="):
            c.expect(rest.split()[0][7:] in stages[:-1], at, f"{rest!r} copies from no earlier stage")
        elif word == "COPY":
            for path in rest.split()[:-1]:
                here = path == "." or ((c.root / path).exists() and not ignored(c, path))
                c.expect(here, at, f"{path!r} is not there, or .containerignore leaves it out")
        elif word == "HEALTHCHECK":
            flags, _, command = rest.partition("CMD ")
            good = re.fullmatch(r"((--(interval|timeout|start-period)=\d+s|--retries=\d+) )*", flags)
            c.expect(good, at, f"cannot read {flags!r}")
            last[word] = exec_form(c, at, command)
        elif word in ("ENTRYPOINT", "CMD"):
            last[word] = exec_form(c, at, rest)
        else:
            last[word] = rest
    for path in ("Cargo.toml", "Cargo.lock", "src", "engine", "protocols", "behaviours"):
        c.expect(not ignored(c, path), ".containerignore", f"leaves out {path}, which the build reads")
    c.expect(len(stages) == 2, name, f"{len(stages)} stages, not 2")
    numbered = re.fullmatch(r"[1-9]\d*:[1-9]\d*", last.get("USER", ""))
    c.expect(numbered, name, "does not run as a user of its own, by number")
    c.expect(last.get("ENTRYPOINT") == ["quelea"], name, "the entry point is not quelea")
    c.expect(last.get("HEALTHCHECK", [""])[0] == "quelea", name, "the health check is not quelea's")
    c.command_line(name, last.get("CMD", []))
    c.command_line(name, last.get("HEALTHCHECK", [""])[1:])


# --- compose.yaml and what it uses -----------------------------------------------------------------------------------


def check_compose(c: Checks) -> None:
    name = "compose.yaml"
    text = c.text(name)
    for use in re.findall(r"\$+[^\s\"',\]]*", re.sub(r"(?m)^\s*#.*", "", text)):
        c.expect(re.fullmatch(r"\$\{[A-Z_]+:-[^${}]+\}", use), name, f"{use!r} is not a variable with a default")
    compose = yaml.safe_load(text)
    nodes = {}
    for service, spec in compose["services"].items():
        at = f"{name}: {service}"
        c.expect(set(spec) <= SERVICE_KEYS, at, f"unknown keys {sorted(set(spec) - SERVICE_KEYS)}")
        c.expect(set(spec.get("depends_on", [])) <= set(compose["services"]), at, "depends on an unknown service")
        for volume in spec.get("volumes", []):
            source = volume.split(":")[0]
            known = (c.root / source).exists() if source.startswith(".") else source in compose["volumes"]
            c.expect(known, at, f"the volume {source!r} is not declared, or not there")
        if "quelea" in spec["image"].split("/")[-1]:
            nodes[service] = spec
            c.command_line(at, spec["command"])
            test = spec["healthcheck"]["test"]
            c.expect(test[:2] == ["CMD", "quelea"], at, "the health check is not quelea's")
            c.command_line(at, test[2:])
    check_entry(c, nodes)
    check_spans(c, nodes)
    check_targets(c, nodes)
    for probe, tool in (
        (["docker", "compose", "version"], ["docker", "compose", "config", "--quiet"]),
        (["podman-compose", "config", "--help"], ["podman-compose", "config"]),
    ):
        # Docker without its plugin, and podman-compose before 1.0.4, lack the command.
        if c.tools and shutil.which(probe[0]) and run(probe).returncode != 0:
            c.skipped.append(f"{name}: {shlex.join(tool)} (this {tool[0]} has no such command)")
        else:
            c.tool(name, tool)


def flag(command: list[str], wanted: str) -> str:
    return command[command.index(wanted) + 1] if wanted in command else ""


def check_entry(c: Checks, nodes: dict) -> None:
    """Runs the entry script of each node with a stand-in for quelea that greets, and writes down how it was called."""
    script = str(c.root / "deploy" / ENTRY)
    with tempfile.TemporaryDirectory() as temp:
        stand_in, called = pathlib.Path(temp, "quelea"), pathlib.Path(temp, "called")
        stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{called}\nprintf "peer id:  {PEER}\\nready\\n"\n')
        stand_in.chmod(0o755)
        env = {**os.environ, "PATH": f"{temp}:{os.environ['PATH']}", "QUELEA_JOIN_WAIT_S": "0"}
        told = pathlib.Path(temp, "told")
        ran = run(["bash", script, "join", str(told), "daemon"], env=env)
        c.expect(ran.returncode == 1 and "no address" in ran.stderr, ENTRY, "join does not give up without an address")
        publishers = set()
        for service, spec in nodes.items():
            at = f"compose.yaml: {service}"
            program, mode, file, *rest = spec["entrypoint"]
            c.expect(program == ENTRY, at, f"starts {program!r}")
            swarm = [v.split(":") for v in spec["volumes"] if file.startswith(v.split(":")[1] + "/")]
            c.expect(swarm, at, f"{file} lies in no volume")
            c.expect(mode == "publish" or swarm and swarm[0][2:] == ["ro"], at, "may write the others' address")
            ran = run(["bash", script, mode, str(told), *rest, *spec["command"]], env=env)
            c.expect(ran.returncode == 0 and ran.stdout.endswith("ready\n"), at, f"{ENTRY}: {ran.stderr or ran.stdout}")
            if mode == "publish":
                publishers.add(file)
                c.expect(rest[0].split("/")[1:3] == ["dns4", service], at, f"tells others an address of {rest[0]!r}")
                c.expect(told.read_text() == f"{rest[0]}/p2p/{PEER}\n", at, f"tells others {told.read_text()!r}")
            else:
                c.expect({file} == publishers, at, f"waits for {file}, which nobody writes before")
                c.expect("--bootstrap" in called.read_text().split(), at, "does not join by the address")
            c.command_line(at, called.read_text().splitlines())


def check_spans(c: Checks, nodes: dict) -> None:
    """The workers hold every layer of the embedded model once."""
    layers = json.loads(run([c.quelea, "model", "show", "demo", "--json"]).stdout)["layers"]
    spans = [flag(spec["command"], "--layers") for spec in nodes.values() if flag(spec["command"], "--model") == "demo"]
    held = sorted(layer for span in spans for layer in range(*map(int, span.split(".."))))
    c.expect(held == list(range(layers)), "compose.yaml", f"the workers hold layers {held}, the model has {layers}")


def check_targets(c: Checks, nodes: dict) -> None:
    name = "deploy/prometheus.yml"
    config = yaml.safe_load(c.text(name))
    targets = {t for job in config["scrape_configs"] for static in job["static_configs"] for t in static["targets"]}
    port = {service: flag(spec["command"], "--metrics-listen").rpartition(":")[2] for service, spec in nodes.items()}
    serving = {f"{service}:{number}" for service, number in port.items()}
    c.expect(targets == serving, name, f"scrapes {sorted(targets)}, the nodes serve {sorted(serving)}")
    c.tool(name, ["promtool", "check", "config", name])


# --- what watches ----------------------------------------------------------------------------------------------------


def documented_metrics(c: Checks) -> set[str]:
    """Names of our metrics in the table of docs/operations.md, which a live node is held against."""
    table = c.text("docs/operations.md").partition("\n## Metrics\n")[2]
    names = " ".join(re.findall(r"(?m)^\| (`.*?) \|", table))
    return set(re.findall(r"`((?:quelea|gen_ai|process)_\w+)", names))


def check_watching(c: Checks) -> None:
    """Alert rules and dashboards ask for metrics that there are."""
    known = documented_metrics(c)

    def metrics(where: str, query: str) -> None:
        for name in re.findall(r"\b((?:quelea|gen_ai|process)_[a-z_]+)", query):
            plain = re.sub(r"_(bucket|sum|count)$", "", name)
            c.expect({name, plain} & known, where, f"asks for {name}, which no node has")

    rules = yaml.safe_load(c.text("deploy/alerts.yml"))
    tested = c.text("deploy/alerts_test.yml")
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        at = f"deploy/alerts.yml: {rule['alert']}"
        metrics(at, rule["expr"])
        c.expect(set(rule["annotations"]) == {"summary", "action"}, at, "does not say what is wrong and what to do")
        c.expect(f'alertname="{rule["alert"]}"' in tested, at, "is not tested in deploy/alerts_test.yml")
    c.tool("deploy/alerts.yml", ["promtool", "check", "rules", "deploy/alerts.yml"])
    c.tool("deploy/alerts_test.yml", ["promtool", "test", "rules", "deploy/alerts_test.yml"])
    made = run([sys.executable, str(c.root / "deploy/grafana/make.py"), "--check"])
    c.expect(made.returncode == 0, "deploy/grafana", made.stderr.strip())
    uids = set()
    for file in sorted((c.root / "deploy/grafana/dashboards").glob("*.json")):
        board = json.loads(file.read_text())
        c.expect(board["uid"] not in uids, file.name, f"{board['uid']} is another's, too")
        uids.add(board["uid"])
        queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
        c.expect(queries, file.name, "asks for nothing")
        for query in queries:
            metrics(file.name, query)
        c.done.append(f"{file.name}: {len(queries)} queries")


# --- systemd and documentation ---------------------------------------------------------------------------------------


def check_service(c: Checks) -> None:
    name = "deploy/quelea.service"
    text = c.text(name)
    starts = re.findall(r"(?m)^ExecStart=(\S+) (.*)$", text)
    c.expect(len(starts) == 1 and starts[0][0] == "quelea", name, "does not start quelea")
    for _, args in starts:
        c.command_line(name, [word for word in args.split() if not word.startswith("$")])
    c.expect("\nType=notify\n" in text, name, "is not Type=notify")
    if not c.tools:
        return
    if shutil.which("systemd-analyze") is None:
        c.skipped.append(f"{name}: systemd-analyze verify (not installed)")
        return
    with tempfile.TemporaryDirectory() as temp:
        unit = pathlib.Path(temp, "quelea.service")
        unit.write_text(text.replace("ExecStart=quelea ", f"ExecStart={os.path.realpath(c.quelea)} "))
        ran = run(["systemd-analyze", "verify", str(unit)])
        about_it = [line for line in ran.stderr.splitlines() if "quelea.service" in line]
        c.expect(ran.returncode == 0 and not about_it, name, f"systemd-analyze: {about_it or ran.stderr}")
        c.done.append(f"{name}: systemd-analyze verify")


def check_docs(c: Checks) -> None:
    name = "docs/operations.md"
    text = c.text(name)
    for block in re.findall(r"(?ms)^```sh\n(.*?)^```", text):
        for line in block.splitlines():
            words = shlex.split(line.replace("QUELEA_FLAGS=", "quelea daemon "), comments=True)
            words = [PLACEHOLDERS.get(word, word) for word in words]
            if words[:1] != ["quelea"] and not {"exec", "run"} & set(words):
                continue
            # The last one: before it, `quelea` is an image's or a container's name.
            at = max(i for i, word in enumerate(words) if word == "quelea")
            c.command_line(name, words[at + 1 :])
    table = re.search(r"(?ms)^## Flags of `quelea daemon`\n(.*?)^## ", text).group(1)
    written = set(re.findall(r"(?m)^\| `(--[\w-]+)`", table))
    helped = run([c.quelea, "daemon", "--help"]).stdout
    real = set(re.findall(r"(?m)^ +(?:-\w, )?(--[\w-]+)", helped)) - {"--help", "--version"}
    c.expect(written == real, name, f"flags differ from the binary's: {sorted(written ^ real)}")


# --- a live node -----------------------------------------------------------------------------------------------------


def check_live(c: Checks) -> None:
    """A node that starts, answers, is well, shows the metrics that are documented, and ends with 0."""
    at = "a live node"
    with tempfile.TemporaryDirectory() as home:
        args = [c.quelea, "--data-dir", home, "daemon", "--model", "demo", "--layers", "all"]
        args += ["--listen", "/ip4/127.0.0.1/tcp/0", "--metrics-listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"]
        with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as node:
            # A node that neither gets ready nor gives up must not hold up whoever checks.
            watchdog = threading.Timer(60, node.kill)
            watchdog.start()
            try:
                greeting = {}
                for line in node.stdout:
                    key, _, value = line.partition(":")
                    greeting[key] = value.strip()
                    if line == "ready\n":
                        break
                health = run([c.quelea, "--data-dir", home, "health", "--ready"])
                c.expect(health.returncode == 0, at, f"quelea health --ready: {health.stdout}{health.stderr}")
                answer = run([c.quelea, "--data-dir", home, "infer", "What is a relay?"])
                c.expect(answer.returncode == 0 and answer.stdout.strip(), at, f"quelea infer: {answer.stderr}")
                scrape = urllib.request.urlopen(greeting["metrics"], timeout=10).read().decode()
            finally:
                node.send_signal(signal.SIGTERM)
                node.wait(timeout=40)
                watchdog.cancel()
            c.expect(node.returncode == 0, at, f"SIGTERM ends it with {node.returncode}")
    c.tool(at, ["promtool", "check", "metrics"], input=scrape)
    families = set(re.findall(r"(?m)^# TYPE ((?:quelea|gen_ai|process)_\w+) ", scrape))
    missing = sorted(families - documented_metrics(c))
    c.expect(not missing, "docs/operations.md", f"metrics that are not written down: {missing}")
    c.done.append(f"{at}: asked, {len(families)} metrics of ours read, stopped with {node.returncode}")


STEPS = [check_containerfile, check_compose, check_watching, check_service, check_docs]

# (file, what stands there, a mistake to put in its place)
MISTAKES = [
    ("Containerfile", '"health"]', '"helth"]'),
    ("Containerfile", 'CMD ["daemon"]', 'CMD ["daemon", "--portt", "1"]'),
    ("Containerfile", 'ENTRYPOINT ["quelea"]', "ENTRYPOINT quelea"),
    ("Containerfile", "USER 10001:10001", "USER root"),
    ("Containerfile", "--from=build", "--from=biuld"),
    ("Containerfile", "EXPOSE", "EXPOES"),
    (".containerignore", "!/deploy/container-entrypoint.sh", ""),
    (".containerignore", "/fuzz", "/engine"),
    ("compose.yaml", "--metrics-listen", "--metric-listen"),
    ("compose.yaml", '"2..4"', '"2..5"'),
    ("compose.yaml", '"2..4"', '"4..2"'),
    ("compose.yaml", "bootstrap-data:\n", ""),
    ("compose.yaml", "depends_on: [bootstrap]", "depends_on: [bootstrp]"),
    ("compose.yaml", "/dns4/bootstrap/tcp/8468", "/dns4/bootstrap/tpc/8468"),
    ("compose.yaml", "${QUELEA_IMAGE:-", "${QUELEA_IMAGE-"),
    ("compose.yaml", "services:\n", "services: [\n"),
    ("compose.yaml", "  restart: unless", "  restrat: unless"),
    ("deploy/container-entrypoint.sh", "--bootstrap", "--boostrap"),
    ("deploy/container-entrypoint.sh", "/p2p/%s", "/p2p%s"),
    ("deploy/prometheus.yml", "worker-3:8470", "worker-3:8471"),
    ("deploy/alerts.yml", "quelea_ready", "quelea_raedy"),
    ("deploy/alerts.yml", "QueleaNoPeers", "QueleaNoPeer"),
    ("deploy/grafana/make.py", "quelea_ledger_owing_credits", "quelea_ledger_owning_credits"),
    ("deploy/grafana/dashboards/node.json", "quelea_peers_known", "quelea_peers_knwon"),
    ("deploy/quelea.service", "quelea daemon", "quelea deamon"),
    ("docs/operations.md", "| `--upnp` |", "| `--upnpp` |"),
    ("docs/operations.md", "infer --bootstrap ADDR", "infer --bootsrap ADDR"),
]


def check(root: pathlib.Path, quelea: str, tools: bool, steps: list) -> Checks:
    c = Checks(root, quelea, tools)
    for step in steps:
        # A file so broken that a check stumbles over it is a finding like any other.
        try:
            step(c)
        except (OSError, LookupError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
            c.expect(False, step.__name__, f"{type(error).__name__}: {error}")
    return c


def prove(root: pathlib.Path, quelea: str) -> list[str]:
    """Puts each mistake into a copy; returns those that nothing notices."""
    unnoticed = []
    for file, right, wrong in MISTAKES:
        with tempfile.TemporaryDirectory() as temp:
            copy = pathlib.Path(temp)
            for path in ("Containerfile", ".containerignore", "compose.yaml", "deploy", "docs/operations.md"):
                (copy / path).parent.mkdir(exist_ok=True)
                (shutil.copytree if (root / path).is_dir() else shutil.copy)(root / path, copy / path)
            text = (copy / file).read_text()
            (copy / file).write_text(text.replace(right, wrong))
            if right not in text or not check(copy, quelea, False, STEPS).problems:
                unnoticed.append(f"{file}: {wrong!r} in place of {right!r}")
    return unnoticed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quelea", required=True, help="the binary")
    parser.add_argument("--prove", action="store_true", help="check the checks: each of some mistakes must be noticed")
    given = parser.parse_args()
    root = pathlib.Path(__file__).resolve().parent.parent
    quelea = os.path.realpath(given.quelea)
    if given.prove:
        unnoticed = prove(root, quelea)
        print(*(f"NOT NOTICED {line}" for line in unnoticed), sep="\n")
        print(f"{len(MISTAKES) - len(unnoticed)} of {len(MISTAKES)} mistakes noticed")
        return 1 if unnoticed else 0
    c = check(root, quelea, True, [*STEPS, check_live])
    print(*(f"ok      {line}" for line in c.done), *(f"skipped {line}" for line in c.skipped), sep="\n")
    print(*(f"WRONG   {line}" for line in c.problems), sep="\n", file=sys.stderr)
    return 1 if c.problems else 0


if __name__ == "__main__":
    sys.exit(main())
