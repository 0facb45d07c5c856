//! A model with a long context that takes its time, and texts for it.

use std::{path::PathBuf, sync::OnceLock};

use quelea_engine::{
    quantize::Mix,
    synth::{ModelShape, SHAPES, Spelling, Synth},
};

/// Six small layers of random weights: its answers are nonsense, but always the same.
pub fn long_model() -> &'static str {
    static FILE: OnceLock<String> = OnceLock::new();
    FILE.get_or_init(|| {
        let shape = ModelShape {
            name: "long",
            layers: 6,
            hidden: 64,
            feed_forward: 128,
            heads: 2,
            kv_heads: 1,
            head_dim: 32,
            vocab: 512,
            context: 16_384,
            spelling: Spelling::Pieces,
            ..*SHAPES.iter().find(|shape| shape.architecture == "llama" && shape.experts.is_none()).unwrap()
        };
        let model = Synth::new(&shape, Mix::Q8_0, 7).unwrap();
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("long-{}.gguf", std::process::id()));
        model.write_file(&path, true, |_| Ok(())).unwrap();
        path.to_str().unwrap().to_owned()
    })
}

/// A prompt of about this many of its tokens: digits are a token each.
pub fn digits(tokens: usize) -> String {
    (100_000..).flat_map(|n: usize| n.to_string().into_bytes()).take(tokens).map(char::from).collect()
}
