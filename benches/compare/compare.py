#!/usr/bin/env python3
"""Times Quelea, llama.cpp in each of its settings and candle on the same files, in turns; prints medians and ratios.

    python benches/compare/compare.py model.gguf \\
        --llama-bench /path/to/llama-bench --quelea target/release/quelea --engines engines/target/release

Every round runs each contestant once on each file, one contestant after another, each round starting with the next of
them, so that a machine that slows down slows all of them alike. README.md tells how to build what is compared.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

QUELEA = "quelea"


class Failed(Exception):
    """A contestant that gave no result, and why."""


def run(command, environment=None):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, **(environment or {})}
    )
    if done.returncode < 0:
        raise Failed(f"killed by signal {-done.returncode}")
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise Failed(f"exit {done.returncode}: {last[:160]}")
    return done.stdout


def llama(path, repack, flash, options):
    """llama-bench in one setting. One test a repetition, after its own warm-up."""

    def measure(model):
        command = [path, "-m", model, "-p", options.pp, "-n", options.tg, "-t", options.threads, "-r", 1]
        command += ["--repack", int(repack), "-fa", "on" if flash else "off", "-o", "json"]
        return {
            f"pp{test['n_prompt']}" if test["n_prompt"] else f"tg{test['n_gen']}": test["avg_ts"]
            for test in json.loads(run(command))
        }

    return measure


def ours(command, options, environment=None):
    """A program with the options and the output of `quelea bench model`."""

    def measure(model):
        tests = [*command, model, "--pp", options.pp, "--tg", options.tg, "--repeat", 1]
        document = json.loads(run(tests, environment))
        return {result["test"]: result["tokens_per_second"]["median"] for result in document["results"]}

    return measure


def contestants(options):
    found = {}
    if options.quelea:
        command = [options.quelea, "bench", "model", "--json", "--threads", options.threads, *options.quelea_option]
        found[QUELEA] = ours(command, options)
    for given in options.llama_bench:
        label, _, path = given.rpartition("=")
        for repack in (True, False):
            for flash in (True, False):
                name = f"{label or 'llama.cpp'}, {'' if repack else 'no '}repack{', flash attention' if flash else ''}"
                found[name] = llama(path, repack, flash, options)
    if options.engines and options.candle:
        threads = {"RAYON_NUM_THREADS": str(options.threads)}
        found["candle"] = ours([options.engines / "candle"], options, threads)
    return found


def bandwidth(options):
    """Bytes per second that memory can be read at, or nothing."""
    if not options.engines:
        return None
    return float(run([options.engines / "bandwidth", options.threads]))


def processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def measure(options):
    """Samples by file, contestant and test; what failed; the bandwidth of each round."""
    runners = contestants(options)
    samples = {model: {name: {} for name in runners} for model in options.model}
    failures, reads = {}, []
    for turn in range(options.rounds):
        reads.append(bandwidth(options))
        order = list(runners)
        order = order[turn % len(order):] + order[: turn % len(order)]
        for model in options.model:
            for name in order:
                if (model, name) in failures:
                    continue
                print(f"round {turn + 1}/{options.rounds}: {model.name}: {name}", file=sys.stderr)
                try:
                    for test, value in runners[name](model).items():
                        samples[model][name].setdefault(test, []).append(value)
                except Failed as failure:
                    failures[model, name] = str(failure)
    return samples, failures, [read for read in reads if read]


def report(options, samples, failures, reads):
    for model in options.model:
        size = model.stat().st_size
        tests = [f"pp{n}" for n in options.pp.split(",")] + [f"tg{n}" for n in options.tg.split(",")]
        print(f"\n{model.name}: {size / 1e6:.0f} MB, {options.threads} threads, {options.rounds} rounds")
        if reads:
            limit = statistics.median(reads) / size
            print(f"memory reads at {statistics.median(reads) / 1e9:.1f} GB/s: at most {limit:.1f} tokens/s decoded")
        width = max(map(len, [*samples[model], "tokens/s, median (best)"]))
        print(f"{'tokens/s, median (best)':<{width}}" + "".join(f"{test:>18}" for test in tests))
        medians = {}
        for name, by_test in samples[model].items():
            if (model, name) in failures:
                print(f"{name:<{width}}  {failures[model, name]}")
                continue
            medians[name] = {test: statistics.median(values) for test, values in by_test.items()}
            cells = [f"{medians[name][test]:.1f} ({max(by_test[test]):.1f})" for test in tests]
            print(f"{name:<{width}}" + "".join(f"{cell:>18}" for cell in cells))
        if QUELEA not in medians:
            continue
        for rival, among in (("llama.cpp's best", lambda name: name not in (QUELEA, "candle")),
                             ("candle", lambda name: name == "candle")):
            others = [values for name, values in medians.items() if among(name)]
            if others:
                cells = [f"{medians[QUELEA][test] / max(values[test] for values in others):.2f}" for test in tests]
                print(f"{'quelea / ' + rival:<{width}}" + "".join(f"{cell:>18}" for cell in cells))
        if reads:
            decoded = [test for test in tests if test.startswith("tg")]
            shares = ", ".join(f"{test} {100 * medians[QUELEA][test] / limit:.0f} %" for test in decoded)
            print(f"of the memory limit: {shares}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+", type=pathlib.Path, help="GGUF files")
    parser.add_argument("--llama-bench", action="append", default=[], metavar="[LABEL=]PATH",
                        help="llama.cpp's llama-bench; several builds under labels of their own")
    parser.add_argument("--quelea", type=pathlib.Path, metavar="PATH", help="the program quelea, a release build")
    parser.add_argument("--quelea-option", action="append", default=[], metavar="OPTION",
                        help="passed on to `quelea bench model`, as --quelea-option=--isa=avx2")
    parser.add_argument("--engines", type=pathlib.Path, metavar="FOLDER",
                        help="where the programs of benches/compare/engines are: candle, bandwidth")
    parser.add_argument("--no-candle", dest="candle", action="store_false", help="leave candle out")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every contestant (all cores)")
    parser.add_argument("--pp", default="128,512", help="lengths of prompts (128,512)")
    parser.add_argument("--tg", default="64", help="tokens decoded one by one (64)")
    parser.add_argument("--rounds", type=int, default=5, help="turns that everybody gets (5)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all samples there")
    options = parser.parse_args()
    if not contestants(options):
        parser.error("nobody to compare: give --quelea, --llama-bench or --engines")

    load = os.getloadavg()[0]
    print(f"{processor()}, {os.cpu_count()} cores, load {load:.1f} before the first round")
    if load > 0.5:
        print("the machine is busy: the figures say little", file=sys.stderr)
    samples, failures, reads = measure(options)
    report(options, samples, failures, reads)
    if options.json:
        document = {
            "schema": "quelea.compare/v1", "processor": processor(), "threads": options.threads, "load_before": load,
            "bandwidth_bytes_per_second": reads,
            "models": [{"model": model.name, "bytes": model.stat().st_size, "samples": samples[model],
                        "failures": {name: why for (failed, name), why in failures.items() if failed == model}}
                       for model in options.model],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
