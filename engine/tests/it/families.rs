//! Every family, rope variant and quantisation on every backend, held against another engine's answers to the small
//! models in `tests/data/models`.

use std::{fs, path::PathBuf};

use quelea_engine::{Chain, ChainError, Device, Gguf, StageOptions, log_probs, tokenizer::Tokenizer};

use crate::reference::{Case, cases, distance};

/// Two careful computations of one function in `f32` differ by less than this; the files' five decimals by 0.000003.
const SAME: f64 = 1e-4;

/// How a model gets onto a backend.
struct Engine {
    name: &'static str,
    device: Device,
    /// It computes the function of the stored weights to rounding, quantised or not.
    rounds_only: bool,
}

const ENGINES: &[Engine] = &[
    Engine { name: "cpu", device: Device::Cpu, rounds_only: false },
    Engine { name: "candle", device: Device::Candle, rounds_only: true },
];

fn load(gguf: &Gguf, engine: &Engine) -> Result<Chain, ChainError> {
    Chain::load_with(gguf, &[], &StageOptions { device: engine.device, ..StageOptions::default() })
}

fn folder() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models").into()
}

/// The files' names without what follows the quantisation.
fn names() -> Vec<String> {
    let entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.filter_map(|name| Some(name.strip_suffix(".gguf")?.to_owned())).collect();
    names.sort();
    assert!(names.len() > 30);
    names
}

/// The mean absolute difference to `truth` at each position: over the vocabulary at the first, over the tokens listed
/// along its path at the others.
fn walk(chain: &mut Chain, truth: &Case) -> Vec<f64> {
    chain.truncate(0);
    let mut ours = log_probs(&chain.advance(&truth.ids).unwrap());
    let mut positions = vec![distance(&ours, &truth.first)];
    for (before, (_, top)) in truth.steps.iter().zip(truth.steps.iter().skip(1)) {
        ours = log_probs(&chain.advance(&[before.0]).unwrap());
        let apart: f64 = top.iter().map(|(id, theirs)| f64::from((ours[*id] - theirs).abs())).sum();
        positions.push(apart / top.len() as f64);
    }
    positions
}

/// The same of the reference itself, which walked the same path.
fn theirs(reference: &Case, truth: &Case) -> Vec<f64> {
    let mut positions = vec![distance(&reference.first, &truth.first)];
    for ((token, theirs), (true_token, truth)) in reference.steps.iter().zip(&truth.steps).skip(1) {
        assert_eq!(token, true_token);
        let (ids, theirs): (Vec<_>, Vec<_>) = theirs.iter().copied().unzip();
        let (true_ids, truth): (Vec<_>, Vec<_>) = truth.iter().copied().unzip();
        assert_eq!(ids, true_ids);
        positions.push(distance(&theirs, &truth));
    }
    positions
}

/// The mean over all positions of all prompts but the worst tenth: where two experts are nearly as good, rounding picks
/// one or the other, in any engine.
fn typical(positions: &[Vec<f64>]) -> f64 {
    let mut all: Vec<f64> = positions.iter().flatten().copied().collect();
    all.sort_by(f64::total_cmp);
    all.truncate(all.len() - all.len() / 10);
    all.iter().sum::<f64>() / all.len() as f64
}

#[test]
fn every_file_answers_as_the_reference_does() {
    let mut wrong = Vec::new();
    println!("{:<20} {:<10} ref-true  ours-true     worst", "model", "backend");
    for name in names() {
        let file = |suffix: &str| folder().join(format!("{name}.{suffix}"));
        let gguf = Gguf::open(file("gguf")).unwrap();
        let reference = cases(&file("ref.json"));
        let exact = name.ends_with("-F32");
        let truth = if exact { cases(&file("ref.json")) } else { cases(&file("true.json")) };
        let theirs: Vec<_> = reference.iter().zip(&truth).map(|(reference, truth)| theirs(reference, truth)).collect();
        for engine in ENGINES {
            let mut chain = match load(&gguf, engine) {
                Ok(chain) => chain,
                Err(error) => {
                    wrong.push(format!("{name} on {}: {error}", engine.name));
                    continue;
                }
            };
            let ours: Vec<_> = truth.iter().map(|truth| walk(&mut chain, truth)).collect();
            let worst = ours.iter().flatten().copied().fold(0.0, f64::max);
            let (ours, theirs) = (typical(&ours), typical(&theirs));
            println!("{name:<20} {:<10} {theirs:.6}   {ours:.6}  {worst:.6}", engine.name);
            if (exact || engine.rounds_only) && worst > SAME {
                wrong.push(format!("{name} on {}: {worst} from the truth", engine.name));
            }
            if !exact && ours > theirs {
                wrong.push(format!("{name} on {}: {ours} from the truth, the reference {theirs}", engine.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn prompts_have_the_same_tokens() {
    for name in names() {
        let gguf = Gguf::open(folder().join(format!("{name}.gguf"))).unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        for case in cases(&folder().join(format!("{name}.ref.json"))) {
            assert_eq!(tokenizer.encode_input(&case.prompt), case.ids, "{name}: {:?}", case.prompt);
        }
    }
}
