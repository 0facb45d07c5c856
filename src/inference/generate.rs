//! From a prompt to text: tokenise, run the model wherever its layers are, pick a token, repeat.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quelea_engine::template::TemplateError;
use quelea_wire::ErrorCode;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    Asked,
    models::Ends,
    pipeline::Pipeline,
    private,
    resume::Begun,
    sampling::{self, Logits, Picker, Text},
    speculate::Speculator,
    types::{FinishReason, InferError, InferEvent, InferRequest, PromptForm, Route, Speculate, Summary},
};

/// For how long a caller may leave events unread before the request is cancelled for it.
pub(super) const SLOW_CALLER: Duration = Duration::from_secs(60);

/// Whether the request makes sense at all, before anybody works for it.
pub(crate) fn check(ends: &Ends, request: &InferRequest) -> Result<(), InferError> {
    if request.max_tokens == 0 {
        return Err(InferError::new(ErrorCode::Usage, "max_tokens must be at least 1"));
    }
    if request.private > 0 && request.route != Route::Local {
        if request.thin == Some(true) {
            let message = "layers are kept here with embedding and head, and --thin has those computed elsewhere";
            return Err(InferError::new(ErrorCode::Usage, message));
        }
        private::between(request.private, ends.file.layers())?;
    }
    if request.format.is_some() && request.ignore_eos {
        let message = "an answer with a format ends when it is complete, and ignore_eos has it go on";
        return Err(InferError::new(ErrorCode::Usage, message));
    }
    sampling::settings(request, ends.hparams.vocab).map(drop)
}

/// The prompt's token ids, as the request's form says.
pub(crate) fn prompt_ids(ends: &Ends, request: &InferRequest) -> Result<Vec<u32>, InferError> {
    let usage = |message: &str| InferError::new(ErrorCode::Usage, message);
    if usize::from(!request.prompt.is_empty())
        + usize::from(!request.messages.is_empty())
        + usize::from(!request.prompt_ids.is_empty())
        > 1
    {
        return Err(usage("a request has a prompt, or messages, or token ids"));
    }
    let form = if request.messages.is_empty() { request.form } else { PromptForm::Chat };
    let chat = match (form, &ends.template) {
        _ if !request.prompt_ids.is_empty() => None,
        (PromptForm::Raw, _) | (PromptForm::Auto, None) => None,
        (PromptForm::Auto | PromptForm::Chat, Some(template)) => Some(template),
        (PromptForm::Chat, None) => return Err(usage("this model has no chat template; ask with --raw")),
    };
    let ids = if let Some(template) = chat {
        let message = |role: &str, text: &str| json!({ "role": role, "content": text });
        let mut messages: Vec<Value> = request.system.iter().map(|text| message("system", text)).collect();
        match request.messages.as_slice() {
            [] => messages.push(message("user", &request.prompt)),
            given => messages.extend(given.iter().cloned().map(Value::Object)),
        }
        let text = template.render_values(&messages, true, &request.template).map_err(|e| match e {
            // It speaks of the conversation, which is the caller's.
            TemplateError::Refused { .. } | TemplateError::TooLong { .. } | TemplateError::TooMuchWork => {
                usage(&e.to_string())
            }
            e => InferError::new(ErrorCode::ModelFile, format!("the model's chat template fails: {e}")),
        })?;
        ends.tokenizer.encode_chat(&text)
    } else if let [first, ..] = request.prompt_ids.as_slice() {
        let known = |id: &u32| usize::try_from(*id).is_ok_and(|id| id < ends.hparams.vocab);
        if !request.prompt_ids.iter().all(known) {
            let most = request.prompt_ids.iter().max().unwrap_or(first);
            let vocab = ends.hparams.vocab;
            return Err(usage(&format!("token {most} of the prompt is none: the vocabulary has {vocab} tokens")));
        }
        request.prompt_ids.clone()
    } else {
        if request.system.is_some() {
            return Err(usage("a system message needs a chat template, and this prompt is given as it is"));
        }
        ends.tokenizer.encode_input(&request.prompt)
    };
    let context = ends.hparams.context_length;
    if ids.is_empty() {
        Err(usage("the prompt is empty"))
    } else if ids.len() >= context {
        let message = format!("the prompt has {} tokens, but the model's context holds {context}", ids.len());
        Err(InferError::new(ErrorCode::ContextFull, message))
    } else {
        Ok(ids)
    }
}

/// Rows that a session for this request needs at most.
pub(crate) fn max_rows(ends: &Ends, request: &InferRequest, prompt: usize) -> u32 {
    let wanted = prompt.saturating_add(usize::try_from(request.max_tokens).unwrap_or(usize::MAX));
    u32::try_from(wanted.min(ends.hparams.context_length)).unwrap_or(u32::MAX)
}

/// Answers one request over an open pipeline.
///
/// Every token leaves as an event as soon as it is drawn. When the receiver of the events is gone, the request ends
/// with [`ErrorCode::Cancelled`].
pub(crate) async fn generate(
    ends: &Arc<Ends>,
    pipeline: &mut Pipeline,
    asked: Asked<'_>,
    begun: &mut Begun,
    mut speculator: Speculator,
) -> Result<Summary, InferError> {
    let Asked { request, follow, events, started, trace } = asked;
    let whole = begun.whole();
    let Begun { prompt, said: ids, log, .. } = begun;
    let resumed = ids.len();
    let mut picker = Picker::new(ends, request, prompt, ids, follow)?;
    let mut text = Text::new(&ends.tokenizer, &request.stop)?;
    let eos = ends.tokenizer.eos_ids();
    let limit = usize::try_from(max_rows(ends, request, prompt.len())).unwrap_or(usize::MAX);
    let max_tokens = limit.saturating_sub(prompt.len()).min(usize::try_from(request.max_tokens).unwrap_or(usize::MAX));
    let ended = |text: &Text, tokens: usize| match text.stop {
        Some(_) => Some(FinishReason::Stop),
        None => (tokens >= max_tokens).then_some(FinishReason::Length),
    };
    let mut logprobs = request.logprobs.map(|_| Vec::new());
    let mut first_token = None;
    // Tokens of the answer that have been run: all but the last, unless an end-of-text token followed.
    let mut computed = resumed;
    // Guesses whose rows were run with the last token's, and how many of them have turned out right.
    let (mut guesses, mut right) = (Vec::new(), 0);

    let prefill_started = Instant::now();
    if let Some(last) = ids.last().copied() {
        let said = ids.iter().map(|id| text.push(*id)).collect();
        ids.iter().for_each(|id| speculator.push(*id));
        send(events, InferEvent::Text { text: said, id: last, logprobs: None }).await?;
    }
    // An answer may have been cut off after its last token.
    let mut finish = picker.is_complete().then_some(FinishReason::Stop).or(ended(&text, ids.len()));
    let mut logits = match finish {
        None => {
            let span = trace.start("pipeline.prefill");
            let logits = pipeline.prefill(&whole).await;
            span.ended(&logits);
            logits?
        }
        Some(_) => Logits::default(),
    };
    let mut decoding = trace.start("pipeline.decode");
    let prompt_time = prefill_started.elapsed();
    let rewinds = pipeline.rewinds();
    let finish_reason = loop {
        if let Some(reason) = finish {
            break reason;
        }
        let (next, id, likely) = picker.pick(logits.row(right)).await?;
        picker = next;
        first_token.get_or_insert_with(Instant::now);
        if eos.contains(&id) && !request.ignore_eos {
            break FinishReason::Stop;
        }
        ids.push(id);
        if log.as_mut().is_some_and(|log| !log.push(id)) {
            let message =
                "the answer is not written down any more; if it is cut off, the rest is computed again".into();
            send(events, InferEvent::Warning { message }).await?;
        }
        speculator.push(id);
        let guessed = guesses.get(right) == Some(&id);
        if guessed {
            right += 1;
            computed = ids.len();
        }
        let piece = text.push(id);
        logprobs.iter_mut().for_each(|all| all.extend(likely.clone()));
        send(events, InferEvent::Text { text: piece, id, logprobs: likely.map(Box::new) }).await?;
        finish = picker.is_complete().then_some(FinishReason::Stop).or(ended(&text, ids.len()));
        if finish.is_some() || guessed {
            continue;
        }
        speculator.judged(guesses.len(), right);
        let began = Instant::now();
        let most = if rewinds { max_tokens - ids.len() - 1 } else { 0 };
        guesses = speculator.guess(most, &picker).await;
        right = 0;
        let pos = u32::try_from(prompt.len() + ids.len() - 1).unwrap_or(u32::MAX);
        logits = pipeline.decode(&[&[id], guesses.as_slice()].concat(), pos).await?;
        speculator.ran(guesses.len(), began.elapsed());
        computed = ids.len();
    };
    speculator.judged(guesses.len(), right);
    decoding.set("gen_ai.usage.output_tokens", i64::try_from(ids.len() - resumed).unwrap_or(i64::MAX));
    drop(decoding);
    if first_token.is_some() {
        pipeline.keep(ends, &[prompt.as_slice(), ids.get(..computed).unwrap_or_default()].concat());
    }
    let rest = text.finish();
    if !rest.is_empty() {
        let id = ids.last().copied().unwrap_or_default();
        send(events, InferEvent::Text { text: rest, id, logprobs: None }).await?;
    }

    let closing = trace.start("pipeline.close");
    let total = started.elapsed();
    let ttft = first_token.map_or(total, |at| at.duration_since(started));
    let after_first = total.saturating_sub(ttft).as_secs_f64();
    let later_tokens = ids.len().saturating_sub(resumed + 1);
    let summary = Summary {
        model: ends.file.id.to_string(),
        profile: pipeline.profile().to_string(),
        thin: pipeline.is_thin(),
        stop_string: text.stop.and_then(|stop| request.stop.get(stop)).cloned(),
        text: text.shown,
        prompt_ids: prompt.clone(),
        resumed_tokens: resumed,
        cached_tokens: pipeline.kept_rows(),
        finish_reason,
        logprobs,
        speculation: (request.speculate != Speculate::Off).then_some(speculator.done),
        predicted: None,
        bytes_sent: pipeline.bytes().0,
        bytes_received: pipeline.bytes().1,
        saw: pipeline.saw(),
        private: pipeline.private(),
        hops: pipeline.finish().await?,
        recoveries: pipeline.recoveries(),
        // Known when it is finished.
        cost: pipeline.cost(),
        receipt: pipeline.receipt(),
        ttft_s: ttft.as_secs_f64(),
        total_s: total.as_secs_f64(),
        tokens_per_s: (later_tokens > 0 && after_first > 0.0).then(|| count(later_tokens) / after_first),
        prompt_tokens_per_s: count(whole.len()) / prompt_time.as_secs_f64().max(1e-9),
        ids: std::mem::take(ids),
    };
    drop(closing);
    Ok(summary)
}

async fn send(events: &mpsc::Sender<InferEvent>, event: InferEvent) -> Result<(), InferError> {
    events
        .send_timeout(event, SLOW_CALLER)
        .await
        .map_err(|_| InferError::new(ErrorCode::Cancelled, "the caller has gone away"))
}

pub(crate) fn engine(error: &quelea_engine::StageError) -> InferError {
    InferError::new(ErrorCode::EngineFailed, error.to_string())
}

#[expect(clippy::cast_precision_loss, reason = "a count of tokens for a rate that is shown")]
fn count(n: usize) -> f64 {
    n as f64
}
