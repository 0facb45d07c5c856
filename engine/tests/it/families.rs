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

/// The mean absolute difference to `truth` over a prompt's first step, and over the tokens listed along its path.
fn walk(chain: &mut Chain, truth: &Case) -> [f64; 2] {
    chain.truncate(0);
    let first = log_probs(&chain.advance(&truth.ids).unwrap());
    let start = distance(&first, &truth.first);
    let (mut sum, mut count) = (0.0, 0.0);
    let mut ours = first;
    for (step, (token, top)) in truth.steps.iter().enumerate() {
        sum += top.iter().map(|(id, theirs)| f64::from((ours[*id] - theirs).abs())).sum::<f64>();
        count += top.len() as f64;
        if step + 1 < truth.steps.len() {
            ours = log_probs(&chain.advance(&[*token]).unwrap());
        }
    }
    [start, sum / count]
}

/// The same of the reference itself, which walked the same path.
fn theirs(reference: &Case, truth: &Case) -> [f64; 2] {
    let (mut sum, mut count) = (0.0, 0.0);
    for ((token, theirs), (true_token, truth)) in reference.steps.iter().zip(&truth.steps) {
        assert_eq!(token, true_token);
        for ((id, theirs), (true_id, truth)) in theirs.iter().zip(truth) {
            assert_eq!(id, true_id);
            sum += f64::from((theirs - truth).abs());
            count += 1.0;
        }
    }
    [distance(&reference.first, &truth.first), sum / count]
}

/// Over all prompts, first steps and paths.
fn mean(values: &[[f64; 2]]) -> f64 {
    values.iter().flatten().sum::<f64>() / (2 * values.len()) as f64
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
            let (ours, theirs) = (mean(&ours), mean(&theirs));
            println!("{name:<20} {:<10} {theirs:.6}   {ours:.6}  {worst:.6}", engine.name);
            if (exact || engine.rounds_only) && worst > SAME {
                wrong.push(format!("{name} on {}: {worst} from the truth", engine.name));
            }
            if !exact && ours > 1.1 * theirs {
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
