//! Computing again what stages have signed for.
//!
//! Whoever has a session's tokens and the model's weights runs all layers over them, span after span, and compares the roots: so
//! much memory is needed as the largest span takes. What a stage gave on is only held against it where it was given the right
//! rows: a wrong row changes everything behind it, and only who made it has lied.

use std::{ops::Range, time::Duration};

use quelea_engine::{
    MAX_ROWS, PREFILL_CHUNK, Span, Stage, StageOptions, round_to_bf16,
    runner::{Input, Phase, Runner, RunnerConfig, SessionSpec, Want, pages_for},
};
use quelea_shard::{
    commitment::{Chain, Root, digests},
    link::Batch,
};
use quelea_wire::{ErrorCode, Profile, SpanRange};

use super::{
    memory::{self, Needed},
    models::{ModelFile, unusable},
    pipeline::{OWN_GROUP, Work},
    serve::{self, profile_of},
    types::InferError,
};

/// How long one chunk of rows may take in one span: an audit is in nobody's way, and may run on a machine that is busy.
const STEP: Duration = Duration::from_secs(600);

/// What a stage has signed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Its layers.
    pub(crate) span: SpanRange,
    /// The rows that its roots are over.
    pub(crate) rows: Range<u32>,
    /// Over what it took in.
    pub(crate) in_root: Root,
    /// Over what it gave on.
    pub(crate) out_root: Root,
}

/// What a claim is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It took in and gave on what the model computes.
    Right,
    /// It was given other rows than these tokens make. Who made them comes before it.
    GivenOthers,
    /// It was given the right rows and gave on others: it lies, or its machine is broken.
    Wrong,
}

/// The spans that are run: those of the claims in their order, and what is missing between them and at the ends.
fn cover(claims: &[Claim], layers: u16) -> Result<Vec<(SpanRange, Option<usize>)>, InferError> {
    let mut order: Vec<usize> = (0..claims.len()).collect();
    order.sort_by_key(|at| claims.get(*at).map(|claim| claim.span));
    let (mut spans, mut end) = (Vec::new(), 0);
    let gap = |spans: &mut Vec<_>, from: u16, to: u16| {
        if let Ok(span) = SpanRange::new(from, to) {
            spans.push((span, None));
        }
    };
    for at in order {
        let Some(claim) = claims.get(at) else { continue };
        if claim.span.start() < end || claim.span.end() > layers || claim.rows.is_empty() {
            let message = format!("layers {} do not follow {end} of {layers} layers", claim.span);
            return Err(InferError::new(ErrorCode::Usage, message));
        }
        gap(&mut spans, end, claim.span.start());
        spans.push((claim.span, Some(at)));
        end = claim.span.end();
    }
    // Behind the last claim nothing is compared any more.
    Ok(spans)
}

/// Runs the layers over `ids` and says what each claim is worth, in the order of `claims`. Spans are loaded one after the
/// other, as `compute` says; `told` hears of each that is done.
pub(crate) async fn again(
    file: &ModelFile,
    profile: Profile,
    compute: StageOptions,
    claims: &[Claim],
    ids: &[u32],
    mut told: impl FnMut(SpanRange),
) -> Result<Vec<Verdict>, InferError> {
    let spans = cover(claims, file.layers())?;
    let last = claims.iter().map(|claim| claim.rows.end).max().unwrap_or(0);
    let wanted = usize::try_from(last).unwrap_or(usize::MAX);
    let ids = ids.get(..wanted).ok_or_else(|| {
        let message = format!("stages have signed for {last} rows, and there are {} tokens", ids.len());
        InferError::new(ErrorCode::Usage, message).hint("give the tokens of the same answer")
    })?;
    let mut rows: Option<Vec<f32>> = None;
    let mut verdicts = vec![Verdict::Right; claims.len()];
    for (span, of) in spans {
        let loaded = load(file, span, compute).await?;
        let is_this = profile_of(loaded.stage()) == profile;
        let rounds = profile == Profile::ExactBf16 && profile_of(loaded.stage()) == Profile::Exact;
        if !is_this && !rounds {
            let message = format!("the stages computed with {profile}, and this is {}", loaded.stage().profile());
            return Err(
                InferError::new(ErrorCode::ProfileMismatch, message).hint("give the --kv and --device of the stages")
            );
        }
        let input = match rows.take() {
            Some(rows) => rows,
            None => embedded(&loaded, ids, rounds)?,
        };
        let output = run(&loaded, span, &input, rounds).await?;
        if let Some((claim, verdict)) = of.and_then(|at| Some((claims.get(at)?, verdicts.get_mut(at)?))) {
            let took_tokens =
                span.start() == 0 && root(&Batch::of_tokens(ids), ids.len(), claim) == Some(claim.in_root);
            *verdict = if !took_tokens && root(&input, ids.len(), claim) != Some(claim.in_root) {
                Verdict::GivenOthers
            } else if root(&output, ids.len(), claim) == Some(claim.out_root) {
                Verdict::Right
            } else {
                Verdict::Wrong
            };
        }
        told(span);
        rows = Some(output);
    }
    Ok(verdicts)
}

/// The root over a claim's rows of all these.
fn root(values: &[f32], rows: usize, claim: &Claim) -> Option<Root> {
    let mut chain = Chain::new(0);
    chain.append(0, &digests(values, values.len() / rows.max(1)));
    chain.root(claim.rows.start, claim.rows.end)
}

/// A span's layers, with the embedding where they are the first.
async fn load(file: &ModelFile, span: SpanRange, compute: StageOptions) -> Result<Runner, InferError> {
    let first = span.start() == 0;
    let wanted = Span { layers: span.as_usize(), embedding: first, head: false };
    let needed = Needed::of(&file.gguf, &file.manifest.hparams, &wanted, memory::ROWS.into());
    memory::check(&format!("layers {span} of {}", file.name), needed)?;
    let (gguf, name) = (file.gguf.clone(), file.name.clone());
    let start = move || {
        let stage = Stage::load_with(&gguf, wanted, &compute).map_err(|e| unusable(&name, &e))?;
        let rows = u32::try_from(stage.hparams().context_length).unwrap_or(u32::MAX).min(memory::ROWS);
        let config = RunnerConfig { kv_pages: pages_for(rows), ..serve::config(&stage, 0) };
        Runner::spawn(stage, config).map_err(|e| InferError::new(ErrorCode::Internal, e.to_string()))
    };
    tokio::task::spawn_blocking(start).await.map_err(|e| InferError::new(ErrorCode::Internal, e.to_string()))?
}

fn embedded(runner: &Runner, ids: &[u32], rounds: bool) -> Result<Vec<f32>, InferError> {
    let mut all = Vec::new();
    for chunk in ids.chunks(MAX_ROWS) {
        let rows = runner.stage().embed(chunk);
        all.extend(rows.map_err(|e| InferError::new(ErrorCode::EngineFailed, e.to_string()))?);
    }
    if rounds {
        round_to_bf16(&mut all);
    }
    Ok(all)
}

/// All rows through a span's layers.
async fn run(runner: &Runner, span: SpanRange, input: &[f32], bf16: bool) -> Result<Vec<f32>, InferError> {
    let width = runner.stage().hidden().max(1);
    let rows = input.len() / width;
    let max_rows = u32::try_from(rows).unwrap_or(u32::MAX);
    let layers = 0..usize::from(span.count());
    let spec = SessionSpec { group: OWN_GROUP, layers, max_rows, bf16, ..SessionSpec::default() };
    let (work, _) = Work::open(runner, spec, STEP)?;
    let (mut out, mut pos) = (Vec::with_capacity(input.len()), 0);
    for chunk in input.chunks(PREFILL_CHUNK.saturating_mul(width)) {
        out.extend(work.run(Input::Rows(chunk.to_vec()), pos, Want::Rows, Phase::Prefill).await?);
        pos = pos.saturating_add(u32::try_from(chunk.len() / width).unwrap_or(u32::MAX));
    }
    Ok(out)
}

#[cfg(test)]
mod caught;

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(start: u16, end: u16) -> Claim {
        let span = SpanRange::new(start, end).unwrap();
        Claim { span, rows: 0..1, in_root: [0; 32], out_root: [0; 32] }
    }

    #[test]
    fn what_nobody_signs_for_is_run_as_well_as_far_as_it_is_needed() {
        let spans = |claims: &[Claim]| {
            let cover = cover(claims, 6)?;
            Ok::<_, InferError>(cover.iter().map(|(span, of)| (span.to_string(), *of)).collect::<Vec<_>>())
        };
        let named =
            |spans: &[(&str, Option<usize>)]| spans.iter().map(|(span, of)| ((*span).to_owned(), *of)).collect();
        let expected: Vec<_> = named(&[("0..3", Some(1)), ("3..6", Some(0))]);
        assert_eq!(spans(&[claim(3, 6), claim(0, 3)]).unwrap(), expected);
        let expected: Vec<_> = named(&[("0..1", None), ("1..3", Some(0)), ("3..4", None), ("4..5", Some(1))]);
        assert_eq!(spans(&[claim(1, 3), claim(4, 5)]).unwrap(), expected);
        for wrong in [[claim(0, 4), claim(3, 6)], [claim(0, 3), claim(3, 7)]] {
            assert!(spans(&wrong).is_err());
        }
        let mut nothing = claim(0, 6);
        nothing.rows = 4..4;
        assert!(spans(&[nothing]).is_err());
    }
}
