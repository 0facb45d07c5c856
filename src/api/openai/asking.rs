//! Choices under way: one request of this node for each, whose events come out of one place.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use quelea_wire::{Credits, ErrorCode};
use serde_json::Value;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Sleep, sleep, timeout},
};
use tracing::Instrument as _;
use utoipa::ToSchema;

use super::{ApiError, ApiState, Wishes, fields::Fields};
use crate::inference::{Asker, EVENT_QUEUE, InferError, InferEvent, InferRequest, RouteHop, Summary};

/// Most choices of one request, those of all its prompts together.
pub(super) const MAX_CHOICES: usize = 16;

/// Most stop strings.
const MAX_STOPS: usize = 4;

/// For how long a choice waits for its turn where peers have no room for it, and between two attempts: they take some sessions of
/// a coordinator at once, and those end.
const WAIT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// Events that are kept while not all choices have begun.
const MAX_HELD: usize = 4096;

const ROUTE: HeaderName = HeaderName::from_static("x-quelea-route");
const COST: HeaderName = HeaderName::from_static("x-quelea-cost");
const RECEIPT: HeaderName = HeaderName::from_static("x-quelea-receipt");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Longest receipt that goes into a header, in hex digits: clients give up at 16 KiB of headers.
const MAX_RECEIPT: usize = 8 << 10;

/// The fields of both kinds of completions that [`Common::read`] reads: how tokens are drawn, and how the answer is given.
#[derive(serde::Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what is read field by field")]
pub(super) struct OpenAiSampling {
    /// 0 takes the likeliest token each time; 1 unless said.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    top_k: Option<u32>,
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f64>,
    #[schema(minimum = 0.01, maximum = 100)]
    repeat_penalty: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f64>,
    /// Token ids, and what is added to their logits, from -100 to 100.
    logit_bias: Option<BTreeMap<String, f64>>,
    seed: Option<i64>,
    /// A text, or four at most, that end the answer.
    #[schema(value_type = Option<OpenAiStop>)]
    stop: Option<Value>,
    ignore_eos: Option<bool>,
    /// Answers to each prompt.
    #[schema(minimum = 1, maximum = 16)]
    n: Option<u32>,
    stream: Option<bool>,
    /// Goes with `stream`.
    stream_options: Option<OpenAiStreamOptions>,
}

#[derive(serde::Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what is read field by field")]
struct OpenAiStreamOptions {
    /// Whether a last piece tells the tokens.
    include_usage: Option<bool>,
}

#[derive(serde::Deserialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what is read field by field")]
enum OpenAiStop {
    One(String),
    Some(Vec<String>),
}

/// What both kinds of completions ask for.
pub(super) struct Common {
    /// The request, but for what is asked.
    pub(super) infer: InferRequest,
    pub(super) n: usize,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

impl Common {
    /// Reads the fields that say how tokens are drawn, and how the answer is given.
    pub(super) fn read(fields: &mut Fields, wishes: Wishes, reference: String) -> Result<Self, ApiError> {
        let n = fields.whole("n", 1..=u32::try_from(MAX_CHOICES).unwrap_or(u32::MAX))?.unwrap_or(1);
        let stream = fields.flag("stream")?.unwrap_or(false);
        let options = fields.object("stream_options")?;
        if options.is_some() && !stream {
            return Err(ApiError::field("stream_options", "stream_options goes with stream: true"));
        }
        let usage = options.as_ref().and_then(|options| options.get("include_usage"));
        let include_usage = usage.and_then(Value::as_bool).unwrap_or(false);
        let infer = InferRequest {
            temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
            top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0),
            top_k: usize::try_from(fields.whole("top_k", 0..=u32::MAX)?.unwrap_or(0)).unwrap_or(0),
            min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
            repeat_penalty: fields.number("repeat_penalty", 0.01..=100.0)?.unwrap_or(1.0),
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            // The whole text, as OpenAI has it.
            repeat_last_n: -1,
            logit_bias: logit_bias(fields)?,
            seed: fields.seed()?.unwrap_or_else(rand::random),
            // Clients send an empty one for none.
            stop: fields.texts("stop", MAX_STOPS)?.into_iter().filter(|stop| !stop.is_empty()).collect(),
            ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
            max_price: wishes.max_price,
            receipt: wishes.receipt,
            trace: wishes.trace,
            ..InferRequest::new(reference, "")
        };
        Ok(Self { infer, n: usize::try_from(n).unwrap_or(1), stream, include_usage })
    }

    /// The request for a choice: each draws by a seed of its own.
    pub(super) fn choice(&self, k: usize) -> InferRequest {
        let seed = self.infer.seed.wrapping_add(u64::try_from(k).unwrap_or(0));
        InferRequest { seed, ..self.infer.clone() }
    }
}

fn logit_bias(fields: &mut Fields) -> Result<BTreeMap<u32, f32>, ApiError> {
    let wrong = || ApiError::field("logit_bias", "logit_bias has to map token ids to numbers within -100..=100");
    let bias = fields.object("logit_bias")?.unwrap_or_default();
    let one = |(id, bias): (String, Value)| {
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias))?;
        #[expect(clippy::cast_possible_truncation, reason = "within -100..=100")]
        Some((id.parse().ok()?, bias as f32))
    };
    bias.into_iter().map(|entry| one(entry).ok_or_else(wrong)).collect()
}

/// One choice.
struct Choice {
    /// Nothing while it waits for its turn, and when it is over.
    events: Option<mpsc::Receiver<InferEvent>>,
    /// What is asked again where there is no room; nothing when it has begun.
    again: Option<Again>,
}

/// A choice that has not begun.
struct Again {
    asker: Arc<Asker>,
    request: InferRequest,
    /// What its log lines carry.
    log: tracing::Span,
    since: Instant,
    pause: Duration,
    waits: Option<Pin<Box<Sleep>>>,
}

fn ask(asker: &Arc<Asker>, request: InferRequest, log: tracing::Span) -> mpsc::Receiver<InferEvent> {
    let (events, receiver) = mpsc::channel(EVENT_QUEUE);
    let asker = asker.clone();
    tokio::spawn(async move { asker.infer(request, events).instrument(log).await });
    receiver
}

impl Choice {
    fn begin(asker: &Arc<Asker>, request: InferRequest) -> Self {
        let log = tracing::Span::current();
        let events = Some(ask(asker, request.clone(), log.clone()));
        let (asker, since) = (asker.clone(), Instant::now());
        Self { events, again: Some(Again { asker, request, log, since, pause: FIRST_PAUSE, waits: None }) }
    }

    /// Its next event; nothing when it is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<InferEvent>> {
        loop {
            if let Some(again) = &mut self.again
                && let Some(waits) = &mut again.waits
            {
                if waits.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                again.waits = None;
                self.events = Some(ask(&again.asker, again.request.clone(), again.log.clone()));
            }
            let Some(events) = &mut self.events else { return Poll::Ready(None) };
            let Poll::Ready(event) = events.poll_recv(cx) else { return Poll::Pending };
            let event = event.unwrap_or_else(|| {
                let error = InferError::new(ErrorCode::Internal, "the request ended without a word");
                InferEvent::Error { error }
            });
            if let InferEvent::Error { error } = &event {
                self.events = None;
                match &mut self.again {
                    Some(again) if is_full(error) && again.since.elapsed() < WAIT => {
                        again.wait();
                        continue;
                    }
                    _ => {}
                }
            }
            // From here on nothing is asked again.
            self.again = None;
            if matches!(event, InferEvent::Done { .. }) {
                self.events = None;
            }
            return Poll::Ready(Some(event));
        }
    }
}

impl Again {
    fn wait(&mut self) {
        // Those that were refused together do not come back together.
        let part = rand::random_range(0.5..1.0);
        self.waits = Some(Box::pin(sleep(self.pause.mul_f64(part))));
        self.pause = LAST_PAUSE.min(self.pause.saturating_mul(2));
    }
}

/// Whether there was no room, and nothing was done.
fn is_full(error: &InferError) -> bool {
    let full = matches!(error.error_code(), ErrorCode::TooManySessions | ErrorCode::Overloaded | ErrorCode::NoKvPages);
    full && !error.charged
}

/// Choices under way. Dropping it cancels them at every stage.
pub(super) struct Asking {
    choices: Vec<Choice>,
    /// Who is looked at first.
    turn: usize,
    /// Events that came while not all had begun.
    held: VecDeque<(usize, InferEvent)>,
    /// The ways of those that have begun.
    routes: Vec<Option<Vec<RouteHop>>>,
    pub(super) started: Instant,
    opened: Option<Duration>,
    _places: OwnedSemaphorePermit,
}

impl Asking {
    /// Begins with all of `requests`, unless too many are under way.
    pub(super) fn begin(state: &ApiState, requests: Vec<InferRequest>) -> Result<Self, ApiError> {
        let places = state.openai.places(requests.len())?;
        let routes = requests.iter().map(|_| None).collect();
        let choices = requests.into_iter().map(|request| Choice::begin(&state.asker, request)).collect();
        let (started, opened) = (Instant::now(), None);
        Ok(Self { choices, turn: 0, held: VecDeque::new(), routes, started, opened, _places: places })
    }

    /// Choices whose events come from a test.
    #[cfg(test)]
    pub(super) fn of(choices: Vec<mpsc::Receiver<InferEvent>>) -> Self {
        let places = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        let routes = choices.iter().map(|_| None).collect();
        let choices = choices.into_iter().map(|events| Choice { events: Some(events), again: None }).collect();
        let (started, opened) = (Instant::now(), None);
        Self { choices, turn: 0, held: VecDeque::new(), routes, started, opened, _places: places }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.choices.len()
    }

    /// Whether peers take part in any that has begun.
    pub(super) fn is_remote(&self) -> bool {
        self.routes.iter().flatten().any(|hops| !hops.is_empty())
    }

    /// Waits until all have begun, for `patience` at most.
    ///
    /// # Errors
    /// When one fails before.
    pub(super) async fn opened(&mut self, patience: Duration) -> Result<(), InferError> {
        let all = async {
            while self.routes.iter().any(Option::is_none) && self.held.len() < MAX_HELD {
                match self.receive().await {
                    Some((_, InferEvent::Error { error })) => return Err(error),
                    Some(event) => self.held.push_back(event),
                    None => break,
                }
            }
            Ok(())
        };
        let opened = timeout(patience, all).await.unwrap_or(Ok(()));
        self.opened = Some(self.started.elapsed());
        opened
    }

    /// The next event, and whose it is; nothing when all are over.
    pub(super) async fn next(&mut self) -> Option<(usize, InferEvent)> {
        match self.held.pop_front() {
            Some(event) => Some(event),
            None => self.receive().await,
        }
    }

    async fn receive(&mut self) -> Option<(usize, InferEvent)> {
        let event = poll_fn(|cx| {
            let (count, mut open) = (self.choices.len(), false);
            for step in 0..count {
                let at = (self.turn + step) % count;
                let Some(choice) = self.choices.get_mut(at) else { continue };
                match choice.poll(cx) {
                    Poll::Ready(Some(event)) => {
                        self.turn = at + 1;
                        return Poll::Ready(Some((at, event)));
                    }
                    Poll::Ready(None) => {}
                    Poll::Pending => open = true,
                }
            }
            if open { Poll::Pending } else { Poll::Ready(None) }
        });
        let event = event.await?;
        if let (at, InferEvent::Route { hops, .. }) = &event
            && let Some(route) = self.routes.get_mut(*at)
        {
            *route = Some(hops.clone());
        }
        Some(event)
    }

    /// What is known of the way before the answer.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        route_header(&mut headers, self.routes.iter().flatten().map(Vec::as_slice));
        if let Some(opened) = self.opened {
            put(&mut headers, SERVER_TIMING, &format!("route;dur={:.3}", opened.as_secs_f64() * 1e3));
        }
        headers
    }
}

/// The ways of some answers, each way once.
pub(super) fn route_header<'a>(headers: &mut HeaderMap, routes: impl Iterator<Item = &'a [RouteHop]>) {
    let mut all: Vec<String> = Vec::new();
    for route in routes.map(route_text) {
        if !all.contains(&route) {
            all.push(route);
        }
    }
    put(headers, ROUTE, &all.join("; "));
}

/// What is known when all is over.
pub(super) fn last_headers(headers: &mut HeaderMap, summaries: &[Summary]) {
    put(headers, COST, &cost(summaries));
    put(headers, SERVER_TIMING, &timing(summaries));
    let receipts = summaries.iter().filter_map(|summary| summary.receipt.as_deref());
    for receipt in receipts.filter(|receipt| receipt.len() <= MAX_RECEIPT) {
        if let Ok(receipt) = HeaderValue::from_str(receipt) {
            headers.append(RECEIPT, receipt);
        }
    }
}

/// What all choices cost, in credits.
pub(super) fn cost(summaries: &[Summary]) -> String {
    let costs = summaries.iter().filter_map(|summary| summary.cost.as_ref());
    Credits(costs.fold(0_u64, |sum, cost| sum.saturating_add(cost.micro_credits))).to_string()
}

/// How long it took, as the header `Server-Timing` has it: of the slowest choice.
pub(super) fn timing(summaries: &[Summary]) -> String {
    let most = |of: fn(&Summary) -> f64| summaries.iter().map(of).fold(0.0, f64::max) * 1e3;
    format!("ttft;dur={:.3}, total;dur={:.3}", most(|s| s.ttft_s), most(|s| s.total_s))
}

/// A way in one line: each peer with its layers.
fn route_text(hops: &[RouteHop]) -> String {
    let mut text = String::new();
    for hop in hops {
        let comma = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{comma}{}={}", hop.peer, hop.layers);
    }
    if text.is_empty() { "local".into() } else { text }
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value)
        && !value.is_empty()
    {
        headers.insert(name, value);
    }
}
