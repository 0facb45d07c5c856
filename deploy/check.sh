#!/usr/bin/env bash
# Checks the files that run the node elsewhere: Containerfile, .containerignore, compose.yaml, deploy/*, docs/operations.md.
# Every quelea command line in them is tried on the binary itself. Says what it skipped and why.
#
#   deploy/check.sh target/debug/quelea
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -eq 1 ] || { echo "usage: deploy/check.sh PATH_OF_QUELEA" >&2; exit 2; }
[ -x "$1" ] || { echo "deploy/check.sh: $1 is not there; build it with: cargo build -p quelea" >&2; exit 2; }
if ! python3 -c 'import yaml' 2>/dev/null; then
    echo "deploy/check.sh: needs python3 with PyYAML (Debian: python3-yaml)" >&2
    exit 2
fi

python3 deploy/check.py --quelea "$1"
# A check that cannot fail checks nothing: the same again on copies with one mistake each.
python3 deploy/check.py --quelea "$1" --prove

# The documented nginx and caddy, run in front of a masked node.
python3 deploy/check_proxies.py --quelea "$1"
