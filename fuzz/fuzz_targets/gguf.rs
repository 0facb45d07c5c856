//! A model file from anywhere.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quelea_engine::{
    Gguf, Hparams, Manifest,
    template::ChatTemplate,
    tokenizer::{EncodeOptions, Tokenizer},
};

/// Layers that a file of fuzzing's size can describe and a run should hash.
const MAX_LAYERS: usize = 64;

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::from_vec(data.to_vec()) else { return };
    let keys: Vec<String> = gguf.metadata().map(|(key, _)| key.to_owned()).collect();
    for key in &keys {
        let _ = (gguf.get(key), gguf.get_str(key), gguf.get_u32(key), gguf.get_u64(key), gguf.get_f32(key));
        let _ = (gguf.get_bool(key), gguf.bool_array(key), gguf.f32_array(key));
        let _ = (gguf.str_array(key), gguf.u32_array(key), gguf.i32_array(key));
    }
    let mut bytes = 0;
    for tensor in gguf.tensors() {
        assert_eq!(tensor.bytes(), tensor.data.len() as u64);
        assert!(tensor.shape.iter().all(|dim| *dim > 0) && (1..=4).contains(&tensor.shape.len()));
        bytes += tensor.data.len();
        tensor.not_finite();
        tensor.forget_pages();
        let rows = tensor.shape.first().copied().unwrap_or(0);
        for part in [tensor.rows(0..rows), tensor.rows(rows - 1..rows), tensor.rows(rows..usize::MAX)] {
            assert!(part.is_ok_and(|part| part.data.len() <= tensor.data.len()) || tensor.shape.len() != 2 || rows > 0);
        }
        if let Ok(expert) = tensor.expert(rows - 1) {
            assert_eq!(expert.data.len() * rows, tensor.data.len());
        }
        assert_eq!(gguf.handle(tensor.name).unwrap().view().data.len(), tensor.data.len());
    }
    assert!(bytes <= data.len(), "tensors share no bytes");
    if Hparams::from_gguf(&gguf).is_ok_and(|hparams| hparams.n_layers <= MAX_LAYERS)
        && let Ok(manifest) = Manifest::from_gguf(&gguf)
    {
        assert_eq!(manifest.layers.len(), manifest.n_layers);
        manifest.id();
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) {
        let ids = tokenizer.encode("Hello <|im_start|>, wörld 123\n", EncodeOptions { parse_special: true, add_bos: true });
        assert!(ids.iter().all(|id| tokenizer.piece(*id).is_some()));
        let _ = ChatTemplate::from_gguf(&gguf, &tokenizer);
    }
});
