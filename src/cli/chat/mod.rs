//! `quelea chat`: a conversation with a model, on a terminal or through a pipe.
//!
//! The node applies the model's chat template: what is sent are messages, and each answer is asked for with all of them
//! before it. What prompts have in common is kept by the stages (`inference::prefix`).

mod command;
mod stats;
mod talk;
#[cfg(test)]
mod tests;

use std::{
    io::{self, BufRead as _, IsTerminal as _},
    process::ExitCode,
    time::Duration,
};

use quelea_wire::{Credits, ErrorCode};
use serde_json::{Value, json};

use self::{
    command::{Slash, incomplete},
    stats::Spent,
    talk::{Talk, message},
};
use super::{
    args::{ChatArgs, Global, RouteArg},
    client::{Daemon, home},
    exit::{CliError, Exit},
    infer::{absolute, interrupted},
    line::{Editor, Entered},
    output::{data, data_line, document, look, note, printable},
};
use crate::inference::{InferEvent, RouteHop, Summary};

/// The longest line of an answer's stream.
const LINE_MAX: usize = 16 << 20;

/// The longest turn that is read from a pipe.
const TURN_MAX: usize = 1 << 20;

/// How long one step of an answer may take.
const STEP: Duration = Duration::from_secs(30);

pub(super) async fn run(global: &Global, args: ChatArgs) -> Result<ExitCode, CliError> {
    let mut chat = Chat::new(global, &args)?;
    if let Some(prompt) = &args.prompt {
        let answered = chat.turn(prompt).await?;
        return Ok(if answered { ExitCode::SUCCESS } else { ExitCode::from(Exit::Interrupted as u8) });
    }
    if io::stdin().is_terminal() && !global.no_input {
        return chat.on_terminal().await;
    }
    chat.through_pipe().await
}

/// A conversation under way.
struct Chat<'a> {
    global: &'a Global,
    daemon: Daemon,
    talk: Talk,
    route: RouteArg,
    max_cost: Option<Credits>,
    /// Whether what an answer took is shown.
    stats: bool,
    spent: Spent,
}

/// What has come of a turn.
struct Answer {
    text: String,
    route: Vec<RouteHop>,
    summary: Option<Box<Summary>>,
}

impl<'a> Chat<'a> {
    fn new(global: &'a Global, args: &ChatArgs) -> Result<Self, CliError> {
        let mut talk = Talk::new(absolute(&args.model), args.system.clone());
        talk.set("max_tokens", json!(args.max_tokens));
        // As it was written: 0.7, not the nearest f32 in full.
        talk.set("temperature", args.temperature.to_string().parse().unwrap_or(Value::Null));
        if let Some(seed) = args.seed {
            talk.set("seed", json!(seed));
        }
        if let Some(format) = &args.format {
            talk.set("format", json!(format));
        }
        if let Some(file) = &args.load {
            talk = Talk::load(file)?;
        }
        Ok(Self {
            global,
            daemon: Daemon::find(global)?,
            talk,
            route: args.route,
            max_cost: args.max_cost,
            // After each turn of a conversation; after a single answer where it is wanted.
            stats: !global.json && (args.stats || args.prompt.is_none()),
            spent: Spent::default(),
        })
    }

    async fn on_terminal(&mut self) -> Result<ExitCode, CliError> {
        let history = home(self.global).ok().filter(|home| home.dir().is_dir());
        let mut editor =
            Editor::new("", history.map(|home| home.dir().join("chat.history")), None).continued(incomplete);
        note(&format!("{}: /help shows what can be done, /quit ends", self.talk.model()));
        loop {
            match editor.read()? {
                Entered::End => return Ok(ExitCode::SUCCESS),
                Entered::Nothing => {}
                Entered::Line(text) => match self.entered(&text).await {
                    Ok(true) => {}
                    Ok(false) => return Ok(ExitCode::SUCCESS),
                    // A conversation outlives an answer that failed.
                    Err(error) => drop(error.report(self.global.json)),
                },
            }
        }
    }

    async fn through_pipe(&mut self) -> Result<ExitCode, CliError> {
        let mut first = None;
        while let Some(text) = tokio::task::block_in_place(|| turn_of(&mut io::stdin().lock()))? {
            match self.entered(&text).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    let code = error.report(self.global.json);
                    first.get_or_insert(code);
                }
            }
        }
        Ok(first.unwrap_or(ExitCode::SUCCESS))
    }

    /// What was entered: a command, or something to say. Tells whether the conversation goes on.
    async fn entered(&mut self, text: &str) -> Result<bool, CliError> {
        let Some(slash) = command::parse(text)? else {
            let said = command::unquoted(text);
            if !said.trim().is_empty() {
                self.turn(&said).await?;
            }
            return Ok(true);
        };
        match slash {
            Slash::Help => note(command::HELP),
            Slash::Quit => return Ok(false),
            Slash::System(None) => note(&printable(self.talk.system().unwrap_or("there is no system message"))),
            Slash::System(Some(text)) => self.talk.set_system(Some(text).filter(|text| !text.is_empty())),
            Slash::Model(None) => note(self.talk.model()),
            Slash::Model(Some(model)) => self.talk.set_model(absolute(&model)),
            Slash::Params(changes) => {
                for (name, value) in changes {
                    self.talk.set(&name, value);
                }
                note(&self.talk.params());
            }
            Slash::Save(file) => {
                self.talk.save(&file)?;
                note(&format!("written to {}", file.display()));
            }
            Slash::Load(file) => {
                self.talk = Talk::load(&file)?;
                note(&format!("{} message(s) with {}", self.talk.messages().len(), self.talk.model()));
            }
            Slash::Regenerate => {
                let Some(said) = self.talk.take_last_question() else {
                    return Err(CliError::new(ErrorCode::Usage, "nothing was asked yet"));
                };
                self.turn(&said).await?;
            }
            Slash::Clear => {
                self.talk.clear();
                note("the conversation begins anew; the system message stays");
            }
            Slash::Cost => note(&self.spent.shown()),
            Slash::Stats(on) => self.stats = on,
        }
        Ok(true)
    }

    /// Says something, and shows the answer. Tells whether it came to its end.
    async fn turn(&mut self, said: &str) -> Result<bool, CliError> {
        self.talk.asked(said);
        let mut answer = Answer { text: String::new(), route: Vec::new(), summary: None };
        let body = self.body();
        let ended = tokio::select! {
            ended = self.answer(&body, &mut answer) => ended.map(|()| true),
            // Dropping the response closes the connection, by which the daemon cancels at every stage.
            () = interrupted() => Ok(false),
        };
        if !self.global.json && !answer.text.is_empty() {
            data_line("")?;
        }
        if answer.text.is_empty() && !matches!(ended, Ok(true)) {
            // Nothing was said to it: the question can be asked again.
            self.talk.unanswered();
        } else {
            self.talk.answered(&answer.text);
        }
        match ended {
            Err(error) => Err(error),
            Ok(false) => {
                note("stopped");
                Ok(false)
            }
            Ok(true) => {
                let Some(summary) = &answer.summary else { return Ok(true) };
                self.spent.add(summary);
                if self.global.json {
                    let more = json!({
                        "model": self.talk.model(), "route": answer.route, "message": message("assistant", &answer.text),
                    });
                    data_line(&document("quelea.chat.turn/v1", summary, more)?)?;
                } else if self.stats {
                    let (dim, end) = if look().colour_of_errors { ("\u{1b}[2m", "\u{1b}[0m") } else { ("", "") };
                    note(&format!("{dim}{}{end}", stats::lines(&answer.route, summary)));
                }
                Ok(true)
            }
        }
    }

    fn body(&self) -> Value {
        let mut body = self.talk.request();
        body["route"] = json!(match self.route {
            RouteArg::Auto => "auto",
            RouteArg::Swarm => "swarm",
            RouteArg::Local => "local",
        });
        body["step_timeout_ms"] = json!(STEP.as_millis());
        if let Some(most) = self.max_cost {
            body["max_price"] = json!(most.0);
        }
        if body.get("seed").is_none() {
            body["seed"] = json!(rand::random::<u32>());
        }
        body
    }

    async fn answer(&self, body: &Value, answer: &mut Answer) -> Result<(), CliError> {
        let mut lines = self.daemon.lines(self.daemon.post_stream("/api/v1/infer", body).await?, LINE_MAX);
        loop {
            match lines.next().await? {
                Some(InferEvent::Route { hops, .. }) => answer.route = hops,
                Some(InferEvent::Text { text, .. }) => {
                    answer.text.push_str(&text);
                    if !self.global.json {
                        data(&printable(&text))?;
                    }
                }
                Some(InferEvent::Warning { message }) => note(&format!("warning: {}", printable(&message))),
                Some(InferEvent::Done { summary }) => {
                    answer.summary = Some(summary);
                    return Ok(());
                }
                Some(InferEvent::Error { error }) => {
                    let error = CliError::from(error);
                    return Err(match error.code {
                        ErrorCode::ContextFull => error.hint("/clear begins anew, /params max_tokens=N asks for less"),
                        _ => error,
                    });
                }
                None => {
                    return Err(CliError::new(ErrorCode::DaemonUnreachable, "the answer stopped before its end"));
                }
            }
        }
    }
}

/// The next turn of a pipe: a line, or what stands between two `"""`.
fn turn_of(input: &mut impl io::BufRead) -> Result<Option<String>, CliError> {
    let mut text = String::new();
    loop {
        let before = text.len();
        let read = io::Read::take(&mut *input, TURN_MAX as u64 + 1).read_line(&mut text);
        read.map_err(|e| CliError::new(ErrorCode::Usage, format!("cannot read from stdin: {e}")))?;
        if text.len() > TURN_MAX {
            return Err(CliError::new(ErrorCode::Usage, "a turn has 1 MiB at most"));
        }
        if text.len() == before {
            return Ok(Some(text).filter(|text| !text.is_empty()));
        }
        if !incomplete(text.trim_end_matches(['\n', '\r'])) {
            text.truncate(text.trim_end_matches(['\n', '\r']).len());
            return Ok(Some(text));
        }
    }
}
