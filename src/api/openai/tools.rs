//! Tools: what of them a model is told, and the calls that it writes, in its family's words.
//!
//! A model that was trained for it writes a call as text: Qwen and others of the Hermes form between `<tool_call>` and
//! `</tool_call>`, Llama and Mistral as bare JSON. Which, its chat template tells. Where a call is asked for
//! (`tool_choice: "required"`, or a name), only tokens are drawn that make one.

use quelea_engine::template::ChatTemplate;
use serde_json::{Map, Value, json};

use super::{ApiError, fields::Fields};
use crate::inference::Format;

/// Most tools of a request.
const MAX_TOOLS: usize = 128;

/// Longest name of one, as OpenAI has it.
const MAX_NAME: usize = 64;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// What may stand before bare JSON.
const MARKS: [&str; 2] = ["[TOOL_CALLS]", "<|python_tag|>"];

/// How a model's family writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Each between tags.
    Tagged,
    /// The whole answer is JSON, one call or several; the name of its arguments.
    Bare(&'static str),
}

impl Family {
    fn of(template: &ChatTemplate) -> Self {
        if template.mentions(OPEN) {
            Self::Tagged
        } else if template.mentions("\"parameters\"") && !template.mentions(MARKS[0]) {
            Self::Bare("parameters")
        } else {
            Self::Bare("arguments")
        }
    }
}

/// The tools of a request.
#[derive(Debug, Clone)]
pub(super) struct Tools {
    /// As the client sent them: templates take them so.
    given: Vec<Value>,
    names: Vec<String>,
    /// Those of which one has to be called, if any has.
    forced: Vec<usize>,
    /// Whether one call is enough.
    one: bool,
}

impl Tools {
    /// Reads the request's tools; nothing where none may be called.
    pub(super) fn read(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        let given = fields.array("tools")?.unwrap_or_default();
        let choice = fields.take("tool_choice");
        let one = !fields.flag("parallel_tool_calls")?.unwrap_or(true);
        let wrong = |message: String| ApiError::field("tools", message);
        if given.len() > MAX_TOOLS {
            return Err(wrong(format!("tools has {} tools, at most {MAX_TOOLS} are taken", given.len())));
        }
        let mut names: Vec<String> = Vec::with_capacity(given.len());
        for (at, tool) in given.iter().enumerate() {
            if tool.get("type").and_then(Value::as_str) != Some("function") {
                return Err(wrong(format!("tools[{at}] is no function; nothing else is known here")));
            }
            let name = tool.pointer("/function/name").and_then(Value::as_str).unwrap_or_default();
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(plain) || names.iter().any(|n| n == name) {
                let what = format!("has to have a name of its own of at most {MAX_NAME} letters, digits, _ and -");
                return Err(wrong(format!("tools[{at}].function {what}")));
            }
            let parameters = tool.pointer("/function/parameters");
            if parameters.is_some_and(|schema| !schema.is_object() && !schema.is_null()) {
                return Err(wrong(format!("tools[{at}].function.parameters has to be a JSON schema")));
            }
            names.push(name.into());
        }
        let forced = forced(choice.as_ref(), &names)?;
        match forced {
            Some(forced) if !given.is_empty() => Ok(Some(Self { given, names, forced, one })),
            _ => Ok(None),
        }
    }

    /// The template's variable.
    pub(super) fn put_into(&self, template: &mut Map<String, Value>) {
        template.insert("tools".into(), self.given.clone().into());
    }

    /// What the answer has to be, where a call has to come.
    pub(super) fn format(&self, template: &ChatTemplate) -> Option<Format> {
        if self.forced.is_empty() {
            return None;
        }
        let family = Family::of(template);
        let arguments = match family {
            Family::Tagged => "arguments",
            Family::Bare(arguments) => arguments,
        };
        let calls = self.forced.iter().filter_map(|at| self.given.get(*at)).map(|tool| {
            let name = tool.pointer("/function/name").cloned().unwrap_or_default();
            let parameters = tool.pointer("/function/parameters").filter(|schema| schema.is_object()).cloned();
            let parameters = parameters.unwrap_or_else(|| json!({ "type": "object" }));
            json!({
                "type": "object",
                "properties": { "name": { "const": name }, arguments: parameters },
                "required": ["name", arguments],
                "additionalProperties": false,
            })
        });
        let calls: Vec<Value> = calls.collect();
        let options = json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
        let schema = match calls.as_slice() {
            [only] => only.clone(),
            _ => json!({ "anyOf": calls }),
        };
        Some(match family {
            Family::Bare(_) => Format::Schema(schema),
            Family::Tagged => {
                let mut schema = schema;
                schema["x-guidance"] = options;
                Format::Grammar(format!("start: \"{OPEN}\\n\" call \"\\n{CLOSE}\"\ncall: %json {schema}\n"))
            }
        })
    }
}

/// The calls that answers may have in them.
pub(super) struct Calls {
    tools: Tools,
    family: Family,
}

impl Calls {
    /// Of these tools, by a model with this template.
    pub(super) fn new(tools: Tools, template: &ChatTemplate) -> Self {
        Self { tools, family: Family::of(template) }
    }

    /// A reader of one answer.
    pub(super) fn reader(&self) -> Reader {
        let (names, one) = (self.tools.names.clone(), self.tools.one);
        Reader { family: self.family, names, one, held: String::new(), passes: false, calls: 0 }
    }
}

/// Which tools have to be called: nothing if none may, none if that is the model's choice.
fn forced(choice: Option<&Value>, names: &[String]) -> Result<Option<Vec<usize>>, ApiError> {
    let wrong = |message: &str| ApiError::field("tool_choice", message);
    let Some(choice) = choice else { return Ok(Some(Vec::new())) };
    match (choice.as_str(), choice.pointer("/function/name").and_then(Value::as_str)) {
        (Some("none"), _) => Ok(None),
        (Some("auto"), _) => Ok(Some(Vec::new())),
        (Some("required"), _) if names.is_empty() => Err(wrong("tool_choice goes with tools")),
        (Some("required"), _) => Ok(Some((0..names.len()).collect())),
        (None, Some(name)) => {
            let at = names.iter().position(|known| known == name);
            at.map(|at| Some(vec![at])).ok_or_else(|| wrong("tool_choice names a tool that there is not"))
        }
        _ => Err(wrong("tool_choice has to be none, auto, required, or a function by its name")),
    }
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    /// A call; its arguments are JSON, as text.
    Call {
        name: String,
        arguments: String,
    },
}

/// Tells text from calls, as an answer comes.
#[derive(Debug)]
pub(super) struct Reader {
    family: Family,
    names: Vec<String>,
    one: bool,
    /// What may be, or become, a call.
    held: String,
    /// Whether it is seen that the answer is no call.
    passes: bool,
    calls: usize,
}

impl Reader {
    /// How many calls there were.
    pub(super) fn calls(&self) -> usize {
        self.calls
    }

    /// More of the answer.
    pub(super) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut out = Vec::new();
        match self.family {
            Family::Tagged => self.tagged(&mut out),
            Family::Bare(_) => {
                let begin = self.held.trim_start();
                let may_be = begin.is_empty()
                    || begin.starts_with(['{', '['])
                    || MARKS.iter().any(|mark| mark.starts_with(begin) || begin.starts_with(mark));
                self.passes |= !may_be;
                if self.passes {
                    text_piece(std::mem::take(&mut self.held), &mut out);
                }
            }
        }
        out
    }

    /// What is left when nothing more comes.
    pub(super) fn end(&mut self) -> Vec<Piece> {
        let (mut out, held) = (Vec::new(), std::mem::take(&mut self.held));
        let calls = match self.family {
            Family::Tagged => held.strip_prefix(OPEN).and_then(|body| self.read(body)),
            Family::Bare(_) => {
                let begin = held.trim_start();
                let body = MARKS.iter().find_map(|mark| begin.strip_prefix(mark)).unwrap_or(begin);
                self.read(body)
            }
        };
        match calls {
            Some(calls) => self.add(calls, &mut out),
            None => text_piece(held, &mut out),
        }
        out
    }

    /// Calls between tags, and the text around them.
    fn tagged(&mut self, out: &mut Vec<Piece>) {
        while let Some(at) = self.held.find(OPEN) {
            let (before, rest) = self.held.split_at(at);
            let body = rest.get(OPEN.len()..).unwrap_or_default();
            let (before, rest) = (before.to_owned(), rest.to_owned());
            let Some((body, after)) = body.split_once(CLOSE) else {
                self.text_between(before, out);
                self.held = rest;
                return;
            };
            let (calls, after) = (self.read(body), after.to_owned());
            match calls {
                Some(calls) => {
                    self.text_between(before, out);
                    self.add(calls, out);
                }
                None => {
                    let end = rest.len() - after.len();
                    text_piece(before + rest.get(..end).unwrap_or_default(), out);
                }
            }
            self.held = after;
        }
        // What may be the beginning of a tag stays.
        let keep = (1..OPEN.len()).rev().find(|n| self.held.ends_with(OPEN.get(..*n).unwrap_or(OPEN))).unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - keep);
        let text = std::mem::replace(&mut self.held, tail);
        self.text_between(text, out);
    }

    /// Text beside calls; white space between two of them is none.
    fn text_between(&self, text: String, out: &mut Vec<Piece>) {
        if self.calls == 0 || !text.trim().is_empty() {
            text_piece(text, out);
        }
    }

    fn add(&mut self, calls: Vec<Piece>, out: &mut Vec<Piece>) {
        for call in calls {
            if self.one && self.calls > 0 {
                return;
            }
            self.calls += 1;
            out.push(call);
        }
    }

    /// Calls as JSON: one, an array of some, or one after another. Nothing where any of it is something else.
    fn read(&self, text: &str) -> Option<Vec<Piece>> {
        let mut values = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            let value = stream.next()?.ok()?;
            rest = rest.get(stream.byte_offset()..)?.trim_start_matches([';', ',', '\n', ' ']);
            match value {
                Value::Array(all) => values.extend(all),
                value => values.push(value),
            }
        }
        let calls: Option<Vec<Piece>> = values.iter().map(|value| self.call(value)).collect();
        calls.filter(|calls| !calls.is_empty())
    }

    fn call(&self, value: &Value) -> Option<Piece> {
        let name = value.get("name")?.as_str()?;
        if !self.names.iter().any(|known| known == name) {
            return None;
        }
        let arguments = value.get("arguments").or_else(|| value.get("parameters"));
        let arguments = match arguments {
            // Some write them as text themselves.
            Some(Value::String(text)) => text.clone(),
            Some(arguments) => arguments.to_string(),
            None => "{}".into(),
        };
        Some(Piece::Call { name: name.into(), arguments })
    }
}

fn text_piece(text: String, out: &mut Vec<Piece>) {
    if !text.is_empty() {
        out.push(Piece::Text(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "{% if tools %}x{% endif %}";

    fn reader(template: &str, one: bool) -> Reader {
        let body = json!({ "parallel_tool_calls": !one, "tools": [
            { "type": "function", "function": { "name": "add", "parameters": { "type": "object" } } },
            { "type": "function", "function": { "name": "now" } },
        ] });
        let tools = Tools::read(&mut Fields::parse(body.to_string().as_bytes()).unwrap()).unwrap().unwrap();
        Calls::new(tools, &ChatTemplate::new(template, "", "").unwrap()).reader()
    }

    /// All pieces, with neighbouring texts joined, of an answer that comes in pieces of this many characters.
    fn read(template: &str, answer: &str, step: usize) -> Vec<Piece> {
        let mut reader = reader(template, false);
        let chars: Vec<char> = answer.chars().collect();
        let mut all: Vec<Piece> =
            chars.chunks(step).flat_map(|part| reader.push(&part.iter().collect::<String>())).collect();
        all.extend(reader.end());
        let mut joined: Vec<Piece> = Vec::new();
        for piece in all {
            match (joined.last_mut(), piece) {
                (Some(Piece::Text(before)), Piece::Text(text)) => before.push_str(&text),
                (_, piece) => joined.push(piece),
            }
        }
        joined
    }

    fn call(name: &str, arguments: &str) -> Piece {
        Piece::Call { name: name.into(), arguments: arguments.into() }
    }

    #[test]
    fn calls_between_tags_are_found_however_they_come() {
        let tagged = &format!("{TEXT}{{# {OPEN} #}}");
        let answer = "Let me see. <tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>\n\
                      <tool_call>{\"name\":\"now\"}</tool_call>";
        for step in [1, 2, 7, 1000] {
            let expected = [Piece::Text("Let me see. ".into()), call("add", "{\"a\":1}"), call("now", "{}")];
            assert_eq!(read(tagged, answer, step), expected, "{step}");
            // What is not a call, or of no tool that there is, is text.
            for text in [
                "a < b <tool",
                "<tool_call>{\"name\":\"rm\"}</tool_call> x",
                "<tool_call>{",
                "é<tool_call>no</tool_call>",
            ] {
                assert_eq!(read(tagged, text, step), [Piece::Text(text.into())], "{step}");
            }
            // The end tag may be an end-of-text token, which is not shown.
            assert_eq!(read(tagged, "<tool_call>{\"name\":\"now\"}", step), [call("now", "{}")]);
        }
    }

    #[test]
    fn bare_calls_are_the_whole_answer() {
        for step in [1, 3, 1000] {
            let one = "{\"name\": \"add\", \"parameters\": {\"a\": \"x\"}}";
            assert_eq!(read(TEXT, one, step), [call("add", "{\"a\":\"x\"}")]);
            assert_eq!(read(TEXT, &format!("<|python_tag|>{one}; {one}"), step).len(), 2);
            let several = "[TOOL_CALLS] [{\"name\":\"now\",\"arguments\":{}}, {\"name\":\"add\",\"arguments\":\"{}\"}]";
            assert_eq!(read(TEXT, several, step), [call("now", "{}"), call("add", "{}")]);
            for text in ["{\"name\":\"rm\"}", "{not json", "It is {\"name\":\"now\"}", "  plain"] {
                assert_eq!(read(TEXT, text, step), [Piece::Text(text.into())], "{step}");
            }
        }
    }

    #[test]
    fn one_call_is_enough_where_no_more_are_wanted() {
        let mut reader = reader(TEXT, true);
        assert_eq!(reader.push("[{\"name\":\"now\"},{\"name\":\"now\"}]"), []);
        assert_eq!(reader.end(), [call("now", "{}")]);
        assert_eq!(reader.calls(), 1);
    }

    #[test]
    fn what_may_be_called_is_read_from_the_request() {
        let read = |body: Value| Tools::read(&mut Fields::parse(body.to_string().as_bytes()).unwrap());
        let tool = |name: &str| json!({ "type": "function", "function": { "name": name } });
        assert!(read(json!({})).unwrap().is_none());
        assert!(read(json!({ "tools": [tool("f")], "tool_choice": "none" })).unwrap().is_none());
        let template = ChatTemplate::new(TEXT, "", "").unwrap();
        let forced = |choice: Value| {
            let tools = read(json!({ "tools": [tool("f"), tool("g")], "tool_choice": choice })).unwrap().unwrap();
            tools.format(&template)
        };
        assert_eq!(forced(json!("auto")), None);
        let Some(Format::Schema(any)) = forced(json!("required")) else { panic!() };
        assert_eq!(any["anyOf"].as_array().map(Vec::len), Some(2));
        let Some(Format::Schema(g)) = forced(json!({ "type": "function", "function": { "name": "g" } })) else {
            panic!()
        };
        assert_eq!(g["properties"]["name"]["const"], "g");
        for wrong in [
            json!({ "tools": [tool("f"), tool("f")] }),
            json!({ "tools": [tool("a b")] }),
            json!({ "tools": [{ "type": "retrieval" }] }),
            json!({ "tools": [{ "type": "function", "function": { "name": "f", "parameters": 3 } }] }),
            json!({ "tools": [tool("f")], "tool_choice": "maybe" }),
            json!({ "tools": [tool("f")], "tool_choice": { "function": { "name": "g" } } }),
            json!({ "tool_choice": "required" }),
        ] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
