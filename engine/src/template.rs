//! Chat templates: from messages to the text that a model was trained on.
//!
//! A template is a Jinja program from the model's file, written for Python. It runs here as Hugging Face's
//! `apply_chat_template` runs it: blocks trimmed, loop controls, `raise_exception`, `strftime_now`, Python's string
//! and mapping methods, `tojson`, printing and formatting as Python does them. What differs: the time is UTC; methods and
//! filters that no known template uses are missing (`pprint`, `xmlattr`, `random`, `encode`), and so are a macro's
//! `varargs` and `kwargs`; `'…' % value` needs its text as a literal; ranges and the views of a mapping print as lists;
//! `loop.last` is never true over the characters of a string; `safe` text added to other text does not escape it; going
//! over `none` gives nothing where Python fails; `{% generation %}`, a mark for training, is let through without effect.
//!
//! The program comes from a stranger: its source, its output, its time and its memory are bounded.

mod date;
mod filters;
mod format;
mod python;
mod source;
mod strings;

use std::{io, sync::Arc};

use minijinja::{AutoEscape, Environment, Error, ErrorKind, syntax::SyntaxConfig, value::Serde};
use serde_json::{Map, Value};

use crate::{
    gguf::{Gguf, GgufError},
    tokenizer::Tokenizer,
};

/// Longest source. The longest templates in use have some 20 KiB.
const MAX_SOURCE: usize = 256 << 10;

/// Most of what makes a syntax tree deeper: operators, brackets, attributes, filters, tests, branches. The templates in
/// use have some 2000 at most, all in all.
const MAX_OPERATORS: usize = 1 << 13;

/// Stack of the thread that compiles. The parser, the code generator and the drop of a tree recurse, and a chain such as
/// `1+1+…` is one level for each operator, which the engine does not count: measured without optimisation, 1.7 KiB, and
/// under 4 KiB for every kind of chain.
const COMPILE_STACK_BYTES: usize = 8192 * MAX_OPERATORS;

/// Longest rendered text in bytes: more tokens than any context in use holds.
pub const MAX_RENDERED: usize = 1 << 20;

/// Budget of a rendering. An instruction and 64 bytes made cost one each, so this also bounds memory, at 32 MiB. For a
/// text of [`MAX_RENDERED`] in a thousand messages the templates in use need a fifth of it.
const FUEL: u64 = 1 << 19;

/// Stack of the thread that renders. A template can nest lists without end, and dropping them recurses: each level
/// costs some two units of fuel and, measured without optimisation, under 300 bytes of stack. Reserved, but not used
/// by templates that do no such thing.
const STACK_BYTES: usize = 512 * FUEL as usize;

/// The name under which the template stands in its environment.
const NAME: &str = "chat_template";

/// Why a template cannot be used, or gave no text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The file's key has the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The source is no template.
    #[error("the chat template is not valid: {0}")]
    Syntax(#[source] Error),
    /// The thread to render on could not be started.
    #[error("cannot start a thread for the chat template: {0}")]
    Thread(#[source] io::Error),
    /// The source is longer than any real one.
    #[error("the chat template has {found} bytes, at most {max} are allowed")]
    Source {
        /// Its length.
        found: usize,
        /// The bound.
        max: usize,
    },
    /// The source has more operators than any real one: its tree could be too deep.
    #[error("the chat template has {found} operators, brackets and branches, at most {max} are allowed")]
    Operators {
        /// How many there are.
        found: usize,
        /// The bound.
        max: usize,
    },
    /// The template refuses this conversation, in its own words.
    #[error("the chat template refuses this conversation: {message}")]
    Refused {
        /// What it said.
        message: String,
    },
    /// The template failed.
    #[error("the chat template failed: {0}")]
    Failed(#[source] Error),
    /// The text grew past [`MAX_RENDERED`].
    #[error("the chat template made more than {max} bytes")]
    TooLong {
        /// The bound.
        max: usize,
    },
    /// The template did more than any real one has to.
    #[error("the chat template took too much work")]
    TooMuchWork,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template, ready to render. Cloning shares it.
#[derive(Clone, Debug)]
pub struct ChatTemplate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: String,
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// A template from its source and the texts of the tokens that it may name.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`], [`TemplateError::Source`], [`TemplateError::Operators`] or [`TemplateError::Thread`].
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        Self::with_clock(source, bos, eos, date::now)
    }

    /// A template whose `strftime_now` reads this clock: seconds since 1970, in UTC.
    fn with_clock(source: &str, bos: &str, eos: &str, clock: fn() -> u64) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::Source { found: source.len(), max: MAX_SOURCE });
        }
        let prepared = source::prepared(source);
        let found = source::operators(&prepared);
        if found > MAX_OPERATORS {
            return Err(TemplateError::Operators { found, max: MAX_OPERATORS });
        }
        let environment = on_stack(COMPILE_STACK_BYTES, || compiled(prepared, clock))??;
        let (source, bos, eos) = (source.to_owned(), bos.to_owned(), eos.to_owned());
        Ok(Self(Arc::new(Inner { source, environment, bos, eos })))
    }

    /// The template of a GGUF file; none when it has none.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`], or [`TemplateError::Gguf`] when the key is not text.
    pub fn from_gguf(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<Option<Self>, TemplateError> {
        const KEY: &str = "tokenizer.chat_template";
        if !gguf.contains(KEY) {
            return Ok(None);
        }
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.piece(id)).unwrap_or_default();
        Self::new(gguf.get_str(KEY)?, text(tokenizer.bos()), text(tokenizer.eos())).map(Some)
    }

    /// Whether its source has this text in it: by that the families of templates are told apart.
    pub fn mentions(&self, text: &str) -> bool {
        self.0.source.contains(text)
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where the assistant begins to speak. `extra`
    /// are further variables, such as `enable_thinking` or `tools`. Blocks for as long as the template runs: well under
    /// a millisecond for a real one, a second at the bounds.
    ///
    /// # Errors
    /// [`TemplateError`] when the template refuses or fails, or a bound is met.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
    ) -> Result<String, TemplateError> {
        let object = |m: &Message| serde_json::json!({ "role": m.role, "content": m.content });
        let messages: Vec<Value> = messages.iter().map(object).collect();
        self.render_values(&messages, add_generation_prompt, extra)
    }

    /// As [`ChatTemplate::render`], for messages with more to them, such as `tool_calls`. Each is an object.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_values(
        &self,
        messages: &[Value],
        add_generation_prompt: bool,
        extra: &Map<String, Value>,
    ) -> Result<String, TemplateError> {
        let mut context = Map::new();
        // These two are always defined in Python, and templates ask whether they are none.
        context.insert("tools".to_owned(), Value::Null);
        context.insert("documents".to_owned(), Value::Null);
        context.extend(extra.iter().map(|(key, value)| (key.clone(), value.clone())));
        context.insert("messages".to_owned(), Value::Array(messages.to_vec()));
        context.insert("add_generation_prompt".to_owned(), Value::Bool(add_generation_prompt));
        context.insert("bos_token".to_owned(), Value::String(self.0.bos.clone()));
        context.insert("eos_token".to_owned(), Value::String(self.0.eos.clone()));

        on_stack(STACK_BYTES, || self.run(&context))?
    }

    fn run(&self, context: &Map<String, Value>) -> Result<String, TemplateError> {
        let template = self.0.environment.get_template(NAME).map_err(TemplateError::Syntax)?;
        let mut out = Capped { text: Vec::new(), full: false };
        match template.render_captured_to(minijinja::Value::from(Serde(context)), &mut out) {
            // Jinja writes text only.
            Ok(_) => Ok(String::from_utf8_lossy(&out.text).into_owned()),
            Err(_) if out.full => Err(TemplateError::TooLong { max: MAX_RENDERED }),
            Err(error) => Err(failure(error)),
        }
    }
}

/// The environment in which a template is written, with the template. Recurses as deep as the source's syntax tree.
fn compiled(source: String, clock: fn() -> u64) -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(TemplateError::Syntax)?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    // Errors would carry the template's values out of the rendering thread.
    environment.set_debug(false);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(python::format);
    environment.add_filter("tojson", python::tojson);
    // Its time grows with the cube of a value's depth, unpaid. No chat template prints for debugging.
    environment.remove_filter("pprint");
    environment.add_filter("string", python::string);
    for name in ["default", "d"] {
        environment.add_filter(name, python::default);
    }
    for name in ["escape", "e"] {
        environment.add_filter(name, python::escape);
    }
    environment.add_filter("int", python::to_int);
    environment.add_filter("float", python::to_float);
    filters::add(&mut environment);
    environment.add_function("dict", python::dict);
    environment.add_filter("center", python::center);
    environment.add_filter("wordcount", python::wordcount);
    environment.add_test("iterable", python::is_iterable);
    environment.add_test("sequence", python::is_sequence);
    environment.add_test("callable", |value: &minijinja::Value| value.is_undefined());
    environment.add_function("strftime_now", move |pattern: &str| date::strftime(pattern, clock()));
    environment.add_function("raise_exception", raise_exception);
    environment.add_template_owned(NAME, source).map_err(TemplateError::Syntax)?;
    Ok(environment)
}

/// What `work` gives, on a thread with a stack of its own.
fn on_stack<T: Send>(bytes: usize, work: impl FnOnce() -> T + Send) -> Result<T, TemplateError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(NAME.to_owned()).stack_size(bytes);
        let running = thread.spawn_scoped(scope, work).map_err(TemplateError::Thread)?;
        Ok(running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// A text that may not grow past [`MAX_RENDERED`].
struct Capped {
    text: Vec<u8>,
    full: bool,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len().saturating_add(bytes.len()) > MAX_RENDERED {
            self.full = true;
            return Err(io::Error::other("the text is too long"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template said with `raise_exception`; travels as the source of the engine's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<minijinja::Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

fn failure(error: Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return TemplateError::Refused { message: message.clone() };
        }
        if inner.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::TooMuchWork;
        }
        cause = inner.source();
    }
    TemplateError::Failed(error)
}

#[cfg(test)]
mod tests;
