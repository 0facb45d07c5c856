//! What only some families or files have: experts, windows, scaled rotations; and what is refused because it would
//! change the function unnoticed.

use quelea_engine::{Chain, Device, Gguf, Hparams, Span, Stage, StageOptions, hparams::LongRope};

use crate::support::{Builder, HIDDEN, LAYERS, USED, ids, model, noise, sparse};

fn last_logits(gguf: &Gguf) -> Vec<f32> {
    Chain::load(gguf, &[]).unwrap().advance(&ids(7)).unwrap()
}

fn refusal(model: &Builder) -> String {
    Stage::load(&model.open(), Span::whole(LAYERS)).unwrap_err().to_string()
}

fn weight(expert: usize, i: usize) -> f32 {
    0.3 * noise(1000 + expert as u64, i)
}

#[test]
fn experts_in_one_tensor_and_in_many_are_the_same() {
    let joined = last_logits(&sparse("llama", true, weight).open());
    assert_eq!(last_logits(&sparse("llama", false, weight).open()), joined);
    let other = sparse("llama", true, |expert, i| weight(expert + 1, i));
    assert_ne!(last_logits(&other.open()), joined);
}

/// The router finds all experts equally good, and equals go to the lower numbers.
#[test]
fn experts_that_no_row_goes_to_are_never_read() {
    let clean = last_logits(&sparse("qwen3moe", true, weight).open());
    let unused = |expert: usize, i: usize| if expert >= USED { f32::NAN } else { weight(expert, i) };
    for joined in [true, false] {
        assert_eq!(last_logits(&sparse("qwen3moe", joined, unused).open()), clean);
    }
    // The files are not read where they are damaged; an expert that is used is.
    let used = |expert: usize, i: usize| if expert == 1 && i > 70 { f32::NAN } else { weight(expert, i) };
    for (joined, name) in [(true, "blk.0.ffn_gate_exps.weight"), (false, "blk.0.ffn_gate.1.weight")] {
        let mut chain = Chain::load(&sparse("qwen3moe", joined, used).open(), &[]).unwrap();
        for tried in 0..6 {
            let error = chain.advance(&ids(3)).unwrap_err().to_string();
            assert!(error.contains(&format!("layer 0, expert 1: tensor '{name}' has a NaN")), "{error}");
            assert_eq!(error.contains("tried 4 times"), tried >= 4, "{error}");
        }
    }
}

#[test]
fn broken_experts_are_refused_by_name() {
    let experts = || sparse("llama", true, weight);
    let index = |name: &str| experts().open().tensors().position(|tensor| tensor.name == name).unwrap();
    let at = index("blk.1.ffn_up_exps.weight");
    let shape = experts().edit(at, |tensor| tensor.dims = vec![32, 32, 8]);
    assert!(refusal(&shape).contains("'blk.1.ffn_up_exps.weight' has shape [8, 32, 32]"), "{}", refusal(&shape));
    let dtype = experts().edit(at, |tensor| tensor.dtype = 26);
    assert!(refusal(&dtype).contains("'blk.1.ffn_up_exps.weight' has type I32"), "{}", refusal(&dtype));
    let lost = experts().edit(at, |tensor| tensor.name = "blk.1.ffn_lost.weight".to_owned());
    assert_eq!(refusal(&lost), "tensor 'blk.1.ffn_up_exps.weight' is missing");
    let many = model("llama").u32("llama.expert_count", 4).u32("llama.expert_used_count", 5);
    assert!(refusal(&many).contains("'llama.expert_used_count': 5 of 4 experts"), "{}", refusal(&many));
    let endless = model("llama").u32("llama.expert_count", 1 << 30);
    assert!(refusal(&endless).contains("is not between 1 and 1024"), "{}", refusal(&endless));
    assert!(refusal(&model("qwen3moe")).contains("'qwen3moe.expert_count': there are none"));
}

/// A file may say what is computed anyway; anything else that changes the function is refused by its key's name.
#[test]
fn settings_that_are_not_computed_are_refused_by_name() {
    for (key, value) in [
        ("attention.clamp_kqv", 8.0f32),
        ("attention.max_alibi_bias", 8.0),
        ("attention.scale", 0.5),
        ("attention.temperature_scale", 0.1),
        ("attention.something_new", 1.0),
        ("rope.scaling.alpha", 1000.0),
        ("rope.freq_base_swa", 10.0),
        ("expert_weights_scale", 2.5),
        ("logit_scale", 0.5),
        ("residual_scale", 0.5),
        ("embedding_scale", 12.0),
        ("final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("swiglu_clamp_exp", 7.0),
    ] {
        let key = format!("llama.{key}");
        let error = refusal(&model("llama").f32(&key, value));
        assert!(error.starts_with(&format!("metadata key '{key}': it changes the model's function")), "{error}");
        Stage::load(&model("llama").f32(&key, 0.0).open(), Span::ends()).unwrap();
    }
    for key in ["expert_shared_count", "expert_gating_func", "expert_group_count", "attention.sliding_window"] {
        let key = format!("llama.{key}");
        let error = refusal(&model("llama").u32(&key, 2));
        assert!(error.starts_with(&format!("metadata key '{key}': ")), "{error}");
    }
    let sections = [4u32.to_le_bytes(), 1u32.to_le_bytes(), 0u32.to_le_bytes(), 2u32.to_le_bytes()].concat();
    let sections = model("qwen2").raw("qwen2.rope.dimension_sections", 9, &sections);
    assert!(refusal(&sections).contains("'qwen2.rope.dimension_sections': "), "{}", refusal(&sections));
    let harmless = model("llama")
        .u32("llama.attention.sliding_window", 4096)
        .u32("llama.expert_gating_func", 1)
        .f32("llama.expert_weights_scale", 1.0)
        .u32("llama.expert_shared_count", 0)
        .raw("llama.attention.causal", 7, &[1])
        .u32("llama.vocab_size", 48);
    assert_eq!(last_logits(&harmless.open()), last_logits(&model("llama").open()));
}

#[test]
fn tensors_that_are_not_computed_are_refused_by_name() {
    for name in ["blk.1.attn_sinks.weight", "blk.0.attn_q_norm.weight", "output.bias", "blk.x", "position_embd.weight"]
    {
        let more = model("llama").tensor(name, &[HIDDEN], |_| 0.5);
        assert_eq!(refusal(&more), format!("tensor '{name}' is not part of this model family as it is supported here"));
    }
    // Another span's layers are not this one's business.
    let more = model("llama").tensor("blk.2.attn_sinks.weight", &[HIDDEN], |_| 0.5).open();
    Stage::load(&more, Span::layers(0..2)).unwrap();
    let spare = model("llama").tensor("blk.1.attn_rot_embd.weight", &[4], |_| 0.5);
    assert_eq!(last_logits(&spare.open()), last_logits(&model("llama").open()));
}

#[test]
fn a_windows_pattern_is_a_list_or_a_period() {
    let gemma = |b: Builder| Hparams::from_gguf(&b.open()).unwrap().variant.window;
    let pattern = "gemma2.attention.sliding_window_pattern";
    let window = gemma(model("gemma2")).unwrap();
    assert_eq!((window.size, window.layers, window.rope), (4096, vec![true, false, true], None));
    let three = gemma(model("gemma2").u32("gemma2.attention.sliding_window", 16).u32(pattern, 3)).unwrap();
    assert_eq!((three.size, three.layers), (16, vec![true, true, false]));
    let list = |flags: &[u8]| {
        let count = (flags.len() as u64).to_le_bytes();
        model("gemma2").raw(pattern, 9, &[&7u32.to_le_bytes()[..], &count, flags].concat())
    };
    assert_eq!(gemma(list(&[0, 0, 1])).unwrap().layers, [false, false, true]);
    let error = Hparams::from_gguf(&list(&[0, 1]).open()).unwrap_err().to_string();
    assert_eq!(error, format!("metadata key '{pattern}': 2 entries for 3 layers"));
    assert_eq!(gemma(model("gemma3")), None);
    let local = gemma(model("gemma3").u32("gemma3.attention.sliding_window", 16)).unwrap();
    assert_eq!((local.layers, local.rope), (vec![true; 3], Some((10_000.0, 1.0))));
}

/// One function per model: the lists of LongRoPE are not switched by a session's length, and a temperature that sets in
/// after the original context ends the context there.
#[test]
fn what_depends_on_the_position_is_settled_for_the_model() {
    let original = "phi3.rope.scaling.original_context_length";
    let long = |context| {
        let lists = ["rope_factors_long.weight", "rope_factors_short.weight"];
        let b = lists.iter().fold(model("phi3"), |b, name| b.tensor(name, &[4], |_| 1.0));
        Hparams::from_gguf(&b.u32(original, context).open()).unwrap().variant.long_rope
    };
    assert_eq!((long(4096), long(512)), (Some(LongRope::Short), Some(LongRope::Long)));
    let plain = Hparams::from_gguf(&model("phi3").u32(original, 512).open()).unwrap();
    assert_eq!((plain.variant.long_rope, plain.context_length), (None, 4096));
    let warm = model("mistral3")
        .f32("mistral3.attention.temperature_scale", 0.1)
        .u32("mistral3.rope.scaling.original_context_length", 1024);
    assert_eq!(Hparams::from_gguf(&warm.open()).unwrap().context_length, 1024);
    let named = model("llama").str("llama.rope.scaling.type", "longrope");
    assert_eq!(refusal(&named), "tensor 'rope_factors_short.weight' is missing");
}

#[cfg(not(any(feature = "cuda", feature = "metal")))]
#[test]
fn a_build_without_a_gpu_says_how_to_get_one() {
    let gguf = model("llama").open();
    for (device, name, feature) in [(Device::Cuda(0), "CUDA", "cuda"), (Device::Metal(0), "Metal", "metal")] {
        let options = StageOptions { device, ..StageOptions::default() };
        let error = Stage::load_with(&gguf, Span::ends(), &options).unwrap_err().to_string();
        assert_eq!(error, format!("backend: this build has no {name} support; build with `--features {feature}`"));
    }
}

/// Phi-3's files name a window's size, which the engine they are made for leaves out; a list of layers says that it is
/// meant. See docs/adr/0008.
#[test]
fn phi3s_window_is_left_out_unless_its_layers_are_listed() {
    let named = |size| model("phi3").u32("phi3.attention.sliding_window", size);
    assert_eq!(Hparams::from_gguf(&named(4).open()).unwrap().variant.window, None);
    let without = Chain::load(&model("phi3").open(), &[]).unwrap().advance(&ids(20)).unwrap();
    for size in [0, 4, 262_144] {
        assert_eq!(Chain::load(&named(size).open(), &[]).unwrap().advance(&ids(20)).unwrap(), without, "{size}");
    }
    let all = [&7u32.to_le_bytes()[..], &(LAYERS as u64).to_le_bytes(), &[1; LAYERS]].concat();
    let listed = named(4).raw("phi3.attention.sliding_window_pattern", 9, &all);
    assert_ne!(Chain::load(&listed.open(), &[]).unwrap().advance(&ids(20)).unwrap(), without);
}

/// The released Qwen2 models have them; a file without them is the same graph with none.
#[test]
fn biases_may_be_absent() {
    let biased = model("qwen2");
    let bias = |i: usize| biased.open().tensors().nth(i).is_some_and(|t| t.name.ends_with(".bias"));
    let zero = (0..biased.open().tensors().len()).filter(|i| bias(*i)).fold(biased.clone(), |b, i| b.fill(i, 0.0));
    let mut bare = biased.clone();
    bare.retain(|name| !name.ends_with(".bias"));
    assert_eq!(last_logits(&bare.open()), last_logits(&zero.open()));
    assert_ne!(last_logits(&bare.open()), last_logits(&biased.open()));
}
