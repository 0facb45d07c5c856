//! Times candle's own quantised Llama on a GGUF file and prints what `quelea bench model --json` prints.
//!
//! `candle FILE --pp 128,512 --tg 64 --repeat 3`, with `RAYON_NUM_THREADS` set.

use std::{collections::HashMap, error::Error, fs::File, io::BufReader, time::Instant};

use candle_core::{Device, Tensor, quantized::gguf_file};
use candle_transformers::models::quantized_llama::ModelWeights;
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Positions and values of the options, all of which take one.
struct Arguments {
    file: String,
    options: HashMap<String, String>,
}

impl Arguments {
    fn parse() -> Result<Self> {
        let mut args = std::env::args().skip(1);
        let file = args.next().ok_or("a GGUF file is wanted")?;
        let mut options = HashMap::new();
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| format!("{name} wants a value"))?;
            options.insert(name, value);
        }
        Ok(Self { file, options })
    }

    fn numbers(&self, name: &str) -> Result<Vec<usize>> {
        let list = self.options.get(name).map_or("", String::as_str);
        Ok(list.split(',').filter(|part| !part.is_empty()).map(str::parse).collect::<std::result::Result<_, _>>()?)
    }
}

/// Tokens of no meaning, the same every time.
fn tokens(n: usize, vocab: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + 13) % vocab) as u32).collect()
}

/// Seconds that a prompt takes, its last position's logits included.
fn prompt(model: &mut ModelWeights, ids: &[u32]) -> Result<f64> {
    let start = Instant::now();
    let logits = model.forward(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?, 0)?;
    logits.to_vec2::<f32>()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Seconds that single tokens take, one after another from an empty context.
fn decode(model: &mut ModelWeights, ids: &[u32]) -> Result<f64> {
    let start = Instant::now();
    for (position, id) in ids.iter().enumerate() {
        let logits = model.forward(&Tensor::new(&[*id], &Device::Cpu)?.unsqueeze(0)?, position)?;
        logits.to_vec2::<f32>()?;
    }
    Ok(start.elapsed().as_secs_f64())
}

fn summary(test: &str, mut samples: Vec<f64>) -> Value {
    let in_order = samples.clone();
    samples.sort_by(f64::total_cmp);
    let median = samples[samples.len() / 2];
    json!({"test": test, "tokens_per_second": {"median": median, "best": samples.last(), "samples": in_order}})
}

fn main() -> Result<()> {
    let arguments = Arguments::parse()?;
    let mut reader = BufReader::new(File::open(&arguments.file)?);
    let content = gguf_file::Content::read(&mut reader)?;
    let vocab = content.metadata.get("tokenizer.ggml.tokens").ok_or("the file has no tokens")?.to_vec()?.len();
    let mut model = ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)?;
    let repeat = arguments.numbers("--repeat")?.first().copied().unwrap_or(3).max(1);
    prompt(&mut model, &tokens(16, vocab))?;
    decode(&mut model, &tokens(1, vocab))?;
    let mut results = Vec::new();
    for n in arguments.numbers("--pp")? {
        let ids = tokens(n, vocab);
        let samples = (0..repeat).map(|_| Ok(n as f64 / prompt(&mut model, &ids)?)).collect::<Result<_>>()?;
        results.push(summary(&format!("pp{n}"), samples));
    }
    for n in arguments.numbers("--tg")? {
        let ids = tokens(n, vocab);
        let samples = (0..repeat).map(|_| Ok(n as f64 / decode(&mut model, &ids)?)).collect::<Result<_>>()?;
        results.push(summary(&format!("tg{n}"), samples));
    }
    let threads = candle_core::utils::get_num_threads();
    println!("{}", json!({"model": arguments.file, "engine": "candle 0.11", "threads": threads, "results": results}));
    Ok(())
}
