#!/usr/bin/env python3
"""Runs the nginx and caddy snippets of docs/operations.md for real, in front of a node with `--masking=behind-proxy`.

A visitor must see the site, a wrong path and a plain request for the secret one must give 404, and a passing peer must get an
answer through the web server. Only names, ports and files are put in; the rest of each snippet is as documented. Says what it
skipped where a web server or openssl is not installed. Called by deploy/check.sh; needs no root and no other port than free ones.

    python3 deploy/check_proxies.py --quelea target/debug/quelea
"""

import argparse
import contextlib
import pathlib
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time

# How long anything may take that takes a moment on an idle machine.
PATIENCE = 60
PAGE = "<html><body>A page of the operator's own.</body></html>\n"
DOCUMENTED_PATH = "/3e30d96a4f8fef84cdf7a33021d8b41f"
UPGRADE = (
    "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class Failed(Exception):
    """A check did not hold."""


def snippet(language: str) -> str:
    """The documented one."""
    docs = pathlib.Path("docs/operations.md").read_text()
    found = re.search(rf"```{language}\n(.*?)```", docs, re.DOTALL)
    if not found:
        raise Failed(f"docs/operations.md has no snippet for {language}")
    return found[1]


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        if old not in text:
            raise Failed(f"the snippet has no {old!r} any more; mend {sys.argv[0]} with it")
        text = text.replace(old, new)
    return text


def certificates(home: pathlib.Path) -> None:
    """An authority of our own, and a certificate of it for localhost."""
    extension = home / "san"
    extension.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for args in (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=check"],
        ["req", *key, "-keyout", "key.pem", "-out", "request", "-subj", "/CN=localhost"],
        ["x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"]
        + ["-extfile", str(extension), "-out", "cert.pem"],
    ):
        subprocess.run(["openssl", *args], cwd=home, check=True, capture_output=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def nginx(home: pathlib.Path, port: int, upstream: str, path: str) -> list[str]:
    server = replaced(
        snippet("nginx"),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("www.example.org;", "localhost;"),
        ("/etc/letsencrypt/live/www.example.org/fullchain.pem", str(home / "cert.pem")),
        ("/etc/letsencrypt/live/www.example.org/privkey.pem", str(home / "key.pem")),
        ("/var/www/html", str(home / "www")),
        (DOCUMENTED_PATH, path),
        ("127.0.0.1:8468", upstream),
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {home}/{kind};\n" for kind in kinds)
    config = home / "nginx.conf"
    config.write_text(
        f"daemon off;\nmaster_process off;\npid {home}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{server}}}\n"
    )
    return ["nginx", "-e", "stderr", "-p", str(home), "-c", str(config)]


def caddy(home: pathlib.Path, port: int, upstream: str, path: str) -> list[str]:
    site = replaced(
        snippet("caddy"),
        # It gets no certificate for this name: it is given one.
        ("www.example.org {", f"https://localhost:{port} {{\n    tls {home}/cert.pem {home}/key.pem"),
        ("/var/www/html", str(home / "www")),
        (DOCUMENTED_PATH, path),
        ("127.0.0.1:8468", upstream),
    )
    config = home / "Caddyfile"
    config.write_text(f"{{\n    admin off\n    auto_https disable_redirects\n    storage file_system {home}/caddy\n}}\n{site}")
    return ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]


@contextlib.contextmanager
def running(args: list[str], log: pathlib.Path):
    with log.open("w") as out:
        process = subprocess.Popen(args, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()


def until(what: str, look, process: subprocess.Popen, log: pathlib.Path):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise Failed(f"{what}: {process.args[0]} has ended:\n{log.read_text()}")
        if seen := look():
            return seen
        time.sleep(0.1)
    raise Failed(f"in vain: {what}\n{log.read_text()}")


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def ask(home: pathlib.Path, port: int, path: str, headers: str) -> str:
    """The beginning of the answer."""
    context = ssl.create_default_context(cafile=str(home / "ca.pem"))
    with (
        socket.create_connection(("127.0.0.1", port), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as stream,
    ):
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer or (PAGE.encode() not in answer and b"200 OK" in answer):
            got = stream.recv(4096)
            if not got:
                break
            answer += got
        return answer.decode(errors="replace")


def expect(status: int, what: str, answer: str) -> None:
    if not answer.startswith(f"HTTP/1.1 {status}"):
        raise Failed(f"{what}: not {status} but {answer.splitlines()[:1]}")


def check(quelea: str, server, directory: pathlib.Path) -> None:
    home = directory / server.__name__
    (home / "www").mkdir(parents=True)
    (home / "www" / "index.html").write_text(PAGE)
    certificates(home)
    port, node_log, server_log = free_port(), home / "node.log", home / "server.log"
    external = f"/dns4/localhost/tcp/{port}/tls/ws"
    node_args = [quelea, "daemon", "--data-dir", str(home / "node"), "--masking=behind-proxy", "--port", "0"]
    node_args += ["--external", external, "--masking-ca", str(home / "ca.pem"), "--model", "demo", "--layers", "all"]
    node_args += ["--api-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    with running(node_args, node_log) as node:
        until("the node is ready", lambda: "\nready\n" in node_log.read_text(), node, node_log)
        greeting = node_log.read_text()
        address = re.search(r"^listen: +(\S+)", greeting, re.MULTILINE)[1]
        upstream = re.search(r"^front: +(\S+)", greeting, re.MULTILINE)[1]
        path = "/" + re.search(r"x-parity-ws/%2F([0-9a-f]+)/", address)[1]
        with running(server(home, port, upstream, path), server_log) as web:
            until("the web server listens", lambda: listens(port), web, server_log)
            page = ask(home, port, "/", "Connection: close\r\n")
            expect(200, "a visitor", page)
            if PAGE not in page:
                raise Failed(f"a visitor does not see the page but {page}")
            expect(404, "the path without an upgrade", ask(home, port, path, "Connection: close\r\n"))
            wrong = ask(home, port, "/" + "0" * 32, UPGRADE)
            expect(404, "an upgrade on a wrong path", wrong)
            expect(101, "an upgrade on the path", ask(home, port, path, UPGRADE))
            asked = [quelea, "infer", "--masking", "--masking-ca", str(home / "ca.pem"), "--bootstrap", address]
            asked += ["--max-tokens", "4", "What is a relay?"]
            answer = subprocess.run(asked, capture_output=True, text=True, timeout=2 * PATIENCE, stdin=subprocess.DEVNULL)
            if answer.returncode != 0 or not answer.stdout.strip():
                logs = f"{node_log.read_text()}\n{server_log.read_text()}"
                raise Failed(f"no answer through the web server: {answer.stderr}\n{logs}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quelea", required=True)
    quelea = str(pathlib.Path(parser.parse_args().quelea).resolve())
    if shutil.which("openssl") is None:
        print("skipped: web servers in front of a masked node (openssl is not installed)")
        return 0
    for server in (nginx, caddy):
        name = server.__name__
        if shutil.which(name) is None:
            print(f"skipped: {name} in front of a masked node ({name} is not installed)")
            continue
        with tempfile.TemporaryDirectory(prefix="quelea-web-") as directory:
            try:
                check(quelea, server, pathlib.Path(directory))
            except (Failed, OSError, subprocess.SubprocessError) as error:
                print(f"{name} in front of a masked node: {error}", file=sys.stderr)
                return 1
        print(f"{name} in front of a masked node: a page for visitors, 404 for the curious, an answer for a peer")
    return 0


if __name__ == "__main__":
    sys.exit(main())
