//! Reading lines from a terminal: editing, history, completion.

use std::{
    borrow::Cow,
    fs::OpenOptions,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::PathBuf,
};

use quelea_wire::ErrorCode;
use reedline::{
    ColumnarMenu, Completer, Emacs, FileBackedHistory, KeyCode, KeyModifiers, MenuBuilder as _, Prompt, PromptEditMode,
    PromptHistorySearch, Reedline, ReedlineEvent, ReedlineMenu, Signal, ValidationResult, Validator,
    default_emacs_keybindings,
};

use super::{
    exit::CliError,
    output::{look, note},
};

/// Lines that are remembered.
const HISTORY: usize = 1000;

/// The menu of completions.
const MENU: &str = "completions";

/// What was entered.
pub(super) enum Entered {
    Line(String),
    /// Ctrl-C: the line is thrown away.
    Nothing,
    /// Ctrl-D.
    End,
}

/// Words before a line.
struct Words(&'static str);

impl Prompt for Words {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        Cow::Borrowed(self.0)
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        Cow::Borrowed("> ")
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        Cow::Borrowed("... ")
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        Cow::Owned(format!("(search: {}) ", search.term))
    }
}

/// Whether there is more to come.
struct More(fn(&str) -> bool);

impl Validator for More {
    fn validate(&self, line: &str) -> ValidationResult {
        if (self.0)(line) { ValidationResult::Incomplete } else { ValidationResult::Complete }
    }
}

/// A line on a terminal.
pub(super) struct Editor {
    reedline: Reedline,
    prompt: Words,
}

impl Editor {
    /// With `history`, lines are remembered there, in a file that only its owner reads.
    pub(super) fn new(
        prompt: &'static str,
        history: Option<PathBuf>,
        completer: Option<Box<dyn Completer + Send>>,
    ) -> Self {
        let mut keys = default_emacs_keybindings();
        let next = ReedlineEvent::UntilFound(vec![ReedlineEvent::Menu(MENU.into()), ReedlineEvent::MenuNext]);
        keys.add_binding(KeyModifiers::NONE, KeyCode::Tab, next);
        let mut reedline = Reedline::create()
            .with_edit_mode(Box::new(Emacs::new(keys)))
            .with_ansi_colors(look().colour)
            // Bracketed paste: lines that are pasted are one entry.
            .use_bracketed_paste(true);
        if let Some(completer) = completer {
            let menu = ReedlineMenu::EngineCompleter(Box::new(ColumnarMenu::default().with_name(MENU)));
            reedline = reedline.with_completer(completer).with_menu(menu).with_partial_completions(true);
        }
        if let Some(file) = history {
            match open(file) {
                Ok(history) => reedline = reedline.with_history(Box::new(history)),
                Err(error) => note(&format!("what is entered here is not remembered: {error}")),
            }
        }
        Self { reedline, prompt: Words(prompt) }
    }

    /// Goes on to another line while this says that there is more to come.
    pub(super) fn continued(mut self, incomplete: fn(&str) -> bool) -> Self {
        self.reedline = self.reedline.with_validator(Box::new(More(incomplete)));
        self
    }

    pub(super) fn read(&mut self) -> Result<Entered, CliError> {
        // The terminal is waited for on this thread; the runtime's others go on.
        let read = tokio::task::block_in_place(|| self.reedline.read_line(&self.prompt));
        match read.map_err(|e| CliError::new(ErrorCode::Internal, format!("cannot read from the terminal: {e}")))? {
            Signal::Success(line) => Ok(Entered::Line(line)),
            Signal::CtrlC => Ok(Entered::Nothing),
            Signal::CtrlD => Ok(Entered::End),
            _ => Ok(Entered::Nothing),
        }
    }
}

fn open(file: PathBuf) -> Result<FileBackedHistory, String> {
    // Before anything is written to it.
    let made = OpenOptions::new().create(true).append(true).mode(0o600).open(&file).map_err(|e| e.to_string())?;
    made.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(|e| e.to_string())?;
    FileBackedHistory::with_file(HISTORY, file).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_entered_is_its_owners() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("history");
        std::fs::write(&file, "ping\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        open(file.clone()).unwrap();
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
