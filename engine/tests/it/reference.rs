//! Our log-probabilities beside another engine's and beside the true function of the weights.

use std::{fs, path::Path};

use quelea_engine::{Chain, Device, Gguf, StageOptions, log_probs};
use serde_json::Value;

use crate::support::models;

/// Greedy steps that the reference took for each prompt. It left some out of its list.
const STEPS: usize = 24;
/// Two runs of one function in `f32` differ by less than this; two that took different tokens by far more.
const SAME: f64 = 1e-3;

/// What an engine gave for one prompt.
pub struct Case {
    pub prompt: String,
    pub ids: Vec<u32>,
    pub first: Vec<f32>,
    /// Token taken, and the log-probabilities of the likeliest, at each step.
    pub steps: Vec<(u32, Vec<(usize, f32)>)>,
}

pub fn cases(path: &Path) -> Vec<Case> {
    let json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let number = |v: &Value| v.as_f64().unwrap() as f32;
    let id = |v: &Value| u32::try_from(v.as_u64().unwrap()).unwrap();
    let list = |v: &Value| v.as_array().unwrap().clone();
    let step = |step: &Value| {
        let top = list(&step["top"]).iter().map(|pair| (id(&pair[0]) as usize, number(&pair[1]))).collect();
        (id(&step["id"]), top)
    };
    let case = |case: &Value| Case {
        prompt: case["prompt"].as_str().unwrap().to_owned(),
        ids: list(&case["prompt_ids"]).iter().map(id).collect(),
        first: list(&case["first_step_logprobs"]).iter().map(number).collect(),
        steps: list(&case["greedy"]).iter().map(step).collect(),
    };
    list(&json["cases"]).iter().map(case).collect()
}

pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / a.len() as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Walks the greedy path of the true function and returns the mean absolute difference over all its steps' likeliest
/// tokens. A step that was left out of the list is the likeliest token of ours, the end of text being banned.
fn along_path(chain: &mut Chain, case: &Case, first: &[f32], end_of_text: usize) -> f64 {
    let mut left_out = STEPS - case.steps.len();
    let mut ours = first.to_vec();
    let (mut sum, mut count) = (0.0, 0.0);
    for (token, top) in &case.steps {
        let step = loop {
            let difference: f64 = top.iter().map(|(id, theirs)| f64::from((ours[*id] - theirs).abs())).sum();
            if difference < SAME * top.len() as f64 || left_out == 0 {
                break difference;
            }
            left_out -= 1;
            ours[end_of_text] = f32::NEG_INFINITY;
            let best = (0..ours.len()).max_by(|a, b| ours[*a].total_cmp(&ours[*b])).unwrap();
            ours = log_probs(&chain.advance(&[best as u32]).unwrap());
        };
        sum += step;
        count += top.len() as f64;
        ours = log_probs(&chain.advance(&[*token]).unwrap());
    }
    sum / count
}

#[test]
fn the_exact_kernels_are_no_further_from_the_truth_than_the_reference() {
    distances(Device::Cpu);
}

#[test]
fn candle_computes_the_truth_to_rounding() {
    distances(Device::Candle);
}

fn distances(device: Device) {
    let Some(dir) = models() else { return };
    let entries = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.filter_map(|name| Some(name.strip_suffix(".gguf")?.to_owned())).collect();
    names.sort();
    assert!(!names.is_empty());
    println!("model            ref-true  ours-true   ours-ref  path-true");
    for name in &names {
        let file = |suffix: &str| dir.join(format!("{name}.{suffix}"));
        let gguf = Gguf::open(file("gguf")).unwrap();
        let end_of_text = gguf.get_u32("tokenizer.ggml.eos_token_id").unwrap() as usize;
        let options = StageOptions { device, ..StageOptions::default() };
        let mut chain = Chain::load_with(&gguf, &[], &options).unwrap();
        let reference = cases(&file("ref.json"));
        // The true function of F32 weights is what the reference computes, to rounding.
        let exact = !file("true.json").exists();
        let truth = cases(&file(if exact { "ref.json" } else { "true.json" }));

        let (mut theirs, mut ours, mut apart, mut path) = (vec![], vec![], vec![], vec![]);
        for (reference, truth) in reference.iter().zip(&truth) {
            assert_eq!(reference.ids, truth.ids);
            chain.truncate(0);
            let first = log_probs(&chain.advance(&truth.ids).unwrap());
            theirs.push(distance(&reference.first, &truth.first));
            ours.push(distance(&first, &truth.first));
            apart.push(distance(&first, &reference.first));
            // Only a computation that rounds and no more follows the reference's every step.
            if exact || device == Device::Candle {
                path.push(along_path(&mut chain, truth, &first, end_of_text));
            }
        }
        let worst = ours.iter().chain(&path).copied().fold(0.0, f64::max);
        let path = if path.is_empty() { f64::NAN } else { median(path) };
        let (theirs, ours, apart) = (median(theirs), median(ours), median(apart));
        println!("{name:<14} {theirs:>10.6} {ours:>10.6} {apart:>10.6} {path:>10.6}");
        assert!(exact || ours <= theirs, "{name}: {ours} from the truth, the reference {theirs}");
        let rounds_only = exact || device == Device::Candle;
        assert!(!rounds_only || worst <= SAME, "{name}: {worst}");
    }
}
