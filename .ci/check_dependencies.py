#!/usr/bin/env python3
"""Fails when a dependency points the wrong way (docs/adr/0001).

    protocols/*  <-  behaviours  <-  quelea
                         engine  <-  quelea

Crate edges come from `cargo tree`. Rules about single modules of the root package (redb only in src/storage, and so on)
are read from the sources.
"""

import pathlib
import re
import subprocess
import sys

# Workspace crate -> workspace crates it may use.
ALLOWED = {
    "quelea-wire": set(),
    "quelea-announce": {"quelea-wire"},
    "quelea-broadcast": {"quelea-wire"},
    "quelea-exchange": {"quelea-wire"},
    "quelea-ledger": {"quelea-wire"},
    "quelea-record": {"quelea-wire"},
    "quelea-rendezvous": {"quelea-wire"},
    "quelea-service": {"quelea-wire"},
    "quelea-shard": {"quelea-wire"},
    "quelea-weights": {"quelea-wire"},
    "quelea-behaviours": {"quelea-wire", "quelea-announce", "quelea-broadcast", "quelea-exchange", "quelea-ledger", "quelea-record", "quelea-rendezvous", "quelea-service", "quelea-shard", "quelea-weights"},
    "quelea-kernels": set(),
    "quelea-engine": {"quelea-kernels"},
    "quelea": {"quelea-wire", "quelea-announce", "quelea-broadcast", "quelea-exchange", "quelea-ledger", "quelea-record", "quelea-rendezvous", "quelea-service", "quelea-shard", "quelea-weights", "quelea-behaviours", "quelea-engine"},
}

# External crate -> workspace crates that alone may use it directly.
ONLY_IN_CRATE = {
    "libp2p": {"quelea", "quelea-wire", "quelea-announce", "quelea-broadcast", "quelea-exchange", "quelea-ledger", "quelea-record", "quelea-rendezvous", "quelea-service", "quelea-shard", "quelea-weights", "quelea-behaviours"},
    "candle-core": {"quelea-engine"},
    "tokenizers": {"quelea-engine"},
    "redb": {"quelea"},
    "wasmtime": {"quelea"},
    "axum": {"quelea"},
    "clap": {"quelea"},
}

# External crate -> folders of the root package that alone may name it.
ONLY_IN_MODULE = {
    "redb": ["src/storage/"],
    # The worker's process, which nothing else of the node runs in.
    "wasmtime": ["src/agents/worker/"],
    "wasmparser": ["src/agents/worker/"],
    "dom_smoothie": ["src/agents/worker/"],
    "html2text": ["src/agents/worker/"],
    "axum": ["src/api/", "src/telemetry/server.rs", "src/telemetry/tests.rs"],
    "clap": ["src/cli/"],
    "clap_complete": ["src/cli/"],
    "clap_mangen": ["src/cli/"],
    "reedline": ["src/cli/"],
    "toml_edit": ["src/cli/config/"],
    # In traces: OTLP's transport is a client that this program makes.
    "reqwest": ["src/cli/", "src/http.rs", "src/hub/", "src/services/builtin/upstream", "src/telemetry/tests.rs", "src/telemetry/traces/"],
    "llguidance": ["src/inference/follow.rs"],
    "toktrie": ["src/inference/follow.rs"],
    "prometheus": ["src/telemetry/"],
    "opentelemetry": ["src/telemetry/"],
    "opentelemetry_sdk": ["src/telemetry/"],
    "opentelemetry-http": ["src/telemetry/traces/"],
    "opentelemetry-otlp": ["src/telemetry/traces/"],
    # Its derives say what a type is as JSON, like serde's, and stand with types (DERIVES); routes and the document are HTTP.
    "utoipa": ["src/api/"],
}

# Names that may be used outside of those folders.
DERIVES = {"utoipa": ("ToSchema", "IntoParams")}


def direct(crate: str) -> set[str]:
    tree = ["cargo", "tree", "--locked", "-p", crate, "-e", "normal,build", "--depth", "1", "--prefix", "none"]
    out = subprocess.run(tree, check=True, capture_output=True, text=True).stdout
    return {line.split()[0] for line in out.splitlines()[1:] if line.strip()}


def main() -> int:
    problems = []
    for crate, allowed in ALLOWED.items():
        uses = direct(crate)
        for other in sorted(uses & set(ALLOWED) - allowed):
            problems.append(f"{crate} must not depend on {other}")
        for external, crates in ONLY_IN_CRATE.items():
            if external in uses and crate not in crates:
                problems.append(f"{crate} must not depend on {external}")
    for file in pathlib.Path("src").rglob("*.rs"):
        text = file.read_text(encoding="utf-8")
        code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("//"))
        for external, places in ONLY_IN_MODULE.items():
            name = external.replace("-", "_")
            derives = "".join(rf"(?!{derive}\b)" for derive in DERIVES.get(external, ()))
            if re.search(rf"(?<![\w:]){name}::{derives}", code) and not any(str(file).startswith(place) for place in places):
                problems.append(f"{file} names {external}, which belongs to {', '.join(places)}")
    for problem in problems:
        print(problem)
    if not problems:
        print("dependencies point the right way")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
