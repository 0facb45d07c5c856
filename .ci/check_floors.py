#!/usr/bin/env python3
"""Fails when Cargo.lock holds a crate older than a floor below: versions before it have published holes.

Usage: check_floors.py [Cargo.lock …]
"""

import re
import sys

# Crate -> lowest version, for every copy in the tree. The reasons are in docs/adr/0003.
FLOORS = {
    "libp2p": "0.57.1",
    "libp2p-gossipsub": "0.50.1",
    "yamux": "0.14.1",
    "libp2p-quic": "0.14.0",
    "libp2p-rendezvous": "0.18.0",
    "quinn-proto": "0.11.15",
    "hickory-proto": "0.26.1",
    "h2": "0.4.16",
    "redb": "4.3.0",
    # The line with long-term support: docs/adr/0040.
    "wasmtime": "48.0.8",
}

# Must not be in the tree at all: unmaintained.
BANNED = {"serde_cbor", "bincode", "backoff", "libp2p-tokio-socks5", "figment", "libp2p-stream"}


def number(version: str) -> tuple[int, ...]:
    core = re.split(r"[-+]", version)[0]
    return tuple(int(part) for part in core.split("."))


def check(path: str) -> list[str]:
    text = open(path, encoding="utf-8").read()
    found = re.findall(r'^name = "([^"]+)"\nversion = "([^"]+)"', text, re.M)
    if not found:
        return [f"{path}: no packages found; is it a Cargo.lock?"]
    problems = []
    for name, version in found:
        floor = FLOORS.get(name)
        if floor and (number(version) < number(floor) or "-" in version):
            problems.append(f"{path}: {name} {version} is below its floor {floor}")
        if name in BANNED:
            problems.append(f"{path}: {name} {version} is unmaintained or unfit and must not be used")
    return problems


def main() -> int:
    paths = sys.argv[1:] or ["Cargo.lock"]
    problems = [problem for path in paths for problem in check(path)]
    for problem in problems:
        print(problem)
    if not problems:
        print(f"version floors hold in {', '.join(paths)}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
