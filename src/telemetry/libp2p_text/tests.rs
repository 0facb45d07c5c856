use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        exemplar::CounterWithExemplar,
        family::Family as LabelledFamily,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use super::*;

fn rewritten(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).unwrap();
    rewrite(&text, &HashSet::new())
}

#[test]
fn each_type_in_its_004_form() {
    let mut registry = Registry::default();
    let sub = registry.sub_registry_with_prefix("libp2p");

    let counter = Counter::<u64>::default();
    counter.inc();
    sub.register("sent", r"Sent to C:\peers", counter);
    let bytes = Counter::<u64>::default();
    bytes.inc_by(7);
    sub.register_with_unit("bandwidth", "Bandwidth.", Unit::Bytes, bytes);
    let exemplar = CounterWithExemplar::<Vec<(String, String)>>::default();
    exemplar.inc_by(3, Some(vec![("trace".into(), "a } b".into())]), None);
    sub.register("traced", "With an exemplar", exemplar);
    let gauge = Gauge::<i64>::default();
    gauge.set(-4);
    sub.register("depth", "", gauge);
    sub.register("build", "Build", Info::new(vec![("os", "linux")]));
    let histogram = Histogram::new(exponential_buckets(1.0, 10.0, 2));
    histogram.observe(2.0);
    sub.register_with_unit("rtt", "Round trip", Unit::Seconds, histogram);
    sub.register("never", "Never used", LabelledFamily::<Vec<(String, String)>, Counter>::default());

    assert_eq!(
        rewritten(&registry),
        r#"# HELP libp2p_bandwidth_bytes_total Bandwidth
# TYPE libp2p_bandwidth_bytes_total counter
libp2p_bandwidth_bytes_total 7
# HELP libp2p_build_info Build
# TYPE libp2p_build_info gauge
libp2p_build_info{os="linux"} 1
# HELP libp2p_depth depth
# TYPE libp2p_depth gauge
libp2p_depth -4
# HELP libp2p_rtt_seconds Round trip
# TYPE libp2p_rtt_seconds histogram
libp2p_rtt_seconds_sum 2.0
libp2p_rtt_seconds_count 1
libp2p_rtt_seconds_bucket{le="1.0"} 0
libp2p_rtt_seconds_bucket{le="10.0"} 1
libp2p_rtt_seconds_bucket{le="+Inf"} 1
# HELP libp2p_sent_total Sent to C:\\peers
# TYPE libp2p_sent_total counter
libp2p_sent_total 1
# HELP libp2p_traced_total With an exemplar
# TYPE libp2p_traced_total counter
libp2p_traced_total 3
"#
    );
}

#[test]
fn milliseconds_become_seconds() {
    let mut registry = Registry::default();
    let histogram = Histogram::new([0.0, 50.0]);
    histogram.observe(20.0);
    histogram.observe(230.0);
    registry.sub_registry_with_prefix("libp2p_gossipsub").register("heartbeat_duration", "Heartbeats", histogram);
    assert_eq!(
        rewritten(&registry),
        r#"# HELP libp2p_gossipsub_heartbeat_duration_seconds Heartbeats
# TYPE libp2p_gossipsub_heartbeat_duration_seconds histogram
libp2p_gossipsub_heartbeat_duration_seconds_sum 0.25
libp2p_gossipsub_heartbeat_duration_seconds_count 2
libp2p_gossipsub_heartbeat_duration_seconds_bucket{le="0"} 0
libp2p_gossipsub_heartbeat_duration_seconds_bucket{le="0.05"} 1
libp2p_gossipsub_heartbeat_duration_seconds_bucket{le="+Inf"} 2
"#
    );
}

#[test]
fn families_that_appear_twice_are_merged() {
    let text = "# HELP libp2p_a A.\n# TYPE libp2p_a gauge\nlibp2p_a{x=\"1\"} 1\n\
                # HELP libp2p_b B.\n# TYPE libp2p_b gauge\nlibp2p_b 5\n\
                # HELP libp2p_a Again.\n# TYPE libp2p_a gauge\nlibp2p_a{x=\"1\"} 9\nlibp2p_a{x=\"2\"} 2\n\
                # HELP libp2p_a Other.\n# TYPE libp2p_a histogram\nlibp2p_a_sum 1\n# EOF\n";
    assert_eq!(
        rewrite(text, &HashSet::new()),
        "# HELP libp2p_a A\n# TYPE libp2p_a gauge\nlibp2p_a{x=\"1\"} 1\nlibp2p_a{x=\"2\"} 2\n\
         # HELP libp2p_b B\n# TYPE libp2p_b gauge\nlibp2p_b 5\n"
    );
}

#[test]
fn a_family_of_ours_is_not_written_again() {
    let text = "# HELP libp2p_a A.\n# TYPE libp2p_a gauge\nlibp2p_a 1\n";
    assert_eq!(rewrite(text, &HashSet::from(["libp2p_a"])), "");
    assert_eq!(families("# HELP a b\n# TYPE a_total counter\na_total 1\n").collect::<Vec<_>>(), ["a_total"]);
}

#[test]
fn names_that_say_another_type_are_changed() {
    let text = "# HELP libp2p_peers_count P.\n# TYPE libp2p_peers_count gauge\nlibp2p_peers_count{a=\"b c\"} 1\n\
                # HELP misses Misses.\n# TYPE misses counter\nmisses_total 2\n\
                # HELP libp2p_odd O.\n# TYPE libp2p_odd unknown\nlibp2p_odd 3\n";
    assert_eq!(
        rewrite(text, &HashSet::new()),
        "# HELP libp2p_misses_total Misses\n# TYPE libp2p_misses_total counter\nlibp2p_misses_total 2\n\
         # HELP libp2p_odd O\n# TYPE libp2p_odd untyped\nlibp2p_odd 3\n\
         # HELP libp2p_peers P\n# TYPE libp2p_peers gauge\nlibp2p_peers{a=\"b c\"} 1\n"
    );
}

#[test]
fn labels_may_hold_anything() {
    let mut registry = Registry::default();
    let family = LabelledFamily::<Vec<(String, String)>, Counter>::default();
    for value in ["a\"b", "a\\", "} 1 # {", "line\nbreak", "ü"] {
        family.get_or_create(&vec![("l".to_string(), value.to_string())]).inc();
    }
    registry.register("odd", "Odd labels", family);
    let text = rewritten(&registry);
    assert_eq!(text.lines().count(), 2 + 5, "{text}");
    assert!(text.contains(r#"libp2p_odd_total{l="a\"b"} 1"#) && text.contains(r#"libp2p_odd_total{l="} 1 # {"} 1"#));
}

#[test]
fn series_that_peers_choose_are_bounded_and_always_the_same() {
    let mut registry = Registry::default();
    let family = LabelledFamily::<Vec<(String, String)>, Gauge>::default();
    for n in 0..SERIES_MAX * 3 {
        family.get_or_create(&vec![("form".to_string(), format!("/{n}"))]).set(1);
    }
    registry.register("listen_addresses", "Forms", family);
    let text = rewritten(&registry);
    assert_eq!(text.lines().count(), 2 + SERIES_MAX);
    assert_eq!(text, rewritten(&registry));
}

#[test]
fn garbage_is_left_out() {
    let text = "noise\n# TYPE\n# TYPE x\n# TYPE x stateset\nx 1\n# HELP y Help that\nbreaks its line.\n# TYPE y gauge\n\
                y{a=\"b 1\ny 1 2\nyy 2\ny nonsense\ny{} 3\n# EOF\n";
    assert_eq!(rewrite(text, &HashSet::new()), "# HELP libp2p_y Help that\n# TYPE libp2p_y gauge\nlibp2p_y 1\n");
}
