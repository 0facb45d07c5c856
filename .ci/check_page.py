#!/usr/bin/env python3
"""Fails when the web page is heavier than it may be, or names what is not there or not ours.

Counted is what a browser fetches before the dashboard shows: index.html, and the scripts and styles that it names, as gzip.
"""

import gzip
import pathlib
import re
import sys

DIST = pathlib.Path("web/dist")
MOST = 150_000


def main() -> int:
    page = (DIST / "index.html").read_text(encoding="utf-8")
    named = re.findall(r'(?:src|href)="/([^"]+)"', page)
    files = [DIST / "index.html", *(DIST / name for name in named)]
    problems = [f"index.html names {file}, which is not there" for file in files if not file.is_file()]
    if re.search(r'(?:src|href)="(?!/)', page):
        problems.append("index.html names something that is not this server's")
    first = sum(len(gzip.compress(file.read_bytes(), 9)) for file in files if file.is_file())
    every = sum(len(gzip.compress(file.read_bytes(), 9)) for file in DIST.rglob("*") if file.is_file())
    if first > MOST:
        problems.append(f"the first load weighs {first} bytes, more than {MOST}")
    for problem in problems:
        print(problem)
    if not problems:
        print(f"first load {first / 1000:.1f} kB compressed, the whole page {every / 1000:.1f} kB")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
