//! What an answer took and cost, with the names of lines that Ollama's `--verbose` has, so that scripts read both.

use std::fmt::Write as _;

use crate::{
    cli::infer::short,
    inference::{RouteHop, Summary},
};

/// A time as people read it.
fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 100.0 => format!("{s:.0}s"),
        s if s >= 1.0 => format!("{s:.2}s"),
        s => format!("{:.0}ms", s * 1e3),
    }
}

/// The layers of a stage as first and last: `0-7` for `0..8`.
fn layers(span: &str) -> String {
    let last = |end: &str| end.parse::<u32>().ok()?.checked_sub(1);
    match span.split_once("..").and_then(|(first, end)| Some((first, last(end)?))) {
        Some((first, last)) => format!("{first}-{last}"),
        None => span.to_owned(),
    }
}

pub(super) fn lines(route: &[RouteHop], summary: &Summary) -> String {
    let total = summary.total_s;
    let mut text = format!("total duration:       {}\n", time(total));
    let stages: Vec<String> =
        route.iter().map(|hop| format!("{}[{}]", short(&hop.peer), layers(&hop.layers))).collect();
    let hops = route.len().saturating_sub(1);
    let rtt = route.first().and_then(|hop| hop.rtt_ms).map_or_else(String::new, |ms| format!(", {ms:.1}ms rtt"));
    let (stages, of) = match route.len() {
        0 => ("self".to_owned(), String::new()),
        n => (stages.join(" → "), format!("   ({n} stage(s), {hops} hop(s){rtt})")),
    };
    let _ = writeln!(text, "route:                {stages}{of}");
    let prompt = summary.prompt_ids.len();
    let computed = prompt.saturating_sub(summary.cached_tokens);
    let took = if summary.prompt_tokens_per_s > 0.0 { computed as f64 / summary.prompt_tokens_per_s } else { 0.0 };
    let _ = writeln!(
        text,
        "prompt eval:          {prompt} token(s), {}, {:.1} tokens/s        ttft: {}",
        time(took),
        summary.prompt_tokens_per_s,
        time(summary.ttft_s)
    );
    let drawn = summary.ids.len();
    let after = (total - summary.ttft_s).max(0.0);
    let rate = summary.tokens_per_s.map_or_else(String::new, |rate| format!(", {rate:.1} tokens/s"));
    let each = if drawn > 1 { format!("        tpot: {}", time(after / (drawn - 1) as f64)) } else { String::new() };
    let _ = write!(text, "eval:                 {drawn} token(s), {}{rate}{each}", time(after));
    if let Some(cost) = &summary.cost {
        let _ = write!(text, "\ncost:                 {} credits to {} peer(s)", cost.credits, cost.stages.len());
    }
    text
}

/// What a conversation has taken so far.
#[derive(Debug, Default)]
pub(super) struct Spent {
    answers: usize,
    prompt: usize,
    drawn: usize,
    seconds: f64,
    micro_credits: u64,
}

impl Spent {
    pub(super) fn add(&mut self, summary: &Summary) {
        self.answers += 1;
        self.prompt += summary.prompt_ids.len();
        self.drawn += summary.ids.len();
        self.seconds += summary.total_s;
        let cost = summary.cost.as_ref().map_or(0, |cost| cost.micro_credits);
        self.micro_credits = self.micro_credits.saturating_add(cost);
    }

    pub(super) fn shown(&self) -> String {
        let Self { answers, prompt, drawn, seconds, micro_credits } = self;
        let credits = quelea_wire::Credits(*micro_credits);
        format!("{answers} answer(s), {prompt} + {drawn} tokens, {}, {credits} credits", time(*seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_layers_are_short() {
        assert_eq!([time(0.0031), time(0.21), time(2.414), time(241.4)], ["3ms", "210ms", "2.41s", "241s"]);
        assert_eq!([layers("0..8"), layers("8..9"), layers("x")], ["0-7", "8-8", "x"]);
    }
}
