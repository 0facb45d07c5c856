//! One answer: its tokens come from mistral.rs, always as a stream, so that an answer nobody waits for any more can be given up
//! between two of them. Where it ends ([`crate::stop`]) and what is drawn ([`crate::sample`]) is decided here.
//!
//! One answer at a time: mistral.rs 0.8.1 mixes up what it keeps of answers that it works on together when it has only the
//! processor, so that one caller is told parts of another's answer. `two_callers_do_not_hear_each_other` in the tests shows it.

use std::{
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use axum::http::StatusCode;
use either::Either;
use mistralrs_core::{
    Constraint, DefaultSchedulerMethod, MistralRs, MistralRsBuilder, NormalRequest, Request, RequestMessage, Response,
    SamplingParams, SchedulerConfig, TokenizationRequest,
};
use tokio::sync::mpsc;

use crate::{
    chat::{Chat, Reason, Refusal, Usage},
    model::{self, Source},
    sample::Draw,
    stop::Stops,
};

/// Chunks besides those of the answer: its end, an error.
const MARGIN: usize = 8;

/// A loaded model, and what runs it.
pub(crate) struct Engine {
    runs: Arc<MistralRs>,
    /// Tokens that a prompt and its answer may have together.
    context: usize,
    /// When a token came last, in milliseconds since `began`.
    beat: Arc<AtomicU64>,
    began: Instant,
}

/// What an answer brings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Text(String),
    /// What the model says to itself first.
    Reasoning(String),
    End(Reason, Usage),
    Failed(Refusal),
}

fn failed(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "engine_failed", message)
}

impl Engine {
    /// Loads a model: seconds to minutes.
    pub(crate) async fn load(source: Source, scratch: PathBuf) -> Result<Self, String> {
        let loading = tokio::task::spawn_blocking(move || model::load(&source, &scratch));
        let pipeline = loading.await.map_err(|e| e.to_string())??;
        let one = DefaultSchedulerMethod::Fixed(NonZeroUsize::MIN);
        let method = SchedulerConfig::DefaultScheduler { method: one };
        // Memory for what callers said before is better spent on those who are here.
        let runs = MistralRsBuilder::new(pipeline, method, false, None).with_no_prefix_cache(true).build().await;
        let context = runs.max_sequence_length(None).map_err(|e| e.to_string())?;
        let context = context.ok_or("the model makes no text")?;
        Ok(Self { runs, context, beat: Arc::default(), began: Instant::now() })
    }

    pub(crate) fn context(&self) -> usize {
        self.context
    }

    /// Whole seconds since a token came, or an answer was begun.
    pub(crate) fn silent_s(&self) -> u64 {
        now(self.began).saturating_sub(self.beat.load(Ordering::Relaxed)) / 1000
    }

    /// Begins an answer of at most so many tokens.
    pub(crate) async fn answer(&self, chat: &Chat, most: u32) -> Result<Answer, Refusal> {
        let sender = self.runs.get_sender(None).map_err(|e| failed(e.to_string()))?;
        let gone = |_| failed("the engine takes no requests");
        // The engine counts on whoever asks for tokens to wait for them, so this goes on when the client does not.
        let (reply, mut tokens) = mpsc::channel(1);
        let counting = Request::Tokenize(TokenizationRequest {
            text: Either::Left(chat.messages.clone()),
            tools: None,
            add_generation_prompt: true,
            add_special_tokens: true,
            enable_thinking: chat.enable_thinking,
            reasoning_effort: None,
            response: reply,
        });
        let to = sender.clone();
        let counted = tokio::spawn(async move {
            to.send(counting).await.map_err(gone)?;
            tokens.recv().await.ok_or_else(|| failed("the engine did not cut the prompt into tokens"))
        });
        let counted = counted.await.map_err(|e| failed(e.to_string()))??;
        let wrong = |code, message| Refusal::new(StatusCode::BAD_REQUEST, code, message);
        // A template may refuse messages: two of one side in a row, or a system's.
        let prompt = counted.map_err(|e| wrong("invalid_messages", format!("the model's template: {e:#}")))?.len();
        let room = self.context.saturating_sub(prompt);
        if room == 0 {
            let message = format!("the prompt has {prompt} tokens; the model has room for {}", self.context);
            return Err(wrong("context_length_exceeded", message));
        }
        let most = usize::try_from(chat.max_tokens.unwrap_or(most).min(most)).unwrap_or(usize::MAX).min(room);
        // Room for the whole answer: the engine works for all its callers in one thread, and must not wait for one of them.
        let (response, chunks) = mpsc::channel(most.saturating_add(MARGIN));
        let draw = Arc::new(Draw::new(chat.temperature, chat.top_p, chat.seed));
        let request = NormalRequest {
            messages: RequestMessage::Chat {
                messages: chat.messages.clone(),
                enable_thinking: chat.enable_thinking,
                reasoning_effort: None,
            },
            sampling_params: SamplingParams {
                frequency_penalty: chat.frequency_penalty,
                presence_penalty: chat.presence_penalty,
                max_len: Some(most),
                ..SamplingParams::deterministic()
            },
            response,
            return_logprobs: false,
            is_streaming: true,
            id: self.runs.next_request_id(),
            constraint: Constraint::None,
            suffix: None,
            tools: None,
            tool_choice: None,
            logits_processors: Some(vec![draw.clone()]),
            return_raw_logits: false,
            web_search_options: None,
            model_id: None,
            truncate_sequence: false,
        };
        self.beat.store(now(self.began), Ordering::Relaxed);
        sender.send(Request::Normal(Box::new(request))).await.map_err(|_| failed("the engine takes no requests"))?;
        Ok(Answer {
            chunks,
            stops: Stops::new(chat.stop.clone()),
            next: Vec::new(),
            usage: Usage { prompt, completion: 0 },
            most,
            draw,
            ended: false,
            beat: self.beat.clone(),
            began: self.began,
        })
    }
}

fn now(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// An answer as it comes. Dropped, it is given up: the engine finds that nobody listens with its next token.
pub(crate) struct Answer {
    chunks: mpsc::Receiver<Response>,
    stops: Stops,
    /// Pieces that have come and were not handed on, the last first.
    next: Vec<Piece>,
    usage: Usage,
    most: usize,
    /// Counts the tokens: chunks are fewer where a letter has several.
    draw: Arc<Draw>,
    ended: bool,
    beat: Arc<AtomicU64>,
    began: Instant,
}

impl Answer {
    /// The next piece; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Piece> {
        loop {
            if let Some(piece) = self.next.pop() {
                return Some(piece);
            }
            if self.ended {
                return None;
            }
            let chunk = self.chunks.recv().await;
            self.beat.store(now(self.began), Ordering::Relaxed);
            let pieces = self.read(chunk);
            self.ended = matches!(pieces.last(), Some(Piece::End(..) | Piece::Failed(_)));
            if self.ended {
                self.chunks.close();
            }
            self.next = pieces;
            self.next.reverse();
        }
    }

    fn read(&mut self, chunk: Option<Response>) -> Vec<Piece> {
        let chunk = match chunk {
            Some(Response::Chunk(chunk)) => chunk,
            Some(Response::ValidationError(e)) => {
                return vec![Piece::Failed(Refusal::new(StatusCode::BAD_REQUEST, "invalid_request", e.to_string()))];
            }
            Some(Response::InternalError(e)) => return vec![Piece::Failed(failed(e.to_string()))],
            Some(Response::ModelError(e, _)) => return vec![Piece::Failed(failed(e))],
            Some(_) => return vec![Piece::Failed(failed("the engine answered something else than a chat"))],
            // Without an end: the last token was half a letter, of which the engine says nothing.
            None if self.draw.drawn() >= self.most => return self.end(Reason::Length),
            None => return self.end(Reason::Stop),
        };
        self.usage.completion = self.usage.completion.saturating_add(1);
        let Some(choice) = chunk.choices.into_iter().next() else { return Vec::new() };
        let mut pieces = Vec::new();
        pieces.extend(choice.delta.reasoning_content.filter(|text| !text.is_empty()).map(Piece::Reasoning));
        if let Some(text) = choice.delta.content {
            let (text, stopped) = self.stops.take(&text);
            pieces.extend(Some(text).filter(|text| !text.is_empty()).map(Piece::Text));
            if stopped {
                pieces.push(Piece::End(Reason::Stop, self.usage));
                return pieces;
            }
        }
        match choice.finish_reason.as_deref() {
            None => {}
            Some("stop") => pieces.extend(self.end(Reason::Stop)),
            Some("length") => pieces.extend(self.end(Reason::Length)),
            Some(other) => pieces.push(Piece::Failed(failed(format!("the engine ended the answer: {other}")))),
        }
        pieces
    }

    fn end(&mut self, reason: Reason) -> Vec<Piece> {
        self.usage.completion = self.draw.drawn();
        let rest = Some(self.stops.rest()).filter(|text| !text.is_empty()).map(Piece::Text);
        rest.into_iter().chain([Piece::End(reason, self.usage)]).collect()
    }
}
