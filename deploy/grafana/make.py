#!/usr/bin/env python3
"""Writes deploy/grafana/dashboards/*.json from the tables below; with --check says whether they are as it would write them.

    python3 deploy/grafana/make.py [--check]

A panel is (title, what it tells, unit, [(query, legend)], options). Queries go by the variable `$instance`, which the
dashboard asks Prometheus for.
"""

import argparse
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${source}"}
SELF = 'instance=~"$instance"'
RATE = "$__rate_interval"


def gauge(name: str, **labels: str) -> str:
    chosen = ",".join([SELF, *(f'{label}="{value}"' for label, value in labels.items())])
    return f"{name}{{{chosen}}}"


def rate(name: str, **labels: str) -> str:
    return f"rate({gauge(name, **labels)}[{RATE}])"


def quantiles(name: str, by: str = "") -> list[tuple[str, str]]:
    """Half, 95 % and 99 % of a histogram, and each for every value of the label `by`."""
    groups, legend = f"le{', ' + by if by else ''}", f" {{{{{by}}}}}" if by else ""
    sums = f"sum by ({groups}) ({rate(name + '_bucket')})"
    return [(f"histogram_quantile({q}, {sums})", f"{int(q * 100)} %{legend}") for q in (0.5, 0.95, 0.99)]


def stat(title, tells, unit, query, legend="", **options):
    return ("stat", title, tells, unit, [(query, legend)], options)


def graph(title, tells, unit, queries, **options):
    return ("timeseries", title, tells, unit, queries, options)


NODE = [
    ("Now", [
        stat("Ready", "Whether every readiness check passes", "bool_yes_no", f"min({gauge('quelea_ready')})"),
        stat("Up", "Since the youngest node started", "s", f"min({gauge('quelea_uptime_seconds')})"),
        stat("Peers", "Connected to each node", "short", f"sum by (instance) ({gauge('quelea_peers_connected')})", "{{instance}}"),
        stat("Reachability", "Nodes whose direct addresses are confirmed", "short", f"sum({gauge('quelea_reachability', state='public')})"),
        stat("Panics", "Tasks and threads that ended in a panic; must stay 0", "short", f"sum({gauge('quelea_tasks_panicked_total')})", red=1),
        stat("Version", "What runs where", "none", f"count by (version, commit) ({gauge('quelea_build_info')})", "{{version}} {{commit}}"),
    ]),
    ("Peers", [
        graph("Connected, by path and transport", "Relayed ones are slower and cost a relay", "short",
              [(f"sum by (path, transport) ({gauge('quelea_peers_connected')}) > 0", "{{path}} {{transport}}")], stack=True),
        graph("Known and banned", "", "short",
              [(f"sum by (instance) ({gauge('quelea_peers_known')})", "known {{instance}}"),
               (f"sum by (instance) ({gauge('quelea_peers_banned')})", "banned {{instance}}")]),
        graph("Round trips", "libp2p's pings", "s", quantiles("libp2p_ping_rtt_seconds")),
        graph("Hole punches", "Attempts that ended, by result", "ops",
              [(f"sum by (result) ({rate('quelea_hole_punch_attempts_total')})", "{{result}}")]),
        graph("Readiness checks that fail", "None is what you want", "short",
              [(f"1 - {gauge('quelea_ready')} > 0", "{{check}} {{instance}}")]),
        graph("Refused by rate limits", "By the limit's scope", "ops",
              [(f"sum by (scope) ({rate('quelea_rate_limited_total')})", "{{scope}}")]),
    ]),
    ("Discovery and gossip", [
        graph("Requests of our own protocols", "By protocol and result", "reqps",
              [(f"sum by (protocol, result) ({rate('quelea_rpc_requests_total')})", "{{protocol}} {{result}}")]),
        graph("Kademlia queries", "Time until a query ends", "s", quantiles("libp2p_kad_query_result_duration_seconds")),
        graph("Records", "Kept for the DHT, and published again", "short",
              [(f"sum by (instance) ({gauge('quelea_dht_records')})", "kept {{instance}}"),
               (f"sum by (result) ({rate('quelea_dht_republish_total')})", "published again, {{result}} (a second)")]),
        graph("Gossip, by verdict", "Rejected ones count against who sent them", "ops",
              [(f"sum by (topic, verdict) ({rate('quelea_gossip_messages_total')})", "{{topic}} {{verdict}}")]),
    ]),
    ("Process", [
        graph("Processor", "Cores in use", "short", [(f"{rate('process_cpu_seconds_total')}", "{{instance}}")]),
        graph("Memory", "Resident", "bytes", [(gauge("process_resident_memory_bytes"), "{{instance}}")]),
        graph("Descriptors", "Share of the limit", "percentunit",
              [(f"{gauge('process_open_fds')} / {gauge('process_max_fds')}", "{{instance}}")]),
        graph("Queues that were full", "Items that a bounded queue had no place for", "ops",
              [(f"sum by (name) ({rate('quelea_channel_full_total')}) > 0", "{{name}}")]),
    ]),
]

INFERENCE = [
    ("Now", [
        stat("Tokens a second", "Of answers", "short", f"sum({rate('quelea_tokens_processed_total', type='output')})"),
        stat("Waiting", "Requests that wait for their turn", "short", f"sum({gauge('quelea_inference_queue_depth')})"),
        stat("Sessions", "Open on stages", "short", f"sum({gauge('quelea_shard_sessions')})"),
        stat("Layers held", "By model, over all nodes shown", "short", f"sum by (model) ({gauge('quelea_model_layers_hosted')})", "{{model}}"),
        stat("KV free", "Share of pages", "percentunit",
             f"sum({gauge('quelea_kv_cache_free_pages')}) / sum({gauge('quelea_kv_cache_capacity_pages')})"),
        stat("Stages lost", "In the last hour", "short", f"sum(increase({gauge('quelea_failover_recoveries_total')}[1h]))"),
    ]),
    ("Requests", [
        graph("Requests, by outcome", "That these nodes coordinated", "reqps",
              [(f"sum by (outcome) ({rate('quelea_inference_requests_total')})", "{{outcome}}")], stack=True),
        graph("First token", "From taking a request", "s", quantiles("gen_ai_server_time_to_first_token_seconds")),
        graph("Each further token", "", "s", quantiles("gen_ai_server_time_per_output_token_seconds")),
        graph("Whole requests", "", "s", quantiles("gen_ai_server_request_duration_seconds")),
        graph("Tokens", "By kind", "short", [(f"sum by (type) ({rate('quelea_tokens_processed_total')})", "{{type}}")]),
        graph("Guessed tokens that were right", "Speculation", "percentunit",
              [(f"sum by (model) ({rate('quelea_speculated_tokens_total', outcome='accepted')}) / "
                f"sum by (model) ({rate('quelea_speculated_tokens_total')})", "{{model}}")]),
    ]),
    ("Stages", [
        graph("One step of a stage", "Here, and as others report it", "s",
              [(f"histogram_quantile(0.5, sum by (le, phase, where) ({rate('quelea_pipeline_stage_duration_seconds_bucket')}))",
                "half of {{phase}}, {{where}}")]),
        graph("Hops", "One way from a stage to the next", "s", quantiles("quelea_pipeline_hop_seconds")),
        graph("Rows in a batch", "How well sessions share batches", "short",
              [(f"sum by (model) ({rate('quelea_stage_rows_total')}) / sum by (model) ({rate('quelea_stage_batches_total')})",
                "{{model}}")]),
        graph("KV cache in use", "", "bytes", [(f"sum by (model, instance) ({gauge('quelea_kv_cache_used_bytes')})", "{{model}} {{instance}}")]),
        graph("Beginnings found again", "Blocks of prompts that need not be computed", "percentunit",
              [(f"sum by (model) ({rate('quelea_prefix_cache_hits_total')}) / "
                f"sum by (model) ({rate('quelea_prefix_cache_lookups_total')})", "{{model}}")]),
        graph("Stages lost", "Sessions that lost one, by what became of them", "ops",
              [(f"sum by (outcome) ({rate('quelea_failover_recoveries_total')})", "{{outcome}}")]),
    ]),
    ("Trust in the numbers", [
        graph("Commitments", "Anything but kept, signed and late is worth a look", "ops",
              [(f"sum by (outcome) ({rate('quelea_commitments_total')})", "{{outcome}}")]),
        graph("Audits", "Stages computed again, by what was found", "ops",
              [(f"sum by (outcome) ({rate('quelea_audits_total')})", "{{outcome}}")]),
    ]),
]

ECONOMY = [
    ("Now", [
        stat("Owed to us", "Sum over all peers", "short", f"sum({gauge('quelea_ledger_owed_credits')})"),
        stat("We owe", "Sum over all peers", "short", f"sum({gauge('quelea_ledger_owing_credits')})"),
        stat("Net", "What peers owe, less what we owe", "short",
             f"sum({gauge('quelea_ledger_owed_credits')}) - sum({gauge('quelea_ledger_owing_credits')})"),
        stat("Overdue", "Should have been paid by now", "short", f"sum({gauge('quelea_ledger_overdue_credits')})"),
        stat("Newcomers' pool", "Share of what all newcomers together may owe", "percentunit",
             f"sum({gauge('quelea_ledger_pool_credits')}) / sum({gauge('quelea_ledger_exposure_limit_credits')})"),
        stat("Defaults", "In the last day", "short", f"sum(increase({gauge('quelea_ledger_defaults_total')}[1d]))"),
    ]),
    ("Ledger", [
        graph("Owed and owing", "", "short",
              [(f"sum by (instance) ({gauge('quelea_ledger_owed_credits')})", "owed to {{instance}}"),
               (f"sum by (instance) ({gauge('quelea_ledger_owing_credits')})", "owed by {{instance}}")]),
        graph("Messages", "Made here and sent by peers", "ops",
              [(f"sum by (kind, result) ({rate('quelea_ledger_entries_total')})", "{{kind}} {{result}}")]),
        graph("Holds that were refused", "By reason", "ops",
              [(f"sum by (reason) ({rate('quelea_ledger_limit_refusals_total')})", "{{reason}}")]),
        graph("Disputes and defaults", "Frozen accounts, contradictions proven, debts not paid", "ops",
              [(f"sum by (reason) ({rate('quelea_ledger_disputes_total')})", "{{reason}}"),
               (f"sum({rate('quelea_ledger_defaults_total')})", "defaults")]),
    ]),
    ("Storage", [
        graph("Database commits", "Time of one", "s", quantiles("quelea_db_commit_duration_seconds")),
        graph("Commits", "", "ops", [(f"sum by (instance) ({rate('quelea_db_commit_duration_seconds_count')})", "{{instance}}")]),
        graph("Kept for failover", "Rows that stages may have to hand on once more", "bytes",
              [(f"sum by (instance) ({gauge('quelea_failover_log_bytes')})", "{{instance}}")]),
        graph("Records for the DHT", "", "short", [(f"sum by (instance) ({gauge('quelea_dht_records')})", "{{instance}}")]),
    ]),
]

DASHBOARDS = {
    "node": ("Quelea: node", "Peers, reachability, discovery and the process", NODE),
    "inference": ("Quelea: inference", "Requests, stages, caches, and what audits found", INFERENCE),
    "economy": ("Quelea: economy and storage", "Who owes what, and what is written to disk", ECONOMY),
}


def panel(number: int, spec, x: int, y: int) -> dict:
    kind, title, tells, unit, queries, options = spec
    width, height = (4, 4) if kind == "stat" else (12, 8)
    defaults: dict = {"unit": unit}
    if options.get("red"):
        steps = [{"color": "green", "value": None}, {"color": "red", "value": options["red"]}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if kind == "timeseries":
        custom: dict = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
        if options.get("stack"):
            custom["stacking"] = {"mode": "normal", "group": "A"}
        defaults |= {"custom": custom, "min": 0}
        look = {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    else:
        look = {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "auto", "colorMode": "value"}
    return {
        "id": number,
        "type": kind,
        "title": title,
        "description": tells,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": look,
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": query, "legendFormat": legend or "__auto"}
            for i, (query, legend) in enumerate(queries)
        ],
    }


def dashboard(uid: str, title: str, tells: str, rows) -> dict:
    panels, y, number = [], 0, 0
    for name, specs in rows:
        number += 1
        panels.append(
            {"id": number, "type": "row", "title": name, "collapsed": False, "panels": [],
             "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}}
        )
        x, y, high = 0, y + 1, 0
        for spec in specs:
            number += 1
            made = panel(number, spec, x, y)
            at = made["gridPos"]
            if x + at["w"] > 24:
                x, y = 0, y + high
                at["x"], at["y"] = x, y
            panels.append(made)
            x, high = x + at["w"], at["h"]
        y += high
    variables = [
        {"name": "source", "type": "datasource", "query": "prometheus", "label": "Source"},
        {
            "name": "instance", "type": "query", "label": "Node", "datasource": SOURCE, "refresh": 2, "sort": 1,
            "query": {"query": "label_values(quelea_build_info, instance)", "refId": "instance"},
            "definition": "label_values(quelea_build_info, instance)",
            "multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"},
        },
    ]
    links = [{"type": "dashboards", "tags": ["quelea"], "title": "Quelea", "asDropdown": False, "includeVars": True, "keepTime": True}]
    return {
        "uid": f"quelea-{uid}",
        "title": title,
        "description": tells,
        "tags": ["quelea"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": variables},
        "links": links,
        "annotations": {"list": []},
        "panels": panels,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file differs")
    check = parser.parse_args().check
    wrong = 0
    for uid, (title, tells, rows) in DASHBOARDS.items():
        text = json.dumps(dashboard(uid, title, tells, rows), indent=1, ensure_ascii=False) + "\n"
        file = HERE / f"{uid}.json"
        if check and (not file.exists() or file.read_text() != text):
            print(f"{file.name} is not what make.py writes: python3 deploy/grafana/make.py", file=sys.stderr)
            wrong = 1
        if not check:
            file.write_text(text)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
