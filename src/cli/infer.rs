//! `quelea infer`.

use std::{io::Read as _, process::ExitCode};

use quelea_wire::ErrorCode;
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    args::{Global, InferArgs, RouteArg},
    client::Daemon,
    exit::{CliError, Exit},
    output::{data, data_line, document, note, printable},
};
use crate::{
    home::Home,
    inference::{
        FinishReason, InferError, InferEvent, InferRequest, LikelyToken, PromptForm, Route, RouteHop, Speculate,
        Speculation, Summary, TokenLogprobs, models::quantised,
    },
    node::{GRACE, Node, settings::Settings},
};

/// The longest line of an event stream: a summary with the ids of a long prompt.
const LINE_MAX: usize = 16 << 20;

pub(super) async fn run(global: &Global, args: InferArgs) -> Result<ExitCode, CliError> {
    let request = request(&args)?;
    let show = Show { as_json: global.json };
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
    let prompt = if args.prompt == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| CliError::new(ErrorCode::Usage, format!("cannot read the prompt from stdin: {e}")))?;
        text
    } else {
        args.prompt.clone()
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
    show: Show,
) -> Result<ExitCode, CliError> {
    let mut settings = Settings::passing(&args.network, args.bootstrap.clone());
    settings.compute = args.compute.options();
    // Where what a model known by its id needs here is kept; made when there is something to keep.
    settings.models = Home::locate(global.data_dir.clone()).ok().map(|home| home.models());
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
            let mut events = node.infer(request);
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

fn events_of(
    events: &mut mpsc::Receiver<InferEvent>,
) -> impl AsyncFnMut() -> Result<Option<InferEvent>, CliError> + '_ {
    async move || Ok(events.recv().await)
}

async fn through_daemon(daemon: &Daemon, request: &InferRequest, show: Show) -> Result<ExitCode, CliError> {
    let asked = tokio::select! {
        response = daemon.post("/api/v1/infer", request) => response?,
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
#[derive(Clone, Copy)]
struct Show {
    as_json: bool,
}

impl Show {
    /// Shows events until the last one, or Ctrl-C.
    async fn until_interrupted(
        self,
        next: impl AsyncFnMut() -> Result<Option<InferEvent>, CliError>,
    ) -> Result<ExitCode, CliError> {
        tokio::select! {
            result = self.events(next) => result,
            () = interrupted() => {
                if !self.as_json {
                    data_line("")?;
                    note("cancelled");
                }
                Ok(ExitCode::from(Exit::Interrupted as u8))
            }
        }
    }

    async fn events(
        self,
        mut next: impl AsyncFnMut() -> Result<Option<InferEvent>, CliError>,
    ) -> Result<ExitCode, CliError> {
        let mut route = Vec::new();
        let mut started = false;
        while let Some(event) = next().await? {
            match event {
                InferEvent::Route { hops, .. } => route = hops,
                InferEvent::Text { text, .. } if !self.as_json => {
                    started = true;
                    data(&printable(&text))?;
                }
                InferEvent::Text { .. } => {}
                InferEvent::Done { summary } => {
                    self.done(&route, &summary)?;
                    return Ok(ExitCode::SUCCESS);
                }
                InferEvent::Error { error } => {
                    if started {
                        data_line("")?;
                    }
                    return Err(error.into());
                }
            }
        }
        Err(InferError::new(ErrorCode::DaemonUnreachable, "the answer stopped before its end").into())
    }

    fn done(self, route: &[RouteHop], summary: &Summary) -> Result<(), CliError> {
        if self.as_json {
            return data_line(&document("quelea.infer/v1", summary, json!({ "route": route }))?);
        }
        data_line("")?;
        for likely in summary.logprobs.iter().flatten() {
            note(&logprob_line(likely));
        }
        note(&footer(route, summary));
        Ok(())
    }
}

/// The lines under an answer.
pub(super) fn footer(route: &[RouteHop], summary: &Summary) -> String {
    let mut lines = vec![String::new()];
    let stages: Vec<String> = route.iter().map(|hop| format!("{} [{}]", short(&hop.peer), hop.layers)).collect();
    let stages = if stages.is_empty() { "here, unsplit".into() } else { stages.join(" → ") };
    lines.push(format!("route:        {stages}"));
    let why = match (summary.finish_reason, &summary.stop_string) {
        (FinishReason::Stop, Some(stop)) => format!("stopped before {stop:?}"),
        (FinishReason::Stop, None) => "the model stopped".into(),
        (FinishReason::Length, _) => "the length was reached".into(),
    };
    let rate = summary.tokens_per_s.map_or_else(String::new, |rate| format!(", {rate:.1} tokens/s"));
    lines.push(format!("answer:       {} token(s){rate} ({why})", summary.ids.len()));
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
    lines.push(format!("first token:  {:.0} ms   total: {:.2} s", summary.ttft_s * 1e3, summary.total_s));
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
