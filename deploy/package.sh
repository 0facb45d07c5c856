#!/usr/bin/env bash
# Makes the Debian package of a release build, with its manual and completions, and looks at what is in it.
#
#   cargo install cargo-deb --version 3.8.0 --locked --no-default-features --features gzip
#   cargo build --release --locked && deploy/package.sh target/release/quelea quelea.deb
set -euo pipefail

[ $# -eq 2 ] || { echo "usage: deploy/package.sh PATH_OF_RELEASE_QUELEA PACKAGE" >&2; exit 2; }
[ -x "$1" ] || { echo "deploy/package.sh: $1 is not there; build it with: cargo build --release" >&2; exit 2; }
quelea="$(realpath "$1")"
package="$(realpath -m "$2")"
cd "$(dirname "$0")/.."

# Made by the program that is packed. Cargo.toml takes them from beside it.
made="$(dirname "$quelea")/deb"
rm -rf "$made"
mkdir -p "$made"
"$quelea" man "$made/man" 2>/dev/null
gzip -9n "$made"/man/*.1
"$quelea" completions bash >"$made/quelea.bash"
"$quelea" completions zsh >"$made/_quelea"
"$quelea" completions fish >"$made/quelea.fish"

# Quick: it takes minutes otherwise, and saves little.
cargo deb --quiet --no-build --no-strip --fast --compress-type gz --output "$package" -p quelea

fail() { echo "deploy/package.sh: $1" >&2; exit 1; }
listed="$(dpkg-deb --contents "$package" | awk '{ print $1, $6 }')"
has() { grep -qE "^$1 \./$2$" <<<"$listed" || fail "the package has no $2 with the mode $1"; }
has -rwxr-xr-x usr/bin/quelea
has -rw-r--r-- usr/lib/systemd/system/quelea.service
has -rw-r--r-- etc/default/quelea
has -rw-r--r-- usr/share/man/man1/quelea.1.gz
has -rw-r--r-- usr/share/man/man1/quelea-daemon.1.gz
has -rw-r--r-- usr/share/bash-completion/completions/quelea
has -rw-r--r-- usr/share/zsh/vendor-completions/_quelea
has -rw-r--r-- usr/share/fish/vendor_completions.d/quelea.fish
has -rw-r--r-- usr/share/doc/quelea/copyright
has -rw-r--r-- usr/share/doc/quelea/examples/alerts.yml
# A page of the manual for each command that has one.
[ "$(grep -c 'usr/share/man/man1/' <<<"$listed")" -gt "$(find "$made/man" -name '*.1.gz' | wc -l)" ] || fail "pages of the manual are missing"

opened="$(mktemp -d)"
trap 'rm -rf "$opened"' EXIT
dpkg-deb --raw-extract "$package" "$opened"
[ "$(cat "$opened/DEBIAN/conffiles")" = /etc/default/quelea ] || fail "/etc/default/quelea is not the one file of settings"
[ -x "$opened/DEBIAN/postinst" ] || fail "nothing tells systemd of the service"
# As debhelper has it for a service that is left alone: enabled again where it was, restarted where it runs.
grep -q 'debian-installed quelea.service' "$opened/DEBIAN/postinst" || fail "it enables the service by itself"
! grep -qE 'deb-systemd-invoke (start|restart)|_dh_action' "$opened/DEBIAN/postinst" || fail "it starts the service by itself"
cmp "$quelea" "$opened/usr/bin/quelea" || fail "another program is in the package"
zcat "$opened/usr/share/man/man1/quelea.1.gz" | grep -q '^\.TH' || fail "quelea.1 is no page of the manual"
version="$("$opened/usr/bin/quelea" version | awk '{ print $NF; exit }')"
case "$(dpkg-deb --field "$package" Version)" in
    "$version" | "$version"-*) ;;
    *) fail "the package has another version than its program, $version" ;;
esac
echo "$package: $(dpkg-deb --field "$package" Package Version Architecture | tr '\n' ' ')$(du -h "$package" | cut -f1)"
