//! Plans for models and peers that are not there: what a swarm would do with a model of 70 billion parameters.

use std::{collections::HashMap, time::Duration};

use libp2p::{PeerId, identity::Keypair};
use quelea_announce::Ends;
use quelea_engine::{
    KV_PAGE_ROWS,
    quantize::Mix,
    runner::pages_for,
    synth::{ModelShape, Synth},
};
use quelea_wire::SpanRange;
use serde::Deserialize;

use super::{
    Candidate, Links, Local, PlanReport, Query, Source, nanos_for,
    placement::{self, Holding},
    plan as choose, report,
};
use crate::inference::types::{PlanRequest, RequestProfile};

/// The part of a peer's memory that is kept for keys and values.
const KV_SHARE: u64 = 4;

/// Most peers of a file: each is a candidate of the search.
const MAX_PEERS: usize = 1000;

/// A prompt's rows share the reading of weights: a chunk of them costs about as many times a row.
const PREFILL_SHARE: u64 = 4;

/// A file of imagined peers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    peers: Vec<Peer>,
    /// Round trips between peers, in milliseconds; half of the way through the asker where none is given.
    #[serde(default)]
    between: Vec<(String, String, f64)>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Peer {
    name: String,
    /// Gigabytes for weights, keys and values.
    memory_gb: f64,
    /// Gigabytes of weights that it reads in a second, which bounds how fast it decodes.
    read_gb_s: f64,
    /// Round trip to the asker, in milliseconds.
    rtt_ms: f64,
    #[serde(default = "hundred")]
    mbit_s: f64,
    /// The layers that it holds; placed where the fewest others are when left out.
    #[serde(default)]
    layers: Option<String>,
    /// Micro-credits per 1,000 layer-rows.
    #[serde(default)]
    price: u64,
}

fn hundred() -> f64 {
    100.0
}

/// Plans over the peers of `file`, as one who holds nothing.
///
/// # Errors
/// In words, when the file is no list of peers, or one of them makes no sense.
pub(crate) fn plan(shape: &ModelShape, mix: Mix, file: &str, asked: &PlanRequest) -> Result<PlanReport, String> {
    let file: File = serde_json::from_str(file).map_err(|e| e.to_string())?;
    if file.peers.len() > MAX_PEERS {
        return Err(format!("at most {MAX_PEERS} peers are planned over, and these are {}", file.peers.len()));
    }
    let model = Synth::new(shape, mix, 0).map_err(|e| e.to_string())?;
    let layer_bytes = model.layer_bytes(shape.layers);
    let layers = u16::try_from(shape.layers).map_err(|e| e.to_string())?;
    let mean = layer_bytes.iter().sum::<u64>() / u64::from(layers).max(1);
    let kv_row = u64::try_from(2 * shape.kv_heads * shape.head_dim * size_of::<f32>()).unwrap_or(u64::MAX);
    let here = named("quelea/here");
    let mut links = Links::new(here);
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut names = HashMap::new();
    let mut holdings: Vec<Holding> = Vec::new();
    for peer in &file.peers {
        let id = named(&peer.name);
        if names.insert(id.to_string(), peer.name.clone()).is_some() {
            return Err(format!("two peers are called {:?}", peer.name));
        }
        let figures = [
            ("memory_gb", peer.memory_gb),
            ("read_gb_s", peer.read_gb_s),
            ("mbit_s", peer.mbit_s),
            ("rtt_ms", peer.rtt_ms.max(f64::MIN_POSITIVE)),
        ];
        if let Some((what, _)) = figures.iter().find(|(_, n)| !(n.is_finite() && *n > 0.0 && *n < 1e9)) {
            return Err(format!("{}: {what} must be more than nothing", peer.name));
        }
        let memory = whole(peer.memory_gb * 1e9);
        let span = match &peer.layers {
            Some(text) => Some(text.parse::<SpanRange>().map_err(|e| format!("{}: {e}", peer.name))?),
            None => placement::thinnest(&layer_bytes, &holdings, memory - memory / KV_SHARE, 0),
        };
        let Some(span) = span else {
            return Err(format!("{}: not one layer fits in {} GB", peer.name, peer.memory_gb));
        };
        holdings.push(Holding { span, weight: 1 });
        let weights: u64 = layer_bytes.get(span.as_usize()).unwrap_or_default().iter().sum();
        let page = kv_row.saturating_mul(KV_PAGE_ROWS as u64).saturating_mul(u64::from(span.count())).max(1);
        let decode_ns = nanos_for(mean, whole(peer.read_gb_s * 1e9)).max(1);
        let rtt = Duration::from_secs_f64(peer.rtt_ms / 1e3);
        links.set_rtt(id, rtt);
        candidates.push(Candidate {
            peer: id,
            span,
            addrs: Vec::new(),
            rtt: Some(rtt),
            decode_ns,
            prefill_ns: (decode_ns / PREFILL_SHARE).max(1),
            source: Source::Assumed,
            queue_ns: 0,
            bytes_per_s: whole(peer.mbit_s * 1e6 / 8.0),
            risk_ppm: 0,
            price_decode: peer.price,
            price_prefill: peer.price,
            kv_pages_free: u32::try_from(memory.saturating_sub(weights) / page).unwrap_or(u32::MAX),
            kv_is_old: false,
            shunned: false,
            ends: Ends::default(),
        });
    }
    for (a, b, rtt_ms) in &file.between {
        let (a, b) = (named(a), named(b));
        if !(rtt_ms.is_finite() && (0.0..1e6).contains(rtt_ms)) || a == b {
            return Err("between: two peers and a round trip in milliseconds".into());
        }
        for (from, to) in [(a, b), (b, a)] {
            links.set_measured(from, to, whole(rtt_ms * 1e6 / 2.0));
        }
    }
    let span = SpanRange::new(0, layers).map_err(|e| e.to_string())?;
    let value_bytes = match asked.profile {
        RequestProfile::ExactBf16 => size_of::<u16>(),
        RequestProfile::Own => size_of::<f32>(),
    };
    let row_bytes = u64::try_from(shape.hidden * value_bytes).unwrap_or(u64::MAX);
    let rows = asked.prompt_tokens.saturating_add(u64::from(asked.max_tokens)).min(u64::from(shape.context));
    let query = Query {
        prompt_rows: asked.prompt_tokens,
        answer_rows: u64::from(asked.max_tokens),
        kv_pages: pages_for(u32::try_from(rows).unwrap_or(u32::MAX)),
        objective: asked.objective,
        layer_bytes,
        ..Query::new(here, span, row_bytes)
    };
    let result = choose(&query, &candidates, &links, None::<Local>, Vec::new(), true);
    let label = format!("{} {}", shape.name, mix.name());
    let mut planned = report::report(&label, &label, &query, result, None);
    planned.rename(&names);
    Ok(planned)
}

/// A peer id for a name, always the same.
fn named(name: &str) -> PeerId {
    let seed = *blake3::hash(name.as_bytes()).as_bytes();
    Keypair::ed25519_from_bytes(seed).map_or_else(|_| PeerId::random(), |key| key.public().to_peer_id())
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn whole(n: f64) -> u64 {
    n as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::Objective;

    fn asked() -> PlanRequest {
        PlanRequest {
            model: String::new(),
            prompt_tokens: 512,
            max_tokens: 256,
            objective: Objective::Latency,
            timeout_ms: 0,
            thin: None,
            private: 0,
            profile: RequestProfile::Own,
        }
    }

    fn shape() -> &'static ModelShape {
        ModelShape::named("llama-3.1-70b").unwrap()
    }

    #[test]
    fn a_model_of_seventy_billion_parameters_over_six_home_machines() {
        let peers: Vec<String> =
            (0..6).map(|n| format!(r#"{{"name":"home-{n}","memory_gb":12,"read_gb_s":40,"rtt_ms":20}}"#)).collect();
        let text = format!(r#"{{"peers":[{}]}}"#, peers.join(","));
        let report = plan(shape(), Mix::Q4_K_M, &text, &asked()).unwrap();
        assert!((38..44).contains(&(report.weight_bytes / 1_000_000_000)), "{}", report.weight_bytes);
        let chosen = report.chosen.unwrap();
        assert!(chosen.hops.iter().all(|hop| hop.peer.starts_with("home-")), "{chosen:?}");
        assert!(chosen.hops.len() >= 5);
        // 40 GB at 40 GB/s and six trips of 10 ms: about one token a second, a little less.
        assert!((0.7..1.0).contains(&chosen.tokens_per_s), "{chosen:?}");
    }

    #[test]
    fn what_is_missing_is_told_in_layers_and_bytes() {
        let text = r#"{"peers":[{"name":"a","memory_gb":24,"read_gb_s":60,"rtt_ms":5,"layers":"0..34"},
            {"name":"b","memory_gb":24,"read_gb_s":60,"rtt_ms":5,"layers":"40..74"}]}"#;
        let report = plan(shape(), Mix::Q4_K_M, text, &asked()).unwrap();
        let missing = report.missing.unwrap();
        assert_eq!(missing.layers, ["34..40", "74..80"]);
        assert!((4_000_000_000..8_000_000_000).contains(&missing.bytes), "{}", missing.bytes);
        assert!(missing.message.contains("a (0..34), b (40..74)"), "{}", missing.message);
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        for (text, word) in [
            ("[]", "invalid"),
            (r#"{"peers":[{"name":"a","memory_gb":0,"read_gb_s":1,"rtt_ms":1}]}"#, "memory_gb"),
            (r#"{"peers":[{"name":"a","memory_gb":0.1,"read_gb_s":1,"rtt_ms":1}]}"#, "not one layer"),
            (r#"{"peers":[{"name":"a","memory_gb":9,"read_gb_s":1,"rtt_ms":1,"cpu":3}]}"#, "cpu"),
        ] {
            let error = plan(shape(), Mix::Q4_K_M, text, &asked()).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
