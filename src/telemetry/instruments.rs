//! The instruments behind [`super::metrics::Metrics`]: names, units, buckets and help, in OpenTelemetry's terms. The exporter turns
//! a unit into a suffix (`s` → `_seconds`, `By` → `_bytes`) and ends counters in `_total`.

use std::{borrow::Cow, sync::Arc, time::Instant};

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter, UpDownCounter},
};

use super::{
    health::{Component, Health},
    metrics::BuildInfo,
    process,
    stats::{ModelStats, NodeStats, Path, Reachability, Transport},
};

/// Bounds for a request's duration, in seconds, as OpenTelemetry's GenAI conventions have them: doubling from 10 ms.
const REQUEST_BOUNDS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];

/// Bounds for the time to the first token, in seconds: the conventions' own, and three more for swarms of slow processors.
const FIRST_TOKEN_BOUNDS: [f64; 19] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];

/// Bounds for the time per further token, in seconds: the conventions' own, and two more for the same reason.
const PER_TOKEN_BOUNDS: [f64; 15] =
    [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0];

/// Bounds for a loop's lateness, in seconds: the timer's own millisecond, to a loop that counts as stuck.
const LATE_BOUNDS: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

/// Bounds for a request over HTTP, in seconds: the conventions' own, and three more for answers that are streamed.
const HTTP_BOUNDS: [f64; 17] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 120.0];

/// Bounds for a stage's or a hop's share, in seconds: from a hop on loopback (about 100 µs) to a long prefill chunk.
const STAGE_BOUNDS: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Bounds for a chain's length, in peers.
const CHAIN_BOUNDS: [f64; 9] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0];

/// Bounds for a commit, in seconds: from a flash disk's flush to a disk that stands still.
const COMMIT_BOUNDS: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// What is recorded as it happens.
#[derive(Debug)]
pub(super) struct Instruments {
    pub(super) rpc_requests: Counter<u64>,
    pub(super) exchange_records: Counter<u64>,
    pub(super) exchange_bytes: Counter<u64>,
    pub(super) inference_requests: Counter<u64>,
    pub(super) tokens_processed: Counter<u64>,
    pub(super) speculated_tokens: Counter<u64>,
    pub(super) request_duration: Histogram<f64>,
    pub(super) time_to_first_token: Histogram<f64>,
    pub(super) time_per_output_token: Histogram<f64>,
    pub(super) stage_duration: Histogram<f64>,
    pub(super) queue_wait: Histogram<f64>,
    pub(super) stages: Histogram<u64>,
    pub(super) hop: Histogram<f64>,
    pub(super) agent_runs: Counter<u64>,
    pub(super) agent_run_duration: Histogram<f64>,
    pub(super) agent_fuel_used: Counter<u64>,
    pub(super) db_commit: Histogram<f64>,
    pub(super) hole_punches: Counter<u64>,
    pub(super) channel_full: Counter<u64>,
    pub(super) recoveries: Counter<u64>,
    pub(super) replayed_rows: Counter<u64>,
    pub(super) commitments: Counter<u64>,
    pub(super) audits: Counter<u64>,
    pub(super) audits_skipped: Counter<u64>,
    pub(super) ledger_entries: Counter<u64>,
    pub(super) ledger_disputes: Counter<u64>,
    pub(super) ledger_limit_refusals: Counter<u64>,
    pub(super) ledger_self_recovered: Counter<u64>,
    pub(super) ledger_defaults: Counter<u64>,
    pub(super) service_calls: Counter<u64>,
    pub(super) service_duration: Histogram<f64>,
    pub(super) dht_republished: Counter<u64>,
    pub(super) dht_refused: Counter<u64>,
    pub(super) rate_limited: Counter<u64>,
    pub(super) tasks_panicked: Counter<u64>,
    pub(super) swarm_late: Histogram<f64>,
    pub(super) http_duration: Histogram<f64>,
    pub(super) http_in_flight: UpDownCounter<i64>,
}

impl Instruments {
    pub(super) fn new(meter: &Meter) -> Self {
        let counter = |name: &'static str, help: &'static str| meter.u64_counter(name).with_description(help).build();
        let seconds = |name: &'static str, help: &'static str, bounds: &[f64]| {
            meter.f64_histogram(name).with_unit("s").with_description(help).with_boundaries(bounds.to_vec()).build()
        };
        Self {
            rpc_requests: counter(
                "quelea_rpc_requests",
                "Requests of the node's own protocols, by protocol, direction and result",
            ),
            exchange_records: counter(
                "quelea_exchange_records",
                "Records of peers that exchanges brought (inbound) or took (outbound)",
            ),
            exchange_bytes: meter
                .u64_counter("quelea_exchange")
                .with_unit("By")
                .with_description("Bytes of those answers, by direction")
                .build(),
            inference_requests: counter(
                "quelea_inference_requests",
                "Inference requests that this node coordinated and that ended, by model and outcome",
            ),
            tokens_processed: counter(
                "quelea_tokens_processed",
                "Tokens of requests that this node coordinated, by model and type",
            ),
            speculated_tokens: counter(
                "quelea_speculated_tokens",
                "Tokens guessed and verified for requests that this node coordinated, by model and outcome",
            ),
            request_duration: seconds(
                "gen_ai.server.request.duration",
                "Time from taking an inference request to its end",
                &REQUEST_BOUNDS,
            ),
            time_to_first_token: seconds(
                "gen_ai.server.time_to_first_token",
                "Time from taking an inference request to its first token",
                &FIRST_TOKEN_BOUNDS,
            ),
            time_per_output_token: seconds(
                "gen_ai.server.time_per_output_token",
                "Time per token after the first one, over a whole request",
                &PER_TOKEN_BOUNDS,
            ),
            stage_duration: seconds(
                "quelea_pipeline_stage_duration",
                "Time a stage computed on one step, as the stage itself reports it",
                &STAGE_BOUNDS,
            ),
            queue_wait: seconds(
                "quelea_inference_queue_wait",
                "Time a step waited until this node's layers computed it",
                &STAGE_BOUNDS,
            ),
            stages: meter
                .u64_histogram("quelea_pipeline_stages")
                .with_description("Peers of the chain that answered a request of this node; 0 for this node alone")
                .with_boundaries(CHAIN_BOUNDS.to_vec())
                .build(),
            hop: seconds(
                "quelea_pipeline_hop",
                "Mean one-way time from a stage to the next peer in one session, as the stage tells from acknowledgements",
                &STAGE_BOUNDS,
            ),
            agent_runs: counter("quelea_agent_runs", "Runs of WASM modules that ended, by outcome"),
            agent_run_duration: seconds(
                "quelea_agent_run_duration",
                "Time of one run from the moment at which it has a process, waiting for models included",
                &REQUEST_BOUNDS,
            ),
            agent_fuel_used: counter("quelea_agent_fuel_used", "Fuel that runs of WASM modules used, by outcome"),
            db_commit: seconds("quelea_db_commit_duration", "Time of one database commit", &COMMIT_BOUNDS),
            dht_republished: counter(
                "quelea_dht_republish",
                "Values and provider records of this node that were published again, by whether they reached anybody",
            ),
            audits: counter("quelea_audits", "Stages of answers that were computed again, by what was found"),
            audits_skipped: counter("quelea_audits_skipped", "Answers that were drawn and not audited, by reason"),
            ledger_entries: counter(
                "quelea_ledger_entries",
                "Signed messages of the ledger, made here or sent by peers, by kind and what became of them",
            ),
            ledger_disputes: counter(
                "quelea_ledger_disputes",
                "Accounts frozen and contradictions of peers proven, by reason",
            ),
            ledger_limit_refusals: counter(
                "quelea_ledger_limit_refusals",
                "Holds of peers that were not taken, by the limit that they met",
            ),
            ledger_self_recovered: counter(
                "quelea_ledger_self_recovered",
                "Times that this node had lost its newest entries and took them from the peer that had them",
            ),
            ledger_defaults: counter(
                "quelea_ledger_defaults",
                "Times that a peer had not paid long after it was asked",
            ),
            service_calls: counter(
                "quelea_service_calls",
                "Calls of peers that this node's services worked on, by service and outcome",
            ),
            service_duration: seconds(
                "quelea_service_call_duration",
                "Time from taking a peer's call to its end, by service",
                &REQUEST_BOUNDS,
            ),
            dht_refused: counter(
                "quelea_dht_refused",
                "Records, and peers for the routing table, that this node did not take, by the reason",
            ),
            hole_punches: counter("quelea_hole_punch_attempts", "Hole punches that ended, by result"),
            channel_full: counter("quelea_channel_full", "Items that a bounded queue had no place for, by queue"),
            recoveries: counter(
                "quelea_failover_recoveries",
                "Sessions of this node's requests that lost a stage, by whether they went on",
            ),
            replayed_rows: counter(
                "quelea_failover_replayed_rows",
                "Rows that this node's stages handed on once more, for sessions that lost a stage",
            ),
            commitments: counter(
                "quelea_commitments",
                "Commitments to rows, of this node's stages and of those that it used, by what became of them",
            ),
            rate_limited: counter(
                "quelea_rate_limited",
                "What a rate limit refused to peers, by the scope of the limit",
            ),
            tasks_panicked: counter("quelea_tasks_panicked", "Tasks and threads that ended in a panic"),
            swarm_late: seconds(
                "quelea_swarm_late",
                "How late the swarm's loop came to a turn that was due, four times a second",
                &LATE_BOUNDS,
            ),
            http_duration: seconds(
                "http.server.request.duration",
                "Time from a request over HTTP to the last byte of its answer, by route",
                &HTTP_BOUNDS,
            ),
            http_in_flight: meter
                .i64_up_down_counter("quelea_http_requests_in_flight")
                .with_description("Requests over HTTP that are being answered, by route")
                .build(),
        }
    }
}

/// Registers the gauges that are read when somebody scrapes. The meter's provider keeps them alive.
pub(super) fn observe(meter: &Meter, build: &BuildInfo, stats: &Arc<NodeStats>, health: &Arc<Health>) {
    observe_process(meter, build);
    observe_health(meter, health);
    observe_peers(meter, stats);
    observe_models(meter, stats);
    super::front::observe(meter, stats);
    super::gossip::observe(meter, stats);
    super::ledger::observe(meter, stats);
    super::local_llm::observe(meter, stats);
    super::storage::observe(meter, stats);

    type Plain = fn(&NodeStats) -> u64;
    let plain: [(&'static str, &'static str, Plain); 11] = [
        ("quelea_peers_known", "Peers this node remembers", |s| s.peers_known.get()),
        ("quelea_peers_banned", "Peers and address ranges that are banned", |s| s.peers_banned.get()),
        ("quelea_relay_reservations", "Relays that keep a place for this node", |s| s.relay_reservations.get()),
        ("quelea_shard_streams", "Shard streams open, in either direction", |s| s.shard_streams.get()),
        ("quelea_shard_sessions", "Shard sessions open on this node's stage", |s| s.shard_sessions.get()),
        ("quelea_shard_results", "Sessions over chains whose results this node waits for", |s| s.shard_results.get()),
        ("quelea_shard_links", "Shard links that this node keeps to others", |s| s.shard_links.get()),
        ("quelea_failover_log_bytes", "Bytes of rows kept in memory for sessions that may lose a stage", |s| {
            s.log_bytes.get()
        }),
        ("quelea_failover_log_disk_bytes", "Bytes of such rows on disk, encrypted", |s| s.log_bytes_on_disk.get()),
        ("quelea_rendezvous_registrations", "Registrations that this node holds as a rendezvous point", |s| {
            s.rendezvous_registrations.get()
        }),
        ("quelea_dht_records", "Records in this node's part of the DHT", |s| s.dht_records.get()),
    ];
    for (name, help, read) in plain {
        let stats = Arc::clone(stats);
        meter
            .u64_observable_gauge(name)
            .with_description(help)
            .with_callback(move |observer| observer.observe(read(&stats), &[]))
            .build();
    }
}

fn observe_process(meter: &Meter, build: &BuildInfo) {
    let labels = [
        KeyValue::new("version", build.version.clone()),
        KeyValue::new("commit", build.commit.clone()),
        KeyValue::new("rustc", build.rustc.clone()),
        KeyValue::new("features", build.features.clone()),
    ];
    meter
        .u64_observable_gauge("quelea_build_info")
        .with_description("Always 1; its labels say which build this is")
        .with_callback(move |observer| observer.observe(1, &labels))
        .build();

    let started = Instant::now();
    meter
        .f64_observable_gauge("quelea_uptime")
        .with_unit("s")
        .with_description("Time since the node started")
        .with_callback(move |observer| observer.observe(started.elapsed().as_secs_f64(), &[]))
        .build();

    meter
        .f64_observable_counter("process_cpu")
        .with_unit("s")
        .with_description("Processor time used, user and system")
        .with_callback(|observer| {
            if let Some(seconds) = process::cpu_seconds() {
                observer.observe(seconds, &[]);
            }
        })
        .build();
    let start_time = process::start_time_seconds();
    meter
        .f64_observable_gauge("process_start_time")
        .with_unit("s")
        .with_description("When the process started, since the Unix epoch")
        .with_callback(move |observer| {
            if let Some(seconds) = start_time {
                observer.observe(seconds, &[]);
            }
        })
        .build();
    type Read = fn() -> Option<u64>;
    let figures: [(&'static str, &'static str, &'static str, Read); 3] = [
        ("process_resident_memory", "By", "Memory in RAM", process::resident_bytes),
        ("process_open_fds", "", "File descriptors open", process::open_fds),
        ("process_max_fds", "", "File descriptors allowed", process::max_fds),
    ];
    for (name, unit, help, read) in figures {
        meter
            .u64_observable_gauge(name)
            .with_unit(unit)
            .with_description(help)
            .with_callback(move |observer| {
                if let Some(n) = read() {
                    observer.observe(n, &[]);
                }
            })
            .build();
    }
}

fn observe_health(meter: &Meter, health: &Arc<Health>) {
    let health = Arc::clone(health);
    let shutdown = KeyValue::new("check", "shutdown");
    let checks = Component::ALL.map(|c| KeyValue::new("check", c.name()));
    meter
        .u64_observable_gauge("quelea_ready")
        .with_description("Whether a readiness check passes; the node is ready when all do")
        .with_callback(move |observer| {
            let report = health.report();
            for (component, check) in report.components.iter().zip(&checks) {
                observer.observe(u64::from(component.status.is_ready()), std::slice::from_ref(check));
            }
            observer.observe(u64::from(!report.draining), std::slice::from_ref(&shutdown));
        })
        .build();
}

fn observe_peers(meter: &Meter, stats: &Arc<NodeStats>) {
    let for_lines = Arc::clone(stats);
    meter
        .u64_observable_counter("quelea_lines_closed")
        .with_description("Connections that this node dialled and closed because nothing used them")
        .with_callback(move |observer| observer.observe(for_lines.lines_closed.get(), &[]))
        .build();
    let for_connected = Arc::clone(stats);
    meter
        .u64_observable_gauge("quelea_peers_connected")
        .with_description("Peers connected, by the best way each is reached")
        .with_callback(move |observer| {
            for (path, path_name) in Path::ALL {
                for (transport, transport_name) in Transport::ALL {
                    let labels = [KeyValue::new("path", path_name), KeyValue::new("transport", transport_name)];
                    observer.observe(for_connected.connected(path, transport).get(), &labels);
                }
            }
        })
        .build();
    let for_reachability = Arc::clone(stats);
    meter
        .u64_observable_gauge("quelea_reachability")
        .with_description("1 for the state the node is in: whether others can dial it")
        .with_callback(move |observer| {
            for (state, name) in Reachability::ALL {
                let here = for_reachability.is_reachability(state);
                observer.observe(u64::from(here), &[KeyValue::new("state", name)]);
            }
        })
        .build();
}

fn observe_models(meter: &Meter, stats: &Arc<NodeStats>) {
    type Read = fn(&ModelStats) -> u64;
    let gauges: [(&'static str, &'static str, &'static str, Read); 8] = [
        ("quelea_model_layers_hosted", "", "Layers of a model that this node holds", |m| m.layers_hosted.get()),
        ("quelea_kv_cache_free_pages", "", "KV cache pages that a session could have", |m| m.kv_pages_free.get()),
        ("quelea_kv_cache_capacity_pages", "", "KV cache pages there are", |m| m.kv_pages_capacity.get()),
        ("quelea_kv_cache_used", "By", "Memory of KV cache pages that sessions have", |m| m.kv_used_bytes.get()),
        ("quelea_kv_cache_capacity", "By", "Memory of all KV cache pages", |m| m.kv_capacity_bytes.get()),
        (
            "quelea_prefix_cache",
            "By",
            "Memory of KV cache pages kept for prompts that begin alike, in use or not",
            |m| m.prefix_cache_bytes.get(),
        ),
        ("quelea_inference_queue_depth", "", "Inference requests that wait for their turn", |m| m.queue_depth.get()),
        ("quelea_inference_running", "", "Sessions open on this node's layers", |m| m.running.get()),
    ];
    for (name, unit, help, read) in gauges {
        let stats = Arc::clone(stats);
        meter
            .u64_observable_gauge(Cow::Borrowed(name))
            .with_unit(unit)
            .with_description(help)
            .with_callback(move |observer| {
                for model in stats.models() {
                    observer.observe(read(&model), &[KeyValue::new("model", model.label().shared())]);
                }
            })
            .build();
    }
    let counters: [(&'static str, &'static str, Read); 5] = [
        ("quelea_stage_batches", "Batches that this node's layers have computed", |m| m.totals.batches.get()),
        ("quelea_stage_rows", "Rows that this node's layers have computed", |m| m.totals.rows.get()),
        ("quelea_prefix_cache_lookups", "Blocks of 32 rows at the beginnings of prompts that were looked up", |m| {
            m.totals.prefix_lookups.get()
        }),
        ("quelea_prefix_cache_hits", "Blocks of 32 rows that were kept from before and not computed again", |m| {
            m.totals.prefix_hits.get()
        }),
        ("quelea_kv_cache_evicted_sessions", "Idle sessions that had to give way to others", |m| {
            m.totals.evicted_sessions.get()
        }),
    ];
    for (name, help, read) in counters {
        let stats = Arc::clone(stats);
        meter
            .u64_observable_counter(Cow::Borrowed(name))
            .with_description(help)
            .with_callback(move |observer| {
                for model in stats.models() {
                    observer.observe(read(&model), &[KeyValue::new("model", model.label().shared())]);
                }
            })
            .build();
    }
}
