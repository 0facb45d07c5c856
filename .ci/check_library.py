#!/usr/bin/env python3
"""Fails when the library's API has a type of another crate, but for those that it is meant to have (docs/adr/0052).

Reads what rustdoc says of the crate `quelea` as JSON: everything that is public, not hidden, and not an implementation of somebody
else's trait. RUSTC_BOOTSTRAP is for that format alone, which the stable compiler writes only so; where it cannot be had, this is
skipped and says so.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

# Crates whose types may be part of it: the language's own, and what its types are written to and read from.
ALLOWED = {"std", "core", "alloc", "serde", "serde_core", "serde_json", "quelea"}


def document() -> dict | None:
    command = ["cargo", "rustdoc", "-p", "quelea", "--lib", "--locked", "--", "-Z", "unstable-options", "--output-format", "json"]
    with tempfile.TemporaryDirectory() as temp:
        # For rustdoc alone: build scripts look at the variable as well, and everything would be built again.
        rustdoc = pathlib.Path(temp, "rustdoc")
        rustdoc.write_text('#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec rustdoc "$@"\n')
        rustdoc.chmod(0o755)
        ran = subprocess.run(command, env={**os.environ, "RUSTDOC": str(rustdoc)}, capture_output=True, text=True)
    if ran.returncode != 0:
        print(f"skipped: rustdoc writes no JSON here: {ran.stderr.strip().splitlines()[-1:]}")
        return None
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ""))
    if not os.environ.get("CARGO_TARGET_DIR"):
        said = subprocess.run(["cargo", "metadata", "--no-deps", "--format-version", "1"], check=True, capture_output=True, text=True)
        target = pathlib.Path(json.loads(said.stdout)["target_directory"])
    return json.loads((target / "doc" / "quelea.json").read_text())


def named(value, found: set) -> None:
    """Ids of all types that a signature names."""
    if isinstance(value, dict):
        if "resolved_path" in value:
            found.add(value["resolved_path"]["id"])
        for key, inner in value.items():
            # Whose trait it is does not matter here; what it is made for does.
            if key not in ("items", "impls", "variants", "docs", "attrs", "links"):
                named(inner, found)
    elif isinstance(value, list):
        for inner in value:
            named(inner, found)


def strangers(crate: dict) -> list[str]:
    index, paths, crates = crate["index"], crate["paths"], crate["external_crates"]
    seen, problems = set(), []

    def visit(item_id, where: str) -> None:
        item = index.get(str(item_id))
        if item is None or item_id in seen:
            return
        seen.add(item_id)
        name = f"{where}::{item['name']}" if item["name"] else where
        (kind, inner), = item["inner"].items()
        if kind == "module":
            for child in inner["items"]:
                visit(child, name)
            return
        if kind == "use":
            visit(inner["id"], where)
            return
        if kind == "impl":
            # Implementations of traits are those traits' affair.
            if inner["trait"] is None:
                for child in inner["items"]:
                    visit(child, where)
            return
        found = set()
        named(inner, found)
        for type_id in found:
            path = paths.get(str(type_id))
            if path is None:
                continue
            crate_name = "quelea" if path["crate_id"] == 0 else crates[str(path["crate_id"])]["name"]
            if crate_name not in ALLOWED:
                problems.append(f"{name} has {'::'.join(path['path'])}")
        if kind == "struct":
            for field in inner["kind"].get("plain", {}).get("fields", []) if isinstance(inner["kind"], dict) else []:
                visit(field, name)
        if kind in ("enum", "variant"):
            children = inner.get("variants", [])
            shape = inner.get("kind")
            if isinstance(shape, dict):
                children = shape.get("struct", {}).get("fields", []) + [f for f in shape.get("tuple", []) if f is not None]
            for child in children:
                visit(child, name)
        for implementation in inner.get("impls", []) if isinstance(inner, dict) else []:
            visit(implementation, name)

    visit(crate["root"], "")
    if len(seen) < 100:
        problems.append(f"only {len(seen)} public items were found: the format of rustdoc's JSON has changed, see this script")
    return problems


def main() -> int:
    crate = document()
    if crate is None:
        return 0
    problems = sorted(set(strangers(crate)))
    for problem in problems:
        print(problem)
    if not problems:
        print("the library's API has no type of others")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
