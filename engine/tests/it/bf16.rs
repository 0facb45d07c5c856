//! The profile `exact-bf16`: half the bytes between layers, and still one function however the layers are cut.

use std::path::Path;

use quelea_engine::{Cache, Gguf, Isa, PREFILL_CHUNK, Span, Stage, StageOptions, round_to_bf16};

const LAYERS: usize = 6;

/// BLAKE3 of every bit of the logits of [`run`]: a change of the function is another profile.
const FROZEN: &str = "bbb75e0c82f9a33f06946f1d648af7d99303be8968eddd225ecd45e3909150df";

fn model() -> Gguf {
    Gguf::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/quelea-demo-q8_0.gguf")).unwrap()
}

/// All bits of the logits after each of some tokens, through stages cut at `cuts`, in chunks of `chunk`; what is between
/// stages is cut to bf16's bits, as on the wire.
fn run(gguf: &Gguf, isa: Isa, cuts: &[usize], chunk: usize, rounds: bool) -> Vec<u32> {
    let options = StageOptions { isa: Some(isa), ..StageOptions::default() };
    let load = |span| Stage::load_with(gguf, span, &options).unwrap();
    let ends = load(Span::ends());
    let bounds: Vec<usize> = [0].into_iter().chain(cuts.iter().copied()).chain([LAYERS]).collect();
    let stages: Vec<Stage> = bounds.windows(2).map(|at| load(Span::layers(at[0]..at[1]))).collect();
    let new = |stage: &Stage| if rounds { stage.new_cache().rounding() } else { stage.new_cache() };
    let mut caches: Vec<Cache> = stages.iter().map(new).collect();
    let ids: Vec<u32> = (0..u32::try_from(PREFILL_CHUNK).unwrap() + 9).map(|i| (i * 37 + 5) % 512).collect();
    let (mut all, mut pos) = (Vec::new(), 0);
    for ids in ids.chunks(chunk) {
        let mut rows = ends.embed(ids).unwrap();
        if rounds {
            round_to_bf16(&mut rows);
        }
        for (stage, cache) in stages.iter().zip(&mut caches) {
            rows = stage.forward(cache, pos, &rows).unwrap();
            if rounds {
                assert!(rows.iter().all(|value| value.to_bits() & 0xffff == 0), "what is handed on fits bf16");
            }
        }
        all.extend(ends.logits(&rows).unwrap().into_iter().map(f32::to_bits));
        pos += ids.len();
    }
    all
}

#[test]
fn every_cut_chunk_and_path_gives_the_frozen_bits() {
    let gguf = model();
    let whole = run(&gguf, Isa::Scalar, &[], PREFILL_CHUNK, true);
    let hash = blake3::hash(&whole.iter().flat_map(|bits| bits.to_le_bytes()).collect::<Vec<_>>()).to_hex();
    for isa in Isa::available() {
        for (cuts, chunk) in
            [(&[][..], 7), (&[1], PREFILL_CHUNK), (&[2], 1), (&[1, 3], 7), (&[1, 2, 3, 4, 5], PREFILL_CHUNK)]
        {
            assert!(run(&gguf, isa, cuts, chunk, true) == whole, "{isa} cut at {cuts:?}, chunks of {chunk}");
        }
    }
    assert!(run(&gguf, Isa::best(), &[], PREFILL_CHUNK, false) != whole, "it is another function than exact");
    assert_eq!(hash.as_str(), FROZEN);
}

#[test]
fn sessions_that_round_and_sessions_that_do_not_share_a_stage() {
    let gguf = model();
    let (ends, stage) =
        (Stage::load(&gguf, Span::ends()).unwrap(), Stage::load(&gguf, Span::layers(0..LAYERS)).unwrap());
    let rows = ends.embed(&[3, 5, 8]).unwrap();
    let alone = |mut cache: Cache| stage.forward(&mut cache, 0, &rows).unwrap();
    let expected = [alone(stage.new_cache()), alone(stage.new_cache().rounding())];
    let (mut plain, mut rounding) = (stage.new_cache(), stage.new_cache().rounding());
    let mut segments = [&mut plain, &mut rounding].map(|cache| quelea_engine::Segment { cache, pos: 0, rows: &rows });
    let together: Vec<Vec<f32>> = stage.forward_batch(&mut segments).into_iter().map(Result::unwrap).collect();
    assert_eq!(together, expected);
    assert_ne!(expected[0], expected[1]);
}
