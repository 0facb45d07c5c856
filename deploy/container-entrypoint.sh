#!/bin/bash
# Starts a node of compose.yaml, and tells one node's address to the others.
#
# A node joins a swarm by the full address of a peer, which ends in that peer's id, and the id exists only once the peer has
# made its key. So the first node writes its address down when it is ready, and the others wait for it:
#
#   container-entrypoint.sh publish FILE ADDR COMMAND…   runs `quelea COMMAND…`; once it prints "ready", FILE holds
#                                                        ADDR/p2p/<its peer id>
#   container-entrypoint.sh join FILE COMMAND…           waits for FILE, then runs `quelea COMMAND… --bootstrap <its content>`
#
# FILE lies in a volume that the first node may write and the others only read. No key ever does.
set -euo pipefail

# How long `join` waits. A first node that has not come up by then needs somebody to look at it.
WAIT_S=${QUELEA_JOIN_WAIT_S:-120}

die() {
    printf 'container-entrypoint.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

# Passes the daemon's greeting on, and keeps its address once it is ready.
announce() {
    local file=$1 addr=$2 line peer=""
    while IFS= read -r line; do
        printf '%s\n' "$line"
        case $line in
        "peer id: "*) peer=${line##* } ;;
        ready)
            [ -n "$peer" ] || die "the daemon got ready without telling its peer id"
            # Renamed, so that nobody reads half an address.
            printf '%s/p2p/%s\n' "$addr" "$peer" >"$file.new"
            mv "$file.new" "$file"
            ;;
        esac
    done
}

case ${1:-} in
publish)
    [ $# -ge 4 ] || die "usage: publish FILE ADDR COMMAND…" 2
    file=$2 addr=$3
    shift 3
    # An address from an earlier life, perhaps of another key, must not be taken for this one's.
    rm -f "$file"
    # `exec`: signals are for the node, not for a shell before it.
    exec quelea "$@" > >(announce "$file" "$addr")
    ;;
join)
    [ $# -ge 3 ] || die "usage: join FILE COMMAND…" 2
    file=$2
    shift 2
    # The first process of a container gets no default action for a signal, and would have to be killed.
    trap 'exit 0' TERM INT
    until [ -s "$file" ]; do
        [ "$SECONDS" -lt "$WAIT_S" ] || die "no address in $file after $WAIT_S s: is the first node running?"
        sleep 0.2
    done
    address=$(<"$file")
    printf 'joining by %s\n' "$address" >&2
    exec quelea "$@" --bootstrap "$address"
    ;;
*) die "usage: publish FILE ADDR COMMAND… | join FILE COMMAND…" 2 ;;
esac
