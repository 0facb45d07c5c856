//! From a request to an open session over the best chain, and what is learnt when it is over.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use quelea_engine::runner::{PrefixKeys, pages_for};
use quelea_shard::frame::Form;
use quelea_wire::{Credits, ErrorCode, Profile, SpanRange, WorkedRows};

use super::{
    Asker,
    coordinator::{ChainSession, SessionSpec},
    discover::{self, Found, Wanted},
    memory,
    models::Ends,
    pipeline::{LocalLayers, Pipeline, RemoteLayers},
    planner::{
        Hop, Local, NoPlan, Objective, Planned, Query, Source, nanos, nanos_for,
        observed::{StageSaid, Took},
        report::{self, PlanReport},
    },
    prefix,
    private::{self, Private},
    serve::{Served, profile_named},
    thin::Thin,
    types::{HopReport, InferError, InferRequest, PlanRequest, Prediction, Route, Speculate},
};
use crate::telemetry::traces::Within;

/// Chains that are tried for one request before its first token.
const TRIES: usize = 4;

/// Bytes of a row between stages of a profile.
fn row_bytes(ends: &Ends, profile: Profile) -> u64 {
    let value = u64::try_from(Form::of_rows(profile).value_bytes()).unwrap_or(u64::MAX);
    u64::try_from(ends.hparams.hidden).unwrap_or(u64::MAX).saturating_mul(value)
}

/// What a pipeline is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Answer,
    /// All rows of a prompt.
    Rows,
}

impl Asker {
    /// Finds a chain and opens a session over it. A peer that fails meanwhile is left out, and the next best chain taken.
    pub(super) async fn open(
        &self,
        ends: &Arc<Ends>,
        request: &InferRequest,
        prompt: &[u32],
        max_rows: u32,
        trace: &Within,
    ) -> Result<(Pipeline, Option<Prediction>), InferError> {
        self.open_to(ends, request, (prompt, max_rows), trace, For::Answer).await
    }

    /// As [`Asker::open`], to have all rows of the prompt back.
    pub(super) async fn open_for_rows(
        &self,
        ends: &Arc<Ends>,
        request: &InferRequest,
        prompt: &[u32],
        max_rows: u32,
        trace: &Within,
    ) -> Result<(Pipeline, Option<Prediction>), InferError> {
        self.open_to(ends, request, (prompt, max_rows), trace, For::Rows).await
    }

    async fn open_to(
        &self,
        ends: &Arc<Ends>,
        request: &InferRequest,
        (prompt, max_rows): (&[u32], u32),
        trace: &Within,
        wanted: For,
    ) -> Result<(Pipeline, Option<Prediction>), InferError> {
        let all_rows = wanted == For::Rows;
        // What stages have kept of a prompt does not come back, and is looked for by its tokens.
        let kept_of = if all_rows { &[][..] } else { prompt };
        let kept = request.private;
        let mut thin = if kept > 0 || all_rows { None } else { Thin::of(request, ends)? };
        let model = ends.file.id;
        let name = ends.profile(request.profile)?;
        let profile = profile_named(name);
        let query = self.query(ends, request.objective(), prompt.len(), request.max_tokens, max_rows)?;
        let span = private::between(kept, ends.file.layers())?;
        let row_bytes = row_bytes(ends, profile);
        let mut query = Thin::in_query(thin, Query { span, row_bytes, ..query });
        let bf16 = profile == Profile::ExactBf16;
        // Only what was measured counts against others.
        let alone = request.route != Route::Swarm && fits_here(ends).is_ok();
        let local = self.plane.experience.observed().unsplit(model).filter(|_| alone);
        let mut found = Found::default();
        let mut first_error = None;
        for _ in 0..TRIES {
            let wanted = Wanted {
                model,
                layers: ends.file.layers(),
                profile,
                patience: request.step_timeout(),
                own: Some(&self.own),
                experience: &self.plane.experience,
                query: &query,
                local,
                why: false,
            };
            let mut planning = trace.start("pipeline.plan");
            let planned = match &first_error {
                None => match discover::find(&self.plane.handle, wanted, &mut found).await {
                    Ok(planned) => planned,
                    // Nobody insists on having the ends computed elsewhere.
                    Err(no) if thin.is_some() && request.thin.is_none() && no.lacks_only_ends() => {
                        tracing::info!(model = %model.short(), "{no}; fetching them");
                        let message = no.to_string();
                        ends.ends()
                            .await
                            .map_err(|e| InferError { message: format!("{message}; {}", e.message), ..e })?;
                        thin = None;
                        query = Thin::in_query(thin, query);
                        continue;
                    }
                    Err(no) => {
                        let error = no_route(ends, &no);
                        planning.fail(error.code.clone(), error.error_code().meaning());
                        return Err(error);
                    }
                },
                // What is known does, if it can: the caller has waited already. Whoever was left behind by the first look
                // may be all that is left now.
                Some(error) => match wanted.plan(&self.plane.handle, &found).await {
                    Ok(planned) => planned,
                    Err(_) => match discover::find(&self.plane.handle, wanted, &mut found).await {
                        Ok(planned) => planned,
                        Err(_) => return Err(InferError::clone(error)),
                    },
                },
            };
            let prediction = Some(report::prediction(&query, &planned));
            let hops = planned.chosen.chain();
            planning.set("quelea.stages", i64::try_from(hops.len()).unwrap_or(i64::MAX));
            drop(planning);
            if let Some(served) = self.serves_alone(&hops, ends) {
                let local = LocalLayers::new(ends, &served.runner, name, kept_of, max_rows, request.step_timeout())?;
                return Ok((Pipeline::Local(Box::new(local)), prediction));
            }
            if planned.local_is_faster(&query) {
                tracing::info!(model = %model.short(), "this node alone is faster than any chain");
                let runner = ends.whole().await?;
                let local = LocalLayers::new(ends, runner, name, kept_of, max_rows, request.step_timeout())?;
                return Ok((Pipeline::Local(Box::new(local)), prediction));
            }
            affordable(request, planned.chosen.price)?;
            // Rows that others computed are as good as new ones only where they depend on nothing else.
            let shares = ends.is_exact() && kept == 0 && !all_rows;
            let keys = if shares { ends.prefix_keys(name, prompt) } else { PrefixKeys::default() };
            let runner = if thin.is_some() || kept > 0 { None } else { Some(ends.ends().await?) };
            let outer = if kept > 0 { Some(ends.outer(kept).await?) } else { None };
            let spec = SessionSpec {
                model,
                profile,
                width: u32::try_from(ends.hparams.hidden).unwrap_or(u32::MAX),
                max_rows,
                step_timeout: request.step_timeout(),
                window: request.prefill_window,
                prefix: prefix::to_wire(&keys),
                layers: ends.file.layers(),
                embed: runner.cloned(),
                fed: kept > 0,
                all_rows: all_rows || kept > 0,
                ends: thin.map(Thin::on_the_wire).unwrap_or_default(),
                prompt: prompt.to_vec(),
                own: self.own.clone(),
                query: query.clone(),
                most_rows: most_rows(request, prompt.len(), max_rows),
                receipt: request.receipt,
                replaces: true,
                draws: self.auditor.draws(ends),
                trace: trace.clone(),
            };
            let opening = trace.start("pipeline.open");
            let opened = ChainSession::open(self.plane.clone(), hops, spec).await;
            opening.ended(&opened);
            match opened {
                Ok(chain) => {
                    let limit = request.step_timeout();
                    let remote = match outer {
                        Some(outer) => {
                            RemoteLayers::within(chain, ends, Private::open(ends, &outer, kept, bf16, max_rows, limit)?)
                        }
                        None => RemoteLayers::new(chain, ends, name, runner, limit)?,
                    };
                    return Ok((Pipeline::Chain(Box::new(remote)), prediction));
                }
                Err(error) => {
                    self.note_failure(&error);
                    self.note_refusal(&error, query.kv_pages);
                    let Some(peer) = error.peer().filter(|peer| *peer != self.plane.handle.local()) else {
                        return Err(error);
                    };
                    query.exclude.insert(peer);
                    first_error.get_or_insert(error);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| InferError::new(ErrorCode::NoRoute, "no chain could be opened")))
    }

    /// The layers of this node, where they are all that the chain is.
    fn serves_alone(&self, hops: &[Hop], ends: &Ends) -> Option<Arc<Served>> {
        let [only] = hops else { return None };
        let here = |served: &Arc<Served>| served.is_whole() && served.file.id == ends.file.id;
        (only.peer == self.plane.handle.local()).then(|| self.plane.served().into_iter().find(here))?
    }

    /// What a plan is asked for.
    fn query(
        &self,
        ends: &Ends,
        objective: Objective,
        prompt: usize,
        answer: u32,
        max_rows: u32,
    ) -> Result<Query, InferError> {
        let here = self.plane.handle.local();
        let layers =
            SpanRange::new(0, ends.file.layers()).map_err(|e| InferError::new(ErrorCode::ModelFile, e.to_string()))?;
        let mut seed = DefaultHasher::new();
        (here.to_bytes(), ends.file.id.0).hash(&mut seed);
        Ok(Query {
            prompt_rows: u64::try_from(prompt).unwrap_or(u64::MAX),
            answer_rows: u64::from(answer),
            kv_pages: pages_for(max_rows),
            objective,
            // A caller keeps to its choice, so that stages still have its prompts; others have other seeds.
            seed: seed.finish(),
            layer_bytes: ends.file.manifest.layers.iter().map(|part| part.bytes).collect(),
            ..Query::new(here, layers, row_bytes(ends, Profile::Exact))
        })
    }

    /// Remembers whom a failed request was about, where that says something about the next one.
    pub(super) fn note_failure(&self, error: &InferError) {
        let Some(peer) = error.peer().filter(|peer| *peer != self.plane.handle.local()) else { return };
        if died(error.error_code()) {
            self.plane.experience.failed(peer, &error.error_code().meaning().to_lowercase());
        }
    }

    /// Remembers who has refused a session of so many KV pages for want of room.
    fn note_refusal(&self, error: &InferError, pages: u32) {
        let Some(peer) = error.peer() else { return };
        match error.error_code() {
            ErrorCode::NoKvPages => self.plane.experience.refused(peer, pages),
            ErrorCode::TooManySessions | ErrorCode::Overloaded => self.plane.experience.refused(peer, 0),
            _ => {}
        }
    }

    /// Learns from a request that was answered: how long it took, and who took it.
    pub(super) async fn learn(&self, ends: &Ends, took: Took, hops: &[HopReport]) {
        let experience = &self.plane.experience;
        if hops.is_empty() {
            experience.observed().answered_here(ends.file.id, u64::from(ends.file.layers()), took);
            return;
        }
        let here = self.plane.handle.local();
        let snapshot = self.plane.handle.snapshot().await;
        let rtt = |peer: libp2p::PeerId| -> Option<Duration> {
            if peer == here {
                return Some(Duration::ZERO);
            }
            snapshot.iter().flat_map(|s| &s.peers).find(|view| view.peer == peer)?.rtt
        };
        let stages: Vec<StageSaid> = hops.iter().filter_map(said).collect();
        let (Some(first), Some(last)) = (stages.first(), stages.last()) else { return };
        let ping = |peer| rtt(peer).map(|rtt| nanos(rtt) / 2);
        // There as our own link's acknowledgements tell, and back as the last stage says, if ping does not know better: a ping
        // waits for its turn on a busy machine.
        let there = self.plane.links.one_way(first.peer).map(nanos).or_else(|| ping(first.peer));
        let back = match (last.hop_ns, ping(last.peer)) {
            (Some(said), Some(ping)) => Some(said.min(ping)),
            (_, ping) => ping,
        };
        for (from, to, way) in [(here, first.peer, there), (last.peer, here, back)] {
            if let Some(way) = way.filter(|_| from != to) {
                experience.observed().way(from, to, way);
            }
        }
        let mut ways = there.unwrap_or(0).saturating_add(back.unwrap_or(0));
        let mut believed = Vec::with_capacity(stages.len());
        for (i, stage) in stages.iter().enumerate() {
            let mut stage = *stage;
            stage.hop_ns = match (stages.get(i + 1), stage.hop_ns) {
                (Some(next), Some(said)) => {
                    // A stage that says its line is slow does not buy time to compute: no way is longer than that through us.
                    let longest = rtt(stage.peer).zip(rtt(next.peer)).map(|(a, b)| nanos(a + b));
                    Some(longest.map_or(said, |longest| said.min(longest)))
                }
                _ => None,
            };
            ways = ways.saturating_add(stage.hop_ns.unwrap_or(0));
            believed.push(stage);
        }
        experience.observed().answered(ends.file.id, &believed, took, ways);
        if let Some(first) = stages.first().filter(|first| first.peer != here)
            && let Some(rate) = self.plane.links.bytes_per_s(first.peer)
        {
            experience.observed().carried(first.peer, rate);
        }
        experience.worked(stages.iter().map(|stage| stage.peer).filter(|peer| *peer != here));
    }

    /// What a request like this would be answered by, and why.
    ///
    /// # Errors
    /// When the model is not known here. That there is no plan is part of the report.
    pub(crate) async fn plan(&self, request: &PlanRequest) -> Result<PlanReport, InferError> {
        let ends = self.models.ends(&request.model).await?;
        let rows = request.prompt_tokens.saturating_add(u64::from(request.max_tokens));
        let context = u64::try_from(ends.hparams.context_length).unwrap_or(u64::MAX);
        if request.prompt_tokens == 0 || request.prompt_tokens >= context || request.max_tokens == 0 {
            let message =
                format!("the model's context holds {context} tokens; ask for a prompt of 1 to {}", context - 1);
            return Err(InferError::new(ErrorCode::Usage, message));
        }
        let max_rows = u32::try_from(rows.min(context)).unwrap_or(u32::MAX);
        let prompt = usize::try_from(request.prompt_tokens).unwrap_or(usize::MAX);
        let objective = if request.private > 0 { Objective::Private } else { request.objective };
        let query = self.query(&ends, objective, prompt, request.max_tokens, max_rows)?;
        let span = private::between(request.private, ends.file.layers())?;
        let thin = if request.private > 0 { None } else { Thin::planned(request.thin, &ends) };
        let profile = profile_named(ends.profile(request.profile)?);
        let row_bytes = row_bytes(&ends, profile);
        let query = Thin::in_query(thin, Query { span, row_bytes, ..query });
        let fits = fits_here(&ends);
        let local = fits.is_ok().then(|| self.local_speed(&ends, &query));
        let wanted = Wanted {
            model: ends.file.id,
            layers: ends.file.layers(),
            profile,
            patience: Duration::from_millis(request.timeout_ms),
            own: Some(&self.own),
            experience: &self.plane.experience,
            query: &query,
            local,
            why: true,
        };
        let result: Result<Planned, NoPlan> = discover::find(&self.plane.handle, wanted, &mut Found::default()).await;
        let name = ends.file.manifest.name.clone();
        let no_local = fits.err().map(|error| error.message);
        Ok(report::report(&ends.file.id.to_string(), &name, &query, result, no_local))
    }

    /// How fast this node would run the whole model: as measured, as its layers turn out, or by a guess.
    fn local_speed(&self, ends: &Ends, query: &Query) -> Local {
        if let Some(local) = self.plane.experience.observed().unsplit(ends.file.id) {
            return local;
        }
        let served = self.plane.served().into_iter().find(|served| served.file.id == ends.file.id);
        if let Some((decode @ 1.., prefill @ 1..)) = served.map(|served| served.meter.rows_per_s()) {
            let per_layer = |rate: u32| 1_000_000_000 / u64::from(rate);
            return Local { decode_ns: per_layer(decode), prefill_ns: per_layer(prefill), source: Source::Claimed };
        }
        let sizes = &query.layer_bytes;
        let mean = sizes.iter().sum::<u64>() / u64::try_from(sizes.len()).unwrap_or(1).max(1);
        let decode_ns = nanos_for(mean, discover::UNKNOWN_WEIGHTS_PER_S).max(1000);
        Local { decode_ns, prefill_ns: (decode_ns / discover::PROMPT_SHARE).max(1), source: Source::Assumed }
    }
}

/// The most rows that a stage may have to compute: all of them as a prompt's, if it takes over, and those of the answer, as
/// often as guesses may be taken back.
fn most_rows(request: &InferRequest, prompt: usize, max_rows: u32) -> WorkedRows {
    /// Rows that are sent for one that stays, at most.
    const GUESSED: u64 = 8;
    let prompt = u64::try_from(prompt).unwrap_or(u64::MAX);
    let answer = u64::from(max_rows).saturating_sub(prompt);
    let times = if request.speculate == Speculate::Off { 1 } else { GUESSED };
    WorkedRows { prefill: u64::from(max_rows), decode: answer.saturating_mul(times) }
}

/// Refuses a chain that costs more than its caller gives.
fn affordable(request: &InferRequest, price: u64) -> Result<(), InferError> {
    let Some(most) = request.max_price.filter(|most| price > *most) else { return Ok(()) };
    let (price, most) = (Credits(price), Credits(most));
    let message = format!("the chain costs up to {price} credits for this request, and at most {most} are given");
    let error = InferError::new(ErrorCode::PriceTooHigh, message);
    Err(if request.objective() == Objective::Price {
        error.hint("ask for fewer tokens with --max-tokens, or give more with --max-price")
    } else {
        error.hint("--objective price takes the cheapest chain; --max-tokens bounds what is paid for")
    })
}

/// Whether the whole model could be run here: it is loaded, or all of it is on the disk and there is room.
fn fits_here(ends: &Ends) -> Result<(), InferError> {
    if ends.is_loaded() {
        return Ok(());
    }
    if !ends.has_layers() {
        return Err(InferError::new(ErrorCode::LayersNotHeld, "not all of its layers are on this machine")
            .hint(format!("'quelea model pull {}' fetches them", ends.file.id)));
    }
    memory::check_whole(&ends.file.name, &ends.file.gguf, memory::ROWS.into())
}

/// What a stage has said about itself, in the planner's terms.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn said(hop: &HopReport) -> Option<StageSaid> {
    // Saturates, and takes nonsense for 0.
    let whole = |ms_per_row: f64| (ms_per_row * 1e6 * hop.rows as f64) as u64;
    Some(StageSaid {
        peer: hop.peer.parse().ok()?,
        span: hop.layers.parse().ok()?,
        compute_ns: whole(hop.compute_ms_per_row),
        queue_ns: whole(hop.queue_ms_per_row),
        hop_ns: hop.hop_ms.map(|ms| (ms * 1e6) as u64),
    })
}

/// Whether an error means that its peer will not do for the next request either.
pub(super) fn died(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::HopLost
            | ErrorCode::HopSilent
            | ErrorCode::DialFailed
            | ErrorCode::NextUnreachable
            | ErrorCode::NextSilent
            | ErrorCode::EngineFailed
    )
}

fn no_route(ends: &Ends, missing: &NoPlan) -> InferError {
    let hint = match missing.missing.first() {
        _ if missing.lacks_only_ends() => {
            "start a worker there with --ends always, or ask with --no-thin: embedding and head are then fetched".into()
        }
        _ if missing.full => "ask again in a moment, or with a shorter prompt and fewer tokens".into(),
        Some(span) => format!("start a worker for them: quelea daemon --model FILE --layers {span} --bootstrap …"),
        None => "start a worker with a wider span".into(),
    };
    let code = if missing.full { ErrorCode::NoKvPages } else { ErrorCode::NoRoute };
    InferError::new(code, format!("model {}: {missing}", ends.file.id.short())).hint(hint)
}
