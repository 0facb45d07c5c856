//! The scrape as a whole, and the server over real sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

use super::{
    health::{Component, Health, Status},
    metrics::{
        BuildInfo, CONTENT_TYPE, Direction, Finished, Metrics, Operation, Outcome, Phase, Punch, RpcResult, Where,
    },
    server::{self, TelemetryState, serve},
    stats::{NodeStats, Path, Reachability, Transport},
};

fn state(heartbeat_max: Duration) -> (TelemetryState, Arc<NodeStats>) {
    let stats = Arc::new(NodeStats::default());
    let health = Arc::new(Health::new(heartbeat_max));
    let build = BuildInfo { version: "1.2.3".into(), ..BuildInfo::default() };
    let metrics = Metrics::new(&build, &stats, &health).unwrap();
    super::traces::observe(&metrics.meter(), &super::traces::Traces::default());
    (TelemetryState { health, metrics }, stats)
}

/// Everything the node can record, recorded, and libp2p's registry with something in it.
fn busy() -> (TelemetryState, Arc<NodeStats>) {
    let (state, stats) = state(Duration::from_secs(60));
    let metrics = &state.metrics;
    stats.connected(Path::Direct, Transport::Quic).set(3);
    stats.connected(Path::Relayed, Transport::Tcp).inc();
    stats.set_reachability(Reachability::Private);
    stats.peers_known.set(12);
    let model = stats.model("0123456789ab");
    model.layers_hosted.set(8);
    model.kv_pages_capacity.set(64);
    model.kv_pages_free.set(60);
    model.kv_used_bytes.set(4096);
    model.running.set(2);
    stats.storage.models.set(9000);
    stats.storage.models_limit.set(90_000);
    stats.storage.database.set(4096);
    model.totals.rows.set(640);
    model.totals.prefix_lookups.set(5);
    model.totals.prefix_hits.set(3);
    for result in [RpcResult::Ok, RpcResult::Error, RpcResult::Timeout, RpcResult::Refused] {
        metrics.rpc("announce", Direction::Inbound, result);
        metrics.rpc("announce", Direction::Outbound, result);
    }
    metrics.exchanged(Direction::Inbound, 12, 3000);
    metrics.exchanged(Direction::Outbound, 1, 250);
    for (operation, outcome) in [(Operation::Chat, Outcome::Stop), (Operation::TextCompletion, Outcome::NoRoute)] {
        metrics.finished(&Finished {
            operation,
            model: model.label(),
            outcome,
            error_type: (outcome == Outcome::NoRoute).then_some("QUE-2001"),
            duration: Duration::from_millis(2300),
            first_token: (outcome == Outcome::Stop).then_some(Duration::from_millis(300)),
            input_tokens: 26,
            output_tokens: 21,
            guessed_tokens: [6, 2],
        });
    }
    for phase in [Phase::Prefill, Phase::Decode] {
        metrics.stage(phase, Where::Local, Duration::from_micros(700));
        metrics.queue_wait(phase, Duration::from_micros(30));
        metrics.chain(2);
        metrics.stage(phase, Where::Remote, Duration::from_millis(7));
        metrics.hop(phase, Duration::from_micros(120));
    }
    metrics.db_commit(Duration::from_millis(2));
    metrics.declare_channels(&["db", "commands"]);
    metrics.channel_full("db");
    metrics.hole_punch(Punch::Success);
    metrics.hole_punch(Punch::Failure);
    metrics.recovered(true);
    metrics.commitment("kept");
    metrics.audit("right");
    metrics.audit_skipped("busy");
    metrics.ledger_entry("note", "taken");
    metrics.ledger_disputed("evidence");
    metrics.ledger_limit_refused("pool");
    metrics.ledger_self_recovered();
    metrics.ledger_defaulted();
    metrics.replayed(64);
    metrics.task_panicked();
    metrics.join_libp2p(libp2p_registry());
    (state, stats)
}

fn libp2p_registry() -> prometheus_client::registry::Registry {
    use libp2p::{
        metrics::Recorder as _,
        swarm::{ConnectionId, SwarmEvent},
    };
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = libp2p::metrics::Metrics::new(&mut registry);
    let address: libp2p::Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    metrics.record(&SwarmEvent::<()>::IncomingConnection {
        connection_id: ConnectionId::new_unchecked(1),
        local_addr: address.clone(),
        send_back_addr: address.clone(),
    });
    metrics
        .record(&SwarmEvent::<()>::NewListenAddr { listener_id: libp2p::core::transport::ListenerId::next(), address });
    metrics.record(&SwarmEvent::<()>::Dialing { peer_id: None, connection_id: ConnectionId::new_unchecked(2) });
    registry
}

/// Families by name: type and samples. Fails on whatever the format forbids.
fn parse(text: &str) -> BTreeMap<String, (String, Vec<String>)> {
    assert!(text.ends_with('\n'));
    let mut families = BTreeMap::<String, (String, Vec<String>)>::new();
    let (mut help, mut family) = (None, String::new());
    let mut series = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').unwrap();
            assert!(!words.is_empty(), "{name} has no help");
            help = Some(name.to_string());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(help.take().as_deref(), Some(name), "HELP and TYPE come together");
            assert!(["counter", "gauge", "histogram", "untyped"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            family = name.to_string();
            let before = families.insert(family.clone(), (kind.to_string(), Vec::new()));
            assert!(before.is_none(), "{name} twice");
        } else {
            assert!(!line.starts_with('#') && !line.is_empty(), "{line}");
            let (id, value) = line.rsplit_once(' ').unwrap();
            assert!(value == "+Inf" || value.parse::<f64>().is_ok(), "{line}");
            assert!(id.starts_with(&family), "{line} stands under {family}");
            assert!(series.insert(id.to_string()), "{id} twice");
            families.get_mut(&family).expect("a TYPE stands before every sample").1.push(line.to_string());
        }
    }
    families
}

#[test]
fn the_scrape_holds_the_catalogue_and_no_more_labels() {
    let (state, _stats) = busy();
    let text = state.metrics.scrape();
    let families = parse(&text);
    for (name, kind) in [
        ("quelea_build_info", "gauge"),
        ("quelea_uptime_seconds", "gauge"),
        ("process_cpu_seconds_total", "counter"),
        ("process_resident_memory_bytes", "gauge"),
        ("process_open_fds", "gauge"),
        ("process_max_fds", "gauge"),
        ("process_start_time_seconds", "gauge"),
        ("quelea_ready", "gauge"),
        ("quelea_peers_connected", "gauge"),
        ("quelea_peers_known", "gauge"),
        ("quelea_rendezvous_registrations", "gauge"),
        ("quelea_lines_closed_total", "counter"),
        ("quelea_relay_reservations", "gauge"),
        ("quelea_hole_punch_attempts_total", "counter"),
        ("quelea_peers_banned", "gauge"),
        ("quelea_rate_limited_total", "counter"),
        ("quelea_trace_spans_dropped_total", "counter"),
        ("quelea_trace_spans_exported_total", "counter"),
        ("quelea_reachability", "gauge"),
        ("quelea_rpc_requests_total", "counter"),
        ("quelea_exchange_records_total", "counter"),
        ("quelea_exchange_bytes_total", "counter"),
        ("quelea_inference_requests_total", "counter"),
        ("quelea_tokens_processed_total", "counter"),
        ("quelea_speculated_tokens_total", "counter"),
        ("gen_ai_server_request_duration_seconds", "histogram"),
        ("gen_ai_server_time_to_first_token_seconds", "histogram"),
        ("gen_ai_server_time_per_output_token_seconds", "histogram"),
        ("quelea_pipeline_stage_duration_seconds", "histogram"),
        ("quelea_pipeline_hop_seconds", "histogram"),
        ("quelea_model_layers_hosted", "gauge"),
        ("quelea_kv_cache_free_pages", "gauge"),
        ("quelea_kv_cache_capacity_pages", "gauge"),
        ("quelea_kv_cache_used_bytes", "gauge"),
        ("quelea_kv_cache_capacity_bytes", "gauge"),
        ("quelea_kv_cache_evicted_sessions_total", "counter"),
        ("quelea_prefix_cache_bytes", "gauge"),
        ("quelea_prefix_cache_lookups_total", "counter"),
        ("quelea_prefix_cache_hits_total", "counter"),
        ("quelea_stage_batches_total", "counter"),
        ("quelea_stage_rows_total", "counter"),
        ("quelea_inference_queue_depth", "gauge"),
        ("quelea_inference_running", "gauge"),
        ("quelea_inference_queue_wait_seconds", "histogram"),
        ("quelea_pipeline_stages", "histogram"),
        ("quelea_storage_bytes", "gauge"),
        ("quelea_storage_limit_bytes", "gauge"),
        ("quelea_channel_full_total", "counter"),
        ("quelea_shard_streams", "gauge"),
        ("quelea_shard_sessions", "gauge"),
        ("quelea_shard_results", "gauge"),
        ("quelea_shard_links", "gauge"),
        ("quelea_failover_log_bytes", "gauge"),
        ("quelea_failover_log_disk_bytes", "gauge"),
        ("quelea_failover_recoveries_total", "counter"),
        ("quelea_failover_replayed_rows_total", "counter"),
        ("quelea_commitments_total", "counter"),
        ("quelea_audits_total", "counter"),
        ("quelea_audits_skipped_total", "counter"),
        ("quelea_ledger_entries_total", "counter"),
        ("quelea_ledger_disputes_total", "counter"),
        ("quelea_ledger_limit_refusals_total", "counter"),
        ("quelea_ledger_self_recovered_total", "counter"),
        ("quelea_ledger_defaults_total", "counter"),
        ("quelea_ledger_overdue_credits", "gauge"),
        ("quelea_ledger_owed_credits", "gauge"),
        ("quelea_ledger_owing_credits", "gauge"),
        ("quelea_ledger_pool_credits", "gauge"),
        ("quelea_ledger_exposure_limit_credits", "gauge"),
        ("quelea_local_llm_state", "gauge"),
        ("quelea_local_llm_restarts_total", "counter"),
        ("quelea_db_commit_duration_seconds", "histogram"),
        ("quelea_dht_records", "gauge"),
        ("quelea_front_requests_total", "counter"),
        ("quelea_front_closed_total", "counter"),
        ("quelea_front_handshakes_failed_total", "counter"),
        ("quelea_front_lines", "gauge"),
        ("quelea_front_certificate_end_seconds", "gauge"),
        ("quelea_gossip_messages_total", "counter"),
        ("quelea_gossip_neighbours", "gauge"),
        ("quelea_gossip_penalised", "gauge"),
        ("quelea_gossip_announced", "gauge"),
        ("quelea_gossip_dedup_ids", "gauge"),
        ("quelea_gossip_dedup_bytes", "gauge"),
        ("quelea_gossip_dedup_fill_ratio", "gauge"),
        ("quelea_gossip_dedup_false_positive_ratio", "gauge"),
        ("quelea_dht_republish_total", "counter"),
        ("quelea_dht_refused_total", "counter"),
        ("quelea_tasks_panicked_total", "counter"),
        ("libp2p_swarm_connections_incoming_total", "counter"),
        ("libp2p_swarm_dial_attempt_total", "counter"),
    ] {
        let (found, samples) = families.get(name).unwrap_or_else(|| panic!("{name} is missing in\n{text}"));
        assert_eq!(found, kind, "{name}");
        assert!(!samples.is_empty(), "{name}");
    }
    for line in [
        r#"quelea_build_info{commit="unknown",features="",rustc="unknown",version="1.2.3"} 1"#,
        r#"quelea_peers_connected{path="direct",transport="quic"} 3"#,
        r#"quelea_peers_connected{path="relayed",transport="quic"} 0"#,
        r#"quelea_reachability{state="private"} 1"#,
        r#"quelea_reachability{state="unknown"} 0"#,
        r#"quelea_rpc_requests_total{direction="inbound",protocol="announce",result="timeout"} 1"#,
        r#"quelea_inference_requests_total{model="0123456789ab",outcome="no_route"} 1"#,
        r#"quelea_tokens_processed_total{model="0123456789ab",type="output"} 42"#,
        // 2 s over the 20 tokens after the first
        r#"gen_ai_server_time_per_output_token_seconds_sum{gen_ai_operation_name="chat",gen_ai_request_model="0123456789ab"} 0.1"#,
        r#"gen_ai_server_request_duration_seconds_bucket{error_type="QUE-2001",gen_ai_operation_name="text_completion",gen_ai_request_model="0123456789ab",le="2.56"} 1"#,
        r#"gen_ai_server_time_to_first_token_seconds_count{gen_ai_operation_name="chat",gen_ai_request_model="0123456789ab"} 1"#,
        r#"quelea_pipeline_stage_duration_seconds_bucket{phase="decode",where="local",le="0.001"} 1"#,
        r#"quelea_kv_cache_used_bytes{model="0123456789ab"} 4096"#,
        r#"quelea_prefix_cache_hits_total{model="0123456789ab"} 3"#,
        r#"quelea_stage_rows_total{model="0123456789ab"} 640"#,
        r#"quelea_channel_full_total{name="commands"} 0"#,
        r#"quelea_channel_full_total{name="db"} 1"#,
        r#"quelea_ready{check="storage"} 0"#,
        r#"quelea_ready{check="shutdown"} 1"#,
        "quelea_tasks_panicked_total 1",
        "libp2p_swarm_dial_attempt_total 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
}

#[test]
fn a_first_scrape_without_libp2p_is_whole_too() {
    let (state, _stats) = state(Duration::from_secs(60));
    let families = parse(&state.metrics.scrape());
    assert!(families.contains_key("quelea_tasks_panicked_total"));
    assert!(!families.keys().any(|name| name.starts_with("libp2p_")));
}

#[test]
fn counters_never_go_back_between_scrapes() {
    let (state, stats) = busy();
    let first = parse(&state.metrics.scrape());
    state.metrics.channel_full("db");
    stats.peers_known.set(13);
    let second = parse(&state.metrics.scrape());
    assert_eq!(first["quelea_channel_full_total"].1[1], "quelea_channel_full_total{name=\"db\"} 1");
    assert_eq!(second["quelea_channel_full_total"].1[1], "quelea_channel_full_total{name=\"db\"} 2");
    assert_eq!(second["quelea_peers_known"].1, ["quelea_peers_known 13"]);
}

#[test]
fn promtool_finds_nothing() {
    let (state, _stats) = busy();
    let text = state.metrics.scrape();
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match spawned {
        Ok(promtool) => promtool,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: promtool is not installed");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

struct Server {
    address: SocketAddr,
    state: TelemetryState,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

fn client() -> reqwest::Client {
    crate::http::local().build().unwrap()
}

impl Server {
    async fn start(state: TelemetryState) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = serve(listener, state.clone(), async {
            let _ = stopped.await;
        });
        Self { address, state, stop: Some(stop), task: tokio::spawn(served) }
    }

    async fn get(&self, path: &str) -> (u16, String, String) {
        let answer = client().get(format!("http://{}{path}", self.address)).send().await.unwrap();
        let kind = answer.headers().get("content-type").map(|v| v.to_str().unwrap().to_string()).unwrap_or_default();
        (answer.status().as_u16(), kind, answer.text().await.unwrap())
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(10), self.task).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_routes_follow_the_nodes_life() {
    let (state, _stats) = busy();
    let server = Server::start(state).await;
    assert_eq!(server.get("/livez").await, (200, "text/plain; charset=utf-8".into(), "ok".into()));
    let (status, _, text) = server.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(text.contains("[-]storage starting: "), "{text}");

    for component in Component::ALL {
        server.state.health.set(component, Status::Ok, "fine");
    }
    assert_eq!(server.get("/readyz").await.2, "ok");
    let (status, _, text) = server.get("/readyz?verbose").await;
    assert_eq!(status, 200);
    assert_eq!(
        text,
        "[+]storage ok\n[+]swarm ok\n[+]listeners ok\n[+]bootstrap ok\n[+]model ok\n[+]shutdown ok\nreadyz check passed\n"
    );
    let (status, kind, body) = server.get("/health").await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, kind.as_str()), (200, "application/json"));
    assert_eq!(body["schema"], "quelea.health/v1");
    assert_eq!(body["status"], "ok");
    assert_eq!(body["components"]["storage"]["status"], "ok");
    assert_eq!(body["components"]["model"]["message"], "fine");

    let (status, kind, text) = server.get("/metrics").await;
    assert_eq!((status, kind.as_str()), (200, CONTENT_TYPE));
    parse(&text);
    assert!(text.contains("quelea_ready{check=\"storage\"} 1\n"));

    server.state.health.set(Component::Storage, Status::Failed, "the disk is full");
    let (status, _, body) = server.get("/health").await;
    assert_eq!(status, 503);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&body).unwrap()["status"], "failed");
    server.state.health.set(Component::Storage, Status::Ok, "");

    server.state.health.drain();
    assert_eq!(server.get("/readyz").await.0, 503);
    assert_eq!(server.get("/livez").await.0, 200, "a draining node is not to be killed");
    assert_eq!(server.get("/nothing").await.0, 404);
    let posted = client().post(format!("http://{}/metrics", server.address)).send().await.unwrap();
    assert_eq!(posted.status(), 405);
    server.stop().await;
}

#[tokio::test]
async fn a_loop_that_does_not_turn_is_not_live() {
    let (state, _stats) = state(Duration::ZERO);
    let server = Server::start(state).await;
    assert_eq!(server.get("/livez").await.0, 503);
    let (status, _, text) = server.get("/readyz").await;
    assert!(status == 503 && text.contains("[-]swarm failed: the event loop has not turned for "), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn garbage_and_half_requests_do_not_keep_it_from_serving_or_ending() {
    let (state, _stats) = busy();
    let server = Server::start(state).await;
    let mut held = Vec::new();
    for start in ["", "GET /metrics HT", "GET /livez HTTP/1.1\r\nHost: x\r\n"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        held.push(stream);
    }
    for garbage in [&[0u8; 64][..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[b'a'; 100_000]] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // the server may hang up before it has read everything
        let _ = stream.write_all(garbage).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(server.get("/livez").await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_for_a_place() {
    let (state, _stats) = busy();
    let server = Server::start(state).await;
    let mut held = Vec::new();
    for _ in 0..server::CONNECTIONS_MAX {
        // Answered once, so that the server holds it, then kept.
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        held.push(stream);
    }
    let mut waiting = Box::pin(server.get("/livez"));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "served beyond the bound: {early:?}");
    drop(held);
    assert_eq!(waiting.await.0, 200);
    server.stop().await;
}
