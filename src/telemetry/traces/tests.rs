use std::collections::HashSet;

use super::*;

fn asking(parent: Option<TraceParent>) -> Asking<'static> {
    Asking { operation: "chat", model: "demo", local: false, max_tokens: 4, temperature: 0.0, top_p: 1.0, parent }
}

fn parent(trace: u8, sampled: bool) -> TraceParent {
    TraceParent::new([trace; 16], [7; 8], sampled).unwrap()
}

/// Traces that are exported to a queue which the test holds.
fn exported(
    ratio: f64,
    parents_from: &[PeerId],
) -> (Traces, tokio::sync::mpsc::Receiver<opentelemetry_sdk::trace::SpanData>) {
    let traces = Traces::default();
    let spans = traces.inner.sink.fill();
    let rules = Rules { ratio, parents_from: parents_from.iter().copied().collect() };
    assert!(traces.inner.rules.set(rules).is_ok());
    (traces, spans)
}

#[test]
fn a_trace_is_kept_here_whether_it_is_exported_or_not() {
    let traces = Traces::default();
    let mut request = traces.request(&asking(None));
    request.of_model("chat", "demo", "abc");
    let within = request.within();
    within.start("pipeline.prefill").event("row");
    within.stage(&PeerId::random(), "0..2").fail("QUE-2001", "gone");
    assert_eq!(request.parent(), None, "peers are told of what is exported only");
    assert!(traces.recent()[0].error.is_none());
    request.fail("QUE-2001", "gone");
    drop(request);
    let [trace] = &traces.recent()[..] else { panic!("one trace") };
    assert_eq!((trace.name.as_str(), trace.spans, trace.exported), ("chat demo", 3, false));
    assert_eq!(trace.error.as_deref(), Some("QUE-2001"));
    let spans = traces.spans(&trace.trace_id).unwrap();
    assert_eq!(spans[0].name, "chat demo");
    assert!(spans[1..].iter().all(|span| span.parent_span_id.as_deref() == Some(&spans[0].span_id)));
    assert_eq!(spans.iter().filter(|span| span.error.is_some()).count(), 2);
    assert!(traces.spans("0").is_none() && traces.spans("nonsense").is_none());
}

#[test]
fn what_is_kept_is_bounded() {
    let traces = Traces::default();
    for _ in 0..recent::TRACES + 3 {
        drop(traces.request(&asking(None)));
    }
    let kept = traces.recent();
    assert_eq!(kept.len(), recent::TRACES);
    assert_eq!(kept.iter().map(|trace| &trace.trace_id).collect::<HashSet<_>>().len(), recent::TRACES);
    let request = traces.request(&asking(None));
    let within = request.within();
    (0..recent::SPANS + 5).for_each(|_| drop(within.start("pipeline.prefill")));
    drop(request);
    let newest = &traces.recent()[0];
    assert_eq!((newest.spans, newest.left_out), (recent::SPANS, 6));
}

#[test]
fn texts_of_others_are_cut_and_say_nothing_to_a_terminal() {
    assert_eq!(cut("a\u{1b}[31mb\n"), "a[31mb");
    assert_eq!(cut(&"ö".repeat(500)).len(), MAX_TEXT);
}

#[test]
fn a_caller_decides_whether_its_trace_is_exported() {
    let (traces, mut spans) = exported(0.0, &[]);
    assert!(traces.request(&asking(None)).parent().is_none());
    assert!(traces.request(&asking(Some(parent(3, false)))).parent().is_none());
    assert!(spans.try_recv().is_err());
    let request = traces.request(&asking(Some(parent(3, true))));
    assert_eq!(request.parent().map(|p| p.trace_id()), Some([3; 16]));
    drop(request);
    let span = spans.try_recv().unwrap();
    assert_eq!(span.parent_span_id, SpanId::from_bytes([7; 8]));
    assert!(span.parent_span_is_remote);
}

#[test]
fn a_stage_begins_a_trace_of_its_own_and_links() {
    let (friend, stranger, local) = (PeerId::random(), PeerId::random(), PeerId::random());
    let (traces, mut spans) = exported(0.0, &[friend]);
    let mut session = |of, trace| {
        drop(traces.session(of, local, trace).unwrap());
        spans.try_recv().ok()
    };
    let linked = session(stranger, Some(parent(3, true))).unwrap();
    assert_ne!(linked.span_context.trace_id(), TraceId::from_bytes([3; 16]));
    assert_eq!(linked.parent_span_id, SpanId::INVALID);
    assert_eq!(linked.links[0].span_context.trace_id(), TraceId::from_bytes([3; 16]));
    let adopted = session(friend, Some(parent(4, true))).unwrap();
    assert_eq!(adopted.span_context.trace_id(), TraceId::from_bytes([4; 16]));
    assert_eq!((adopted.parent_span_id, adopted.links.len()), (SpanId::from_bytes([7; 8]), 0));
    // Nobody asked for it, and none are drawn.
    assert!(session(stranger, Some(parent(3, false))).is_none());
    assert!(session(friend, Some(parent(3, false))).is_none());
    assert!(session(stranger, None).is_none());
    assert!(session(local, None).is_none());
}

#[test]
fn strangers_cause_a_bounded_number_of_spans_whatever_they_say() {
    let (traces, mut spans) = exported(1.0, &[]);
    let local = PeerId::random();
    let one = PeerId::random();
    let took = |peer| (0..200).filter(|_| traces.session(peer, local, Some(parent(3, true))).is_ok()).count();
    let of_one = took(one);
    assert!((16..32).contains(&of_one), "{of_one}");
    let of_many: usize = (0..50).map(|_| took(PeerId::random())).sum();
    assert!((48..110).contains(&of_many), "{of_many}");
    assert_eq!(std::iter::from_fn(|| spans.try_recv().ok()).count(), of_one + of_many);
    // Its own requests are not theirs.
    assert!((0..200).all(|_| traces.session(local, local, Some(parent(3, true))).is_ok()));
}

#[test]
fn nothing_is_made_at_a_stage_while_traces_stay_here() {
    let traces = Traces::default();
    let peer = PeerId::random();
    assert!(traces.session(peer, PeerId::random(), Some(parent(3, true))).unwrap().0.is_none());
}

#[test]
fn a_full_queue_costs_spans_and_nothing_else() {
    let (traces, mut spans) = exported(1.0, &[]);
    for _ in 0..3000 {
        drop(traces.request(&asking(None)));
    }
    let waited = std::iter::from_fn(|| spans.try_recv().ok()).count();
    assert_eq!((waited, traces.sink().dropped()), (2048, 952));
    drop(spans);
    drop(traces.request(&asking(None)));
    assert_eq!(traces.sink().dropped(), 953);
}
