//! What a stage accepts, what it refuses, and details of the families that the fixtures do not have.

use quelea_engine::{Chain, Gguf, MAX_ROWS, Span, Stage, StageError, log_probs};

use crate::support::{HIDDEN, LAYERS, VOCAB, ids, model, noise};

fn last_logits(gguf: &Gguf) -> Vec<f32> {
    Chain::load(gguf, &[]).unwrap().advance(&ids(7)).unwrap()
}

fn far_apart(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-3)
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
}

#[test]
fn an_output_matrix_equal_to_the_embedding_is_the_tied_model() {
    let tied = model("llama");
    let untied = tied.clone().tensor("output.weight", &[VOCAB, HIDDEN], |i| noise(1, i));
    assert_eq!(last_logits(&tied.open()), last_logits(&untied.open()));
    let other = tied.tensor("output.weight", &[VOCAB, HIDDEN], |i| noise(1000, i));
    assert!(far_apart(&last_logits(&other.open()), &last_logits(&untied.open())));
}

#[test]
fn rope_factors_and_linear_scaling_divide_the_frequencies() {
    let plain = last_logits(&model("llama").open());
    let ones = model("llama").tensor("rope_freqs.weight", &[4], |_| 1.0);
    assert_eq!(last_logits(&ones.open()), plain);
    let halved = model("llama").tensor("rope_freqs.weight", &[4], |_| 2.0);
    let halved = last_logits(&halved.open());
    assert!(far_apart(&halved, &plain));
    let linear = model("llama").str("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 2.0);
    assert!(close(&last_logits(&linear.open()), &halved));
    // As llama.cpp reads it, a factor of zero is none, and none is one.
    let none = model("llama").str("llama.rope.scaling.type", "linear");
    assert_eq!(last_logits(&none.clone().open()), plain);
    assert_eq!(last_logits(&none.f32("llama.rope.scaling.factor", 0.0).open()), plain);
    let dynamic = model("llama").str("llama.rope.scaling.type", "dynamic").open();
    let error = Stage::load(&dynamic, Span::ends()).unwrap_err().to_string();
    let expected = "'dynamic' is not supported; supported are none, linear, yarn, longrope";
    assert_eq!(error, format!("metadata key 'llama.rope.scaling.type': {expected}"));
}

/// Positions count only by their differences: shifting all of them changes nothing, but for rounding.
#[test]
fn attention_sees_relative_positions() {
    let gguf = model("qwen3").open();
    let stage = Stage::load(&gguf, Span::layers(0..1)).unwrap();
    let rows: Vec<f32> = (0..3 * HIDDEN).map(|i| noise(7, i)).collect();
    let mut cache = stage.new_cache();
    let once = stage.forward(&mut cache, 0, &rows).unwrap();
    let mut cache = stage.new_cache();
    let mut one_by_one = Vec::new();
    for (pos, row) in rows.chunks(HIDDEN).enumerate() {
        one_by_one.extend(stage.forward(&mut cache, pos, row).unwrap());
    }
    assert!(close(&once, &one_by_one), "a causal chunk equals its rows one after another");
}

#[test]
fn unknown_families_name_those_that_are_known() {
    let gguf = model("mamba").open();
    let error = Stage::load(&gguf, Span::ends()).unwrap_err().to_string();
    let known = "llama, mistral3, qwen2, qwen3, qwen3moe, phi3, gemma2, gemma3";
    assert_eq!(error, format!("architecture 'mamba' is not supported; supported are {known}"));
}

#[test]
fn broken_hyperparameters_are_refused_by_name() {
    for (broken, expected) in [
        (model("llama").u32("llama.attention.key_length", 0), "'llama.attention.key_length': 0 is not between 1"),
        (model("llama").u32("llama.rope.dimension_count", 7), "'llama.rope.dimension_count': 7 of 8"),
        (model("qwen2").u32("qwen2.expert_count", 8), "'qwen2.expert_count': qwen2 has no mixtures of experts"),
        (model("llama").u32("split.count", 2), "'split.count': the model is split into 2 files"),
        (model("llama").u32("llama.rope.freq_base", 10_000), "found U32(10000), expected a float"),
        (
            model("llama").edit(0, |t| t.dims = vec![64, 24]),
            "'token_embd.weight' has shape [24, 64], expected [24, 32]",
        ),
        (
            model("llama").edit(3, |t| t.dims = vec![16, 64]),
            "'blk.0.attn_q.weight' has shape [64, 16], expected [32, 32]",
        ),
        (model("llama").edit(3, |t| t.dtype = 26), "'blk.0.attn_q.weight' has type I32"),
        (model("qwen2").edit(4, |t| t.name = "x".to_owned()), "tensor 'x' is not part of this model family"),
    ] {
        let error = Stage::load(&broken.open(), Span::whole(LAYERS)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\nshould say\n{expected}");
        assert_eq!(Stage::check_file(&broken.open()).unwrap_err().to_string(), error, "seen without loading");
    }
    let error = Stage::load(&model("llama").open(), Span::layers(1..9)).unwrap_err().to_string();
    assert_eq!(error, "layers 1..9 are not a span of a model with 3 layers");
}

#[test]
fn a_stage_refuses_what_it_cannot_compute_and_keeps_its_cache() {
    let gguf = model("llama").open();
    let stage = Stage::load(&gguf, Span::layers(0..LAYERS)).unwrap();
    let mut cache = stage.new_cache_for(40);
    let rows: Vec<f32> = (0..2 * HIDDEN).map(|i| noise(3, i)).collect();
    let reference = stage.forward(&mut cache, 0, &rows).unwrap();
    assert_eq!(reference.len(), rows.len());
    assert_eq!(cache.len(), 2);

    let mut nan = rows.clone();
    nan[HIDDEN + 3] = f32::NAN;
    let mut infinite = rows.clone();
    infinite[5] = f32::INFINITY;
    let many = vec![0.5; (MAX_ROWS + 1) * HIDDEN];
    let long = vec![0.5; 39 * HIDDEN];
    let mut refuse = |pos, rows: &[f32]| {
        let error = stage.forward(&mut cache, pos, rows).unwrap_err();
        assert_eq!(cache.len(), 2);
        error
    };
    assert!(matches!(refuse(2, &nan), StageError::NotFinite { row: 1, column: 3 }));
    assert!(matches!(refuse(2, &infinite), StageError::NotFinite { row: 0, column: 5 }));
    assert!(matches!(refuse(2, &rows[1..]), StageError::Width { width: HIDDEN, .. }));
    assert!(matches!(refuse(2, &many), StageError::TooManyRows { max: MAX_ROWS, .. }));
    assert!(matches!(refuse(3, &rows), StageError::Position { expected: 2, found: 3 }));
    assert!(matches!(refuse(2, &long), StageError::Context { end: 41, limit: 40 }));
    assert!(matches!(stage.embed(&[1]).unwrap_err(), StageError::NotLoaded { part: "embedding" }));
    assert!(matches!(stage.logits(&rows[..HIDDEN]).unwrap_err(), StageError::NotLoaded { part: "head" }));

    // After all that the session goes on as if nothing had been tried.
    let next = stage.forward(&mut cache, 2, &rows).unwrap();
    let mut fresh = stage.new_cache();
    stage.forward(&mut fresh, 0, &rows).unwrap();
    assert_eq!(stage.forward(&mut fresh, 2, &rows).unwrap(), next);

    let ends = Stage::load(&gguf, Span::ends()).unwrap();
    assert!(matches!(ends.forward(&mut fresh, 4, &rows).unwrap_err(), StageError::ForeignCache));
    assert!(matches!(ends.embed(&[VOCAB as u32]).unwrap_err(), StageError::Token { id: 48, vocab: VOCAB }));
    assert_eq!(ends.embed(&[0, 5]).unwrap().len(), 2 * HIDDEN);
    assert_eq!(log_probs(&ends.logits(&rows[..HIDDEN]).unwrap()).len(), VOCAB);
    assert_eq!(ends.logits(&rows).unwrap().len(), 2 * VOCAB);
    assert!(matches!(ends.logits(&rows[1..]).unwrap_err(), StageError::Width { .. }));
}

/// Weights that overflow: refused on the way out, and the layers that had taken the rows forget them.
#[test]
fn a_result_that_is_not_finite_is_refused() {
    // Tensor 10 is the second layer's first norm.
    let gguf = model("llama").fill(10, f32::MAX).open();
    assert_eq!(gguf.tensors().nth(10).unwrap().name, "blk.1.attn_norm.weight");
    let stage = Stage::load(&gguf, Span::layers(0..2)).unwrap();
    let mut cache = stage.new_cache();
    let row: Vec<f32> = (0..HIDDEN).map(|i| noise(3, i)).collect();
    for _ in 0..2 {
        assert!(matches!(stage.forward(&mut cache, 0, &row).unwrap_err(), StageError::NotFinite { row: 0, .. }));
        assert!(cache.is_empty());
    }
}

/// Bytes embedded in a program stand at any address.
#[test]
fn unaligned_bytes_load_as_well() {
    let file = model("qwen3").build();
    let expected = last_logits(&Gguf::from_vec(file.clone()).unwrap());
    for shift in 1..8 {
        let moved: &'static [u8] = Vec::leak([vec![0; shift], file.clone()].concat());
        assert_eq!(last_logits(&Gguf::from_static(&moved[shift..]).unwrap()), expected);
    }
}
