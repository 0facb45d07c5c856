//! `quelea model`.

use std::path::PathBuf;

use clap::Subcommand;

use super::{CoverageArgs, LogitsArgs, PullArgs, values::parse_size};
use crate::cli::make::{QuantizeArgs, SynthArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// What a GGUF file holds: id, family, layers, sizes
    #[command(after_help = "Examples:\n  quelea model show model.gguf\n  quelea model show demo --json")]
    Show {
        /// A GGUF file, a folder of safetensors, or 'demo'; @MIX behind it quantises it, as in folder@q8_0
        file: String,
    },
    /// Who holds which layers of a model in the swarm, as bars
    Coverage(Box<CoverageArgs>),
    /// Token ids of a text
    #[command(
        after_help = "Examples:\n  quelea model tokenize model.gguf --text 'Hello' --json\n  quelea model tokenize vocab.gguf --special --text '<|im_start|>user'"
    )]
    Tokenize {
        /// A GGUF file (a vocabulary alone will do), a folder of safetensors with its tokenizer.json, or 'demo'
        file: String,
        /// The text
        #[arg(long)]
        text: String,
        /// Parse special tokens, and add BOS if the file asks for it
        #[arg(long)]
        special: bool,
    },
    /// Log-probabilities of the next token
    #[command(
        after_help = "Examples:\n  quelea model logits model.gguf --text 'Hello' --top 5\n  quelea model logits model.gguf --ids 1,2,3 --split 1,3 --json"
    )]
    Logits(LogitsArgs),
    /// Write a GGUF of a real model's shape with random weights, for measuring speed
    #[command(after_help = SYNTH_EXAMPLES)]
    Synth(SynthArgs),
    /// Fetch a model: by id from peers (or some of its layers), from Hugging Face, a URL, or a file
    Pull(PullArgs),
    /// The models on this machine's disk, whole or in part
    #[command(after_help = "Examples:\n  quelea model list\n  quelea model list --json")]
    List,
    /// Remove a model from the disk
    #[command(after_help = "Examples:\n  quelea model rm 3f2a…\n  quelea model rm 3f2a… --json")]
    Rm {
        /// Its id, or the first digits of it
        id: String,
    },
    /// Copy a GGUF file into the store of models
    #[command(after_help = "Examples:\n  quelea model import model.gguf\n  quelea model import model.gguf --json")]
    Import {
        /// A GGUF file
        path: PathBuf,
        /// Disk that all models may take, like 200G
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        models_quota: Option<u64>,
    },
    /// What the daemon has loaded: layers, sessions, memory
    #[command(after_help = "Examples:\n  quelea model ps\n  quelea model ps --json")]
    Ps,
    /// Write a model of floats as a GGUF of smaller types
    #[command(after_help = QUANTIZE_EXAMPLES)]
    Quantize(QuantizeArgs),
}

const QUANTIZE_EXAMPLES: &str = "Examples:
  quelea model quantize model-f16.gguf -o model-q4_k_m.gguf
  quelea model quantize model-f16.gguf -o model-q8_0.gguf --type q8_0";

const SYNTH_EXAMPLES: &str = "Examples:
  quelea model synth --list
  quelea model synth tinyllama-1.1b -o tinyllama.gguf
  quelea model synth llama-3.2-1b -o llama.gguf --type q8_0 --seed 7";
