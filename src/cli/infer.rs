//! `quelea infer`.

use std::{cell::Cell, fmt::Write as _, io::Read as _, process::ExitCode};

use quelea_wire::ErrorCode;
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    args::{Global, InferArgs, RouteArg},
    client::{Daemon, unusable},
    exit::{CliError, Exit},
    output::{data_bytes, data_line, document, note, printable},
    receipt::Place,
};
use crate::{
    home::Home,
    identity,
    inference::{
        CutOff, FinishReason, InferEvent, InferRequest, LikelyToken, PromptForm, Route, RouteHop, Saw, Speculate,
        Speculation, Summary, TokenLogprobs, models::quantised, planner::size, session_log::SessionLogs,
    },
    node::{GRACE, Node, settings::Settings},
};

/// The longest line of an event stream: a summary with the ids of a long prompt.
const LINE_MAX: usize = 16 << 20;

pub(super) async fn run(global: &Global, args: InferArgs) -> Result<ExitCode, CliError> {
    let request = request(&args)?;
    let show = Show::new(global, &args)?;
    let ended = ask(global, args, request, &show).await;
    ended.map_err(|mut error| {
        error.go_on = error.cut.as_ref().and_then(|cut| Some(show.go_on(cut.resume.as_deref()?)));
        error
    })
}

async fn ask(global: &Global, args: InferArgs, request: InferRequest, show: &Show) -> Result<ExitCode, CliError> {
    if !args.bootstrap.is_empty() || (args.route == RouteArg::Local && global.api.is_none()) {
        return Box::pin(as_passing_peer(global, args, request, show)).await;
    }
    let daemon = Daemon::find(global)?;
    through_daemon(&daemon, &request, show).await.map_err(|error| match error.code {
        ErrorCode::DaemonUnreachable => error.hint("start one with 'quelea daemon', or pass --bootstrap MULTIADDR"),
        _ => error,
    })
}

fn request(args: &InferArgs) -> Result<InferRequest, CliError> {
    let prompt = args.prompt.as_deref().unwrap_or_default();
    let prompt = if prompt == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| CliError::new(ErrorCode::Usage, format!("cannot read the prompt from stdin: {e}")))?;
        text
    } else {
        prompt.to_owned()
    };
    let form = match (args.chat, args.raw) {
        (true, _) => PromptForm::Chat,
        (_, true) => PromptForm::Raw,
        _ => PromptForm::Auto,
    };
    let sampling = &args.sampling;
    Ok(InferRequest {
        model: quantised(&absolute(&args.model), args.quantize),
        form,
        system: args.system.clone(),
        max_tokens: args.max_tokens,
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        repeat_penalty: sampling.repeat_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        repeat_last_n: sampling.repeat_last_n,
        logit_bias: sampling.logit_bias.iter().copied().collect(),
        stop: args.stop.clone(),
        format: args.format.clone(),
        logprobs: args.logprobs.map(usize::from),
        seed: sampling.seed,
        ignore_eos: args.ignore_eos,
        step_timeout_ms: u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX),
        route: match args.route {
            RouteArg::Auto => Route::Auto,
            RouteArg::Swarm => Route::Swarm,
            RouteArg::Local => Route::Local,
        },
        speculate: args.speculate.unwrap_or(if args.draft.is_some() { Speculate::Auto } else { Speculate::Off }),
        draft: args.draft.as_deref().map(absolute),
        objective: args.objective.into(),
        max_price: args.max_price.max_price.map(|most| most.0),
        receipt: args.max_price.receipt.is_some(),
        resume: args.resume.clone(),
        thin: args.thin.choice(),
        private: args.thin.private,
        profile: args.thin.profile(),
        ..InferRequest::new("", prompt)
    })
}

/// A file's or folder's full path: the daemon runs in another directory.
pub(super) fn absolute(model: &str) -> String {
    let path = std::path::Path::new(model);
    match path.canonicalize() {
        Ok(full) if path.is_file() || path.is_dir() => full.to_string_lossy().into_owned(),
        _ => model.into(),
    }
}

async fn as_passing_peer(
    global: &Global,
    args: InferArgs,
    request: InferRequest,
    show: &Show,
) -> Result<ExitCode, CliError> {
    let mut settings = Settings::passing(&args.network, args.bootstrap.clone());
    settings.compute = args.compute.options();
    // Where what a model known by its id needs here is kept; made when there is something to keep.
    settings.models = Home::locate(global.data_dir.clone()).ok().map(|home| home.models());
    settings.sessions = match kept_answers(global) {
        Ok(sessions) => Some(sessions),
        Err(error) if args.resume.is_some() => return Err(error),
        Err(error) => {
            show.warn(&format!("if this answer is cut off, it cannot be gone on with: {}", error.message));
            None
        }
    };
    settings.masking = super::masking::of_passing(&args.masked, &args.bootstrap)?;
    let node = Node::start(settings).await?;
    let reached =
        async { if args.bootstrap.is_empty() { Ok(()) } else { node.wait_for_bootstrap(&args.bootstrap).await } };
    let reached = tokio::select! {
        reached = reached => reached.map(|()| true),
        () = interrupted() => Ok(false),
    };
    let result = match reached {
        Ok(true) => {
            let mut events = node.ask(request);
            show.until_interrupted(events_of(&mut events)).await
        }
        Ok(false) => Ok(ExitCode::from(Exit::Interrupted as u8)),
        Err(error) => Err(error.into()),
    };
    // Gives the cancellation time to reach the stages; who is in a hurry presses Ctrl-C again.
    tokio::select! {
        () = node.shutdown(GRACE) => {}
        () = interrupted() => {}
    }
    result
}

/// Where a passing peer keeps its answers: with those of the data directory's daemon, whose identity they are encrypted
/// with. Its own lasts only as long as it does.
fn kept_answers(global: &Global) -> Result<SessionLogs, CliError> {
    let home = Home::new(global.data_dir.clone()).map_err(unusable)?;
    let keypair = identity::load_or_create(&home.identity_key())
        .map_err(|e| CliError::new(ErrorCode::IdentityUnusable, e.to_string()))?;
    SessionLogs::new(home.sessions(), &keypair).ok_or_else(|| unusable("its identity has no secrets to give"))
}

fn events_of(
    events: &mut mpsc::Receiver<InferEvent>,
) -> impl AsyncFnMut() -> Result<Option<InferEvent>, CliError> + '_ {
    async move || Ok(events.recv().await)
}

async fn through_daemon(daemon: &Daemon, request: &InferRequest, show: &Show) -> Result<ExitCode, CliError> {
    let asked = tokio::select! {
        response = daemon.post_stream("/api/v1/infer", request) => response?,
        () = interrupted() => return Ok(ExitCode::from(Exit::Interrupted as u8)),
    };
    let mut lines = daemon.lines(asked, LINE_MAX);
    let next = async || lines.next().await;
    // Dropping the response closes the connection, by which the daemon cancels the request.
    show.until_interrupted(next).await
}

pub(super) async fn interrupted() {
    // Without a handler for the signal the process just ends, which cancels as well.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// How events are shown.
struct Show {
    as_json: bool,
    /// Bytes of the answer that are not to be shown again.
    skip: Cell<u64>,
    /// Bytes of it that have been shown.
    shown: Cell<u64>,
    /// The options by which it is gone on with, apart from its name.
    options: String,
    /// Where the receipt goes.
    receipt: Cell<Option<Place>>,
}

/// What has come of an answer.
#[derive(Default)]
struct SoFar {
    route: Vec<RouteHop>,
    resume: Option<String>,
    text: String,
    warnings: Vec<String>,
}

impl Show {
    /// Fails where no receipt could be written that is wanted.
    fn new(global: &Global, args: &InferArgs) -> Result<Self, CliError> {
        let mut options = String::new();
        let mut option = |name: &str, value: &str| options.push_str(&format!(" {name} {}", quoted(value)));
        args.bootstrap.iter().for_each(|peer| option("--bootstrap", &peer.to_string()));
        if args.network != "main" {
            option("--network", &args.network);
        }
        if args.route == RouteArg::Local {
            option("--route", "local");
        }
        if let Some(dir) = &global.data_dir {
            option("--data-dir", &dir.to_string_lossy());
        }
        if let Some(api) = &global.api {
            option("--api", api);
        }
        if args.masked.masking {
            options.push_str(" --masking");
        }
        let receipt = args.max_price.receipt.as_deref().map(Place::reserve).transpose()?;
        Ok(Self {
            as_json: global.json,
            skip: Cell::new(args.shown),
            shown: Cell::new(args.shown),
            options,
            receipt: Cell::new(receipt),
        })
    }

    /// The command that goes on with the answer, where it has been shown.
    fn go_on(&self, name: &str) -> String {
        let mut command = format!("quelea infer --resume {name}{}", self.options);
        if self.shown.get() > 0 && !self.as_json {
            let _ = write!(command, " --shown {}", self.shown.get());
        }
        command
    }

    /// Something to know, for people.
    fn warn(&self, message: &str) {
        if !self.as_json {
            note(&format!("warning: {}", printable(message)));
        }
    }

    /// More of the answer, but for what has been shown before.
    fn text(&self, text: &str) -> Result<(), CliError> {
        let text = printable(text);
        let skipped = usize::try_from(self.skip.get()).unwrap_or(usize::MAX).min(text.len());
        let new = text.as_bytes().get(skipped..).unwrap_or_default();
        let count = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
        self.skip.set(self.skip.get().saturating_sub(count(skipped)));
        if new.is_empty() {
            return Ok(());
        }
        data_bytes(new)?;
        self.shown.set(self.shown.get().saturating_add(count(new.len())));
        Ok(())
    }

    /// Shows events until the last one, or Ctrl-C.
    async fn until_interrupted(
        &self,
        next: impl AsyncFnMut() -> Result<Option<InferEvent>, CliError>,
    ) -> Result<ExitCode, CliError> {
        let mut so_far = SoFar::default();
        tokio::select! {
            result = self.events(next, &mut so_far) => result,
            () = interrupted() => {
                if !self.as_json {
                    note("\ncancelled");
                    if let Some(name) = &so_far.resume {
                        note(&format!("it goes on with: {}", self.go_on(name)));
                    }
                }
                Ok(ExitCode::from(Exit::Interrupted as u8))
            }
        }
    }

    async fn events(
        &self,
        mut next: impl AsyncFnMut() -> Result<Option<InferEvent>, CliError>,
        so_far: &mut SoFar,
    ) -> Result<ExitCode, CliError> {
        loop {
            let ended = match next().await {
                Ok(Some(InferEvent::Route { hops, resume, .. })) => {
                    (so_far.route, so_far.resume) = (hops, resume);
                    continue;
                }
                Ok(Some(InferEvent::Text { text, .. })) => {
                    so_far.text.push_str(&text);
                    if !self.as_json {
                        self.text(&text)?;
                    }
                    continue;
                }
                Ok(Some(InferEvent::Warning { message })) => {
                    self.warn(&message);
                    so_far.warnings.push(message);
                    continue;
                }
                Ok(Some(InferEvent::Done { summary })) => {
                    self.done(so_far, &summary)?;
                    return Ok(ExitCode::SUCCESS);
                }
                Ok(Some(InferEvent::Error { error })) => error.into(),
                Ok(None) => {
                    so_far.lost(CliError::new(ErrorCode::DaemonUnreachable, "the answer stopped before its end"))
                }
                Err(error) => so_far.lost(error),
            };
            if !self.as_json && !so_far.text.is_empty() {
                // Not on stdout, where the rest of the answer may follow.
                note("");
            }
            return Err(ended);
        }
    }

    /// The answer is complete. It is shown before its receipt is written: should that fail, it is paid for all the same.
    fn done(&self, so_far: &mut SoFar, summary: &Summary) -> Result<(), CliError> {
        let place = self.receipt.take();
        if place.is_some() && summary.receipt.is_none() {
            let message = "there is no receipt: no peer computed anything";
            self.warn(message);
            so_far.warnings.push(message.into());
        }
        self.show(so_far, summary)?;
        let (Some(place), Some(receipt)) = (place, &summary.receipt) else { return Ok(()) };
        let bytes = hex::decode(receipt).map_err(|e| CliError::new(ErrorCode::ReceiptWrong, e.to_string()))?;
        place.write(&bytes)
    }

    fn show(&self, so_far: &SoFar, summary: &Summary) -> Result<(), CliError> {
        let route = &so_far.route;
        if self.as_json {
            let mut more = json!({ "route": route });
            if !so_far.warnings.is_empty() {
                more["warnings"] = json!(so_far.warnings);
            }
            return data_line(&document("quelea.infer/v1", summary, more)?);
        }
        data_line("")?;
        for likely in summary.logprobs.iter().flatten() {
            note(&logprob_line(likely));
        }
        note(&footer(route, summary));
        Ok(())
    }
}

impl SoFar {
    /// Whoever answered has gone without a word.
    fn lost(&self, error: CliError) -> CliError {
        let cut = CutOff { text: self.text.clone(), resume: self.resume.clone() };
        let nothing = cut == CutOff::default();
        CliError { cut: error.cut.or_else(|| (!nothing).then(|| Box::new(cut))), ..error }
    }
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:,=+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// The lines under an answer.
pub(super) fn footer(route: &[RouteHop], summary: &Summary) -> String {
    let mut lines = vec![String::new()];
    let stages: Vec<String> = route.iter().map(|hop| format!("{} [{}]", short(&hop.peer), hop.layers)).collect();
    let stages = if stages.is_empty() { "here, unsplit".into() } else { stages.join(" → ") };
    lines.push(format!("route:        {stages}"));
    if !summary.private.is_empty() {
        lines.push(format!("private:      layers {} ran here", summary.private.join(" and ")));
    }
    for Saw { peer, layers, tokens } in &summary.saw {
        let what = if *tokens { "the tokens, and the rows of" } else { "the rows of" };
        lines.push(format!("saw:          {} {what} layers {layers}", short(peer)));
    }
    if let Some(first) = route.iter().find(|hop| hop.sees_tokens) {
        lines.push(format!("thin:         {} embedded the tokens, and saw them", short(&first.peer)));
    }
    let why = match (summary.finish_reason, &summary.stop_string) {
        (FinishReason::Stop, Some(stop)) => format!("stopped before {stop:?}"),
        (FinishReason::Stop, None) => "the model stopped".into(),
        (FinishReason::Length, _) => "the length was reached".into(),
    };
    let rate = summary.tokens_per_s.map_or_else(String::new, |rate| format!(", {rate:.1} tokens/s"));
    let before = match summary.resumed_tokens {
        0 => String::new(),
        n => format!(", {n} of them from before"),
    };
    lines.push(format!("answer:       {} token(s){before}{rate} ({why})", summary.ids.len()));
    if let Some(Speculation { proposed, accepted, passes }) = summary.speculation {
        lines.push(format!("speculation:  {accepted} of {proposed} guessed token(s) were right, {passes} passes"));
    }
    let cached = match summary.cached_tokens {
        0 => String::new(),
        n => format!(", {n} of them kept from before"),
    };
    lines.push(format!(
        "prompt:       {} token(s){cached}, {:.1} tokens/s",
        summary.prompt_ids.len(),
        summary.prompt_tokens_per_s
    ));
    if summary.bytes_sent > 0 {
        let (sent, received) = (size(summary.bytes_sent), size(summary.bytes_received));
        lines.push(format!("rows:         {sent} sent, {received} received ({})", summary.profile));
    }
    lines.push(format!("first token:  {:.0} ms   total: {:.2} s", summary.ttft_s * 1e3, summary.total_s));
    if let Some(cost) = &summary.cost {
        lines.push(format!("cost:         {} credits to {} peer(s)", cost.credits, cost.stages.len()));
        for stage in &cost.stages {
            lines.push(format!("paid:         {} [{}]  {} credits", short(&stage.peer), stage.layers, stage.credits));
        }
    }
    if let Some(predicted) = &summary.predicted {
        let here = predicted.local_tokens_per_s.map_or_else(String::new, |rate| format!("; here alone: {rate:.1}"));
        lines.push(format!(
            "predicted:    {:.1} tokens/s, first token {:.0} ms{here}",
            predicted.tokens_per_s,
            predicted.first_token_s * 1e3
        ));
    }
    for hop in &summary.hops {
        let one_way = hop.hop_ms.map_or_else(String::new, |ms| format!(", {ms:.2} ms to the next hop"));
        lines.push(format!(
            "hop:          {} [{}]  {} rows, {:.2} ms computing per row{one_way}",
            short(&hop.peer),
            hop.layers,
            hop.rows,
            hop.compute_ms_per_row
        ));
    }
    lines.join("\n")
}

/// A token, its log-probability, and the alternatives.
fn logprob_line(likely: &TokenLogprobs) -> String {
    let shown = |token: &LikelyToken| format!("{:?} {:.3}", token.token, token.logprob);
    let others: Vec<String> = likely.top_logprobs.iter().map(shown).collect();
    format!("{:<24} {}", shown(&likely.chosen), others.join("  ")).trim_end().to_owned()
}

/// A peer id that fits a line.
pub(super) fn short(peer: &str) -> String {
    let tail = peer.len().saturating_sub(6);
    match (peer.get(..5), peer.get(tail..)) {
        (Some(head), Some(tail)) if peer.len() > 12 => format!("{head}…{tail}"),
        _ => peer.into(),
    }
}
