"""Measures a daemon's OpenAI API: what a streamed token costs above the node's own stream, and many streams at once.

    python3 tests/sdk/measure.py --api http://127.0.0.1:8469 --token FILE --metrics http://127.0.0.1:8470/metrics

Needs nothing but Python. The daemon should have nothing else to do.
"""

import argparse
import asyncio
import json
import re
import statistics
import time
import urllib.parse
import urllib.request

PROMPT = "Once upon a time"


async def ask(args, path, body, begins):
    """Reads a stream: when it was asked for, when its pieces of text came, which are lines that begin so, and its end."""
    url = urllib.parse.urlparse(args.api)
    reader, writer = await asyncio.open_connection(url.hostname, url.port, limit=1 << 22)
    body = json.dumps(body).encode()
    head = (f"POST {path} HTTP/1.1\r\nHost: {url.netloc}\r\nAuthorization: Bearer {args.key}\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n")
    began = time.perf_counter()
    writer.write(head.encode() + body)
    status = int((await reader.readline()).split()[1])
    times = []
    while line := await reader.readline():
        if line.startswith(begins) and b'"finish_reason":"' not in line and b'"role"' not in line:
            times.append(time.perf_counter())
    over = time.perf_counter()
    writer.close()
    if status != 200:
        raise SystemExit(f"{path}: status {status}")
    return began, times, over


def own(args, tokens):
    body = {"model": args.model, "prompt": PROMPT, "form": "raw", "max_tokens": tokens, "ignore_eos": True}
    return ask(args, "/api/v1/infer", body, b'{"type":"text"')


def openai(args, tokens):
    body = {"model": args.model, "prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True, "temperature": 0,
            "stream": True}
    return ask(args, "/v1/completions", body, b'data: {"id"')


def late(args):
    """How often the swarm's loop was late by how much, so far."""
    text = urllib.request.urlopen(args.metrics).read().decode()
    found = re.findall(r'quelea_swarm_late_seconds_bucket\{[^}]*le="([^"]+)"[^}]*\} (\d+)', text)
    return {float(bound.replace("+Inf", "inf")): int(count) for bound, count in found}


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))]


async def overhead(args):
    differences = []
    for _ in range(args.rounds):
        per_token = []
        for way in (own, openai):
            began, _, over = await way(args, args.tokens)
            per_token.append((over - began) / args.tokens * 1e3)
        differences.append((per_token[0], per_token[1], per_token[1] - per_token[0]))
    of = [statistics.median(column) for column in zip(*differences)]
    print(f"per token, median of {args.rounds} rounds of {args.tokens} tokens: own stream {of[0]:.3f} ms, "
          f"OpenAI's {of[1]:.3f} ms, difference {of[2]:+.3f} ms")


async def many(args):
    before = late(args)
    began = time.perf_counter()
    streams = await asyncio.gather(*(openai(args, args.tokens) for _ in range(args.streams)))
    took = time.perf_counter() - began
    after = late(args)
    first = [times[0] - start for start, times, _ in streams]
    whole = [over - start for start, _, over in streams]
    gaps = [b - a for _, times, _ in streams for a, b in zip(times, times[1:])]
    tokens = args.tokens * len(streams)
    print(f"{args.streams} streams at once: {tokens} tokens in {took:.1f} s, {tokens / took:.0f} tokens/s; first token "
          f"median {statistics.median(first) * 1e3:.0f} ms, last stream {max(first) * 1e3:.0f} ms; whole answer fastest "
          f"{min(whole):.2f} s, slowest {max(whole):.2f} s; between tokens median {statistics.median(gaps) * 1e3:.1f} ms, "
          f"p99 {quantile(gaps, 0.99) * 1e3:.1f} ms, longest {max(gaps) * 1e3:.0f} ms")
    turns = {bound: after[bound] - before.get(bound, 0) for bound in after}
    total = turns[float("inf")]
    p99 = next(bound for bound in sorted(turns) if turns[bound] >= 0.99 * total)
    print(f"the swarm's loop meanwhile: {total} turns, 99 % of them at most {p99 * 1e3:.0f} ms late")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--api", required=True)
    parser.add_argument("--token", required=True, help="the file api.token of the daemon")
    parser.add_argument("--metrics", required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--streams", type=int, default=50)
    args = parser.parse_args()
    args.key = open(args.token).read().strip()
    asyncio.run(overhead(args))
    asyncio.run(many(args))


if __name__ == "__main__":
    main()
