//! How tokens are drawn.

use std::ops::RangeInclusive;

use clap::Args;
use quelea_engine::sampler::LOGIT_BIAS;

/// Where the flags of drawing stand in `--help`.
const SAMPLING: &str = "Drawing tokens, stages in this order";

/// How tokens are drawn.
#[derive(Debug, Args)]
#[command(next_help_heading = SAMPLING)]
pub(crate) struct SamplingArgs {
    /// Make tokens of prompt and answer less likely to come again; 1 is off
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = parse_repeat_penalty)]
    pub(crate) repeat_penalty: f32,
    /// Make tokens of the answer less likely to come again; 0 is off
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = parse_penalty)]
    pub(crate) presence_penalty: f32,
    /// The same, for each time that the token is there; 0 is off
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = parse_penalty)]
    pub(crate) frequency_penalty: f32,
    /// How many of the last tokens the penalties look at; -1 for all
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(i64).range(-1..))]
    pub(crate) repeat_last_n: i64,
    /// Add to a token's logit, like 42=-1.5; -100 bans it, 100 allows no other (repeatable)
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias, value_delimiter = ',')]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Divide the logits; 0 takes the likeliest token each time
    #[arg(long, default_value_t = 0.0, value_parser = parse_temperature)]
    pub(crate) temperature: f32,
    /// Draw among this many likeliest tokens; 0 for all
    #[arg(long, default_value_t = 40)]
    pub(crate) top_k: usize,
    /// Draw among the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 0.95, value_parser = parse_probability)]
    pub(crate) top_p: f32,
    /// Draw only tokens at least this share as likely as the likeliest; 0 for all
    #[arg(long, default_value_t = 0.0, value_parser = parse_probability)]
    pub(crate) min_p: f32,
    /// Seed of the draws; the same seed gives the same text
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    in_range(text, 0.0..=100.0)
}

fn parse_probability(text: &str) -> Result<f32, String> {
    in_range(text, 0.0..=1.0)
}

fn parse_penalty(text: &str) -> Result<f32, String> {
    in_range(text, -2.0..=2.0)
}

fn parse_repeat_penalty(text: &str) -> Result<f32, String> {
    in_range(text, 0.01..=100.0)
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once('=').ok_or("expected a token id and its bias, like 42=-1.5")?;
    let id = id.parse().map_err(|_| format!("{id:?} is not a token id"))?;
    Ok((id, in_range(bias, LOGIT_BIAS)?))
}

fn in_range(text: &str, range: RangeInclusive<f32>) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if range.contains(&value) => Ok(value),
        _ => Err(format!("expected a number between {} and {}", range.start(), range.end())),
    }
}
