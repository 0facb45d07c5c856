//! Where the layers are cut must not change a bit.

use std::fs;

use quelea_engine::{Chain, Gguf, Hparams, PREFILL_CHUNK, Span, Stage, logits_for};

use crate::support::{LAYERS, ids, model, models, noise, sparse};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Logits after a prompt longer than a chunk, and after each of some tokens decoded on top.
fn run(gguf: &Gguf, cuts: &[usize], prompt: &[u32]) -> Vec<Vec<u32>> {
    let mut chain = Chain::load(gguf, cuts).unwrap();
    let mut out = vec![bits(&chain.advance(prompt).unwrap())];
    for id in &prompt[..4] {
        out.push(bits(&chain.advance(&[*id]).unwrap()));
    }
    assert_eq!(chain.len(), prompt.len() + 4);
    out
}

#[test]
fn every_cut_gives_the_same_bits() {
    let expert = |expert: usize, i: usize| 0.3 * noise(1000 + expert as u64, i);
    let sparse = sparse("qwen3moe", true, expert);
    for (arch, model) in
        ["llama", "qwen2", "qwen3"].map(|arch| (arch, model(arch))).into_iter().chain([("qwen3moe", sparse)])
    {
        let gguf = model.open();
        let prompt = ids(PREFILL_CHUNK + 9);
        let whole = run(&gguf, &[], &prompt);
        for cuts in [vec![1], vec![2], vec![1, 2]] {
            assert_eq!(run(&gguf, &cuts, &prompt), whole, "{arch} cut at {cuts:?}");
        }
    }
}

#[test]
fn every_cut_of_quantised_models_gives_the_same_bits() {
    let Some(dir) = models() else { return };
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let gguf = Gguf::open(&path).unwrap();
        let prompt: Vec<u32> = ids(PREFILL_CHUNK + 9).iter().map(|id| id * 7).collect();
        let whole = run(&gguf, &[], &prompt);
        let layers = Hparams::from_gguf(&gguf).unwrap().n_layers;
        for cut in 1..layers {
            assert_eq!(run(&gguf, &[cut], &prompt), whole, "{} cut at {cut}", path.display());
        }
        let all: Vec<usize> = (1..layers).collect();
        assert_eq!(run(&gguf, &all, &prompt), whole, "{} cut everywhere", path.display());
    }
}

#[test]
fn a_trimmed_session_goes_on_as_if_the_rows_had_never_been() {
    let gguf = model("qwen3").open();
    let prompt = ids(20);
    let mut chain = Chain::load(&gguf, &[1]).unwrap();
    chain.advance(&prompt).unwrap();
    let first = chain.advance(&[1]).unwrap();
    chain.advance(&[2]).unwrap();
    chain.truncate(20);
    assert_eq!(bits(&chain.advance(&[1]).unwrap()), bits(&first));
    chain.truncate(0);
    assert!(chain.is_empty());
    chain.advance(&prompt).unwrap();
    assert_eq!(bits(&chain.advance(&[1]).unwrap()), bits(&first));
}

#[test]
fn a_span_reads_only_its_own_tensors() {
    let whole = Stage::load(&model("llama").open(), Span::whole(LAYERS)).unwrap();
    let parts: Vec<Stage> = [Span::ends(), Span::layers(0..1), Span::layers(1..LAYERS)]
        .map(|span| Stage::load(&model("llama").open(), span).unwrap())
        .into();
    // Tied embeddings count once where embedding and head are together.
    assert_eq!(parts.iter().map(Stage::weight_bytes).sum::<u64>(), whole.weight_bytes());
    let gguf = model("llama").edit(4, |tensor| tensor.name = "blk.0.lost".to_owned()).open();
    assert_eq!(gguf.tensors().nth(4).unwrap().name, "blk.0.lost");
    let error = Stage::load(&gguf, Span::layers(0..1)).unwrap_err().to_string();
    assert_eq!(error, "tensor 'blk.0.attn_k.weight' is missing");
    Stage::load(&gguf, Span::layers(1..LAYERS)).unwrap();
}

#[test]
fn cuts_that_are_none_are_refused() {
    let gguf = model("llama").open();
    for cuts in [vec![0], vec![LAYERS], vec![2, 1], vec![1, 1], vec![usize::MAX]] {
        let error = logits_for(&gguf, &[1], &cuts).unwrap_err().to_string();
        assert!(error.contains("do not split 3 layers"), "{error}");
    }
    assert_eq!(logits_for(&gguf, &[], &[]).unwrap_err().to_string(), "there are no tokens to run");
    let sum: f64 = logits_for(&gguf, &[1, 2], &[1]).unwrap().iter().map(|l| f64::from(*l).exp()).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
}

/// A chain may enter or leave a stage inside its span: such a session computes what a stage of just those layers does.
#[test]
fn a_session_that_runs_some_of_a_stages_layers_is_the_smaller_stage() {
    let gguf = model("qwen2").open();
    let whole = Stage::load(&gguf, Span::layers(0..LAYERS)).unwrap();
    let rows: Vec<f32> = (0..5 * whole.hidden()).map(|i| noise(11, i)).collect();
    for layers in [0..1, 1..2, 1..LAYERS, 0..LAYERS] {
        let small = Stage::load(&gguf, Span::layers(layers.clone())).unwrap();
        let expected = small.forward(&mut small.new_cache(), 0, &rows).unwrap();
        let mut cache = whole.new_cache_over(layers.clone(), 8);
        assert_eq!(bits(&whole.forward(&mut cache, 0, &rows).unwrap()), bits(&expected), "{layers:?}");
    }
}
